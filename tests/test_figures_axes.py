"""Figures drawn into the axes of a reader, who combines, shows and saves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from factories import NORTHWIND
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from safety_lib import figures
from safety_lib.artifacts import CHECKOUT, read_artifact, read_experiment
from safety_lib.records import (
    Batch,
    GateReport,
    IncidentReport,
    MitigationResult,
    Reproduction,
    StressFailures,
    Suite,
)
from safety_lib.rollout.campaign import Run
from safety_lib.stress.coverage import coverage
from safety_lib.stress.discovery import Discovery, discover
from safety_lib.world import load_version

pytestmark = pytest.mark.slow

ARTIFACTS = CHECKOUT / "artifacts"
EXPERIMENTS = {
    "operating_characteristics": "operating_characteristics",
    "peers": "peers",
    "safeguard_credit": "safeguard_ablation",
    "root_cause_accuracy": "root_cause_accuracy",
    "radius_coverage": "blast_radius_coverage",
    "loop_rounds": "loop_against_no_loop",
    "detection": "detection_latency",
    "near_misses": "early_warning",
    "early_warning": "early_warning",
}


@cache
def found() -> Discovery:
    return discover(
        load_version("northwind/v1"), load_version("northwind/v2"), run=Run(seed=5), rollouts=20
    )


def given(name: str) -> tuple[Any, ...]:
    """Return what the helper of a name is called with: what is stored, where something is."""
    if name in EXPERIMENTS:
        return (read_experiment(ARTIFACTS, EXPERIMENTS[name]),)
    if name == "what_moved":
        return (read_artifact(ARTIFACTS, Batch),)
    if name == "forest":
        return (read_artifact(ARTIFACTS, GateReport),)
    if name in ("funnel", "reproduction"):
        suite = read_artifact(ARTIFACTS, Suite)
        return (suite.funnel if name == "funnel" else suite.tests,)
    if name == "survival_curves":
        return (read_artifact(ARTIFACTS, StressFailures).survival,)
    if name in ("failures_by_turn", "single_turn_against_multi_turn"):
        return (read_artifact(ARTIFACTS, StressFailures).summary,)
    if name == "coverage_map":
        return (coverage(found().trajectories["v2"], NORTHWIND),)
    if name == "undiscovered":
        return (found().unseen,)
    if name == "other_endings":
        return ["v1", "v2"], found().endings
    if name == "mitigations":
        some = Reproduction(version="v", k=3, n=40, ci_low=0.0, ci_high=0.2)
        fixes = [
            MitigationResult(
                name=name, changes=(), incident=some, at_most=0.1, held_out=some, benign=some
            )
            for name in ("undo a", "undo b", "stop sooner")
        ]
        return (fixes,)
    incident = read_artifact(ARTIFACTS, IncidentReport)
    return {
        "timeline": (incident.timeline,),
        "intervention_effects": (incident.interventions,),
        "causal_graph": (incident.bisection, incident.interventions),
        "blast_radius": (incident.blast_radius,),
    }[name]


def helper(name: str) -> Callable[..., Axes]:
    drawn: Callable[..., Axes] = getattr(figures, name)
    return drawn


def pixels(figure: Figure) -> Any:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.findobj(Text) if text.get_text()]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def shows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Keep what is shown, and close what a test leaves open."""
    kept: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: kept.append(pixels(plt.gcf())))
    yield kept
    plt.close("all")


@pytest.mark.parametrize("name", figures.__all__)
def test_a_drawing_is_the_same_when_shown_saved_later_or_put_beside_another(
    name: str, shows: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = helper(name)(*given(name))
    reading = capsys.readouterr().out
    plt.close("all")  # a notebook closes what it has shown
    saved = pixels(alone.figure)
    assert len(shows) == 1
    assert (saved == shows[0]).all()

    width, height = alone.figure.get_size_inches()
    figure, (left, right) = plt.subplots(1, 2, figsize=(2 * width, height), dpi=100)
    left.set_axis_off()
    before = dict(mpl.rcParams)
    assert helper(name)(*given(name), ax=right) is right
    assert capsys.readouterr().out == reading
    assert len(shows) == 1
    assert plt.gcf() is figure
    assert dict(mpl.rcParams) == before
    both = pixels(figure)
    assert (both[:, 700:] == saved).all()
    assert (both[:, :690] == 255).all()


@pytest.mark.parametrize(
    "name",
    ["survival_curves", "failures_by_turn", "coverage_map", "undiscovered", "mitigations"],
)
def test_a_layout_engine_makes_the_room(name: str) -> None:
    figure, cells = plt.subplots(1, 2, figsize=(16, 4.5), layout="constrained")
    for ax in cells:
        helper(name)(*given(name), ax=ax)
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in cells]
    assert boxes[0].x1 <= boxes[1].x0 + 1
    assert boxes[0].x0 >= -1
    assert boxes[1].x1 <= figure.bbox.x1 + 1
    assert boxes[0].y1 <= figure.bbox.y1 + 1


def test_what_is_not_there_is_said_in_the_axes_of_the_reader(shows: list[Any]) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert figures.funnel({}, ax=left) is left
    assert "nothing to draw" in words(left)
    assert not words(right)[len(right.get_xticklabels()) + len(right.get_yticklabels()) :]
    assert shows == []
    assert plt.gcf() is figure


def test_small_cells_keep_room_for_the_data() -> None:
    _, cells = plt.subplots(2, 2)
    for ax in cells.flat:
        figures.survival_curves(*given("survival_curves"), ax=ax)
        assert ax.bbox.width > 0.19 * 320
        assert ax.bbox.height > 0.19 * 240
    assert len({ax.get_title(loc="left") for ax in cells.flat}) == 1


def test_axes_that_stand_free_are_not_left() -> None:
    figure = plt.figure(figsize=(14, 7))
    free = figure.add_axes((0.4, 0.2, 0.5, 0.5))
    place = free.get_window_extent().frozen()
    figures.funnel({"found": 3, "active": 2}, ax=free)
    figure.canvas.draw()
    inside = free.get_tightbbox()
    assert place.x0 <= inside.x0
    assert inside.x1 <= place.x1
    assert place.y0 <= inside.y0
    assert inside.y1 <= place.y1


def test_a_drawing_fits_into_a_part_of_a_figure() -> None:
    parts = plt.figure(figsize=(14, 6.6)).subfigures(2, 1)
    ax = parts[1].subplots(1, 2)[0]
    assert figures.survival_curves(*given("survival_curves"), ax=ax) is ax
    box = ax.get_tightbbox()
    assert box.y1 <= 331
    assert box.x1 <= 701
