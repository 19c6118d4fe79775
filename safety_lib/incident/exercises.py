"""The exercises of notebook 04: what is right, worked out from the reader's own run."""

from __future__ import annotations

from collections.abc import Sequence

from safety_lib.exercises import Exercise
from safety_lib.incident.bisection import interactions
from safety_lib.records import BlastRadius, MitigationResult


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
