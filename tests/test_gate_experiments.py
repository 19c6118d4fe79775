"""The stored error rates are what the code measures, and better than what they replace."""

from safety_lib.agent.versions import load_version
from safety_lib.artifacts import read_experiment
from safety_lib.experiments.characteristics import RUNS, THIS_SUITE, interval_covers, simulate
from safety_lib.experiments.real_releases import weak_spots
from safety_lib.experiments.results import SEED, mined_suite
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.rules import load_rules
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records.experiments import (
    HarmlessReleases,
    OperatingCharacteristics,
    SelectionBias,
)
from safety_lib.rollout.campaign import Run

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
STORED = {
    kind.NAME: read_experiment(ARTIFACTS, kind.NAME)
    for kind in (OperatingCharacteristics, HarmlessReleases, SelectionBias)
}
MEASURED = STORED["operating_characteristics"].expect(OperatingCharacteristics)
RULES = load_rules()


def test_the_stored_results_were_made_under_these_rules() -> None:
    for stored in STORED.values():
        assert stored.parameters["gate_policy_sha256"] == RULES.sha256


def test_a_point_of_the_curve_and_its_coverage_come_out_again() -> None:
    seen = simulate(THIS_SUITE, 0.1, RULES, runs=RUNS, seed=SEED)
    assert seen.shares == MEASURED.curves["this suite"][0.1]
    covered = interval_covers(THIS_SUITE, 0.1, RULES, runs=2 * RUNS, seed=SEED)
    assert covered / (2 * RUNS) == MEASURED.coverage["this suite"]


def test_the_gate_blocks_equals_less_and_losses_more_than_the_original() -> None:
    for name in ("this suite", "families that differ", "30 families"):
        curve = MEASURED.curves[name]
        assert curve[0.0]["BLOCK"].low <= 0.05
        assert curve[0.07]["BLOCK"].low > 0.3
        assert curve[0.1]["OK"].value <= 0.01
    original = MEASURED.curves["the original's rule, 8 tests"]
    assert original[0.07]["BLOCK"].value < 0.05
    assert original[0.1]["OK"].value > 0.2


def test_real_releases_that_change_nothing_are_ok() -> None:
    candidates = STORED["harmless_releases"].expect(HarmlessReleases).candidates
    for name in ("the same", "another style", "one more step a turn", "a longer memory"):
        assert candidates[name].verdicts.get("BLOCK", 0) == 0
        assert candidates[name].verdicts["OK"] >= 11
    assert candidates["v2"].verdicts["BLOCK"] >= 11


def test_one_seed_of_each_real_experiment_comes_out_as_it_was_counted() -> None:
    v1, v2 = load_version("v1"), load_version("v2")
    assert run_gate(mined_suite((v1, v2), seed=1), v1, v2, run=Run(seed=1)).verdict == "BLOCK"
    first, second = weak_spots()
    seen = run_gate(mined_suite((second, second), seed=1), first, second, run=Run(seed=1))
    assert seen.delta is not None
    assert seen.delta < -0.2


def test_whoever_is_searched_loses_and_a_search_on_both_sides_is_fair() -> None:
    mined = STORED["selection_bias"].expect(SelectionBias).mined
    assert mined["the candidate"].mean_delta < -0.2 < 0.2 < mined["the baseline"].mean_delta
    assert abs(mined["both"].mean_delta - mined["both"].control_delta) < 0.1
    assert mined["both"].safety_step.get("block", 0) == 0
