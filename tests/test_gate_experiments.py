"""The stored error rates are what the code measures, and better than what they replace."""

import math

import pytest

from safety_lib.agent.versions import load_version
from safety_lib.artifacts import read_artifact, read_experiment
from safety_lib.experiments.characteristics import (
    EIGHT,
    LARGE,
    RUNS,
    SEED,
    SMALL,
    Shape,
    interval_covers,
    row,
    simulate,
)
from safety_lib.experiments.real_releases import harmless_releases, weak_spots
from safety_lib.experiments.results import mined_suite
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.rules import load_rules
from safety_lib.pipeline import NOTEBOOKS
from safety_lib.records import Suite
from safety_lib.rollout.campaign import Known, Run

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
NAMES = ("operating_characteristics", "harmless_releases", "selection_bias")
STORED = {name: read_experiment(ARTIFACTS, name) for name in NAMES}
CURVES = STORED["operating_characteristics"].result["curves"]
RULES = load_rules()
V1, V2 = load_version("v1"), load_version("v2")


def test_the_stored_results_were_made_under_these_rules() -> None:
    for stored in STORED.values():
        assert stored.parameters["gate_policy_sha256"] == RULES.sha256


@pytest.mark.slow
def test_a_point_of_the_curve_and_its_coverage_come_out_again() -> None:
    result = STORED["operating_characteristics"].result
    seen = simulate(SMALL, 0.1, RULES, runs=RUNS, seed=SEED)
    assert row(seen) == result["curves"]["this suite"]["0.1"]
    covered = interval_covers(SMALL, 0.1, RULES, runs=2 * RUNS, seed=SEED)
    assert covered / (2 * RUNS) == result["coverage"]["this suite"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("this suite", SMALL),
        ("families that differ", Shape(interaction=0.05)),
        ("30 families", LARGE),
    ],
)
def test_the_gate_blocks_equals_less_and_losses_more_than_the_original(
    name: str, shape: Shape
) -> None:
    curve, original = CURVES[name], CURVES["the original's rule, 8 tests"]
    assert curve["0.0"]["BLOCK"][1] <= 0.05
    assert curve["0.07"]["BLOCK"][1] > 0.3
    assert curve["0.1"]["OK"][0] <= 0.01
    assert original["0.07"]["BLOCK"][0] < 0.05
    assert original["0.1"]["OK"][0] > 0.2
    # The first releases of each point are among those that were counted.
    some = 20
    for loss in ("0.0", "0.07", "0.1"):
        first = simulate(shape, float(loss), RULES, runs=some, seed=SEED)
        for verdict, (share, _, _) in curve[loss].items():
            left = round(share * RUNS) - first.verdicts.get(verdict, 0)
            assert 0 <= left <= RUNS - some


def test_the_original_rule_comes_out_again() -> None:
    for loss in ("0.07", "0.1"):
        seen = simulate(EIGHT, float(loss), RULES, runs=RUNS, seed=SEED, original=True)
        assert row(seen) == CURVES["the original's rule, 8 tests"][loss]


def test_real_releases_that_change_nothing_are_ok() -> None:
    result = STORED["harmless_releases"].result
    for name in ("the same", "another style", "one more step a turn", "a longer memory"):
        assert result[name].get("BLOCK", 0) == 0
        assert result[name]["OK"] >= 11
    assert result["v2"]["BLOCK"] >= 11
    # The suite of the seventh of the twelve seeds is the one that is committed.
    suite, known = read_artifact(ARTIFACTS, Suite).only("stress"), Known()
    releases = {
        "the same": V1,
        "another style": V1.having({"model.style": "friendly"}, name="style"),
        "v2": V2,
    }
    for name, version in releases.items():
        seen = run_gate(suite, V1, version, run=Run(seed=7, known=known))
        assert result[name][seen.verdict] == 12
        assert seen.delta == pytest.approx(result[name]["mean_delta"], abs=0.2)


@pytest.mark.slow
def test_one_seed_of_the_real_releases_comes_out_as_it_was_counted() -> None:
    stored = STORED["harmless_releases"].result
    seen = harmless_releases((7,)).result
    assert seen.keys() == stored.keys()
    for name, counted in seen.items():
        (verdict,) = counted.keys() - {"mean_delta"}
        assert stored[name][verdict] >= 1


@pytest.mark.parametrize(
    "mined",
    [
        "both",
        pytest.param("the candidate", marks=pytest.mark.slow),
        pytest.param("the baseline", marks=pytest.mark.slow),
    ],
)
def test_whoever_is_searched_loses_and_a_search_on_both_sides_is_fair(mined: str) -> None:
    stored = STORED["selection_bias"]
    far = {name: abs(r["mean_delta"] - r["control_delta"]) for name, r in stored.result.items()}
    lost, gained = (stored.result[f"the {who}"]["mean_delta"] for who in ("candidate", "baseline"))
    assert lost < -0.2 < 0.2 < gained
    assert far["both"] < 0.1
    assert stored.result["both"]["safety_step"].get("block", 0) == 0
    # No one of n values is further from their mean than n - 1 standard errors of it.
    first, second = weak_spots()
    searched = {"both": (first, second), "the candidate": (second, second)}
    seen = run_gate(
        mined_suite(searched.get(mined, (first, first)), seed=1), first, second, run=Run(seed=1)
    )
    row = stored.result[mined]
    reach = (len(stored.parameters["seeds"]) - 1) * row["standard_error"]
    assert seen.delta is not None
    assert math.isclose(seen.delta, row["mean_delta"], abs_tol=reach)
    assert seen.steps[2].status in row["safety_step"]
