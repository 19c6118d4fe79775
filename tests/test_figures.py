"""The figures: what they say, what they draw, and that a reader without colour gets the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from factories import a_report, a_result, a_stratum, a_test, an_intervention, reproduced

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from safety_lib import figures
from safety_lib.artifacts import CHECKOUT, read_experiment
from safety_lib.figures import (
    blast_radius,
    failures_by_turn,
    forest,
    funnel,
    intervention_effects,
    reproduction,
    single_turn_against_multi_turn,
    survival_curves,
    timeline,
)
from safety_lib.figures.style import drawable, sheet, spread
from safety_lib.records import (
    BlastRadius,
    GateReport,
    Intervention,
    StressSummary,
    SurvivalCurve,
    TestResult,
    TimelineEntry,
)
from safety_lib.records.experiments import Peers
from safety_lib.stats.intervals import wilson
from safety_lib.text import MINUS

pytestmark = pytest.mark.slow

Read = Callable[..., str]
HOSTILE = "$\\frac{ 电话 " + chr(27) + "[31m" + chr(0x202E) + "<b>" + "x" * 300


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """Call a helper, check what every helper promises, and return its reading."""
    shows: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shows.append(len(plt.get_fignums())))

    def call(helper: Callable[..., Axes], *args: Any, **kwargs: Any) -> str:
        plt.close("all")
        shows.clear()
        before = dict(mpl.rcParams)
        drawn = helper(*args, **kwargs)
        assert [drawn] == plt.gcf().axes
        assert shows == [1]
        assert dict(mpl.rcParams) == before
        reading = capsys.readouterr().out
        assert 1 <= len(reading.splitlines()) <= 6
        assert all(len(line) <= 100 for line in reading.splitlines())
        assert reading.strip()
        figure = plt.gcf()
        assert figure.get_figwidth() == 7
        assert 2.6 <= figure.get_figheight() <= 3.6
        figure.canvas.draw()
        return reading

    yield call
    plt.close("all")


def figure() -> Figure:
    return plt.gcf()


def axes() -> Axes:
    return figure().axes[0]


def panels() -> list[Axes]:
    return [axes(), *axes().child_axes]


def title() -> str:
    return axes().get_title(loc="left").replace("\n", " ")


def words() -> str:
    found = [axes().get_title(loc="left")]
    for ax in panels():
        found += [t.get_text() for t in (*ax.texts, *ax.get_yticklabels(), *ax.get_xticklabels())]
        found += [ax.get_xlabel(), ax.get_ylabel()]
        legend = ax.get_legend()
        found += [t.get_text() for t in legend.get_texts()] if legend else []
    return " | ".join(found)


def marks() -> set[tuple[str, str]]:
    """Return each colour with the marker that goes with it."""
    return {
        (str(line.get_color()), str(line.get_marker()))
        for ax in panels()
        for line in ax.lines
        if line.get_marker() not in ("None", "|", None)
    }


def points_of(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def summary(version: str, rollouts: int, by_turn: dict[int, int], **changes: Any) -> StressSummary:
    failures = sum(by_turn.values())
    fields: dict[str, Any] = {
        "version": version,
        "rollouts": rollouts,
        "failures": failures,
        "delayed_failures": failures - by_turn.get(1, 0),
        "immediate_failures": by_turn.get(1, 0),
        "safe": rollouts - failures,
        "stopped_by_safeguard": 0,
        "errors": 0,
        "undetermined": 0,
        "error_reasons": {},
        "by_attack_type": {},
        "by_turn": by_turn,
        "single_shot_violations": 0,
        "single_shot_n": rollouts,
    }
    return StressSummary(**(fields | changes))


V1 = summary("v1", 60, {1: 5, 2: 2, 5: 5}, single_shot_violations=5)
V2 = summary("v2", 60, {1: 1, 5: 20, 6: 10}, single_shot_violations=1, errors=1)


def curve(version: str, *rows: tuple[int, int, int, float]) -> SurvivalCurve:
    """Make a curve from rows of turn, at risk, failed, survival."""
    turn, at_risk, failed, survival = zip(*rows, strict=True)
    return SurvivalCurve(
        version=version,
        turn=turn,
        at_risk=at_risk,
        failed=failed,
        survival=survival,
        ci_low=tuple(max(0.0, s - 0.1) for s in survival),
        ci_high=tuple(min(1.0, s + 0.1) for s in survival),
    )


def made_test(number: int, k: int = 10, family: str = "payment/user", **changes: Any) -> Any:
    rate = wilson(k, 10)
    seen = reproduced(k, ci_low=rate.low, ci_high=rate.high)
    return a_test(number, **({"family": family, "reproduction": seen} | changes))


def result(number: int, before: int, after: int, **changes: Any) -> TestResult:
    fields = {"name": f"test {number}", "family": "payment/user"}
    return a_result(number, before, after, **(fields | changes))


def report(**changes: Any) -> GateReport:
    parts: dict[str, Any] = {
        "ci_low": -0.37,
        "ci_high": -0.11,
        "strata": (
            a_stratum("candidate_found", -0.42, -0.6, -0.24),
            a_stratum("control", -0.04, -0.12, 0.04),
            a_stratum("benign", 0.0, -0.03, 0.03),
        ),
        "by_category": {"intent_drift": {"delta": -0.1}, "policy_erosion": {"delta": -0.3}},
        "test_results": (result(1, 9, 2), result(2, 10, 10), result(3, 5, 7)),
    }
    return a_report(**(parts | changes))


def entry(turn: int, what: Any, detail: str = "x") -> TimelineEntry:
    return TimelineEntry(turn=turn, what=what, detail=detail)


def intervention(name: str, k: int, kind: Any = "change") -> Intervention:
    return an_intervention(name, kind, 34, k)


RADIUS = BlastRadius(
    estimate=1312.4,
    ci_low=1105.0,
    ci_high=1544.0,
    population_n=40_000,
    flagged_n=2100,
    audited_n=600,
    audited_flagged=400,
    audited_unflagged=200,
    method="stratified",
    claimed=2500,
)


# --------------------------------------------------------------------------- stage 1


def test_failures_by_turn_gives_each_version_its_counts(read: Read) -> None:
    reading = read(failures_by_turn, [V1, V2])
    assert "v1: 12 of 60 failed, 7 after turn 1 (by turn 1: 5, 2: 2, 5: 5)." in reading
    assert "v2: 31 of 59 failed" in reading
    assert title() == (
        "v2 breaks a rule in 31 of 59 conversations; "
        "97% of these failures come after the first turn"
    )
    assert marks() == {("#0072B2", "o"), ("#D55E00", "s")}


def test_no_failures_still_allow_a_rate(read: Read) -> None:
    reading = read(failures_by_turn, [summary("v1", 4, {}), summary("v2", 4, {})])
    assert reading.count("no failure in 4 valid conversations, which still allows 49.0%") == 2
    assert title() == "No version failed in 4 conversations"
    assert "still allows 49%" in words()


def test_a_version_without_a_valid_conversation_says_so(read: Read) -> None:
    broken = summary("v2", 3, {}, errors=3)
    assert "v2: no failure in 0 valid conversations." in read(failures_by_turn, [V1, broken])
    assert "no valid conversation" in words()


def test_survival_curves_show_risk_and_censoring(read: Read) -> None:
    kept = curve("v1", (1, 10, 0, 1.0), (2, 10, 2, 0.8), (4, 6, 0, 0.8))
    lost = curve("v2", (1, 10, 0, 1.0), (3, 10, 5, 0.5), (4, 5, 0, 0.5))
    reading = read(survival_curves, [kept, lost])
    assert "v1: 80.0% without a violation after turn 4 [70.0%, 90.0%]" in reading
    assert "2 of 10 failed, 8 censored" in reading
    assert title() == "After turn 4, 50% of v2's conversations are still safe, against 80% of v1's"
    ticks = [line for line in axes().lines if line.get_gid() == "censored"]
    assert [points_of(line)[0] for line in ticks] == [[2, 4], [4]]
    # v1 lists no turn 3: nothing ended there, so those who reach turn 4 were at risk.
    shown = [t.get_text() for t in axes().texts]
    assert shown[shown.index("v1") + 1 :][:5] == ["10", "10", "10", "6", "6"]
    assert {str(line.get_linestyle()) for line in axes().lines} >= {"-", "--"}


def test_survival_curves_begin_with_everyone(read: Read) -> None:
    read(survival_curves, [curve("v1", (1, 4, 1, 0.75))])
    assert points_of(axes().lines[0]) == ([0, 1, 1.5], [1.0, 0.75, 0.75])


def test_labels_that_would_touch_are_moved_apart() -> None:
    moved = spread([0.5, 0.5, 0.52], 0.1)
    assert moved[1] - moved[0] >= 0.0999
    assert moved[2] - moved[1] >= 0.0999


def test_single_turn_against_multi_turn_says_no_more_than_the_intervals(read: Read) -> None:
    reading = read(single_turn_against_multi_turn, [V1, V2])
    assert "v2: asked once 1/60 = 1.7% [0.3%, 8.9%]; in a conversation 31/59 = 52.5%" in reading
    assert title() == (
        "Asked once, v2 cannot be told from v1; in a conversation it breaks a rule more often "
        "than v1"
    )
    assert [label.get_text() for label in axes().get_yticklabels()] == ["v1", "v2", "v1", "v2"]


@pytest.mark.parametrize(
    ("once", "failures", "claim"),
    [
        (30, 31, "v2 breaks a rule more often than v1, asked once and in a conversation"),
        (1, 12, "v2 cannot be told from v1, asked once and in a conversation"),
        (2, 5, "v2 cannot be told from v1, asked once and in a conversation"),
        (
            30,
            1,
            "Asked once, v2 breaks a rule more often than v1; in a conversation it breaks a rule "
            "less often than v1",
        ),
    ],
)
def test_the_claim_follows_the_numbers(read: Read, once: int, failures: int, claim: str) -> None:
    first = summary("v1", 60, {1: 12}, single_shot_violations=1)
    second = summary("v2", 60, {1: failures}, single_shot_violations=once)
    read(single_turn_against_multi_turn, [first, second])
    assert title() == claim


def test_a_question_that_was_not_asked_is_not_a_zero(read: Read) -> None:
    reading = read(single_turn_against_multi_turn, [V1, summary("v2", 4, {}, single_shot_n=0)])
    assert "v2: asked once not asked" in reading
    assert "not asked" in words()


# --------------------------------------------------------------------------- stage 2


def test_funnel_does_not_depend_on_the_order_of_the_artifact(read: Read) -> None:
    counts = {"active": 9, "distinct": 12, "found": 48, "quarantined": 3, "reproduced": 30}
    reading = read(funnel, counts)
    assert reading == "found 48, reproduced 30, distinct 12, active 9, quarantined 3.\n"
    assert title() == "48 failures found led to 9 active tests"
    assert "9 (19%)" in words()


def test_an_empty_funnel_is_drawn(read: Read) -> None:
    assert read(funnel, {"found": 0, "active": 0}) == "found 0, active 0.\n"
    assert title() == "No failure was found, so no test was made"


def test_reproduction_is_grouped_by_family(read: Read) -> None:
    tests = [
        made_test(1, 10),
        made_test(2, 3, "mail/user", lifecycle="quarantined"),
        made_test(3, 9, "mail/user"),
    ]
    reading = read(reproduction, tests)
    assert "3 tests in 2 families, 2 active." in reading
    assert "All came back in 30% to 100% of their replays." in reading
    assert "quarantined" in words()
    assert marks() == {("#0072B2", "o"), ("#D55E00", "s")}


def test_reproduction_draws_sixteen_from_the_least_to_the_most_often(read: Read) -> None:
    reading = read(reproduction, [made_test(i, 10 if i < 10 else 5) for i in range(30)])
    assert "least to the most often: in 50% to 100% of their replays." in reading
    assert len(axes().get_yticklabels()) == 16


def test_a_test_that_never_ran_has_no_interval(read: Read) -> None:
    never = reproduced(0, 0, errors=10)
    read(reproduction, [made_test(1, reproduction=never)])
    assert any("0 of 0" in said for said in [t.get_text() for t in axes().texts])


# --------------------------------------------------------------------------- stage 3


def test_forest_orders_groups_and_names_states(read: Read) -> None:
    tests = (result(1, 10, 2), result(2, 9, 7, family="x/user"), result(3, 3, 3, stratum="benign"))
    reading = read(forest, report(test_results=tests))
    assert f"v2 minus v1: {MINUS}24.0 points [{MINUS}37.0, {MINUS}11.0]" in reading
    assert title() == "v2's pass rate is 24.0 points below v1's, more than chance explains"
    assert [label.get_text() for label in axes().get_yticklabels()] == [
        "regression tests",
        "candidate found",
        "control",
        "benign",
        "payment/user",
        "x/user",
    ]
    for shown in (f"OK above {MINUS}5", "worse", "not worse", "open"):
        assert shown in words()
    assert {m for _, m in marks()} == {"s", "o", "D"}


def test_forest_does_not_claim_what_chance_could_do(read: Read) -> None:
    read(forest, report(delta=0.01, ci_low=-0.02, ci_high=0.04))
    assert title() == "v2's pass rate is 1.0 points above v1's: chance alone could do that"
    read(forest, report(delta=0.0, ci_low=None, ci_high=None))
    assert title() == "v2's pass rate equals v1's, and no interval says how sure that is"


def test_forest_without_a_valid_test(read: Read) -> None:
    nothing = report(delta=None, ci_low=None, ci_high=None, strata=(), test_results=())
    assert read(forest, nothing) == "No test gave a valid result on both v1 and v2\n"


def test_forest_survives_an_interval_without_an_end(read: Read) -> None:
    wide = report(strata=(a_stratum("control", -0.1, float("-inf"), float("inf")),))
    read(forest, wide)
    assert "no interval" in words()


def test_peers_are_drawn_as_they_are_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plt, "show", lambda: None)
    stored = read_experiment(CHECKOUT / "artifacts", "peers")
    figures.peers(stored)
    said = capsys.readouterr().out
    result = stored.expect(Peers)
    for release in ("in every family, 0.07", "in one family, 0.07"):
        ours = result.ours[release].shares["BLOCK"].value
        assert re.search(rf"this gate (\d+ )*{100 * ours:.0f}\b", said)
    labels = {label.get_text() for label in axes().get_yticklabels()}
    for name, peer in result.peers.items():
        for rule in peer.best:
            star = "" if rule.within_limits else " *"
            assert f"{name}, {rule.trials} trials{star}" in labels
    plt.close("all")


def test_operating_characteristics_draw_what_is_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plt, "show", lambda: None)
    stored = read_experiment(CHECKOUT / "artifacts", "operating_characteristics")
    figures.operating_characteristics(stored)
    curves = {
        name: (
            [100 * loss for loss in curve],
            [point.shares["BLOCK"].value for point in curve.values()],
        )
        for name, curve in stored.result.curves.items()
    }
    drawn = [points_of(line) for line in axes().lines if line.get_marker() != "None"]
    assert drawn == list(curves.values())
    assert all(name in words() for name in curves)
    *ours, theirs = (curve[0.07].shares["BLOCK"].value for curve in stored.result.curves.values())
    assert f"at least {min(ours):.0%} of releases are blocked" in title()
    assert f"by the original {theirs:.0%}" in title()
    blocked, let_out = capsys.readouterr().out.splitlines()
    for said, loss, verdict in ((blocked, 0.0, "BLOCK"), (let_out, 0.05, "OK")):
        *our_shares, original = (
            100 * curve[loss].shares[verdict].value for curve in stored.result.curves.values()
        )
        assert f"{min(our_shares):.0f} to {max(our_shares):.0f}%, by the original" in said
        assert f"{original:.0f}%." in said
    plt.close("all")


# --------------------------------------------------------------------------- stage 4


def test_timeline_names_the_violation(read: Read) -> None:
    events = [
        entry(1, "request"),
        entry(1, "refusal"),
        entry(2, "request"),
        entry(2, "tool_call"),
        entry(2, "violation", "record_exfiltration: REF-1 was mailed"),
        entry(2, "reply"),
    ]
    reading = read(timeline, events)
    assert "2 turns: user asks 2, agent replies 1, agent refuses 1, tool call 1" in reading
    assert "Turn 2: record_exfiltration: REF-1 was mailed." in reading
    assert title() == "A rule breaks at turn 2, after 1 refusal"
    assert len({marker for _, marker in marks()}) >= 3


def test_timeline_without_a_violation(read: Read) -> None:
    read(timeline, [entry(1, "request"), entry(1, "reply")])
    assert title() == "No rule was broken in 1 turn"


def test_intervention_effects_name_changes_and_not_versions(read: Read) -> None:
    reading = read(
        intervention_effects,
        [
            intervention("run on v1", 0, "version"),
            intervention("revert memory.window", 2),
            intervention("revert prompt.style", 33),
        ],
    )
    assert "Cause: revert memory.window; interval above zero: 2 of 3." in reading
    assert "run on v1 +85.0, revert memory.window +80.0, revert prompt.style +2.5" in reading
    assert "alone takes the failure from 34 of 40 replays to 2 of 40" in title()
    assert words().count("cause") == 1


def test_a_cause_can_be_given(read: Read) -> None:
    both = [intervention("revert a", 15), intervention("revert b", 20)]
    assert "Cause: revert a, revert b;" in read(
        intervention_effects, both, causes=("revert b", "revert a")
    )
    assert "Cause: none is named" in read(intervention_effects, both, causes=())


def test_the_cause_is_drawn_even_when_many_effects_are_larger(read: Read) -> None:
    many = [intervention(f"without turn {i}", 0, "turn") for i in range(20)]
    read(intervention_effects, [*many, intervention("revert memory.window", 10)])
    assert "revert memory.window" in words()
    assert len(axes().get_yticklabels()) == 15


def test_blast_radius_judges_the_claim_and_shows_the_truth(read: Read) -> None:
    reading = read(blast_radius, RADIUS, 1290)
    assert "Estimate 1,312 [1,105, 1,544] of 40,000 conversations; 600 audited" in reading
    assert "Claimed 2,500, above the interval." in reading
    assert "Hidden truth 1,290, inside the interval." in reading
    assert title().endswith("the 2,500 that the file claims are too many")
    assert marks() == {("#0072B2", "o"), ("#D55E00", "s"), ("#333333", "D")}


def test_blast_radius_of_nothing(read: Read) -> None:
    none = RADIUS.model_copy(update={"estimate": 0.0, "ci_low": 0.0, "ci_high": 31.0})
    assert "Estimate 0 [0, 31]" in read(blast_radius, none.model_copy(update={"claimed": None}))
    assert (
        read(blast_radius, None)
        == "No rule broke in the replays, or no log: nothing was estimated\n"
    )


# --------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "helper",
    [
        failures_by_turn,
        survival_curves,
        single_turn_against_multi_turn,
        reproduction,
        timeline,
        intervention_effects,
        funnel,
    ],
)
def test_nothing_at_all_is_drawn_as_a_sentence(read: Read, helper: Callable[..., Axes]) -> None:
    assert read(helper, []) == title() + "\n"


def test_hostile_names_are_drawn_as_text(read: Read) -> None:
    for helper, data in (
        (failures_by_turn, [summary(HOSTILE, 9, {1: 2})]),
        (survival_curves, [curve(HOSTILE, (1, 4, 1, 0.75))]),
        (single_turn_against_multi_turn, [summary(HOSTILE, 9, {1: 2})]),
        (funnel, {HOSTILE: 3}),
        (reproduction, [made_test(1, 3, HOSTILE, category=HOSTILE)]),
        (forest, report(baseline=HOSTILE, test_results=(result(1, 9, 2, family=HOSTILE),))),
        (timeline, [entry(1, "violation", HOSTILE)]),
        (intervention_effects, [intervention(HOSTILE, 2)]),
    ):
        reading = read(helper, data)
        for text in (reading.replace("\n", ""), words().replace("\n", "")):
            assert chr(27) not in text
            assert chr(0x202E) not in text
        assert len(title()) < 600


def test_labels_are_dark_enough_to_read(read: Read) -> None:
    from matplotlib.colors import to_rgb

    def contrast(colour: Any) -> float:
        parts = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return 1.05 / (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05)

    for helper, data in (
        (failures_by_turn, [V1, V2]),
        (single_turn_against_multi_turn, [V1, V2]),
        (reproduction, [made_test(1, 3, lifecycle="quarantined")]),
        (forest, report()),
        (timeline, [entry(1, "violation")]),
        (intervention_effects, [intervention("revert a", 1)]),
        (blast_radius, RADIUS),
    ):
        read(helper, data)
        for ax in panels():
            for text in (*ax.texts, *ax.get_yticklabels()):
                assert contrast(text.get_color()) >= 4.5, text.get_text()


def test_what_the_font_lacks_becomes_a_box() -> None:
    assert drawable("电 é №") == "\N{WHITE SQUARE} é №"
    assert drawable("a" * 50, 10) == "a" * 9 + "…"


def test_the_style_stays_inside() -> None:
    before = dict(mpl.rcParams)
    with sheet():
        assert mpl.rcParams["text.parse_math"] is False
    assert dict(mpl.rcParams) == before


def test_same_data_same_pixels(read: Read) -> None:
    pictures = []
    for _ in range(2):
        read(forest, report())
        pictures.append(bytes(figure().canvas.buffer_rgba()))  # type: ignore[attr-defined]
    assert pictures[0] == pictures[1]


def test_every_helper_is_documented() -> None:
    for name in figures.__all__:
        assert "Parameters" in (inspect.getdoc(getattr(figures, name)) or "")
