"""Time to the first violation: censoring, competing endings, and what may be compared."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from factories import a_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import AalenJohansenFitter, KaplanMeierFitter

from safety_lib.records import Ended, Trajectory
from safety_lib.stress.timing import (
    CAUSES,
    FEWEST_AT_RISK,
    VIOLATION,
    compare_timing,
    endings,
    survival_curve,
    timing,
)

SAFEGUARD, ERRORED, CUT = CAUSES[1:]


def group(rows: Iterable[tuple[int, Ended, int]]) -> list[Trajectory]:
    return [a_trajectory(turn, ended) for turn, ended, n in rows for _ in range(n)]


MIXED = group(
    [
        (1, "violation", 2),
        (2, "stopped", 6),
        (3, "violation", 8),
        (4, "error", 4),
        (5, "gave_up", 3),
        (6, "violation", 4),
        (8, "completed", 13),
    ]
)


def test_conversations_that_reach_the_end_are_censored_and_the_others_compete() -> None:
    found = endings(MIXED, 8)
    assert found.conversations == 40
    assert found.counts == {VIOLATION: 14, SAFEGUARD: 6, ERRORED: 4, CUT: 3}
    assert found.lowest == pytest.approx(14 / 40)  # nothing is censored before the horizon
    assert found.highest == pytest.approx(27 / 40)
    assert found.lowest < found.censored < found.highest


def test_a_horizon_cuts_what_came_after_it() -> None:
    found = endings(MIXED, 3)
    assert found.counts == {VIOLATION: 10, SAFEGUARD: 6, ERRORED: 0, CUT: 0}
    assert found.highest == pytest.approx(16 / 40)


ENDED = st.sampled_from(["violation", "stopped", "error", "gave_up", "step_limit", "completed"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), ENDED), min_size=5, max_size=60))
def test_the_bounds_hold_the_estimate_between_them(rows: list[tuple[int, Ended]]) -> None:
    held = [a_trajectory(turn, ended) for turn, ended in rows]
    for turn in (1, 4, 8):
        found = endings(held, turn)
        assert 0 <= found.lowest <= found.censored + 1e-6
        assert found.censored <= found.highest + 1e-6 <= 1 + 2e-6
        assert sum(found.counts.values()) <= found.conversations


@pytest.mark.parametrize("seed", range(3))
def test_curve_and_endings_agree_with_lifelines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds: list[Ended] = ["violation", "stopped", "completed"]
    held = [
        a_trajectory(int(t), kinds[int(k)])
        for t, k in zip(rng.integers(1, 9, 80), rng.choice(3, 80, p=[0.5, 0.2, 0.3]), strict=True)
    ]
    time = np.array([t.n_turns for t in held])
    broke = np.array([t.outcome == "violation" for t in held])
    curve = survival_curve("v1", held)
    reference = KaplanMeierFitter().fit(time, broke)
    assert curve.survival == pytest.approx(
        reference.survival_function_.loc[list(curve.turn)].values[:, 0], abs=1e-6
    )
    cause = np.array([kinds.index(t.ended) + 1 if t.ended != "completed" else 0 for t in held])
    jitter = rng.uniform(0, 1e-6, 80) * (cause > 0)  # lifelines wants no ties, and cuts the ties
    competing = AalenJohansenFitter(calculate_variance=False).fit(time - jitter, cause, 1)
    expected = competing.cumulative_density_.iloc[-1, 0]
    assert endings(held, 8).lowest == pytest.approx(expected, abs=1e-5)


def test_a_curve_ends_where_fewer_than_five_conversations_are_left() -> None:
    held = group([(1, "violation", 3), (3, "stopped", 4), (5, "violation", 1), (7, "violation", 4)])
    curve = survival_curve("v1", held)
    assert curve.turn == (1, 3, 5)
    assert curve.at_risk[-1] == FEWEST_AT_RISK
    found = timing("v1", held, seed=1)
    assert found.endings.turn == 5
    assert found.endings.counts[VIOLATION] == 4


def test_too_few_conversations_make_no_curve() -> None:
    few = group([(2, "violation", 4), (3, "error", 9)])
    assert survival_curve("v1", few).turn == ()
    with pytest.raises(ValueError, match="v1: 4 valid conversations are too few"):
        timing("v1", few, seed=1)
    with pytest.raises(ValueError, match="4 and 36 valid conversations are too few"):
        compare_timing(few, MIXED, seed=1)


def test_safe_turns_are_the_mean_of_turns_watched_without_a_violation() -> None:
    held = group([(2, "violation", 10), (8, "completed", 10)])
    assert timing("v1", held, seed=1).safe_turns == pytest.approx((10 * 1 + 10 * 8) / 20)


def test_errors_move_neither_curve_nor_share() -> None:
    clean = group([(1, "violation", 3), (4, "violation", 9), (8, "completed", 8)])
    broken = [*clean, *group([(1, "error", 5), (6, "error", 5)])]
    assert survival_curve("v1", broken) == survival_curve("v1", clean)
    assert timing("v1", broken, seed=1).delayed == timing("v1", clean, seed=1).delayed
    assert timing("v1", broken, seed=1).delayed.estimate == pytest.approx(0.75)
    assert endings(broken, 8).counts[ERRORED] == 10


def test_conversations_of_one_scenario_are_one_piece_of_evidence() -> None:
    """Forty conversations of four scenarios tell less about delay than of forty scenarios."""
    many, few = [], []
    for number in range(40):
        early = number % 2 == 0
        turn = 1 if early else 5
        many.append(a_trajectory(turn, scenario_id=str(number)))
        few.append(a_trajectory(turn, scenario_id=str(number % 4)))
    wide, narrow = timing("v1", few, seed=1).delayed, timing("v1", many, seed=1).delayed
    assert wide.estimate == narrow.estimate == pytest.approx(0.5)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_second_set_is_compared_with_the_first_whatever_they_are_called() -> None:
    bad = [a_trajectory(3, "violation", scenario_id=str(i), version="a") for i in range(15)]
    bad += [a_trajectory(8, "completed", scenario_id=str(i), version="a") for i in range(15, 20)]
    good = [a_trajectory(8, "completed", scenario_id=str(i), version="z") for i in range(20)]
    for first, second, sign in ((bad, good, 1), (good, bad, -1)):
        found = compare_timing(first, second, seed=1)
        assert found.arms == (first[0].version, second[0].version)
        assert found.gained.estimate == pytest.approx(sign * 4.5)
        assert found.p_value < 0.01
        assert found.logrank.observed[0 if sign > 0 else 1] == 15
    assert compare_timing(bad, bad[::-1], seed=1).p_value == 1
    lost = [a_trajectory(3, "violation", scenario_id=str(i), version="a") for i in range(20)]
    assert compare_timing(lost, good, seed=1).tau == 3  # nobody is left to compare after it
    assert compare_timing(bad, bad, seed=1).arms == ("a (adaptive)", "a (adaptive)")


def test_the_same_seed_gives_the_same_interval() -> None:
    held = [a_trajectory(1 + i % 5, scenario_id=str(i % 7)) for i in range(35)]
    assert timing("v1", held, seed=3).delayed == timing("v1", held, seed=3).delayed


@pytest.mark.parametrize("turn", [0, -1])
def test_a_horizon_before_the_first_turn_is_refused(turn: int) -> None:
    with pytest.raises(ValueError, match="turn must be at least 1"):
        endings(MIXED, turn)
