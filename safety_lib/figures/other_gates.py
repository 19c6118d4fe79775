"""Stage 3: other gates on the same releases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

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
    label_width,
    percent_axis,
    rows_axis,
    sheet,
)
from safety_lib.records import Experiment
from safety_lib.records.experiments import Peers, VerdictShares
from safety_lib.text import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

_LOSSES = {
    "7 points in every family": ("in every family, 0.07", Mark(BLUE, "o", "-")),
    "7 points in one family": ("in one family, 0.07", Mark(VERMILION, "s", "-")),
    "30 points in a family of one test": (
        "30 points in a family of one test",
        Mark(INK, "D", "-", filled=False),
    ),
}


class _Row(NamedTuple):
    name: str
    releases: Mapping[str, VerdictShares]
    within_limits: bool = True
    ours: bool = False

    @property
    def equals(self) -> VerdictShares:
        return self.releases["in every family, 0.0"]

    def blocked(self, release: str) -> float:
        return self.releases[release].shares["BLOCK"].value


def peers(experiment: Experiment[Peers], *, ax: Axes | None = None) -> Axes:
    """Draw which losses each gate blocks at its best setting, and what its verdicts cost.

    Parameters
    ----------
    experiment : Experiment
        ``peers``.
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
    rows = list(_rows(experiment.expect(Peers)))
    costs = [
        f"{row.equals.shares['OK'].value:.0%} OK, {row.equals.calls:.0%} calls" for row in rows
    ]
    labels = [row.name + ("" if row.within_limits else " *") for row in rows]
    with sheet():
        axes = draw(
            _title(rows),
            height=3.4,
            left=label_width(labels) + 0.2,
            right=label_width(costs, SMALL) + 0.25,
            head=0.3,
            ax=ax,
        )
        rows_axis(axes, labels)
        for y, row in enumerate(rows):
            values = [row.blocked(release) for release, _ in _LOSSES.values()]
            axes.plot([min(values), max(values)], [y, y], color=PALE, linewidth=2.5, zorder=1)
            for value, (_, mark) in zip(values, _LOSSES.values(), strict=True):
                dot(axes, value, y, mark)
            beside(axes, y, costs[y], INK if row.within_limits else GREY, SMALL)
        axes.set_xlim(0, 1)
        percent_axis(axes)
        axes.set_xlabel("share of such releases that are blocked")
        for name, (_, mark) in _LOSSES.items():
            axes.plot(
                [],
                [],
                linestyle="none",
                marker=mark.marker,
                color=mark.colour,
                markerfacecolor=mark.colour if mark.filled else "white",
                label=name,
            )
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.02, 1.0),
            ncols=3,
            frameon=False,
            fontsize=SMALL,
            handletextpad=0.1,
            columnspacing=1.0,
        )
        return finish(axes, _lines(rows), shown=ax is None)


def _rows(result: Peers) -> Iterator[_Row]:
    yield _Row("this gate", result.ours, ours=True)
    for trials, releases in sorted(result.at_once.items()):
        yield _Row(f"this gate, {trials} trials", releases, ours=True)
    for name, peer in result.peers.items():
        for rule in peer.best:
            yield _Row(f"{name}, {rule.trials} trials", rule.releases, rule.within_limits)


def _title(rows: list[_Row]) -> str:
    def least(row: _Row) -> float:
        return min(row.blocked(release) for release, _ in _LOSSES.values())

    ours = rows[0]
    others = [row for row in rows if not row.ours]
    alike = [row.equals.calls for row in others if least(row) >= least(ours)]
    times = min(alike, default=0.0) / ours.equals.calls
    do = f"{len(alike)} of {len(others)} others {'does' if len(alike) == 1 else 'do'} as much"
    cost = f"{do}, with {times:.1f} times the calls" if alike else "no other gate does as much"
    return f"Each of these losses is blocked in {least(ours):.0%} or more; {cost}"


def _lines(rows: list[_Row]) -> list[str]:
    def told(row: _Row) -> str:
        return " ".join(f"{100 * row.blocked(release):.0f}" for release, _ in _LOSSES.values())

    ours = ", ".join(f"{row.name} {told(row)}" for row in rows if row.ours)
    missed = sum(not row.within_limits for row in rows)
    star = f"{count(missed, 'setting')} with a * errs more often than 2% or 5%."
    return [
        f"Blocked, %, in this order of losses: {ours}.",
        "Right of it: equal releases that are OK, and calls. " + (star if missed else ""),
    ]
