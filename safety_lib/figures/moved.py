"""A batch: where the verdict moved with what was varied, and where only the luck did."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from safety_lib.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    SMALL,
    VERMILION,
    WIDTH,
    Mark,
    beside,
    draw,
    drawable,
    finish,
    interval,
    label_width,
    nothing,
    sheet,
)
from safety_lib.files import write_text
from safety_lib.records import Batch, CellResult
from safety_lib.text import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = {
    "OK": Mark(BLUE, "o", "-"),
    "WARN": Mark(INK, "D", "-", filled=False),
    "BLOCK": Mark(VERMILION, "s", "-"),
    "none": Mark(GREY, "x", "-"),
}
_GAP = 1.6  # rows between two groups
_MOST_CELLS = 400


def what_moved(batch: Batch, *, ax: Axes | None = None) -> Axes:
    """Draw the difference of every run with its interval, marked by verdict, group by group.

    A group holds the runs that differ in their seed alone; in it, the largest loss stands first.

    Parameters
    ----------
    batch : Batch
        What was run.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    measured = {
        label: sorted(filter(_is_measured, cells), key=_loss)
        for label, cells in batch.groups.items()
    }
    if not any(measured.values()) or len(batch.cells) > _MOST_CELLS:
        why = "are too many to draw" if any(measured.values()) else "came to no difference"
        return nothing(f"The {len(batch.cells)} runs {why}", ax)
    labels = [drawable(label, 34) for label in measured]
    tallies = [_tally(cells) for cells in batch.groups.values()]
    with sheet():
        axes = draw(
            _title(batch),
            height=_height(batch),
            left=label_width(labels) + 0.1,
            right=max(label_width(tally.split("\n"), SMALL) for tally in tallies) + 0.2,
            head=0.25,
            ax=ax,
        )
        _draw_groups(axes, list(measured.values()), labels, tallies)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        axes.set_xlabel("difference in pass rate, candidate less baseline, points (95%)")
        axes.grid(axis="x", color=PALE, linewidth=0.8)
        _key(axes, batch)
        return finish(axes, _reading(batch), shown=ax is None)


def save_moved(batch: Batch, path: Path) -> list[str]:
    """Write the figure of a batch as SVG, the same bytes each time.

    Parameters
    ----------
    batch : Batch
        What was run.
    path : Path
        Of the file.

    Returns
    -------
    list of str
        What the figure says, in words.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    said, out = io.StringIO(), io.StringIO()
    figure = Figure(figsize=(WIDTH, _height(batch)))
    FigureCanvasSVG(figure)
    with redirect_stdout(said):
        what_moved(batch, ax=figure.add_axes((0, 0, 1, 1)))
    with sheet(), mpl.rc_context({"svg.hashsalt": "batch"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    write_text(path, out.getvalue())
    return said.getvalue().splitlines()


def _draw_groups(
    axes: Axes,
    groups: Sequence[Sequence[CellResult]],
    labels: Sequence[str],
    tallies: Sequence[str],
) -> None:
    y, ticks = 0.0, []
    for cells, tally in zip(groups, tallies, strict=True):
        ticks.append(y + max(0, len(cells) - 1) / 2)
        beside(axes, ticks[-1], tally, size=SMALL)
        for cell in cells:
            seen = cell.found
            assert seen is not None
            assert seen.delta is not None and seen.ci_low is not None and seen.ci_high is not None
            low, high = 100 * seen.ci_low, 100 * seen.ci_high
            interval(axes, y, 100 * seen.delta, low, high, _MARKS[cell.verdict], 3.5)
            y += 1
        y += _GAP + (not cells)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(y - _GAP + 0.8, -1.2)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _key(axes: Axes, batch: Batch) -> None:
    shown = {cell.verdict for cell in batch.cells if _is_measured(cell)}
    for verdict, mark in _MARKS.items():
        if verdict in shown:
            axes.plot(
                [],
                [],
                linestyle="none",
                marker=mark.marker,
                markersize=5,
                color=mark.colour,
                markerfacecolor=mark.colour if mark.filled else "white",
                label="no verdict" if verdict == "none" else verdict,
            )
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(shown),
        frameon=False,
        fontsize=SMALL,
        handletextpad=0.1,
        columnspacing=1.0,
    )


def _height(batch: Batch) -> float:
    rows = len(batch.cells) + _GAP * len(batch.groups)
    return min(9.0, max(2.6, 1.3 + 0.075 * rows))


def _is_measured(cell: CellResult) -> bool:
    return cell.found is not None and cell.found.delta is not None


def _loss(cell: CellResult) -> float:
    assert cell.found is not None and cell.found.delta is not None
    return cell.found.delta


def _tally(cells: Sequence[CellResult], between: str = "\n") -> str:
    counts = Counter(cell.verdict for cell in cells)
    names = {"none": "no verdict"}
    return between.join(
        f"{counts[verdict]} {names.get(verdict, verdict)}"
        for verdict in ("BLOCK", "WARN", "OK", "none", "failed")
        if counts[verdict]
    )


def _title(batch: Batch) -> str:
    told = [f"{label}: {_tally(cells, ', ')}" for label, cells in batch.groups.items()]
    if len(told) <= 3:
        return "; ".join(told)
    same = sum(len({cell.verdict for cell in cells}) == 1 for cells in batch.groups.values())
    return f"The verdict is the same on every seed in {same} of {len(told)} groups"


def _reading(batch: Batch) -> list[str]:
    lines = []
    for label, cells in batch.groups.items():
        losses = sorted(_loss(cell) for cell in cells if _is_measured(cell))
        spread = (
            f"; difference {points(losses[0])} to {points(losses[-1])} points" if losses else ""
        )
        lines.append(f"{label}: {_tally(cells, ', ')}{spread}.")
    return lines
