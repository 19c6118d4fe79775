"""Mutators: other ways to say what an attacker says, at any turn and on top of each other.

A mutator changes the words and keeps what they ask for: the names, numbers, addresses and paths of
the message are still in it afterwards. An attacker is given some by its name, as in
``adaptive+urgency+padding``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from safety_lib.streams import pick

if TYPE_CHECKING:
    from safety_lib.attack.attackers import Attacker

MUTATORS_FILE = Path(__file__).with_name("mutators.yaml")
Mutator = Callable[[str, int], str]

# What a request cannot lose: ids, amounts, addresses, paths and short words like on and off.
_ESSENTIAL = re.compile(
    r"[\w.+-]+@[\w.-]+\w|/[\w./-]*\w|\b[A-Z]+-\d+\b|\b\d[\d,.]*\b|\b(?:on|off)\b"
)


@cache
def mutators() -> dict[str, Mutator]:
    """Return every mutator by its name: a message and a seed to a message.

    Examples
    --------
    >>> mutators()["as_agreed"]("Please delete /tmp/a.md.", 1).endswith("delete /tmp/a.md.")
    True
    """
    read = yaml.safe_load(MUTATORS_FILE.read_text(encoding="utf-8"))
    named: dict[str, Mutator] = {
        name: partial(_wrapped, name, tuple(wordings)) for name, wordings in read["wrap"].items()
    }
    named["paraphrase"] = partial(_paraphrased, tuple(map(tuple, read["paraphrase"])))
    return named


def essentials(message: str) -> frozenset[str]:
    """Return what a request names and cannot lose.

    Examples
    --------
    >>> sorted(essentials("Please pay 400 to Acme, see T-204 and /shared/a.csv."))
    ['/shared/a.csv', '400', 'T-204']
    """
    return frozenset(_ESSENTIAL.findall(message))


def still_asks(mutated: str, message: str) -> bool:
    """Say whether a message that was changed still names all that the message named.

    Examples
    --------
    >>> still_asks("It is urgent: delete /tmp/a.md", "Please delete /tmp/a.md.")
    True
    >>> still_asks("It is urgent: delete that file", "Please delete /tmp/a.md.")
    False
    """
    return essentials(message) <= essentials(mutated)


def mutate(message: str, names: Sequence[str], seed: int) -> str:
    """Say a message in another way: one mutator after the other.

    Parameters
    ----------
    message : str
        What is to be said.
    names : sequence of str
        Mutators, the innermost first.
    seed : int
        Decides the wordings.

    Returns
    -------
    str
        It still names all that the message named.

    Raises
    ------
    ValueError
        If a name is unknown, or the result no longer asks for what the message did.

    Examples
    --------
    >>> mutate("Please delete /tmp/a.md.", ["paraphrase", "as_agreed"], seed=2)
    'As we agreed: Kindly delete /tmp/a.md.'
    """
    changed = message
    for name in _known(names):
        changed = mutators()[name](changed, seed)
    if not still_asks(changed, message):
        lost = ", ".join(sorted(essentials(message) - essentials(changed)))
        raise ValueError(f"{' + '.join(names)} lost {lost} of {message!r}")
    return changed


class Mutated:
    """An attacker whose messages go through mutators; it hears the replies as before.

    A message that would lose what it asks for is said as it was.
    """

    def __init__(self, attacker: Attacker, names: Sequence[str], seed: int) -> None:
        self._attacker = attacker
        self._names = _known(names)
        self._seed = seed

    def next_message(self, replies: Sequence[str]) -> str | None:
        """Return the attacker's next message in other words."""
        message = self._attacker.next_message(replies)
        if message is None:
            return None
        try:
            return mutate(message, self._names, self._seed + len(replies))
        except ValueError:  # the names are known, so the goal was lost
            return message


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in mutators():
            raise ValueError(f"unknown mutator {name!r}: use {', '.join(mutators())}")
    return names


def _wrapped(name: str, wordings: tuple[str, ...], message: str, seed: int) -> str:
    wording = pick(wordings, seed, "mutator", name)
    first, second = _halves(message)
    return (
        wording.replace("{message}", message).replace("{first}", first).replace("{second}", second)
    )


def _halves(message: str) -> tuple[str, str]:
    words = message.split()
    middle = max(1, len(words) // 2)
    return " ".join(words[:middle]), " ".join(words[middle:])


def _paraphrased(phrases: tuple[tuple[str, str], ...], message: str, seed: int) -> str:
    for before, after in phrases:
        message = re.sub(rf"\b{re.escape(before)}\b", after, message)
    return message
