"""Stage 1: when each version fails, how many survive, and what a single question does not show."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safety_lib.figures.style import (
    FONT,
    GREY,
    INK,
    PALE,
    SMALL,
    Mark,
    beside,
    draw,
    drawable,
    finish,
    inches_wide,
    interval,
    label_width,
    nothing,
    panel,
    percent_axis,
    rows_axis,
    sheet,
    spread,
    version_mark,
)
from safety_lib.records import StressSummary, SurvivalCurve
from safety_lib.stats.intervals import Rate, wilson
from safety_lib.text import count, percent, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = 16
_TICK = 0.25  # inches that the number of a turn takes
_CENSORED = "upright tick: conversations that ended without a violation (censored)"


def failures_by_turn(summaries: Sequence[StressSummary], *, ax: Axes | None = None) -> Axes:
    """Draw at which turn each version broke its first rule, one row of counts per version.

    Parameters
    ----------
    summaries : sequence of StressSummary
        One per version, the baseline first.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved, the panels are its ``child_axes``.
    """
    if not summaries:
        return nothing("No version was tested", ax)
    last = max([turn for s in summaries for turn in s.by_turn] or [1])
    highest = max([n for s in summaries for n in s.by_turn.values()] or [1])
    with sheet():
        names = [drawable(s.version, 14) for s in summaries]
        axes = draw(_when_title(summaries), height=3.2, left=1.25, ax=ax)
        step = 1 / len(summaries)
        for i, summary in enumerate(summaries):
            row = panel(axes, 1 - (i + 1) * step, step * 0.86)
            _turn_row(row, summary, version_mark(i), last, highest)
            row.text(
                -1.1 / inches_wide(axes),
                0.5,
                f"{names[i]}\n{summary.failures} of {_valid(summary)}\nfailed",
                transform=row.transAxes,
                va="center",
                color=version_mark(i).text,
                fontweight="bold",
            )
            row.tick_params(axis="x", length=0, labelbottom=i == len(summaries) - 1)
        axes.child_axes[-1].set_xlabel("turn of the first violation")
        return finish(axes, (_when_line(summary) for summary in summaries), shown=ax is None)


def _turn_row(axes: Axes, summary: StressSummary, mark: Mark, last: int, highest: int) -> None:
    turns = range(1, last + 1)
    for turn in turns:
        n = summary.by_turn.get(turn, 0)
        if n:
            axes.plot([turn, turn], [0, n], color=mark.colour, linestyle=mark.line, linewidth=2)
            axes.plot([turn], [n], color=mark.colour, marker=mark.marker, markersize=7)
            axes.annotate(
                str(n), (turn, n), (0, 6), textcoords="offset points", ha="center", fontsize=FONT
            )
    if not summary.by_turn:
        axes.text(
            0.5,
            0.4,
            _none_failed(summary),
            transform=axes.transAxes,
            ha="center",
            color=GREY,
            style="italic",
        )
    axes.set_xlim(0.4, last + 0.6)
    axes.set_ylim(0, highest * 1.35)
    every = max(1, last // _ticks(axes))
    axes.set_xticks(turns[::every])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _ticks(axes: Axes) -> int:
    """Count the turns that have room below axes."""
    return min(_TICKS, max(1, int(inches_wide(axes) / _TICK)))


def _none_failed(summary: StressSummary) -> str:
    n = _valid(summary)
    if not n:
        return "no valid conversation"
    return f"no failure; 0 of {n} still allows {percent(wilson(0, n).high, 0)}"


def _valid(summary: StressSummary) -> int:
    """Count the conversations that say something about the agent: neither error nor unclear."""
    return summary.rollouts - summary.errors - summary.undetermined


def _when_title(summaries: Sequence[StressSummary]) -> str:
    worst = max(summaries, key=lambda s: (s.failures, s.version))
    if not worst.failures:
        return f"No version failed in {count(_valid(worst), 'conversation')}"
    share = percent(_after_the_first(worst) / worst.failures, 0)
    return (
        f"{worst.version} breaks a rule in {worst.failures} of {_valid(worst)} conversations; "
        f"{share} of these failures come after the first turn"
    )


def _after_the_first(summary: StressSummary) -> int:
    return summary.failures - summary.by_turn.get(1, 0)


def _when_line(summary: StressSummary) -> str:
    name, n = plain(summary.version), _valid(summary)
    if not summary.failures:
        bound = f", which still allows {percent(wilson(0, n).high)}" if n else ""
        return f"{name}: no failure in {count(n, 'valid conversation')}{bound}."
    turns = ", ".join(f"{turn}: {k}" for turn, k in sorted(summary.by_turn.items()))
    return (
        f"{name}: {summary.failures} of {n} failed, {_after_the_first(summary)} after turn 1 "
        f"(by turn {turns})."
    )


# --------------------------------------------------------------------------- survival


def survival_curves(curves: Sequence[SurvivalCurve], *, ax: Axes | None = None) -> Axes:
    """Draw the share of conversations without a violation after each turn.

    Steps are Kaplan-Meier estimates with their bands; an upright tick is a turn after which
    conversations ended without a violation (censored). The numbers at risk stand below.

    Parameters
    ----------
    curves : sequence of SurvivalCurve
        One per version, the baseline first.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    curves = [curve for curve in curves if curve.turn]
    if not curves:
        return nothing("There is no conversation to follow", ax)
    last = max(curve.turn[-1] for curve in curves)
    with sheet():
        names = [drawable(curve.version, 14) for curve in curves]
        axes = draw(
            _survival_title(curves),
            height=3.3,
            left=max(0.95, label_width(names, SMALL)),
            right=1.45,
            bottom=0.72 + 0.16 * len(curves),
            ax=ax,
        )
        ends = spread([curve.survival[-1] for curve in curves], 0.13)
        for i, curve in enumerate(curves):
            _survival_step(axes, curve, version_mark(i))
            beside(
                axes,
                ends[i],
                f"{names[i]}: {percent(curve.survival[-1], 0)} safe",
                version_mark(i).text,
            )
        _risk_table(axes, curves, names, last)
        axes.text(
            0.02,
            0.05,
            textwrap.fill(_CENSORED, max(20, int(18 * inches_wide(axes)))),
            transform=axes.transAxes,
            fontsize=SMALL,
            color=GREY,
        )
        axes.set_xlim(0, last + 0.5)
        axes.set_ylim(0, 1.04)
        axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_ylabel("no violation yet")
        return finish(axes, (_survival_line(curve) for curve in curves), shown=ax is None)


def _survival_step(axes: Axes, curve: SurvivalCurve, mark: Mark) -> None:
    # A curve begins with every conversation intact; half a turn more shows its last step.
    start = [] if curve.turn[0] == 0 else [0]
    turns = [*start, *curve.turn, curve.turn[-1] + 0.5]
    columns = (curve.survival, curve.ci_low, curve.ci_high)
    alive, low, high = ([1.0] * len(start) + [*column, column[-1]] for column in columns)
    axes.fill_between(turns, low, high, step="post", color=mark.colour, alpha=0.15, linewidth=0)
    axes.step(turns, alive, where="post", color=mark.colour, linestyle=mark.line, linewidth=2)
    ticks = [
        (t, s) for t, s, c in zip(curve.turn, curve.survival, _censored(curve), strict=True) if c
    ]
    axes.plot(
        [t for t, _ in ticks],
        [s for _, s in ticks],
        linestyle="none",
        marker="|",
        markersize=10,
        markeredgewidth=1.6,
        color=mark.colour,
        clip_on=False,
        gid="censored",
    )


def _censored(curve: SurvivalCurve) -> list[int]:
    """Count the conversations that ended after each turn without a violation."""
    following = [*curve.at_risk[1:], 0]
    return [
        n - failed - after
        for n, failed, after in zip(curve.at_risk, curve.failed, following, strict=True)
    ]


def _risk_table(
    axes: Axes, curves: Sequence[SurvivalCurve], names: Sequence[str], last: int
) -> None:
    every = max(1, last // _ticks(axes))
    shown = list(range(0, last + 1, every))
    axes.set_xticks(shown)
    axes.annotate(
        "turn", (0, 0), (-34, -14), xycoords="axes fraction", textcoords="offset points", ha="right"
    )
    axes.annotate(
        "at risk",
        (0, 0),
        (-34, -27),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        color=GREY,
    )
    for i, curve in enumerate(curves):
        offset = -27 - 12 * (i + 1)
        cells = [(turn, n) for turn in shown if (n := _at_risk(curve, turn)) is not None]
        axes.annotate(
            names[i],
            (0, 0),
            (-34, offset),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            fontsize=SMALL,
            color=version_mark(i).text,
            fontweight="bold",
        )
        for turn, n in cells:
            axes.annotate(
                str(n),
                (turn, 0),
                (0, offset),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=INK,
            )


def _at_risk(curve: SurvivalCurve, turn: int) -> int | None:
    """Count the conversations that reach a turn; None after the last one that was followed.

    A curve may list only the turns at which something ended: between them nothing changes.
    """
    listed = zip(curve.turn, curve.at_risk, strict=True)
    return next((n for when, n in listed if when >= turn), None)


def _survival_title(curves: Sequence[SurvivalCurve]) -> str:
    worst = min(curves, key=lambda c: (c.survival[-1], c.version))
    others = [c for c in curves if c is not worst]
    if not any(sum(curve.failed) for curve in curves):
        return f"No conversation broke a rule within {count(worst.turn[-1], 'turn')}"
    claim = f"After turn {worst.turn[-1]}, {percent(worst.survival[-1], 0)} of {worst.version}'s "
    claim += "conversations are still safe"
    if not others:
        return claim
    second = min(others, key=lambda c: (c.survival[-1], c.version))
    return f"{claim}, against {percent(second.survival[-1], 0)} of {second.version}'s"


def _survival_line(curve: SurvivalCurve) -> str:
    censored = sum(_censored(curve))
    return (
        f"{plain(curve.version)}: {percent(curve.survival[-1])} without a violation after turn "
        f"{curve.turn[-1]} [{percent(curve.ci_low[-1])}, {percent(curve.ci_high[-1])}]; "
        f"{sum(curve.failed)} of {curve.at_risk[0]} failed, {censored} censored."
    )


# --------------------------------------------------------------------------- one question or many


def single_turn_against_multi_turn(
    summaries: Sequence[StressSummary], *, ax: Axes | None = None
) -> Axes:
    """Draw the share that violates when asked once beside the share in a conversation.

    Parameters
    ----------
    summaries : sequence of StressSummary
        One per version, the baseline first; intervals are Wilson's.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    rows: list[tuple[str, str, int, int]] = []
    for summary in summaries:
        rows.append(
            ("asked once", summary.version, summary.single_shot_violations, summary.single_shot_n)
        )
    for summary in summaries:
        rows.append(("in a conversation", summary.version, summary.failures, _valid(summary)))
    if not any(n for *_, n in rows):
        return nothing("No version gave a valid conversation", ax)
    n_versions = len(summaries)
    # The gap between the two questions is a little wider than the one between two versions.
    heights = [i + (0.7 if i >= n_versions else 0.0) for i in range(len(rows))]
    with sheet():
        names = [drawable(version, 14) for _, version, _, _ in rows]
        left = 1.5 + label_width(names)
        axes = draw(_once_title(summaries), height=2.7, left=left, right=1.25, ax=ax)
        rows_axis(axes, names)
        axes.set_yticks(heights, names)
        axes.set_ylim(heights[-1] + 0.6, -0.6)
        for i, (_, _, k, n) in enumerate(rows):
            mark = version_mark(i % n_versions)
            axes.get_yticklabels()[i].set_color(mark.text)
            if not n:
                beside(axes, heights[i], "not asked", GREY)
                continue
            rate = wilson(k, n)
            interval(axes, heights[i], rate.estimate, rate.low, rate.high, mark, 8)
            beside(
                axes,
                heights[i],
                f"{percent(rate.estimate, int(rate.estimate < 0.05))} ({k} of {n})",
            )
        for j, question in enumerate(("asked once", "in a conversation")):
            middle = sum(heights[j * n_versions : (j + 1) * n_versions]) / n_versions
            axes.annotate(
                question,
                (0, middle),
                (-(left - 0.08) * 72, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontweight="bold",
            )
        percent_axis(axes)
        axes.set_xlabel("share that broke a rule, 95% interval")
        return finish(axes, (_once_line(summary) for summary in summaries), shown=ax is None)


def _rates(summary: StressSummary) -> tuple[Rate, Rate] | None:
    valid = _valid(summary)
    if not summary.single_shot_n or not valid:
        return None
    once = wilson(summary.single_shot_violations, summary.single_shot_n)
    return once, wilson(summary.failures, valid)


def _compared(rate: Rate, other: Rate) -> str:
    """Say less or more only where the intervals say it too."""
    if rate.high < other.low:
        return "breaks a rule less often than"
    return "breaks a rule more often than" if rate.low > other.high else "cannot be told from"


def _once_title(summaries: Sequence[StressSummary]) -> str:
    rates = [_rates(summary) for summary in summaries]
    first, last = rates[0], rates[-1]
    if first is None or last is None:
        return "One question or a conversation: a denominator is missing"
    name, other = summaries[-1].version, summaries[0].version
    if len(summaries) == 1:
        return (
            f"{name} breaks a rule in {percent(last[0].estimate, 0)} of single questions and in "
            f"{percent(last[1].estimate, 0)} of conversations"
        )
    once, often = _compared(last[0], first[0]), _compared(last[1], first[1])
    if once == often:
        return f"{name} {once} {other}, asked once and in a conversation"
    return f"Asked once, {name} {once} {other}; in a conversation it {often} {other}"


def _once_line(summary: StressSummary) -> str:
    once = _share(summary.single_shot_violations, summary.single_shot_n)
    often = _share(summary.failures, _valid(summary))
    return f"{plain(summary.version)}: asked once {once}; in a conversation {often}."


def _share(k: int, n: int) -> str:
    if not n:
        return "not asked"
    rate = wilson(k, n)
    return f"{k}/{n} = {percent(rate.estimate)} [{percent(rate.low)}, {percent(rate.high)}]"
