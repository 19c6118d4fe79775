"""The gate: what it decides, what it refuses to decide, and what it can prove."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.agent.versions import load_version
from safety_lib.gate.decide import compare, decide
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import Case, CaseTrials, Trials
from safety_lib.records import Execution, GateReport, Outcome, Stratum, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.stress.discovery import discover

V1, V2, V3 = (load_version(name) for name in ("v1", "v2", "v3"))
RULES = load_rules()


def case(
    family: str, base: Sequence[Outcome], cand: Sequence[Outcome], stratum: Stratum = "control"
) -> CaseTrials:
    described = Case(f"{family}-{id(base)}", family, stratum, family, "x", "r", "high", len(base))
    return CaseTrials(described, list(base), list(cand))


def ran(errors: int = 0, conversations: int = 100, calls: int = 200) -> Execution:
    return Execution(
        version="v",
        config_sha256="c",
        conversations=conversations,
        model_calls=calls,
        errors=errors,
        transcript_sha256="t",
    )


def outcomes(passed: int, failed: int) -> list[Outcome]:
    return ["safe"] * passed + ["violation"] * failed


def trials(
    losses: Sequence[int], benign: Sequence[int] = (0,) * 8, proof: Execution | None = None
) -> Trials:
    """Ten trials a test, one test a family; the candidate loses so many of them."""
    cases = [
        case(f"f{i}", outcomes(9, 1), outcomes(9 - loss, 1 + loss), "candidate_found")
        for i, loss in enumerate(losses)
    ]
    cases += [
        case(f"b{i}", outcomes(10, 0), outcomes(10 - loss, loss), "benign")
        for i, loss in enumerate(benign)
    ]
    cases += [case(f"c{i}", outcomes(3, 0), outcomes(3, 0)) for i in range(8)]
    return Trials(tuple(cases), (proof or ran(), proof or ran()))


def test_a_large_loss_in_all_families_blocks() -> None:
    assert decide(trials([4] * 8), RULES).verdict == "BLOCK"


def test_no_difference_is_ok() -> None:
    assert decide(trials([0] * 12), RULES).verdict == "OK"


def test_a_gain_is_ok() -> None:
    assert decide(trials([0, 0, 0, -1] * 4), RULES).verdict == "OK"


def test_a_large_loss_in_four_families_cannot_be_significant_and_warns() -> None:
    # 1/16 is the smallest p that four families can give.
    decision = decide(trials([5] * 4), RULES)
    assert decision.safety is not None and decision.safety.p_value == pytest.approx(1 / 16)
    assert decision.verdict == "WARN"


def test_not_significant_is_not_ok() -> None:
    decision = decide(trials([3, -1, 2, -1, 2, -1, -1, -1]), RULES)
    assert decision.safety is not None and decision.safety.p_value > 0.05
    assert decision.verdict == "WARN"
    assert "families would settle it" in decision.reasons[0]


def test_refusing_everything_blocks_on_usefulness() -> None:
    decision = decide(trials([-1] * 8, benign=[10] * 8), RULES)
    assert decision.verdict == "BLOCK"
    assert "benign" in decision.reasons[0]


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (ran(conversations=0, calls=0), "never ran"),
        (ran(calls=0), "never ran"),
        (ran(errors=11), "were errors"),
    ],
)
def test_a_run_that_proves_nothing_has_no_verdict(proof: Execution, said: str) -> None:
    decision = decide(trials([0] * 8, proof=proof), RULES)
    assert decision.verdict is None
    assert said in decision.reasons[0]


def test_an_empty_suite_has_no_verdict() -> None:
    assert decide(trials([]), RULES).verdict is None


def test_one_family_has_no_verdict() -> None:
    same = case("f", outcomes(9, 1), outcomes(9, 1), "candidate_found")
    benign = [case(f"b{i}", outcomes(5, 0), outcomes(5, 0), "benign") for i in range(3)]
    decision = decide(Trials((same, same, *benign), (ran(), ran())), RULES)
    assert decision.verdict is None


def test_an_error_removes_its_pair_and_nothing_else() -> None:
    clean = [case(f"f{i}", outcomes(9, 1), outcomes(6, 4)) for i in range(6)]
    with_errors = [
        case(f"f{i}", ["error", *outcomes(9, 1)], ["safe", *outcomes(6, 4)]) for i in range(6)
    ]
    assert compare(clean, RULES) == compare(with_errors, RULES)


def test_undetermined_trials_never_count() -> None:
    unclear = [case(f"f{i}", ["undetermined"] * 3, outcomes(3, 0)) for i in range(6)]
    assert compare(unclear, RULES) is None


def test_zero_difference_does_not_claim_certainty() -> None:
    seen = compare([case(f"f{i}", outcomes(10, 0), outcomes(10, 0)) for i in range(8)], RULES)
    assert seen is not None
    assert seen.ci_low < 0 < seen.ci_high
    assert seen.lower == pytest.approx(-(1 - 0.05 ** (1 / 80)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 9), min_size=2, max_size=14))
def test_the_numbers_are_coherent(losses: list[int]) -> None:
    seen = compare([c for c in trials(losses).cases if c.case.stratum != "benign"], RULES)
    assert seen is not None
    assert seen.ci_low <= seen.delta <= seen.ci_high
    assert seen.ci_low <= seen.lower <= seen.delta
    assert 0 < seen.p_value <= 1
    assert seen.delta == pytest.approx(seen.candidate_pass_rate - seen.baseline_pass_rate, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 0), min_size=6, max_size=14))
def test_no_change_or_improvement_never_blocks(losses: list[int]) -> None:
    assert decide(trials(losses), RULES).verdict != "BLOCK"


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
def suite() -> Suite:
    found = discover(V1, V2, run=Run(seed=7), rollouts=50).artifact()
    return generate_suite(found, {"v1": V1, "v2": V2}, run=Run(seed=7), replays=10)


@pytest.fixture(scope="module")
def blocked(suite: Suite) -> GateReport:
    return run_gate(suite, V1, V2, run=Run(seed=7), trials=5)


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


def test_strata_are_reported_apart(blocked: GateReport) -> None:
    assert {"candidate_found", "control", "benign"} <= {s.stratum for s in blocked.strata}


def test_a_suite_under_another_policy_is_refused(suite: Suite) -> None:
    with pytest.raises(ValueError, match="another policy"):
        run_gate(suite.model_copy(update={"policy_sha256": "0"}), V1, V2, trials=1)


def test_twenty_seeds_of_the_whole_way() -> None:
    verdicts: dict[str, list[str | None]] = {"v1": [], "v2": [], "v3": []}
    for seed in range(100, 120):
        found = discover(V1, V2, run=Run(seed=seed), rollouts=50).artifact()
        made = generate_suite(found, {"v1": V1, "v2": V2}, run=Run(seed=seed))
        for version in (V1, V2, V3):
            report = run_gate(made, V1, version, run=Run(seed=seed))
            verdicts[version.version].append(report.verdict)
    # Out of 20, 17 is what a true share of 95% stays above in 98 of 100 runs of this test.
    assert verdicts["v1"].count("OK") >= 17
    assert verdicts["v2"].count("BLOCK") >= 17
    assert verdicts["v3"].count("OK") >= 17
    assert verdicts["v1"].count("BLOCK") + verdicts["v3"].count("BLOCK") == 0
    assert not any(v is None for row in verdicts.values() for v in row)


def test_numbers_are_finite(blocked: GateReport) -> None:
    for value in (blocked.delta, blocked.ci_low, blocked.ci_high, blocked.p_value):
        assert value is not None and math.isfinite(value)
