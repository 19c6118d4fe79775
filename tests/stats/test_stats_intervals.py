import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from safety_lib.stats.audit import (
    hypergeometric_interval,
    hypergeometric_lower,
    hypergeometric_upper,
)
from safety_lib.stats.differences import bonett_price, newcombe_difference, newcombe_paired, tango
from safety_lib.stats.intervals import (
    Interval,
    bound_without_variation,
    clopper_pearson,
    clopper_pearson_upper,
    n_to_see_one,
    rule_of_three,
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
    ("k", "n", "expected_wilson", "expected_exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_newcombe_1998_single_rates(k, n, expected_wilson, expected_exact):
    for rate, expected in (
        (wilson(k, n), expected_wilson),
        (clopper_pearson(k, n), expected_exact),
    ):
        assert (rate.low, rate.high) == pytest.approx(expected, abs=5e-5)


def test_nist_handbook_exact_interval_at_90_percent():
    rate = clopper_pearson(4, 20, level=0.90)
    assert (rate.low, rate.high) == pytest.approx((0.071354, 0.401028), abs=5e-7)


@pytest.mark.parametrize(
    ("n", "one_sided", "three", "two_sided"),
    [(30, 0.0950, 0.1, 0.1157), (100, 0.0295, 0.03, 0.0362), (300, 0.0099, 0.01, 0.0122)],
)
def test_zero_failures(n, one_sided, three, two_sided):
    assert clopper_pearson_upper(0, n) == pytest.approx(one_sided, abs=5e-5)
    assert rule_of_three(n) == pytest.approx(three)
    assert clopper_pearson(0, n).high == pytest.approx(two_sided, abs=5e-5)


@pytest.mark.parametrize(
    ("p", "n"), [(0.1, 29), (0.05, 59), (0.01, 299), (0.005, 598), (0.001, 2995)]
)
def test_trials_to_see_one_failure(p, n):
    assert n_to_see_one(p) == n
    assert 1 - (1 - p) ** n >= 0.95 > 1 - (1 - p) ** (n - 1)


@given(k_n(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_rates_contain_the_estimate_and_agree_with_statsmodels(kn, level):
    k, n = kn
    for rate, name in ((wilson(k, n, level), "wilson"), (clopper_pearson(k, n, level), "beta")):
        assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
        assert rate.low < rate.high
        expected = proportion_confint(k, n, 1 - level, name)
        assert (rate.low, rate.high) == pytest.approx(expected, abs=1e-9)


@given(k_n())
def test_rates_are_symmetric_in_failure_and_success(kn):
    k, n = kn
    for method in (wilson, clopper_pearson):
        rate, mirrored = method(k, n), method(n - k, n)
        assert (rate.low, rate.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


@given(k_n())
def test_one_sided_upper_is_the_upper_end_of_the_90_percent_interval(kn):
    assert clopper_pearson_upper(*kn) == pytest.approx(clopper_pearson(*kn, level=0.9).high)


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


def test_bentur_paired_intervals():
    for found, expected in (
        (bonett_price(1, 7, 21), (-0.5084, -0.0134)),
        (newcombe_paired(1, 1, 7, 12), (-0.5017, -0.0361)),
    ):
        assert found.estimate == pytest.approx(-0.2857, abs=5e-5)
        assert (found.low, found.high) == pytest.approx(expected, abs=5e-5)


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


@given(pairs(), st.data())
def test_other_paired_intervals_contain_the_estimate(pair, data):
    b, c, n = pair
    a = data.draw(st.integers(0, n - b - c))
    for found in (bonett_price(b, c, n), newcombe_paired(a, b, c, n - a - b - c)):
        assert -1 - 1e-12 <= found.low <= found.estimate <= found.high <= 1 + 1e-12
        assert found.low < found.high


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


@given(st.integers(1, 300), st.data())
def test_hypergeometric_interval_contains_the_estimate(population, data):
    n = data.draw(st.integers(1, population))
    k = data.draw(st.integers(0, n))
    found = hypergeometric_interval(k, n, population)
    assert found.low <= found.estimate + 1e-9
    assert found.estimate <= found.high + 1e-9
    assert found.low < found.high or n > population / 2


def test_hypergeometric_coverage_is_at_least_nominal_for_every_truth():
    population, n = 60, 15
    intervals = [hypergeometric_interval(k, n, population) for k in range(n + 1)]
    for truth in range(population + 1):
        chance = stats.hypergeom.pmf(np.arange(n + 1), population, truth, n)
        covered = [i.low <= truth <= i.high for i in intervals]
        assert chance @ covered >= 0.95


def test_a_census_leaves_nothing_open_and_no_audit_leaves_everything_open():
    assert hypergeometric_interval(3, 40, 40).low == hypergeometric_interval(3, 40, 40).high == 3
    assert (hypergeometric_lower(0, 0, 40), hypergeometric_upper(0, 0, 40)) == (0, 40)


@given(st.floats(-1, 1), st.integers(1, 500), st.sampled_from([0.05, 0.025]))
def test_units_that_all_agree_still_leave_a_width(value, n, tail):
    low, high = bound_without_variation(value, n, tail)
    assert -1 <= low <= value <= high <= 1
    assert low < high


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
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson_upper(0, 0),
        lambda: rule_of_three(0),
        lambda: n_to_see_one(0.0),
        lambda: n_to_see_one(0.1, confidence=1.0),
        lambda: tango(3, 3, 5),
        lambda: tango(-1, 3, 5),
        lambda: bonett_price(0, 0, 0),
        lambda: newcombe_paired(0, 0, 0, 0),
        lambda: newcombe_paired(-1, 0, 0, 2),
        lambda: newcombe_difference(1, 2, 3, 2),
        lambda: hypergeometric_upper(1, 5, 4),
        lambda: hypergeometric_interval(0, 0, 4),
        lambda: bound_without_variation(2.0, 5, 0.05),
        lambda: bound_without_variation(0.0, 0, 0.05),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()


def test_importing_the_package_does_not_import_scipy():
    code = "import sys, safety_lib.stats; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist():
    from safety_lib import stats as package

    for name in package.__all__:
        assert callable(getattr(package, name))
