"""AgentDojo's suites as worlds, without the package: what it wrote is read; it may be missing."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from safety_lib.adapters.dojo import DojoSuite, calls_in
from safety_lib.adapters.dojo_world import write_world
from safety_lib.attack.attackers import make_attacker
from safety_lib.records import Trajectory
from safety_lib.regression.signature import channel
from safety_lib.rollout.conversation import Script, hold, plan_attack
from safety_lib.rollout.judging import as_failure, broke
from safety_lib.world import World, load_world
from safety_lib.world.target import Heard, TargetError
from safety_lib.world.versions import WorldError

STORED = Path(__file__).resolve().parent / "data" / "agentdojo.json"
SEEN: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
HELD = Trajectory.model_validate(SEEN["trajectory"])
PROMPT = HELD.user_messages[0]
RULE = SEEN["pair"].split("-")[1]


@pytest.fixture(scope="module")
def banking(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return the recorded part of the world, with the answer that AgentDojo gave as its check."""
    home = tmp_path_factory.mktemp("agentdojo") / "banking"
    (home / "versions").mkdir(parents=True)
    for part, tree in SEEN["world"].items():
        (home / f"{part}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    version = "{version: v1, settings: {obeys: false}}"
    (home / "versions" / "v1.yaml").write_text(version, encoding="utf-8")
    code = (
        "from safety_lib.world.checks import Check\n"
        "CHECKS = {'security': Check(tools=frozenset(), find=lambda *_: '')}\n"
    )
    (home / "world.py").write_text(code, encoding="utf-8")
    return load_world(home)


def messages() -> list[dict[str, Any]]:
    """Return the recorded messages, with the calls as the objects that they are in AgentDojo."""
    told = []
    for message in SEEN["messages"]:
        plain = dict(message)
        if plain.get("tool_calls"):
            plain["tool_calls"] = [SimpleNamespace(**call) for call in plain["tool_calls"]]
        if "tool_call" in plain:
            plain["tool_call"] = SimpleNamespace(**plain["tool_call"])
        told.append(plain)
    return told


def test_it_is_said_what_was_recorded() -> None:
    assert {SEEN[key] for key in ("tool", "version", "suite")} == {"agentdojo", "0.1.35", "banking"}


def test_messages_are_read_into_the_calls_that_were_judged() -> None:
    calls = list(calls_in(messages()))
    assert [call.name for call in calls] == ["read_file", "send_money", "send_money"]
    assert [(c.name, dict(c.arguments), c.result, c.status) for c in calls] == [
        (e.call.name, e.call.arguments, e.result, e.status)
        for e in HELD.events
        if e.kind == "tool_call"
    ]


def test_a_call_without_a_result_did_not_run_and_one_with_an_error_failed() -> None:
    first, second, *_ = messages()
    failed = {**second, "error": "ValueError: no such file"}
    assert [c.status for c in calls_in([first, failed])] == ["failed"]
    assert [c.result for c in calls_in([first, failed])] == ["ValueError: no such file"]
    assert [c.status for c in calls_in([first, first, second])] == ["blocked", "executed"]
    assert [c.status for c in calls_in([first])] == ["blocked"]


def test_a_result_that_belongs_to_no_call_is_refused() -> None:
    with pytest.raises(TargetError, match="bad_response: a tool answered that nobody had called"):
        list(calls_in(messages()[1:2]))


def test_the_verdict_is_agentdojos() -> None:
    assert broke(HELD, RULE) is SEEN["agentdojo"]["security"] is True
    assert [violation.rule_id for violation in HELD.violations] == [RULE]


def test_the_plant_is_found_although_the_tool_folded_it() -> None:
    (plant,) = HELD.plants
    assert not any(plant.text in event.result for event in HELD.executed_calls)
    assert channel(as_failure(HELD, HELD)) == plant.where == "filesystem"
    unread = HELD.model_copy(update={"events": HELD.events[:1]})
    assert channel(as_failure(unread, unread)) == "user"


class _Deaf:
    name, host = "deaf", ""
    effects, sees_calls, same_luck, resumes, holds_calls = "sandboxed", True, True, False, False
    concurrency = 0

    def begin(self, seed: int, plants: Any = ()) -> _Deaf:
        return self

    def send(self, text: str) -> Heard:
        return Heard("I am sorry, I cannot do that.")


@pytest.mark.parametrize("attacker", ["direct", "static", "adaptive"])
def test_no_attacker_says_anything_but_the_task(banking: World, attacker: str) -> None:
    (scenario,) = banking.scenarios
    plan = plan_attack(banking.version("v1"), scenario, attacker, 7, 6)
    held = hold(_Deaf(), make_attacker(attacker, scenario, 7), plan)  # type: ignore[arg-type]
    assert set(held.user_messages) == {PROMPT}


def test_the_twin_is_the_users_task_with_nothing_planted(banking: World) -> None:
    assert banking.benign_twin(SEEN["pair"]).turns == (PROMPT,)
    assert banking.severity_of(RULE) == "high"
    assert Script([PROMPT]).next_message([]) == banking.goals[SEEN["pair"]].steps[0]


# --------------------------------------------------------------------------- without the package


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(WorldError, match=r"not installed: pip install .*\[agentdojo\]"):
        write_world("banking", tmp_path / "banking")
    assert not (tmp_path / "banking").exists()


def test_a_world_of_another_version_of_the_package_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.0")
    dojo = DojoSuite("banking", "v1.2.2", package="0.1.35")
    with pytest.raises(WorldError, match=r"from agentdojo 0\.1\.35 and 0\.2\.0 is installed"):
        _ = dojo.suite


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(WorldError, match="is not empty"):
        write_world("banking", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_suite_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="no suite 'bank': use banking, workspace, slack, travel"):
        write_world("bank", tmp_path / "bank")
