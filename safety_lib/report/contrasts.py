"""The rows of a forest plot, on paper and on the page: who is worse, who is not, what is open."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from safety_lib.gate.trials import REGRESSION_STRATA
from safety_lib.records import GateReport
from safety_lib.text import known

State = Literal["worse", "not worse", "open"]
Group = Literal["all", "stratum", "family"]
MOST_FAMILIES = 12
_LEVEL = 0.95


class Difference(NamedTuple):
    """A difference of pass rates, candidate minus baseline; NaN where there is none."""

    group: Group
    label: str
    delta: float
    ci_low: float
    ci_high: float

    def state(self, margin: float) -> State:
        """Say what the interval shows: below zero, above the margin, or neither.

        Examples
        --------
        >>> Difference("all", "regression tests", -0.2, -0.3, -0.1).state(-0.05)
        'worse'
        >>> Difference("all", "regression tests", 0.0, -0.04, 0.04).state(-0.05)
        'not worse'
        >>> Difference("all", "regression tests", -0.2, float("nan"), float("nan")).state(-0.05)
        'open'
        """
        if not known(self.ci_low, self.ci_high):
            return "open"
        if self.ci_high < 0:
            return "worse"
        return "not worse" if self.ci_low > margin else "open"


def differences(report: GateReport) -> list[Difference]:
    """Gather the difference over all tests, then of each stratum and each family of tests.

    Families stand from the largest loss on; of more than twelve the first twelve are kept.
    """
    rows = [_row("all", "regression tests", report.delta, report.ci_low, report.ci_high)]
    rows += [_row("stratum", s.stratum, s.delta, s.ci_low, s.ci_high) for s in report.strata]
    return rows + families(report)[:MOST_FAMILIES]


def search_bias(report: GateReport) -> Difference | None:
    """Say by how much a search makes the version that it searched look worse.

    A test is kept where it failed, so tests found on one version flatter the other. For versions
    that are equal, tests found on the baseline would be above zero by this much and tests found on
    the candidate below zero; half of what lies between the two is that size, whatever the
    candidate's own loss, as long as both searches are alike.

    Returns
    -------
    Difference or None
        In pass rate, with a 95% interval (normal); None unless tests found on each version have
        valid trials.
    """
    found = {
        each.stratum: each
        for each in report.strata
        if each.stratum in ("baseline_found", "candidate_found")
        and known(each.delta, each.ci_low, each.ci_high)
    }
    if len(found) < 2:
        return None
    one, other = found["baseline_found"], found["candidate_found"]
    size = (one.delta - other.delta) / 2
    half = math.hypot(one.ci_high - one.ci_low, other.ci_high - other.ci_low) / 4
    return Difference("stratum", "search", size, size - half, size + half)


def families(report: GateReport) -> list[Difference]:
    """Return the difference of each family of regression tests, from the largest loss on.

    All trials of a family are taken together. The intervals (Newcombe) hold for all families at
    once: of a level that is higher the more families there are (Bonferroni). They take the trials
    of one family for independent, so they speak of these tests and not of others of their kind.
    """
    from safety_lib.stats.differences import newcombe_difference

    arms: dict[str, list[int]] = {}
    for test in report.test_results:
        if test.stratum in REGRESSION_STRATA:
            counts = arms.setdefault(test.family, [0, 0, 0, 0])
            for i, arm in enumerate((test.candidate, test.baseline)):
                counts[2 * i] += arm.passed
                counts[2 * i + 1] += arm.valid
    level = 1 - (1 - _LEVEL) / max(1, len(arms))
    rows = []
    for name, (passed, valid, passed_before, valid_before) in sorted(arms.items()):
        if valid and valid_before:
            seen = newcombe_difference(passed, valid, passed_before, valid_before, level)
            rows.append(_row("family", name, seen.estimate, seen.low, seen.high))
        else:
            rows.append(_row("family", name, None, None, None))
    rows.sort(key=lambda row: (not known(row.delta), row.delta if known(row.delta) else 0.0))
    return rows


def _row(
    group: Group, label: str, delta: float | None, low: float | None, high: float | None
) -> Difference:
    nan = float("nan")
    return Difference(
        group,
        label.replace("_", " "),
        nan if delta is None else delta,
        nan if low is None else low,
        nan if high is None else high,
    )
