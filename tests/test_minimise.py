"""Minimisation: never a passing test, never a longer one, and nothing left that could still go."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safety_lib.records import Failure, StressFailures
from safety_lib.regression.minimise import ddmin, drive, minimise, minimise_failures
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import plan_replay, run_rollout, trial_seed
from safety_lib.world import load_version

WORDS = st.text(alphabet="abcdefgh", min_size=1, max_size=5)
SENTENCES = st.builds("{}{}".format, WORDS, st.sampled_from([".", "!", "?"]))
TURNS = st.lists(st.lists(SENTENCES, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=8)
BOTH = {name: load_version(name, "northwind") for name in ("v1", "v2")}
REFERENCE = load_version("northwind/reference")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.data())
def test_ddmin_finds_the_one_core(n: int, data: st.DataObject) -> None:
    core = data.draw(st.sets(st.integers(0, n - 1), max_size=5)) if n else set()
    assert drive(ddmin(range(n)), lambda left: core <= set(left)) == tuple(sorted(core))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.data())
def test_ddmin_is_1_minimal_whatever_the_test_says(n: int, data: st.DataObject) -> None:
    # Any set of failing subsets, also one that no core explains.
    subsets = [s for k in range(n) for s in combinations(range(n), k)]
    failing = {tuple(range(n)), *data.draw(st.lists(st.sampled_from(subsets), max_size=30))}
    left = drive(ddmin(range(n)), lambda some: some in failing)
    assert left in failing
    assert not any(tuple(x for x in left if x != gone) in failing for gone in left)


def test_ddmin_tries_halves_first_then_quarters() -> None:
    asked: list[tuple[int, ...]] = []

    def fails(left: tuple[int, ...], core: set[int]) -> bool:
        asked.append(left)
        return core <= set(left)

    assert drive(ddmin(range(4)), lambda left: fails(left, {0, 1, 2, 3})) == (0, 1, 2, 3)
    assert asked == [(2, 3), (0, 1), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]
    asked.clear()
    assert drive(ddmin(range(4)), lambda left: fails(left, {0})) == (0,)
    assert asked == [(2, 3), (0, 1), (1,), (0,), ()]  # what is left is halved again


@settings(max_examples=200, deadline=None)
@given(TURNS, st.data())
def test_what_is_left_fails_is_never_longer_and_is_1_minimal(
    turns: list[str], data: st.DataObject
) -> None:
    said = " ".join(turns).split(" ")
    core = set(data.draw(st.lists(st.sampled_from(said), min_size=1, max_size=3)))
    most_in_one = data.draw(st.integers(1, 3))  # an agent that minds too much at once

    def fails(left: tuple[str, ...]) -> bool:
        kept = [sentence for turn in left for sentence in turn.split()]
        return core <= set(kept) and all(len(set(t.split()) & core) <= most_in_one for t in left)

    if not fails(tuple(turns)):
        return
    left = minimise(turns, fails, budget=10_000)
    assert fails(left.turns)
    assert len(left.turns) <= len(turns)
    assert sum(map(len, left.turns)) <= sum(map(len, turns)) + len(turns)
    assert left.one_minimal
    kept = [sentence for turn in left.turns for sentence in turn.split()]
    assert sorted(kept) == sorted(core)
    for i in range(1, len(left.turns)):
        joined = (*left.turns[: i - 1], " ".join(left.turns[i - 1 : i + 1]), *left.turns[i + 1 :])
        assert not fails(joined)
    for i in range(len(left.turns)):
        assert not fails(left.turns[:i] + left.turns[i + 1 :])


@settings(max_examples=60, deadline=None)
@given(TURNS, st.integers(0, 6))
@example(["a. b. c.", "d."], 0)
def test_a_budget_is_kept_and_said(turns: list[str], budget: int) -> None:
    asked: list[tuple[str, ...]] = []

    def fails(left: tuple[str, ...]) -> bool:
        asked.append(left)
        return True

    left = minimise(turns, fails, budget=budget)
    assert len(asked) == left.tests <= budget
    assert len(set(asked)) == len(asked)  # nothing is asked twice
    assert () not in asked
    if not asked:
        assert left.turns == tuple(turns)


def test_what_cannot_be_shortened_comes_back_as_it_was() -> None:
    odd = ("  Two  blanks. And\ta tab.", "", "No end")
    assert minimise(odd, lambda left: False, budget=1000).turns == odd


def test_a_conversation_without_turns_is_refused() -> None:
    with pytest.raises(ValueError, match="without turns"):
        minimise([], lambda left: True)


@pytest.fixture(scope="module")
def found(stressed: StressFailures) -> tuple[Failure, ...]:
    return stressed.failures[:8]


def test_side_by_side_is_the_same_as_one_by_one(found: tuple[Failure, ...]) -> None:
    rates = [0.5] * len(found)
    together = minimise_failures(found, BOTH, REFERENCE, run=Run(seed=3), rates=rates, least=0.3)
    alone = tuple(
        minimise_failures([failure], BOTH, REFERENCE, run=Run(seed=3), rates=[0.5], least=0.3)[0]
        for failure in found
    )
    assert together == alone


def test_each_reduction_kept_its_rate_and_the_reference_still_passes(
    found: tuple[Failure, ...],
) -> None:
    made = minimise_failures(
        found, BOTH, REFERENCE, run=Run(seed=3), rates=[0.5] * len(found), least=0.3, budget=60
    )
    assert any(how.turns_after < how.turns_before for _, how in made)
    for failure, (turns, how) in zip(found, made, strict=True):
        assert how.replays <= 60
        assert how.turns_after == len(turns) <= len(failure.trajectory)
        if turns == failure.trajectory:
            continue

        def broke(version: str, number: int, turns=turns, failure=failure) -> bool:  # type: ignore[no-untyped-def]
            target = REFERENCE if version == "reference" else BOTH[version]
            seed = trial_seed(3, "minimise", number)
            held = run_rollout(
                plan_replay(target, turns, name="t", seed=seed, plants=failure.plants)
            )
            return any(v.rule_id == failure.rule_id for v in held.violations)

        assert sum(broke(failure.version, number) for number in range(how.probes)) >= how.needed
        assert not broke("reference", 0)


@pytest.mark.parametrize(("rate", "needed"), [(1.0, 8), (0.5, 4), (0.2, 3)])
def test_a_reduction_keeps_four_fifths_of_the_rate_and_never_less_than_the_least(
    found: tuple[Failure, ...], rate: float, needed: int
) -> None:
    ((_, how),) = minimise_failures(
        found[:1], BOTH, REFERENCE, run=Run(seed=3), rates=[rate], least=0.3, probes=10, budget=0
    )
    assert (how.needed, how.probes) == (needed, 10)


def test_no_budget_shortens_nothing(found: tuple[Failure, ...]) -> None:
    ((turns, how),) = minimise_failures(
        found[:1], BOTH, REFERENCE, run=Run(seed=3), rates=[1.0], least=0.3, budget=0
    )
    assert (turns, how.replays, how.one_minimal) == (found[0].trajectory, 0, False)
