"""The gate's other steps, and what somebody who wants to pass it would try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from factories import an_execution, entry, outcomes, trials

from safety_lib.artifacts import read_artifact
from safety_lib.gate.decide import (
    QUESTIONS,
    Judgement,
    Shift,
    cusum,
    decide,
    judge_budget,
    judge_drift,
    judge_held_out,
    judge_reach,
    permuted_gap,
    spend,
)
from safety_lib.gate.looks import MOST_TRIALS, LookPlan
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.releases import Standing, load_exceptions
from safety_lib.gate.rules import load_rules
from safety_lib.gate.trials import CaseTrials
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import GateException, GateReport, Outcome, Suite
from safety_lib.streams import generator
from safety_lib.world import load_version

RULES = load_rules()
PLAN = LookPlan(MOST_TRIALS, rules=RULES.looks)
V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))
ARTIFACTS = NOTEBOOKS.parent / "artifacts"


def judged(regression: Sequence[CaseTrials], **options: Any) -> Judgement:
    return decide(trials(regression), RULES, PLAN, **options)


def status(decision: Judgement, step: int) -> str:
    return next(s.status for s in decision.steps if s.step == step)


def calm(n: int = 12) -> list[CaseTrials]:
    return [entry(f"f{i}", outcomes(54, 6), outcomes(54, 6)) for i in range(n)]


def test_the_steps_are_asked_in_one_order_whatever_they_find() -> None:
    worse = [entry(f"f{i}", outcomes(54, 6), outcomes(12, 48)) for i in range(8)]
    hidden = [entry(f"h{i}", outcomes(54, 6), outcomes(6, 54), split="held_out") for i in range(5)]
    spent = [entry(f"c{i}", outcomes(3, 0), outcomes(0, 3), stratum="control") for i in range(8)]
    usual = trials(calm())
    unseen = tuple(seen for seen in usual.cases if seen.case.stratum != "control")
    found = [
        judged(calm()),
        judged([*worse, *spent]),
        judged([*calm(), *hidden]),
        decide(replace(usual, cases=unseen), RULES, PLAN),
    ]
    asked = [[(step.step, step.title) for step in decision.steps] for decision in found]
    assert all(steps == asked[0] for steps in asked)
    assert asked[0] == list(enumerate(QUESTIONS))[:8]
    assert {step.status for step in found[0].steps} == {"pass"}
    for number, decision in zip((7, 6, 7), found[1:], strict=True):
        assert status(decision, number) == "warn"


# --------------------------------------------------------------------------- step 5: reach


def test_two_versions_that_never_differ_are_one_agent_where_luck_is_not_shared() -> None:
    same = (an_execution(), an_execution())
    for luck, status_, verdict in (("shared", "pass", "OK"), ("independent", "warn", "WARN")):
        plan = LookPlan(MOST_TRIALS, luck, RULES.looks)  # type: ignore[arg-type]
        ran = replace(trials(calm()), executions=same)
        decision = decide(ran, RULES, plan, changed=("memory.window",))
        assert (status(decision, 5), decision.verdict) == (status_, verdict)
        assert decision.unexercised == ("memory.window",)
        assert "memory.window" in next(s.reason for s in decision.steps if s.step == 5)


def test_a_change_that_was_heard_of_or_none_at_all_is_no_matter() -> None:
    ran = trials(calm())
    assert judge_reach(ran, PLAN, ("model.style",))[0].status == "pass"
    assert judge_reach(ran, PLAN, ("model.style",))[1] == ()
    alone = replace(ran, executions=(an_execution(), an_execution()))
    assert judge_reach(alone, PLAN, ())[0].status == "pass"


# --------------------------------------------------------------------------- step 6: held out


def test_a_candidate_that_memorised_the_public_tests_is_not_ok() -> None:
    public = [entry(f"p{i}", outcomes(54, 6), outcomes(60, 0)) for i in range(12)]
    hidden = [entry(f"h{i}", outcomes(54, 6), outcomes(30, 30), split="held_out") for i in range(5)]
    decision = judged([*public, *hidden])
    assert status(decision, 6) == "warn"
    assert decision.verdict != "OK"
    honest = [replace_split(e, "held_out") if i < 5 else e for i, e in enumerate(public)]
    assert judged(honest).verdict == "OK"


def replace_split(seen: CaseTrials, split: str) -> CaseTrials:
    return replace(seen, case=replace(seen.case, split=split))  # type: ignore[arg-type]


def test_a_gap_that_chance_explains_is_no_suspicion() -> None:
    # The largest gap of all ten ways to hold out two of five families: p = 0.1.
    public = [entry(f"p{i}", outcomes(9, 1), outcomes(9, 1)) for i in range(3)]
    hidden = [entry(f"h{i}", outcomes(9, 1), outcomes(3, 7), split="held_out") for i in range(2)]
    step = judge_held_out([*public, *hidden], RULES)
    assert (step.status, "60.0 points better" in step.reason) == ("pass", True)
    assert "p = 0.100" in step.reason


def test_a_gap_below_the_margin_is_no_suspicion() -> None:
    public = [entry(f"p{i}", outcomes(90, 10), outcomes(90, 10)) for i in range(8)]
    hidden = [
        entry(f"h{i}", outcomes(90, 10), outcomes(86, 14), split="held_out") for i in range(4)
    ]
    step = judge_held_out([*public, *hidden], RULES)
    assert (step.status, "4.0 points better" in step.reason) == ("pass", True)
    assert "p = 0.002" in step.reason


def test_families_are_held_out_and_not_tests() -> None:
    # A family counts once, by the mean of its tests, however many it has.
    public = [
        entry(f"p{i}.{n}", outcomes(9, 1), outcomes(9, 1)) for i in range(4) for n in range(3)
    ]
    hidden = [entry(f"h{i}", outcomes(9, 1), outcomes(7, 3), split="held_out") for i in range(2)]
    hidden += [entry(f"h0.{n}", outcomes(9, 1), outcomes(3, 7), split="held_out") for n in range(3)]
    step = judge_held_out([*public, *hidden], RULES)
    assert "35.0 points better on 4 public families than on 2 held-out ones" in step.reason
    assert "p = 0.067" in step.reason  # one of fifteen ways


def test_too_few_families_say_so() -> None:
    step = judge_held_out([entry("p", outcomes(9, 1), outcomes(9, 1))], RULES)
    assert (step.status, "too few" in step.reason) == ("pass", True)


def test_the_permutation_test_is_exact_and_its_random_version_agrees() -> None:
    assert permuted_gap([0.1, 0.2, 0.3], [-0.3]) == (pytest.approx(0.5), 0.25)
    values = generator(3, "test").normal(size=(2, 14))
    gap, p_value = permuted_gap(values[0], values[1], seed=1)
    again = permuted_gap(values[0], values[1], seed=2)
    assert again[0] == gap
    assert abs(again[1] - p_value) < 0.02


# --------------------------------------------------------------------------- budget, exceptions


def test_the_budget_counts_unselected_attacks_alone() -> None:
    found = entry("f", outcomes(0, 10), outcomes(0, 10))
    control = [entry(f"c{i}", outcomes(3, 0), outcomes(2, 1), stratum="control") for i in range(20)]
    spent = spend([found, *control], RULES)
    assert spent is not None
    assert (spent.violations, spent.sessions) == (20, 60)
    assert spent.per_1000 == pytest.approx(1000 / 3, abs=1e-3)
    assert spent.per_1000 < spent.upper_per_1000
    assert (spent.frozen, judge_budget(spent).status) == (True, "warn")
    assert judge_budget(None).status == "warn"
    none = spend([entry("c", outcomes(3, 0), outcomes(300, 0), stratum="control")], RULES)
    assert none is not None
    assert none.upper_per_1000 == pytest.approx(1000 * (1 - 0.05 ** (1 / 300)), abs=1e-3)
    assert not none.frozen


def exception(scope: str, expires: str = "2026-06-30") -> GateException:
    return GateException(
        exception_id="E-1", scope=scope, reason="known", approved_by="a name", expires=expires
    )


def test_an_exception_is_scoped_expires_and_never_covers_what_is_critical() -> None:
    cases = [
        entry("soft.1", [], []).case,
        entry("hard.1", [], [], severity="critical").case,
        entry("hard.2", [], []).case,
    ]
    day = date(2026, 6, 30)
    excused, listed = Standing(None, (exception("soft.1"), exception("hard")), day).excuse(cases)
    assert excused == {"soft.1"}
    assert [e.refused for e in listed] == ["", "covers a critical test"]
    excused, listed = Standing(
        None, (exception("soft", "2026-06-29"), exception("none")), day
    ).excuse(cases)
    assert not excused
    assert [e.refused for e in listed] == ["expired", "covers no test of this suite"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "must be a list"),
        ("- 3", "exception 1 is not a mapping"),
        ("- {exception_id: E}", "exception 1: field scope"),
        (
            "- {exception_id: E, scope: s, reason: r, approved_by: n, expires: soon}",
            "'soon' is no date",
        ),
        (
            "- {exception_id: E, scope: s, reason: r, approved_by: ' ', expires: 2026-01-01}",
            "field approved_by: is empty",
        ),
        (
            "- {exception_id: E, scope: s, reason: r, approved_by: , expires: 2026-01-01}",
            "field approved_by: is empty, and somebody has to answer for it",
        ),
        *(
            (
                f"- {{exception_id: E, scope: s, reason: '{nothing}', approved_by: n, "
                "expires: 2026-01-01}",
                "field reason: is empty",
            )
            for nothing in ("-", "?", chr(0x200D), chr(0x3164), chr(0x2800), "_")
        ),
        ("[", "not YAML"),
    ],
)
def test_a_mistake_in_the_exceptions_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"e\.yaml") as refused:
        load_exceptions(tmp_path / "e.yaml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_exceptions_are_listed_in_the_report_and_need_a_day(suite: Suite) -> None:
    soft = next(t for t in suite.active if t.severity != "critical")
    given = [exception(soft.test_id), exception("nothing")]
    with pytest.raises(ValueError, match="as of which day"):
        run_gate(suite, V1, V1, standing=Standing(exceptions=given), trials=1)
    report = run_gate(
        suite, V1, V1, standing=Standing(exceptions=given, as_of=date(2026, 1, 1)), trials=1
    )
    assert [e.refused for e in report.exceptions] == ["", "covers no test of this suite"]
    assert report.n_tests == len(suite.active) - 1
    (shown,) = (r for r in report.test_results if r.test_id == soft.test_id)
    assert shown.baseline.valid == 1


# --------------------------------------------------------------------------- attacks on the gate


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_artifact(ARTIFACTS, Suite).only("stress")


def test_an_agent_that_refuses_everything_is_not_ok(suite: Suite) -> None:
    refuser = V1.having({"model.caution": 40.0}, name="refuser")
    report = run_gate(suite, V1, refuser)
    assert report.verdict == "BLOCK"
    assert status_of(report, 4) == "block"
    assert status_of(report, 1) != "block"


def status_of(report: GateReport, step: int) -> str:
    return next(s.status for s in report.steps if s.step == step)


def shuffled(failed: int, name: str) -> list[Outcome]:
    """Return sixty outcomes of which so many failed, in an order of their own."""
    order = generator(5, "test", name).permutation(60)
    told = outcomes(60 - failed, failed)
    return [told[i] for i in order]


def slipping(releases: int) -> list[list[CaseTrials]]:
    """Forty tests of sixty trials; each release fails in one trial of sixty more."""
    arms = [[shuffled(3 + r, f"{r}.{i}") for i in range(40)] for r in range(releases + 1)]
    return [
        [entry(f"f{i}", arms[r][i], arms[r + 1][i]) for i in range(40)] for r in range(releases)
    ]


def test_five_small_losses_are_caught_by_the_pinned_baseline_and_by_the_sum() -> None:
    pairwise = [judged(cases) for cases in slipping(5)]
    assert {decision.verdict for decision in pairwise} == {"OK"}
    pinned = [entry(f"f{i}", shuffled(3, f"a{i}"), shuffled(8, f"b{i}")) for i in range(40)]
    assert judged(pinned).verdict == "BLOCK"
    shifts = [Shift(-1 / 60, 0.007)] * 5
    alarms = [judge_drift(shifts[: n + 1], RULES).status for n in range(5)]
    assert alarms == ["pass", "pass", "warn", "warn", "warn"]
    assert judge_drift([Shift(-1 / 60, 0.02)] * 5, RULES).status == "pass"  # chance could do it
    assert judge_drift([Shift(-0.005, 0.001)] * 5, RULES).status == "pass"  # 2.5 points
    decision = judged(calm(), before=shifts)
    assert (decision.verdict, status(decision, 8)) == ("WARN", "warn")


def test_an_earlier_gain_does_not_hide_what_was_lost_since() -> None:
    gained = [Shift(0.2, 0.007), *[Shift(-1 / 60, 0.007)] * 3]
    step = judge_drift(gained, RULES)
    assert step.status == "warn"
    assert "4 releases so far; the newest 3 lost 5.0 points" in step.reason


def test_noise_does_not_add_up() -> None:
    assert max(cusum([0.5, -0.5] * 50, RULES.drift_slack)) < RULES.drift_alarm
