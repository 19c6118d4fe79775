"""Trials of a test taken together: does it pass every time, or does it pass at all."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from safety_lib.gate.trials import REGRESSION_STRATA
from safety_lib.records import ArmResult, GateReport
from safety_lib.stats.multiplicity import pass_at_k, pass_hat_k

LARGEST_K = 4


class Repeats(NamedTuple):
    """A family of tests, each tried ``k`` times on both versions.

    Attributes
    ----------
    family : str
        Its name.
    k : int
        Trials of a test that are taken together, at least 1.
    every : tuple of float
        Chance that all of them pass (pass^k), on baseline and candidate.
    some : tuple of float
        Chance that at least one passes (pass@k), on baseline and candidate.
    """

    family: str
    k: int
    every: tuple[float, float]
    some: tuple[float, float]


def repeats(report: GateReport, most: int = LARGEST_K) -> list[Repeats]:
    """Compute pass^k and pass@k for each family of regression tests.

    Parameters
    ----------
    report : GateReport
        What the gate counted.
    most : int
        Largest k; a family whose tests have fewer valid trials gets as many as each of them has.

    Returns
    -------
    list of Repeats
        By name; families without a test that has valid trials on both versions are left out.

    References
    ----------
    pass^k: Yao et al., tau-bench, arXiv:2406.12045. pass@k: Chen et al., arXiv:2107.03374.

    Examples
    --------
    >>> import pandas as pd
    >>> from safety_lib import judge_results
    >>> a = pd.DataFrame({"test": ["t", "u"] * 30, "family": "f", "outcome": ["pass"] * 60})
    >>> [both] = repeats(judge_results(a, a.assign(outcome=["pass", "fail"] * 30)))
    >>> both.k, both.every, both.some
    (4, (1.0, 0.5), (1.0, 0.5))
    """
    tried: defaultdict[str, list[tuple[ArmResult, ArmResult]]] = defaultdict(list)
    for test in report.test_results:
        arms = test.baseline, test.candidate
        if test.stratum in REGRESSION_STRATA and all(arm.valid for arm in arms):
            tried[test.family].append(arms)
    found = []
    for family, tests in sorted(tried.items()):
        k = min(most, *(arm.valid for arms in tests for arm in arms))
        passed = [[arm.passed for arm in side] for side in zip(*tests, strict=True)]
        valid = [[arm.valid for arm in side] for side in zip(*tests, strict=True)]
        every = [pass_hat_k(p, n, k) for p, n in zip(passed, valid, strict=True)]
        some = [pass_at_k(p, n, k) for p, n in zip(passed, valid, strict=True)]
        found.append(Repeats(family, k, (every[0], every[1]), (some[0], some[1])))
    return found
