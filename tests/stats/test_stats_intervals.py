import math
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

import safety_lib.stats as package
from safety_lib.stats.audit import hypergeometric_lower, hypergeometric_upper
from safety_lib.stats.differences import newcombe_difference, tango
from safety_lib.stats.intervals import (
    Interval,
    bound_without_variation,
    clopper_pearson_upper,
    percentile_interval,
    wilson,
)


@st.composite
def k_n(draw, largest=300):
    n = draw(st.integers(1, largest))
    return draw(st.integers(0, n)), n


@st.composite
def pairs(draw, largest=120):
    n = draw(st.integers(1, largest))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@pytest.mark.parametrize(
    ("k", "n", "expected", "exact_high"),
    [
        (81, 263, (0.2553, 0.3662), 0.3676),
        (15, 148, (0.0624, 0.1605), 0.1617),
        (0, 20, (0.0, 0.1611), 0.1684),
        (1, 29, (0.0061, 0.1718), 0.1776),
    ],
)
def test_newcombe_1998_single_rates(k, n, expected, exact_high):
    rate = wilson(k, n)
    assert (rate.low, rate.high) == pytest.approx(expected, abs=5e-5)
    assert clopper_pearson_upper(k, n, 0.975) == pytest.approx(exact_high, abs=5e-5)


@pytest.mark.parametrize(("n", "high"), [(30, 0.0950), (100, 0.0295), (300, 0.0099)])
def test_zero_failures(n, high):
    assert clopper_pearson_upper(0, n) == pytest.approx(high, abs=5e-5)


@given(k_n(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_rates_contain_the_estimate_and_agree_with_statsmodels(kn, level):
    k, n = kn
    rate = wilson(k, n, level)
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    assert rate.low < rate.high
    expected = proportion_confint(k, n, 1 - level, "wilson")
    assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-9)
    exact = proportion_confint(k, n, 2 * (1 - level), "beta")[1]
    assert clopper_pearson_upper(k, n, level) == pytest.approx(exact, abs=1e-9)


@given(k_n())
def test_rates_are_symmetric_in_failure_and_success(kn):
    k, n = kn
    rate, mirrored = wilson(k, n), wilson(n - k, n)
    assert (rate.low, rate.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_newcombe_independent_difference():
    found = newcombe_difference(56, 70, 48, 80)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(k_n(100), k_n(100))
def test_independent_difference_agrees_with_statsmodels(first, second):
    found = newcombe_difference(*first, *second)
    expected = confint_proportions_2indep(*first, *second, method="newcomb")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize(
    ("b", "c", "n", "expected"),
    [
        (1, 7, 21, (-0.51723, -0.02600)),
        (54, 25, 340, (0.03486, 0.13692)),
        (0, 1, 44, (-0.11808, 0.05939)),
    ],
)
def test_tango_published_intervals(b, c, n, expected):
    found = tango(b, c, n)
    assert (found.low, found.high) == pytest.approx(expected, abs=5e-6)


@given(pairs(), st.sampled_from([0.9, 0.95, 0.99]))
def test_tango_contains_the_estimate_and_is_antisymmetric(pair, level):
    b, c, n = pair
    found, mirrored = tango(b, c, n, level), tango(c, b, n, level)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)


@given(pairs())
def test_tango_agrees_with_the_equation_it_solves(pair):
    b, c, n = pair
    z2 = stats.norm.ppf(0.975) ** 2
    found = tango(b, c, n)
    for delta in (found.low, found.high):
        if abs(delta) > 1 - 1e-9:
            continue
        linear = -b - c + (2 * n - b + c) * delta
        q = (math.sqrt(max(0, linear**2 + 8 * n * c * delta * (1 - delta))) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        assert (b - c - n * delta) ** 2 == pytest.approx(z2 * variance, rel=1e-6, abs=1e-6)


def test_tango_without_discordance_is_the_wilson_bound_of_no_failure():
    assert tango(0, 0, 60).high == pytest.approx(wilson(0, 60).high)


@given(st.integers(1, 120), st.data())
def test_mid_p_bounds_count_half_of_what_was_seen(population, data):
    n = data.draw(st.integers(1, population))
    k = data.draw(st.integers(0, n))
    upper = hypergeometric_upper(k, n, population, mid_p=True)

    positives = np.arange(k, population - (n - k) + 1)
    found = stats.hypergeom(population, positives, n)
    mid_p = found.cdf(k) - found.pmf(k) / 2
    surely, perhaps = (positives[mid_p > 0.05 + slack] for slack in (1e-9, -1e-9))
    assert max([k, *surely]) <= upper <= max([k, *perhaps])
    assert hypergeometric_lower(n - k, n, population, mid_p=True) == population - upper


@pytest.mark.parametrize(("population", "n", "expected"), [(1000, 50, 56), (10_000, 300, 97)])
def test_hypergeometric_upper_bound_for_no_positive(population, n, expected):
    assert hypergeometric_upper(0, n, population) == expected


@given(st.integers(1, 400), st.data())
def test_hypergeometric_bounds_invert_the_exact_test(population, data):
    n = data.draw(st.integers(1, population))
    k = data.draw(st.integers(0, n))
    upper, lower = hypergeometric_upper(k, n, population), hypergeometric_lower(k, n, population)
    assert k <= lower <= upper <= population - (n - k)
    assume(upper < population - (n - k) and lower > k)
    assert stats.hypergeom.cdf(k, population, upper, n) > 0.05
    assert stats.hypergeom.cdf(k, population, upper + 1, n) <= 0.05 + 1e-9
    assert stats.hypergeom.sf(k - 1, population, lower, n) > 0.05
    assert stats.hypergeom.sf(k - 1, population, lower - 1, n) <= 0.05 + 1e-9


def test_hypergeometric_coverage_is_at_least_nominal_for_every_truth():
    population, n = 60, 15
    lowest = np.array([hypergeometric_lower(k, n, population) for k in range(n + 1)])
    highest = np.array([hypergeometric_upper(k, n, population) for k in range(n + 1)])
    for truth in range(population + 1):
        chance = stats.hypergeom.pmf(np.arange(n + 1), population, truth, n)
        assert chance @ (lowest <= truth) >= 0.95
        assert chance @ (truth <= highest) >= 0.95


def test_a_census_leaves_nothing_open_and_no_audit_leaves_everything_open():
    assert hypergeometric_lower(3, 40, 40) == hypergeometric_upper(3, 40, 40) == 3
    assert (hypergeometric_lower(0, 0, 40), hypergeometric_upper(0, 0, 40)) == (0, 40)


@given(st.floats(-1, 1), st.integers(1, 500), st.sampled_from([0.05, 0.025]))
def test_units_that_all_agree_still_leave_a_width(value, n, tail):
    low, high = bound_without_variation(value, n, tail)
    assert -1 <= low <= value <= high <= 1
    assert low < high
    # At most a share u of all units differs, and those could lie at either limit of the scale.
    u = 1 - tail ** (1 / n)
    assert (low, high) == pytest.approx(((1 - u) * value - u, (1 - u) * value + u))


def test_units_that_all_agree_keep_to_their_scale():
    low, high = bound_without_variation(2.0, 10, 0.05, lowest=0.0, highest=8.0)
    u = 1 - 0.05**0.1
    assert (low, high) == pytest.approx((2 - 2 * u, 2 + 6 * u))
    # All failed, or all passed: there is room on one side alone.
    assert bound_without_variation(-1.0, 10, 0.05) == pytest.approx((-1, 2 * u - 1))
    assert bound_without_variation(1.0, 10, 0.05) == pytest.approx((1 - 2 * u, 1))


def test_percentile_interval_takes_the_tails_of_the_draws():
    draws = np.r_[np.random.default_rng(0).normal(0.1, 0.1, 999), np.nan]
    found = percentile_interval(0.1, draws, units=7, level=0.9)
    assert (found.low, found.high) == pytest.approx(np.nanquantile(draws, [0.05, 0.95]))
    # A skewed statistic may lie outside its own percentiles, and stays within its interval.
    assert percentile_interval(0.9, draws, units=7).high == 0.9
    assert percentile_interval(-0.9, draws, units=7).low == -0.9


@pytest.mark.parametrize("draws", [np.full(50, 0.2), np.full(50, np.nan), np.array([])])
def test_draws_that_do_not_vary_are_no_certainty(draws):
    found = percentile_interval(0.2, draws, units=7, level=0.9, lowest=0.0, highest=2.0)
    expected = bound_without_variation(0.2, 7, 0.05, 0.0, 2.0)
    assert (found.low, found.high) == expected
    assert found.low < 0.2 < found.high


def test_results_read_like_a_sentence():
    assert str(wilson(14, 60)) == "14/60 = 0.233 [0.144, 0.354]"
    assert str(Interval(math.nan, 0, 1, 0.95, "none")) == "undefined [0.000, 1.000]"


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(-1, 5),
        lambda: wilson(6, 5),
        lambda: wilson(0, 0),
        lambda: wilson(math.nan, 5),
        lambda: wilson(1, math.inf),
        lambda: wilson(1.5, 5),
        lambda: wilson(1, 5, level=1.0),
        lambda: clopper_pearson_upper(3, 2),
        lambda: clopper_pearson_upper(0, 0),
        lambda: clopper_pearson_upper(0, 5, level=1.0),
        lambda: tango(3, 3, 5),
        lambda: tango(-1, 3, 5),
        lambda: tango(1, -1, 5),
        lambda: tango(0, 0, 0),
        lambda: newcombe_difference(1, 2, 3, 2),
        lambda: hypergeometric_upper(1, 5, 4),
        lambda: hypergeometric_upper(3, 2, 4),
        lambda: hypergeometric_lower(0, 2, 4, level=0.0),
        lambda: bound_without_variation(2.0, 5, 0.05),
        lambda: bound_without_variation(0.0, 0, 0.05),
        lambda: bound_without_variation(0.0, 5, 0.0),
        lambda: percentile_interval(2.0, np.zeros(9), units=5),
        lambda: percentile_interval(0.0, np.zeros(9), units=5, level=1.0),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()


@pytest.mark.parametrize("result", [wilson(1, 5), tango(1, 2, 9)])
def test_a_result_cannot_be_changed(result):
    with pytest.raises(AttributeError):
        result.low = 0.0


def test_importing_the_modules_does_not_import_scipy():
    names = [module.name for module in pkgutil.iter_modules(package.__path__, "safety_lib.stats.")]
    code = f"import sys, {', '.join(names)}; sys.exit('scipy' in sys.modules)"
    assert len(names) > 9
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
