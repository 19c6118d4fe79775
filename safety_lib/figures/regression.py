"""Stage 2: how many failures become tests, and how often each of them comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from safety_lib.figures.style import (
    BLUE,
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
    percent_axis,
    rows_axis,
    sheet,
)
from safety_lib.records import RegressionTest
from safety_lib.text import count, percent, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 16

# Active tests run at the gate, all others are kept beside them: open marks.
ACTIVE = Mark(BLUE, "o", "-")
NOT_ACTIVE = Mark(VERMILION, "s", "-", filled=False)

_STEPS = ("found", "reproduced", "distinct", "active")
_STEP = Mark(INK, "D", "-")


def funnel(counts: Mapping[str, int], *, ax: Axes | None = None) -> Axes:
    """Draw how many failures are left after each step from the first find to the active test.

    Parameters
    ----------
    counts : mapping of str to int
        Found, reproduced, distinct and active, in whatever order an artifact keeps them; any
        other count, such as quarantined, is drawn below as what was set aside.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not counts:
        return nothing("No failure entered the funnel", ax)
    order = {name: i for i, name in enumerate(_STEPS)}
    steps = sorted(counts.items(), key=lambda step: order.get(step[0], len(order)))
    first, found = steps[0]
    last, kept = (
        [step for step in steps if step[0] in order][-1] if order.keys() & counts else steps[-1]
    )
    if not found:
        title = "No failure was found, so no test was made"
    else:
        title = f"{count(found, 'failure')} {first} led to {count(kept, f'{last} test')}"
    with sheet():
        labels = [drawable(name, 20) for name, _ in steps]
        axes = draw(title, height=2.6, left=label_width(labels), right=1.55, bottom=0.3, ax=ax)
        rows_axis(axes, labels)
        for y, (name, n) in enumerate(steps):
            mark = ACTIVE if name == last else _STEP if name in order else NOT_ACTIVE
            axes.plot([0, n], [y, y], color=mark.colour, linewidth=5, solid_capstyle="butt")
            dot(axes, n, y, mark, 9)
            beside(axes, y, f"{n:,}{_of_first(n, found) if y else ''}", mark.text)
        most = max(1, *counts.values())
        axes.set_xlim(-0.025 * most, 1.025 * most)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return finish(
            axes, [", ".join(f"{plain(name)} {n:,}" for name, n in steps) + "."], shown=ax is None
        )


def _of_first(n: int, found: int) -> str:
    return f" ({percent(n / found, 0)})" if found else ""


def reproduction(tests: Sequence[RegressionTest], *, ax: Axes | None = None) -> Axes:
    """Draw how often each failure came back on fresh seeds, grouped by family.

    Parameters
    ----------
    tests : sequence of RegressionTest
        Of more than 16, so many are drawn, evenly from the least to the most often.
    ax : matplotlib Axes, optional
        Where to draw; left out, a new figure of the house's size, which is shown.

    Returns
    -------
    matplotlib Axes
        What was drawn into; its ``figure`` can be saved.
    """
    if not tests:
        return nothing("There is no test to reproduce", ax)
    by_rate = sorted(tests, key=lambda t: (_rate(t), t.test_id))
    most = min(len(tests), _MOST_ROWS)
    drawn = [by_rate[round(at * (len(tests) - 1) / max(1, most - 1))] for at in range(most)]
    rows = sorted(drawn, key=lambda t: (t.family, -_rate(t), t.test_id))
    with sheet():
        # Within a family the attack tells the tests apart; the id finds them in the suite.
        labels = [f"{drawable(_words(t.category), 22)}  {drawable(t.test_id, 14)}" for t in rows]
        families = [family_name(test.family, 30) for test in rows]
        left = label_width(labels, SMALL) + label_width(families, SMALL, bold=True) - 0.2
        axes = draw(
            _reproduction_title(tests), height=fit_height(len(rows)), left=left, right=1.25, ax=ax
        )
        rows_axis(axes, labels, SMALL)
        for y, test in enumerate(rows):
            again = test.reproduction
            mark = ACTIVE if test.lifecycle == "active" else NOT_ACTIVE
            state = "" if test.lifecycle == "active" else f"  {test.lifecycle}"
            if again.n:
                interval(axes, y, _rate(test), again.ci_low, again.ci_high, mark)
            beside(axes, y, f"{again.k} of {again.n}{state}", mark.text, SMALL)
            if y == 0 or rows[y - 1].family != test.family:
                axes.annotate(
                    families[y],
                    (0, y),
                    (-(left - 0.08) * 72, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    fontsize=SMALL,
                    fontweight="bold",
                )
                if y:
                    axes.axhline(y - 0.5, color=PALE, linewidth=0.8, zorder=0)
        percent_axis(axes)
        axes.set_xlabel("came back on fresh seeds, 95% interval")
        return finish(axes, _reproduction_lines(tests, rows), shown=ax is None)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rate(test: RegressionTest) -> float:
    return test.reproduction.k / test.reproduction.n if test.reproduction.n else 0.0


def _reproduction_title(tests: Sequence[RegressionTest]) -> str:
    sure = sum(1 for test in tests if test.reproduction.n and _rate(test) == 1)
    least = min(_rate(test) for test in tests)
    if sure == len(tests):
        if sure == 1:
            return "The one failure came back every time"
        return f"All {count(len(tests), 'failure')} came back every time"
    return (
        f"{sure} of {count(len(tests), 'failure')} came back every time; "
        f"the shakiest one in {percent(least, 0)} of its runs"
    )


def _reproduction_lines(
    tests: Sequence[RegressionTest], rows: Sequence[RegressionTest]
) -> list[str]:
    active = sum(1 for test in tests if test.lifecycle == "active")
    families = len({test.family for test in tests})
    rates = sorted(_rate(test) for test in rows)
    drawn = (
        "All came back"
        if len(rows) == len(tests)
        else f"Drawn are {len(rows)}, evenly from the least to the most often:"
    )
    return [
        f"{count(len(tests), 'test')} in {count(families, 'family', 'families')}, {active} active.",
        f"{drawn} in {percent(rates[0], 0)} to {percent(rates[-1], 0)} of their replays.",
    ]
