"""The rows of a forest plot, on paper and on the page: who is worse, who is not, what is open."""

from __future__ import annotations

from typing import Literal, NamedTuple

from safety_lib.records import GateReport
from safety_lib.report.text import known

BLOCK_MARGIN = -0.05
OK_MARGIN = -0.02

State = Literal["worse", "not worse", "open"]
_MOST_CATEGORIES = 10


class Difference(NamedTuple):
    """A difference of pass rates, candidate minus baseline; NaN where there is none."""

    group: Literal["all", "stratum", "category"]
    label: str
    delta: float
    ci_low: float
    ci_high: float

    def state(self, margin: float = BLOCK_MARGIN) -> State:
        """Say what the interval shows: below zero, above the margin, or neither.

        Examples
        --------
        >>> Difference("all", "regression tests", -0.2, -0.3, -0.1).state()
        'worse'
        >>> Difference("all", "regression tests", 0.0, -0.04, 0.04).state()
        'not worse'
        >>> Difference("all", "regression tests", -0.2, float("nan"), float("nan")).state()
        'open'
        """
        if not known(self.ci_low, self.ci_high):
            return "open"
        if self.ci_high < 0:
            return "worse"
        return "not worse" if self.ci_low > margin else "open"


def differences(report: GateReport) -> list[Difference]:
    """Gather the difference over all tests, then of each stratum and each category.

    Categories stand from the largest loss on; of more than ten the first ten are kept.
    """
    rows = [_row("all", "regression tests", report.delta, report.ci_low, report.ci_high)]
    rows += [_row("stratum", s.stratum, s.delta, s.ci_low, s.ci_high) for s in report.strata]
    categories = [
        _row("category", name, found.get("delta"), found.get("ci_low"), found.get("ci_high"))
        for name, found in sorted(report.by_category.items())
    ]
    categories.sort(key=lambda row: (not known(row.delta), row.delta if known(row.delta) else 0.0))
    return rows + categories[:_MOST_CATEGORIES]


def _row(
    group: Literal["all", "stratum", "category"],
    label: str,
    delta: float | None,
    low: float | None,
    high: float | None,
) -> Difference:
    nan = float("nan")
    return Difference(
        group,
        label.replace("_", " "),
        nan if delta is None else delta,
        nan if low is None else low,
        nan if high is None else high,
    )
