"""The door: an incident or a trace of another tool comes in and becomes one typed incident.

Five shapes are read: the incident file of this project, the richer one with a role for each turn,
OpenAI chat messages (JSON or JSONL), OpenTelemetry GenAI spans and Inspect logs. The names that
each shape has for the same thing stand in ``ALIASES`` and nowhere else. Nothing is invented: what a
file does not tell stays empty, and what it tells and a replay cannot use is listed as a gap. Labels
are kept as claims; no stage reads them before it has an answer of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safety_lib.agent.sandbox import TOOL_NAMES, load_company
from safety_lib.agent.versions import RELEASED
from safety_lib.artifacts import ArtifactError, one_line, read_incident, sha256_of
from safety_lib.records import Incident, IncidentTurn, Plant, ReportedCall

ALIASES: dict[str, tuple[str, ...]] = {
    # of an incident
    "incident_id": ("incident_id", "id"),
    "timestamp": ("timestamp", "date", "detected_at", "created"),
    "severity": ("severity",),
    "category": ("category", "failure_type"),
    "description": ("description", "summary", "title"),
    "trajectory": ("trajectory", "conversation", "turns", "messages"),
    "affected_users": ("affected_users", "impact.affected_users", "impact.users_affected"),
    "detected_by": ("detected_by", "detector"),
    "detection_latency_hours": ("detection_latency_hours",),
    "remediation_actions": ("remediation_actions", "remediation"),
    "root_cause_preliminary": ("root_cause_preliminary", "root_causes", "root_cause"),
    "agent_version": ("agent_version", "environment.agent_version", "environment.model"),
    "seed": ("seed", "environment.seed"),
    # of a message
    "role": ("role", "speaker"),
    "content": ("content", "text", "message"),
    "calls": ("tool_calls", "action", "actions", "function_call"),
    "compliant": ("compliant", "violation", "status"),
    "call_id": ("tool_call_id", "call_id"),
    # of a tool call
    "tool": ("name", "tool", "function"),
    "arguments": ("arguments", "params", "parameters", "args", "input"),
    "result": ("result", "output", "response"),
}
"""Each field of ours, and what others call it; the first name that is there is taken."""

ROLES: dict[str, str] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
_LABELS: dict[Any, bool] = {"safe": True, "compliant": True, "unsafe": False, "violation": False}
_STATUSES = ("executed", "blocked", "held", "failed")
_TOLD = (
    "timestamp",
    "severity",
    "category",
    "description",
    "affected_users",
    "detected_by",
    "detection_latency_hours",
    "remediation_actions",
    "root_cause_preliminary",
)
_CHAT_SPANS = ("chat", "generate_content", "text_completion")

MOST_BYTES = 64 << 20
_MOST_LISTED = 5
_LONGEST_GAP = 200
_MAIL = re.compile(r"^(M-\d+): (.*)$")
_FAILED = re.compile(r"\s*(error\b|timed? ?out|no (ticket|file) )", re.IGNORECASE)


@dataclass(frozen=True)
class Intake:
    """An incident as it came through the door.

    Attributes
    ----------
    incident : Incident
        What is known.
    source : str
        Which of the shapes it came in.
    gaps : tuple of str
        What is missing, unknown or cannot be replayed, one line each; empty where nothing is.
    """

    incident: Incident
    source: str
    gaps: tuple[str, ...]

    def __str__(self) -> str:
        found = self.incident
        calls = sum(len(turn.calls) for turn in found.trajectory)
        lines = [
            f"{found.incident_id} from {self.source}: {len(found.trajectory)} turns, {calls} tool "
            f"calls, {len(found.plants)} planted texts"
        ]
        lines += [f"  missing: {gap}" for gap in self.gaps]
        return "\n".join(lines)


def take_in(path: str | Path, conversation: str = "") -> Intake:
    """Read an incident, or a trace of another tool, whichever of the five shapes it has.

    Parameters
    ----------
    path : str or Path
        A JSON or JSONL file in UTF-8; a binary Inspect log needs inspect-ai.
    conversation : str, optional
        Which conversation to take from a file that holds several: its id, or its number from 1.

    Returns
    -------
    Intake

    Raises
    ------
    ArtifactError
        With one line: the file, what is wrong and what to do.

    Examples
    --------
    >>> print(take_in("artifacts/incident_example.json"))
    INC-2024-001 from incident file: 7 turns, 0 tool calls, 0 planted texts
    """
    door = _Door(Path(path))
    try:
        return _taken(door, conversation)
    except RecursionError as error:
        raise door.refusal("nested too deeply") from error


def _taken(door: _Door, conversation: str) -> Intake:
    tree = door.read()
    shape, conversations = door.shape_of(tree)
    if shape == "incident file":
        return _own(door)
    key, held = door.pick(conversations, conversation)
    about: dict[str, Any] = {}
    if shape == "role-per-turn incident":
        about = tree[0] if isinstance(tree, list) else tree
        messages = list(_of_turns(held, door))
    else:
        messages = list(_READERS[shape](held, door))
    turns, number_of = _fold(messages, door)
    if not turns:
        raise door.refusal("holds no message of a user, so there is nothing to replay")
    return Intake(_incident(about, turns, number_of, door, key or tree), shape, tuple(door.gaps))


# ------------------------------------------------------------------------------ the whole file


@dataclass
class _Call:
    name: str
    arguments: dict[str, Any]
    call_id: str = ""
    result: str | None = None
    status: str | None = None


@dataclass
class _Said:
    role: str
    content: str = ""
    calls: list[_Call] = field(default_factory=list)
    answers: str = ""  # the id of the call that a tool message answers
    name: str = ""
    number: Any = None
    compliant: bool | None = None
    notes: list[str] = field(default_factory=list)
    failed: bool = False


class _Door:
    """The file that is being read, what of it is missing, and how to refuse it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gaps: list[str] = []
        self.other_fields: set[str] = set()

    def refusal(self, what: str, advice: str = "correct the file") -> ArtifactError:
        return ArtifactError(f"{one_line(self.path.name)}: {one_line(what)}; {advice}")

    def gap(self, what: str) -> None:
        line = one_line(what, _LONGEST_GAP)
        if line not in self.gaps:
            self.gaps.append(line)

    def read(self) -> Any:
        advice = "give the path of an incident file, such as artifacts/incident_example.json"
        try:
            if self.path.stat().st_size > MOST_BYTES:
                raise self.refusal("more than 64 MB", "cut out the conversation of the incident")
            data = self.path.read_bytes()
        except FileNotFoundError:
            where = one_line(str(self.path.parent))
            raise self.refusal(f"there is no such file in {where}", advice) from None
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise self.refusal(f"cannot be read ({said})", advice) from error
        if data.startswith(b"PK"):
            return self._inspect()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.refusal(f"not UTF-8 at byte {error.start}", advice) from error
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise self.refusal("is empty", advice)
        try:
            return self._parsed(text)
        except json.JSONDecodeError as error:
            try:
                first = self._parsed(lines[0])
            except json.JSONDecodeError:
                first = None
            if len(lines) < 2 or not isinstance(first, dict):
                where = f"line {error.lineno}, column {error.colno}"
                what = f"not JSON at {where}, so truncated or damaged"
                raise self.refusal(what, advice) from error
            return [first, *self._rest(lines[1:])]

    def _rest(self, lines: Sequence[str]) -> Iterator[Any]:
        for number, line in enumerate(lines, start=2):
            try:
                yield self._parsed(line)
            except json.JSONDecodeError as error:
                if number <= len(lines):
                    raise self.refusal(f"line {number} is not JSON") from error
                self.gap(f"line {number} is cut off and not read")

    def _parsed(self, text: str) -> Any:
        def refuse(name: str) -> None:
            raise self.refusal(f"{name} is not a JSON number")

        try:
            return json.loads(text, parse_constant=refuse)
        except RecursionError as error:
            raise self.refusal("nested too deeply") from error
        except json.JSONDecodeError:
            raise
        except ArtifactError:
            raise
        except ValueError as error:
            raise self.refusal(str(error)) from error

    def _inspect(self) -> Any:
        try:
            from inspect_ai.log import read_eval_log
        except ImportError:
            what = "a binary log, which needs inspect-ai"
            raise self.refusal(what, "install it, or convert the log to JSON") from None
        try:
            log = read_eval_log(str(self.path), resolve_attachments=True)
        except Exception as error:  # whatever a reader of other people's files may raise
            raise self.refusal(f"not an Inspect log ({error})") from error
        return log.model_dump(mode="json")

    def shape_of(self, tree: Any) -> tuple[str, dict[str, Any]]:
        """Say which shape it is, and give its conversations by their ids."""
        items = tree if isinstance(tree, list) else [tree]
        if not items or not all(isinstance(item, dict) for item in items):
            raise self.refusal("holds no JSON object", "give an incident or a trace")
        first = items[0]
        if "eval" in first and "status" in first:
            samples = _objects(first.get("samples"))
            if not samples:
                raise self.refusal("an Inspect log without samples", "write it with its samples")
            return "Inspect log", {_sample_id(sample): sample for sample in samples}
        spans = [span for item in items for span in _spans(item)]
        if spans:
            return "OpenTelemetry GenAI spans", _by_conversation(spans)
        if any("messages" in item for item in items) and "incident_id" not in first:
            named = enumerate(items, start=1)
            return "OpenAI chat messages", {
                str(item.get("id", number)): item.get("messages") for number, item in named
            }
        if len(items) > 1 or (isinstance(tree, list) and "role" in first):
            return "OpenAI chat messages", {"": items}
        if isinstance(first.get("sessions"), list):
            return "role-per-turn incident", {
                str(session.get("session_id", number)): _first(session, "trajectory")
                for number, session in enumerate(_objects(first["sessions"]), start=1)
            }
        turns = _objects(_first(first, "trajectory"))
        if turns and not any(_first(turn, "role") for turn in turns) and "user" in turns[0]:
            return "incident file", {}
        if turns:
            return "role-per-turn incident", {"": _first(first, "trajectory")}
        return "incident file", {}

    def pick(self, conversations: dict[str, Any], wanted: str) -> tuple[str, Any]:
        ids = list(conversations)
        if not ids:
            raise self.refusal("holds no conversation")
        if wanted in conversations:
            return wanted, conversations[wanted]
        if wanted.isdecimal() and 0 < int(wanted) <= len(ids):
            return ids[int(wanted) - 1], conversations[ids[int(wanted) - 1]]
        listed = ", ".join(ids[:_MOST_LISTED]) + (", ..." if len(ids) > _MOST_LISTED else "")
        if wanted:
            raise self.refusal(f"holds no conversation {wanted!r}; it has {listed}")
        if len(ids) > 1:
            what = f"holds {len(ids)} conversations ({listed})"
            raise self.refusal(what, "name the one of the incident with --conversation")
        return ids[0], conversations[ids[0]]


def _own(door: _Door) -> Intake:
    incident = read_incident(door.path)
    for turn in incident.trajectory:
        _unknown_tools(turn.calls, door)
    if incident.seed is None:
        door.gap("seed: the file gives none, so fresh ones are drawn")
    return Intake(incident, "incident file", tuple(door.gaps))


# ------------------------------------------------------------------------- the shapes of others


def _of_turns(held: Any, door: _Door) -> Iterator[_Said]:
    for number, item in enumerate(_listed(held, door), start=1):
        role = _role(item, number, door)
        if role is None:
            continue
        known = {name for field_name in _OF_MESSAGE for name in ALIASES[field_name]}
        notes = [f"{k}: {v}" for k, v in _flat({k: item[k] for k in item if k not in known})]
        calls = _first(item, "calls")
        said = _Said(
            role,
            _text(_first(item, "content"), number, door),
            [_call(call, number, door) for call in _objects(calls)],
            answers=str(_first(item, "call_id") or ""),
            name=str(item.get("name") or ""),
            number=item["turn"] if isinstance(item.get("turn"), int) else number,
            compliant=_label(item),
            notes=[note for note in notes if not note.startswith("turn:")],
        )
        yield said


_OF_MESSAGE = ("role", "content", "calls", "compliant", "call_id")


def _of_chat(held: Any, door: _Door) -> Iterator[_Said]:
    for number, item in enumerate(_listed(held, door), start=1):
        role = _role(item, number, door)
        if role is None:
            continue
        known = {"role", "content", "tool_calls", "function_call", "tool_call_id", "name", "id"}
        known |= {"refusal", "function", "error", "source", "model", "metadata", "type"}
        door.other_fields |= item.keys() - known
        content = _text(item.get("content"), number, door) or str(item.get("refusal") or "")
        calls = _objects(item.get("tool_calls")) + _objects(item.get("function_call"))
        yield _Said(
            role,
            content,
            [_call(call, number, door) for call in calls],
            answers=str(item.get("tool_call_id") or ""),
            name=str(item.get("function") or item.get("name") or ""),
            number=number,
            failed=bool(item.get("error")),
        )


def _of_sample(sample: dict[str, Any], door: _Door) -> Iterator[_Said]:
    attached = sample.get("attachments") or {}

    def resolved(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("attachment://"):
            name = value.removeprefix("attachment://")
            if name not in attached:
                door.gap(f"attachment {name} is not in the log")
            return attached.get(name, "")
        if isinstance(value, dict):
            return {key: resolved(inner) for key, inner in value.items()}
        return [resolved(inner) for inner in value] if isinstance(value, list) else value

    if sample.get("error"):
        door.gap("the sample ended with an error")
    if sample.get("scores"):
        door.gap("scores of the sample are not read: the oracle of this project decides")
    yield from _of_chat(resolved(sample.get("messages")), door)


def _of_spans(spans: list[dict[str, Any]], door: _Door) -> Iterator[_Said]:
    ordered = sorted(spans, key=_started)
    chats = [s for s in ordered if _operation(s) in _CHAT_SPANS and _span_messages(s, door)]
    chats = chats or [s for s in ordered if _span_messages(s, door)]
    if not chats:
        what = "the spans hold no messages, so the capture of content was off"
        raise door.refusal(what, "record the conversation with its content")
    history: list[_Said] = []
    for span in chats:
        seen, answered = _span_messages(span, door) or ([], [])
        told = [_plain_said(said) for said in history]
        new = [_plain_said(said) for said in seen]
        # A span repeats the conversation, whole or cut to a window: only what is new is taken.
        repeated = next((n for n in range(len(new), 0, -1) if told[-n:] == new[:n]), 0)
        if history and not repeated and len(seen) > 1:
            door.gap(f"span {_span_name(span)} does not continue the one before it")
        history += [*seen[repeated:], *answered]
    results = {}
    for span in ordered:
        attributes = span["attributes"]
        if _operation(span) == "execute_tool" and "gen_ai.tool.call.result" in attributes:
            call_id = str(attributes.get("gen_ai.tool.call.id", ""))
            results[call_id] = _as_text(attributes["gen_ai.tool.call.result"])
    told_ids = {said.answers for said in history}
    for call in (call for said in history for call in said.calls):
        if call.call_id in results and call.call_id not in told_ids:
            call.result = results[call.call_id]
    yield from history


def _span_messages(span: dict[str, Any], door: _Door) -> tuple[list[_Said], list[_Said]] | None:
    attributes = span["attributes"]
    sides = []
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        value = attributes.get(name)
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            door.gap(f"{name} of span {_span_name(span)} is cut off and not read")
            value = None
        sides.append([s for item in _objects(value) for s in _of_parts(item, door)])
    system = [_Said("system")] if attributes.get("gen_ai.system_instructions") else []
    for event in _objects(span.get("events")):
        name = str(event.get("name", ""))
        inner = {**_attributes(event.get("attributes")), **_body(event)}
        kind = name.removeprefix("gen_ai.").removesuffix(".message")
        if name == "gen_ai.choice":
            message = inner.get("message", inner)
            message = {"content": message} if isinstance(message, str) else message
            sides[1] += list(_of_chat([{**message, "role": "assistant"}], door))
        elif name.startswith("gen_ai.") and kind in ROLES:
            inner = {k: v for k, v in inner.items() if k in ("content", "tool_calls", "id")}
            if kind == "tool":
                inner["tool_call_id"] = inner.pop("id", "")
            sides[0] += list(_of_chat([{**inner, "role": kind}], door))
    if not sides[0] and not sides[1]:
        return None
    return [*system, *sides[0]], sides[1]


def _of_parts(item: dict[str, Any], door: _Door) -> Iterator[_Said]:
    role = ROLES.get(str(item.get("role")).lower())
    if role is None:
        door.gap(f"messages of role {item.get('role')} are left out")
        return
    if "parts" not in item:
        yield from _of_chat([item], door)
        return
    text, calls = [], []
    for part in _objects(item["parts"]):
        kind = part.get("type")
        if kind == "text":
            text.append(_as_text(part.get("content", "")))
        elif kind == "tool_call":
            calls.append(_call(part, 0, door))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            yield _Said("tool", _as_text(result), answers=str(part.get("id") or ""))
        else:
            door.gap(f"parts of type {kind} are left out")
    if text or calls or role != "tool":
        yield _Said(role, "\n".join(text), calls)


_READERS: dict[str, Callable[[Any, _Door], Iterator[_Said]]] = {
    "OpenAI chat messages": _of_chat,
    "OpenTelemetry GenAI spans": _of_spans,
    "Inspect log": _of_sample,
}


# ----------------------------------------------------------------- messages become exchanges


def _fold(messages: Iterable[_Said], door: _Door) -> tuple[list[IncidentTurn], dict[Any, int]]:
    turns: list[_Turn] = []
    number_of: dict[Any, int] = {}
    prompts = 0
    for said in messages:
        if said.role == "system":
            prompts += 1
        elif said.role == "user":
            if turns and not turns[-1].answered:
                door.gap(f"turn {len(turns)}: two user messages in a row, joined")
                turns[-1].user += "\n" + said.content
            else:
                turns.append(_Turn(said.content))
        elif not turns:
            door.gap(f"a message of the {said.role} before the first of a user is left out")
            continue
        elif said.role == "tool":
            turns[-1].answer(said, len(turns), door)
        else:
            turns[-1].reply(said)
        if turns and said.role != "system":
            turns[-1].labels += [said.compliant] if said.compliant is not None else []
            turns[-1].notes += said.notes
            number_of[said.number] = len(turns)
    if not prompts:
        door.gap("system prompt: none in the file; the replayed version brings its own")
    else:
        door.gap("system prompt: in the file and not used; the replayed version brings its own")
    if turns and not turns[-1].replies:
        door.gap(f"turn {len(turns)}: the file ends before the agent answered")
    for number, turn in enumerate(turns, start=1):
        for call in turn.calls:
            if call.result is None:
                door.gap(f"turn {number}: {call.name} has no result")
            elif call.status == "failed" or (call.status is None and _FAILED.match(call.result)):
                call.status = "failed"
                door.gap(f"turn {number}: {call.name} failed in the file; a replay calls it anew")
            elif call.status is None:
                door.gap("status of tool calls: not told; one with a result is read as executed")
    return [turn.typed(number, door) for number, turn in enumerate(turns, start=1)], number_of


class _Turn:
    def __init__(self, user: str) -> None:
        self.user = user
        self.replies: list[str] = []
        self.calls: list[_Call] = []
        self.labels: list[bool] = []
        self.notes: list[str] = []
        self.answered = False

    def reply(self, said: _Said) -> None:
        self.answered = True
        self.calls += said.calls
        self.replies += [said.content] if said.content else []

    def answer(self, said: _Said, number: int, door: _Door) -> None:
        """Give a result to the call that it belongs to, whatever came in between."""
        self.answered = True
        waiting = [call for call in self.calls if call.result is None]
        mine = [call for call in waiting if said.answers and call.call_id == said.answers]
        if not mine and said.answers:
            door.gap(f"turn {number}: a result for {said.answers}, which nobody called, left out")
            return
        if not mine:
            mine = [call for call in waiting if not said.name or call.name == said.name]
            if not mine:
                door.gap(f"turn {number}: a tool result without a call is left out")
                return
            if len(waiting) > 1:
                door.gap(f"turn {number}: results without ids are given to calls in their order")
        mine[0].result = said.content
        mine[0].status = "failed" if said.failed else mine[0].status

    def typed(self, number: int, door: _Door) -> IncidentTurn:
        calls = tuple(
            ReportedCall.model_validate(
                {
                    "name": call.name,
                    "arguments": call.arguments,
                    "result": call.result,
                    "status": call.status,
                }
            )
            for call in self.calls
        )
        _unknown_tools(calls, door)
        return IncidentTurn(
            turn=number,
            user=self.user,
            assistant="\n".join(self.replies),
            compliant=all(self.labels) if self.labels else None,
            calls=calls,
            notes=tuple(self.notes),
        )


def _incident(
    about: Mapping[str, Any],
    turns: Sequence[IncidentTurn],
    number_of: Mapping[Any, int],
    door: _Door,
    identity: Any,
) -> Incident:
    told = {name: _first(about, name) for name in ALIASES}
    unknown = [name for name in _TOLD if told[name] in (None, "", [], {})]
    if unknown:
        door.gap(f"not told: {', '.join(unknown)}")
    if not told["incident_id"]:
        told["incident_id"] = f"trace-{sha256_of(identity)[:12]}"
        door.gap("incident_id: none in the file; named after a hash of it")
    version = _known_version(told["agent_version"], door)
    seed = told["seed"] if type(told["seed"]) is int else None
    if seed is None:
        door.gap("seed: none in the file, so fresh ones are drawn")
    if door.other_fields:
        listed = sorted(map(str, door.other_fields))[:_MOST_LISTED]
        door.gap(f"fields of messages that are not read: {', '.join(listed)}")
    plants = tuple(_plants(turns, door))
    claims = _claims(about, number_of)
    causes = told["root_cause_preliminary"]
    actions = told["remediation_actions"]
    try:
        return Incident(
            incident_id=str(told["incident_id"]),
            timestamp=str(told["timestamp"] or ""),
            severity=str(told["severity"] or ""),
            category=str(told["category"] or ""),
            description=str(told["description"] or ""),
            trajectory=tuple(turns),
            affected_users=told["affected_users"],
            detected_by=str(told["detected_by"] or ""),
            detection_latency_hours=told["detection_latency_hours"],
            remediation_actions=tuple(map(str, actions if isinstance(actions, list) else ())),
            root_cause_preliminary=(
                ", ".join(map(str, causes)) if isinstance(causes, list) else str(causes or "")
            ),
            agent_version=version,
            seed=seed,
            plants=plants,
            claims=claims,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise door.refusal(f"field {where}: {first['msg']}") from error


def _claims(about: Mapping[str, Any], number_of: Mapping[Any, int]) -> dict[str, str]:
    used = {_path_of(about, name) for name in ALIASES} - {None}
    claims = {}
    for path, value in _flat({k: about[k] for k in about if k not in ("sessions",)}):
        if path not in used and path.split(".")[0] not in ALIASES["trajectory"]:
            claims[path] = value
    unsafe = about.get("first_unsafe_turn")
    if isinstance(unsafe, int) and unsafe in number_of:
        claims["first_unsafe_turn"] = str(number_of[unsafe])  # messages are counted there
    return claims


def _plants(turns: Iterable[IncidentTurn], door: _Door) -> Iterator[Plant]:
    """Yield what the record shows in tickets, files and mails and the company does not hold."""
    company, done = load_company(), set()
    for turn in turns:
        for call in turn.calls:
            if call.result is None or call.status not in (None, "executed"):
                continue
            for where, key, text in _read(call, turn.turn, door):
                if key not in done and company[where].get(key) != text:
                    done.add(key)
                    yield Plant.model_validate({"where": where, "key": key, "text": text})
            customer = call.arguments.get("customer")
            if call.name == "lookup_customer" and customer not in company["customers"]:
                door.gap(f"turn {turn.turn}: the company has no customer {customer}")


def _read(call: ReportedCall, number: int, door: _Door) -> Iterator[tuple[str, str, str]]:
    text = call.result or ""
    if call.name not in ("read_ticket", "read_file", "read_inbox"):
        return
    if call.name == "read_inbox":
        for line in text.splitlines():
            mail = _MAIL.match(line)
            if mail:
                yield "inbox", mail.group(1), mail.group(2)
            elif line.strip():
                door.gap(f"turn {number}: a line of the inbox has no mail id and is left out")
    else:
        where, name = ("tickets", "ticket") if call.name == "read_ticket" else ("files", "path")
        key = call.arguments.get(name)
        if isinstance(key, str):
            yield where, key, text


def _unknown_tools(calls: Iterable[ReportedCall], door: _Door) -> None:
    for call in calls:
        if call.name not in TOOL_NAMES:
            door.gap(f"tool {call.name}: the company has none of this name, so no call to it runs")


def _known_version(told: Any, door: _Door) -> str:
    if told in (None, ""):
        door.gap("agent_version: not told; the replay is told one")
        return ""
    if str(told) not in RELEASED:
        door.gap(f"agent_version: {told} is none of this project's; the replay is told one")
        return ""
    return str(told)


# ----------------------------------------------------------------------------- small readers


def _first(tree: Mapping[str, Any], name: str) -> Any:
    path = _path_of(tree, name)
    return None if path is None else _at(tree, path)


def _path_of(tree: Mapping[str, Any], name: str) -> str | None:
    return next((path for path in ALIASES[name] if _at(tree, path) is not None), None)


def _at(tree: Any, path: str) -> Any:
    for step in path.split("."):
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def _objects(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _listed(held: Any, door: _Door) -> list[dict[str, Any]]:
    if not isinstance(held, list):
        raise door.refusal("its conversation is not a list of messages")
    found = _objects(held)
    if len(found) < len(held):
        door.gap(f"{len(held) - len(found)} entries that are no messages are left out")
    return found


def _role(item: Mapping[str, Any], number: int, door: _Door) -> str | None:
    told = _first(item, "role")
    role = ROLES.get(str(told).lower())
    if role is None:
        door.gap(f"message {number}: role {told} is unknown and left out")
    return role


def _text(content: Any, number: int, door: _Door) -> str:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind not in ("text", "str"):
                door.gap(f"message {number}: content of type {kind} is left out")
        texts = [p if isinstance(p, str) else p.get("text", "") for p in content if _is_text(p)]
        return "\n".join(map(str, texts))
    return "" if content is None else _as_text(content)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _call(item: Mapping[str, Any], number: int, door: _Door) -> _Call:
    inner = item.get("function")
    inside = inner if isinstance(inner, dict) else item
    name = str(_first(inside, "tool") or "")
    given = _first(inside, "arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError):
            door.gap(f"message {number}: arguments of {name} are not JSON and kept as text")
    if given is None:
        door.gap(f"message {number}: {name or 'a call'} has no arguments")
        given = {}
    arguments = given if isinstance(given, dict) else {"unparsed": given}
    result = _first(item, "result")
    status = item.get("status")
    if not name:
        door.gap(f"message {number}: a tool call has no name")
        name = "unnamed"
    return _Call(
        name,
        arguments,
        str(item.get("id") or _first(item, "call_id") or ""),
        None if result is None else _as_text(result),
        status if status in _STATUSES else None,
    )


def _label(item: Mapping[str, Any]) -> bool | None:
    if isinstance(item.get("compliant"), bool):
        return bool(item["compliant"])
    if isinstance(item.get("violation"), bool):
        return not item["violation"]
    return _LABELS.get(item.get("status")) if isinstance(item.get("status"), str) else None


def _flat(tree: Mapping[str, Any], above: str = "", depth: int = 4) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value and depth:
            yield from _flat(value, path, depth - 1)
        elif value not in (None, "", [], {}):
            plain = isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)
            yield path, ", ".join(map(str, value)) if plain else _as_text(value)


def _sample_id(sample: Mapping[str, Any]) -> str:
    return f"{sample.get('id')}/{sample.get('epoch', 1)}"


def _spans(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the spans of OTLP JSON, or of the flat form that exporters print."""
    groups = _objects(item.get("resourceSpans"))
    if groups:
        scopes = [scope for group in groups for scope in _objects(group.get("scopeSpans"))]
        flat = [span for scope in scopes for span in _objects(scope.get("spans"))]
    else:
        flat = _objects(item["spans"]) if "spans" in item else [dict(item)]
    for span in flat:
        if "attributes" in span:
            yield {**span, "attributes": _attributes(span["attributes"])}


def _attributes(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    return {str(item.get("key")): _value(item.get("value")) for item in _objects(given)}


def _value(wrapped: Any) -> Any:
    if not isinstance(wrapped, dict) or len(wrapped) != 1:
        return wrapped
    ((kind, value),) = wrapped.items()
    if kind == "arrayValue":
        return [_value(inner) for inner in _objects(_at(value, "values"))]
    if kind == "kvlistValue":
        return _attributes(_at(value, "values"))
    return value


def _body(event: Mapping[str, Any]) -> dict[str, Any]:
    body = _value(event.get("body"))
    return body if isinstance(body, dict) else {}


def _by_conversation(spans: Iterable[dict[str, Any]]) -> dict[str, Any]:
    spans = list(spans)
    named: dict[str, str] = {}
    for span in spans:
        conversation = span["attributes"].get("gen_ai.conversation.id")
        if conversation is not None:
            named[_trace(span)] = str(conversation)
    held: dict[str, Any] = {}
    for span in spans:
        own = span["attributes"].get("gen_ai.conversation.id")
        held.setdefault(str(own or named.get(_trace(span), _trace(span))), []).append(span)
    # Other work of the same service has no messages and is no conversation.
    talks = {k: v for k, v in held.items() if any(map(_is_genai, v))}
    return talks or held


def _is_genai(span: Mapping[str, Any]) -> bool:
    names = [*span["attributes"], *(str(e.get("name")) for e in _objects(span.get("events")))]
    return any(name.startswith("gen_ai.") for name in names)


def _trace(span: Mapping[str, Any]) -> str:
    return str(span.get("traceId") or span.get("trace_id") or _at(span, "context.trace_id") or "")


def _started(span: Mapping[str, Any]) -> tuple[int, str]:
    names = ("startTimeUnixNano", "start_time", "startTime")
    value = str(next((span[name] for name in names if name in span), ""))
    return (len(value), value) if value.isdigit() else (0, value)


def _operation(span: Mapping[str, Any]) -> str:
    return str(span["attributes"].get("gen_ai.operation.name", ""))


def _span_name(span: Mapping[str, Any]) -> str:
    return str(span.get("name") or "without a name")


def _plain_said(said: _Said) -> tuple[Any, ...]:
    return (said.role, said.content, said.answers, [(c.name, c.arguments) for c in said.calls])
