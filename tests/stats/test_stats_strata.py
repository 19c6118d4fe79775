"""Losses with tests as strata, against scipy, statsmodels and plain enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact, hypergeom
from statsmodels.stats.contingency_tables import StratifiedTable

from safety_lib.stats.paired import mcnemar
from safety_lib.stats.sequential import flip_e_value
from safety_lib.stats.spending import spending_boundaries
from safety_lib.stats.strata import independent_loss, shared_loss

LOOKS = np.array([3, 5, 8, 12, 18, 27, 40, 60])
RATES = np.array([1, 1, 1, 1, 0.95, 0.95, 0.95, 0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.8, 0.7])


def enumerated(base, cand, n):
    """Chance that the candidate fails as often, over all ways to share the failures out."""
    parts = []
    for k1, k2 in zip(base, cand, strict=True):
        few = range(max(0, k1 + k2 - n), min(n, k1 + k2) + 1)
        parts.append([(k, hypergeom(2 * n, k1 + k2, n).pmf(k)) for k in few])
    ways = itertools.product(*parts)
    return sum(math.prod(p for _, p in w) for w in ways if sum(k for k, _ in w) >= sum(cand))


def test_one_test_is_fishers():
    for k1, n1, k2, n2 in [(3, 30, 9, 28), (0, 10, 4, 10), (2, 7, 2, 5), (5, 9, 1, 9)]:
        table = [[k2, n2 - k2], [k1, n1 - k1]]
        assert independent_loss([k1], [n1], [k2], [n2]).p_value == pytest.approx(
            fisher_exact(table, alternative="greater").pvalue, abs=1e-12
        )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4))
def test_a_few_tests_are_enumerated(counts):
    base, cand = zip(*counts, strict=True)
    six = [6] * len(counts)
    found = independent_loss(base, six, cand, six)
    assert found.p_value == pytest.approx(enumerated(base, cand, 6), abs=1e-10)


def test_many_failures_are_cochran_mantel_and_haenszels_normal_tail():
    rng = np.random.default_rng(5)
    base, cand = rng.binomial(60, 0.25, 40), rng.binomial(60, 0.28, 40)
    sixty = np.full(40, 60)
    tables = [np.array([[k2, 60 - k2], [k1, 60 - k1]]) for k1, k2 in zip(base, cand, strict=True)]
    reference = StratifiedTable(tables).test_null_odds(correction=True)
    assert cand.sum() > base.sum()
    found = independent_loss(base, sixty, cand, sixty)
    assert found.p_value == pytest.approx(reference.pvalue / 2, abs=1e-9)


def test_the_normal_tail_begins_where_the_exact_one_ends():
    sixty = [60] * 10
    exact = independent_loss([18] * 10, sixty, [22] * 10, sixty).p_value
    normal = independent_loss([18] * 9 + [19], sixty, [22] * 9 + [23], sixty).p_value
    assert normal == pytest.approx(exact, rel=0.03)


def test_one_trial_a_test_is_decided_by_the_tests_that_came_out_differently():
    ones = np.ones(20, dtype=int)
    base, cand = np.zeros(20, dtype=int), np.zeros(20, dtype=int)
    cand[:9], base[9] = 1, 1
    seen = independent_loss(base, ones, cand, ones)
    assert seen.p_value == pytest.approx(mcnemar(9, 1).one_sided_p)
    assert seen.se == pytest.approx(math.sqrt((10 - 64 / 20) / (20 * 19) + 4 / 400))


def test_the_standard_error_is_unbiased_and_counts_two_more_failures_an_arm():
    seen = independent_loss([2, 0], [5, 4], [3, 1], [5, 1])
    # One trial alone says nothing of its variance, which is 1/4 at most.
    within = 0.4 * 0.6 / 4 + 0.6 * 0.4 / 4 + 0 + 0.25
    assert seen.se == pytest.approx(math.sqrt(within / 4 + 2 / 81 + 2 / 36))


def test_pairs_are_judged_by_those_that_came_out_differently():
    seen = shared_loss([5, 4, 0], [1, 0, 1], [0, 2, 0], [12, 9, 12])
    assert seen.p_value == pytest.approx(binomtest(9, 11, 0.5, alternative="greater").pvalue)
    assert seen.delta == pytest.approx(np.mean([-4 / 12, -4 / 9, 1 / 12]))
    assert (seen.baseline, seen.candidate) == pytest.approx(
        (1 - np.mean([1 / 12, 2 / 9, 1 / 12]), 1 - np.mean([5 / 12, 6 / 9, 0]))
    )


def test_pairs_of_one_trial_a_test_vary_between_the_tests():
    seen = shared_loss([1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0] * 5, [1] * 5)
    assert seen.se == pytest.approx(math.sqrt((4 - 4 / 5) / (5 * 4) + 4 / 25))


@pytest.mark.parametrize("luck", ["independent", "shared"])
def test_an_interval_where_nothing_varied_depends_on_how_often_it_was_tried(luck):
    def width(tests, n):
        zero, tried = [0] * tests, [n] * tests
        if luck == "shared":
            seen = shared_loss(zero, zero, zero, tried)
        else:
            seen = independent_loss(zero, tried, zero, tried)
        return seen.interval().high - seen.interval().low

    assert width(5, 4) > width(5, 8) > width(10, 8) > width(10, 60) > 0
    assert width(5, 8) == pytest.approx(width(10, 4))
    # Half a point is the rule of three; the exact two-sided bound of 600 trials is 0.61.
    assert 0.0061 < width(10, 60) / 2 < 0.0075


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(8)
    n, runs = 12, 4000
    tried = np.full(RATES.size, n)
    truth = -0.05
    base = rng.binomial(n, 1 - RATES, (runs, RATES.size))
    cand = rng.binomial(n, 1 - (RATES + truth), (runs, RATES.size))
    covered = 0
    for k1, k2 in zip(base, cand, strict=True):
        seen = independent_loss(k1, tried, k2, tried).interval()
        covered += seen.low <= truth <= seen.high
    assert 0.945 <= covered / runs <= 0.975


def test_tests_without_a_trial_on_both_sides_are_left_out():
    seen = independent_loss([1, 0], [10, 0], [2, 5], [10, 10])
    assert (seen.tests, seen.delta) == (1, pytest.approx(-0.1))
    assert shared_loss([1, 0], [0, 0], [0, 0], [10, 0]).tests == 1
    for nothing in (
        lambda: independent_loss([0], [0], [0], [5]),
        lambda: shared_loss([0], [0], [0], [0]),
    ):
        with pytest.raises(ValueError, match="valid"):
            nothing()


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="between 0 and its trials"):
        independent_loss([3], [2], [0], [2])
    with pytest.raises(ValueError, match="1 tests on the baseline, 2 on the candidate"):
        independent_loss([0], [2], [0, 0], [2, 2])
    with pytest.raises(ValueError, match="at most the pairs"):
        shared_loss([2], [2], [0], [3])
    with pytest.raises(ValueError, match="one entry a test"):
        shared_loss([2], [2], [0], [3, 3])


def test_an_excess_of_errors_counts_against_the_margin():
    seen = independent_loss([1, 1], [20, 20], [1, 1], [20, 20])
    assert seen.margin_z(0.05) == pytest.approx(0.05 / seen.se)
    assert seen.margin_z(0.05, excess=0.02) == pytest.approx(0.03 / seen.se)


def ever_inside(base, cand, margin, runs=4000):
    """Share of simulated runs that show the loss to be inside the margin at some look.

    Written without the library's formulas for losses; the boundaries are its own, tested above.
    """
    rng = np.random.default_rng(13)
    bounds = spending_boundaries(0.05, LOOKS / 60)
    steps = np.diff([0, *LOOKS])
    shape = (runs, len(base), LOOKS.size)
    failed = [rng.binomial(steps, 1 - np.array(p)[:, None], shape).cumsum(2) for p in (base, cand)]
    delta = (failed[0] - failed[1]).mean(axis=1) / LOOKS
    variance = 0.0
    for k in failed:
        rate = k / LOOKS
        variance += (rate * (1 - rate) / (LOOKS - 1)).sum(axis=1) / len(base) ** 2
        variance += 2 / (len(base) * LOOKS) ** 2
    return float(((delta + margin) / np.sqrt(variance) >= bounds).any(axis=1).mean())


def one_loses(loss):
    worse = RATES.copy()
    worse[0] -= loss * RATES.size
    return worse


@pytest.mark.parametrize(
    ("base", "cand", "margin"),
    [
        (RATES, RATES - 0.05, 0.05),
        (RATES, one_loses(0.05), 0.05),
        ([0.99] * 12, [0.94] * 12, 0.05),
        ([0.95] * 8, [0.90] * 8, 0.05),
        ([1.0], [0.75], 0.25),
        ([0.9], [0.65], 0.25),
        ([0.9] * 3, [0.65] * 3, 0.25),
    ],
)
def test_a_loss_at_its_margin_is_rarely_shown_to_be_inside_it(base, cand, margin):
    # 5% and three standard errors of 4,000 runs.
    assert ever_inside(base, cand, margin) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_equal_versions_are_shown_to_be_inside_their_margins():
    assert ever_inside(RATES, RATES, 0.05) >= 0.95
    assert ever_inside([0.99] * 12, [0.99] * 12, 0.05) >= 0.99
    assert ever_inside([0.95], [0.95], 0.25) >= 0.99


def test_e_values_of_flips_have_mean_one_under_the_coin_and_the_published_values():
    for n in (1, 7, 30):
        mean = sum(math.comb(n, b) / 2**n * flip_e_value(b, n - b) for b in range(n + 1))
        assert mean == pytest.approx(1.0)
    published = {(10, 0): 186.091, (9, 1): 18.509, (8, 2): 4.002, (15, 5): 6.356, (7, 1): 6.972}
    for (worse, better), e_value in published.items():
        assert flip_e_value(worse, better) == pytest.approx(e_value, abs=1e-3)
    assert flip_e_value(0, 0) == 1.0
    with pytest.raises(ValueError, match="whole number"):
        flip_e_value(-1, 0)
