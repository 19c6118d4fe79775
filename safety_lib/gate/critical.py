"""Step 1: a critical test that the baseline holds and the candidate fails, and that fails again.

Of many tests some fail by luck alone, so a suspicion is not a verdict: the suspected tests are run
again on seeds that chose nothing, and only what is significant there counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safety_lib.gate.rules import GateRules
from safety_lib.gate.trials import REGRESSION_STRATA, Case, CaseTrials
from safety_lib.records import GateStep
from safety_lib.stats.paired import mcnemar

TITLE = "Does a critical test that held now fail?"


@dataclass(frozen=True)
class Confirmation:
    """One suspected test on fresh seeds: pairs in which only one version failed, and the p-value.

    Attributes
    ----------
    worse, better : int
        Pairs in which only the candidate, only the baseline failed.
    p_value : float
        Exact one-sided McNemar, for a loss.
    """

    case: Case
    worse: int
    better: int
    n: int
    p_value: float

    def __str__(self) -> str:
        return f"{self.case.case_id} fails in {self.worse} of {self.n} fresh pairs"


def suspected(cases: Sequence[CaseTrials], rules: GateRules) -> tuple[Case, ...]:
    """List the critical tests that the baseline held in every trial and the candidate did not.

    Returns
    -------
    tuple of Case
        With as many trials as the confirmation takes.
    """
    found = []
    for entry in cases:
        pairs = entry.pairs
        critical = entry.case.severity == "critical" and entry.case.stratum in REGRESSION_STRATA
        if critical and pairs and all(b for b, _ in pairs) and not all(c for _, c in pairs):
            found.append(replace(entry.case, trials=rules.confirm_trials))
    return tuple(found)


def judge_critical(fresh: Sequence[CaseTrials], rules: GateRules) -> GateStep:
    """Judge the suspected tests by what they did on fresh seeds.

    Each is tested at ``critical_alpha`` over their number (Bonferroni), so that the chance to block
    a version like the baseline stays below ``critical_alpha``, however many tests are suspected.
    """
    seen = [_confirmation(entry) for entry in fresh]
    bar = rules.critical_alpha / max(1, len(seen))
    failed = [one for one in seen if one.p_value < bar]
    if failed:
        worst = min(failed, key=lambda one: (one.p_value, one.case.case_id))
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        reason = f"{worst}, none of the baseline's first trials did (p = {worst.p_value:.2g}){more}"
        return GateStep(step=1, title=TITLE, status="block", reason=reason)
    said = f"{len(seen)} suspected, none confirmed on fresh seeds" if seen else "none"
    return GateStep(step=1, title=TITLE, status="pass", reason=said)


def _confirmation(entry: CaseTrials) -> Confirmation:
    pairs = entry.pairs
    worse = sum(b and not c for b, c in pairs)
    better = sum(c and not b for b, c in pairs)
    p_value = mcnemar(worse, better).one_sided_p
    return Confirmation(entry.case, worse, better, len(pairs), p_value)
