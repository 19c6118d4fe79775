"""Stage 4: what happened, which change did it, how many conversations it touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from safety_lib.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    RUST,
    SMALL,
    VERMILION,
    Mark,
    beside,
    dot,
    draw,
    drawable,
    finish,
    fit_height,
    inches_wide,
    interval,
    label_width,
    nothing,
    rows_axis,
    sheet,
)
from safety_lib.records import BlastRadius, Intervention, TimelineEntry
from safety_lib.text import MINUS, count, plain, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 14
_LANES: dict[str, tuple[str, Mark]] = {
    "request": ("user asks", Mark(INK, "o", "-", filled=False)),
    "reply": ("agent replies", Mark(BLUE, "o", "-")),
    "refusal": ("agent refuses", Mark(BLUE, "X", "-")),
    "tool_call": ("tool call", Mark(INK, "s", "-")),
    "safeguard": ("safeguard", Mark(BLUE, "D", "-", filled=False)),
    "violation": ("rule broken", Mark(VERMILION, "s", "-")),
}


def timeline(entries: Sequence[TimelineEntry], *, ax: Axes | None = None) -> Axes:
    """Draw an incident turn by turn, one lane for each kind of event.

    Parameters
    ----------
    entries : sequence of TimelineEntry
        In the order in which they happened.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not entries:
        return nothing("The incident has no events", ax)
    first = next((entry for entry in entries if entry.what == "violation"), None)
    turns = range(min(e.turn for e in entries), max(e.turn for e in entries) + 1)
    kinds = {entry.what for entry in entries}
    lanes = [what for what in _LANES if what in kinds]
    with sheet():
        labels = [_LANES[what][0] for what in lanes]
        axes = draw(_timeline_title(entries, first), 2.9, left=label_width(labels), ax=ax)
        rows_axis(axes, labels)
        for turn in turns[::2]:
            axes.axvspan(turn - 0.5, turn + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
        places = _places(entries)
        heights = [lanes.index(entry.what) for entry in entries]
        axes.plot(places, heights, color=PALE, linewidth=1.2, zorder=1)
        for entry, x, y in zip(entries, places, heights, strict=True):
            dot(axes, x, y, _LANES[entry.what][1], 9 if entry.what == "violation" else 6.5)
        if first is not None:
            _name_violation(axes, first, places[entries.index(first)], lanes, turns)
        axes.set_xlim(turns[0] - 0.5, turns[-1] + 0.5)
        axes.set_xticks(turns[:: max(1, len(turns) // 16)])
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("turn")
        return finish(axes, _timeline_lines(entries, first), shown=ax is None)


def _places(entries: Sequence[TimelineEntry]) -> list[float]:
    """Give the entries of one turn their places side by side within that turn."""
    sizes = Counter(entry.turn for entry in entries)
    seen: Counter[int] = Counter()
    places = []
    for entry in entries:
        step = 0.76 / sizes[entry.turn]
        places.append(entry.turn - 0.38 + step * (seen[entry.turn] + 0.5))
        seen[entry.turn] += 1
    return places


def _name_violation(
    axes: Axes, first: TimelineEntry, x: float, lanes: Sequence[str], turns: range
) -> None:
    y = lanes.index("violation")
    axes.get_yticklabels()[y].set_color(RUST)
    axes.get_yticklabels()[y].set_fontweight("bold")
    right = x < (turns[0] + turns[-1]) / 2
    place = (x - turns[0] + 0.5) / len(turns)
    inches = max(place, 1 - place) * inches_wide(axes)
    axes.annotate(
        drawable(first.detail, int(inches / 0.085)),
        (x, y),
        (9 if right else -9, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=RUST,
        fontweight="bold",
        fontsize=SMALL + 0.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        zorder=3,
    )


def _timeline_title(entries: Sequence[TimelineEntry], first: TimelineEntry | None) -> str:
    turns = len({entry.turn for entry in entries})
    if first is None:
        return f"No rule was broken in {count(turns, 'turn')}"
    refused = sum(1 for e in entries[: entries.index(first)] if e.what == "refusal")
    before = f"after {count(refused, 'refusal')}" if refused else "without a refusal before it"
    return f"A rule breaks at turn {first.turn}, {before}"


def _timeline_lines(entries: Sequence[TimelineEntry], first: TimelineEntry | None) -> list[str]:
    kinds = Counter[str](entry.what for entry in entries)
    counts = ", ".join(f"{_LANES[what][0]} {kinds[what]}" for what in _LANES if kinds[what])
    lines = [f"{count(len({e.turn for e in entries}), 'turn')}: {counts}."]
    if first is not None:
        lines.append(f"Turn {first.turn}: {plain(first.detail, 120)}.")
    return lines


# --------------------------------------------------------------------------- root cause

_CAUSE = Mark(VERMILION, "s", "-")
_CLEAR = Mark(BLUE, "o", "-")
_UNCLEAR = Mark(INK, "D", "-", filled=False)


def intervention_effects(
    interventions: Sequence[Intervention],
    causes: Collection[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how much of the failure each intervention removes, the largest effect first.

    Parameters
    ----------
    interventions : sequence of Intervention
        Each re-executed on paired seeds; of more than 14 the smallest effects are left out.
    causes : collection of str, optional
        Names of the interventions that are the root cause. Without it, every change that takes
        away at least half of the failures, with an interval above zero, is marked.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not interventions:
        return nothing("Nothing was re-executed, so no cause is named", ax)
    ranked = sorted(interventions, key=lambda i: (-i.effect, i.name))
    if causes is None:
        causes = {i.name for i in ranked if _is_cause(i)}
    rows = [i for n, i in enumerate(ranked) if n < _MOST_ROWS or i.name in causes]
    named = [i for i in rows if i.name in causes]
    with sheet():
        labels = [drawable(row.name, 36) for row in rows]
        axes = draw(
            _cause_title(ranked, named),
            height=fit_height(len(rows) + 1),
            left=label_width(labels, SMALL + 0.5),
            right=1.75,
            ax=ax,
        )
        rows_axis(axes, labels, SMALL + 0.5)
        for y, row in enumerate(rows):
            _effect_row(axes, y, row, row in named)
        axes.axvline(0, color=GREY, linewidth=1, zorder=1)
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}".replace("-", MINUS))
        axes.set_xlabel("points of the failure rate removed, 95% interval")
        return finish(axes, _cause_lines(ranked, rows, named), shown=ax is None)


def _is_cause(intervention: Intervention) -> bool:
    before = intervention.factual
    return (
        intervention.kind == "change"
        and intervention.ci_low > 0
        and before.n > 0
        and 2 * intervention.effect >= before.k / before.n
    )


def _effect_row(axes: Axes, y: int, row: Intervention, is_cause: bool) -> None:
    mark = _CLEAR if row.ci_low > 0 or row.ci_high < 0 else _UNCLEAR
    mark = _CAUSE if is_cause else mark
    interval(axes, y, 100 * row.effect, 100 * row.ci_low, 100 * row.ci_high, mark)
    before, after = row.factual, row.counterfactual
    text = f"{points(row.effect)}: {before.k} to {after.k} of {after.n}"
    text += " cause" if is_cause else ""
    beside(axes, y, text, mark.text, SMALL)
    if is_cause:
        axes.get_yticklabels()[y].set_color(RUST)
        axes.get_yticklabels()[y].set_fontweight("bold")


def _cause_title(ranked: Sequence[Intervention], named: Sequence[Intervention]) -> str:
    if not named:
        return f"No cause is named after {count(len(ranked), 'intervention')}"
    first = named[0]
    before, after = first.factual, first.counterfactual
    claim = (
        f"{first.name} alone takes the failure from {before.k} of {before.n} replays to "
        f"{after.k} of {after.n}"
    )
    return claim if len(named) == 1 else f"{claim}, the best of {len(named)} causes"


def _cause_lines(
    ranked: Sequence[Intervention],
    rows: Sequence[Intervention],
    named: Sequence[Intervention],
) -> list[str]:
    causes = ", ".join(plain(row.name, 60) for row in named) or "none is named"
    clear = sum(1 for row in ranked if row.ci_low > 0)
    most = ", ".join(f"{plain(row.name, 60)} {points(row.effect)}" for row in rows[:3])
    return [
        f"Cause: {causes}; interval above zero: {clear} of {len(ranked)}.",
        f"Points removed, the most: {most}. Drawn: {len(rows)}.",
    ]


# --------------------------------------------------------------------------- blast radius


def blast_radius(
    radius: BlastRadius | None, truth: int | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the estimated number of affected conversations beside what was claimed and what is true.

    Parameters
    ----------
    radius : BlastRadius or None
        The estimate of the audit; None where no rule broke in the replays.
    truth : int, optional
        The number that only the simulator knows.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if radius is None:
        return nothing("No rule broke in the replays, or no log: nothing was estimated", ax)
    rows: list[tuple[str, float, Mark]] = [
        ("estimated by audit", radius.estimate, Mark(BLUE, "o", "-"))
    ]
    if radius.claimed is not None:
        rows.append(("claimed in the file", radius.claimed, Mark(VERMILION, "s", "-")))
    if truth is not None:
        rows.append(("hidden truth", truth, Mark(INK, "D", "-", filled=False)))
    with sheet():
        labels = [label for label, _, _ in rows]
        axes = draw(_radius_title(radius), height=2.6, left=label_width(labels), right=2.0, ax=ax)
        rows_axis(axes, labels)
        axes.axvspan(radius.ci_low, radius.ci_high, color=BLUE, alpha=0.1, linewidth=0)
        for y, (_, value, mark) in enumerate(rows):
            if y == 0:
                interval(axes, y, value, radius.ci_low, radius.ci_high, mark, 9)
            else:
                dot(axes, value, y, mark, 9)
            place = f"[{radius.ci_low:,.0f}, {radius.ci_high:,.0f}]"
            if y:
                place = _inside(radius, value)
            beside(axes, y, f"{value:,.0f} {place}", mark.text)
            axes.get_yticklabels()[y].set_color(mark.text)
        most = max(1.0, radius.ci_high, *(value for _, value, _ in rows))
        axes.set_xlim(-0.025 * most, 1.05 * most)
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        axes.set_xlabel(f"affected of {count(radius.population_n, _unit(radius))}")
        return finish(axes, _radius_lines(radius, truth), shown=ax is None)


def _inside(radius: BlastRadius, value: float) -> str:
    if value < radius.ci_low:
        return "below the interval"
    return "above the interval" if value > radius.ci_high else "inside the interval"


def _unit(radius: BlastRadius) -> str:
    return radius.unit.removesuffix("s")


def _radius_title(radius: BlastRadius) -> str:
    claim = f"About {count(round(radius.estimate), _unit(radius))} were affected"
    if radius.claimed is None:
        return claim
    place = {
        "below the interval": "are too few",
        "above the interval": "are too many",
        "inside the interval": "are inside the interval",
    }[_inside(radius, radius.claimed)]
    return f"{claim}; the {radius.claimed:,} that the file claims {place}"


def _radius_lines(radius: BlastRadius, truth: int | None) -> list[str]:
    lines = [
        f"Estimate {radius.estimate:,.0f} [{radius.ci_low:,.0f}, {radius.ci_high:,.0f}] of "
        f"{count(radius.population_n, _unit(radius))}; {radius.audited_n:,} audited "
        f"({radius.audited_flagged:,} flagged, {radius.audited_unflagged:,} not)."
    ]
    if radius.claimed is not None:
        lines.append(f"Claimed {radius.claimed:,}, {_inside(radius, radius.claimed)}.")
    if truth is not None:
        lines.append(f"Hidden truth {truth:,}, {_inside(radius, truth)}.")
    return lines
