"""Stage 4, before anything is replayed: how the incident is found, and what came near one."""

from __future__ import annotations

from collections.abc import Mapping
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
    finish,
    interval,
    label_width,
    percent_axis,
    rows_axis,
    sheet,
)
from safety_lib.records import Experiment
from safety_lib.records.experiments import (
    DetectionLatency,
    EarlyWarning,
    MonitorLatency,
    Proportion,
    WarningAccuracy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SEEN = Mark(BLUE, "o", "-")
_FIRST = Mark(INK, "D", "--", filled=False)
_LEARNED = Mark(BLUE, "o", "-")
_NEAR = Mark(VERMILION, "s", "-")
_STRATA = {
    "stopped": "a safeguard stopped something",
    "refused": "the agent refused or hesitated",
    "warned": "a safeguard warned",
    "quiet": "nobody noticed anything",
}
_WORDS = {
    "recall": "violations warned of",
    "precision": "warnings that are right",
    "false_alarms": "harmless sessions warned of",
}
_BROAD = 46.0  # of a circle that stands for every session of its row, in points


def detection(experiment: Experiment[DetectionLatency], *, ax: Axes | None = None) -> Axes:
    """Draw after how many sessions each monitor sees a bad release, and how often it does not.

    Parameters
    ----------
    experiment : Experiment
        ``detection_latency``.
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
    monitors = experiment.expect(DetectionLatency).monitors
    longest = experiment.parameters["sessions"]
    order = sorted(monitors, key=lambda name: monitors[name].median_sessions or longest + 1)
    told = [
        name
        for name in order
        if monitors[name].detected.k == monitors[name].detected.n and not monitors[name].on_good.k
    ]
    with sheet():
        axes = draw(
            f"{len(told)} of {len(order)} monitors "
            f"{'sees' if len(told) == 1 else 'see'} every bad release and no good one",
            height=2.9,
            left=label_width(order),
            right=1.95,
            ax=ax,
        )
        rows_axis(axes, order)
        axes.set_xscale("log")
        axes.set_xlim(20, 1.15 * longest)
        axes.axvline(longest, color=GREY, linewidth=1, linestyle=":")
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        for y, name in enumerate(order):
            seen = monitors[name]
            for sessions in seen.sessions:
                dot(axes, sessions, y, _SEEN)
            text = f"bad {seen.detected}, good {seen.on_good}"
            beside(axes, y, text, _SEEN.text if name in told else INK, SMALL + 0.5)
        ticks = [tick for tick in (30, 100, 300, 1_000, 3_000, 10_000) if tick <= longest]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("sessions from the release to the alarm (right: releases with an alarm)")
        return finish(
            axes,
            [_monitor_line(name, monitors[name]) for name in told] + [_others(monitors, told)],
            shown=ax is None,
        )


def _monitor_line(name: str, seen: MonitorLatency) -> str:
    return (
        f"{name}: {seen.detected} bad and {seen.on_good} good, after "
        f"{seen.median_sessions:,.0f} sessions, {seen.median_judged:,.0f} judged (medians)."
    )


def _others(monitors: Mapping[str, MonitorLatency], told: list[str]) -> str:
    rest = [
        f"{name} {seen.detected}, {seen.on_good}"
        for name, seen in monitors.items()
        if name not in told
    ]
    return f"The others, bad and good: {'; '.join(rest)}." if rest else "There are no others."


def near_misses(experiment: Experiment[EarlyWarning], *, ax: Axes | None = None) -> Axes:
    """Draw how often sessions that broke nothing break a rule when they are held again.

    Parameters
    ----------
    experiment : Experiment
        ``early_warning``.
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
    rows = experiment.expect(EarlyWarning).margins
    labels = [_STRATA[row.name] for row in rows]
    near = sum(row.near.k for row in rows if row.near)
    held = sum(row.near.n for row in rows if row.near)
    with sheet():
        axes = draw(
            f"Of {held:,} sessions that broke nothing, {near:,} had been lucky",
            height=2.9,
            left=label_width(labels),
            right=1.6,
            ax=ax,
        )
        rows_axis(axes, labels)
        percent_axis(axes)
        for y, row in enumerate(rows):
            if not row.near:
                continue
            for share, n in row.shares.items():
                mark = _NEAR if float(share) else Mark(GREY, "o", "-", filled=False)
                size = max(3.0, _BROAD * (n / row.near.n) ** 0.5 / 2)
                dot(axes, float(share), y, mark, size)
            beside(axes, y, f"{row.near} near", INK, SMALL + 0.5)
        axes.set_xlim(-0.09, 1.025)
        axes.set_xlabel("replays of the same words that break a rule (area: sessions)")
        return finish(
            axes,
            [
                "; ".join(f"{_STRATA[row.name]} {row.near}" for row in rows if row.near) + ".",
            ],
            shown=ax is None,
        )


def early_warning(experiment: Experiment[EarlyWarning], *, ax: Axes | None = None) -> Axes:
    """Draw what a learned rule warns of, beside looking at every refusal.

    Parameters
    ----------
    experiment : Experiment
        ``early_warning``.
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
    result = experiment.expect(EarlyWarning)
    rules = {
        "first refusal": (result.first_refusal, _FIRST),
        "learned rule": (result.scored_on, _LEARNED),
    }
    with sheet():
        labels = list(_WORDS.values())
        axes = draw(
            f"The learned rule warns of {result.scored_on.recall.estimate:.0%} of the violations "
            "of the other half",
            height=2.9,
            left=label_width(labels),
            right=1.1,
            ax=ax,
        )
        rows_axis(axes, labels)
        percent_axis(axes)
        for y, word in enumerate(_WORDS):
            for shift, (seen, mark) in zip((-0.16, 0.16), rules.values(), strict=True):
                rate: Proportion | None = getattr(seen, word)
                if rate:
                    interval(axes, y + shift, rate.estimate, rate.ci_low, rate.ci_high, mark)
        for shift, (name, (_, mark)) in zip((-0.16, 0.16), rules.items(), strict=True):
            beside(axes, shift, name, mark.text)
        axes.set_xlabel("share with its 95% interval, on traffic that it was not learned on")
        return finish(
            axes,
            [f"{name}: {_score_line(seen)}" for name, (seen, _) in rules.items()],
            shown=ax is None,
        )


def _score_line(seen: WarningAccuracy) -> str:
    return (
        f"warned of {seen.recall} violations, {seen.median_lead or 0:g} turns ahead; "
        f"right {seen.precision or 'none'}."
    )
