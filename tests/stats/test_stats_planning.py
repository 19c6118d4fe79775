import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.paired import mcnemar, sign_flip
from safety_lib.stats.planning import (
    design_effect,
    families_needed,
    mcnemar_power,
    sample_size_paired,
    sample_size_repeated,
)
from safety_lib.stats.power import cluster_power, minimum_detectable_effect


@pytest.mark.parametrize(
    ("p10", "p01", "one_sided", "two_sided"),
    [
        (0.10, 0.02, 114, 145),
        (0.08, 0.01, 112, 142),
        (0.15, 0.05, 122, 155),
        (0.05, 0.01, 230, 292),
        (0.097, 0.03, 173, 220),
    ],
)
def test_paired_sample_sizes(p10, p01, one_sided, two_sided):
    assert sample_size_paired(p10, p01) == one_sided
    assert sample_size_paired(p10, p01, sided=2) == two_sided


def test_exact_power_of_the_published_sample_size():
    assert mcnemar_power(114, 0.10, 0.02) == pytest.approx(0.827, abs=5e-4)


@pytest.mark.parametrize("sided", [1, 2])
def test_exact_power_equals_the_sum_over_all_tables(sided):
    n, p10, p01 = 30, 0.3, 0.1
    power = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            found = mcnemar(b, c)
            p = found.one_sided_mid_p if sided == 1 else found.mid_p
            power += (p <= 0.05) * stats.multinomial.pmf([b, c, n - b - c], n, [p10, p01, 0.6])
    assert mcnemar_power(n, p10, p01, sided=sided) == pytest.approx(power)
    assert mcnemar_power(n, p01, p10, sided=sided) == pytest.approx(power)


def test_repeated_trials_shrink_only_the_variance_within_tests():
    assert sample_size_repeated(0.03, 1 / 9) == 969
    noisy = sample_size_repeated(0.03, 1 / 9, within=(0.2, 0.2))
    assert noisy > sample_size_repeated(0.03, 1 / 9, within=(0.2, 0.2), trials=(5, 5)) > 969
    assert sample_size_repeated(0.03, 1 / 9, within=(0.2, 0.2), trials=(10**6, 10**6)) == 969 + 1


def test_design_effect():
    assert design_effect(5, 0.3) == pytest.approx(2.2)
    assert design_effect(1, 0.9) == design_effect(7, 0) == 1


@given(st.floats(0.001, 0.1), st.integers(2, 60), st.floats(0.01, 0.3))
def test_families_needed_bring_the_standard_error_to_where_the_effect_shows(se, families, effect):
    needed = families_needed(se, families, effect)
    assert needed >= 5
    scaled = se * math.sqrt(families / needed)
    assert effect >= (1.6448 + 0.8416) * scaled * 0.999


def test_simulated_power_is_that_of_the_tests_themselves():
    families, tests, trials, effect, runs = 12, 4, 3, 0.12, 1_000
    rng = np.random.default_rng(5)
    detected = cleared = 0
    for _ in range(runs):
        broken = rng.beta(0.15 * 7 / 3, 0.85 * 7 / 3, families)
        before = rng.binomial(tests * trials, 0.2, families)
        after = rng.binomial(tests * trials, 0.2 + 0.8 * broken)
        sums = (after - before) / trials
        mean = cluster_mean(np.repeat(sums / tests, tests), np.repeat(np.arange(families), tests))
        detected += sign_flip(sums, "greater").p_value <= 0.05
        cleared += mean.upper() < 0.1
    found = cluster_power(np.full(families, tests), 0.2, trials, effect, rng, margin=0.1, runs=runs)
    # Two independent simulations of the same chance: four standard errors.
    slack = 4 * math.sqrt(2 * 0.25 / runs)
    assert found.detected == pytest.approx(detected / runs, abs=slack)
    assert found.cleared == pytest.approx(cleared / runs, abs=slack)


def test_false_alarms_without_effect_are_below_alpha():
    for families in (8, 48):
        found = cluster_power(
            np.full(families, 4), 0.2, 3, 0.0, np.random.default_rng(1), runs=2_000
        )
        assert found.detected <= stats.binom.ppf(0.9995, 2_000, 0.05) / 2_000


def test_more_families_detect_less_and_concentration_costs_power():
    def mde(families, trials=3, rho=0.0):
        rng = np.random.default_rng(2)
        return minimum_detectable_effect(np.full(families, 4), 0.2, trials, rng, rho=rho)

    assert mde(96) < mde(24) < mde(8) < 1
    assert mde(24, trials=10) < mde(24)
    assert mde(24, rho=0.8) > mde(24)
    assert mde(4) == math.inf


def test_minimum_detectable_effect_has_the_power_that_it_promises():
    sizes, rates = np.tile([2, 4, 6], 10), np.tile([0.0, 0.1, 0.5], 10)
    effect = minimum_detectable_effect(sizes, rates, 3, np.random.default_rng(3))
    found = cluster_power(sizes, rates, 3, effect, np.random.default_rng(4), runs=2_000)
    assert found.detected == pytest.approx(0.8, abs=0.1)


def test_the_largest_suite_is_planned_in_seconds():
    start = time.perf_counter()
    minimum_detectable_effect(np.full(500, 4), 0.1, 10, np.random.default_rng(0))
    assert time.perf_counter() - start < 3


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_size_paired(0.1, 0.1),
        lambda: sample_size_paired(0.7, 0.6),
        lambda: sample_size_paired(-0.1, 0.6),
        lambda: sample_size_paired(0.1, 0.02, power=1),
        lambda: sample_size_paired(0.1, 0.02, sided=3),
        lambda: sample_size_paired(math.nan, 0.02),
        lambda: mcnemar_power(0, 0.1, 0.02),
        lambda: sample_size_repeated(0, 1),
        lambda: sample_size_repeated(0.1, 1, trials=(0, 1)),
        lambda: design_effect(0, 0.1),
        lambda: design_effect(2, 1.1),
        lambda: families_needed(0, 12, 0.1),
        lambda: cluster_power([4], 0.2, 3, 0.1, RNG),
        lambda: cluster_power([4, 4], 1.2, 3, 0.1, RNG),
        lambda: cluster_power([4, 4], 0.2, 0, 0.1, RNG),
        lambda: cluster_power([4, 4], 0.2, 3, 0.9, RNG),
        lambda: cluster_power([4, 4], 0.2, 3, 0.1, RNG, rho=1),
        lambda: minimum_detectable_effect([4, 4], 0.2, 3, RNG, power=0),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
