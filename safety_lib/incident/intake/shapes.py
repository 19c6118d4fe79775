"""The shapes that other tools write, each read into the same messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from safety_lib.incident.intake.door import (
    ALIASES,
    ROLES,
    Door,
    as_text,
    at_path,
    field_of,
    flattened,
    messages_in,
    objects_in,
)
from safety_lib.incident.intake.exchanges import ReadCall, Said

_LABELS: dict[Any, bool] = {"safe": True, "compliant": True, "unsafe": False, "violation": False}
_STATUSES = ("executed", "blocked", "held", "failed")
_CHAT_SPANS = ("chat", "generate_content", "text_completion")


def shape_of(tree: Any, door: Door) -> tuple[str, dict[str, Any]]:
    """Say which shape it is, and give its conversations by their ids."""
    items = tree if isinstance(tree, list) else [tree]
    if not items or not all(isinstance(item, dict) for item in items):
        raise door.refusal("holds no JSON object", "give an incident or a trace")
    first = items[0]
    if "eval" in first and "status" in first:
        samples = objects_in(first.get("samples"))
        if not samples:
            raise door.refusal("an Inspect log without samples", "write it with its samples")
        return "Inspect log", {_sample_id(sample): sample for sample in samples}
    spans = [span for item in items for span in spans_in(item)]
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
            str(session.get("session_id", number)): field_of(session, "trajectory")
            for number, session in enumerate(objects_in(first["sessions"]), start=1)
        }
    turns = objects_in(field_of(first, "trajectory"))
    if turns and not any(field_of(turn, "role") for turn in turns) and "user" in turns[0]:
        return "incident file", {}
    if turns:
        return "role-per-turn incident", {"": field_of(first, "trajectory")}
    return "incident file", {}


def of_turns(held: Any, door: Door) -> Iterator[Said]:
    """Read an incident that has a role for each turn."""
    for number, item in enumerate(messages_in(held, door), start=1):
        role = _role(item, number, door)
        if role is None:
            continue
        known = {name for field_name in _OF_MESSAGE for name in ALIASES[field_name]}
        notes = [f"{k}: {v}" for k, v in flattened({k: item[k] for k in item if k not in known})]
        calls = field_of(item, "calls")
        said = Said(
            role,
            _text(field_of(item, "content"), number, door),
            [call_in(call, number, door) for call in objects_in(calls)],
            answers=str(field_of(item, "call_id") or ""),
            name=str(item.get("name") or ""),
            number=item["turn"] if isinstance(item.get("turn"), int) else number,
            compliant=_label(item),
            notes=[note for note in notes if not note.startswith("turn:")],
        )
        yield said


_OF_MESSAGE = ("role", "content", "calls", "compliant", "call_id")


def of_chat(held: Any, door: Door) -> Iterator[Said]:
    """Read OpenAI chat messages."""
    for number, item in enumerate(messages_in(held, door), start=1):
        role = _role(item, number, door)
        if role is None:
            continue
        known = {"role", "content", "tool_calls", "function_call", "tool_call_id", "name", "id"}
        known |= {"refusal", "function", "error", "source", "model", "metadata", "type"}
        door.other_fields |= item.keys() - known
        content = _text(item.get("content"), number, door) or str(item.get("refusal") or "")
        calls = objects_in(item.get("tool_calls")) + objects_in(item.get("function_call"))
        yield Said(
            role,
            content,
            [call_in(call, number, door) for call in calls],
            answers=str(item.get("tool_call_id") or ""),
            name=str(item.get("function") or item.get("name") or ""),
            number=number,
            failed=bool(item.get("error")),
        )


def _of_sample(sample: dict[str, Any], door: Door) -> Iterator[Said]:
    attached = sample.get("attachments") or {}

    def resolved(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("attachment://"):
            name = value.removeprefix("attachment://")
            if name not in attached:
                door.gap("an attachment is not in the log", name)
            return attached.get(name, "")
        if isinstance(value, dict):
            return {key: resolved(inner) for key, inner in value.items()}
        return [resolved(inner) for inner in value] if isinstance(value, list) else value

    if sample.get("error"):
        door.gap("the sample ended with an error")
    if sample.get("scores"):
        door.gap("scores of the sample are not read: the oracle of this project decides")
    yield from of_chat(resolved(sample.get("messages")), door)


def of_spans(spans: list[dict[str, Any]], door: Door) -> Iterator[Said]:
    """Read the spans of one conversation, in any order."""
    ordered = sorted(spans, key=_started)
    chats = [s for s in ordered if is_chat(s) and _span_messages(s, door)]
    chats = chats or [s for s in ordered if _span_messages(s, door)]
    if not chats:
        what = "the spans hold no messages, so the capture of content was off"
        raise door.refusal(what, "record the conversation with its content")
    history: list[Said] = []
    for span in chats:
        seen, answered = _span_messages(span, door) or ([], [])
        told = [_plain_said(said) for said in history]
        new = [_plain_said(said) for said in seen]
        # A span repeats the conversation, whole or cut to a window: only what is new is taken.
        repeated = next((n for n in range(len(new), 0, -1) if told[-n:] == new[:n]), 0)
        if history and not repeated and len(seen) > 1:
            door.gap("it does not continue the span before it", f"span {_span_name(span)}")
        history += [*seen[repeated:], *answered]
    results, ended = {}, {}
    for span in ordered:
        attributes = span["attributes"]
        call_id = str(attributes.get("gen_ai.tool.call.id", ""))
        if _operation(span) == "execute_tool" and call_id:
            ended[call_id] = "failed" if "error.type" in attributes else "executed"
            if "gen_ai.tool.call.result" in attributes:
                results[call_id] = as_text(attributes["gen_ai.tool.call.result"])
    told_ids = {said.answers for said in history}
    for call in (call for said in history for call in said.calls):
        if call.call_id in results and call.call_id not in told_ids:
            call.result = results[call.call_id]
        call.status = call.status or ended.get(call.call_id)
    yield from history


def _span_messages(span: dict[str, Any], door: Door) -> tuple[list[Said], list[Said]] | None:
    attributes = span["attributes"]
    sides = []
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        value = attributes.get(name)
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            door.gap(f"{name} is cut off and not read", f"span {_span_name(span)}")
            value = None
        sides.append([s for item in objects_in(value) for s in _of_parts(item, door)])
    told = attributes.get("gen_ai.system_instructions")
    system = [Said("system", as_text(told))] if told else []
    for event in objects_in(span.get("events")):
        name = str(event.get("name", ""))
        inner = {**_attributes(event.get("attributes")), **_body(event)}
        kind = name.removeprefix("gen_ai.").removesuffix(".message")
        if name == "gen_ai.choice":
            message = inner.get("message", inner)
            message = {"content": message} if isinstance(message, str) else message
            sides[1] += list(of_chat([{**message, "role": "assistant"}], door))
        elif name.startswith("gen_ai.") and kind in ROLES:
            inner = {k: v for k, v in inner.items() if k in ("content", "tool_calls", "id")}
            if kind == "tool":
                inner["tool_call_id"] = inner.pop("id", "")
            sides[0] += list(of_chat([{**inner, "role": kind}], door))
    if not sides[0] and not sides[1]:
        return None
    return [*system, *sides[0]], sides[1]


def _of_parts(item: dict[str, Any], door: Door) -> Iterator[Said]:
    role = ROLES.get(str(item.get("role")).lower())
    if role is None:
        door.gap(f"messages of role {item.get('role')} are left out")
        return
    if "parts" not in item:
        yield from of_chat([item], door)
        return
    text, calls = [], []
    for part in objects_in(item["parts"]):
        kind = part.get("type")
        if kind == "text":
            text.append(as_text(part.get("content", "")))
        elif kind == "tool_call":
            calls.append(call_in(part, 0, door))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            yield Said("tool", as_text(result), answers=str(part.get("id") or ""))
        else:
            door.gap(f"parts of type {kind} are left out")
    if text or calls or role != "tool":
        yield Said(role, "\n".join(text), calls)


READERS: dict[str, Callable[[Any, Door], Iterator[Said]]] = {
    "OpenAI chat messages": of_chat,
    "OpenTelemetry GenAI spans": of_spans,
    "Inspect log": _of_sample,
}


def _role(item: Mapping[str, Any], number: int, door: Door) -> str | None:
    told = field_of(item, "role")
    role = ROLES.get(str(told).lower())
    if role is None:
        door.gap(f"role {told} is unknown and left out", f"message {number}")
    return role


def _text(content: Any, number: int, door: Door) -> str:
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind not in ("text", "str"):
                door.gap(f"content of type {kind} is left out", f"message {number}")
        texts = [p if isinstance(p, str) else p.get("text", "") for p in content if _is_text(p)]
        return "\n".join(map(str, texts))
    return "" if content is None else as_text(content)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text")


def call_in(item: Mapping[str, Any], number: int, door: Door) -> ReadCall:
    """Read one tool call, whatever its fields are called.

    Parameters
    ----------
    item : Mapping
        The call.
    number : int
        Of the message that it stands in.
    door : Door
        Told what is missing.

    Returns
    -------
    ReadCall
        Arguments that are no JSON object are kept under ``unparsed``.
    """
    inner = item.get("function")
    inside = inner if isinstance(inner, dict) else item
    name = str(field_of(inside, "tool") or "")
    given = field_of(inside, "arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError):
            door.gap(f"arguments of {name} are not JSON and kept as text", f"message {number}")
    if given is None:
        door.gap(f"{name or 'a call'} has no arguments", f"message {number}")
        given = {}
    arguments = given if isinstance(given, dict) else {"unparsed": given}
    result = field_of(item, "result")
    status = item.get("status")
    if not name:
        door.gap("a tool call has no name", f"message {number}")
        name = "unnamed"
    return ReadCall(
        name,
        arguments,
        str(item.get("id") or field_of(item, "call_id") or ""),
        None if result is None else as_text(result),
        status if status in _STATUSES else None,
    )


def _label(item: Mapping[str, Any]) -> bool | None:
    if isinstance(item.get("compliant"), bool):
        return bool(item["compliant"])
    if isinstance(item.get("violation"), bool):
        return not item["violation"]
    return _LABELS.get(item.get("status")) if isinstance(item.get("status"), str) else None


def _sample_id(sample: Mapping[str, Any]) -> str:
    return f"{sample.get('id')}/{sample.get('epoch', 1)}"


def spans_in(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the spans of OTLP JSON, or of the flat form that exporters print.

    ``attributes`` and ``resource`` of each are plain mappings, whatever form they came in.
    """
    groups = objects_in(item.get("resourceSpans"))
    flat: list[dict[str, Any]] = []
    for group in groups:
        resource = _attributes(at_path(group, "resource.attributes"))
        for scope in objects_in(group.get("scopeSpans")):
            flat += [{**span, "resource": resource} for span in objects_in(scope.get("spans"))]
    if not groups:
        flat = objects_in(item["spans"]) if "spans" in item else [dict(item)]
    for span in flat:
        if "attributes" in span:
            told = span.get("resource")
            inner = told.get("attributes", told) if isinstance(told, dict) else {}
            attributes = _attributes(span["attributes"])
            yield {**span, "attributes": attributes, "resource": _attributes(inner)}


def _attributes(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    return {str(item.get("key")): _value(item.get("value")) for item in objects_in(given)}


def _value(wrapped: Any) -> Any:
    if not isinstance(wrapped, dict) or len(wrapped) != 1:
        return wrapped
    ((kind, value),) = wrapped.items()
    if kind == "arrayValue":
        return [_value(inner) for inner in objects_in(at_path(value, "values"))]
    if kind == "kvlistValue":
        return _attributes(at_path(value, "values"))
    return value


def _body(event: Mapping[str, Any]) -> dict[str, Any]:
    body = _value(event.get("body"))
    return body if isinstance(body, dict) else {}


def _by_conversation(spans: Iterable[dict[str, Any]]) -> dict[str, Any]:
    spans = list(spans)
    named: dict[str, str] = {}
    for span in spans:
        conversation = conversation_of(span)
        if conversation:
            named[trace_of(span)] = conversation
    held: dict[str, Any] = {}
    for span in spans:
        trace = trace_of(span)
        held.setdefault(conversation_of(span) or named.get(trace, trace), []).append(span)
    # Other work of the same service has no messages and is no conversation.
    talks = {k: v for k, v in held.items() if any(map(is_genai, v))}
    return talks or held


def conversation_of(span: Mapping[str, Any]) -> str:
    """Return the id of the conversation that a span names, or an empty text."""
    for name in ("gen_ai.conversation.id", "session.id"):
        told = span["attributes"].get(name)
        if told not in (None, ""):
            return str(told)
    return ""


def is_genai(span: Mapping[str, Any]) -> bool:
    """Whether a span tells of a model or an agent, not of other work of the same service."""
    names = [*span["attributes"], *(str(e.get("name")) for e in objects_in(span.get("events")))]
    return any(name.startswith("gen_ai.") for name in names)


def trace_of(span: Mapping[str, Any]) -> str:
    """Return the id of the trace that a span is of, or an empty text."""
    return str(
        span.get("traceId") or span.get("trace_id") or at_path(span, "context.trace_id") or ""
    )


def start_of(span: Mapping[str, Any]) -> str:
    """Return when a span began, as it says so, or an empty text."""
    names = ("startTimeUnixNano", "start_time", "startTime")
    return str(next((span[name] for name in names if name in span), ""))


def _started(span: Mapping[str, Any]) -> tuple[int, str]:
    value = start_of(span)
    return (len(value), value) if value.isdigit() else (0, value)


def is_chat(span: Mapping[str, Any]) -> bool:
    """Whether a span is one call of a model."""
    return _operation(span) in _CHAT_SPANS


def _operation(span: Mapping[str, Any]) -> str:
    return str(span["attributes"].get("gen_ai.operation.name", ""))


def _span_name(span: Mapping[str, Any]) -> str:
    return str(span.get("name") or "without a name")


def _plain_said(said: Said) -> tuple[Any, ...]:
    return (said.role, said.content, said.answers, [(c.name, c.arguments) for c in said.calls])
