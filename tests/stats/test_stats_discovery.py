import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from safety_lib.stats.attribution import shapley_intervals
from safety_lib.stats.missing_mass import (
    accumulation_curve,
    chao1,
    good_turing_missing_mass,
    missing_mass_upper,
    new_mode_bound,
)
from safety_lib.stats.sequential import confidence_sequence, e_process

COUNTS = [0, 1, 1, 4, 2, 5, 2, 4, 1, 2]

# ------------------------------------------------------------------ discovery


def test_published_species_counts():
    assert good_turing_missing_mass(COUNTS) == pytest.approx(3 / 22)
    assert chao1(COUNTS) == 9.75
    assert chao1([3, 1]) == 2
    assert chao1([1, 1, 1]) == 6


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_missing_mass_bound_follows_esty(level):
    f1, f2, n = 3, 3, 22
    half = stats.norm.ppf(level) * math.sqrt(f1 * (1 - f1 / n) + 2 * f2) / n
    assert missing_mass_upper(COUNTS, level) == pytest.approx(f1 / n + half)


@pytest.mark.parametrize("modes", [5, 60, 1_000])
def test_missing_mass_bound_covers(modes):
    rng = np.random.default_rng(modes)
    chances = rng.dirichlet(np.full(modes, 0.5))
    runs, n, covered = 400, 200, 0
    for _ in range(runs):
        counts = rng.multinomial(n, chances)
        covered += chances[counts == 0].sum() <= missing_mass_upper(counts)
    assert covered >= stats.binom.ppf(0.0005, runs, 0.9)


def test_missing_mass_bound_without_singletons_has_a_slack():
    assert missing_mass_upper([40, 30, 30]) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert missing_mass_upper([1]) == 1


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2))
def test_accumulation_is_the_mean_over_all_orders(counts, clean):
    labels = [i for i, count in enumerate(counts) for _ in range(count)] + [None] * clean
    curve = accumulation_curve(counts, len(labels))
    for m in range(1, len(labels) + 1):
        if math.comb(len(labels), m) > 500:
            continue
        found = [len(set(chosen) - {None}) for chosen in itertools.combinations(labels, m)]
        assert curve[m - 1] == pytest.approx(np.mean(found))
    assert curve[-1] == pytest.approx(len(counts))
    assert (np.diff(curve) >= -1e-12).all()


# ------------------------------------------------------------------ sequential


def test_published_confidence_sequences():
    assert confidence_sequence(0, 50).high == pytest.approx(0.10464, abs=5e-6)
    found = confidence_sequence(5, 50)
    assert (found.low, found.high) == pytest.approx((0.01585, 0.28654), abs=5e-6)


@given(st.integers(0, 300), st.data())
def test_confidence_sequence_contains_the_estimate_and_mirrors(n, data):
    s = data.draw(st.integers(0, n))
    found, mirrored = confidence_sequence(s, n), confidence_sequence(n - s, n)
    assert 0 <= found.low < found.high <= 1
    assert n == 0 or found.low <= found.estimate <= found.high
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def mixture_ratio(s, n, p, above=0.0):
    """Likelihood ratio of a Beta(1/2, 1/2) mixture over the rates above a limit, by quadrature."""
    prior = stats.beta(0.5, 0.5)

    def integrand(x):  # in the angle that makes the prior flat, which has no poles
        q = math.sin(x) ** 2
        return (q / p) ** s * ((1 - q) / (1 - p)) ** (n - s) * 2 / math.pi

    whole, _ = integrate.quad(integrand, math.asin(math.sqrt(above)), math.pi / 2, limit=200)
    return whole / prior.sf(above)


@pytest.mark.parametrize(("s", "n"), [(0, 7), (1, 12), (5, 50), (30, 31), (9, 9)])
@pytest.mark.parametrize("level", [0.9, 0.99])
def test_confidence_sequence_ends_where_the_mixture_wins(s, n, level):
    found = confidence_sequence(s, n, level)
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            assert mixture_ratio(s, n, bound) == pytest.approx(1 / (1 - level), rel=1e-6)


def test_a_confidence_sequence_starts_with_everything_open():
    start = confidence_sequence(0, 0)
    assert math.isnan(start.estimate)
    assert (start.low, start.high) == (0, 1)


@pytest.mark.parametrize("p0", [0.1, 0.5, 0.8])
def test_evidence_is_the_mixture_over_the_rates_above(p0):
    outcomes = [1, 1, 0, 1, 0, 0, 1, 1, 1, 1]
    failed = np.cumsum(outcomes)
    expected = [mixture_ratio(s, n, p0, above=p0) for n, s in enumerate(failed, start=1)]
    assert e_process(outcomes, p0) == pytest.approx(expected, rel=1e-6)


def evidence(s, n, p0):
    """E-value after s failures in n trials; their order does not matter."""
    return e_process([1] * s + [0] * (n - s), p0)[-1]


def test_looking_after_every_rollout_keeps_the_promise():
    rng = np.random.default_rng(6)
    runs, p0 = 1_000, 0.1
    stopped = sum(e_process(rng.random(300) < p0, p0).max() >= 20 for _ in range(runs))
    assert stopped <= stats.binom.ppf(0.9995, runs, 0.05)
    assert np.mean([e_process(rng.random(300) < 0.25, p0).max() >= 20 for _ in range(50)]) > 0.9

    @functools.cache
    def holds(s, n):
        found = confidence_sequence(s, n)
        return found.low <= 0.2 <= found.high

    left = 0
    for _ in range(200):
        failed = np.cumsum(rng.random(60) < 0.2).tolist()
        left += not all(holds(s, n) for n, s in enumerate(failed, start=1))
    assert left <= stats.binom.ppf(0.9995, 200, 0.05)


def test_an_e_value_has_mean_at_most_one_for_every_rate_that_is_tolerated():
    n, p0 = 40, 0.3
    e = np.array([evidence(s, n, p0) for s in range(n + 1)])
    for p in (0.05, 0.2, 0.3):
        assert stats.binom.pmf(np.arange(n + 1), n, p) @ e <= 1 + 1e-9
    assert stats.binom.pmf(np.arange(n + 1), n, p0) @ e == pytest.approx(1)


def test_overwhelming_evidence_stays_finite():
    assert np.isfinite(e_process(np.ones(10_000), 0.01)).all()
    assert e_process(np.zeros(100_000), 0.5)[-1] == 0


def test_the_first_bound_is_a_confidence_sequence_at_half_of_alpha():
    clean = new_mode_bound([None] * 40)
    assert clean[-1] == pytest.approx(confidence_sequence(0, 40, 0.975).high)
    # The second sequence starts after the mode that opened it, with a sixth of alpha.
    after = new_mode_bound(["a", *[None] * 38, "a"])
    own = confidence_sequence(0, 39, 1 - 0.05 / 6).high
    assert after[-1] == pytest.approx(min(own, confidence_sequence(2, 40, 0.975).high))
    assert (np.diff(after) <= 0).all()
    # What was seen before the second new mode is the better bound for a while.
    second = new_mode_bound(["a", *[None] * 38, "b"])
    assert second[-1] == second[-2] == pytest.approx(confidence_sequence(0, 38, 1 - 0.05 / 6).high)
    assert new_mode_bound(["a", "b", *["a", "b"] * 200])[-1] == pytest.approx(
        confidence_sequence(0, 400, 1 - 0.05 / 12).high
    )


# ------------------------------------------------------------------ attribution


def brute_shapley(outcomes, k):
    values = np.zeros(k)
    for order in itertools.permutations(range(k)):
        mask = 0
        for cause in order:
            values[cause] += outcomes[mask | 1 << cause] - outcomes[mask]
            mask |= 1 << cause
    return values / math.factorial(k)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_shapley_is_the_mean_over_all_orders(k, units, data):
    row = st.lists(st.floats(0, 1), min_size=2**k, max_size=2**k)
    outcomes = data.draw(st.lists(row, min_size=units, max_size=units))
    found = [i.estimate for i in shapley_intervals(outcomes, np.random.default_rng(0), draws=2)]
    mean = np.mean(outcomes, axis=0)
    assert found == pytest.approx(brute_shapley(mean, k), abs=1e-12)
    assert sum(found) == pytest.approx(mean[-1] - mean[0], abs=1e-12)


def test_shapley_intervals_cover():
    rng = np.random.default_rng(8)
    chances = np.array([0.1, 0.3, 0.1, 0.9, 0.1, 0.3, 0.1, 0.9])
    truth, runs, covered = brute_shapley(chances, 3), 200, np.zeros(3)
    for _ in range(runs):
        found = shapley_intervals(rng.random((80, 8)) < chances, rng, draws=400)
        covered += [i.low <= t <= i.high for i, t in zip(found, truth, strict=True)]
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.94)
    assert ((covered >= low) & (covered <= high)).all()


def test_a_cause_that_worked_in_every_unit_keeps_a_width():
    (found,) = shapley_intervals(np.tile([0, 1], (20, 1)), np.random.default_rng(0))
    assert found.estimate == found.high == 1
    assert found.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 20)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: good_turing_missing_mass([]),
        lambda: good_turing_missing_mass([0, 0]),
        lambda: chao1([-1, 2]),
        lambda: chao1([1.5]),
        lambda: missing_mass_upper([1, 2], level=1),
        lambda: new_mode_bound(["a"], level=1),
        lambda: accumulation_curve([3, 2], rollouts=4),
        lambda: confidence_sequence(3, 2),
        lambda: confidence_sequence(-1, 2),
        lambda: confidence_sequence(1, 2, level=0),
        lambda: e_process([0, 1], 0),
        lambda: e_process([0, 2], 0.5),
        lambda: e_process([], 0.5),
        lambda: shapley_intervals([[0, 2]], np.random.default_rng(0)),
        lambda: shapley_intervals([[-0.5, 1]], np.random.default_rng(0)),
        lambda: shapley_intervals(np.zeros((0, 4)), np.random.default_rng(0)),
        lambda: shapley_intervals([0, 1], np.random.default_rng(0)),
        lambda: shapley_intervals([[0, 1, 1]], np.random.default_rng(0)),
        lambda: shapley_intervals([[0]], np.random.default_rng(0)),
        lambda: shapley_intervals([[0, math.nan]], np.random.default_rng(0)),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
