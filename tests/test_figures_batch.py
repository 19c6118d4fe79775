"""The figure of a batch: a line for each run; and tables where nothing was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from factories import a_batch, a_cell

from safety_lib import figures
from safety_lib.figures import tables
from safety_lib.figures.moved import save_moved
from safety_lib.text import MINUS


def test_the_figure_says_what_moved(capsys: pytest.CaptureFixture[str]) -> None:
    axes = figures.what_moved(a_batch())
    assert capsys.readouterr().out.splitlines() == [
        f"v2: 1 BLOCK, 1 WARN; difference {MINUS}55.0 to {MINUS}10.0 points.",
        "v3: 1 OK, 1 no verdict, 1 failed; difference +2.0 to +2.0 points.",
    ]
    assert axes.get_title(loc="left") == "v2: 1 BLOCK, 1 WARN; v3: 1 OK, 1 no verdict, 1 failed"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["v2", "v3"]
    assert [text.get_text() for text in axes.texts] == [
        "1 BLOCK\n1 WARN",
        "1 OK\n1 no verdict\n1 failed",
    ]


def test_each_verdict_has_a_mark_of_its_own() -> None:
    axes = figures.what_moved(a_batch())
    dots = {
        round(line.get_xdata()[0]): (line.get_marker(), line.get_color())
        for line in axes.lines
        if len(line.get_xdata()) == 1 and line.get_marker() != "|"
    }
    assert set(dots) == {-55, -10, 2}
    assert len({marker for marker, _ in dots.values()}) == 3
    assert len({colour for _, colour in dots.values()}) == 3


def test_the_largest_loss_stands_first_in_its_group() -> None:
    cells = [a_cell(n, delta=d, ci_low=d, ci_high=d) for n, d in enumerate((-0.1, -0.3, 0.2))]
    axes = figures.what_moved(a_batch(*cells))
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_xdata()[0]]
    assert [
        round(dot.get_xdata()[0]) for dot in sorted(dots, key=lambda dot: dot.get_ydata()[0])
    ] == [-30, -10, 20]


def test_a_batch_without_a_difference_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    figures.what_moved(a_batch(a_cell(1)))
    assert capsys.readouterr().out == "The 1 runs came to no difference\n"


def test_a_saved_figure_has_the_same_bytes(tmp_path: Path) -> None:
    assert save_moved(a_batch(), tmp_path / "a.svg") == save_moved(a_batch(), tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert drawn == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    "table",
    [
        tables.changes_table,
        tables.stress_table,
        tables.failures_table,
        tables.tests_table,
        tables.layers_table,
        tables.milestones_table,
        tables.cut_points_table,
        tables.claims_table,
        tables.mitigations_table,
        tables.variants_table,
        tables.turns_table,
    ],
)
def test_a_table_of_nothing_is_empty(table: Callable[[tuple[()]], pd.DataFrame]) -> None:
    assert len(table(())) == 0
