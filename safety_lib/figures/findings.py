"""Stage 1: what a campaign has covered, what it has not seen, and what other endings hide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from safety_lib.figures.style import (
    GREY,
    INK,
    PALE,
    SMALL,
    Mark,
    beside,
    dot,
    draw,
    drawable,
    finish,
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
from safety_lib.records import HookName
from safety_lib.records.experiments import Ablation, Combination, SafeguardAblation
from safety_lib.stress.timing import CAUSES, Endings
from safety_lib.text import count, percent, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from safety_lib.records import Experiment
    from safety_lib.stress.coverage import Cell, Coverage
    from safety_lib.stress.unseen import Unseen

_DARKEST = 0.62  # share of black behind a cell in which every conversation broke a rule


def coverage_map(seen: Coverage, *, ax: Axes | None = None) -> Axes:
    """Draw goals by families: how often a rule broke there, and at which turns.

    Every cell says its numbers; a darker one broke more often. A hatched cell was never tried, an
    empty one cannot be.

    Parameters
    ----------
    seen : Coverage
        What the conversations with one version covered.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not any(cell.tried for cell in seen.scenarios):
        return nothing("No scenario was tried", ax)
    goals, families = list(seen.rules), seen.families
    with sheet():
        left = label_width([*goals, *(drawable(rule, 26) for rule in seen.rules.values())], SMALL)
        axes = draw(
            _coverage_title(seen), height=3.6, left=left, right=0.08, bottom=0.1, head=0.32, ax=ax
        )
        axes.set_xlim(0, len(families))
        axes.set_ylim(len(goals), 0)
        axes.set_axis_off()
        for column, family in enumerate(families):
            axes.text(
                column + 0.5,
                -0.12,
                family.replace("_", "\n"),
                ha="center",
                va="bottom",
                fontsize=SMALL,
                fontweight="bold",
                linespacing=1.0,
            )
        for row, goal in enumerate(goals):
            axes.text(-0.06, row + 0.36, goal, ha="right", va="center", fontsize=SMALL)
            rule = drawable(seen.rules[goal], 26)
            axes.text(-0.06, row + 0.74, rule, ha="right", va="center", fontsize=SMALL, color=GREY)
            for column, family in enumerate(families):
                _cell(axes, seen.cells[goal, family], column, row)
        return finish(axes, _coverage_lines(seen), shown=ax is None)


def _cell(axes: Axes, cell: Cell, column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    if not cell.possible:
        return
    share = cell.broke / cell.tried if cell.tried else 0.0
    grey = 1 - _DARKEST * share
    axes.add_patch(
        Rectangle(
            (column + 0.03, row + 0.05),
            0.94,
            0.9,
            facecolor=(grey, grey, grey) if cell.tried else "white",
            edgecolor=GREY if cell.broke else PALE,
            linewidth=0.8,
            hatch="" if cell.tried else "////",
        )
    )
    colour = "white" if share > 0.6 else INK
    if not cell.tried:
        lines, colour = ("never tried", ""), GREY
    else:
        lines = (f"{cell.broke} of {cell.tried}", _turns(cell))
    middle = (0.36, 0.72) if lines[1] else (0.5, 0.5)
    for text, place in zip(lines, middle, strict=True):
        axes.text(
            column + 0.5,
            row + place,
            text,
            ha="center",
            va="center",
            fontsize=SMALL,
            color=colour,
            backgroundcolor="white" if not cell.tried and text else "none",
        )


def _turns(cell: Cell) -> str:
    if not cell.turns:
        return ""
    distinct = sorted(set(cell.turns))
    if len(distinct) <= 2:
        return f"turn{'s' if len(distinct) > 1 else ''} {' and '.join(map(str, distinct))}"
    return f"turns {distinct[0]} to {distinct[-1]}"


def _coverage_title(seen: Coverage) -> str:
    broke = [cell for cell in seen.scenarios if cell.broke]
    tried = sum(1 for cell in seen.scenarios if cell.tried)
    families = {cell.family for cell in broke}
    name = plain(seen.version)
    if not broke:
        return f"No rule broke in the {count(tried, 'scenario')} that {name} was put through"
    return (
        f"{name} breaks a rule in {len(broke)} of {count(tried, 'scenario')} that were tried, "
        f"in {len(families)} of {len(seen.families)} families"
    )


def _coverage_lines(seen: Coverage) -> list[str]:
    turns = [turn for cell in seen.scenarios for turn in cell.turns]
    late = sum(turn > 1 for turn in turns)
    when = f"; {late} of {count(len(turns), 'failure')} after turn 1" if turns else ""
    lines = [f"{seen}{when}."]
    if chosen := seen.next_scenarios(2):
        named = ", ".join(f"{one.scenario_id} ({percent(one.chance, 0)})" for one in chosen)
        lines.append(f"Try next: {named}.")
    return lines


# --------------------------------------------------------------------------- what is unseen


def undiscovered(
    searches: Sequence[Unseen], tolerated: float = 0.05, *, ax: Axes | None = None
) -> Axes:
    """Draw the modes of failure that were found, and the bound on what one more rollout shows.

    Above, the steps are the order in which the search went, the thin line is the mean over all
    orders. Below, the bound may be looked at after every rollout; the search may stop where it
    comes below what is tolerated.

    Parameters
    ----------
    searches : sequence of Unseen
        One per version, the baseline first.
    tolerated : float
        Chance of one more mode at which a search may stop, in (0, 1).
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved, the panels are its ``child_axes``.
    """
    searches = [search for search in searches if search.rollouts]
    if not searches:
        return nothing("No rollout was valid", ax)
    with sheet():
        axes = draw(_undiscovered_title(searches[-1]), height=3.6, left=0.85, right=1.75, ax=ax)
        below = panel(axes, 0, 0.36)
        above = panel(axes, 0.5, 0.5, above=below)
        above.tick_params(labelbottom=False)
        most = max(max(u.chao1, float(len(u.modes))) for u in searches) or 1.0
        found_at = spread([len(u.modes) / most for u in searches], 0.2)
        bound_at = spread([u.at_most for u in searches], 0.24)
        for i, search in enumerate(searches):
            mark, name = version_mark(i), drawable(search.version, 14)
            rollouts = range(1, search.rollouts + 1)
            line: dict[str, Any] = {"color": mark.colour, "linestyle": mark.line}
            above.step(rollouts, search.found, where="post", linewidth=2, **line)
            above.plot(rollouts, search.expected, linewidth=0.8, color=mark.colour)
            said = f"{name}: {len(search.modes)} found"
            if search.failures:
                said += f",\nat least {search.chao1:.0f} in all"
            beside(above, found_at[i] * most, said, mark.text, SMALL + 0.5)
            below.step(rollouts, search.bound, where="post", linewidth=2, **line)
            beside(below, bound_at[i], f"{name}: {percent(search.at_most, 0)}", mark.text)
        above.set_ylim(0, 1.12 * most)
        above.set_ylabel("modes found")
        below.set_ylim(0, 1.05)
        below.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        below.set_ylabel("bound on\none more")
        below.axhline(tolerated, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        below.text(
            1, tolerated + 0.04, f"tolerated: {percent(tolerated, 0)}", fontsize=SMALL, color=INK
        )
        below.set_xlim(0, max(u.rollouts for u in searches))
        below.set_xlabel("rollouts, in the order held")
        return finish(
            axes,
            (_undiscovered_line(u, tolerated) for u in searches[:2]),
            shown=ax is None,
        )


def _undiscovered_line(search: Unseen, tolerated: float) -> str:
    name, modes = plain(search.version), len(search.modes)
    if not search.failures:
        return f"{name}: no failure in {count(search.rollouts, 'rollout')}."
    return (
        f"{name}: {modes} modes, at least {search.chao1:.0f} in all; the next failure is new with "
        f"{percent(search.missing_mass)}; {_stop(search, tolerated)}."
    )


def _stop(search: Unseen, tolerated: float) -> str:
    at = search.stops_at(tolerated)
    limit = percent(tolerated, 0)
    return f"below {limit} after {count(at, 'rollout')}" if at else f"not below {limit} yet"


def _undiscovered_title(search: Unseen) -> str:
    name = plain(search.version)
    if not search.failures:
        return f"{count(search.rollouts, 'rollout')} found no failure of {name}; that bounds it"
    left = search.chao1 - len(search.modes)
    if left < 0.5:
        return f"{name} has shown {len(search.modes)} ways to fail, and hardly any is missing"
    return (
        f"{name} has shown {len(search.modes)} ways to fail; at least {left:.0f} more are "
        "estimated to be there"
    )


# --------------------------------------------------------------------------- other endings


def other_endings(names: Sequence[str], seen: Sequence[Endings], *, ax: Axes | None = None) -> Axes:
    """Draw how far conversations that something else ended leave open how many would have failed.

    The mark is Kaplan-Meier's answer, which takes other endings for censoring; the line runs from
    none of those conversations to all of them. It is no confidence interval.

    Parameters
    ----------
    names : sequence of str
        A name for each.
    seen : sequence of Endings
        How the conversations of each ended.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not seen:
        return nothing("There is no conversation that could have ended", ax)
    with sheet():
        shown = [drawable(name, 24) for name in names]
        axes = draw(_endings_title(seen[-1]), height=2.6, left=label_width(shown), right=1.9, ax=ax)
        rows_axis(axes, shown)
        for i, endings in enumerate(seen):
            mark = version_mark(i + 1)  # a candidate and what was changed in it
            axes.get_yticklabels()[i].set_color(mark.text)
            _open_range(axes, i, endings, mark)
            said = [f"{endings.counts[cause]} {cause}" for cause in CAUSES if endings.counts[cause]]
            said = said or ["none ended early"]
            beside(axes, i, "\n".join(said), mark.text, SMALL + 0.5)
        percent_axis(axes)
        axes.set_xlabel(f"broke a rule by turn {seen[-1].turn}: from none to all of the others")
        return finish(
            axes,
            (f"{plain(name)}: {e}." for name, e in list(zip(names, seen, strict=True))[:3]),
            shown=ax is None,
        )


def _open_range(axes: Axes, row: int, endings: Endings, mark: Mark) -> None:
    ends = [endings.lowest, endings.highest]
    axes.plot(ends, [row, row], color=mark.colour, linestyle=mark.line, linewidth=2)
    axes.plot(ends, [row, row], color=mark.colour, linestyle="none", marker="|", markersize=12)
    dot(axes, endings.censored, row, mark, 7)
    for place, side in ((endings.lowest, "right"), (endings.highest, "left")):
        if endings.highest - endings.lowest > 0.02:
            axes.annotate(
                percent(place, 0),
                (place, row),
                (-5 if side == "right" else 5, 8),
                textcoords="offset points",
                ha=side,
                fontsize=SMALL,
                color=mark.text,
            )


def _endings_title(last: Endings) -> str:
    others = sum(n for cause, n in last.counts.items() if cause != CAUSES[0])
    if not others:
        return f"By turn {last.turn} nothing but a violation ended a conversation"
    return (
        f"{count(others, 'conversation')} ended before the agent was done with them: between "
        f"{percent(last.lowest, 0)} and {percent(last.highest, 0)} would have broken a rule"
    )


# --------------------------------------------------------------------------- who does the work


def safeguard_credit(experiment: Experiment[SafeguardAblation], *, ax: Axes | None = None) -> Axes:
    """Draw the share of attacks that each safeguard prevents, on every version that was tried.

    Parameters
    ----------
    experiment : Experiment
        ``safeguard_ablation``: Shapley shares with their 95% intervals over scenarios.
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
    ablations = experiment.expect(SafeguardAblation).versions
    versions = list(ablations)
    names: tuple[HookName, ...] = get_args(HookName)
    rows = [(name, version) for name in names for version in versions]
    reach = max(
        abs(end) for seen in ablations.values() for one in seen.prevented.values() for end in one
    )
    with sheet():
        labels = [drawable(version, 24) for _, version in rows]
        left = label_width(labels) + 0.85
        axes = draw(_credit_title(ablations), height=3.4, left=left, right=1.75, ax=ax)
        rows_axis(axes, labels)
        heights = [i + 0.6 * (i // len(versions)) for i in range(len(rows))]
        axes.set_yticks(heights, labels)
        axes.set_ylim(heights[-1] + 0.6, -0.6)
        for i, (name, version) in enumerate(rows):
            mark = version_mark(i % len(versions))
            axes.get_yticklabels()[i].set_color(mark.text)
            # Adding nothing makes a negative zero a zero.
            value, low, high = (x + 0.0 for x in ablations[version].prevented[name])
            interval(axes, heights[i], value, low, high, mark)
            said = f"{percent(value)} [{percent(low)}, {percent(high)}]"
            beside(axes, heights[i], said, mark.text, SMALL + 0.5)
        for i, name in enumerate(names):
            axes.annotate(
                name.replace("_", "\n"),
                (0, heights[i * len(versions) + len(versions) // 2]),
                (-(left - 0.08) * 72, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontweight="bold",
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-1.1 * reach, 1.1 * reach)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.0f}%" if x else "0%")
        axes.set_xlabel("attacks prevented, of all attacks")
        return finish(
            axes,
            _credit_lines({version: ablations[version] for version in versions[:3]}),
            shown=ax is None,
        )


def _credit_title(ablations: Mapping[str, Ablation]) -> str:
    shares = {
        (name, version): one
        for version, seen in ablations.items()
        for name, one in seen.prevented.items()
    }
    (name, version), best = max(shares.items(), key=lambda item: item[1].value)
    if best.low <= 0:
        return "No safeguard surely prevents any of these attacks"
    return f"{name} of {version} prevents most: {percent(best.value, 0)} of all attacks"


def _credit_lines(ablations: Mapping[str, Ablation]) -> list[str]:
    def each(said: Callable[[Combination], str]) -> str:
        pairs = (
            (plain(version), *map(said, (seen.combinations[0], seen.combinations[-1])))
            for version, seen in ablations.items()
        )
        return ", ".join(f"{version} {none}/{every}" for version, none, every in pairs)

    first = next(iter(ablations.values())).combinations[0]
    return [
        f"Broken by {first.attacks} attacks, with none and with all: "
        f"{each(lambda one: str(one.broke))}.",
        f"Not served, of {first.requests} requests: {each(lambda one: str(one.refused))}.",
    ]
