"""Exercises with self-checks: the reader puts a value in place of ``...`` and runs the cell.

A notebook calls :func:`check` with the data of the reader's own run, so an answer that is right at
one parameter is not right at another, and no answer stands in the notebook's cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import EllipsisType
from typing import Any

from safety_lib.incident.bisection import interactions
from safety_lib.records import BlastRadius, MitigationResult, Suite

NOT_TRIED = "Not tried yet: replace the ... above."
RIGHT = "Right."


@dataclass(frozen=True)
class Exercise:
    """One question: what is right, worked out from the reader's data, and a hint.

    ``within`` is how far a number may be off, for answers that people round.
    """

    expected: Callable[..., Any]
    hint: str
    within: float = 0.0


def check(exercise: Exercise, answer: Any, *data: Any) -> str:
    """Say whether an answer is right; a sentence comes back, whatever the answer is.

    Parameters
    ----------
    exercise : Exercise
        The question.
    answer : object
        What the reader put in; ``...`` means not tried.
    *data : object
        What the right answer is worked out from: objects of the reader's notebook.

    Returns
    -------
    str
        ``"Right."``, or "Not yet." with a hint, or that it was not tried.

    Examples
    --------
    >>> total = Exercise(sum, "Add them up.")
    >>> check(total, ..., [1, 2])
    'Not tried yet: replace the ... above.'
    >>> check(total, 4, [1, 2]), check(total, 3, [1, 2])
    ('Not yet. Add them up.', 'Right.')
    """
    if isinstance(answer, EllipsisType):
        return NOT_TRIED
    try:
        right = _same(answer, exercise.expected(*data), exercise.within)
    except Exception as error:  # the reader's data or answer may be anything
        return f"Not yet. This could not be compared ({type(error).__name__}). {exercise.hint}"
    return RIGHT if right else f"Not yet. {exercise.hint}"


def _same(answer: Any, expected: Any, within: float) -> bool:
    if isinstance(expected, bool) or isinstance(answer, bool):
        return bool(answer is expected)
    if isinstance(expected, str):
        return isinstance(answer, str) and _plain(answer) == _plain(expected)
    if isinstance(expected, int | float):
        return math.isclose(float(answer), float(expected), rel_tol=1e-9, abs_tol=within + 1e-12)
    if isinstance(expected, Mapping):
        return dict(answer) == dict(expected)
    if isinstance(expected, set | frozenset):
        return {_plain(str(item)) for item in answer} == {_plain(str(item)) for item in expected}
    if isinstance(expected, list | tuple):
        pairs = zip(answer, expected, strict=True)
        return len(answer) == len(expected) and all(_same(a, e, within) for a, e in pairs)
    return bool(answer == expected)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


SURVIVED = Exercise(
    lambda curve: curve.survival[-1],
    "Multiply 1 - failed / at_risk over the turns. A session that the monitor ended leaves the "
    "group at risk; it is no success.",
    within=0.005,
)

WORST_CASE = Exercise(
    lambda endings: endings.highest,
    "Count all that broke a rule or were ended by something else, over all conversations.",
    within=0.005,
)

STILL_POSSIBLE = Exercise(
    lambda held: 1 - 0.05 ** (1 / held),
    "With a failure rate p, all of n conversations hold with a chance of (1 - p) ** n. For which p "
    "is that one in twenty?",
    within=0.005,
)


def _median_share(suite: Suite) -> float:
    done = [test.minimised for test in suite.active if test.minimised]
    return median(how.turns_after / how.turns_before for how in done)


def _without_tactic(suite: Suite) -> int:
    return len({test.signature.rsplit(" | ", 1)[0] for test in suite.active})


SHORTER = Exercise(
    _median_share,
    "Divide `minimised.turns_after` by `minimised.turns_before` for each active test that has "
    "been shortened, then take the median.",
    within=0.005,
)

MISSED = Exercise(
    lambda rate, trials: (1 - rate) ** trials,
    "It is missed if it does not fail in any of the trials; they are independent.",
    within=0.002,
)

TACTICS = Exercise(
    _without_tactic,
    "The tactic is the last part of a signature, after the last ` | `. Cut it off and count what "
    "is distinct.",
)


SMALLEST_P = Exercise(
    lambda families: 0.5**families,
    "If the versions did not differ, each family would fall to either side like a coin. How many "
    "coins, and how many ways for all of them to fall to one side?",
    within=1e-6,
)

MISSED_LOSS = Exercise(
    lambda families: 1 / families,
    "Every family has the same share of the mean, and one of them falls from all to nothing.",
    within=0.005,
)


TRIED_AGAIN = Exercise(
    lambda attempts, wrong: 1 - (1 - wrong) ** (1 / attempts),
    "None of the attempts may get out: if each does with a chance of p, that happens with "
    "(1 - p) to the power of the attempts. Set it to what is left, and solve for p.",
    within=0.0005,
)


def _overlooked(radius: BlastRadius) -> float:
    unlikely = radius.population_n - radius.flagged_n
    return float(unlikely * (1 - 0.05 ** (1 / radius.audited_unflagged)))


def _best(fixes: Sequence[MitigationResult]) -> str:
    harmless = [fix for fix in fixes if fix.benign.k == 0]
    return min(harmless, key=lambda fix: fix.held_out.k / fix.held_out.n).name


TOGETHER = Exercise(
    lambda search: next(iter(interactions(search).values())),
    "Four shares: with both, with each of the two alone, with none. The last one comes back with a "
    "plus, since it was taken away twice.",
    within=0.005,
)

OVERLOOKED = Exercise(
    _overlooked,
    "Nothing in n conversations means a share of at most 3 / n, about. Then scale it up.",
    within=3.0,
)

BEST_FIX = Exercise(
    _best,
    "Keep the fixes whose `benign.k` is 0, then compare `held_out.k / held_out.n`.",
)
