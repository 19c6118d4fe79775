import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safety_lib.stats.audit import hypergeometric_lower, hypergeometric_upper, stratified_audit
from safety_lib.stats.prevalence import lang_reiczigel, ppi_mean, rogan_gladen


@st.composite
def strata(draw):
    sizes, audited, positive = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        sizes.append(draw(st.integers(1, 2_000)))
        audited.append(draw(st.integers(1, sizes[-1])))
        positive.append(draw(st.integers(0, audited[-1])))
    return sizes, audited, positive


METHODS = ["hypergeometric", "mover", "normal"]


@given(strata(), st.sampled_from(METHODS))
def test_audit_contains_its_estimate_and_what_was_seen(case, method):
    sizes, audited, positive = case
    found = stratified_audit(sizes, audited, positive, method=method)
    assert found.total == pytest.approx(
        sum(s * x / n for s, n, x in zip(sizes, audited, positive, strict=True))
    )
    seen, clean = sum(positive), sum(audited) - sum(positive)
    assert seen <= found.low <= found.total + 1e-9
    assert found.total - 1e-9 <= found.high <= sum(sizes) - clean
    assert (found.population, found.method) == (sum(sizes), method)


@given(st.integers(1, 500), st.data())
def test_one_stratum_has_the_hypergeometric_bounds(size, data):
    n = data.draw(st.integers(1, size))
    x = data.draw(st.integers(0, n))
    for method in ("hypergeometric", "mover"):
        found = stratified_audit([size], [n], [x], 0.9, method)
        bounds = [
            bound(x, n, size, 0.95, mid_p=method == "mover")
            for bound in (hypergeometric_lower, hypergeometric_upper)
        ]
        if method == "mover":  # distances, should an estimate lie outside its whole-number bounds
            below, above = (abs(size * x / n - bound) for bound in bounds)
            bounds = [max(x, size * x / n - below), min(size - n + x, size * x / n + above)]
        assert [found.low, found.high] == pytest.approx(bounds)


def test_strata_share_out_the_error():
    sizes, audited, positive = [400, 900, 50], [40, 90, 50], [7, 2, 5]
    found = stratified_audit(sizes, audited, positive, 0.9)
    strata = list(zip(positive, audited, sizes, strict=True))
    assert found.low == sum(hypergeometric_lower(*row, 1 - 0.1 / 6) for row in strata)
    assert found.high == sum(hypergeometric_upper(*row, 1 - 0.1 / 6) for row in strata)
    estimates = [size * x / n for x, n, size in strata]
    low = [hypergeometric_lower(*row, 0.95, mid_p=True) for row in strata]
    high = [hypergeometric_upper(*row, 0.95, mid_p=True) for row in strata]
    mover = stratified_audit(sizes, audited, positive, 0.9, "mover")
    assert mover.total - mover.low == pytest.approx(math.dist(estimates, low))
    assert mover.high - mover.total == pytest.approx(math.dist(estimates, high))
    normal = stratified_audit(sizes, audited, positive, 0.9, "normal")
    se = math.sqrt(
        sum(
            size**2 * (1 - n / size) * np.var(np.r_[np.ones(x), np.zeros(n - x)], ddof=1) / n
            for x, n, size in strata
        )
    )
    assert normal.high - normal.total == pytest.approx(stats.norm.ppf(0.95) * se)
    assert normal.total - normal.low == pytest.approx(stats.norm.ppf(0.95) * se)


def test_a_stratum_without_variation_has_the_variance_of_one_more_of_each():
    found = stratified_audit([1_000], [40], [0], method="normal")
    variance = 1_000**2 * (1 - 40 / 1_000) * (1 / 42) * (41 / 42) / 40
    assert found.high == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))
    full = stratified_audit([1_000], [40], [40], method="normal")
    assert full.low == pytest.approx(1_000 - found.high)


@pytest.mark.parametrize("method", METHODS)
def test_an_audit_that_finds_nothing_still_bounds_the_unseen_part(method):
    found = stratified_audit([500, 10_000], [500, 300], [420, 0], method=method)
    assert found.total == found.low == 420
    assert found.high > 420 + 50
    assert str(stratified_audit([1_000], [50], [0], level=0.90)) == "0 of 1000 [0, 56]"


def test_an_empty_stratum_adds_nothing():
    assert stratified_audit([0, 900], [0, 90], [0, 9]) == stratified_audit([900], [90], [9])


def test_a_census_leaves_nothing_open():
    for method in METHODS:
        found = stratified_audit([20, 30], [20, 30], [4, 0], method=method)
        assert found.total == found.low == found.high == 4


def test_audit_coverage():
    rng = np.random.default_rng(4)
    runs, sizes, truth, audited = 400, (600, 9_400), (450, 120), (80, 400)
    covered = {"hypergeometric": 0, "normal": 0}
    for _ in range(runs):
        x = [rng.hypergeometric(t, s - t, n) for t, s, n in zip(truth, sizes, audited, strict=True)]
        for method in covered:
            found = stratified_audit(sizes, audited, x, method=method)
            covered[method] += found.low <= sum(truth) <= found.high
    fewest = stats.binom.ppf(0.0005, runs, 0.95)
    assert covered["hypergeometric"] >= fewest
    assert covered["normal"] >= stats.binom.ppf(0.0005, runs, 0.92)


def test_rogan_gladen_on_brucellosis():
    found = rogan_gladen(23, 150, 0.96, 0.89)
    assert found.estimate == pytest.approx(0.050980, abs=5e-7)
    assert found.low == 0  # published unclipped: -0.0066
    assert found.high == pytest.approx(0.1289, abs=5e-5)
    mirrored = rogan_gladen(127, 150, 0.89, 0.96)
    assert mirrored.estimate == pytest.approx(1 - found.estimate)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1))


def test_lang_reiczigel_on_brucellosis():
    found = lang_reiczigel(23, 150, 96, 100, 178, 200)
    assert found.estimate == pytest.approx(0.050980, abs=5e-7)
    assert found.low == 0  # published unclipped: -0.0312
    assert found.high == pytest.approx(0.13939, abs=5e-6)
    z = stats.norm.ppf(0.975)
    assert found.high == pytest.approx(0.057493 - 0.003415 + z * 0.043526, abs=2e-6)
    mirrored = lang_reiczigel(127, 150, 178, 200, 96, 100)
    assert mirrored.estimate == pytest.approx(1 - found.estimate)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1))


@given(st.integers(30, 70), st.integers(15, 20), st.integers(30, 40))
def test_lang_reiczigel_mirrors_what_is_flagged(k, detected, cleared):
    found = lang_reiczigel(k, 100, detected, 20, cleared, 40)
    mirrored = lang_reiczigel(100 - k, 100, cleared, 40, detected, 20)
    assert mirrored.estimate == pytest.approx(1 - found.estimate)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_lang_reiczigel_covers():
    rng = np.random.default_rng(9)
    runs, covered, prevalence, sensitivity, specificity = 1_000, 0, 0.4, 0.8, 0.9
    flagged = prevalence * sensitivity + (1 - prevalence) * (1 - specificity)
    for _ in range(runs):
        k, detected = rng.binomial(300, flagged), rng.binomial(60, sensitivity)
        found = lang_reiczigel(k, 300, detected, 60, rng.binomial(90, specificity), 90)
        covered += found.low <= prevalence <= found.high
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.95)
    assert low <= covered <= high


@given(st.integers(1, 200), st.data())
def test_an_estimated_detector_leaves_more_open_than_a_known_one(n, data):
    k = data.draw(st.integers(0, n))
    known = lang_reiczigel(k, n, 900_000, 1_000_000, 950_000, 1_000_000)
    found = lang_reiczigel(k, n, 18, 20, 38, 40)
    if found.low > 0 and found.high < 1:
        assert found.high - found.low > known.high - known.low > 0
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high


@given(st.integers(30, 70))
def test_a_detector_known_to_the_last_digit_is_that_of_rogan_and_gladen(k):
    known = lang_reiczigel(k, 100, 900_000_000, 10**9, 950_000_000, 10**9)
    expected = rogan_gladen(k, 100, 0.9, 0.95)
    assert known.estimate == pytest.approx(expected.estimate)
    # The interval is Agresti and Coull's: Wilson's centre, and a little wider than Wilson's.
    assert known.low + known.high == pytest.approx(expected.low + expected.high, abs=1e-6)
    assert expected.high < known.high < expected.high + 0.01


def test_a_perfect_detector_gives_wilson_back():
    found = rogan_gladen(14, 60, 1.0, 1.0)
    assert str(found) == "0.233 [0.144, 0.354]"


def test_prediction_powered_mean_follows_its_formula():
    rng = np.random.default_rng(1)
    truth = rng.random(3_000) < 0.1
    scores = np.clip(0.6 * truth + 0.3 * rng.random(3_000), 0, 1)
    f, y = scores[:300], truth[:300].astype(float)
    found = ppi_mean(scores[300:], f, y)
    se = math.sqrt(scores[300:].var() / 2_700 + (f - y).var(ddof=1) / 300)
    assert found.estimate == pytest.approx(scores[300:].mean() - (f - y).mean())
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * se)


def test_prediction_powered_mean_covers_and_beats_the_labels_alone():
    rng = np.random.default_rng(2)
    runs, covered, width = 400, 0, 0.0
    for _ in range(runs):
        truth = rng.random(2_200) < 0.15
        scores = np.clip(0.7 * truth + 0.2 * rng.random(2_200), 0, 1)
        found = ppi_mean(scores[200:], scores[:200], truth[:200])
        covered += found.low <= 0.15 <= found.high
        width += (found.high - found.low) / runs
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.95)
    assert low <= covered <= high
    assert width < 2 * 1.96 * math.sqrt(0.15 * 0.85 / 200)


def test_a_score_that_made_no_error_in_the_sample_is_not_taken_for_perfect():
    found = ppi_mean(np.zeros(1_000), np.zeros(30), np.zeros(30))
    assert found.estimate == found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30))


@pytest.mark.parametrize(
    "call",
    [
        lambda: stratified_audit([10], [5, 5], [1, 1]),
        lambda: stratified_audit([10, 10], [5, 0], [1, 0]),
        lambda: stratified_audit([10], [11], [1]),
        lambda: stratified_audit([10], [5], [6]),
        lambda: stratified_audit([0], [0], [0]),
        lambda: stratified_audit([10], [5], [math.nan]),
        lambda: stratified_audit([-10], [5], [1]),
        lambda: stratified_audit([10], [5], [1], method="wald"),
        lambda: rogan_gladen(3, 2, 0.9, 0.9),
        lambda: rogan_gladen(1, 2, 0.5, 0.5),
        lambda: rogan_gladen(1, 2, math.nan, 0.9),
        lambda: rogan_gladen(1, 2, 0.9, math.nan),
        lambda: rogan_gladen(1, 2, 1.1, 0.5),
        lambda: rogan_gladen(1, 2, 0.5, 1.1),
        lambda: lang_reiczigel(1, 2, 3, 2, 3, 3),
        lambda: lang_reiczigel(1, 2, 1, 1, 0, 0),
        lambda: ppi_mean([], [0, 1], [0, 1]),
        lambda: ppi_mean([0.5], [0.5], [1]),
        lambda: ppi_mean([0.5], [0.5, 2], [1, 0]),
        lambda: ppi_mean([0.5], [0.5, math.nan], [1, 0]),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
