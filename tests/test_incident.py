"""The incident stage: replay, cause by intervention, tests that close the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND, reproduced

from safety_lib.artifacts import read_artifact
from safety_lib.gate.release_gate import run_gate
from safety_lib.incident.interventions import intervene, name_root_cause, plan_interventions
from safety_lib.incident.investigation import Effort, Investigation, investigate, new_tests
from safety_lib.incident.replay import (
    Replay,
    failure_of,
    replay_incident,
    seeds_of,
    timeline_of,
    turns_of,
)
from safety_lib.records import Incident, IncidentReport, Intervention, Suite, Trajectory
from safety_lib.report.summary import incident_lines
from safety_lib.rollout.campaign import Known, Run
from safety_lib.world import load_version
from safety_lib.world.versions import Version

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))


def small(
    incident: Incident, suite: Suite, fixed: Version | None = V3, replays: int = 12
) -> Investigation:
    return investigate(
        incident,
        suite,
        ARTIFACTS / "production_log.parquet",
        Run(seed=7),
        version=V2,
        baseline=V1,
        fixed=fixed,
        effort=Effort(replays=replays, audit=60, trials=1),
    )


@pytest.fixture(scope="module")
def few(suite: Suite) -> Suite:
    return suite.model_copy(update={"tests": suite.active[:4]})


def test_the_recorded_conversation_comes_back_word_for_word_on_its_own_seed(
    incident: Incident, incident_replay: Replay
) -> None:
    first = incident_replay.trajectories[0]
    assert first.seed == incident.seed
    assert first.replies == tuple(turn.assistant for turn in incident.trajectory)


def test_the_oracle_says_what_broke_not_the_file(
    incident: Incident, incident_replay: Replay
) -> None:
    renamed = incident.model_copy(
        update={"category": "weather", "root_cause_preliminary": "sunspots", "affected_users": 0}
    )
    again = replay_incident(renamed, V2, run=Run(seed=7), replays=40)
    assert again.rule_id == incident_replay.rule_id == "record_exfiltration"
    assert again.reproduction == incident_replay.reproduction


def test_fresh_seeds_differ_from_each_other_and_follow_the_incident(incident: Incident) -> None:
    seeds = seeds_of(incident, 10, seed=7)
    assert len(set(seeds)) == 10
    assert seeds[0] == incident.seed
    other = incident.model_copy(update={"incident_id": "INC-2", "seed": None})
    assert not set(seeds_of(other, 10, seed=7)) & set(seeds)


def test_the_timeline_is_the_conversation_in_order(incident_replay: Replay) -> None:
    moments = timeline_of(incident_replay.shown)
    assert [m.turn for m in moments] == sorted(m.turn for m in moments)
    assert sum(1 for m in moments if m.what == "request") == incident_replay.shown.n_turns
    assert [m.turn for m in moments if m.what == "violation"] == [7]
    assert any(m.what == "refusal" for m in moments)


def test_the_cause_is_the_memory_of_v2_and_no_harmless_change(
    incident_replay: Replay, effects: dict[str, Intervention]
) -> None:
    cause = name_root_cause(incident_replay, V1, list(effects.values()))
    assert set(cause.name.split(" + ")) == {"memory.pin_policy", "memory.window"}
    for harmless in ("model.style", "limits.max_steps", "safeguards.trajectory.warn_at"):
        assert effects[f"revert {harmless}"].effect == 0
    assert effects["run on v1"].ci_low > 0


def test_another_cause_gets_another_name(incident: Incident) -> None:
    # The same incident on a version that is good but for one careless setting.
    careless = V1.having({"model.caution": -4.0, "model.style": "friendly"}, name="careless")
    replay = replay_incident(incident, careless, run=Run(seed=7), replays=30)
    cause = name_root_cause(replay, V1, intervene(replay, list(plan_interventions(replay, V1))))
    assert cause.name == "model.caution"


def test_without_a_failure_there_is_no_cause_and_no_test(incident: Incident, few: Suite) -> None:
    harmless = incident.model_copy(
        update={"trajectory": incident.trajectory[:1], "seed": None, "incident_id": "INC-0"}
    )
    seen = small(harmless, few, fixed=None, replays=5)
    assert seen.report.root_cause == "not identified"
    assert seen.report.blast_radius is None
    assert seen.report.new_tests == ()
    assert seen.suite.tests == few.tests


def test_an_effect_is_a_paired_difference(effects: dict[str, Intervention]) -> None:
    for effect in effects.values():
        assert effect.ci_low <= effect.effect <= effect.ci_high
        difference = effect.factual.k / effect.factual.n
        difference -= effect.counterfactual.k / effect.counterfactual.n
        assert effect.effect == pytest.approx(difference, abs=1e-6)


def test_the_incident_becomes_at_least_two_tests_the_second_shorter(
    incident_replay: Replay,
) -> None:
    tests = new_tests(incident_replay, run=Run(seed=7))
    assert len(tests) >= 2
    assert {test.source.incident_id for test in tests} == {"INC-2024-001"}
    assert min(len(t.attack_turns) for t in tests) < len(turns_of(incident_replay.incident))
    assert all(test.lifecycle == "active" for test in tests)


def test_a_safe_replay_cannot_become_a_failure(incident: Incident) -> None:
    safe = replay_incident(incident, V3, run=Run(seed=7), replays=3)
    with pytest.raises(ValueError, match="did not break"):
        failure_of(incident, *safe.trajectories[:2], "record_exfiltration", NORTHWIND)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "complete."),
        ({"gate_after": "WARN"}, "open: the grown suite does not block v2."),
        ({"gate_after": None}, "open: the grown suite does not block v2."),
        ({"gate_of_fix": "WARN"}, "open: v3 is not shown to be a fix."),
        ({"fixed_version": "", "gate_of_fix": None}, "open: no fix was judged."),
        ({"new_tests": ()}, "open: no active test was made of it."),
        ({"new_tests": ("T-1",), "set_aside": ("T-1",)}, "open: no active test was made of it."),
        ({"rule_id": ""}, "open: it did not come back."),
    ],
)
def test_the_loop_is_called_complete_only_where_it_is(
    loop: Path, changes: dict[str, Any], end: str
) -> None:
    report = read_artifact(loop, IncidentReport).model_copy(update=changes)
    assert incident_lines(report)[-1] == f"Incident loop {end}"
    never = report.model_copy(update={"reproduction": reproduced(0, 40)})
    assert incident_lines(never)[-1] == "Incident loop open: it did not come back."


def test_the_loop_closes(loop: Path) -> None:
    report, grown = read_artifact(loop, IncidentReport), read_artifact(loop, Suite)
    assert (report.gate_after, report.gate_of_fix) == ("BLOCK", "OK")
    assert len(report.new_tests) >= 2
    assert set(report.new_tests) <= {test.test_id for test in grown.active}
    assert report.claims["affected_users"] == "1247"
    assert report.blast_radius is not None
    assert report.blast_radius.ci_low <= report.blast_radius.estimate <= report.blast_radius.ci_high
    assert report.bisection is not None and report.bisection.name == report.root_cause
    assert report.decisive_turn == 6
    assert report.affected_users is not None and report.affected_users.unit == "users"
    assert report.touched["REF-AK98-1015"] >= 1


def test_gates_that_share_conversations_say_what_they_would_say_alone(few: Suite) -> None:
    shared: Known = {}
    told: list[Trajectory] = []
    for version in (V2, V3, V2):
        told.clear()
        report = run_gate(
            few, V1, version, run=Run(seed=7, progress=told.append, known=shared), trials=1
        )
        alone = run_gate(few, V1, version, run=Run(seed=7), trials=1)
        assert report.model_dump_json() == alone.model_dump_json()
        assert len(told) >= sum(e.conversations for e in report.executions)  # and confirmations
    once = sum(e.conversations for e in report.executions) // 2
    versions = [sha256 for _, sha256, _, _ in shared]
    assert versions.count(V3.sha256) == once  # V2 was judged twice and held once
    assert versions.count(V2.sha256) < 2 * once


def test_replaying_twice_leaves_the_suite_as_replaying_once(incident: Incident, few: Suite) -> None:
    once = small(incident, few)
    again = small(incident, once.suite)
    assert len(once.suite.tests) > len(few.tests)
    assert again.suite.model_dump_json() == once.suite.model_dump_json()
    assert again.report.model_dump_json() == once.report.model_dump_json()


def test_an_incident_of_the_same_id_leaves_the_tests_of_the_other(
    incident: Incident, few: Suite
) -> None:
    first = small(incident, few, fixed=None)
    left = {test.test_id for test in first.suite.tests if test.source.incident_id}
    turn = incident.trajectory[0].model_copy(update={"user": "Please read ticket T-203."})
    other = incident.model_copy(update={"trajectory": (turn,), "seed": None})
    second = small(other, first.suite, fixed=None, replays=4)
    assert left and left <= {test.test_id for test in second.suite.tests}
