import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from safety_lib.stats.clustered import cluster_mean, family_sums
from safety_lib.stats.multiplicity import holm, pass_at_k, pass_hat_k
from safety_lib.stats.paired import mcnemar, sign_flip

# Psychiatry data of Donner and Petryshen (1989): b/c and n of 29 clusters.
B_C = (
    "0/4,1/2,1/3,1/2,0/1,3/3,3/0,3/2,1/2,0/4,0/2,1/4,0/3,0/2,0/1,0/3,0/1,0/2,3/0,1/0,1/0,2/2,0/1,"
    "0/2,0/2,0/0,0/0,0/1,0/1"
)
B, C = (
    np.array(side) for side in zip(*(map(int, x.split("/")) for x in B_C.split(",")), strict=True)
)
N = np.array(
    [7, 6, 7, 6, 4, 6, 5, 8, 4, 7, 3, 6, 7, 6, 5, 4, 6, 5, 4, 3, 5, 4, 4, 2, 3, 2, 2, 3, 1]
)
D = np.concatenate(
    [np.r_[np.ones(b), -np.ones(c), np.zeros(n - b - c)] for b, c, n in zip(B, C, N, strict=True)]
)
FAMILY = np.repeat(np.arange(N.size), N)


# ------------------------------------------------------------------ McNemar


@pytest.mark.parametrize(
    ("b", "c", "mid_p"), [(150, 86, 2.89339e-5), (121, 59, 3.26665e-6), (1, 7, 0.0390625)]
)
def test_published_mcnemar(b, c, mid_p):
    assert mcnemar(b, c).mid_p == pytest.approx(mid_p, rel=2e-6)


def test_published_one_sided_mcnemar():
    assert mcnemar(7, 1).one_sided_p == pytest.approx(0.03516, abs=5e-6)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_agrees_with_statsmodels_and_scipy(b, c):
    found = mcnemar(b, c)
    assert (found.b, found.c) == (b, c)
    assert 0 < found.mid_p <= 1
    if b + c:
        exact = reference_mcnemar([[0, b], [c, 0]], exact=True).pvalue
        point = stats.binom.pmf(b, b + c, 0.5)
        assert found.mid_p == pytest.approx(exact - point if b != c else 1)
        one_sided = stats.binomtest(b, b + c, alternative="greater").pvalue
        assert found.one_sided_p == pytest.approx(one_sided)
    assert found.mid_p == mcnemar(c, b).mid_p


def test_no_discordant_pair_is_no_evidence():
    assert mcnemar(0, 0).mid_p == mcnemar(0, 0).one_sided_p == 1


# ------------------------------------------------------------------ sign flip


def brute_force(sums, alternative):
    flips = [np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=len(sums))]
    t = sum(sums)
    reached = {
        "greater": [f >= t - 1e-9 for f in flips],
        "less": [f <= t + 1e-9 for f in flips],
        "two-sided": [abs(f) >= abs(t) - 1e-9 for f in flips],
    }
    return np.mean(reached[alternative])


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=9),
    st.sampled_from([1, 3, 10]),
    st.sampled_from(["greater", "less", "two-sided"]),
)
def test_sign_flip_equals_enumeration(sums, trials, alternative):
    sums = [s / trials for s in sums]
    found = sign_flip(sums, alternative)
    assert found.method == "exact"
    assert found.p_value == pytest.approx(brute_force(sums, alternative))


@given(st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=9))
def test_sign_flip_equals_enumeration_without_a_common_unit(sums):
    for alternative in ("greater", "less", "two-sided"):
        found = sign_flip(sums, alternative)
        assert found.p_value == pytest.approx(brute_force(sums, alternative))


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=60))
def test_sign_flip_is_symmetric(sums):
    mirrored = [-s for s in sums]
    assert sign_flip(sums).p_value == sign_flip(mirrored).p_value
    assert sign_flip(sums, "greater").p_value == sign_flip(mirrored, "less").p_value
    assert sign_flip(sums, "greater").p_value + sign_flip(sums, "less").p_value >= 1


def test_sign_flip_on_the_psychiatry_data():
    assert sign_flip(B - C).p_value == pytest.approx(0.00643623, abs=5e-9)
    assert sign_flip(B - C, "less").p_value == pytest.approx(0.00321811, abs=5e-9)
    assert sign_flip(B - C).method == "exact"


@pytest.mark.parametrize(
    ("alpha", "alternative", "fewest"),
    [(0.05, "greater", 5), (0.05, "two-sided", 6), (0.01, "greater", 7), (0.01, "two-sided", 8)],
)
def test_fewest_families_that_can_reach_significance(alpha, alternative, fewest):
    assert sign_flip(np.ones(fewest), alternative).p_value < alpha
    assert sign_flip(np.ones(fewest - 1), alternative).p_value > alpha


def test_monte_carlo_is_used_only_when_needed_and_agrees():
    rng = np.random.default_rng(3)
    sums = rng.normal(0.3, 1, 40)
    with pytest.raises(ValueError, match="rng"):
        sign_flip(sums)
    found = sign_flip(sums, "greater", rng=rng)
    assert found.method == "monte carlo"
    exact = sign_flip(np.round(sums, 2), "greater")
    assert exact.method == "exact"
    assert found.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(0.25 / 9_999))


@pytest.mark.parametrize(
    ("alternative", "p"), [("greater", 0.01), ("two-sided", 0.01), ("less", 1.0)]
)
def test_a_monte_carlo_p_value_counts_the_sums_themselves_as_one_draw(alternative, p):
    rng = np.random.default_rng(4)
    sums = rng.normal(1, 0.1, 40)  # no flip of 99 comes near
    assert sign_flip(sums, alternative, rng, draws=99).p_value == p


def test_the_common_unit_is_as_large_as_it_can_be():
    # In units of 1/2 these sums would be too long to convolve.
    found = sign_flip([1e6 + 0.5] * 30, "greater")
    assert (found.method, found.p_value) == ("exact", 0.5**30)


def test_no_difference_has_p_one():
    assert sign_flip([0, 0, 0]).p_value == sign_flip([0], "greater").p_value == 1


# ------------------------------------------------------------------ clusters


def test_cr1_on_the_psychiatry_data():
    found = cluster_mean(D, FAMILY)
    assert found.estimate == pytest.approx(-0.214815, abs=5e-7)
    assert found.se == pytest.approx(0.0672909, abs=5e-8)
    assert found.estimate / found.se == pytest.approx(-3.19233, abs=5e-6)
    assert (found.n, found.families) == (135, 29)
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((-0.352654, -0.076976), abs=5e-7)
    assert str(found) == "D = -0.215 [-0.353, -0.077] (135 tests in 29 families)"


def test_cr1_agrees_with_statsmodels_up_to_its_small_sample_factor():
    rng = np.random.default_rng(5)
    family = rng.integers(0, 15, 90)
    d = rng.choice([-1, -0.5, 0, 0.5, 1], 90)
    fit = OLS(d, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": family})
    # With one regressor statsmodels' (n - 1) / (n - k) factor is 1.
    found = cluster_mean(d, family)
    assert (found.estimate, found.se) == pytest.approx((fit.params[0], fit.bse[0]))


@st.composite
def families(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=12))
    family = np.repeat(np.arange(len(sizes)), sizes)
    d = draw(st.lists(st.integers(-3, 3), min_size=family.size, max_size=family.size))
    return np.array(d) / 3, family


@given(families())
def test_cluster_bounds_contain_the_estimate_and_p_values_belong_to_them(case):
    d, family = case
    found = cluster_mean(d, family)
    assert found.estimate == pytest.approx(d.mean())
    interval = found.interval()
    assert -1 <= interval.low <= found.estimate <= interval.high <= 1
    assert interval.low < interval.high
    assert interval.low <= found.lower() <= found.estimate
    assert found.lower(0.975) == pytest.approx(interval.low)
    mirrored = cluster_mean(-d, family).interval()
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))
    if found.se and interval.low > -1:
        t = stats.t(found.families - 1)
        assert (found.estimate - interval.low) / found.se == pytest.approx(t.ppf(0.975))
        assert (found.estimate - found.lower(0.9)) / found.se == pytest.approx(t.ppf(0.9))


def test_families_without_any_difference_do_not_prove_that_there_is_none():
    few, many = (cluster_mean(np.zeros(4 * g), np.repeat(np.arange(g), 4)) for g in (12, 100))
    assert few.lower() == pytest.approx(0.05 ** (1 / 12) - 1)
    assert few.lower() < -0.2 < -0.03 < many.lower() < 0
    same = cluster_mean(np.ones(5), np.arange(5))
    assert same.lower() < 1 == same.interval().high


def test_family_sums_keep_labels():
    found = family_sums([0.5, -0.5, 1, 0], ["b", "a", "b", "c"])
    assert found.labels.tolist() == ["a", "b", "c"]
    assert found.sums.tolist() == [-0.5, 1.5, 0]
    assert found.sizes.tolist() == [1, 2, 1]


def test_two_thousand_tests_of_ten_trials_take_well_under_a_second():
    rng = np.random.default_rng(0)
    trials = rng.random((2, 2_000, 10)) < 0.3
    family = np.char.add("family-", np.repeat(np.arange(500), 4).astype(str))
    start = time.perf_counter()
    d = trials[0].mean(axis=1) - trials[1].mean(axis=1)
    cluster_mean(d, family).interval()
    assert sign_flip(family_sums(d, family).sums, "greater").method == "exact"
    assert time.perf_counter() - start < 0.5


# ------------------------------------------------------------------ error rates


def simulate(runs, interaction, effect, seed, families=12, tests=4, trials=3):
    """Family sums of paired differences: logit -1, shared N(0, 1.5), interaction per version."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(-1, 1.5, (runs, families, tests))
    sums = 0
    for sign, shift in ((1, effect), (-1, 0)):
        wobble = rng.normal(shift, interaction, (runs, families, 1)) if interaction else shift
        p = 1 / (1 + np.exp(-(shared + wobble)))
        sums = sums + sign * rng.binomial(trials, p).sum(axis=2)
    return sums / trials


def binomial_band(rate, runs):
    """Bounds that a correct rate leaves once in a thousand times."""
    return stats.binom.ppf([0.0005, 0.9995], runs, rate) / runs


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_false_alarm_rates_are_nominal_with_and_without_interaction(interaction):
    runs = 2_000
    sums = simulate(runs, interaction, 0.0, seed=11)
    flips = np.mean([sign_flip(s, "greater").p_value <= 0.05 for s in sums])
    means = [cluster_mean(np.repeat(s / 4, 4), np.repeat(np.arange(12), 4)) for s in sums]
    robust = np.mean([m.lower() > 0 for m in means])
    # The exact test is conservative because its p-values are discrete.
    assert flips <= binomial_band(0.05, runs)[1]
    assert binomial_band(0.05, runs)[0] <= robust <= binomial_band(0.05, runs)[1]
    covered = np.mean([m.interval().low <= 0 <= m.interval().high for m in means])
    assert binomial_band(0.95, runs)[0] <= covered <= binomial_band(0.95, runs)[1]


def test_a_real_regression_is_found():
    sums = simulate(500, 0.0, 1.0, seed=12)
    assert np.mean([sign_flip(s, "greater").p_value <= 0.05 for s in sums]) > 0.6


# ------------------------------------------------------------------ multiplicity, repeats

# fmt: off
BH_1995 = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]
# fmt: on


def test_p_values_of_benjamini_and_hochberg_1995():
    assert np.sum(np.array(BH_1995) <= 0.05 / 15) == 3
    assert np.sum(holm(BH_1995) <= 0.05) == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_adjusted_p_values_are_monotone(p):
    adjusted = holm(p)
    assert (np.diff(adjusted[np.argsort(p)]) >= -1e-15).all()
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert adjusted.max() <= 1


@pytest.mark.parametrize("p", [BH_1995, BH_1995[::-1], [0.02, 0.02, 0.01, 0.5, 0.02], [0.3]])
def test_adjusted_p_values_agree_with_statsmodels(p):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_repeated_trials():
    assert pass_hat_k(4, 8, 2) == pytest.approx(6 / 28)
    assert pass_at_k(2, 5, 2) == pytest.approx(0.7)
    assert pass_hat_k([8, 0], 8, 3) == 0.5


@given(st.integers(1, 12), st.data())
def test_repeats_are_the_binomial_ratios(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_hat_k(c, n, k) == pytest.approx(math.comb(c, k) / math.comb(n, k))
    assert pass_at_k(c, n, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mcnemar(-1, 2),
        lambda: mcnemar(math.nan, 2),
        lambda: sign_flip([]),
        lambda: sign_flip([1, math.nan]),
        lambda: sign_flip([[1, 2]]),
        lambda: sign_flip([1], "up"),
        lambda: cluster_mean([], []),
        lambda: cluster_mean([0, 1], [0]),
        lambda: cluster_mean([0, 1], [0, 0]),
        lambda: cluster_mean([0, math.nan], [0, 1]),
        lambda: cluster_mean([0, 2], [0, 1]),
        lambda: cluster_mean([0, 1], [0, 1]).lower(1.0),
        lambda: cluster_mean([0, 1], [0, 1]).interval(0.0),
        lambda: holm([]),
        lambda: holm([1.5]),
        lambda: holm([-0.1]),
        lambda: holm([math.nan]),
        lambda: pass_hat_k(3, 2, 1),
        lambda: pass_at_k(1, 2, 3),
        lambda: pass_at_k(-1, 2, 1),
        lambda: pass_at_k(3, 2, 1),
        lambda: pass_hat_k(-1, 2, 1),
        lambda: pass_hat_k(1, 2, 0),
        lambda: pass_hat_k([], [], 1),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
