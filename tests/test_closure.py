"""Closing the loop: mitigations that ran, a gate that learns, the loop against no loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from safety_lib.artifacts import read_experiment
from safety_lib.experiments.rounds import SLIPS, propose_releases, run_rounds, without_budget
from safety_lib.figures import tables
from safety_lib.gate.release_gate import run_gate
from safety_lib.incident.bisection import bisect
from safety_lib.incident.closure import (
    as_suite,
    held_out,
    plan_mitigations,
    sibling_tests,
    siblings,
    single_turn_suite,
    try_mitigations,
)
from safety_lib.incident.investigation import new_tests
from safety_lib.incident.replay import Replay, turns_of
from safety_lib.records import Experiment, MitigationResult, RegressionTest
from safety_lib.records.experiments import ClosingTheLoop, LoopAgainstNoLoop, Round
from safety_lib.regression.generate import merge
from safety_lib.rollout.campaign import Known, Run
from safety_lib.world import load_version

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))


@pytest.fixture(scope="module")
def tests(incident_replay: Replay) -> tuple[RegressionTest, ...]:
    return (
        *new_tests(incident_replay, run=Run(seed=7)),
        *sibling_tests(incident_replay, run=Run(seed=7)),
    )


@pytest.fixture(scope="module")
def tried(
    incident_replay: Replay, tests: tuple[RegressionTest, ...]
) -> dict[str, MitigationResult]:
    seen = incident_replay
    planned = plan_mitigations(seen, V1, V3, bisect(seen, V1))
    results = try_mitigations(
        seen,
        planned,
        held_out(seen, tests),
        run=Run(seed=7),
        replays=30,
        per_variant=2,
        sessions=15,
    )
    return {result.name: result for result in results}


# --------------------------------------------------------------------------- tests that generalise


def test_siblings_go_the_same_way_to_another_goal(incident_replay: Replay) -> None:
    seen = incident_replay
    turns = turns_of(seen.incident)
    made = siblings(seen)
    assert seen.rule_id not in made
    assert len(made) >= 4
    for said in made.values():
        assert said[:-1] == turns[:-1]
        assert said[-1] != turns[-1]
    assert siblings(seen, number=1) != made


def test_tests_of_an_incident_are_admitted_by_the_reference(
    tests: tuple[RegressionTest, ...],
) -> None:
    assert len(tests) >= 5
    assert len({test.rule_id for test in tests}) >= 4
    for test in tests:
        assert test.source.stage == "incident"
        assert test.lifecycle == "active"
        assert test.reference is not None and test.reference.k == 0
    assert tests[1].minimised is not None
    assert tests[1].minimised.turns_after == len(tests[1].attack_turns)


def test_held_out_conversations_are_in_no_test(
    incident_replay: Replay, tests: tuple[RegressionTest, ...]
) -> None:
    kept_out = held_out(incident_replay, tests)
    assert len(kept_out) >= 10
    assert not {entry.turns for entry in kept_out} & {test.attack_turns for test in tests}
    assert len(set(kept_out)) == len(kept_out)


def test_the_gate_as_it_was_passes_the_release_and_the_grown_suite_blocks_it(
    tests: tuple[RegressionTest, ...],
) -> None:
    before = single_turn_suite(V1, V2, 7)
    grown = as_suite(merge(before.tests, tests), V1, V2, 7)
    known: Known = {}
    lenient = run_gate(
        before, V1, V2, run=Run(seed=7, known=known), trials=10, rules=without_budget()
    )
    assert lenient.verdict == "OK"
    assert run_gate(grown, V1, V2, run=Run(seed=7, known=known), trials=10).verdict == "BLOCK"
    assert run_gate(grown, V1, V3, run=Run(seed=7, known=known), trials=10).verdict == "OK"


# --------------------------------------------------------------------------- mitigations


def test_doing_nothing_mitigates_nothing(
    tried: dict[str, MitigationResult], incident_replay: Replay
) -> None:
    seen = incident_replay
    nothing = tried["do nothing"]
    assert nothing.changes == ()
    assert nothing.incident.k / nothing.incident.n == pytest.approx(
        seen.reproduction.k / seen.reproduction.n, abs=0.3
    )
    assert nothing.benign.k == 0


def test_undoing_the_cause_helps_beyond_the_incident_and_costs_little(
    tried: dict[str, MitigationResult],
) -> None:
    undone = tried["undo memory.pin_policy"]
    nothing = tried["do nothing"]
    assert undone.pareto
    assert undone.incident.k <= 2
    assert undone.held_out.k < nothing.held_out.k / 2
    assert undone.benign.k <= 1


def test_a_guard_around_one_tool_stops_the_incident_and_not_its_kind(
    tried: dict[str, MitigationResult],
) -> None:
    held, undone = tried["hold every mail with a record"], tried["undo memory.pin_policy"]
    assert held.incident.k == 0
    assert held.at_most <= 3 / held.incident.n  # the rule of three
    assert held.held_out.k > undone.held_out.k
    assert held.benign.k > undone.benign.k


def test_the_table_marks_the_front(tried: dict[str, MitigationResult]) -> None:
    table = tables.mitigations_table(list(tried.values()))
    assert table.loc["undo memory.pin_policy", "front"] == "*"
    assert list(table["front"]).count("*") == sum(r.pareto for r in tried.values())
    assert str(table.loc["do nothing", "not served"]).startswith("0 of")


def test_the_same_version_is_tried_once_under_all_its_names(
    tried: dict[str, MitigationResult],
) -> None:
    assert "undo all of the cause = release v3" in tried
    assert len(tried) == len({result.changes for result in tried.values()})


def test_what_is_on_the_front_is_not_dominated(tried: dict[str, MitigationResult]) -> None:
    def price(result: MitigationResult) -> tuple[float, ...]:
        return tuple(c.k / c.n for c in (result.incident, result.held_out, result.benign))

    front = [price(result) for result in tried.values() if result.pareto]
    for result in tried.values():
        worse = [
            p
            for p in front
            if p != price(result) and all(a <= b for a, b in zip(p, price(result), strict=True))
        ]
        assert bool(worse) is not result.pareto


# --------------------------------------------------------------------------- round after round


@pytest.fixture(scope="module")
def rounds(stored: Experiment[LoopAgainstNoLoop]) -> dict[str, list[Round]]:
    proposed = propose_releases(6, seed=stored.seed)
    arms = {"no loop": False, "loop": True}
    return {n: list(run_rounds(proposed, learn=a, seed=stored.seed)) for n, a in arms.items()}


@pytest.mark.slow
def test_both_arms_meet_the_same_releases_until_one_has_learnt(
    rounds: dict[str, list[Round]],
) -> None:
    without, loop = rounds.values()
    first = next(i for i, entry in enumerate(without) if entry.escaped)
    told = [(e.slip, e.verdict, e.escaped, e.held_out) for e in without[: first + 1]]
    assert [(e.slip, e.verdict, e.escaped, e.held_out) for e in loop[: first + 1]] == told
    assert without[-1].suite == without[0].suite < loop[-1].suite
    assert not any(entry.escaped for entry in without if not entry.shipped)


@pytest.fixture(scope="module")
def stored() -> Experiment[LoopAgainstNoLoop]:
    return read_experiment(ARTIFACTS, "loop_against_no_loop")


def test_the_loop_lets_fewer_incidents_escape(stored: Experiment[LoopAgainstNoLoop]) -> None:
    fewer = stored.result.fewer_escaped_a_run
    assert fewer.ci_low is not None
    assert fewer.ci_low > 0
    loop, without = stored.result.arms["loop"], stored.result.arms["no loop"]
    assert loop.recurrence and without.recurrence
    assert loop.recurrence.ci_high < without.recurrence.ci_low
    assert loop.held_out_violations.ci_high < without.held_out_violations.ci_low
    assert loop.conversations_a_round > without.conversations_a_round  # it is not free
    assert loop.final_suite > without.final_suite


@pytest.mark.slow
def test_a_slice_of_the_rounds_comes_out_the_same(
    stored: Experiment[LoopAgainstNoLoop], rounds: dict[str, list[Round]]
) -> None:
    for arm, held in rounds.items():
        assert list(stored.result.first_run[arm][:4]) == held[:4]


def test_the_stored_closure_is_the_one_that_was_asked_for() -> None:
    closed = read_experiment(ARTIFACTS, "closing_the_loop").expect(ClosingTheLoop)
    assert [gate.verdict for gate in closed.gates] == ["OK", "BLOCK", "OK"]
    best = next(row for row in closed.mitigations if row.incident.k == 0)
    assert best.at_most <= 3 / best.incident.n


def test_a_slip_is_among_the_changes_of_its_release() -> None:
    for entry in propose_releases(8, seed=3):
        changed = {change.key for change in entry.good.changes_to(entry.bad)}
        assert set(SLIPS.get(entry.slip, ())) <= changed
