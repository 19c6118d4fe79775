"""Variants: the same goal in other words, under other names, at another pace.

A metamorphic variant changes what must not matter. A test that catches a defect and not its wording
fails in its variants too; one that does not was a memory of one sentence. Variants stay in the
family and on the side of the split of the test that they come from, so nothing leaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from safety_lib.records import Plant, RegressionTest, id_of_test
from safety_lib.streams import pick
from safety_lib.world import World

_POLITE = ("Hello.", "Good morning.", "One more thing.", "Hi there.")

KINDS: tuple[str, ...] = ("paraphrase", "names", "politeness", "small_talk", "spelling")


def variants(test: RegressionTest, world: World, seed: int = 0) -> tuple[RegressionTest, ...]:
    """Make the variants of a test, one of each kind that changes it.

    Parameters
    ----------
    test : RegressionTest
        What they come from.
    world : World
        Whose tactics and names they use.
    seed : int
        Chooses among wordings and names.

    Returns
    -------
    tuple of RegressionTest
        Proposed tests: rule, family, split, severity and benign twin are the test's own. Their
        reproduction is still the test's; run them before you trust them.

        ``paraphrase``
            another wording of the same tactic, where the words are those of a known one;
        ``names``
            other names of what the world says may be renamed, the same ones everywhere;
        ``politeness``
            a greeting before each message;
        ``small_talk``
            a message that asks for nothing, at the beginning;
        ``spelling``
            other letter case and blanks where nothing depends on them.
    """
    rename: Callable[[Sequence[str], int], Mapping[str, str]] | None = world.hook("renamed")
    texts = (*test.attack_turns, *(plant.text for plant in test.plants))
    names = rename(texts, seed) if rename else {}
    makers: dict[str, Callable[[str], str]] = {
        "paraphrase": lambda text: paraphrase(text, world, seed),
        "names": lambda text: _renamed(text, names),
        "politeness": lambda text: f"{pick(_POLITE, seed, 'polite', text)} {text}",
        "spelling": _respelt,
    }
    made = []
    for kind in KINDS:
        if kind == "small_talk":
            turns: tuple[str, ...] = ("Hello, how are you today?", *test.attack_turns)
            plants = test.plants
        else:
            turns = tuple(makers[kind](text) for text in test.attack_turns)
            plants = tuple(_renamed_plant(p, names) if kind == "names" else p for p in test.plants)
        if (turns, plants) != (test.attack_turns, test.plants):
            made.append(_variant(test, kind, turns, plants))
    return tuple(made)


def paraphrase(text: str, world: World, seed: int) -> str:
    """Say the same with another wording of the same tactic; unknown words stay as they are.

    Parameters
    ----------
    text : str
        What was said.
    world : World
        Whose tactics are known.
    seed : int
        Chooses among the wordings.

    Returns
    -------
    str
        The text in other words, where it is made of known ones.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> world = load_world("northwind")
    >>> paraphrase("The weather is fine.", world, seed=1)
    'The weather is fine.'
    >>> paraphrase("Please read ticket T-201.", world, seed=1) != "Please read ticket T-201."
    True
    """
    pieces = re.split(r"(?<=[.!?])\s+", text.strip())
    said: list[str] = []
    start = 0
    while start < len(pieces):
        # The longest run of sentences that is one wording of a tactic.
        for stop in range(len(pieces), start, -1):
            found = _wording(" ".join(pieces[start:stop]), world)
            if found:
                tactic, clause, used = found
                others = [w for w in world.tactics.tactics[tactic] if w != used]
                words = pick(others or [used], seed, "paraphrase", clause)
                new = words.replace("{clause}", clause)
                said.append(new[0].upper() + new[1:])
                start = stop
                break
        else:
            said.append(pieces[start])
            start += 1
    return " ".join(said)


def _wording(text: str, world: World) -> tuple[str, str, str] | None:
    for tactic, wordings in world.tactics.tactics.items():
        for wording in wordings:
            before, _, after = wording.partition("{clause}")
            fits = text.lower().startswith(before.lower()) and text.endswith(after)
            clause = text[len(before) : len(text) - len(after)]
            if fits and before and clause and not re.search(r"[.!?](\s|$)", clause):
                return tactic, clause, wording
    return None


def _renamed(text: str, names: Mapping[str, str]) -> str:
    if not names:
        return text
    known = re.compile("|".join(rf"\b{re.escape(name)}" for name in sorted(names, key=len)[::-1]))
    return known.sub(lambda found: names[found.group()], text)


def _renamed_plant(plant: Plant, names: Mapping[str, str]) -> Plant:
    return plant.model_copy(update={"text": _renamed(plant.text, names)})


def _respelt(text: str) -> str:
    first, _, rest = text.partition(" ")
    return f"  {first.lower()}  {rest}" if rest else text


def _variant(
    test: RegressionTest, kind: str, turns: tuple[str, ...], plants: Iterable[Plant]
) -> RegressionTest:
    plants = tuple(plants)
    return test.model_copy(
        update={
            "test_id": id_of_test(test.rule_id, turns, plants),
            "name": f"{test.name} ({kind.replace('_', ' ')})",
            "attack_turns": turns,
            "plants": plants,
            "lifecycle": "proposed",
            "lifecycle_reason": f"{kind} of {test.test_id}",
            "minimised": None,
            "unit": None,
            "duplicates": 0,
        }
    )
