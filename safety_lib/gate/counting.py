"""Trials counted so far: what both versions did in the first n trials of each case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safety_lib.gate.look_rules import LookRules
from safety_lib.gate.trials import Case, CaseTrials
from safety_lib.records import Outcome
from safety_lib.stats.strata import StrataLoss, independent_loss, shared_loss

Luck = Literal["shared", "independent"]
_CODES: dict[Outcome, int] = {"safe": 1, "violation": 2, "error": 0, "undetermined": 0}


class Counted:
    """The trials of one case in the order in which they ran, counted for every length.

    An error and an undetermined trial are neither pass nor failure; where luck is shared they take
    the whole pair out.

    Attributes
    ----------
    case : Case
        What was tried.
    available : int
        Trials that both versions have.
    """

    def __init__(self, entry: CaseTrials) -> None:
        self.case: Case = entry.case
        self.available = min(len(entry.baseline), len(entry.candidate))
        base_ok, base_bad = _flags(entry.baseline[: self.available])
        cand_ok, cand_bad = _flags(entry.candidate[: self.available])
        base, cand = base_ok | base_bad, cand_ok | cand_bad
        parts = (
            base_bad,
            base,
            cand_bad,
            cand,
            base_ok & cand_bad,
            base_bad & cand_ok,
            base_bad & cand_bad,
            base & cand,
        )
        self._sums = np.zeros((self.available + 1, len(parts)), dtype=np.int64)
        np.cumsum(np.stack(parts, axis=1), axis=0, out=self._sums[1:])

    def after(self, trials: int) -> NDArray[np.int64]:
        """Count the first so many trials.

        Returns
        -------
        ndarray
            Baseline failed, baseline valid, candidate failed, candidate valid; pairs that only the
            candidate failed, only the baseline, both; valid pairs.
        """
        counts: NDArray[np.int64] = self._sums[min(trials, self.available)]
        return counts


def _flags(outcomes: Sequence[Outcome]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    codes = np.fromiter(map(_CODES.__getitem__, outcomes), dtype=np.int8, count=len(outcomes))
    return codes == 1, codes == 2


def loss_after(cases: Sequence[Counted], trials: int, luck: Luck) -> StrataLoss | None:
    """Compare both versions on the first trials of some cases, each case a stratum.

    Parameters
    ----------
    cases : sequence of Counted
        What to compare on.
    trials : int
        How many trials of each count.
    luck : "shared" or "independent"
        Whether a trial of one version is a pair with that of the other.

    Returns
    -------
    StrataLoss or None
        None where no case has a valid trial on both sides.
    """
    counts = np.array([case.after(trials) for case in cases], dtype=np.int64).reshape(-1, 8)
    base_failed, base, cand_failed, cand, worse, better, both, pairs = counts.T
    if luck == "shared":
        return shared_loss(worse, better, both, pairs) if pairs.any() else None
    if not ((base > 0) & (cand > 0)).any():
        return None
    return independent_loss(base_failed, base, cand_failed, cand)


def excess_errors(cases: Sequence[Counted], trials: int) -> float:
    """Share of the trials that the candidate left without an outcome, beyond the baseline's share.

    A candidate could hide its losses in trials that come to no end; those may count as lost.
    """
    excess = tried = 0
    for case in cases:
        counts = case.after(trials)
        excess += int(counts[1]) - int(counts[3])
        tried += min(trials, case.available)
    return max(0, excess) / tried if tried else 0.0


def is_large_enough(
    failed: NDArray[np.int64],
    valid: NDArray[np.int64],
    tried: NDArray[np.int64],
    rules: LookRules,
    bound: float,
) -> bool:
    """Whether a candidate that is equal would nearly always be inside the margin of a family.

    Parameters
    ----------
    failed, valid : ndarray
        Failures and valid trials of the baseline on each test, at least one valid.
    tried : ndarray
        How often each test is tried on either side in the end.
    rules : LookRules
        For the margin, and for how often is nearly always.
    bound : float
        How many standard errors inside the margin is enough.

    Returns
    -------
    bool
        As the policy says ``large_enough``.
    """
    from scipy.special import ndtr

    expected = np.rint(failed / valid * tried)
    equal = independent_loss(expected, tried, expected, tried)
    return float(ndtr(rules.family_margin / equal.se - bound)) >= rules.large_enough
