"""OpenTelemetry spans of agents, by whichever convention the words were put into attributes.

The GenAI conventions have had several: messages as attributes, as events of a span, as attributes
with numbers in their names; OpenInference, Pydantic AI and Vercel's SDK have names of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from safety_lib.incident.intake.blocks import (
    answered_in,
    asked_in,
    decoded,
    has_content,
    messages_said,
)
from safety_lib.incident.intake.door import ROLES, Door, as_text, at_path, objects_in
from safety_lib.incident.intake.exchanges import Said
from safety_lib.incident.intake.threads import ModelCall, SeenTool, in_order, woven

_CHAT_SPANS = ("chat", "generate_content", "text_completion", "responses")
_CONVERSATIONS = (
    *("gen_ai.conversation.id", "session.id", "langfuse.session.id"),
    *(f"traceloop.association.properties.{n}" for n in ("session_id", "conversation_id")),
)
# The names under which whole lists of messages stand: what was asked, and what was answered.
_LISTS = (
    ("gen_ai.input.messages", "gen_ai.output.messages"),
    ("ai.prompt.messages", "ai.response.text"),
    ("llm.input_messages", "llm.output_messages"),
)
_TEXTS = ("ai.response.text",)
_NUMBERED = (
    ("gen_ai.prompt.", "gen_ai.completion."),
    ("llm.input_messages.", "llm.output_messages."),
    ("llm.prompts.", "llm.completions."),
)
# Where nothing else is told: whatever went in and came out.
_PLAIN = (
    ("langfuse.observation.input", "langfuse.observation.output"),
    ("gen_ai.prompt", "gen_ai.completion"),
    ("input.value", "output.value"),
    ("traceloop.entity.input", "traceloop.entity.output"),
    ("mlflow.spanInputs", "mlflow.spanOutputs"),
)
_EVENTS = ("events", "all_messages_events")
_WHOLE = ("pydantic_ai.all_messages",)
_TOOL_NAMES = ("gen_ai.tool.name", "tool.name", "traceloop.entity.name", "ai.toolCall.name")
_TOOL_ARGUMENTS = (
    "gen_ai.tool.call.arguments",
    "tool_arguments",
    "ai.toolCall.args",
    "input.value",
)
_TOOL_RESULTS = (
    *("gen_ai.tool.call.result", "tool_response", "gen_ai.tool.message", "ai.toolCall.result"),
    *("output.value", "traceloop.entity.output"),
)
_TOOL_IDS = ("gen_ai.tool.call.id", "tool_call.id", "ai.toolCall.id")
_GUARDS = ("GUARDRAIL", "EVALUATOR")
_TREES = {"llm", "openinference", "input", "output", "tool", "session", "gen_ai", "tool_call"}
_DEEPEST = 200


def of_spans(spans: Sequence[Mapping[str, Any]], door: Door) -> Iterator[Said]:
    """Read the spans of one conversation, in any order."""
    ordered = [spans[place] for place in in_order([start_of(span) for span in spans], door)]
    by_id = {_id_of(span): span for span in ordered if _id_of(span)}
    told = [span for span in ordered if _holds_words(span)]
    calls = [span for span in told if is_chat(span)] or _outermost(told, by_id)
    if not calls:
        what = "the spans hold no messages, so the capture of content was off"
        raise door.refusal(what, "record the conversation with its content")
    for span in ordered:
        if is_chat(span) and not _holds_words(span):
            door.gap("a call of a model holds no messages", _place(span))
    made = [
        ModelCall(
            _place(span),
            lambda span=span: _messages_of(span, door),  # type: ignore[misc]
            began=number,
            agent=str(span["attributes"].get("gen_ai.agent.name") or ""),
            inside=_is_inside(span, by_id),
        )
        for number, span in enumerate(calls)
    ]
    yield from woven(made, [_run_of(span) for span in ordered if _is_tool(span)], door)


def _outermost(spans: Sequence[Mapping[str, Any]], by_id: Mapping[str, Any]) -> list[Any]:
    """Leave of spans that are no calls of a model those that no other one holds."""
    known = {_id_of(span) for span in spans}
    return [
        span
        for span in spans
        if not _is_tool(span) and not any(_id_of(above) in known for above in _above(span, by_id))
    ]


def _above(span: Mapping[str, Any], by_id: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for _ in range(_DEEPEST):
        found = by_id.get(_parent_of(span))
        if found is None:
            return
        span = found
        yield span


def _is_inside(span: Mapping[str, Any], by_id: Mapping[str, Any]) -> bool:
    return any(_is_tool(above) or _kind(above) in _GUARDS for above in _above(span, by_id))


def _holds_words(span: Mapping[str, Any]) -> bool:
    attributes = span["attributes"]
    names = [name for pair in (*_LISTS, *_PLAIN) for name in pair] + [*_EVENTS, *_WHOLE]
    if any(has_content(attributes.get(name)) for name in names):
        return True
    starts = tuple(start for pair in _NUMBERED for start in pair)
    return any(name.startswith(starts) for name in attributes) or any(
        _role_of_event(event) for event in objects_in(span.get("events"))
    )


def _messages_of(span: Mapping[str, Any], door: Door) -> tuple[list[Said], list[Said]]:
    """Return what a model was asked and what it answered, by the first convention that tells."""
    attributes, place = span["attributes"], f"{_place(span)}, "
    for one in (_of_lists, _of_events, _of_numbers, _of_plain):
        asked, answered = one(span, place, door)
        if asked or answered:
            told = decoded(attributes.get("gen_ai.system_instructions"))
            system = [Said("system", as_text(told))] if has_content(told) else []
            return [*system, *asked], answered
    return [], []


_Sides = tuple[list[Said], list[Said]]


def _of_lists(span: Mapping[str, Any], place: str, door: Door) -> _Sides:
    inner = [e for e in map(_of_event, objects_in(span.get("events"))) if _LISTS[0][0] in e]
    for attributes in (span["attributes"], *inner):
        for names in _LISTS:
            given = [
                attributes.get(name)
                if name in _TEXTS
                else _json_of(attributes.get(name), f"{place}{name}", door)
                for name in names
            ]
            if not any(map(has_content, given)):
                continue
            asked = messages_said(given[0], place, door) if has_content(given[0]) else []
            if names[1] in _TEXTS:  # whatever it looks like
                answered = [Said("assistant", as_text(given[1]))] if has_content(given[1]) else []
            else:
                answered = answered_in(given[1], f"{place}answer ", door)
            calls = decoded(attributes.get("ai.response.toolCalls"))
            if has_content(calls):
                answered += answered_in({"role": "assistant", "tool_calls": calls}, place, door)
            return asked, answered
    for name in _WHOLE:
        whole = _json_of(span["attributes"].get(name), f"{place}{name}", door)
        if has_content(whole):
            return messages_said(whole, place, door), []
    return [], []


def _json_of(value: Any, at: str, door: Door) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            door.gap("it is cut off and not read", at)
            return None
    return value


def _of_events(span: Mapping[str, Any], place: str, door: Door) -> _Sides:
    events = [_of_event(event) for event in objects_in(span.get("events"))]
    for name in _EVENTS:
        events += objects_in(_json_of(span["attributes"].get(name), f"{place}{name}", door))
    sides: _Sides = ([], [])
    for number, event in enumerate(events, start=1):
        role = _role_of_event(event)
        if not role:
            continue
        at = f"{place}event {number}"
        event = {k: v for k, v in event.items() if "." not in k}
        if role == "choice":
            message = event.get("message", event)
            message = {"content": message} if isinstance(message, str) else message
            if isinstance(message, dict) and message:
                sides[1].extend(messages_said([{**message, "role": "assistant"}], f"{at}, ", door))
            else:
                door.gap("its choice holds no message", at)
            continue
        if role == "tool":
            event = {**event, "tool_call_id": event.get("tool_call_id") or event.get("id") or ""}
        sides[0].extend(messages_said([{**event, "role": role}], f"{at}, ", door))
    return sides


def _of_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event as one mapping, whether its fields are attributes or its body."""
    body = plain_value(event.get("body"))
    told = {**plain_attributes(event.get("attributes")), **(body if isinstance(body, dict) else {})}
    for name in ("message", "tool_calls"):
        told = {**told, name: decoded(told[name])} if name in told else told
    return {**told, "event.name": event.get("name") or told.get("event.name")}


def _role_of_event(event: Mapping[str, Any]) -> str:
    name = str(event.get("event.name") or event.get("name") or "")
    kind = name.removeprefix("gen_ai.").removesuffix(".message")
    if name == "gen_ai.choice":
        return "choice"
    return kind if name.startswith("gen_ai.") and kind in ROLES else ""


def _of_numbers(span: Mapping[str, Any], place: str, door: Door) -> _Sides:
    for starts in _NUMBERED:
        asked, answered = (_gathered(span["attributes"], start) for start in starts)
        if asked or answered:
            return (
                messages_said(asked, place, door, "user"),
                messages_said(answered, f"{place}answer ", door, "assistant"),
            )
    return [], []


def _gathered(attributes: Mapping[str, Any], start: str) -> list[Any]:
    """Return the list whose parts stand in attributes with numbers in their names."""
    tree: dict[str, Any] = {}
    for name, value in attributes.items():
        if not name.startswith(start):
            continue
        inner = tree
        *path, last = name.removeprefix(start).split(".")
        for step in path:
            found = inner.setdefault(step, {})
            inner = found if isinstance(found, dict) else {}
        inner[last] = value
    found = _listed(tree)
    return [_of_inference(item) for item in (found if isinstance(found, list) else [found]) if item]


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(re.fullmatch(r"\d{1,9}", str(key)) for key in tree):
        return [_listed(tree[key]) for key in sorted(tree, key=int)]
    return {key: _listed(value) for key, value in tree.items()}


def _of_inference(item: Any) -> Any:
    """Return a message without the names that OpenInference and traceloop put around its parts."""
    if isinstance(item, list):
        return [_of_inference(one) for one in item]
    if not isinstance(item, dict):
        return item
    for name in ("message", "message_content", "prompt", "completion"):
        if isinstance(item.get(name), dict) and len(item) == 1:
            return _of_inference(item[name])
    item = {("content" if k == "contents" else k): v for k, v in item.items()}
    if isinstance(item.get("content"), list):
        item["content"] = _of_inference(item["content"])
    elif isinstance(item.get("content"), str) and item["content"].startswith('[{"type"'):
        item["content"] = decoded(item["content"])
    item.pop("finish_reason", None)
    return item


def _of_plain(span: Mapping[str, Any], place: str, door: Door) -> _Sides:
    for names in _PLAIN:
        given = [span["attributes"].get(name) for name in names]
        if any(map(has_content, given)):
            return (
                asked_in(given[0], place, door),
                answered_in(given[1], f"{place}answer ", door),
            )
    return [], []


def _run_of(span: Mapping[str, Any]) -> SeenTool:
    attributes = span["attributes"]

    def first(names: Sequence[str]) -> Any:
        return next((attributes[name] for name in names if has_content(attributes.get(name))), None)

    arguments, result = decoded(first(_TOOL_ARGUMENTS)), first(_TOOL_RESULTS)
    return SeenTool(
        _place(span),
        str(first(_TOOL_NAMES) or ""),
        str(first(_TOOL_IDS) or ""),
        arguments if isinstance(arguments, dict) else None,
        None if result is None else as_text(result),
        has_ended_in_error(span),
    )


def has_ended_in_error(span: Mapping[str, Any]) -> bool:
    """Whether a span says that what it tells of failed: its status, an error or an exception."""
    status = span.get("status")
    told = status if isinstance(status, dict) else {"code": status}
    codes = {str(told.get(name)).upper().rpartition("_")[2] for name in ("code", "status_code")}
    flat = (span.get(name) for name in ("status_code", "statusCode"))
    codes |= {str(code).upper().rpartition("_")[2] for code in flat}
    raised = any(event.get("name") == "exception" for event in objects_in(span.get("events")))
    return (
        bool(codes & {"ERROR", "2"}) or has_content(span["attributes"].get("error.type")) or raised
    )


def _is_tool(span: Mapping[str, Any]) -> bool:
    attributes = span["attributes"]
    return (
        _operation(span) == "execute_tool"
        or _kind(span) == "TOOL"
        or any(name in attributes for name in _TOOL_IDS)
        or attributes.get("traceloop.span.kind") == "tool"
    )


def is_chat(span: Mapping[str, Any]) -> bool:
    """Whether a span is one call of a model."""
    if _is_tool(span):
        return False
    attributes = span["attributes"]
    return (
        _operation(span) in _CHAT_SPANS
        or _kind(span) == "LLM"
        or attributes.get("llm.request.type") in ("chat", "completion")
        or (not _operation(span) and "gen_ai.request.model" in attributes)
        or any(name.startswith("gen_ai.prompt.") for name in attributes)
    )


def spans_in(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the spans of OTLP JSON, or of the flat form that exporters print.

    ``attributes`` and ``resource`` of each are plain mappings, whatever form they came in.
    """
    groups = objects_in(item.get("resourceSpans"))
    flat: list[dict[str, Any]] = []
    for group in groups:
        resource = plain_attributes(at_path(group, "resource.attributes"))
        for scope in objects_in(group.get("scopeSpans")):
            flat += [{**span, "resource": resource} for span in objects_in(scope.get("spans"))]
    if not groups:
        flat = objects_in(item["spans"]) if "spans" in item else [dict(item)]
    for span in flat:
        told = {k.removeprefix("attributes."): v for k, v in span.items() if "attributes." in k}
        if "attributes" in span or told:
            outer = span.get("resource")
            inner = outer.get("attributes", outer) if isinstance(outer, dict) else {}
            attributes = {**_flat(plain_attributes(span.get("attributes"))), **_flat(told)}
            yield {**span, "attributes": attributes, "resource": plain_attributes(inner)}


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes by their dotted names: Phoenix gives them as a tree."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, dict) and name in _TREES:
            found |= {f"{name}.{inner}": v for inner, v in _flat_all(value).items()}
        else:
            found[name] = value
    for name in ("llm.input_messages", "llm.output_messages"):
        if isinstance(found.get(name), list):
            found[name] = [_of_inference(one) for one in found[name]]
    return found


def _flat_all(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and name not in ("value", "arguments", "parameters"):
            found |= {f"{name}.{inner}": v for inner, v in _flat_all(value).items()}
        else:
            found[name] = value
    return found


def plain_attributes(given: Any) -> dict[str, Any]:
    """Return attributes as a plain mapping, also those of OTLP JSON."""
    if isinstance(given, dict):
        return given
    return {str(item.get("key")): plain_value(item.get("value")) for item in objects_in(given)}


def plain_value(wrapped: Any) -> Any:
    """Return a value of OTLP JSON without what is around it."""
    if not isinstance(wrapped, dict) or len(wrapped) != 1:
        return wrapped
    ((kind, value),) = wrapped.items()
    if kind == "arrayValue":
        return [plain_value(inner) for inner in objects_in(at_path(value, "values"))]
    if kind == "kvlistValue":
        return plain_attributes(at_path(value, "values"))
    return value


def by_conversation(spans: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the places of spans by the conversation that they are of.

    A trace of which one span names a conversation is all of that one.
    """
    named: dict[str, str] = {}
    about: list[tuple[str, str, bool]] = []
    for span in spans:
        conversation, trace = conversation_of(span), trace_of(span)
        if conversation:
            named[trace] = conversation
        about.append((conversation, trace, is_genai(span)))
    held: dict[str, list[int]] = {}
    talks: set[str] = set()
    for place, (conversation, trace, is_talk) in enumerate(about):
        key = conversation or named.get(trace, trace)
        held.setdefault(key, []).append(place)
        talks |= {key} if is_talk else set()
    # Other work of the same service has no messages and is no conversation.
    return {key: places for key, places in held.items() if key in talks} or held


def conversation_of(span: Mapping[str, Any]) -> str:
    """Return the id of the conversation that a span names, or an empty text."""
    for name in _CONVERSATIONS:
        told = span["attributes"].get(name)
        if told not in (None, ""):
            return str(told)
    return ""


def is_genai(span: Mapping[str, Any]) -> bool:
    """Whether a span tells of a model or an agent, not of other work of the same service."""
    names = [*span["attributes"], *(str(e.get("name")) for e in objects_in(span.get("events")))]
    starts = ("gen_ai.", "llm.", "openinference.", "ai.", "traceloop.", "input.value")
    return any(name.startswith(starts) for name in names)


def trace_of(span: Mapping[str, Any]) -> str:
    """Return the id of the trace that a span is of, or an empty text."""
    return _first(span, "traceId", "trace_id", "context.trace_id")


def start_of(span: Mapping[str, Any]) -> str:
    """Return when a span began, as it says so, or an empty text."""
    return _first(span, "startTimeUnixNano", "start_time", "startTime")


def _id_of(span: Mapping[str, Any]) -> str:
    return _first(span, "spanId", "span_id", "context.span_id")


def _parent_of(span: Mapping[str, Any]) -> str:
    return _first(span, "parentSpanId", "parent_span_id", "parent_id", "parentId")


def _first(span: Mapping[str, Any], *paths: str) -> str:
    found = (span[p] if p in span else at_path(span, p) for p in paths)
    return str(next((value for value in found if value not in (None, "")), ""))


def _kind(span: Mapping[str, Any]) -> str:
    told = span["attributes"].get("openinference.span.kind") or span.get("span_kind") or ""
    return str(told).upper()


def _operation(span: Mapping[str, Any]) -> str:
    return str(span["attributes"].get("gen_ai.operation.name") or "")


def _place(span: Mapping[str, Any]) -> str:
    return f"span {span.get('name') or 'without a name'}"
