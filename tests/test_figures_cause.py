"""The figures of cause, fixes and experiments: what they say and that they draw what is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from factories import an_intervention, reproduced

mpl.use("Agg")

import matplotlib.pyplot as plt

from safety_lib import figures
from safety_lib.artifacts import read_experiment
from safety_lib.records import (
    Bisection,
    ConfigProbe,
    Contribution,
    Intervention,
    MitigationResult,
)

pytestmark = pytest.mark.slow

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
Read = Callable[..., str]
HOSTILE = "$\\frac{ " + chr(27) + "[31m" + chr(0x202E) + "<b>" + "x" * 300


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """Draw a figure and return its printed reading."""
    monkeypatch.setattr(plt, "show", lambda: None)

    def call(helper: Callable[..., Any], *args: Any) -> str:
        plt.close("all")
        helper(*args)
        reading = capsys.readouterr().out
        assert 1 <= len(reading.splitlines()) <= 6
        figure = plt.gcf()
        assert figure.get_figwidth() == 7
        assert 2.6 <= figure.get_figheight() <= 3.6
        figure.canvas.draw()
        return reading

    yield call
    plt.close("all")


def title() -> str:
    return plt.gcf().axes[0].get_title(loc="left").replace("\n", " ")


def effect(name: str, kind: Any, removed: int) -> Intervention:
    return an_intervention(name, kind, 20, 20 - removed)


def search(*enough: str, why_not: str = "") -> Bisection:
    return Bisection(
        good="v1",
        bad="v2",
        changes=("a: 1 -> 2", "b: 1 -> 2", "c: 1 -> 2"),
        enough=enough,
        needed=enough[:1],
        contributions=tuple(
            Contribution(key=key, alone=0.0, estimate=0.25, ci_low=0.1, ci_high=0.4)
            for key in enough
        ),
        why_not=why_not,
        probes=(ConfigProbe(changes=enough, k=19, n=40, fails=True),),
        replays=160,
    )


def fix(name: str, incident: int, held_out: int, benign: int, pareto: bool) -> MitigationResult:
    return MitigationResult(
        name=name,
        changes=(),
        incident=reproduced(incident, 40),
        at_most=0.07,
        held_out=reproduced(held_out, 40),
        benign=reproduced(benign, 40),
        pareto=pareto,
    )


def test_two_changes_that_act_together_meet_before_the_outcome(read: Read) -> None:
    effects = [effect("revert a", "change", 20), effect("revert b", "change", 19)]
    effects += [effect("without turn 2", "turn", 8), effect("without turn 1", "turn", 0)]
    reading = read(figures.causal_graph, search("a", "b"), effects)
    assert title() == "a and b break it together, neither alone"
    said = " ".join(t.get_text() for t in plt.gcf().axes[0].texts)
    assert "together 19 of 40" in said
    labels = [t.get_text() for t in plt.gcf().axes[0].get_yticklabels()]
    names, effects_said = zip(*(label.splitlines() for label in labels), strict=True)
    assert names == ("a", "b", "1 other change", "without turn 2")
    assert effects_said[0].startswith("+50.0 [")
    assert "undoing a" in reading


def test_one_cause_goes_straight_to_the_outcome(read: Read) -> None:
    read(figures.causal_graph, search("a"), [effect("revert a", "change", 20)])
    assert title() == "a alone is enough to break v1"


def test_without_a_cause_nothing_is_drawn(read: Read) -> None:
    reading = read(figures.causal_graph, search(why_not="v1 breaks as well"), [])
    assert "v1 breaks as well" in reading


def test_what_an_attacker_wrote_stays_text(read: Read) -> None:
    shown = search(HOSTILE)
    reading = read(figures.causal_graph, shown, [effect(f"revert {HOSTILE}", "change", 20)])
    reading += read(figures.mitigations, [fix(HOSTILE, 0, 1, 0, True)])
    assert chr(27) not in reading
    assert chr(0x202E) not in reading


def test_fixes_are_ranked_by_what_no_test_holds(read: Read) -> None:
    fixes = [
        fix("narrow", 0, 20, 5, True),
        fix("do nothing", 20, 21, 0, False),
        fix("undo a", 1, 2, 1, True),
    ]
    reading = read(figures.mitigations, fixes)
    labels = [t.get_text() for t in plt.gcf().axes[0].get_yticklabels()]
    assert labels == ["undo a", "narrow", "do nothing"]
    assert "undo a, narrow (2 of 3)" in reading
    assert "narrow: the incident 0 of 40 (at most 7.0%)" in reading
    assert "nothing" in read(figures.mitigations, []) or title()


@pytest.mark.parametrize(
    ("helper", "name", "says"),
    [
        (figures.root_cause_accuracy, "root_cause_accuracy", "single"),
        (figures.radius_coverage, "blast_radius_coverage", "all"),
        (figures.loop_rounds, "loop_against_no_loop", "loop"),
    ],
)
def test_an_experiment_is_drawn_as_it_is_stored(
    read: Read, helper: Callable[..., Any], name: str, says: str
) -> None:
    stored = read_experiment(ARTIFACTS, name)
    reading = read(helper, stored)
    numbers = {
        "single": lambda: f"{stored.result.single.search.k} of",
        "all": lambda: f"{stored.result.all.estimators['stratified audit'].estimate:.1%}",
        "loop": lambda: f"loop: {stored.result.arms['loop'].escaped_incidents:,} escaped in",
    }
    assert numbers[says]() in reading


def test_detection_and_warnings_are_drawn_as_they_are_stored(read: Read) -> None:
    found = read_experiment(ARTIFACTS, "detection_latency")
    reading = read(figures.detection, found)
    best = found.result.monitors["audit of warnings"]
    assert f"after {best.median_sessions:,.0f} sessions" in " ".join(reading.split())
    assert "1 of 4 monitors sees every bad release and no good one" in title()
    warned = read_experiment(ARTIFACTS, "early_warning")
    near = {row.name: row.near for row in warned.result.margins}
    reading = read(figures.near_misses, warned)
    assert f"refused or hesitated {near['refused'].k} of {near['refused'].n}" in reading
    reading = read(figures.early_warning, warned)
    assert f"learned rule: warned of {warned.result.scored_on.recall.k} of" in reading
