import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from safety_lib.stats.agreement import cohen_kappa, krippendorff_alpha
from safety_lib.stats.attribution import shapley, shapley_intervals
from safety_lib.stats.intervals import clopper_pearson
from safety_lib.stats.missing_mass import (
    accumulation_curve,
    chao1,
    good_turing_missing_mass,
    missing_mass_upper,
)
from safety_lib.stats.sequential import (
    confidence_sequence,
    e_process,
    flip_e_value,
    rate_e_value,
    sprt_bounds,
)

COUNTS = [0, 1, 1, 4, 2, 5, 2, 4, 1, 2]

# ------------------------------------------------------------------ discovery


def test_published_species_counts():
    assert good_turing_missing_mass(COUNTS) == pytest.approx(3 / 22)
    assert chao1(COUNTS) == 9.75
    assert chao1(COUNTS, bias_corrected=False) == 10.5
    assert chao1([3, 1], bias_corrected=False) == chao1([3, 1]) == 2


@pytest.mark.parametrize(("method", "promised"), [("mcallester", 0.95), ("esty", 0.9)])
@pytest.mark.parametrize("modes", [5, 60, 1_000])
def test_missing_mass_bound_covers(method, promised, modes):
    rng = np.random.default_rng(modes)
    chances = rng.dirichlet(np.full(modes, 0.5))
    runs, n, covered = 400, 200, 0
    for _ in range(runs):
        counts = rng.multinomial(n, chances)
        covered += chances[counts == 0].sum() <= missing_mass_upper(counts, method=method)
    assert covered >= stats.binom.ppf(0.0005, runs, promised)


def test_missing_mass_bound_without_singletons_has_a_slack():
    for method in ("mcallester", "esty"):
        assert missing_mass_upper([40, 30, 30], method=method) > 0.999 * (1 - 0.05 ** (1 / 100))
    assert missing_mass_upper([1], method="esty") == missing_mass_upper([1]) == 1


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


@pytest.mark.parametrize(
    ("b", "c", "uniform", "kt", "one_sided"),
    [
        (10, 0, 93.091, 180.426, 186.091),
        (9, 1, 9.309, 9.496, 18.509),
        (8, 2, 2.069, 1.676, 4.002),
        (15, 5, 3.221, 2.404, 6.356),
        (7, 1, 3.556, 3.352, 6.972),
        (5, 5, 0.369, 0.246, 0.369),
    ],
)
def test_flip_e_values(b, c, uniform, kt, one_sided):
    for mixture, expected in (("uniform", uniform), ("kt", kt), ("one-sided", one_sided)):
        assert flip_e_value(b, c, mixture) == pytest.approx(expected, abs=5e-4)


def test_fewest_flips_in_one_direction():
    assert flip_e_value(7, 0) == pytest.approx(31.9, abs=0.05)
    assert flip_e_value(6, 0) < 20 < flip_e_value(7, 0)
    assert flip_e_value(8, 0) < 100 < flip_e_value(9, 0) == pytest.approx(102.3, abs=0.05)


def test_published_confidence_sequences():
    assert confidence_sequence(0, 50).high == pytest.approx(0.10464, abs=5e-6)
    found = confidence_sequence(5, 50)
    assert (found.low, found.high) == pytest.approx((0.01585, 0.28654), abs=5e-6)
    fixed = clopper_pearson(5, 50)
    assert (fixed.low, fixed.high) == pytest.approx((0.03328, 0.21814), abs=5e-6)


@given(st.integers(0, 300), st.data())
def test_confidence_sequence_contains_the_estimate_and_mirrors(n, data):
    s = data.draw(st.integers(0, n))
    found, mirrored = confidence_sequence(s, n), confidence_sequence(n - s, n)
    assert 0 <= found.low < found.high <= 1
    assert n == 0 or found.low <= found.estimate <= found.high
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_looking_after_every_rollout_keeps_the_promise():
    rng = np.random.default_rng(6)
    runs, p0 = 1_000, 0.1
    stopped = sum(e_process(rng.random(300) < p0, p0).max() >= 20 for _ in range(runs))
    assert stopped <= stats.binom.ppf(0.9995, runs, 0.05)
    assert np.mean([e_process(rng.random(300) < 0.25, p0).max() >= 20 for _ in range(50)]) > 0.9
    left = 0
    for _ in range(200):
        s = np.cumsum(rng.random(120) < 0.2)
        left += any(
            not (i.low <= 0.2 <= i.high)
            for i in (confidence_sequence(int(k), n + 1) for n, k in enumerate(s))
        )
    assert left <= stats.binom.ppf(0.9995, 200, 0.05)


def test_an_e_value_has_mean_at_most_one_for_every_rate_that_is_tolerated():
    n, p0 = 40, 0.3
    e = rate_e_value(np.arange(n + 1), n, p0)
    for p in (0.05, 0.2, 0.3):
        assert stats.binom.pmf(np.arange(n + 1), n, p) @ e <= 1 + 1e-9
    assert stats.binom.pmf(np.arange(n + 1), n, p0) @ e == pytest.approx(1)


def test_overwhelming_evidence_stays_finite():
    assert np.isfinite(rate_e_value(10_000, 10_000, 0.01))
    assert rate_e_value(0, 100_000, 0.5) == 0


def test_sprt_bounds():
    assert sprt_bounds(0.05, 0.2) == pytest.approx((0.2 / 0.95, 16))


# ------------------------------------------------------------------ agreement


def test_cohen_kappa():
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.40)
    assert math.isnan(cohen_kappa([[7, 0], [0, 0]]))


@given(st.lists(st.integers(0, 30), min_size=9, max_size=9).filter(lambda x: sum(x) > 0))
def test_cohen_kappa_agrees_with_statsmodels(cells):
    table = np.reshape(cells, (3, 3))
    found = cohen_kappa(table)
    if not math.isnan(found):
        assert found == pytest.approx(cohens_kappa(table, return_results=False))


def test_krippendorff_canonical_example():
    x = math.nan
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, x, x, x],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, x, 3],
        [x, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, x],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, x],
    ]
    for level, expected in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert krippendorff_alpha(ratings, level) == pytest.approx(expected, abs=5e-4)
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))


# ------------------------------------------------------------------ attribution


def brute_shapley(outcomes, k):
    values = np.zeros(k)
    for order in itertools.permutations(range(k)):
        mask = 0
        for cause in order:
            values[cause] += outcomes[mask | 1 << cause] - outcomes[mask]
            mask |= 1 << cause
    return values / math.factorial(k)


@given(st.integers(1, 5), st.data())
def test_shapley_is_the_mean_over_all_orders(k, data):
    outcomes = data.draw(st.lists(st.floats(0, 1), min_size=2**k, max_size=2**k))
    found = shapley(outcomes)
    assert found == pytest.approx(brute_shapley(outcomes, k), abs=1e-12)
    assert found.sum() == pytest.approx(outcomes[-1] - outcomes[0], abs=1e-12)


def test_shapley_intervals_cover():
    rng = np.random.default_rng(8)
    chances = np.array([0.1, 0.3, 0.1, 0.9, 0.1, 0.3, 0.1, 0.9])
    truth, runs, covered = shapley(chances), 200, np.zeros(3)
    for _ in range(runs):
        found = shapley_intervals(rng.random((80, 8)) < chances, rng, draws=400)
        covered += [i.low <= t <= i.high for i, t in zip(found.causes, truth, strict=True)]
    assert (covered >= stats.binom.ppf(0.0005, runs, 0.93)).all()


def test_a_cause_that_worked_in_every_unit_keeps_a_width():
    found = shapley_intervals(np.tile([0, 1], (20, 1)), np.random.default_rng(0))
    assert found.causes[0].estimate == found.causes[0].high == 1
    assert found.causes[0].low < 0.7


@pytest.mark.parametrize(
    "call",
    [
        lambda: good_turing_missing_mass([]),
        lambda: good_turing_missing_mass([0, 0]),
        lambda: chao1([-1, 2]),
        lambda: chao1([1.5]),
        lambda: missing_mass_upper([1, 2], level=1),
        lambda: missing_mass_upper([1, 2], method="mine"),
        lambda: accumulation_curve([3, 2], rollouts=4),
        lambda: confidence_sequence(3, 2),
        lambda: confidence_sequence(-1, 2),
        lambda: rate_e_value(1, 2, 0),
        lambda: rate_e_value(3, 2, 0.5),
        lambda: e_process([0, 2], 0.5),
        lambda: e_process([], 0.5),
        lambda: flip_e_value(-1, 2),
        lambda: flip_e_value(1, 2, "mine"),
        lambda: sprt_bounds(0.6, 0.5),
        lambda: cohen_kappa([[1, 2]]),
        lambda: cohen_kappa([[0, 0], [0, 0]]),
        lambda: cohen_kappa([[1, -1], [0, 1]]),
        lambda: krippendorff_alpha([1, 2]),
        lambda: krippendorff_alpha([[1, math.nan]]),
        lambda: krippendorff_alpha([[1, 2], [1, 3]], "ratio"),
        lambda: shapley([1, 2, 3]),
        lambda: shapley([1]),
        lambda: shapley([1, math.nan]),
        lambda: shapley_intervals([[0, 2]], np.random.default_rng(0)),
        lambda: shapley_intervals([0, 1], np.random.default_rng(0)),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
