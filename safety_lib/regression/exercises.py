"""The exercises of notebook 02: what is right, worked out from the reader's own run."""

from __future__ import annotations

from statistics import median

from safety_lib.exercises import Exercise
from safety_lib.records import Suite


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
