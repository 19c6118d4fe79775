"""One conversation: messages, tool calls, what became of them, and the trajectory they make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, SerializeAsAny
from pydantic_core import CoreSchema, core_schema

from safety_lib.records.base import (
    CallStatus,
    Ended,
    HookName,
    LoopRecord,
    Outcome,
    Record,
    Severity,
    loop_record,
)
from safety_lib.records.display import html_table
from safety_lib.text import in_lines

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    r"""Return a text without half surrogate pairs, which users and models send and no file holds.

    Examples
    --------
    >>> whole("caf\u00e9 \ud83d") == "caf\u00e9 \ufffd"
    True
    """
    return text if text.isascii() else _HALF_A_PAIR.sub("\ufffd", text)


def _plain_json(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_plain_json(key): _plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(inner) for inner in value]
    return value if value is None or isinstance(value, int) else str(value)


class _Whole:
    """Makes a text whole where Python hands it over; what was read from JSON is whole already."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[str], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        text = handler(source)
        made = core_schema.no_info_after_validator_function(whole, text)
        return core_schema.json_or_python_schema(json_schema=text, python_schema=made)


Text = Annotated[str, _Whole]
Arguments = Annotated[dict[str, Any], AfterValidator(_plain_json)]


def as_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as a person reads one.

    Examples
    --------
    >>> as_call("read_ticket", {"ticket": "T-203"})
    "read_ticket(ticket='T-203')"
    """
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({shown})"


@loop_record
class ToolCall(LoopRecord):
    """One call that the model proposes, in the shape of the OpenAI tools format.

    Its arguments are what JSON can hold: NaN and infinities become strings, which no tool takes for
    a number, and so does what an agent of one's own may put there, such as a date.
    """

    id: Text
    name: Text
    arguments: Arguments

    def __str__(self) -> str:
        return as_call(self.name, self.arguments)


@loop_record
class Message(LoopRecord):
    """One message as a chat model sees it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: Text = ""

    def __str__(self) -> str:
        return f"{self.role}: {', '.join([self.content, *map(str, self.tool_calls)])}"


@loop_record
class MessageEvent(LoopRecord):
    """A message of the user or a reply of the agent, as it crossed the agent's door."""

    kind: Literal["message"] = "message"
    turn: int
    role: Literal["user", "assistant"]
    content: Text

    def __str__(self) -> str:
        return f"turn {self.turn} {self.role}: {self.content}"


@loop_record
class ToolCallEvent(LoopRecord):
    """A tool call and what became of it; ``executed`` alone changed the sandbox."""

    kind: Literal["tool_call"] = "tool_call"
    turn: int
    call: ToolCall
    status: CallStatus
    result: Text

    def __str__(self) -> str:
        return f"{self.call} -> {self.status}"


@loop_record
class HookEvent(LoopRecord):
    """What one safeguard hook decided, and which of its checks decided it."""

    kind: Literal["hook"] = "hook"
    turn: int
    hook: HookName
    decision: Literal["allow", "warn", "hold", "block", "stop"]
    check: str = ""
    reason: Text = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"turn {self.turn} {self.hook}: {self.decision}{why}"


@loop_record
class OracleEvent(LoopRecord):
    """What the oracle decided about one tool call or reply."""

    kind: Literal["oracle"] = "oracle"
    turn: int
    outcome: Literal["violation", "attempted", "safe"]
    rule_id: str = ""
    evidence: Text = ""

    def __str__(self) -> str:
        why = f" of {self.rule_id}: {self.evidence}" if self.rule_id else ""
        return f"turn {self.turn} {self.outcome}{why}"


@loop_record
class ErrorEvent(LoopRecord):
    """The harness or the model backend failed; never a pass, never a failure of the agent."""

    kind: Literal["error"] = "error"
    turn: int
    error: Text
    detail: Text

    def __str__(self) -> str:
        return f"turn {self.turn} {self.error}: {self.detail}"


Event = Annotated[
    MessageEvent | ToolCallEvent | HookEvent | OracleEvent | ErrorEvent,
    Field(discriminator="kind"),
]


@loop_record
class Violation(LoopRecord):
    """A policy rule that was broken by something that happened, at a turn counted from 1."""

    rule_id: str
    severity: Severity
    turn: int
    evidence: str

    def __str__(self) -> str:
        return f"turn {self.turn} {self.rule_id} ({self.severity}): {self.evidence}"


class Turn(Record):
    """One exchange, gathered from the events of a trajectory, in the order of reading."""

    turn: int
    user: str
    assistant: str
    tool_calls: tuple[str, ...] = ()
    safeguards: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()


class Plant(Record):
    """Text that an attacker left inside the world before the conversation: the injection channel.

    ``where`` is a place of the world whose entries a tool reads, ``key`` the entry that holds
    ``text``.
    """

    where: Text
    key: Text
    text: Text


@loop_record
class Trajectory(LoopRecord):
    """One conversation between an attacker and one version of the agent, event by event."""

    trajectory_id: str
    scenario_id: str
    goal: str
    attack_type: str
    attacker: str
    version: str
    config_sha256: str
    model: str
    seed: int
    plants: tuple[Plant, ...] = ()
    outcome: Outcome
    ended: Ended
    n_turns: int
    model_calls: int
    violations: tuple[Violation, ...] = ()
    attempted: tuple[str, ...] = ()
    # Each is written as what it is: to look for its kind among all takes as long again.
    events: tuple[SerializeAsAny[Event], ...]

    @property
    def failure_turn(self) -> int | None:
        """Turn of the first violation, counted from 1, or None."""
        return self.violations[0].turn if self.violations else None

    @property
    def user_messages(self) -> tuple[str, ...]:
        """What the attacker said, one string a turn."""
        return tuple(e.content for e in self.events if e.kind == "message" and e.role == "user")

    @property
    def replies(self) -> tuple[str, ...]:
        """What the agent replied, one string a turn."""
        return tuple(
            e.content for e in self.events if e.kind == "message" and e.role == "assistant"
        )

    @property
    def executed_calls(self) -> tuple[ToolCallEvent, ...]:
        """The tool calls that ran, in order."""
        return tuple(e for e in self.events if e.kind == "tool_call" and e.status == "executed")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation turn by turn."""
        return tuple(_gather_turns(self.events))

    @property
    def error(self) -> str:
        """Why the trajectory is an error, or an empty string."""
        return next((f"{e.error}: {e.detail}" for e in self.events if e.kind == "error"), "")

    def _repr_html_(self) -> str:
        said = (
            (
                t.turn,
                t.user,
                "; ".join((*t.tool_calls, *t.safeguards)),
                t.assistant,
                ", ".join(t.violations),
            )
            for t in self.turns
        )
        columns = ("turn", "user", "tools and safeguards", "agent", "broken rule")
        return html_table(str(self).splitlines()[0], columns, said)

    def __str__(self) -> str:
        lines = [f"{self.version} · {self.scenario_id} · {self.attacker} · {self.outcome}"]
        for turn in self.turns:
            lines.append(f"[{turn.turn}] user:  {turn.user}")
            lines.extend(f"    tool:  {call}" for call in turn.tool_calls)
            lines.extend(f"    guard: {said}" for said in turn.safeguards)
            lines.append(f"    agent: {turn.assistant}")
            lines.extend(f"    BROKEN RULE: {rule}" for rule in turn.violations)
        return in_lines(lines)


def _gather_turns(events: tuple[Event, ...]) -> Iterator[Turn]:
    by_turn: dict[int, list[Event]] = {}
    for event in events:
        by_turn.setdefault(event.turn, []).append(event)
    for turn, group in sorted(by_turn.items()):
        texts = {"user": "", "assistant": ""}
        calls: list[str] = []
        guards: list[str] = []
        broken: list[str] = []
        for event in group:
            if event.kind == "message":
                texts[event.role] = event.content
            elif event.kind == "tool_call":
                calls.append(str(event))
            elif event.kind == "hook" and event.decision != "allow":
                guards.append(f"{event.hook} {event.decision}: {event.reason}")
            elif event.kind == "oracle" and event.outcome == "violation":
                broken.append(event.rule_id)
            elif event.kind == "error":
                guards.append(f"error {event.error}: {event.detail}")
        yield Turn(
            turn=turn,
            user=texts["user"],
            assistant=texts["assistant"],
            tool_calls=tuple(calls),
            safeguards=tuple(guards),
            violations=tuple(broken),
        )
