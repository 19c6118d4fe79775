"""Stage 2: how many failures become tests, and how often each of them comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from safety_lib.report.text import count, percent, plain

_MOST_ROWS = 16

# Active tests run at the gate, all others are kept beside them: open marks.
ACTIVE = Mark(BLUE, "o", "-")
NOT_ACTIVE = Mark(VERMILION, "s", "-", filled=False)


def funnel(counts: Mapping[str, int]) -> None:
    """Draw how many failures are left after each step from the first find to the active test.

    Parameters
    ----------
    counts : mapping of str to int
        The steps in their order, such as found, reproduced, distinct, active.
    """
    if not counts:
        nothing("No failure entered the funnel")
        return
    steps = list(counts.items())
    (first, found), (last, kept) = steps[0], steps[-1]
    if not found:
        title = "No failure was found, so no test was made"
    else:
        title = f"{count(found, 'failure')} {first}: {kept:,} {last} after {len(steps) - 1} steps"
    with sheet():
        labels = [drawable(name, 20) for name, _ in steps]
        _, axes = draw(title, height=2.6, left=label_width(labels), right=1.55, bottom=0.3)
        rows_axis(axes, labels)
        for y, (name, n) in enumerate(steps):
            mark = Mark(BLUE if name == last else INK, "o" if name == last else "s", "-")
            axes.plot([0, n], [y, y], color=mark.colour, linewidth=5, solid_capstyle="butt")
            dot(axes, n, y, mark, 9)
            beside(axes, y, f"{n:,}{_of_first(n, found) if y else ''}", mark.colour)
        axes.set_xlim(0, max(1, *counts.values()) * 1.02)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        finish([", ".join(f"{plain(name)} {n:,}" for name, n in steps) + "."])


def _of_first(n: int, found: int) -> str:
    return f" ({percent(n / found, 0)})" if found else ""


def reproduction(tests: Sequence[RegressionTest]) -> None:
    """Draw how often each failure came back on fresh seeds, grouped by family.

    Parameters
    ----------
    tests : sequence of RegressionTest
        Of more than 16, the ones that came back least often are drawn.
    """
    if not tests:
        nothing("There is no test to reproduce")
        return
    shaky = sorted(tests, key=lambda t: (_rate(t), t.test_id))[:_MOST_ROWS]
    rows = sorted(shaky, key=lambda t: (t.family, -_rate(t), t.test_id))
    with sheet():
        labels = [drawable(test.name, 30) for test in rows]
        families = [drawable(test.family, 20) for test in rows]
        names = label_width(labels, SMALL)
        left = names + label_width(families, SMALL) - 0.1
        _, axes = draw(
            _reproduction_title(tests), height=fit_height(len(rows)), left=left, right=1.25
        )
        rows_axis(axes, labels, SMALL)
        for y, test in enumerate(rows):
            again = test.reproduction
            mark = ACTIVE if test.lifecycle == "active" else NOT_ACTIVE
            state = "" if test.lifecycle == "active" else f"  {test.lifecycle}"
            if again.n:
                interval(axes, y, _rate(test), again.ci_low, again.ci_high, mark)
            beside(axes, y, f"{again.k} of {again.n}{state}", mark.colour, SMALL)
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
        finish(_reproduction_lines(tests, rows))


def _rate(test: RegressionTest) -> float:
    return test.reproduction.k / test.reproduction.n if test.reproduction.n else 0.0


def _reproduction_title(tests: Sequence[RegressionTest]) -> str:
    sure = sum(1 for test in tests if test.reproduction.n and _rate(test) == 1)
    least = min(_rate(test) for test in tests)
    if sure == len(tests):
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
    lines = [
        f"{count(len(tests), 'test')} in {count(families, 'family', 'families')}, {active} active.",
        "Came back, from the top: "
        + ", ".join(f"{test.reproduction.k}/{test.reproduction.n}" for test in rows)
        + ".",
    ]
    if len(rows) < len(tests):
        lines.append(f"Drawn are the {len(rows)} that came back least often.")
    return lines
