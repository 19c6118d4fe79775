"""Records: made in the loop without a look, validated at every door, shown in one line."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from factories import NORTHWIND, a_trajectory
from pydantic import ValidationError

from safety_lib import records
from safety_lib.artifacts import CHECKOUT, read_artifact, read_experiment, read_incident
from safety_lib.incident.intake import take_in
from safety_lib.incident.replay import replay_incident
from safety_lib.records import (
    Artifact,
    Batch,
    ErrorEvent,
    Failure,
    GateReport,
    HookEvent,
    IncidentReport,
    LoopRecord,
    Message,
    MessageEvent,
    OracleEvent,
    Reproduction,
    StressFailures,
    Suite,
    ToolCall,
    ToolCallEvent,
    Trajectory,
    Violation,
    first_fault,
    html_table,
    unchecked,
)
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import plan_attack, plan_replay
from safety_lib.stats.survival import kaplan_meier
from safety_lib.stress.discovery import Discovery
from safety_lib.text import Shown
from safety_lib.world import load_version
from safety_lib.worlds.northwind.guards import SupportSafeguards
from safety_lib.worlds.northwind.sandbox import Sandbox

ARTIFACTS = CHECKOUT / "artifacts"
CALL = ToolCall(id="c1", name="read_ticket", arguments={"ticket": "T-203"})
LOOP: list[LoopRecord] = [
    CALL,
    Message(role="assistant", content="", tool_calls=(CALL,)),
    MessageEvent(turn=1, role="user", content="Hello"),
    ToolCallEvent(turn=1, call=CALL, status="executed", result="read"),
    HookEvent(turn=1, hook="pre_action", decision="allow"),
    OracleEvent(turn=1, outcome="safe"),
    ErrorEvent(turn=1, error="timeout", detail="no answer"),
    Violation(rule_id="r", severity="high", turn=1, evidence="e"),
    a_trajectory(2, "error", said=["Hello", "Again"]),
]


def fields_of(record: LoopRecord) -> dict[str, Any]:
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    return {field.name: getattr(record, field.name) for field in fields}


# --------------------------------------------------------------------------- made in the loop

each = pytest.mark.parametrize("record", LOOP, ids=lambda record: type(record).__name__)


def test_every_kind_of_loop_record_is_tried() -> None:
    named = {value for name in records.__all__ if isinstance(value := getattr(records, name), type)}
    assert {type(record) for record in LOOP} == {
        kind for kind in named if issubclass(kind, LoopRecord) and kind is not LoopRecord
    }


@each
def test_what_is_made_unchecked_is_the_same_record(record: LoopRecord) -> None:
    made = unchecked(type(record))(**fields_of(record))
    assert (type(made), made) == (type(record), record)
    assert made.model_dump_json() == record.model_dump_json()
    assert type(record).model_validate_json(made.model_dump_json()) == record
    assert type(record).model_validate(made.model_dump()) == record


@each
def test_a_loop_record_never_changes_and_has_room_for_nothing_else(record: LoopRecord) -> None:
    for made in (record, unchecked(type(record))(**fields_of(record))):
        name = next(iter(fields_of(made)))
        with pytest.raises(AttributeError):
            setattr(made, name, getattr(made, name))
        with pytest.raises((AttributeError, TypeError)):
            made.another = 1  # type: ignore[attr-defined]
        assert not hasattr(made, "__dict__")


@each
def test_a_loop_record_is_copied_and_sent_to_another_process(record: LoopRecord) -> None:
    assert pickle.loads(pickle.dumps(record)) == record == copy.deepcopy(record)


def test_unchecked_looks_at_nothing_and_fills_in_defaults() -> None:
    made = unchecked(HookEvent)(turn="no number", hook="pre_action", decision="allow")  # type: ignore[arg-type]
    assert (made.turn, made.kind, made.check, made.reason) == ("no number", "hook", "", "")
    with pytest.raises(TypeError, match="role"):
        unchecked(Message)(content="who said this?")  # type: ignore[call-arg]


def test_a_copy_has_other_values_in_some_fields() -> None:
    event = MessageEvent(turn=1, role="user", content="Hello")
    other = event.model_copy(update={"turn": 2})
    assert (event.turn, other) == (1, MessageEvent(turn=2, role="user", content="Hello"))
    with pytest.raises(TypeError, match="nobody"):
        event.model_copy(update={"nobody": 1})


# --------------------------------------------------------------------------- at the doors


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (MessageEvent, {"turn": "soon", "role": "user", "content": "Hello"}),
        (Message, {"role": "nobody", "content": "Hello"}),
        (ToolCall, {"id": "1", "name": "read_inbox", "arguments": "none"}),
        (Violation, {"rule_id": "r", "severity": "mild", "turn": 1, "evidence": ""}),
        (HookEvent, {"turn": 1, "hook": "pre_action"}),
        (ErrorEvent, {"turn": 1, "error": "timeout", "detail": "", "more": 1}),
    ],
)
def test_the_class_itself_validates_by_every_way_in(
    kind: type[LoopRecord], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


@pytest.mark.parametrize(
    ("damage", "field", "reason"),
    [
        ({"more": 1}, "tool_calls.0.call.more", "Extra inputs are not permitted"),
        ({"name": 3}, "tool_calls.0.call.name", "Input should be a valid string"),
        (
            None,
            "tool_calls.0.call",
            "Input should be a valid dictionary or instance of ToolCall",
        ),
    ],
)
def test_a_fault_is_told_in_the_words_of_models(
    stressed: StressFailures, damage: dict[str, Any] | None, field: str, reason: str
) -> None:
    tree = stressed.failures[0].model_dump()
    call = tree["tool_calls"][0]["call"]
    tree["tool_calls"][0]["call"] = None if damage is None else call | damage
    with pytest.raises(ValidationError) as refused:
        Failure.model_validate(tree)
    assert first_fault(refused.value) == (field, reason)


def test_what_a_tool_or_a_crashing_check_says_is_made_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def says(sandbox: Sandbox, call: ToolCall) -> str:
        return "half \ud83d"

    def crashes(guard: SupportSafeguards, call: ToolCall) -> None:
        raise ValueError("half \udc00")

    job = plan_replay(
        load_version("northwind/v1"), ["Please read ticket T-203."], name="half", seed=1
    )
    with monkeypatch.context() as patched:
        patched.setattr(Sandbox, "run", says)
        (told,) = run_campaign([job])
    monkeypatch.setattr(SupportSafeguards, "call_findings", crashes)
    (blocked,) = run_campaign([job])
    assert [call.result for call in told.executed_calls] == ["half \ufffd"]
    assert "check failed: half \ufffd" in blocked.turns[0].safeguards[0]
    for held in (told, blocked):
        assert Trajectory.model_validate_json(held.model_dump_json()) == held


def test_an_event_of_an_unknown_kind_is_no_trajectory() -> None:
    tree = a_trajectory(1, said=["Hello"]).model_dump()
    tree["events"][0]["kind"] = "rumour"
    with pytest.raises(ValidationError, match="rumour"):
        Trajectory.model_validate(tree)


# --------------------------------------------------------------------------- how they show


def inside(value: Any) -> Iterator[Shown]:
    """Yield every record in a value, itself included."""
    if isinstance(value, Shown):
        yield value
        value = [getattr(value, name) for name in type(value).__pydantic_fields__]  # type: ignore[attr-defined]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from inside(one)


def kept() -> Iterator[Shown]:
    """Yield what is kept in artifacts/, and what the loop is told by."""
    kinds: tuple[type[Artifact], ...] = (StressFailures, Suite, GateReport, IncidentReport, Batch)
    yield from (read_artifact(ARTIFACTS, kind) for kind in kinds)
    yield read_incident(ARTIFACTS / "incident_example.json")
    for path in sorted((ARTIFACTS / "incidents").glob("*.json")):
        yield take_in(path, NORTHWIND).incident
    for path in sorted((ARTIFACTS / "experiments").glob("*.json")):
        yield read_experiment(ARTIFACTS, path.stem)
    yield load_version("northwind/v2")
    yield NORTHWIND.policy
    yield from NORTHWIND.scenarios
    yield from run_campaign(
        [plan_attack(load_version("northwind/v2"), NORTHWIND.scenarios[0], "adaptive", 7, 8)]
    )


def test_every_record_shows_itself_in_one_short_line() -> None:
    shown = [record for whole in kept() for record in inside(whole)]
    assert len({type(record) for record in shown}) > 60
    for record in shown:
        line = repr(record)
        assert line.startswith(f"<{type(record).__name__}: "), line
        assert len(line) < 300, line
        assert line.isprintable(), line


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (StressFailures, r"<StressFailures: \d+ failures in \d+ conversations, .*v1 -> v2>"),
        (Suite, r"<Suite: \d+ active tests of \d+ in \d+ families, v1 -> v2>"),
        (GateReport, r"<GateReport: v1 -> v2: BLOCK>"),
        (
            IncidentReport,
            r"<IncidentReport: INC-2024-001: came back .* cause memory\.pin_policy.*>",
        ),
    ],
)
def test_what_a_stage_wrote_says_what_a_person_asks_first(kind: type[Artifact], said: str) -> None:
    assert re.fullmatch(said, repr(read_artifact(ARTIFACTS, kind)))


def test_a_text_that_somebody_else_wrote_does_not_break_the_line() -> None:
    event = MessageEvent(turn=1, role="user", content="first\x1b[31m\nsecond")
    assert repr(event) == r"<MessageEvent: turn 1 user: first[\x1b][31m>"
    assert len(repr(event.model_copy(update={"content": "x" * 100_000}))) < 300
    assert "\u202e" not in repr(ErrorEvent(turn=1, error="\u202e", detail=""))


def test_a_record_without_words_of_its_own_shows_its_fields() -> None:
    call = HookEvent(turn=2, hook="pre_action", decision="block", check="c", reason="why")
    assert repr(call) == "<HookEvent: turn 2 pre_action: block: why>"
    survived = read_artifact(ARTIFACTS, StressFailures).survival[0]
    assert repr(survived).startswith("<SurvivalCurve: version='v1', turn=[")
    assert repr(Reproduction(version="v2", k=1, n=2, ci_low=0, ci_high=1)) == (
        "<Reproduction: 1 of 2 [0.00, 1.00] on v2>"
    )


@pytest.mark.parametrize("kind", [StressFailures, Suite, GateReport, IncidentReport])
def test_a_notebook_shows_a_small_table(kind: type[Artifact]) -> None:
    record: Any = read_artifact(ARTIFACTS, kind)
    table = ElementTree.fromstring(record._repr_html_())
    heads, *rows = (len(row) for row in table.iter("tr"))
    assert table.findtext("caption") == str(record).splitlines()[0]
    assert rows and set(rows[:20]) == {heads}
    assert len(rows) <= 21


def test_a_table_escapes_what_others_wrote_and_says_how_much_more_there_is() -> None:
    table = html_table("<script>", ["said"], [["<b>&"]] * 25)
    assert "<script>" not in table and "<b>" not in table
    assert table.count("&lt;b&gt;&amp;") == 20
    assert "and 5 more" in table


def test_a_conversation_is_shown_turn_by_turn() -> None:
    table = a_trajectory(2, said=["Hello", "<i>Again</i>"])._repr_html_()
    assert table.index("Hello") < table.index("&lt;i&gt;Again")


def test_every_result_of_a_stage_shows_itself_in_one_short_line(discovery: Discovery) -> None:
    replay = replay_incident(
        take_in(ARTIFACTS / "incident_example.json", NORTHWIND).incident,
        load_version("northwind/v2"),
        replays=4,
    )
    curve = kaplan_meier([1, 2, 2, 3], [1, 1, 0, 1])
    shown = [discovery, replay, curve, *discovery.timing, *discovery.unseen, *discovery.endings]
    for result in shown:
        line = repr(result)
        assert line.startswith(f"<{type(result).__name__}: ")
        assert len(line) < 300
