"""The report as one page that needs nothing else: no network, no script, no second file.

The templates escape by default. Text from outside goes through ``shown`` or ``line`` as well, which
mark every hidden character and cut what is too long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from safety_lib.records import GateReport, Release, TestResult
from safety_lib.report.contrasts import (
    MOST_FAMILIES,
    Difference,
    differences,
    families,
    search_bias,
)
from safety_lib.report.repeats import repeats
from safety_lib.text import (
    LONG_TEXT,
    SHORT_TEXT,
    count,
    cut,
    known,
    left_out,
    one_line,
    p_value,
    per_1000,
    percent,
    pieces,
    plain,
    points,
    span,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_CATEGORY_COLUMNS = {
    "n_tests": "Tests",
    "n_families": "Families",
    "baseline_pass_rate": "Baseline",
    "candidate_pass_rate": "Candidate",
    "delta": "Difference",
    "ci_low": "From",
    "ci_high": "To",
    "p_value": "p",
}
_SEVERITY_ORDER = {"critical": 0, "high": 1, "medium": 2, "low": 3}
_STRATA = {
    "baseline_found": "regression tests, found on the baseline",
    "candidate_found": "regression tests, found on the candidate",
    "incident": "regression tests, from incidents",
    "control": "every scenario's script, whether or not it ever broke anything",
    "benign": "legitimate requests; not serving one is a failure",
}
_NAME = re.compile(r"[\w./-]*[\d/][\w./-]*")
_REASON = 600
_ON_PAPER = 10
_MOST_LINKS = 5
_MOST_CHANGES = 20


def render_gate_report(report: GateReport, history: Sequence[Release] = (), head: str = "") -> str:
    """Return the report as one self-contained HTML page.

    Parameters
    ----------
    report : GateReport
        What the gate decided, with the transcripts that show it.
    history : sequence of Release
        The releases that were judged, in order; this one is added where it is not among them.
    head : str, optional
        Hash of the ledger up to this verdict, for who wants to check it later.

    Returns
    -------
    str
        The page, the same bytes for the same report; write it as UTF-8.
    """
    template = _environment().get_template("report.html")
    tests = sorted(report.test_results, key=_worst_first)
    names = _anchors(tests)
    anchors = {test.test_id: name for test, name in zip(tests, names, strict=True)}
    worse = [test.test_id for test in tests if known(test.delta) and (test.delta or 0) < 0]
    return template.render(
        report=report,
        verdict=report.verdict or "NO VERDICT",
        reason=report.reasons[0] if report.reasons else "No reason was recorded.",
        more_reasons=report.reasons[1:],
        forest=_forest(report),
        category_columns=_category_columns(report),
        column_titles=_CATEGORY_COLUMNS,
        tests=list(zip(tests, names, strict=True)),
        anchors=anchors,
        worse=worse[:_MOST_LINKS],
        on_paper=min(_ON_PAPER, len(worse)),
        strata_words=_STRATA,
        most_changes=_MOST_CHANGES,
        releases=_releases(report, history),
        head=head,
        repeats=repeats(report),
        search=search_bias(report),
        families_left=max(0, len(families(report)) - MOST_FAMILIES),
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("safety_lib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        shown=shown,
        line=line,
        name=name,
        plain=plain,
        per_1000=per_1000,
        percent=percent,
        points=points,
        p_value=p_value,
        cell=_category_cell,
        linked=linked,
    )
    environment.globals.update(count=count, span=span, known=known)
    return environment


def shown(text: str, limit: int = LONG_TEXT, lines: bool = True, joints: bool = False) -> Markup:
    r"""Return a text from outside as markup: escaped, hidden characters marked, cut to a limit.

    Parameters
    ----------
    text : str
        Whatever a model, a user or a file said.
    limit : int
        Most characters that are kept; a note says how many were left out.
    lines : bool
        Whether line breaks stay line breaks; otherwise they are marked like other hidden ones.
    joints : bool
        Whether a line may break after ``_`` and ``/``, as long identifiers must.

    Examples
    --------
    >>> print(shown("<b>" + chr(27)))
    &lt;b&gt;<span class="esc">\x1b</span>
    """
    from markupsafe import Markup

    kept, missing = cut(text, limit)
    named = Markup('<span class="esc">{}</span>')
    joint = "(?<=[_/])" if joints else "(?!)"  # the second one matches nowhere
    marked = Markup("").join(
        named.format(piece.text)
        if piece.hidden
        else Markup("<wbr>").join(re.split(joint, piece.text))
        for piece in pieces(kept, lines)
    )
    return marked + _cut_mark(missing)


def _cut_mark(missing: int) -> Markup:
    from markupsafe import Markup

    return (
        Markup(' <span class="cut">{}</span>').format(left_out(missing)) if missing else Markup("")
    )


def line(text: str, limit: int = SHORT_TEXT) -> Markup:
    """Return a text from outside on one line; see `shown`."""
    return shown(text, limit, lines=False)


def name(text: str) -> Markup:
    """Return an identifier from outside on one line that may break after its joints.

    Examples
    --------
    >>> print(name("split_payment/user"))
    split_<wbr>payment/<wbr>user
    """
    return shown(text, SHORT_TEXT, lines=False, joints=True)


def linked(text: str, anchors: Mapping[str, str]) -> Markup:
    """Return a reason on one line, the tests that it names as links to their evidence.

    Examples
    --------
    >>> print(linked("T-1 broke <b>", {"T-1": "test-T-1"}))
    <a href="#test-T-1"><code>T-1</code></a> broke &lt;b&gt;
    """
    from markupsafe import Markup

    # What could stand in the middle of ordinary words is no name to look for.
    named = [re.escape(i) for i in sorted(anchors, key=len, reverse=True) if _NAME.fullmatch(i)]
    kept, missing = cut(text, _REASON)
    parts = re.split(f"(?<![\\w/-])({'|'.join(named)})(?![\\w/-])", kept) if named else [kept]
    link = Markup('<a href="#{}"><code>{}</code></a>')
    marked = Markup("").join(
        link.format(anchors[part], part) if i % 2 else line(part, _REASON)
        for i, part in enumerate(parts)
    )
    return marked + _cut_mark(missing)


def _anchors(tests: Sequence[TestResult]) -> list[str]:
    """Name the place of each test on the page: its own id where that makes a name, once each."""
    taken: dict[str, int] = {}
    names = []
    for test in tests:
        name = "test-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", test.test_id[:80])
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}--{taken[name]}")
    return names


def _releases(report: GateReport, history: Sequence[Release]) -> list[tuple[Release, bool]]:
    this = report.release
    every = history if this in history else (*history, this)
    return [(release, release == this) for release in every]


def _worst_first(test: TestResult) -> tuple[bool, float, int, str]:
    delta = test.delta if test.delta is not None and known(test.delta) else 0.0
    return not known(test.delta), delta, _SEVERITY_ORDER[test.severity], test.test_id


def _category_columns(report: GateReport) -> list[str]:
    """Return the numbers that at least one category has, the known ones first."""
    found = {name for numbers in report.by_category.values() for name in numbers}
    return [name for name in _CATEGORY_COLUMNS if name in found] + sorted(
        found - _CATEGORY_COLUMNS.keys()
    )


def _category_cell(value: float | None, column: str) -> str:
    if column.endswith("pass_rate"):
        return percent(value)
    if column in ("delta", "ci_low", "ci_high"):
        return points(value)
    if column == "p_value":
        return p_value(value)
    return "n/a" if value is None or not known(value) else f"{value:g}"


# --------------------------------------------------------------------------- the forest plot

_WIDTH, _LEFT, _RIGHT = 840, 260, 250
_TOP, _ROW = 34, 26
_LABEL = 34


class Drawn(NamedTuple):
    """One row of the plot in pixels; the interval is empty where there is none."""

    label: str
    short: str
    group: str
    y: int
    x: str
    low: str
    high: str
    text: str
    mark: str


def _forest(report: GateReport) -> dict[str, Any] | None:
    rows = [row for row in differences(report) if known(row.delta)]
    if not rows:
        return None
    margin = -report.margin
    ends = [margin, 0.0]
    for row in rows:
        ends += [end for end in (row.delta, row.ci_low, row.ci_high) if known(end)]
    low, high = min(ends), max(ends)
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)

    def place(value: float) -> str:
        return f"{_LEFT + scale * (value - low):.1f}"

    return {
        "rows": [_drawn(row, i, place, margin) for i, row in enumerate(rows)],
        "width": _WIDTH,
        "height": _TOP + _ROW * len(rows) + 28,
        "bottom": _TOP + _ROW * len(rows),
        "top": _TOP - 8,
        "label_x": _LEFT - 14,
        "text_x": _WIDTH - _RIGHT + 14,
        "zero": place(0.0),
        "margin": place(margin),
        "margin_text": f"OK above {points(margin).removesuffix('.0')}",
    }


def _drawn(row: Difference, position: int, place: Any, margin: float) -> Drawn:
    whole = known(row.ci_low, row.ci_high)
    state = row.state(margin)
    return Drawn(
        label=row.label,
        short=one_line(row.label, _LABEL, "…"),
        group=row.group,
        y=_TOP + _ROW * position + _ROW // 2,
        x=place(row.delta),
        low=place(row.ci_low) if whole else "",
        high=place(row.ci_high) if whole else "",
        text=f"{points(row.delta)} {span(row.ci_low, row.ci_high)}{f' {state}' if whole else ''}",
        mark={"worse": "square", "not worse": "circle", "open": "diamond"}[state],
    )
