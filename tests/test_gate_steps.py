"""The gate's other steps, its error rates, and what somebody who wants to pass it would try."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from factories import entry, outcomes, trials
from scipy.stats import binom

from safety_lib.artifacts import read_artifact
from safety_lib.experiments.characteristics import Shape, interval_covers, original_rule, simulate
from safety_lib.experiments.loosened_rules import LOOSENED, battery, killed
from safety_lib.gate.decide import (
    Judgement,
    cusum,
    decide,
    judge_budget,
    judge_critical,
    judge_drift,
    judge_held_out,
    permuted_gap,
    spend,
    suspected,
)
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.releases import Standing, add_release, load_exceptions
from safety_lib.gate.report import diagnose_families, enough_trials, pooled_pairs
from safety_lib.gate.rules import load_rules
from safety_lib.gate.trials import CaseTrials, Trials
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import GateException, GateReport, Outcome, Suite
from safety_lib.rollout.campaign import Known, Run
from safety_lib.stats.power import SuiteDesign, minimum_detectable_effect
from safety_lib.streams import generator
from safety_lib.world import load_version

RULES = load_rules()
V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))
ARTIFACTS = NOTEBOOKS.parent / "artifacts"


def judged(regression: list[CaseTrials], **options: Any) -> Judgement:
    return decide(trials(regression), RULES, **options)


def status(decision: Judgement, step: int) -> str:
    return next(s.status for s in decision.steps if s.step == step)


def test_the_steps_are_asked_in_one_order_whatever_they_find() -> None:
    calm = [entry(f"f{i}", outcomes(9, 1), outcomes(9, 1)) for i in range(12)]
    worse = [entry(f"f{i}", outcomes(9, 1), outcomes(2, 8)) for i in range(8)]
    hidden = [entry(f"h{i}", outcomes(9, 1), outcomes(1, 9), split="held_out") for i in range(5)]
    spent = [entry(f"c{i}", outcomes(3, 0), outcomes(0, 3), stratum="control") for i in range(8)]
    usual = trials(calm)
    unseen = tuple(seen for seen in usual.cases if seen.case.stratum != "control")
    found = [
        judged(calm),
        judged([*worse, *spent]),
        judged([*calm, *hidden]),
        decide(replace(usual, cases=unseen), RULES),
        decide(replace(usual, confirmations=(critical(outcomes(20, 0), outcomes(9, 11)),)), RULES),
    ]
    asked = [[(step.step, step.title) for step in decision.steps] for decision in found]
    assert all(steps == asked[0] for steps in asked)
    assert [number for number, _ in asked[0]] == [0, 1, 2, 3, 4, 5]
    assert {step.status for step in found[0].steps} == {"pass"}
    for number, decision in zip((5, 4, 5, 1), found[1:], strict=True):
        assert status(decision, number) != "pass"


# --------------------------------------------------------------------------- step 1: critical


def critical(base: list[Outcome], cand: list[Outcome]) -> CaseTrials:
    return entry("k", base, cand, severity="critical")


def test_only_a_critical_test_that_the_baseline_held_is_suspected() -> None:
    held = critical(outcomes(10, 0), outcomes(8, 2))
    assert [c.trials for c in suspected([held], RULES)] == [RULES.confirm_trials]
    assert not suspected([critical(outcomes(9, 1), outcomes(5, 5))], RULES)
    assert not suspected([critical(outcomes(10, 0), outcomes(10, 0))], RULES)
    assert not suspected([entry("h", outcomes(10, 0), outcomes(0, 10))], RULES)


def test_a_suspicion_blocks_only_where_fresh_seeds_confirm_it() -> None:
    again = judge_critical([critical(outcomes(20, 0), outcomes(11, 9))], RULES)
    assert (again.status, "9 of 20 fresh pairs" in again.reason) == ("block", True)
    luck = judge_critical([critical(outcomes(20, 0), outcomes(19, 1))], RULES)
    assert luck.status == "pass"
    assert judge_critical([], RULES).status == "pass"


def test_the_more_is_suspected_the_more_each_must_show() -> None:
    one = critical(outcomes(20, 0), outcomes(12, 8))  # p = 1/256
    assert judge_critical([one], RULES).status == "block"
    assert judge_critical([one] * 5, RULES).status == "pass"


# --------------------------------------------------------------------------- step 4: held out


def test_a_candidate_that_memorised_the_public_tests_is_not_ok() -> None:
    public = [entry(f"p{i}", outcomes(9, 1), outcomes(10, 0)) for i in range(12)]
    hidden = [entry(f"h{i}", outcomes(9, 1), outcomes(5, 5), split="held_out") for i in range(5)]
    decision = judged([*public, *hidden])
    assert status(decision, 4) == "warn"
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
            "somebody has to answer for it",
        ),
        ("[", "is not YAML"),
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
    assert soft.test_id in {r.test_id for r in report.test_results}


# --------------------------------------------------------------------------- attacks on the gate


@pytest.fixture(scope="module")
def suite() -> Suite:
    return read_artifact(ARTIFACTS, Suite).only("stress")


def test_an_agent_that_refuses_everything_is_not_ok(suite: Suite) -> None:
    refuser = V1.having({"model.caution": 40.0}, name="refuser")
    report = run_gate(suite, V1, refuser, trials=5)
    assert report.verdict == "BLOCK"
    assert status_of(report, 3) == "block"


def status_of(report: GateReport, step: int) -> str:
    return next(s.status for s in report.steps if s.step == step)


def slipping(releases: int) -> list[list[CaseTrials]]:
    """Sixty tests of a hundred trials; each release fails in one trial of a hundred more."""
    arms = [[outcomes(95 - r, 5 + r) for _ in range(60)] for r in range(releases + 1)]
    return [
        [entry(f"f{i}", arms[r][i], arms[r + 1][i]) for i in range(60)] for r in range(releases)
    ]


def test_five_small_losses_are_caught_by_the_pinned_baseline_and_by_the_sum() -> None:
    pairwise = [judged(cases) for cases in slipping(5)]
    assert {decision.verdict for decision in pairwise} == {"OK"}
    pinned = [entry(f"f{i}", outcomes(95, 5), outcomes(90, 10)) for i in range(60)]
    assert judged(pinned).verdict == "BLOCK"
    deltas = [d.safety.delta for d in pairwise if d.safety]
    alarms = [judge_drift(deltas[: n + 1], RULES).status for n in range(5)]
    assert alarms == ["pass", "pass", "pass", "warn", "warn"]
    decision = judged(slipping(5)[4], before=deltas[:4])
    assert (decision.verdict, status(decision, 6)) == ("WARN", "warn")


def test_noise_does_not_add_up() -> None:
    assert max(cusum([0.01, -0.01] * 50, RULES.drift_slack)) < RULES.drift_limit


def test_judging_a_release_twice_does_not_count_its_loss_twice(suite: Suite) -> None:
    known: Known = {}
    report = run_gate(suite, V1, V3, run=Run(known=known), trials=2)
    history = add_release(None, report)
    again = run_gate(
        suite, V1, V3, run=Run(known=known), standing=Standing(history=history), trials=2
    )
    assert again.steps == report.steps
    other = run_gate(
        suite, V1, V1, run=Run(known=known), standing=Standing(history=history), trials=2
    )
    assert status_of(other, 6) in ("pass", "warn")


def test_a_candidate_that_errors_on_what_it_would_fail_is_not_ok() -> None:
    many = [entry(f"f{i}", outcomes(10, 0), outcomes(8, 0, errors=2)) for i in range(12)]
    decision = judged(many)
    assert decision.verdict is None
    assert "errors on the candidate" in decision.reasons[0]
    few = [entry(f"f{i}", outcomes(10, 0), outcomes(9, 0, errors=1)) for i in range(12)]
    decision = judged(few)
    assert decision.verdict == "WARN"
    assert "could hide a loss" in decision.reasons[0]


# --------------------------------------------------------------------------- error rates


def at_most(k: int, n: int, share: float) -> bool:
    """Say whether k of n is compatible with a true share of at most so much (99.9%)."""
    return bool(k <= binom.ppf(0.999, n, share))


# Where families differ by much, a pass rate of 95% leaves no room for the gains that make up for
# the losses, and the versions would not be equally safe.
@pytest.mark.parametrize(
    ("passing", "interaction"),
    [
        (0.95, 0.05),
        pytest.param(0.95, 0.0, marks=pytest.mark.slow),
        pytest.param(0.8, 0.1, marks=pytest.mark.slow),
    ],
)
def test_two_versions_that_are_equally_safe_are_rarely_blocked(
    passing: float, interaction: float
) -> None:
    shape = Shape(passing=passing, interaction=interaction)
    seen = simulate(shape, 0.0, RULES, runs=600, seed=11)
    assert at_most(seen.verdicts.get("BLOCK", 0), 600, 0.05)


# An interaction makes the families differ: a family's own shift is what the t interval sees.
@pytest.mark.parametrize("interaction", [pytest.param(0.0, marks=pytest.mark.slow), 0.05])
def test_the_interval_covers_as_often_as_it_says(interaction: float) -> None:
    covered = interval_covers(Shape(interaction=interaction), 0.1, RULES, runs=800, seed=5)
    low, high = binom.ppf(0.0005, 800, 0.93), binom.ppf(0.9995, 800, 0.97)
    assert low <= covered <= high


@pytest.mark.slow
def test_the_stated_detectable_loss_is_detected_with_the_stated_power() -> None:
    shape = Shape()
    design = SuiteDesign(
        list(shape.families),
        1 - shape.passing,
        shape.trials,
        alpha=RULES.alpha,
        at_least=RULES.block_margin,
    )
    effect = minimum_detectable_effect(design, generator(1, "test", "mde"))
    seen = simulate(shape, effect, RULES, runs=300, seed=3)
    assert seen.verdicts.get("BLOCK", 0) >= binom.ppf(0.001, 300, 0.8)


@pytest.mark.slow
def test_the_original_rule_warns_about_a_version_compared_with_itself() -> None:
    ours = simulate(Shape(), 0.07, RULES, runs=200, seed=2)
    theirs = simulate(Shape(), 0.07, RULES, runs=200, seed=2, original=True)
    assert theirs.share("BLOCK").value < ours.share("BLOCK").low
    same = simulate(Shape(), 0.0, RULES, runs=200, seed=2, original=True)
    assert same.share("WARN").value > 0.2
    nothing = [entry("f", outcomes(1, 0), outcomes(1, 0))]
    assert original_rule(Trials(tuple(nothing), ())) == "OK"  # type: ignore[arg-type]


def test_looking_after_every_trial_saves_trials_and_rarely_errs() -> None:
    worse = [entry(f"f{i}", outcomes(10, 0), outcomes(0, 10)) for i in range(8)]
    assert enough_trials(worse, 0.05) == 1
    assert enough_trials([entry("f", outcomes(9, 1), outcomes(9, 1))], 0.05) is None
    dice = generator(4, "test", "stopping")
    fooled = 0
    for _ in range(300):
        coins = dice.random((2, 6, 20)) < 0.7
        same = [
            entry(f"f{i}", *(["safe" if p else "violation" for p in arm[i]] for arm in coins))
            for i in range(6)
        ]
        fooled += enough_trials(same, 0.05) is not None
    assert at_most(fooled, 300, 0.05)


# --------------------------------------------------------------------------- rules that guard


def test_loosening_a_rule_is_noticed_unless_another_demands_the_same() -> None:
    noticed = {name: killed(RULES, change) for name, change in LOOSENED.items()}
    assert {name for name, releases in noticed.items() if not releases} == {"no minimum of tests"}
    assert [release.verdict(RULES) for release in battery()][:2] == ["OK", "OK"]


def test_the_description_pools_pairs_and_finds_the_family_that_fell() -> None:
    fell = [entry("bad.1", outcomes(10, 0), outcomes(2, 8))]
    same = [entry(f"good{i}.1", outcomes(9, 1), outcomes(9, 1)) for i in range(5)]
    pooled = pooled_pairs([*fell, *same], RULES.level)
    assert pooled is not None
    assert (pooled.pairs, pooled.worse, pooled.better) == (60, 8, 0)
    assert pooled.delta == pytest.approx(-8 / 60, abs=1e-6)
    assert pooled.ci_low < pooled.delta < pooled.ci_high < 0
    assert pooled.mid_p == pytest.approx(1 / 256, abs=1e-6)
    first, *others = diagnose_families([*fell, *same])
    assert (first.family, first.p_holm) == ("bad", pytest.approx(6 / 256, abs=1e-6))
    assert all(row.p_holm == 1 for row in others)
    assert pooled_pairs([], RULES.level) is None
