"""Exercises with self-checks: the reader puts a value in place of ``...`` and runs the cell.

A notebook calls :func:`check` with the data of the reader's own run, so an answer that is right at
one parameter is not right at another, and no answer stands in the notebook's cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

NOT_TRIED = "Not tried yet: replace the ... above and run this cell again."
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
    'Not tried yet: replace the ... above and run this cell again.'
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
