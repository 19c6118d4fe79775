"""What tracing services export of an agent's runs: Langfuse, LangSmith and the OpenAI Agents SDK.

Each records calls of a model and runs of tools as entries with a parent; the calls are put together
into one conversation as spans are.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from safety_lib.incident.intake.blocks import answered_in, asked_in, decoded, has_content
from safety_lib.incident.intake.door import Door, as_text, at_path, objects_in
from safety_lib.incident.intake.exchanges import Said
from safety_lib.incident.intake.outcomes import told_failure
from safety_lib.incident.intake.threads import ModelCall, SeenTool, in_order, woven

_DEEPEST = 200
_OBSERVATIONS = {
    *("GENERATION", "SPAN", "EVENT", "TOOL", "AGENT", "CHAIN", "RETRIEVER", "EVALUATOR"),
    *("EMBEDDING", "GUARDRAIL"),
}


class _Entry(NamedTuple):
    """An entry of any of them: ``kind`` is model, tool, guard or other."""

    id: str
    parent: str
    kind: str
    name: str
    began: Any
    asked: Any
    answered: Any
    failed: bool | None
    call_id: str = ""
    agent: str = ""

    @property
    def place(self) -> str:
        return f"{self.kind if self.kind != 'other' else 'entry'} {self.name or self.id}"


def _read(entries: Sequence[_Entry], door: Door, missing: str) -> Iterator[Said]:
    ordered = [entries[place] for place in in_order([e.began for e in entries], door)]
    by_id = {entry.id: entry for entry in ordered}
    models = [e for e in ordered if e.kind == "model" and _has_words(e)]
    for entry in ordered:
        if entry.kind == "model" and not _has_words(entry):
            door.gap("a call of a model holds no messages", entry.place)
    if not models:
        known = {e.id for e in ordered if _has_words(e) and e.kind == "other"}
        models = [e for e in ordered if e.id in known and e.parent not in known]
    if not models:
        raise door.refusal(missing, "record the conversation with its content")
    calls = [
        ModelCall(
            entry.place,
            lambda entry=entry: (  # type: ignore[misc]
                asked_in(entry.asked, f"{entry.place}, ", door),
                answered_in(_as_answer(entry), f"{entry.place}, answer ", door),
            ),
            began=number,
            agent=entry.agent,
            inside=any(above.kind in ("tool", "guard") for above in _above(entry, by_id)),
        )
        for number, entry in enumerate(models)
    ]
    yield from woven(calls, map(_run_of, (e for e in ordered if e.kind == "tool")), door)


def _as_answer(entry: _Entry) -> Any:
    answer = decoded(entry.answered)
    # A run of an agent as a whole tells its answer as a text, under whatever name.
    if entry.kind == "other" and isinstance(answer, dict) and len(answer) == 1:
        return next(iter(answer.values()))
    return entry.answered


def _has_words(entry: _Entry) -> bool:
    return has_content(entry.asked) or has_content(entry.answered)


def _above(entry: _Entry, by_id: Mapping[str, _Entry]) -> Iterator[_Entry]:
    for _ in range(_DEEPEST):
        found = by_id.get(entry.parent)
        if found is None:
            return
        entry = found
        yield entry


def _run_of(entry: _Entry) -> SeenTool:
    arguments, result = _tree(entry.asked), decoded(entry.answered)
    inner = result.get("output", result) if isinstance(result, dict) else result
    message = inner.get("kwargs", inner) if isinstance(inner, dict) else inner
    call_id, failed = entry.call_id, entry.failed
    if isinstance(message, dict):
        call_id = call_id or str(message.get("tool_call_id") or "")
        failed = told_failure(message) if failed is None else failed
        inner = message.get("content", inner)
    if isinstance(arguments, dict) and arguments.keys() == {"input"}:
        arguments = _tree(arguments["input"])
    return SeenTool(
        entry.place,
        entry.name,
        call_id,
        arguments if isinstance(arguments, dict) else None,
        as_text(inner) if has_content(inner) else None,
        failed,
    )


def _tree(value: Any) -> Any:
    """Return what a text holds: JSON, or what Python prints of a dictionary, as LangSmith keeps."""
    found = decoded(value)
    if isinstance(found, str) and found.startswith("{") and len(found) < 20_000:
        try:
            return ast.literal_eval(found)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return found
    return found


# --------------------------------------------------------------------------- Langfuse


def is_langfuse(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is a trace of Langfuse, or observations of one."""
    return any(map(_observations, items[:3]))


def _observations(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "observations" in item:
        trace = item.get("trace")
        own = trace if isinstance(trace, dict) else item
        root = {**own, "type": "SPAN", "startTime": "", "is_trace": True}
        inner = [
            {**entry, "traceId": entry.get("traceId") or own.get("id"),
             "sessionId": entry.get("sessionId") or own.get("sessionId")}
            for entry in objects_in(item["observations"])
        ]  # fmt: skip
        return [{**root, "traceId": own.get("id")}, *inner]
    is_one = item.get("type") in _OBSERVATIONS and ("traceId" in item or "trace_id" in item)
    return [dict(item)] if is_one else []


def of_langfuse(held: Iterable[Mapping[str, Any]], door: Door) -> Iterator[Said]:
    """Read the observations of one conversation."""
    roots: list[_Entry] = []
    entries: list[_Entry] = []
    for item in held:
        kind = str(item.get("type"))
        of_kind = {"GENERATION": "model", "TOOL": "tool"}.get(kind, "other")
        if kind in ("GUARDRAIL", "EVALUATOR"):
            of_kind = "guard"
        level = str(item.get("level") or "")
        made = _Entry(
            str(item.get("id") or len(entries)),
            str(item.get("parentObservationId") or item.get("parent_observation_id") or ""),
            of_kind,
            str(item.get("name") or ""),
            item.get("startTime") or item.get("start_time"),
            item.get("input"),
            item.get("output"),
            True if level == "ERROR" else None,
        )
        (roots if item.get("is_trace") else entries).append(made)
    words = any(_has_words(entry) for entry in entries)
    missing = "the trace holds no input and no output of a model"
    yield from _read(entries if words else roots, door, missing)


# --------------------------------------------------------------------------- LangSmith


def is_langsmith(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is runs of LangSmith."""
    return any("run_type" in run and "inputs" in run for run in _runs(items[:3]))


def _runs(items: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    waiting = [dict(item) for item in items]
    while waiting:
        run = waiting.pop(0)
        inner = run.get("runs")
        trace = {"trace_id": run.get("trace_id") or run.get("id")} if "run_type" in run else {}
        waiting += [{**trace, **child} for child in objects_in(run.get("child_runs"))]
        waiting += objects_in(inner) if inner else []
        if "run_type" in run:
            yield run


def of_langsmith(held: Iterable[Mapping[str, Any]], door: Door) -> Iterator[Said]:
    """Read the runs of one conversation."""
    kinds = {"llm": "model", "chat_model": "model", "tool": "tool"}
    entries: list[_Entry] = []
    for run in held:
        metadata = at_path(run, "extra.metadata")
        told = metadata if isinstance(metadata, dict) else {}
        entries.append(
            _Entry(
                str(run.get("id") or len(entries)),
                str(run.get("parent_run_id") or ""),
                kinds.get(str(run.get("run_type")), "other"),
                str(run.get("name") or ""),
                run.get("start_time"),
                run.get("inputs"),
                run.get("outputs"),
                True if run.get("error") else None,
                agent=str(told.get("lc_agent_name") or ""),
            )
        )
    yield from _read(entries, door, "the runs hold no inputs and no outputs of a model")


# --------------------------------------------------------------------------- OpenAI Agents SDK


def is_agents_sdk(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is a trace of the OpenAI Agents SDK."""
    return any(item.get("object") in ("trace", "trace.span") for item in _sent(items))


def _sent(items: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        inner = item.get("data") or item.get("spans")
        if isinstance(inner, list) and "span_data" not in item:
            yield from objects_in(inner)
        yield dict(item)


def of_agents_sdk(held: Iterable[Mapping[str, Any]], door: Door) -> Iterator[Said]:
    """Read the spans of one conversation."""
    kinds = {"generation": "model", "response": "model", "function": "tool", "guardrail": "guard"}
    entries: list[_Entry] = []
    blind = 0
    for span in held:
        data = span.get("span_data")
        if not isinstance(data, dict):
            continue
        kind = kinds.get(str(data.get("type")), "other")
        blind += data.get("type") == "response" and not has_content(data.get("input"))
        entries.append(
            _Entry(
                str(span.get("id") or len(entries)),
                str(span.get("parent_id") or ""),
                kind,
                str(data.get("name") or ""),
                span.get("started_at"),
                data.get("input") if kind in ("model", "tool") else None,
                data.get("output") if kind in ("model", "tool") else None,
                True if span.get("error") else None,
            )
        )
    missing = "the trace holds no messages of a model"
    if blind:
        missing = f"the trace names {blind} responses by their ids and holds none of their words"
    yield from _read(entries, door, missing)


# --------------------------------------------------------------------------- by conversation


class Kept(NamedTuple):
    """The entries of a tracing tool, and how those of one conversation are told."""

    entries: Callable[[Iterable[Mapping[str, Any]]], Iterator[dict[str, Any]]]
    conversation: tuple[str, ...]
    trace: tuple[str, ...]

    def held(self, items: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Return the entries by the conversation, or the trace, that they are of."""
        found = list(self.entries(items))
        named: dict[str, str] = {}
        for entry in found:
            trace, told = self.names_of(entry)
            if told:
                named[trace] = told
        held: dict[str, list[dict[str, Any]]] = {}
        for entry in found:
            trace, _ = self.names_of(entry)
            held.setdefault(named.get(trace, trace), []).append(entry)
        return held

    def names_of(self, entry: Mapping[str, Any]) -> tuple[str, str]:
        """Return the trace of an entry, and the conversation that it names, or empty texts."""
        return _first(entry, self.trace), _first(entry, self.conversation)

    def alone(self, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries of an item without those inside them, which are told themselves."""
        for entry in self.entries([item]):
            yield {k: v for k, v in entry.items() if k not in _INNER or not isinstance(v, list)}


_INNER = ("child_runs", "runs", "observations", "spans", "data")


def _first(entry: Mapping[str, Any], names: Sequence[str]) -> str:
    found = (at_path(entry, name) for name in names)
    return str(next((value for value in found if value not in (None, "")), ""))


def _all_observations(items: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        yield from _observations(item)


KEPT = {
    "Langfuse trace": Kept(_all_observations, ("sessionId", "session_id"), ("traceId", "trace_id")),
    "LangSmith runs": Kept(
        _runs,
        tuple(f"extra.metadata.{n}" for n in ("session_id", "thread_id", "conversation_id")),
        ("trace_id", "id"),
    ),
    "OpenAI Agents SDK trace": Kept(_sent, ("group_id",), ("trace_id", "id")),
}
"""How the entries of each are put together; the keys are the names of their shapes."""


def tracer_of(item: Mapping[str, Any]) -> str:
    """Return the name of the shape of an entry, or an empty text: each file holds one of many."""
    known = zip(KEPT, (is_langfuse, is_langsmith, is_agents_sdk), strict=True)
    return next((name for name, fits in known if fits([item])), "")
