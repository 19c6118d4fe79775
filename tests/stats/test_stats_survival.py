import math
import time as clock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines import AalenJohansenFitter, KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import restricted_mean_survival_time
from scipy import stats

from safety_lib.stats.survival import (
    cumulative_incidence,
    kaplan_meier,
    last_time_at_risk,
    turns_without_event,
)
from safety_lib.stats.survival_clusters import compare_arms, delayed_share, logrank

# Freireich et al. (1963), weeks in remission.
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
TREATED_EVENT = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
TIME, EVENT = TREATED + PLACEBO, TREATED_EVENT + [1] * 21
ARM = ["6-MP"] * 21 + ["placebo"] * 21


def random_sample(seed, n=120, horizon=9):
    """Discrete times with many ties, censored at random and at the horizon."""
    rng = np.random.default_rng(seed)
    failure, censoring = rng.geometric(0.18, n), rng.geometric(0.08, n)
    time = np.minimum(np.minimum(failure, censoring), horizon)
    return time, (failure <= censoring) & (failure <= horizon)


@st.composite
def samples(draw):
    n = draw(st.integers(1, 40))
    time = draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    return time, draw(st.lists(st.booleans(), min_size=n, max_size=n))


# ------------------------------------------------------------------ Kaplan-Meier


def test_freireich_curve():
    curve = kaplan_meier(TREATED, TREATED_EVENT)
    rows = curve.events > 0
    assert curve.time[rows].tolist() == [6, 7, 10, 13, 16, 22, 23]
    for column, expected in (
        (curve.survival, [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]),
        (curve.low, [0.6197, 0.5631, 0.5032, 0.4316, 0.3675, 0.2678, 0.1881]),
        (curve.high, [0.9516, 0.9228, 0.8894, 0.8491, 0.8049, 0.7468, 0.6801]),
    ):
        assert column[rows] == pytest.approx(expected, abs=5e-5)
    assert curve.at_risk[rows].tolist() == [21, 17, 15, 12, 11, 7, 6]


def test_freireich_placebo_curve():
    curve = kaplan_meier(PLACEBO, np.ones(21))
    expected = {
        1: 0.9048, 2: 0.8095, 3: 0.7619, 4: 0.6667, 5: 0.5714, 8: 0.3810,
        11: 0.2857, 12: 0.1905, 15: 0.1429, 17: 0.0952, 22: 0.0476, 23: 0,
    }  # fmt: skip
    assert curve.time.tolist() == list(expected)
    assert curve.survival == pytest.approx(list(expected.values()), abs=5e-5)
    assert (curve.at(0.5), curve.at(4.5), curve.at(99)) == (1, curve.at(4), 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_curve_agrees_with_lifelines_and_scipy(seed, level):
    time, event = random_sample(seed)
    curve = kaplan_meier(time, event, level)
    reference = KaplanMeierFitter(alpha=1 - level).fit(time, event)
    band = reference.confidence_interval_survival_function_
    failed = curve.survival < 1
    assert curve.survival == pytest.approx(
        reference.survival_function_.loc[curve.time].values[:, 0]
    )
    assert curve.low[failed] == pytest.approx(band.loc[curve.time].values[failed, 0])
    assert curve.high[failed] == pytest.approx(band.loc[curve.time].values[failed, 1])
    sf = stats.ecdf(stats.CensoredData(uncensored=time[event], right=time[~event])).sf
    assert curve.survival == pytest.approx(sf.evaluate(curve.time))
    bounds = sf.confidence_interval(level, method="log-log")
    assert curve.low[failed] == pytest.approx(bounds.low.evaluate(curve.time)[failed])
    assert curve.high[failed] == pytest.approx(bounds.high.evaluate(curve.time)[failed])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_without_censoring_the_curve_is_one_minus_the_ecdf(time):
    curve = kaplan_meier(time, np.ones(len(time)))
    for t, s in zip(curve.time, curve.survival, strict=True):
        assert s == pytest.approx(np.mean(np.array(time) > t), abs=1e-12)


@given(samples())
def test_band_contains_the_curve_and_has_a_width(case):
    curve = kaplan_meier(*case)
    assert (curve.low >= 0).all()
    assert (curve.low <= curve.survival).all()
    assert (curve.survival <= curve.high).all()
    assert (curve.high <= 1).all()
    assert (curve.low < curve.high).all()
    assert (np.diff(curve.survival) <= 0).all()


def test_nothing_failed_and_everything_failed():
    safe = kaplan_meier([8] * 30, [0] * 30)
    assert (safe.survival[0], safe.high[0]) == (1, 1)
    assert safe.low[0] == pytest.approx(0.025 ** (1 / 30))
    lost = kaplan_meier([1] * 30, [1] * 30)
    assert (lost.survival[0], lost.low[0]) == (0, 0)
    assert lost.high[0] == pytest.approx(1 - 0.025 ** (1 / 30))


@given(samples())
def test_last_time_with_enough_at_risk(case):
    time, event = case
    curve = kaplan_meier(time, event)
    enough = curve.time[curve.at_risk >= 5]
    assert last_time_at_risk(time) == (enough[-1] if enough.size else 0)


def test_weeks_in_remission_of_freireich():
    # The published restricted means, less the share that had relapsed by then: a week in which
    # somebody relapses is no week in remission.
    left = kaplan_meier(TREATED, TREATED_EVENT)
    for tau, mean in ((23, 17.909), (35, 23.287)):
        expected = mean - (1 - left.at(tau))
        assert turns_without_event(TREATED, TREATED_EVENT, tau) == pytest.approx(expected, abs=5e-4)
    assert turns_without_event(PLACEBO, np.ones(21), 23) == pytest.approx(7.667, abs=5e-4)
    assert turns_without_event(PLACEBO, np.ones(21), 100) == pytest.approx(np.mean(PLACEBO) - 1)
    with pytest.raises(ValueError, match="tau must be at most the last time, 35"):
        turns_without_event(TREATED, TREATED_EVENT, 36)


@pytest.mark.parametrize("seed", range(4))
def test_turns_without_event_agree_with_lifelines(seed):
    time, event = random_sample(seed)
    reference = KaplanMeierFitter().fit(time, event)
    for tau in (1, 3, 6, 9):
        expected = restricted_mean_survival_time(reference, t=tau) - 1 + reference.predict(tau)
        found = turns_without_event(time, event, tau)
        assert found == pytest.approx(expected)
        assert found == pytest.approx(sum(reference.predict(k) for k in range(1, tau + 1)))


def test_nobody_censored_makes_it_a_plain_mean():
    failure = np.random.default_rng(3).geometric(0.2, 400)
    time, event = np.minimum(failure, 8), failure <= 8
    counted = np.mean([f - 1 if f <= 8 else 8 for f in failure])
    assert turns_without_event(time, event, 8) == pytest.approx(counted)


# ------------------------------------------------------------------ competing risks


@given(samples(), st.data())
def test_incidences_and_survival_add_up_to_one(case, data):
    time, event = case
    cause = [data.draw(st.integers(1, 3)) if e else 0 for e in event]
    found = cumulative_incidence(time, cause)
    survival = kaplan_meier(time, event).survival
    assert found.incidence.sum(axis=1) + survival == pytest.approx(1)
    for column, one in enumerate(found.causes):
        only = kaplan_meier(time, np.array(cause) == one)
        assert (found.incidence[:, column] <= 1 - only.survival + 1e-12).all()


@pytest.mark.filterwarnings("ignore")
def test_incidence_agrees_with_lifelines():
    rng = np.random.default_rng(7)
    time, cause = rng.permutation(np.arange(1.0, 81.0)), rng.integers(0, 3, 80)
    found = cumulative_incidence(time, cause)
    for column, one in enumerate(found.causes):
        reference = AalenJohansenFitter(calculate_variance=False).fit(time, cause, one)
        expected = reference.cumulative_density_.loc[found.time].values[:, 0]
        assert found.incidence[:, column] == pytest.approx(expected)


def test_without_an_event_there_is_no_curve_of_a_cause():
    found = cumulative_incidence([1, 2], [0, 0])
    assert (found.causes, found.incidence.shape) == ((), (2, 0))


def test_taking_competing_events_for_censoring_overstates_incidence():
    time, cause = [1, 2, 3, 4], [2, 1, 2, 1]
    assert cumulative_incidence(time, cause).incidence[-1, 0] == pytest.approx(0.5)
    assert 1 - kaplan_meier(time, np.array(cause) == 1).survival[-1] == 1


# ------------------------------------------------------------------ delayed share


def scenarios(seed, early, late, clusters=40, each=5, horizon=6):
    rng = np.random.default_rng(seed)
    hazard = np.r_[early, np.full(horizon - 1, late)]
    hit = rng.random((clusters * each, horizon)) < hazard
    event = hit.any(axis=1)
    time = np.where(event, hit.argmax(axis=1) + 1, horizon)
    return time, event, np.repeat(np.arange(clusters), each)


def test_delayed_share_is_one_minus_the_ratio_of_incidences():
    time, event, cluster = scenarios(1, 0.1, 0.1)
    curve = kaplan_meier(time, event)
    found = delayed_share(time, event, cluster, np.random.default_rng(2))
    assert found.estimate == pytest.approx(1 - (1 - curve.at(1)) / (1 - curve.at(6)))
    assert 0 < found.low < found.estimate < found.high < 1


def test_delayed_share_covers_the_truth():
    runs, covered = 200, 0
    truth = 1 - 0.1 / (1 - 0.9 * 0.88**5)
    for run in range(runs):
        found = delayed_share(*scenarios(run, 0.1, 0.12), np.random.default_rng(run), draws=400)
        covered += found.low <= truth <= found.high
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.94)
    assert low <= covered <= high


def test_delayed_share_at_its_limits_keeps_a_width():
    rng = np.random.default_rng(0)
    cluster = np.arange(20)
    never_early = delayed_share([2] * 20, [1] * 10 + [0] * 10, cluster, rng)
    assert never_early.estimate == never_early.high == 1
    assert never_early.low == pytest.approx(0.025 ** (1 / 10))
    always_early = delayed_share([1] * 20, [1] * 10 + [0] * 10, cluster, rng)
    assert always_early.estimate == always_early.low == 0 < always_early.high
    nothing = delayed_share([6] * 20, [0] * 20, cluster, rng)
    assert math.isnan(nothing.estimate)
    assert (nothing.low, nothing.high) == (0, 1)


# ------------------------------------------------------------------ two arms


def test_freireich_logrank():
    found = logrank(TIME, EVENT, ARM)
    assert found.arms == ("6-MP", "placebo")
    assert found.observed == (9, 21)
    assert found.expected == pytest.approx((19.2505, 10.7495), abs=5e-5)
    assert found.variance == pytest.approx(6.2570, abs=5e-5)
    assert found.chi2 == pytest.approx(16.7929, abs=5e-5)
    assert found.p_value == pytest.approx(4.169e-5, abs=5e-9)
    assert math.sqrt(found.chi2) == pytest.approx(4.09792, abs=5e-6)


@pytest.mark.parametrize("sizes", [(50, 70), (4, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_logrank_agrees_with_lifelines_and_scipy(seed, sizes):
    (x, dx), (y, dy) = (random_sample(seed + 100 * arm, n) for arm, n in enumerate(sizes))
    found = logrank(np.r_[x, y], np.r_[dx, dy], np.repeat([0, 1], sizes))
    reference = logrank_test(x, y, dx, dy)
    assert (found.chi2, found.p_value) == pytest.approx(
        (reference.test_statistic, reference.p_value)
    )
    censored = [stats.CensoredData(uncensored=t[d], right=t[~d]) for t, d in ((x, dx), (y, dy))]
    assert stats.logrank(*censored).statistic ** 2 == pytest.approx(found.chi2)


def test_logrank_without_events_is_no_evidence():
    assert logrank([3, 3], [0, 0], ["a", "b"]).p_value == 1


def two_arms(seed, late, clusters=20, each=4):
    """Scenarios of different difficulty, met by both arms."""
    rng = np.random.default_rng(seed)
    difficulty = rng.gamma(2, 0.5, clusters)
    parts = []
    for hazard in (0.1, late):
        p = np.clip(hazard * np.repeat(difficulty, each), 0, 0.9)
        failure = rng.geometric(p)
        parts.append((np.minimum(failure, 8), failure <= 8))
    time, event = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    cluster = np.tile(np.repeat(np.arange(clusters), each), 2)
    return time, event, np.repeat(["v1", "v2"], clusters * each), cluster


def test_turns_gained_on_freireich():
    found = compare_arms(
        TIME, EVENT, ["b"] * 21 + ["a"] * 21, np.tile(np.arange(21), 2), np.random.default_rng(1)
    )
    assert found.tau == 23
    left = kaplan_meier(TREATED, TREATED_EVENT).at(23)  # of the others nobody is
    assert found.gained.estimate == pytest.approx(17.909 - 8.667 + left, abs=1e-3)
    assert found.gained.low > 0
    assert found.p_value < 0.01
    assert found.logrank.chi2 == pytest.approx(16.7929, abs=5e-5)


def test_permutation_of_arms_keeps_its_error_rate():
    runs = 200
    rejected = sum(
        compare_arms(*two_arms(run, 0.1), np.random.default_rng(run), draws=199).p_value <= 0.05
        for run in range(runs)
    )
    assert rejected <= stats.binom.ppf(0.9995, runs, 0.05)
    assert compare_arms(*two_arms(0, 0.3), np.random.default_rng(0)).p_value < 0.01


def test_turns_gained_cover_the_truth():
    runs, covered = 150, 0
    for run in range(runs):
        found = compare_arms(*two_arms(run, 0.1), np.random.default_rng(run), draws=300)
        covered += found.gained.low <= 0 <= found.gained.high
    assert covered >= stats.binom.ppf(0.0005, runs, 0.93)


def test_arms_without_any_event_are_not_proved_equal():
    found = compare_arms(
        [8] * 20, [0] * 20, [0, 1] * 10, np.repeat(np.arange(10), 2), np.random.default_rng(0)
    )
    assert found.gained.estimate == 0
    assert found.gained.high == -found.gained.low > 1
    assert found.p_value == 1


def test_ten_thousand_conversations_are_quick():
    time, event = random_sample(0, 10_000)
    cluster, arm = np.arange(10_000) // 20, np.arange(10_000) % 2
    start = clock.perf_counter()
    kaplan_meier(time, event)
    compare_arms(time, event, arm, cluster, np.random.default_rng(0))
    assert clock.perf_counter() - start < 2


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kaplan_meier([], []),
        lambda: kaplan_meier([1, 2], [1]),
        lambda: kaplan_meier([0, 2], [1, 1]),
        lambda: kaplan_meier([math.nan, 2], [1, 1]),
        lambda: kaplan_meier([1, 2], [1, 2]),
        lambda: kaplan_meier([1, 2], [1, 1], level=0),
        lambda: turns_without_event([1], [1], tau=0),
        lambda: last_time_at_risk([1], minimum=0),
        lambda: cumulative_incidence([1], [-1]),
        lambda: cumulative_incidence([1, 2], [1]),
        lambda: delayed_share([1, 2], [1, 1], [1], RNG),
        lambda: logrank([1, 2], [1, 1], [0, 0]),
        lambda: logrank([1, 2], [1, 1], [0]),
        lambda: compare_arms([1, 2], [1, 1], [0, 1], [0, 0], RNG, tau=3),
        lambda: compare_arms([1, 2], [1, 1], [0, 1], [0], RNG),
    ],
)
def test_bad_input_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()
