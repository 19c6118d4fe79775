"""The experiments on searches: a slice of each comes out as stored, and says what it claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from safety_lib.artifacts import read_experiment
from safety_lib.experiments.calibration import (
    first_failures,
    hold_search,
    predict,
    run_next_scenarios_gain,
    run_undiscovered_prediction,
)
from safety_lib.figures.tables import predictions_table
from safety_lib.records.experiments import NextScenariosGain, UndiscoveredPrediction
from safety_lib.world import load_version

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
PREDICTION = read_experiment(ARTIFACTS, "undiscovered_prediction")
GAIN = read_experiment(ARTIFACTS, "next_scenarios_gain")


@pytest.mark.slow
def test_a_slice_of_the_predictions_comes_out_as_stored() -> None:
    kept = PREDICTION.expect(UndiscoveredPrediction)
    made = run_undiscovered_prediction(seeds=PREDICTION.parameters["seeds"][:1]).result
    assert made.planned.chao1_each == kept.planned.chao1_each[:1]
    assert made.shuffled.chao1_each == kept.shuffled.chao1_each[:1]


@pytest.mark.slow
def test_a_slice_of_the_suggestions_comes_out_as_stored() -> None:
    kept = GAIN.expect(NextScenariosGain)
    made = run_next_scenarios_gain(seeds=GAIN.parameters["seeds"][:8]).result
    assert made.suggested_each == kept.suggested_each[:8]


def test_what_is_stored_bears_out_what_the_modules_say() -> None:
    said = PREDICTION.expect(UndiscoveredPrediction)
    planned, shuffled = said.planned, said.shuffled
    # Exchangeable draws are predicted well; the plan finds sooner, so that less is left than said.
    assert shuffled.missing == pytest.approx(shuffled.missing_later, abs=0.05)
    assert planned.missing > planned.missing_later + 0.1
    assert planned.found > shuffled.found
    for order in (planned, shuffled):
        assert order.found < order.chao1 <= order.found_later + 1
        assert order.bound_held == said.searches
    assert GAIN.expect(NextScenariosGain).gain_over_plan.low > 0


def test_a_prediction_needs_a_future() -> None:
    held = hold_search(load_version("northwind/v2"), 20, seed=2)
    assert predict(held, 10).found >= 0
    for short in (0, 11):
        with pytest.raises(ValueError, match="at most half of 20 rollouts"):
            predict(held, short)


def test_every_way_gets_the_same_number_of_rollouts() -> None:
    counts = first_failures(load_version("northwind/v2"), budget=30, more=3, seed=4)
    assert set(counts) == {"suggested", "plan", "least tried"}
    assert all(0 <= n <= 3 for n in counts.values())


def test_the_table_shows_both_orders_with_what_was_said_and_what_came() -> None:
    table = predictions_table(PREDICTION)
    assert list(table.index) == ["planned", "shuffled"]
    assert (table["bound held"] == "20 of 20").all()
    assert table.loc["shuffled", "next is new, said"] == "38%"
