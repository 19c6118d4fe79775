import math

import numpy as np
import pytest
from scipy import stats

from safety_lib.stats.paired import sign_flip
from safety_lib.stats.power import SuiteDesign, cluster_power, minimum_detectable_effect


@pytest.mark.parametrize("families", [8, 14])
def test_simulated_power_is_that_of_the_test_itself(families):
    tests, trials, effect, runs = 4, 3, 0.12, 1_000
    rng = np.random.default_rng(5)
    detected = 0
    for _ in range(runs):
        broken = rng.beta(0.15 * 7 / 3, 0.85 * 7 / 3, families)
        before = rng.binomial(tests * trials, 0.2, families)
        after = rng.binomial(tests * trials, 0.2 + 0.8 * broken)
        detected += sign_flip((after - before) / trials, "greater").p_value <= 0.05
    found = cluster_power(
        SuiteDesign(np.full(families, tests), 0.2, trials), effect, rng, runs=runs
    )
    # Two independent simulations of the same chance: four standard errors.
    assert found == pytest.approx(detected / runs, abs=4 * math.sqrt(2 * 0.25 / runs))


MANY_TRIALS = 10**6  # the rates themselves, without luck


def test_the_rise_is_a_mean_over_tests():
    sizes, rates = [1, 2, 3, 6, 8, 9], [0.0, 0.9, 0.5, 0.1, 0.3, 0.2]
    for at_least, detected in ((0.148, 1), (0.152, 0)):
        rng = np.random.default_rng(0)
        found = cluster_power(
            SuiteDesign(sizes, rates, MANY_TRIALS, rho=0.0, at_least=at_least), 0.15, rng
        )
        assert found == detected
    room = np.dot(sizes, 1 - np.array(rates)) / np.sum(sizes)
    assert (
        cluster_power(SuiteDesign(sizes, rates, MANY_TRIALS, at_least=room - 0.002), room, rng) == 1
    )


def test_rho_spreads_the_effect_over_families():
    rng, at_least = np.random.default_rng(1), 0.45
    for rho in (0.1, 0.4):
        spread = 1 / rho - 1
        rises = stats.beta(0.3 * spread, 0.7 * spread).rvs((4_000, 2), random_state=rng).mean(1)
        found = cluster_power(
            SuiteDesign([1, 1], 0.0, MANY_TRIALS, rho=rho, alpha=0.9, at_least=at_least),
            0.3,
            rng,
            runs=4_000,
        )
        assert found == pytest.approx(np.mean(rises >= at_least), abs=4 * math.sqrt(0.5 / 4_000))


def test_false_alarms_without_effect_are_below_alpha():
    for families in (8, 48):
        sizes, rng = np.full(families, 4), np.random.default_rng(1)
        found = cluster_power(SuiteDesign(sizes, 0.2, 3), 0.0, rng, runs=2_000)
        assert 0.01 < found <= stats.binom.ppf(0.9995, 2_000, 0.05) / 2_000


def test_too_few_families_are_seen_to_be_too_few():
    # All of n families got worse: the exact p-value is 1 / 2^n.
    for families, detected in ((4, 0), (5, 1)):
        rng = np.random.default_rng(0)
        assert cluster_power(SuiteDesign(np.full(families, 3), 0.0, 5), 1.0, rng) == detected
    for families in (4, 10):
        design = SuiteDesign(np.full(families, 3), 0.0, 5, alpha=1 / 2**families)
        assert cluster_power(design, 1.0, rng) == 1
    # With 11 families the flips are random: the smallest p-value is 1 / (1 + flips).
    for flips, detected in ((18, 0), (19, 1)):
        found = cluster_power(
            SuiteDesign(np.full(11, 3), 0.0, 5), 1.0, np.random.default_rng(0), flips=flips
        )
        assert found == pytest.approx(detected, abs=0.1)


def test_a_baseline_that_fails_everything_cannot_get_worse():
    assert cluster_power(SuiteDesign(np.full(12, 3), 1.0, 5), 0.0, np.random.default_rng(0)) == 0


def test_more_families_detect_less_and_concentration_costs_power():
    def mde(families, trials=3, rho=0.0):
        rng = np.random.default_rng(2)
        return minimum_detectable_effect(
            SuiteDesign(np.full(families, 4), 0.2, trials, rho=rho), rng
        )

    assert mde(96) < mde(24) < mde(8) < 1
    assert mde(24, trials=10) < mde(24)
    assert mde(24, rho=0.8) > mde(24)
    assert mde(4) == math.inf


@pytest.mark.parametrize("power", [0.5, 0.8])
def test_minimum_detectable_effect_has_the_power_that_it_promises(power):
    sizes, rates, runs = np.tile([2, 4, 6], 8), np.tile([0.0, 0.1, 0.5], 8), 1_000
    rules = {"rho": 0.2, "alpha": 0.1, "at_least": 0.05}
    effect = minimum_detectable_effect(
        SuiteDesign(sizes, rates, 3, **rules), np.random.default_rng(3), power=power, runs=runs
    )
    found = cluster_power(
        SuiteDesign(sizes, rates, 3, **rules), effect, np.random.default_rng(4), runs=runs
    )
    assert found == pytest.approx(power, abs=4 * math.sqrt(2 * 0.25 / runs))


def test_the_smallest_effect_is_the_margin_where_luck_plays_no_part():
    found = minimum_detectable_effect(
        SuiteDesign(np.full(12, 3), 0.2, MANY_TRIALS, rho=0.0, at_least=0.3),
        np.random.default_rng(0),
    )
    assert found == pytest.approx(0.3, abs=0.003)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cluster_power(SuiteDesign([4], 0.2, 3), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 0], 0.2, 3), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 1.2, 3), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], -0.1, 3), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 0), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 3), 0.9, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 3), -0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 3, rho=1), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 3, rho=-0.1), 0.1, RNG),
        lambda: cluster_power(SuiteDesign([4, 4], 0.2, 3, alpha=1), 0.1, RNG),
        lambda: minimum_detectable_effect(SuiteDesign([4, 4], 0.2, 3), RNG, power=0),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
