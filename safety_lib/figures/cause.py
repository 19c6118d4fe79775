"""Stage 4, deeper: what causes what, what each fix costs, and how often the tools are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    interval,
    label_width,
    nothing,
    percent_axis,
    rows_axis,
    sheet,
    spread,
)
from safety_lib.records import Bisection, Experiment, Intervention, MitigationResult
from safety_lib.records.experiments import (
    ArmSummary,
    BlastRadiusCoverage,
    FewerEscaped,
    IntervalCoverage,
    LoopAgainstNoLoop,
    Proportion,
    RootCauseAccuracy,
)
from safety_lib.text import count, plain, points, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CAUSE = Mark(VERMILION, "s", "-")
_CONTEXT = Mark(BLUE, "o", "-")
_INNOCENT = Mark(GREY, "D", ":", filled=False)
_OURS = Mark(BLUE, "o", "-")
_OTHER = Mark(INK, "D", "--", filled=False)
_WORST = Mark(VERMILION, "s", "--")
_OUTCOME = 0.93  # where the outcome stands, and where edges that act together meet
_TOGETHER = 0.5


def causal_graph(
    found: Bisection, interventions: Sequence[Intervention], *, ax: Axes | None = None
) -> Axes:
    """Draw what the failure hangs on: an edge for each effect that was measured.

    Changes of the release stand above, moments of the conversation below. The width of an edge is
    the share of failures that disappears when its node is taken away; changes that do nothing
    alone and everything together meet before they reach the outcome.

    Parameters
    ----------
    found : Bisection
        The changes that are enough, and what the others do.
    interventions : sequence of Intervention
        Re-executed on the seeds of the incident.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if found.why_not or not interventions:
        return nothing(f"No cause is drawn: {found.why_not or 'nothing was re-executed'}", ax)
    effects = {i.name: i for i in interventions}
    changes = list(dict.fromkeys((*found.enough, *found.needed)))
    context = [i for i in interventions if i.kind in ("turn", "tool_result") and i.ci_low > 0]
    context = sorted(context, key=lambda i: (-i.effect, i.name))[:4]
    others = len(found.changes) - len(changes)
    labels = [*changes, f"{count(others, 'other change')}", *(i.name for i in context)]
    factual = interventions[0].factual
    together = len(found.enough) > 1
    of = [effects.get(f"revert {label}") or effects.get(label) for label in labels]
    of[len(changes)] = _strongest(effects, changes)
    said = [_effect_said(effect, y == len(changes)) for y, effect in enumerate(of)]
    names = [drawable(label, 34) for label in labels]
    with sheet():
        axes = draw(
            _graph_title(found),
            height=fit_height(len(labels) + 5),
            left=label_width([*names, *said], SMALL + 0.5),
            right=1.1,
            bottom=0.15,
            ax=ax,
        )
        rows_axis(axes, [f"{a}\n{b}" for a, b in zip(names, said, strict=True)], SMALL)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        middle = (len(labels) - 1) / 2
        meet = (len(found.enough) - 1) / 2
        for y, label in enumerate(labels):
            meets = label in found.enough and together
            end = (_TOGETHER, meet) if meets else (_OUTCOME, middle)
            mark = _CAUSE if label in changes else _INNOCENT if y == len(changes) else _CONTEXT
            effect = of[y]
            _line(axes, (0.02, y), end, effect.effect if effect else 0.0, mark)
            dot(axes, 0.02, y, mark, 6)
            if label in changes:
                axes.get_yticklabels()[y].set_color(RUST)
                axes.get_yticklabels()[y].set_fontweight("bold")
        if together:
            both = next(p for p in found.probes if set(p.changes) == set(found.enough))
            _line(axes, (_TOGETHER, meet), (_OUTCOME, middle), both.k / max(1, both.n), _CAUSE)
            dot(axes, _TOGETHER, meet, _CAUSE, 8)
            _said(axes, _TOGETHER, meet - 0.42, f"together {both.k} of {both.n}", RUST, "center")
        dot(axes, _OUTCOME, middle, Mark(INK, "o", "-"), 12)
        beside(axes, middle, f"rule broken\n{factual.k} of {factual.n}", INK, SMALL + 0.5)
        return finish(axes, _graph_lines(found), shown=ax is None)


def _effect_said(effect: Intervention | None, most: bool) -> str:
    if effect is None:
        return "not undone alone"
    said = f"{points(effect.effect)} {span(effect.ci_low, effect.ci_high)}"
    return f"at most {said}" if most else said


def _strongest(effects: Mapping[str, Intervention], causes: Sequence[str]) -> Intervention | None:
    """Return the change that does most among those that are no cause."""
    named = {f"revert {key}" for key in causes}
    others = [i for i in effects.values() if i.kind == "change" and i.name not in named]
    return max(others, key=lambda i: i.effect, default=None)


def _line(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], share: float, mark: Mark
) -> None:
    axes.plot(
        [start[0], end[0]],
        [start[1], end[1]],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.8 + 5 * max(0.0, share),
        solid_capstyle="butt",
        alpha=0.55,
        zorder=1,
    )


def _said(axes: Axes, x: float, y: float, text: str, colour: str, side: str) -> None:
    axes.text(x, y, text, color=colour, fontsize=SMALL, ha=side, va="center", zorder=5)


def _graph_title(found: Bisection) -> str:
    if len(found.enough) > 1:
        return f"{' and '.join(found.enough)} break it together, neither alone"
    return f"{found.name} alone is enough to break {found.good}"


def _graph_lines(found: Bisection) -> list[str]:
    enough, needed = (plain(", ".join(keys), 70) for keys in (found.enough, found.needed))
    shares = ", ".join(f"{plain(c.key, 30)} {points(c.estimate)}" for c in found.contributions)
    return [
        f"Enough: {enough}; undoing {needed} is a rescue.",
        f"Shares of the failure in points: {shares}.",
    ]


# --------------------------------------------------------------------------- mitigations


def mitigations(results: Sequence[MitigationResult], *, ax: Axes | None = None) -> Axes:
    """Draw what each mitigation leaves of the failure and what it costs legitimate users.

    Parameters
    ----------
    results : sequence of MitigationResult
        Each executed on the incident, on held-out variants and on benign requests.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not results:
        return nothing("No mitigation was tried", ax)
    ranked = sorted(results, key=lambda r: (_share(r.held_out), _share(r.benign), r.name))
    with sheet():
        labels = [drawable(r.name, 38) for r in ranked]
        axes = draw(
            _fix_title(ranked),
            height=fit_height(len(ranked) + 2),
            left=label_width(labels, SMALL + 0.5),
            right=1.45,
            ax=ax,
        )
        rows_axis(axes, labels, SMALL + 0.5)
        percent_axis(axes)
        for y, result in enumerate(ranked):
            seen = result.held_out
            mark = _CONTEXT if result.pareto else _OTHER
            interval(axes, y, _share(seen), seen.ci_low, seen.ci_high, mark)
            dot(axes, _share(result.benign), y, Mark(VERMILION, "x", ":"), 5.5)
            text = f"{_out_of(result.incident)}, {_out_of(result.benign)}"
            beside(axes, y, text, mark.text, SMALL)
            if result.pareto:
                axes.get_yticklabels()[y].set_fontweight("bold")
        axes.set_xlabel("held-out variants that still break; crosses: requests not served")
        axes.text(
            1.015,
            -1.0,
            "incident, not served",
            transform=axes.get_yaxis_transform(),
            fontsize=SMALL,
            color=INK,
            va="center",
        )
        return finish(axes, _fix_lines(ranked), shown=ax is None)


def _share(counted: Any) -> float:
    return counted.k / counted.n if counted.n else 0.0


def _out_of(counted: Any) -> str:
    return f"{counted.k} of {counted.n}"


def _fix_title(ranked: Sequence[MitigationResult]) -> str:
    best = ranked[0]
    return (
        f"{best.name} leaves {_out_of(best.held_out)} held-out variants broken and "
        f"{count(best.benign.k, 'request')} unserved"
    )


def _fix_lines(ranked: Sequence[MitigationResult]) -> list[str]:
    front = [r for r in ranked if r.pareto]
    lines = [
        f"Not dominated: {', '.join(plain(r.name, 60) for r in front)} "
        f"({len(front)} of {len(ranked)})."
    ]
    never = [r for r in ranked if r.incident.k == 0]
    if never:
        first = never[0]
        lines.append(
            f"{plain(first.name, 60)}: the incident 0 of {first.incident.n} (at most "
            f"{first.at_most:.1%}), held-out variants {_out_of(first.held_out)}."
        )
    return lines


# --------------------------------------------------------------------------- experiments


def root_cause_accuracy(
    experiment: Experiment[RootCauseAccuracy], *, ax: Axes | None = None
) -> Axes:
    """Draw how often each way of naming a cause names the fault that was put in.

    Parameters
    ----------
    experiment : Experiment
        ``root_cause_accuracy``, with incidents of single faults and of pairs.
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
    result = experiment.expect(RootCauseAccuracy)
    single, pairs = result.single, result.pairs
    if single is None or pairs is None:
        return nothing("No incident could be investigated", ax=ax)
    names = {
        "search": "bisection",
        "one_by_one": "undo each change alone",
        "best_label_table": "best table of labels",
        "label": "the label's layer",
    }
    with sheet():
        axes = draw(
            f"Re-execution names {single.search} single faults; reading the label {single.label}",
            height=2.9,
            left=label_width(names.values()) + 0.15,
            right=1.9,
            ax=ax,
        )
        rows_axis(axes, list(names.values()))
        percent_axis(axes)
        for y, way in enumerate(names):
            rates: list[Proportion] = [getattr(seen, way) for seen in (single, pairs)]
            for shift, rate, mark in zip((-0.16, 0.16), rates, (_OURS, _WORST), strict=True):
                interval(axes, y + shift, rate.estimate, rate.ci_low, rate.ci_high, mark)
            beside(axes, y, f"{rates[0]}, {rates[1]}", INK, SMALL + 0.5)
        axes.axvline(single.guess, color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel("incidents whose fault is named first (circle: one fault, square: two)")
        idle = result.nothing_to_find
        return finish(
            axes,
            [
                f"Named first: one fault {single.search} (a guess {single.guess:.0%}), two faults "
                f"{pairs.search}.",
                f"None, and said so: {idle.not_identified} of {idle.incidents}.",
            ],
            shown=ax is None,
        )


def radius_coverage(experiment: Experiment[BlastRadiusCoverage], *, ax: Axes | None = None) -> Axes:
    """Draw how often each interval of the blast radius holds the truth, and how wide it is.

    Parameters
    ----------
    experiment : Experiment
        ``blast_radius_coverage``.
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
    table = experiment.expect(BlastRadiusCoverage).all.estimators
    ours = "stratified audit"
    order = sorted(table, key=lambda name: (name != ours, table[name].median_width or 0))
    first = table[ours]
    with sheet():
        axes = draw(
            f"The audit's 95% interval holds the truth in {first.estimate:.1%} of "
            f"{first.n:,} incidents",
            height=2.9,
            left=label_width(map(_method, order)) + 0.15,
            right=1.9,
            ax=ax,
        )
        rows_axis(axes, [_method(name) for name in order])
        axes.axvspan(93, 97, color=PALE, linewidth=0)
        axes.axvline(95, color=GREY, linewidth=1)
        for y, name in enumerate(order):
            seen = table[name]
            mark = _OURS if name == ours else _OTHER
            held = (100 * seen.k / seen.n, 100 * seen.ci_low, 100 * seen.ci_high)
            interval(axes, y, *held, mark)
            beside(axes, y, f"median width {_width(seen)}", mark.text, SMALL + 0.5)
        axes.set_xlim(min(85, 100 * min(s.ci_low for s in table.values()) - 2), 100.5)
        axes.set_xlabel("incidents whose truth the interval holds, % (grey: 93 to 97)")
        told = "; ".join(f"{_method(name)} {table[name].estimate:.1%}" for name in order)
        return finish(
            axes,
            [
                f"Held the truth: {told}.",
            ],
            shown=ax is None,
        )


def _method(name: str) -> str:
    return name.replace("the same", "stratified audit")


def _width(seen: IntervalCoverage) -> str:
    return "none" if seen.median_width is None else f"{seen.median_width:,.0f}"


def loop_rounds(experiment: Experiment[LoopAgainstNoLoop], *, ax: Axes | None = None) -> Axes:
    """Draw the incidents that escape round after round, with and without the loop.

    Parameters
    ----------
    experiment : Experiment
        ``loop_against_no_loop``.
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
    result = experiment.expect(LoopAgainstNoLoop)
    series = {arm: result.by_round[arm].escaped for arm in ("no loop", "loop")}
    marks = {"no loop": _WORST, "loop": _OURS}
    fewer = result.fewer_escaped_a_run
    with sheet():
        axes = draw(
            f"Learning from incidents lets {fewer.mean:.0f} fewer escape in "
            f"{len(series['loop'])} releases",
            height=2.9,
            right=1.3,
            ax=ax,
        )
        for arm, values in series.items():
            mark = marks[arm]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=mark.colour,
                linestyle=mark.line,
                marker=mark.marker,
                markersize=5,
                linewidth=1.6,
            )
        most = max(1.0, *(value for values in series.values() for value in values))
        ends = spread([values[-1] for values in series.values()], 0.11 * most)
        for (arm, _), y in zip(series.items(), ends, strict=True):
            total = result.arms[arm].escaped_incidents
            beside(axes, y, f"{arm}: {total:,}", marks[arm].text)
        axes.set_xlabel("release")
        axes.set_ylabel("escaped incidents a run")
        axes.set_ylim(-0.04 * most, 1.08 * most)
        axes.set_xticks(range(1, len(series["loop"]) + 1))
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        return finish(
            axes,
            [_arm_line(arm, result.arms[arm]) for arm in series] + [_fewer_line(fewer)],
            shown=ax is None,
        )


def _arm_line(arm: str, seen: ArmSummary) -> str:
    return (
        f"{arm}: {seen.escaped_incidents:,} escaped in {seen.releases} releases; known slips "
        f"again {seen.recurrence or '0 of 0'}; {seen.final_suite:.0f} tests."
    )


def _fewer_line(fewer: FewerEscaped) -> str:
    told = f"Fewer with the loop: {fewer.mean:.1f} a run"
    if fewer.ci_low is not None and fewer.ci_high is not None:
        told += f" [{fewer.ci_low:.1f}, {fewer.ci_high:.1f}]"
    return f"{told}, in {fewer.fewer_in} of {count(fewer.runs, 'run')}."
