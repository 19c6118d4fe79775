"""What a suite can see, against the decision itself on simulated trials."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from safety_lib.experiments.simulated_gates import FAMILY, RATES, Truth, everywhere, simulate_gates
from safety_lib.gate.looks import LookPlan
from safety_lib.gate.visible import VisibleDesign, VisibleLoss, block_chance, visible_loss

NAMES = [f"f{f}" for f in FAMILY]
DESIGN = VisibleDesign(NAMES, 1 - RATES, np.zeros(RATES.size), LookPlan())
SHARED = replace(DESIGN, plan=LookPlan(luck="shared"))


def test_the_more_a_loss_is_confined_the_larger_it_must_be():
    seen = visible_loss(DESIGN, seed=0, runs=200)
    assert seen.spread is not None and seen.half is not None and seen.one is not None
    assert 0.03 < seen.spread < seen.half < seen.one < 0.5
    assert str(seen).startswith("80% power: ")


def test_shared_luck_and_more_trials_show_smaller_losses():
    few = replace(DESIGN, plan=LookPlan(cap=10))

    def smallest(design: VisibleDesign) -> VisibleLoss:
        return visible_loss(design, seed=0, runs=150)

    at_ten, at_sixty, shared = smallest(few), smallest(DESIGN), smallest(SHARED)
    for where in ("spread", "half", "one"):
        assert getattr(at_ten, where) > getattr(at_sixty, where) >= getattr(shared, where) - 0.03
    # What differs by luck alone costs some of the gain.
    noisy = smallest(replace(SHARED, flips=np.full(RATES.size, 0.2)))
    assert noisy.spread is not None and shared.spread is not None
    assert noisy.spread > shared.spread


def test_a_loss_that_is_soon_shown_to_be_inside_the_margin_is_not_seen():
    # One point on shared luck is beyond doubt at 60 trials, and settled long before.
    assert block_chance(SHARED, 0.01, "spread", seed=4) < 0.3
    assert block_chance(SHARED, 0.10, "spread", seed=4) > 0.99


def test_a_suite_of_one_trial_cannot_see_a_loss_in_one_family():
    alone = replace(DESIGN, plan=LookPlan(cap=1))
    seen = visible_loss(alone, seed=0, runs=100)
    assert seen.one is None
    assert "no loss in one alone" in str(seen)


def test_equal_versions_are_blocked_as_rarely_as_the_policy_says():
    for design in (DESIGN, SHARED):
        runs = 2000
        blocked = block_chance(design, 0.0, "spread", seed=1, runs=runs) * runs
        assert binom.sf(blocked - 1, runs, 0.013) > 0.001


def test_the_chance_at_the_smallest_loss_is_the_power():
    seen = visible_loss(DESIGN, seed=2, runs=300)
    for where in ("spread", "half", "one"):
        loss = getattr(seen, where)
        assert block_chance(DESIGN, loss, where, seed=3, runs=1000) == pytest.approx(0.8, abs=0.07)


@pytest.mark.slow
def test_the_simulation_agrees_with_the_decision():
    runs = 300
    found = simulate_gates(Truth("agree", everywhere(0.05)), runs)
    suite_alone = found.verdicts["BLOCK"] / runs
    expected = block_chance(DESIGN, 0.05, "spread", seed=0, runs=3000)
    assert suite_alone == pytest.approx(expected, abs=0.09)


def test_power_is_a_share():
    with pytest.raises(ValueError, match="power must lie between 0 and 1"):
        visible_loss(DESIGN, seed=0, power=1.0)
