"""How much is undiscovered, and where to look next: estimates against truths that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from factories import NORTHWIND
from scipy import stats

from safety_lib.records import SEVERITIES, Trajectory
from safety_lib.stats.missing_mass import chao1, good_turing_missing_mass, new_mode_bound
from safety_lib.stress.coverage import Coverage, coverage
from safety_lib.stress.discovery import Discovery
from safety_lib.stress.unseen import mode, unseen


@pytest.fixture(scope="module")
def held(discovery: Discovery) -> tuple[Trajectory, ...]:
    return discovery.trajectories["v2"]


# --------------------------------------------------------------------------- the stopping rule


def draws(rng: np.random.Generator, shares: np.ndarray, n: int) -> list[str | None]:
    drawn = rng.choice(shares.size + 1, n, p=[*shares, 1 - shares.sum()])
    return [str(i) if i < shares.size else None for i in drawn]


def left_to_see(modes: list[str | None], shares: np.ndarray) -> np.ndarray:
    """The true chance, after each rollout, that the next one shows a new mode."""
    seen: set[str] = set()
    left = []
    for name in modes:
        seen.update([name] if name else [])
        left.append(shares.sum() - sum(shares[int(s)] for s in seen))
    return np.array(left)


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param(np.full(6, 0.02), marks=pytest.mark.slow),  # rare modes, all alike
        pytest.param(  # a few often, many rarely
            0.6 / np.arange(1, 13) / (1 / np.arange(1, 13)).sum(), marks=pytest.mark.slow
        ),
        np.array([0.08]),  # one mode, found late
    ],
    ids=["rare", "zipf", "one"],
)
def test_the_bound_holds_at_every_rollout_at_once(shares: np.ndarray) -> None:
    rng = np.random.default_rng(8)
    runs = 120
    broken = 0
    for _ in range(runs):
        modes = draws(rng, shares, 90)
        broken += bool((left_to_see(modes, shares) > new_mode_bound(modes) + 1e-12).any())
    assert broken <= stats.binom.ppf(0.999, runs, 0.05)


def test_the_bound_never_rises_and_falls_below_what_is_tolerated() -> None:
    bound = new_mode_bound(["a", None, "b", *["a"] * 300, "c", *[None] * 100])
    assert (np.diff(bound) <= 0).all()
    assert 0 < bound[-1] < 0.05 < bound[50]
    assert new_mode_bound([]).size == 0


def test_a_new_mode_costs_less_than_starting_again() -> None:
    quiet = [None] * 150
    late = new_mode_bound(["a", *quiet, "b"])
    assert late[-1] == late[-2]  # what was known before still bounds what is unseen now
    assert new_mode_bound(["a", *quiet, "b", *quiet])[-1] < new_mode_bound(quiet)[-1] * 1.2


# --------------------------------------------------------------------------- the campaign


def test_modes_are_counted_once_each(held: tuple[Trajectory, ...]) -> None:
    found = unseen(held)
    assert found.rollouts == 50
    assert found.failures == sum(t.outcome == "violation" for t in held)
    assert sum(found.modes.values()) == found.failures
    assert found.found[-1] == found.expected[-1] == pytest.approx(len(found.modes))
    assert (np.diff(found.found) >= 0).all()
    counts = list(found.modes.values())
    assert found.chao1 == chao1(counts)
    assert found.missing_mass == good_turing_missing_mass(counts) <= found.missing_mass_upper


def test_a_mode_names_rule_tool_and_family(held: tuple[Trajectory, ...]) -> None:
    for trajectory in held:
        name = mode(trajectory)
        if trajectory.outcome == "violation":
            assert name is not None
            rule, tool, family = name.split(" | ")
            assert rule == trajectory.violations[0].rule_id
            assert family == trajectory.attack_type
            called = {e.call.name for e in trajectory.executed_calls}
            assert tool == "reply" or tool in called
        else:
            assert name is None


def test_errors_say_nothing_about_what_is_unseen(held: tuple[Trajectory, ...]) -> None:
    broken = [t.model_copy(update={"outcome": "error"}) for t in held[:10]]
    mixed = unseen([*broken, *held])
    assert str(mixed) == str(unseen(held))
    nothing = unseen(broken)
    assert (nothing.rollouts, nothing.failures, nothing.at_most) == (0, 0, 1)
    assert "no failure in 0 rollouts" in str(nothing)
    assert nothing.stops_at(0.5) is None


def test_without_a_failure_only_the_bound_is_left(held: tuple[Trajectory, ...]) -> None:
    safe = [t for t in held if t.outcome == "safe"]
    found = unseen(safe)
    assert math.isnan(found.missing_mass)
    assert (found.chao1, found.missing_mass_upper, len(found.modes)) == (0, 1, 0)
    assert "no failure in" in str(found)
    assert found.bound[-1] > 0


def test_a_search_may_stop_when_little_enough_can_be_left(held: tuple[Trajectory, ...]) -> None:
    found = unseen(held)
    assert found.stops_at(0.01) is None
    first = found.stops_at(0.9)
    assert first is not None
    assert found.bound[first - 1] <= 0.9 < found.bound[first - 2]
    with pytest.raises(ValueError, match="tolerated must lie between 0 and 1"):
        found.stops_at(0)


# --------------------------------------------------------------------------- coverage


def test_coverage_counts_every_valid_conversation_once(held: tuple[Trajectory, ...]) -> None:
    laid = coverage(held, NORTHWIND)
    assert sum(cell.tried for cell in laid.cells.values()) == len(held)
    assert sum(cell.broke for cell in laid.cells.values()) == unseen(held).failures
    turns = sorted(turn for cell in laid.cells.values() for turn in cell.turns)
    assert turns == sorted(t.failure_turn for t in held if t.failure_turn)
    assert len(laid.scenarios) == len(NORTHWIND.scenarios)
    assert laid.max_turns == 8


def test_an_error_has_tried_nothing(held: tuple[Trajectory, ...]) -> None:
    broken = [t.model_copy(update={"outcome": "error"}) for t in held]
    assert all(cell.tried == 0 for cell in coverage(broken, NORTHWIND).cells.values())
    assert all("never tried" in s.reason for s in coverage(broken, NORTHWIND).next_scenarios(50))


def test_what_broke_is_not_suggested_again(held: tuple[Trajectory, ...]) -> None:
    laid = coverage(held, NORTHWIND)
    open_ids = {f"{c.goal}/{c.family}" for c in laid.scenarios if not c.broke}
    suggested = laid.next_scenarios(50)
    assert {s.scenario_id for s in suggested} == open_ids
    chances = [s.chance for s in suggested]
    assert chances == sorted(chances, reverse=True)
    assert all(0 < s.chance < 1 for s in suggested)
    assert len(laid.next_scenarios(2)) == min(2, len(open_ids))


def test_before_anything_is_tried_the_most_severe_come_first() -> None:
    ranks = [SEVERITIES.index(s.severity) for s in coverage([], NORTHWIND).next_scenarios(30)]
    assert ranks == sorted(ranks, reverse=True)


def test_a_scenario_beside_failures_comes_before_one_beside_none() -> None:
    laid = coverage([], NORTHWIND)
    goal, other = list(laid.rules)[:2]
    cells = {
        key: type(cell)(cell.goal, cell.family, cell.possible, 1, (4,) if cell.goal == goal else ())
        for key, cell in laid.cells.items()
    }
    families = [f for f in laid.families if cells[goal, f].possible and cells[other, f].possible]
    for name in (goal, other):
        cells[name, families[0]] = type(cells[goal, families[0]])(name, families[0], True, 1, ())
    ranked = [
        s.scenario_id
        for s in Coverage("v", 8, laid.rules, laid.families, cells, laid.severities).next_scenarios(
            30
        )
    ]
    assert ranked.index(f"{goal}/{families[0]}") < ranked.index(f"{other}/{families[0]}")
