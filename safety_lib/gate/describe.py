"""What the pooled pairs show: description, since no verdict may rest on pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from safety_lib.gate.trials import REGRESSION_STRATA, CaseTrials
from safety_lib.records import FamilyDiagnosis, PooledPairs
from safety_lib.stats.differences import tango
from safety_lib.stats.multiplicity import holm
from safety_lib.stats.paired import mcnemar


def pooled_pairs(cases: Sequence[CaseTrials], level: float) -> PooledPairs | None:
    """Describe all pairs of the regression tests as if they were independent.

    Returns
    -------
    PooledPairs or None
        None where no pair is valid. The interval is Tango's for paired proportions, the p-value
        McNemar's mid-p (two-sided).
    """
    pairs = [p for c in cases if c.case.stratum in REGRESSION_STRATA for p in c.pairs]
    if not pairs:
        return None
    worse, better = _discordant(pairs)
    interval = tango(better, worse, len(pairs), level)
    return PooledPairs(
        pairs=len(pairs),
        worse=worse,
        better=better,
        delta=round((better - worse) / len(pairs), 6),
        ci_low=round(interval.low, 6),
        ci_high=round(interval.high, 6),
        mid_p=round(mcnemar(worse, better).mid_p, 6),
    )


def diagnose_families(cases: Sequence[CaseTrials]) -> tuple[FamilyDiagnosis, ...]:
    """Say for each family how much it lost, with a p-value that holds for all of them at once.

    The p-value is McNemar's, exact and one-sided, over the pairs of the family, adjusted by Holm
    (Scandinavian Journal of Statistics 6, 1979). It finds where to look; the verdict is step 2's.
    """
    groups: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    tests: defaultdict[str, int] = defaultdict(int)
    for entry in cases:
        if entry.case.stratum in REGRESSION_STRATA and entry.pairs:
            groups[entry.case.family] += entry.pairs
            tests[entry.case.family] += 1
    if not groups:
        return ()
    counts = {family: _discordant(pairs) for family, pairs in groups.items()}
    p_values = [mcnemar(worse, better).one_sided_p for worse, better in counts.values()]
    rows = [
        FamilyDiagnosis(
            family=family,
            n_tests=tests[family],
            pairs=len(groups[family]),
            worse=counts[family][0],
            better=counts[family][1],
            delta=round((counts[family][1] - counts[family][0]) / len(groups[family]), 6),
            p_holm=round(float(adjusted), 6),
        )
        for family, adjusted in zip(groups, holm(p_values), strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: (row.delta, row.family)))


def _discordant(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int]:
    return sum(b and not c for b, c in pairs), sum(c and not b for b, c in pairs)
