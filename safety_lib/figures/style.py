"""One look for all figures: sizes, colours, marks and the reading that ends each of them.

A figure is read three ways: by eye, without colour, and as text. So a state is never told by
colour alone, a title says what the data show, and the printed reading repeats the numbers. The
reading is also what a notebook test can compare; pixels are not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from safety_lib.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BLUE = "#0072B2"
VERMILION = "#D55E00"
INK = "#333333"
RUST = "#A84A00"  # vermilion for small text: on white it needs more contrast than a mark
GREY = "#737373"
PALE = "#E3E3E3"

WIDTH = 7.0
FONT = 9.0
SMALL = 8.0
LONGEST_READING = 100  # characters of a printed line
_TITLE_LINE = 0.19
_TITLE_CHARACTERS = 82
_EDGE = 0.08  # inches between the edge of the paper and the title


class Mark(NamedTuple):
    """How one state is drawn: its colour, and the shape and line that say the same."""

    colour: str
    marker: str
    line: str
    filled: bool = True

    @property
    def text(self) -> str:
        """The colour of a label that belongs to the mark, dark enough to be read."""
        return RUST if self.colour == VERMILION else self.colour


# By position: what is in production first, what wants to replace it second.
VERSIONS = (
    Mark(BLUE, "o", "-"),
    Mark(VERMILION, "s", "--"),
    Mark(INK, "^", ":"),
)


def version_mark(position: int) -> Mark:
    """Return the mark of the version at a position; from the third on they share one."""
    return VERSIONS[min(position, len(VERSIONS) - 1)]


def sheet() -> AbstractContextManager[None]:
    """Return the style as a context, so that nothing outside a figure changes."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
            "font.size": FONT,
            "text.color": INK,
            "text.parse_math": False,  # a dollar sign in a transcript is a dollar sign
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": True,
            "axes.axisbelow": True,
            "xtick.color": INK,
            "ytick.color": INK,
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
        }
    )


def fit_height(rows: int, least: float = 2.6, most: float = 3.6) -> float:
    """Return the height in inches that gives every row its line.

    Parameters
    ----------
    rows : int
        Lines to be drawn.
    least, most : float
        Bounds in inches, whatever the rows.

    Returns
    -------
    float
        In [least, most].
    """
    return min(most, max(least, 1.05 + 0.17 * rows))


def draw(
    title: str,
    height: float = 3.0,
    left: float = 0.7,
    right: float = 0.25,
    bottom: float = 0.5,
    head: float = 0.0,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Give one pair of axes its title and its margins, in a new figure or where a reader says.

    The title is bold and starts at the left edge of the paper, over labels and axes alike.

    Parameters
    ----------
    title : str
        What the data show.
    height : float
        Of a new figure, in inches; its width is the same for all.
    left, right, bottom, head : float
        Margins in inches; the head lies between title and axes.
    ax : Axes, optional
        What to draw into. The margins are taken from its cell of the grid, unless the figure has
        a layout engine: that makes the room itself.

    Returns
    -------
    Axes
        Those that were given, or those of the new figure.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=(WIDTH, height)).add_axes((0, 0, 1, 1))
    dress(ax)
    cell = _cell(ax)
    if _figure(ax).get_layout_engine() is not None:
        # It finds its own left margin, so the title cannot begin before the axes do.
        lines = _title_lines(title, cell.width - left)
        _set_title(ax, lines, 0, _over(lines, head) - _EDGE)
        return ax
    lines = _title_lines(title, cell.width)
    top = _over(lines, head)
    # A small cell keeps a fifth of its width and height for the data; labels then stick out.
    aside = min(1, 0.8 * cell.width / (left + right))
    under = min(1, 0.8 * cell.height / (bottom + top))
    x, y, width, height = cell.bounds
    x, width = x + aside * left, width - aside * (left + right)
    y, height = y + under * bottom, height - under * (bottom + top)
    ax.set_position(_fractions(ax, (x, y, width, height)))
    ax.set_in_layout(True)
    _set_title(ax, lines, _EDGE - aside * left, under * top - _EDGE)
    return ax


def dress(ax: Axes) -> None:
    """Give axes that somebody else made, and ticks that are made later, what the style gives."""
    ax.spines[:].set_edgecolor(GREY)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=FONT, color=INK, labelcolor=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=INK, size=FONT)


def panel(ax: Axes, bottom: float, height: float, above: Axes | None = None) -> Axes:
    """Return axes as wide as others, inside them.

    Parameters
    ----------
    ax : Axes
        What to stand in; nothing else of them is drawn.
    bottom, height : float
        Shares of their height, in [0, 1].
    above : Axes, optional
        Those below, whose horizontal axis is shared.

    Returns
    -------
    Axes
        One of their ``child_axes``.
    """
    ax.set_axis_off()
    inner = ax.inset_axes((0, bottom, 1, height), sharex=above)
    dress(inner)
    return inner


def _title_lines(title: str, width: float) -> list[str]:
    return textwrap.wrap(drawable(title, 300), max(20, int(_TITLE_CHARACTERS * width / WIDTH)))


def _over(lines: Sequence[str], head: float) -> float:
    """Return the inches over the axes that a title of some lines takes."""
    return 0.27 + _TITLE_LINE * len(lines) + head


def _set_title(ax: Axes, lines: Sequence[str], x: float, y: float) -> None:
    """Write the title at inches from the upper left corner of the axes."""
    from matplotlib.transforms import ScaledTranslation

    inches = ScaledTranslation(x, y, ax.figure.dpi_scale_trans)
    ax.set_title(
        "\n".join(lines),
        loc="left",
        x=0,
        y=1,
        ha="left",
        va="top",
        fontsize=10,
        fontweight="bold",
        color=INK,
        linespacing=1.25,
        transform=ax.transAxes + inches,
    )


def _cell(ax: Axes) -> Bbox:
    """Return the cell of the grid in which axes stand, in inches; else the axes themselves."""
    from matplotlib.gridspec import GridSpec
    from matplotlib.transforms import Bbox

    spec = ax.get_subplotspec()
    box = ax.get_position()
    if spec is not None and spec is spec.get_topmost_subplotspec():
        grid = spec.get_gridspec()
        whole = GridSpec(
            grid.nrows,
            grid.ncols,
            left=0,
            bottom=0,
            right=1,
            top=1,
            wspace=0,
            hspace=0,
            width_ratios=grid.get_width_ratios(),
            height_ratios=grid.get_height_ratios(),
        )
        rows, columns = spec.rowspan, spec.colspan
        here = whole[rows.start : rows.stop, columns.start : columns.stop]
        box = here.get_position(_figure(ax))
    width, height = _paper(ax)
    return Bbox.from_bounds(box.x0 * width, box.y0 * height, box.width * width, box.height * height)


def _fractions(ax: Axes, inches: tuple[float, float, float, float]) -> Bbox:
    from matplotlib.transforms import Bbox

    width, height = _paper(ax)
    x, y, wide, high = inches
    return Bbox.from_bounds(x / width, y / height, wide / width, high / height)


def _paper(ax: Axes) -> tuple[float, float]:
    """Return the inches of the figure, or of the part of one, on which axes stand."""
    width, height = ax.figure.bbox.size
    return float(width) / _figure(ax).dpi, float(height) / _figure(ax).dpi


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def inches_wide(ax: Axes) -> float:
    """Return how wide axes are, in inches."""
    return float(ax.bbox.width) / _figure(ax).dpi


def finish(axes: Axes, reading: Iterable[str], *, shown: bool) -> Axes:
    """Print the reading of a drawing: a few short lines with its numbers.

    A figure of one's own is shown first; in a notebook that also closes it. What was drawn into
    the axes of a reader is left to them, to be shown or saved with what stands beside it.

    Parameters
    ----------
    axes : Axes
        What was drawn into.
    reading : iterable of str
        The lines.
    shown : bool
        Whether the figure is one's own.

    Returns
    -------
    Axes
        Those that were given.
    """
    if shown:
        import matplotlib.pyplot as plt

        plt.show()
    lines = (textwrap.fill(line, LONGEST_READING, subsequent_indent="  ") for line in reading)
    print("\n".join(lines))  # noqa: T201 - the reading is the text alternative of the figure
    return axes


def nothing(sentence: str, ax: Axes | None) -> Axes:
    """Draw an empty sheet that says why it is empty."""
    with sheet():
        axes = draw(sentence, height=2.6, ax=ax)
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing to draw", ha="center", va="center", color=GREY)
        return finish(axes, [sentence], shown=ax is None)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def drawable(text: str, limit: int = 40) -> str:
    """Return a text as the figures can show it, cut to a limit and on one line.

    A character that the font lacks becomes a box: matplotlib would warn about it on the page.
    """
    shown = one_line(text, limit, "…")
    return "".join(c if ord(c) in _glyphs() else "\N{WHITE SQUARE}" for c in shown)


def family_name(family: str, limit: int) -> str:
    """Return the name of a family of tests as a figure can show it: its channel is never cut.

    Parameters
    ----------
    family : str
        A rule and a channel, with a slash between them.
    limit : int
        Characters at most.

    Returns
    -------
    str
        Cut where it is too long, within the rule.

    Examples
    --------
    >>> family_name("tool_instruction_obeyed/tickets", 24)
    'tool_instructio…/tickets'
    """
    rule, slash, channel = family.rpartition("/")
    if not slash or len(family) <= limit:
        return drawable(family, limit)
    ending = f"/{drawable(channel, limit // 2)}"
    return drawable(rule, limit - len(ending)) + ending


def label_width(labels: Iterable[str], size: float = FONT, *, bold: bool = False) -> float:
    """Return the inches that the longest of some labels needs, margins included.

    Estimated from the mean width of a letter, so that no drawing is needed to lay out another.

    Parameters
    ----------
    labels : iterable of str
        What stands left of the axes.
    size : float
        Of the letters, in points.
    bold : bool
        Whether they are wider.

    Returns
    -------
    float
        Inches.
    """
    longest = max((len(label) for label in labels), default=0)
    return 0.22 + longest * size * (0.0085 if bold else 0.0072)


def rows_axis(axes: Axes, labels: Sequence[str], size: float = FONT) -> None:
    """Give the axes one labelled row per entry, from the top down, without a spine.

    Parameters
    ----------
    axes : Axes
        Rows stand at 0, 1, 2 and so on.
    labels : sequence of str
        One a row.
    size : float
        Of the letters, in points.
    """
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def interval(
    axes: Axes, y: float, estimate: float, low: float, high: float, mark: Mark, size: float = 6.5
) -> None:
    """Draw an estimate as a mark on the line of its interval; the ends show that they are ends.

    Parameters
    ----------
    axes : Axes
        What to draw into.
    y : float
        The row.
    estimate, low, high : float
        In the units of the horizontal axis; no line is drawn where low is above high.
    mark : Mark
        How.
    size : float
        Of the mark, in points.
    """
    if low <= high:
        axes.plot(
            [low, high],
            [y, y],
            color=mark.colour,
            linestyle="-",
            linewidth=1.6,
            marker="|",
            markersize=size,
            solid_capstyle="butt",
        )
    dot(axes, estimate, y, mark, size)


def dot(axes: Axes, x: float, y: float, mark: Mark, size: float = 6.5) -> None:
    """Draw one mark; an open one has a white face, so that lines do not show through.

    Parameters
    ----------
    axes : Axes
        What to draw into.
    x, y : float
        Where, in the units of the axes.
    mark : Mark
        How.
    size : float
        Of the mark, in points.
    """
    axes.plot(
        [x],
        [y],
        linestyle="none",
        marker=mark.marker,
        markersize=size,
        color=mark.colour,
        markerfacecolor=mark.colour if mark.filled else "white",
        markeredgewidth=1.4,
        clip_on=False,
        zorder=4,
    )


def beside(axes: Axes, y: float, text: str, colour: str = INK, size: float = FONT) -> None:
    """Write a direct label right of the axes.

    Parameters
    ----------
    axes : Axes
        What to write beside.
    y : float
        The row.
    text : str
        One line or more.
    colour : str
        Dark enough to be read.
    size : float
        Of the letters, in points.
    """
    axes.text(
        1.015,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        ha="left",
        va="center",
        color=colour,
        fontsize=size,
    )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until they are a gap from each other, in their order.

    Examples
    --------
    >>> spread([0.5, 0.5], 0.1)
    [0.45, 0.55]
    >>> spread([0.9, 0.2], 0.1)
    [0.9, 0.2]
    """
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    moved = list(positions)
    for _ in range(len(positions) ** 2):
        for below, above in pairwise(order):
            missing = gap - (moved[above] - moved[below])
            if missing > 1e-9:
                moved[below] = round(moved[below] - missing / 2, 6)
                moved[above] = round(moved[above] + missing / 2, 6)
    return moved


def percent_axis(axes: Axes) -> None:
    """Let the horizontal axis run over rates, with room for a mark at either end."""
    axes.set_xlim(-0.025, 1.025)
    narrow = inches_wide(axes) < 2.6
    ticks = [0, 0.5, 1] if narrow else [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(ticks, [f"{100 * tick:.0f}%" for tick in ticks])
    axes.grid(axis="x", color=PALE, linewidth=0.8)
