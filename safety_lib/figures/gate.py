"""Stage 3: how far the candidate is from the baseline, all together and test by test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from safety_lib.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    SMALL,
    VERMILION,
    Mark,
    beside,
    dot,
    draw,
    drawable,
    family_name,
    finish,
    fit_height,
    interval,
    label_width,
    nothing,
    rows_axis,
    sheet,
)
from safety_lib.records import Experiment, GateReport
from safety_lib.records.experiments import Curve, OperatingCharacteristics, VerdictShares
from safety_lib.report.contrasts import Difference, differences
from safety_lib.text import MINUS, count, known, plain, points, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 20

_MARKS = {
    "worse": Mark(VERMILION, "s", "-"),
    "not worse": Mark(BLUE, "o", "-"),
    "open": Mark(INK, "D", "-", filled=False),
}


def forest(report: GateReport, *, ax: Axes | None = None) -> Axes:
    """Draw the difference in pass rate, candidate minus baseline, over all and part by part.

    Parameters
    ----------
    report : GateReport
        What the gate decided; strata and families of tests become rows, the margin that an OK
        tolerates a dashed line.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    rows = differences(report)
    drawn = [row for row in rows if known(row.delta)]
    if not drawn:
        return nothing(
            f"No test gave a valid result on both {report.baseline} and {report.candidate}", ax
        )
    with sheet():
        labels = [family_name(row.label, 26) for row in rows]
        axes = draw(
            _forest_title(report),
            height=fit_height(len(rows) + 2, least=2.8),
            left=label_width(labels),
            right=2.2,
            ax=ax,
        )
        rows_axis(axes, labels)
        for y, row in enumerate(rows):
            _forest_row(axes, y, row, -report.margin)
            if y and row.group != rows[y - 1].group:
                axes.axhline(y - 0.5, color=PALE, linewidth=1, zorder=0)
        axes.get_yticklabels()[0].set_fontweight("bold")
        _margin(axes, drawn, -report.margin)
        versions = f"{drawable(report.candidate, 20)} minus {drawable(report.baseline, 20)}"
        axes.set_xlabel(f"{versions}, points of pass rate")
        return finish(axes, _forest_lines(report, rows), shown=ax is None)


def _forest_row(axes: Axes, y: int, row: Difference, margin: float) -> None:
    if not known(row.delta):
        beside(axes, y, "no valid trial", GREY, SMALL)
        return
    state = row.state(margin)
    mark = _MARKS[state]
    size = 9.0 if row.group == "all" else 6.5
    if known(row.ci_low, row.ci_high):
        interval(axes, y, 100 * row.delta, 100 * row.ci_low, 100 * row.ci_high, mark, size)
    else:
        dot(axes, 100 * row.delta, y, mark, size)
    beside(
        axes,
        y,
        f"{points(row.delta)} {span(row.ci_low, row.ci_high)}"
        + (f" {state}" if known(row.ci_low, row.ci_high) else ""),
        mark.text,
        SMALL,
    )


def _margin(axes: Axes, rows: Sequence[Difference], margin: float) -> None:
    ends = [100 * margin, 0.0]
    for row in rows:
        ends += [100 * end for end in (row.delta, row.ci_low, row.ci_high) if known(end)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(100 * margin, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"OK above {points(margin).removesuffix('.0')}",
        (100 * margin, 1),
        (-2, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
    )
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+.0f}".replace("-", MINUS) if x else "0")


def _forest_title(report: GateReport) -> str:
    if not known(report.delta):
        return f"{report.candidate} and {report.baseline} cannot be compared over all tests"
    assert report.delta is not None
    gap = points(abs(report.delta)).lstrip("+")
    if float(gap) == 0:
        claim = f"{report.candidate}'s pass rate equals {report.baseline}'s"
    else:
        side = "below" if report.delta < 0 else "above"
        claim = f"{report.candidate}'s pass rate is {gap} points {side} {report.baseline}'s"
    if not known(report.ci_low, report.ci_high):
        return f"{claim}, and no interval says how sure that is"
    assert report.ci_low is not None
    assert report.ci_high is not None
    if report.ci_low <= 0 <= report.ci_high:
        return f"{claim}: chance alone could do that"
    return f"{claim}, more than chance explains"


def _forest_lines(report: GateReport, rows: Sequence[Difference]) -> list[str]:
    first = rows[0]
    lines = [
        f"{plain(report.candidate)} minus {plain(report.baseline)}: {points(first.delta)} points "
        f"{span(first.ci_low, first.ci_high)} over {count(report.n_tests, 'test')} in "
        f"{count(report.n_families, 'family', 'families')}."
    ]
    parts = [f"{plain(r.label)} {points(r.delta)}" for r in rows if r.group == "stratum"]
    return [*lines, f"By stratum: {', '.join(parts)}."] if parts else lines


# --------------------------------------------------------------------------- error rates

_CURVES = {
    "in every family": Mark(BLUE, "o", "-"),
    "in half of the families": Mark(BLUE, "^", "-.", filled=False),
    "in one family": Mark(INK, "D", ":"),
    "on shared luck": Mark(GREY, "v", "-", filled=False),
    "the original's rule, 8 tests": Mark(VERMILION, "s", "--"),
}


def operating_characteristics(
    experiment: Experiment[OperatingCharacteristics], *, ax: Axes | None = None
) -> Axes:
    """Draw how often a release of known loss is blocked, by this gate and by the original's rule.

    Parameters
    ----------
    experiment : Experiment
        ``operating_characteristics``.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.

    Raises
    ------
    ValueError
        If it is another experiment.
    """
    curves = experiment.expect(OperatingCharacteristics).curves
    with sheet():
        axes = draw(_power_title(curves), height=3.0, right=2.2, ax=ax)
        for name, mark in _CURVES.items():
            axes.plot(
                [100 * loss for loss in curves[name]],
                [point.shares["BLOCK"].value for point in curves[name].values()],
                label=name,
                color=mark.colour,
                linestyle=mark.line,
                marker=mark.marker,
                markersize=5,
                markerfacecolor=mark.colour if mark.filled else "white",
                linewidth=1.6,
            )
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            fontsize=SMALL,
            handlelength=3,
            labelcolor=[mark.text for mark in _CURVES.values()],
        )
        axes.axhline(experiment.parameters["false_block"], color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlabel("true loss of the suite's mean pass rate, points")
        axes.set_ylabel("share of releases blocked")
        axes.set_ylim(-0.04, 1.06)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        return finish(axes, _power_lines(curves), shown=ax is None)


def _power_title(curves: Mapping[str, Curve]) -> str:
    *ours, theirs = (curves[name][0.07].shares["BLOCK"].value for name in _CURVES)
    return (
        f"A loss of 7 points: at least {min(ours):.0%} of releases are blocked, by the original "
        f"{theirs:.0%}"
    )


def _power_lines(curves: Mapping[str, Curve]) -> list[str]:
    def span_of(value: Callable[[VerdictShares], float], loss: float) -> str:
        *ours, theirs = (100 * value(curves[name][loss]) for name in _CURVES)
        return f"{min(ours):.0f} to {max(ours):.0f}%, by the original {theirs:.0f}%"

    return [
        f"Equal releases blocked: {span_of(lambda at: at.shares['BLOCK'].value, 0.0)}.",
        f"OK at a loss of 5 points: {span_of(lambda at: at.shares['OK'].value, 0.05)}.",
    ]
