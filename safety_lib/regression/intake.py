"""The door of stage 2: failures that cannot be made into tests are refused by name.

A failure file can come from anywhere. What would choke a replay, a report or a terminal is stopped
here with one line that names the record, before anything runs and before any file is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from safety_lib.attack.scenarios import load_goals
from safety_lib.policy import load_policy
from safety_lib.records import Failure

LONGEST_TURN = 20_000
MOST_TURNS = 200

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class IntakeError(ValueError):
    """A failure cannot be made into a test; the message is one line that names the record."""


def check_failures(failures: Sequence[Failure], versions: Collection[str]) -> None:
    """Refuse failures that cannot be replayed.

    Parameters
    ----------
    failures : sequence of Failure
        As they were read.
    versions : collection of str
        The versions that are at hand.

    Raises
    ------
    IntakeError
        At the first record that has no turns, a turn of more than 20,000 characters, more than 200
        turns, a control character, an id that another one has, or a rule, goal or version that
        nobody knows.

    Examples
    --------
    >>> check_failures([], ["v1"])
    """
    ids = Counter(failure.failure_id for failure in failures)
    for number, failure in enumerate(failures, start=1):
        problem = next(_problems(failure, versions), "")
        if not problem and ids[failure.failure_id] > 1:
            problem = f"{ids[failure.failure_id]} failures have this id"
        if problem:
            name = _shown(failure.failure_id)
            raise IntakeError(
                f"failure {number} ({name}): {problem}; correct the file, or run stage 1 again"
            )


def _problems(failure: Failure, versions: Collection[str]) -> Iterator[str]:
    if not failure.failure_id.strip():
        yield "it has no id"
    if not failure.trajectory:
        yield "its trajectory has no turns"
    if len(failure.trajectory) > MOST_TURNS:
        yield f"its trajectory has {len(failure.trajectory):,} turns, at most {MOST_TURNS} can be"
    if not failure.violations:
        yield "no rule was broken in it"
    if failure.version not in versions:
        yield f"it was found on {_shown(failure.version)}, which is not given"
    if failure.rule_id not in {rule.id for rule in load_policy().rules}:
        yield f"there is no rule {_shown(failure.rule_id)}"
    if failure.goal not in load_goals():
        yield f"there is no goal {_shown(failure.goal)}"
    for where, text in _texts(failure):
        if len(text) > LONGEST_TURN:
            yield f"{where} has {len(text):,} characters, at most {LONGEST_TURN:,} can be"
        found = _CONTROL.search(text)
        if found:
            yield f"{where} holds the control character U+{ord(found.group()):04X}"


def _texts(failure: Failure) -> Iterator[tuple[str, str]]:
    yield "its id", failure.failure_id
    yield "its attack_type", failure.attack_type
    for number, text in enumerate(failure.trajectory, start=1):
        yield f"turn {number}", text
    for plant in failure.plants:
        yield f"what was planted at {_shown(plant.where)}", plant.text
        yield "the place of a plant", plant.key


def _shown(text: str) -> str:
    shown = text[:60].encode("unicode_escape").decode()
    return repr(shown if len(text) <= 60 else shown + "...").replace("\\\\", "\\")
