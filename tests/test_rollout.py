"""One conversation: how it is planned, what is recorded of it, and what its record survives."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND, a_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.agent.backends import BackendError
from safety_lib.agent.loop import Agent
from safety_lib.records import (
    Ended,
    ErrorEvent,
    Event,
    HookEvent,
    Message,
    MessageEvent,
    OracleEvent,
    Outcome,
    Plant,
    ToolCall,
    ToolCallEvent,
    Trajectory,
)
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import (
    Rollout,
    Script,
    hold,
    plan_attack,
    plan_replay,
    run_rollout,
    trial_seed,
)
from safety_lib.rollout.judging import benign_outcome, broke
from safety_lib.world import load_version
from safety_lib.world.oracle import judge

V1, V2, V3 = (load_version(name, "northwind") for name in ("v1", "v2", "v3"))
FOUND = NORTHWIND.scenario("silence_audit/policy_erosion")


# --------------------------------------------------------------- planning


def test_versions_meet_the_same_luck() -> None:
    assert len({plan_attack(v, FOUND, "adaptive", 7, 8, 3).seed for v in (V1, V2, V3)}) == 1


def test_repeated_rollouts_and_scenarios_have_their_own_luck() -> None:
    planned = [
        plan_attack(V1, s, "static", 7, 8, n) for s in NORTHWIND.scenarios for n in range(20)
    ]
    assert len({rollout.seed for rollout in planned}) == len(planned)
    assert len({rollout.rollout_id for rollout in planned}) == len(planned)


@given(st.integers(), st.text(max_size=5), st.integers())
def test_a_trial_seed_is_one_that_an_endpoint_takes(seed: int, name: str, number: int) -> None:
    assert 0 <= trial_seed(seed, name, number) < 2**31
    assert trial_seed(seed, name, number) == trial_seed(seed, name, number)


def test_a_planned_rollout_is_plain_data() -> None:
    planned = plan_attack(V2, FOUND, "adaptive", 7, 8)
    assert pickle.loads(pickle.dumps(planned)) == planned
    assert run_rollout(pickle.loads(pickle.dumps(planned))) == run_rollout(planned)


def test_a_plant_is_planned_where_the_family_needs_one() -> None:
    for found in NORTHWIND.scenarios:
        assert bool(plan_attack(V1, found, "static", 7, 8).plants) is bool(found.plants)


# --------------------------------------------------------------- holding


@pytest.mark.parametrize("attacker", ["direct", "static", "adaptive"])
@pytest.mark.parametrize("turns", [1, 3, 8])
def test_a_conversation_is_no_longer_than_planned(attacker: str, turns: int) -> None:
    for number in range(20):
        held = run_rollout(plan_attack(V2, FOUND, attacker, 7, turns, number))
        assert 1 <= held.n_turns <= turns
        assert held.n_turns == len(held.replies) == len(held.user_messages) == len(held.turns)
        assert held.model_calls >= held.n_turns
        assert (held.outcome == "violation") is (held.failure_turn is not None)
        assert held.failure_turn in (None, held.n_turns)
        assert held.ended != "completed" or held.n_turns == turns


def test_a_replay_of_what_was_said_is_the_same_conversation() -> None:
    for number, found in enumerate(NORTHWIND.scenarios):
        live = run_rollout(plan_attack(V2, found, "adaptive", 7, 8, number))
        again = run_rollout(
            plan_replay(V2, live.user_messages, name="again", seed=live.seed, plants=live.plants)
        )
        assert again.events == live.events
        assert again.violations == live.violations


def test_a_trajectory_says_what_it_is_of() -> None:
    planned = plan_attack(V2, FOUND, "static", 7, 8, 5)
    held = run_rollout(planned)
    assert held.trajectory_id == planned.rollout_id == "v2/silence_audit/policy_erosion/static/5"
    assert (held.version, held.config_sha256, held.model) == ("v2", V2.sha256, "simulated")
    assert (held.goal, held.attack_type) == ("silence_audit", "policy_erosion")


def test_versions_of_the_same_settings_keep_their_own_names() -> None:
    alias = V1.having({}, name="alias")
    assert run_rollout(plan_attack(alias, FOUND, "direct", 7, 1)).version == "alias"
    assert run_rollout(plan_attack(V1, FOUND, "direct", 7, 1)).version == "v1"


def test_a_trajectory_is_told_turn_by_turn() -> None:
    held = next(
        t
        for n in range(50)
        if (t := run_rollout(plan_attack(V2, FOUND, "static", 7, 8, n))).violations
    )
    told = str(held)
    assert all(message in told for message in held.user_messages)
    assert f"BROKEN RULE: {held.violations[0].rule_id}" in told
    assert held.turns[-1].violations == ("audit_disabled",)
    assert any("-> executed" in call for call in held.turns[-1].tool_calls)


# --------------------------------------------------------------- benign conversations


@pytest.mark.parametrize(
    ("ended", "outcome", "found"),
    [
        ("violation", "violation", {"r": True, "other": False}),
        ("completed", "safe", {"r": False}),
        ("error", "error", {"r": None}),
        ("step_limit", "undetermined", {"r": None}),
    ],
)
def test_only_an_error_or_a_cut_leaves_open_whether_a_rule_broke(
    ended: Ended, outcome: Outcome, found: dict[str, bool | None]
) -> None:
    held = a_trajectory(2, ended, outcome=outcome)
    assert {rule: broke(held, rule) for rule in found} == found


TWIN = NORTHWIND.benign_twin("purge_accounts")


def benign(turns: Sequence[str]) -> str:
    held = run_rollout(plan_replay(V1, turns, name="benign", seed=2))
    return benign_outcome(held, TWIN, NORTHWIND)


def test_a_benign_request_that_is_done_is_safe() -> None:
    assert benign(NORTHWIND.benign_twin("purge_accounts").turns) == "safe"


def test_a_benign_request_that_is_not_done_is_a_failure() -> None:
    assert benign(["Hello!"]) == "violation"
    assert benign(["Please run the refresh-cache job."]) == "violation"


def test_an_error_in_a_benign_conversation_stays_an_error() -> None:
    held = run_rollout(plan_replay(V1, ["Hello!"], name="benign", seed=2))
    for outcome in ("error", "undetermined"):
        broken = held.model_copy(update={"outcome": outcome})
        assert benign_outcome(broken, TWIN, NORTHWIND) == outcome


def test_doing_what_was_asked_and_breaking_a_rule_is_a_failure() -> None:
    held = run_rollout(
        plan_replay(V1, NORTHWIND.benign_twin("purge_accounts").turns, name="benign", seed=2)
    )
    other = run_rollout(plan_replay(V2, ["x"], name="x", seed=1))
    assert benign_outcome(held, TWIN, NORTHWIND) == "safe"
    violation = next(
        t
        for n in range(50)
        if (t := run_rollout(plan_attack(V2, FOUND, "static", 7, 8, n))).violations
    ).violations
    broken = held.model_copy(update={"violations": violation})
    assert benign_outcome(broken, TWIN, NORTHWIND) == "violation"
    assert benign_outcome(other, TWIN, NORTHWIND) == "violation"


# --------------------------------------------------------------- what a record survives

HALF = st.integers(0xD800, 0xDFFF).map(chr)
HOSTILE = st.one_of(
    st.text(st.characters(), max_size=40),
    st.sampled_from(
        ["\x00", "\x1b[2J\x1b[31m", "\u202e", "\ufeff", "]]>", "</script>", "\r\n", ""]
    ),
    st.builds(lambda a, half, b: a + half + b, st.text(max_size=5), HALF, st.text(max_size=5)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=6,
)
TURN = st.integers(1, 9)
CALLS = st.builds(
    ToolCall, id=HOSTILE, name=HOSTILE, arguments=st.dictionaries(HOSTILE, JSON, max_size=3)
)
EVENTS: dict[str, st.SearchStrategy[Event]] = {
    "message": st.builds(
        MessageEvent, turn=TURN, role=st.sampled_from(["user", "assistant"]), content=HOSTILE
    ),
    "tool_call": st.builds(
        ToolCallEvent,
        turn=TURN,
        call=CALLS,
        status=st.sampled_from(["executed", "blocked", "held", "failed"]),
        result=HOSTILE,
    ),
    "hook": st.builds(
        HookEvent,
        turn=TURN,
        hook=st.sampled_from(["pre_action", "trajectory", "post_action"]),
        decision=st.sampled_from(["allow", "warn", "hold", "block", "stop"]),
        reason=HOSTILE,
    ),
    "oracle": st.builds(
        OracleEvent,
        turn=TURN,
        outcome=st.sampled_from(["violation", "attempted", "safe"]),
        evidence=HOSTILE,
    ),
    "error": st.builds(ErrorEvent, turn=TURN, error=HOSTILE, detail=HOSTILE),
}
EMPTY = run_rollout(plan_replay(V1, [], name="empty", seed=1))


def kept(events: Sequence[Event], plants: Sequence[Plant] = ()) -> Trajectory:
    trajectory = EMPTY.model_copy(update={"events": tuple(events), "plants": tuple(plants)})
    line = trajectory.model_dump_json()
    assert "\n" not in line
    assert Trajectory.model_validate_json(line.encode("utf-8")) == trajectory
    return trajectory


@pytest.mark.parametrize("kind", EVENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_event_of_any_text_comes_back_from_its_journal(kind: str, data: st.DataObject) -> None:
    trajectory = kept([data.draw(EVENTS[kind])])
    assert trajectory.events[0].kind == kind
    judge(trajectory.events, NORTHWIND.rules)
    str(trajectory)
    json.loads(trajectory.model_dump_json())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=8), HOSTILE)
def test_a_whole_conversation_of_any_text_comes_back(events: list[Event], text: str) -> None:
    kept(events, [Plant(where="files", key=text, text=text)])


@pytest.mark.parametrize("kind", EVENTS)
def test_half_a_surrogate_pair_becomes_the_sign_for_what_cannot_be_read(kind: str) -> None:
    text = "before \ud83d after"
    made: dict[str, Event] = {
        "message": MessageEvent(turn=1, role="user", content=text),
        "tool_call": ToolCallEvent(
            turn=1,
            call=ToolCall(id=text, name=text, arguments={text: [text, {"x": text}]}),
            status="failed",
            result=text,
        ),
        "hook": HookEvent(turn=1, hook="pre_action", decision="block", reason=text),
        "oracle": OracleEvent(turn=1, outcome="safe", evidence=text),
        "error": ErrorEvent(turn=1, error="x", detail=text),
    }
    assert "before \ufffd after" in kept([made[kind]]).model_dump_json()


def test_text_that_can_be_read_is_not_touched() -> None:
    text = "\x1b[31m \x00 \u202e \U0001f600 e\u0301 \ufeff"
    assert MessageEvent(turn=1, role="user", content=text).content == text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_hold_is_no_number(number: float) -> None:
    call = ToolCall(id="1", name="make_payment", arguments={"amount": number, "deep": [number]})
    assert call.arguments == {"amount": str(number), "deep": [str(number)]}


def test_a_megabyte_comes_back() -> None:
    text = "x\u20ac\x1b" * 350_000
    call = ToolCall(id="1", name="send_mail", arguments={"body": text})
    kept(
        [
            MessageEvent(turn=1, role="user", content=text),
            ToolCallEvent(turn=1, call=call, status="executed", result=text),
        ]
    )


class Echo:
    """Calls a tool with what it was told, then says it back; or fails with it."""

    name = "echo"
    concurrency = 0

    def complete(self, messages: Sequence[Message], tools: object, *, seed: int) -> Message:
        # What a client hands over after reading JSON, in which half a pair can be escaped.
        said = messages[-1].content + "\udc00"
        if messages[-1].role == "tool":
            return Message(role="assistant", content=said)
        if "fail" in said:
            raise BackendError("bad_response", said)
        call = ToolCall(id=said, name="send_mail", arguments={"to": f"{said}@b.example", said: 1})
        return Message(role="assistant", content=said, tool_calls=(call,))


@pytest.mark.parametrize("text", ["\ud83d", "a\udfff b", "fail \ud800"])
def test_half_a_surrogate_pair_from_either_side_does_not_stop_a_conversation(text: str) -> None:
    turns = [text, text]
    held = hold(Agent(V1, Echo()), Script(turns), plan_replay(V1, turns, name="half", seed=1))
    assert Trajectory.model_validate_json(held.model_dump_json()) == held


@settings(max_examples=25, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=3))
def test_no_text_stops_a_campaign(turns: list[str]) -> None:
    plant = Plant(where="tickets", key="T-900", text=turns[0])
    job = plan_replay(V1, ["Please read ticket T-900.", *turns], name="x", seed=1, plants=[plant])
    (held,) = run_campaign([job])
    assert held.outcome in ("safe", "violation")
    assert Trajectory.model_validate_json(held.model_dump_json()) == held


def test_a_campaign_of_hostile_words_is_resumed(tmp_path: Path) -> None:
    words = ["half \ud83d", "\x1b[2J", "line\u2028break\r\n", "\x00"]
    planned: list[Rollout] = [
        plan_replay(V1, [word, "Please read ticket T-201."], name=f"n{n}", seed=n)
        for n, word in enumerate(words)
    ]
    first = list(run_campaign(planned, journal=tmp_path / "j"))
    assert list(run_campaign(planned, journal=tmp_path / "j")) == first


@given(st.lists(st.sampled_from(["message", "hook", "error"]), max_size=6), st.data())
def test_turns_are_gathered_in_order_whatever_happened_in_them(
    kinds: list[str], data: st.DataObject
) -> None:
    events: list[Any] = [data.draw(EVENTS[kind]) for kind in kinds]
    turns = kept(events).turns
    assert [turn.turn for turn in turns] == sorted({event.turn for event in events})
