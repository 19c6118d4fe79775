"""The figures of coverage, of what is unseen and of other endings: every number is on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from factories import NORTHWIND
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from safety_lib.artifacts import read_experiment
from safety_lib.figures import coverage_map, other_endings, safeguard_credit, tables, undiscovered
from safety_lib.stress.coverage import coverage
from safety_lib.stress.discovery import Discovery
from safety_lib.stress.timing import CAUSES, Endings
from safety_lib.stress.unseen import unseen

pytestmark = pytest.mark.slow

Read = Callable[..., str]


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """Call a helper, check what every helper promises, and return its reading."""
    shows: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shows.append(1))

    def call(helper: Callable[..., Any], *args: Any) -> str:
        plt.close("all")
        shows.clear()
        before = dict(mpl.rcParams)
        helper(*args)
        assert shows == [1]
        assert dict(mpl.rcParams) == before
        reading = capsys.readouterr().out
        assert 1 <= len(reading.splitlines()) <= 3
        figure = plt.gcf()
        assert figure.get_figwidth() == 7
        assert 2.6 <= figure.get_figheight() <= 3.6
        figure.canvas.draw()
        return reading

    yield call
    plt.close("all")


def words() -> list[str]:
    return [t.get_text() for t in plt.gcf().findobj(Text) if t.get_text()]


def inside() -> bool:
    """Whether every text lies on the sheet."""
    figure = plt.gcf()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text()]
    return all(
        b.x0 >= -1 and b.y0 >= -1 and b.x1 <= width + 1 and b.y1 <= height + 1 for b in boxes
    )


def test_the_map_says_every_cell_in_words_and_in_shade(read: Read, discovery: Discovery) -> None:
    laid = coverage(discovery.trajectories["v2"], NORTHWIND)
    reading = read(coverage_map, laid)
    said = words()
    for cell in laid.scenarios:
        assert f"{cell.broke} of {cell.tried}" in said or not cell.tried
    assert set(laid.rules) <= set(said)
    shades = {round(cell.broke / cell.tried, 6) for cell in laid.scenarios if cell.tried}
    drawn = [p for p in plt.gcf().axes[0].patches if isinstance(p, Rectangle)]
    assert len(drawn) == len(laid.scenarios)
    assert len({p.get_facecolor() for p in drawn}) == len(shades)
    assert all(len(set(p.get_facecolor()[:3])) == 1 for p in drawn)  # grey: no colour to miss
    assert inside()
    assert "Try next: " in reading
    assert f"v2: {len([c for c in laid.scenarios if c.tried])} of 30 scenarios tried" in reading


def test_what_was_never_tried_is_hatched_and_not_a_zero(read: Read, discovery: Discovery) -> None:
    laid = coverage(discovery.trajectories["v2"][:9], NORTHWIND)
    read(coverage_map, laid)
    untried = sum(1 for cell in laid.scenarios if not cell.tried)
    assert words().count("never tried") == untried > 0
    hatched = [p for p in plt.gcf().axes[0].patches if p.get_hatch()]
    assert len(hatched) == untried


def test_the_search_shows_what_was_found_and_what_may_be_left(
    read: Read, discovery: Discovery
) -> None:
    searches = [unseen(held) for held in discovery.trajectories.values()]
    reading = read(undiscovered, searches)
    _, above = plt.gcf().axes[0].child_axes
    steps = [line for line in above.lines if line.get_drawstyle() == "steps-post"]
    assert [line.get_ydata()[-1] for line in steps] == [len(u.modes) for u in searches]
    assert len({line.get_linestyle() for line in steps}) == 2
    assert reading.count("not below 5% yet") == 2
    assert inside()
    for search in searches:
        assert f"{search.version}: {len(search.modes)} modes, at least" in reading


def test_a_search_that_may_stop_says_when(read: Read, discovery: Discovery) -> None:
    search = unseen(discovery.trajectories["v1"])
    at = search.stops_at(0.5)
    assert at is not None
    assert f"below 50% after {at} rollouts" in read(undiscovered, [search], 0.5)


def test_a_search_without_a_failure_is_drawn(read: Read, discovery: Discovery) -> None:
    safe = [t for t in discovery.trajectories["v1"] if t.outcome == "safe"]
    assert "no failure in" in read(undiscovered, [unseen(safe)])
    assert np.isfinite(plt.gcf().axes[0].child_axes[1].get_ylim()).all()


def endings(lowest: float, middle: float, highest: float, stopped: int) -> Endings:
    counts = dict(zip(CAUSES, (10, stopped, 0, 0), strict=True))
    return Endings(8, 40, counts, lowest, middle, highest)


def test_other_endings_are_a_range_with_its_counts(read: Read) -> None:
    reading = read(
        other_endings, ["v2", "strict"], [endings(0.5, 0.5, 0.5, 0), endings(0.25, 0.4, 0.75, 20)]
    )
    said = words()
    assert "10 broke a rule\n20 ended by a safeguard" in said
    assert {"25%", "75%"} <= set(said)
    assert any("between 25% and 75% would have broken a rule" in w.replace("\n", " ") for w in said)
    assert "strict: by turn 8 a rule is broken in 25.0% to 75.0%" in reading
    assert inside()


def test_the_credit_of_each_safeguard_is_drawn_with_its_interval(read: Read) -> None:
    kept = read_experiment("artifacts", "safeguard_ablation")
    reading = read(safeguard_credit, kept)
    said = words()
    for seen in kept.result.versions.values():
        for value, _, _ in seen.prevented.values():
            assert any(text.startswith(f"{100 * (value + 0.0):.1f}% [") for text in said)
    assert not any(text.startswith("-0.0%") or "[-0.0%" in text for text in said)
    assert {"pre\naction", "trajectory", "post\naction"} <= set(said)
    for name, seen in kept.result.versions.items():
        assert f"{name} {seen.combinations[0].broke}/{seen.combinations[-1].broke}" in reading
    assert inside()


def test_the_tables_of_the_experiments_say_what_they_hold() -> None:
    leads = tables.leads_table(read_experiment("artifacts", "attackers_at_equal_budget"), "v2")
    assert leads.shape == (8, 5)
    assert (leads[["who", "found more"]].iloc[-1] == ["search", "modes"]).all()
    memory = tables.memory_table(read_experiment("artifacts", "memory_window"))
    assert list(memory.index) == ["1", "3", "5", "10", "20", "all"]
    combinations = tables.safeguards_table(read_experiment("artifacts", "safeguard_ablation"))
    assert len(combinations) == 8
    assert combinations.index[-1] == "pre_action + trajectory + post_action"


@pytest.mark.parametrize(
    "call",
    [
        lambda: coverage_map(coverage([], NORTHWIND)),
        lambda: undiscovered([]),
        lambda: other_endings([], []),
    ],
    ids=["coverage", "unseen", "endings"],
)
def test_nothing_is_drawn_as_a_sentence(read: Read, call: Callable[[], None]) -> None:
    read(call)
    assert "nothing to draw" in words()
