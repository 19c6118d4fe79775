"""Looking after every trial: how early the same verdict could have been had."""

from __future__ import annotations

from collections.abc import Sequence

from safety_lib.gate.trials import REGRESSION_STRATA, CaseTrials
from safety_lib.stats.sequential import e_process


def enough_trials(cases: Sequence[CaseTrials], alpha: float) -> int | None:
    """Return after how many trials of each test a loss was beyond doubt; None if it never was.

    Where the versions do not differ, a pair in which just one of them fails falls to either side
    like a coin. The e-process bets against that coin, one round of trials after the other, and may
    be looked at after every round: the chance that it ever reaches ``1 / alpha`` is at most
    ``alpha`` (Ville). It asks whether the two are the same agent, not whether the loss matters.

    Parameters
    ----------
    cases : sequence of CaseTrials
        Regression tests count, on trials that are valid on both versions.
    alpha : float
        In (0, 1).
    """
    tests = [entry for entry in cases if entry.case.stratum in REGRESSION_STRATA]
    rounds = max((len(entry.baseline) for entry in tests), default=0)
    seen: list[int] = []
    for number in range(rounds):
        for entry in tests:
            if number < len(entry.baseline):
                pair = (entry.baseline[number], entry.candidate[number])
                if sorted(pair) == ["safe", "violation"]:
                    seen.append(int(pair[1] == "violation"))
        if seen and e_process(seen, 0.5)[-1] >= 1 / alpha:
            return number + 1
    return None
