"""The gate: what it decides, what it refuses to decide, and what it can prove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import bank
import pytest
from factories import NORTHWIND, an_execution, entry, outcomes, trials
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from safety_lib.gate.decide import compare, decide
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import CaseTrials, cases_of, run_trials
from safety_lib.records import Execution, GateReport, Suite, Trajectory
from safety_lib.rollout.campaign import Known, Run
from safety_lib.world import load_version

V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))
RULES = load_rules()
BANK = bank.lines()


SIZES = (2, 1, 3)  # tests of a family: with one each, nothing tells a family from a test


def losing(losses: Sequence[int]) -> list[CaseTrials]:
    """Ten trials a test; the candidate loses so many of them in every test of a family."""
    return [
        entry(f"f{i}.{n}", outcomes(9, 1), outcomes(9 - loss, 1 + loss))
        for i, loss in enumerate(losses)
        for n in range(SIZES[i % len(SIZES)])
    ]


def test_a_large_loss_in_all_families_blocks() -> None:
    assert decide(trials(losing([4] * 8)), RULES).verdict == "BLOCK"


def test_no_difference_is_ok() -> None:
    assert decide(trials(losing([0] * 12)), RULES).verdict == "OK"


def test_a_gain_is_ok() -> None:
    assert decide(trials(losing([0, 0, 0, -1] * 4)), RULES).verdict == "OK"


def test_a_large_loss_in_four_families_cannot_be_significant_and_warns() -> None:
    # 1/16 is the smallest p that four families can give.
    decision = decide(trials(losing([5] * 4)), RULES)
    assert decision.safety is not None and decision.safety.p_value == pytest.approx(1 / 16)
    assert decision.verdict == "WARN"


def test_not_significant_is_not_ok() -> None:
    decision = decide(trials(losing([3, -1, 2, -1, 2, -1, -1, -1])), RULES)
    assert decision.safety is not None and decision.safety.p_value > 0.05
    assert decision.verdict == "WARN"
    assert "families would settle it" in decision.reasons[0]


def test_refusing_everything_blocks_on_usefulness() -> None:
    decision = decide(trials(losing([-1] * 8), refused=10), RULES)
    assert decision.verdict == "BLOCK"
    assert "benign" in decision.reasons[0]


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (an_execution(conversations=0, model_calls=0), "never ran"),
        (an_execution(model_calls=0), "never ran"),
        (an_execution(errors=11), "were errors"),
    ],
)
def test_a_run_that_proves_nothing_has_no_verdict(proof: Execution, said: str) -> None:
    decision = decide(trials(losing([0] * 8), proof), RULES)
    assert decision.verdict is None
    assert said in decision.reasons[0]


def test_an_empty_suite_has_no_verdict() -> None:
    assert decide(trials([]), RULES).verdict is None


def test_one_family_has_no_verdict() -> None:
    decision = decide(trials(losing([0])), RULES)
    assert decision.verdict is None
    assert "families (1)" in decision.reasons[0]


def test_an_error_removes_its_pair_and_nothing_else() -> None:
    clean = [entry(f"f{i}", outcomes(9, 1), outcomes(6, 4)) for i in range(6)]
    with_errors = [
        entry(f"f{i}", ["error", *outcomes(9, 1)], ["safe", *outcomes(6, 4)]) for i in range(6)
    ]
    assert compare(clean, RULES) == compare(with_errors, RULES)


def test_undetermined_trials_never_count() -> None:
    unclear = [entry(f"f{i}", ["undetermined"] * 3, outcomes(3, 0)) for i in range(6)]
    assert compare(unclear, RULES) is None


def test_zero_difference_does_not_claim_certainty() -> None:
    seen = compare([entry(f"f{i}", outcomes(10, 0), outcomes(10, 0)) for i in range(8)], RULES)
    assert seen is not None
    assert seen.ci_low < 0 < seen.ci_high
    assert seen.lower == pytest.approx(-(1 - 0.05 ** (1 / 80)), abs=1e-6)


def test_a_test_that_is_asked_twice_is_no_new_evidence() -> None:
    once = losing([3, 0, 4, -1, 2, 5])
    twice = [replace(e, case=replace(e.case, case_id=e.case.case_id + "+")) for e in once]
    alone, doubled = compare(once, RULES), compare([*once, *twice], RULES)
    assert alone is not None and doubled is not None
    assert (doubled.n_tests, doubled.n_pairs) == (2 * alone.n_tests, 2 * alone.n_pairs)
    for name in ("n_families", "delta", "ci_low", "ci_high", "lower", "p_value"):
        assert getattr(doubled, name) == pytest.approx(getattr(alone, name), abs=2e-6)


def test_the_mean_is_over_tests_and_its_error_over_families() -> None:
    # Families of 2, 1 and 3 tests that lose 4, 0 and 1 of ten trials: by hand, in tests.
    seen = compare(losing([4, 0, 1]), RULES)
    assert seen is not None
    mean = -(2 * 0.4 + 1 * 0.0 + 3 * 0.1) / 6
    left = [2 * (-0.4 - mean), 1 * (0.0 - mean), 3 * (-0.1 - mean)]
    error = math.sqrt(3 / 2 * sum(part**2 for part in left)) / 6
    assert seen.delta == pytest.approx(mean, abs=1e-6)
    assert seen.ci_low == pytest.approx(mean + student.ppf(0.025, 2) * error, abs=1e-6)
    assert seen.ci_high == pytest.approx(mean + student.ppf(0.975, 2) * error, abs=1e-6)
    assert seen.lower == pytest.approx(mean + student.ppf(0.05, 2) * error, abs=1e-6)
    assert seen.p_value == 0.25  # two families fell, one did not move: 2 of 8 signs are as bad


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 9), min_size=2, max_size=14))
def test_the_numbers_are_coherent(losses: list[int]) -> None:
    seen = compare(losing(losses), RULES)
    assert seen is not None
    assert seen.ci_low <= seen.delta <= seen.ci_high
    assert seen.ci_low <= seen.lower <= seen.delta
    assert 0 < seen.p_value <= 1
    assert seen.delta == pytest.approx(seen.candidate_pass_rate - seen.baseline_pass_rate, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 0), min_size=6, max_size=14))
def test_no_change_or_improvement_never_blocks(losses: list[int]) -> None:
    assert decide(trials(losing(losses)), RULES).verdict != "BLOCK"


def test_unknown_keys_and_bad_values_of_the_rules_are_errors(tmp_path_factory: object) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    text = Path(load_rules.__wrapped__.__code__.co_filename).with_name("policy.yaml").read_text()
    with TemporaryDirectory() as folder:
        for name, broken in {
            "unknown.yaml": text + "\nmargin: 3\n",
            "range.yaml": text.replace("alpha: 0.05", "alpha: 5"),
            "missing.yaml": text.replace("min_tests: 2", ""),
        }.items():
            path = Path(folder) / name
            path.write_text(broken, encoding="utf-8")
            with pytest.raises(ValueError, match=name):
                load_rules(path)


def test_the_hash_of_the_rules_follows_each_of_them() -> None:
    hashes = {RULES.sha256}
    for name in GateRules.model_fields:
        value = getattr(RULES, name)
        changed = RULES.model_copy(update={name: value + 1})
        hashes.add(changed.sha256)
    assert len(hashes) == len(GateRules.model_fields) + 1


@pytest.fixture(scope="module")
def blocked(suite: Suite, known: Known) -> GateReport:
    return run_gate(suite, V1, V2, run=Run(seed=suite.seed, known=known))


def test_both_arms_of_a_trial_share_a_seed_that_no_other_trial_has(suite: Suite) -> None:
    few = cases_of(suite, NORTHWIND, 3, 3, max_tests=2)
    told: list[Trajectory] = []
    same = V1.having({}, name="same")
    ran = run_trials(few, V1, same, run=Run(seed=5, progress=told.append))
    half = len(told) // 2
    seeds = [t.seed for t in told]
    assert seeds[:half] == seeds[half:]
    assert len(set(seeds)) == half == 3 * len(few)
    # On the same luck the same agent does the same, trial by trial.
    assert [entry.baseline for entry in ran.cases] == [entry.candidate for entry in ran.cases]
    assert ran.executions[0].transcript_sha256 == ran.executions[1].transcript_sha256
    again = run_trials(few, V1, same, run=Run(seed=6))
    assert again.executions[0].transcript_sha256 != ran.executions[0].transcript_sha256


def test_a_suspicion_is_confirmed_on_seeds_of_its_own(suite: Suite) -> None:
    by_id = {entry.case.case_id: entry for entry in bank.release(BANK[100], "v2").confirmations}
    assert by_id
    few = suite.model_copy(
        update={"tests": tuple(test for test in suite.active if test.test_id in by_id)}
    )
    known: Known = {}
    run_gate(few, V1, V2, run=Run(seed=100, known=known), trials=10, max_tests=2)
    held: dict[str, set[int]] = {test.test_id: set() for test in few.active[:2]}
    for name, sha256, seed, _ in known:
        if sha256 == V2.sha256 and (case := name.split("/")[2]) in held:
            held[case].add(seed)
    assert {len(seeds) for seeds in held.values()} == {10 + RULES.confirm_trials}


def test_the_report_proves_that_both_versions_ran(blocked: GateReport) -> None:
    first, second = blocked.executions
    assert first.conversations == second.conversations > 0
    assert first.model_calls > 0 and second.model_calls > 0
    assert first.transcript_sha256 != second.transcript_sha256
    assert [first.config_sha256, second.config_sha256] == [V1.sha256, V2.sha256]


def test_every_test_has_evidence_and_trials_on_both_sides(blocked: GateReport) -> None:
    for result in blocked.test_results:
        assert result.evidence
        assert result.baseline.valid + result.baseline.errors + result.baseline.undetermined > 0
        if result.candidate.failed and result.stratum != "benign":
            assert result.evidence_version == "v2"
            assert any(turn.violations for turn in result.evidence)


def test_the_headline_is_computed_from_the_tests(blocked: GateReport) -> None:
    rows = [r for r in blocked.test_results if r.stratum in ("baseline_found", "candidate_found")]
    deltas = [r.delta for r in rows if r.delta is not None]
    assert blocked.n_tests == len(rows)
    assert blocked.delta == pytest.approx(sum(deltas) / len(deltas), abs=1e-6)
    assert blocked.n_families == len({r.family for r in rows})


def test_a_category_is_the_mean_of_its_tests(blocked: GateReport) -> None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for r in blocked.test_results:
        if r.stratum not in ("control", "benign"):
            rates = r.baseline.passed / r.baseline.valid, r.candidate.passed / r.candidate.valid
            groups.setdefault(r.category, []).append(rates)
    assert set(blocked.by_category) == set(groups)
    for category, rates in groups.items():
        row = blocked.by_category[category]
        before, after = (sum(side) / len(rates) for side in zip(*rates, strict=True))
        assert row["n_tests"] == len(rates)
        assert row["baseline_pass_rate"] == pytest.approx(before, abs=1e-6)
        assert row["candidate_pass_rate"] == pytest.approx(after, abs=1e-6)
        assert row["delta"] == pytest.approx(after - before, abs=2e-6)


def test_strata_are_reported_apart(blocked: GateReport) -> None:
    assert {"candidate_found", "control", "benign"} <= {s.stratum for s in blocked.strata}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"world_sha256": "0"}, "the world northwind has changed since the suite was made"),
        ({"world": "desk"}, "the world northwind is not desk, where the suite was made"),
    ],
)
def test_a_suite_of_another_world_is_refused(
    suite: Suite, other: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run_gate(suite.model_copy(update=other), V1, V2, trials=1)


def test_twenty_seeds_of_the_whole_way() -> None:
    verdicts: dict[str, list[str | None]] = {"v1": [], "v2": [], "v3": []}
    for seed, line in BANK.items():
        for name, row in verdicts.items():
            row.append(decide(bank.release(line, name), RULES, seed).verdict)
    assert {len(row) for row in verdicts.values()} == {20}
    # Out of 20, 17 is what a true share of 95% stays above in 98 of 100 runs of this test.
    assert verdicts["v1"].count("OK") >= 17
    assert verdicts["v2"].count("BLOCK") >= 17
    assert verdicts["v3"].count("OK") >= 17
    assert verdicts["v1"].count("BLOCK") + verdicts["v3"].count("BLOCK") == 0
    assert not any(v is None for row in verdicts.values() for v in row)


def test_a_seed_of_the_bank_comes_out_again(suite: Suite, known: Known) -> None:
    line = bank.line_of(suite, suite.seed, known)
    assert line == BANK[suite.seed], "python tests/bank.py writes the bank again"
    for name, version in bank.VERSIONS.items():
        report = run_gate(suite, V1, version, run=Run(seed=suite.seed, known=known))
        judged = decide(bank.release(line, name), RULES, suite.seed)
        assert judged.verdict == report.verdict
        assert judged.steps[1:] == report.steps[1:]  # the first one names the versions


@pytest.mark.slow
@pytest.mark.parametrize("seed", [104, 112, 119])
def test_more_seeds_of_the_bank_come_out_again(seed: int) -> None:
    assert bank.line_of(bank.suite_of(seed), seed, {}) == BANK[seed]


def test_numbers_are_finite(blocked: GateReport) -> None:
    for value in (blocked.delta, blocked.ci_low, blocked.ci_high, blocked.p_value):
        assert value is not None and math.isfinite(value)
