"""The shapes that are read: how each is recognised, what conversations it holds, what reads one.

What a refusal lists as read is this list. A shape that somebody may well try and that is not read
has a name here too, so that a file is called what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake.blocks import is_message
from safety_lib.incident.intake.claude_code import (
    CLAUDE_CODE,
    is_claude_code,
    of_claude_code,
    sessions_of,
)
from safety_lib.incident.intake.door import (
    SESSION_ALIASES,
    Door,
    at_path,
    field_of,
    listing,
    objects_in,
)
from safety_lib.incident.intake.exchanges import Said
from safety_lib.incident.intake.spans import by_conversation, of_spans, spans_in
from safety_lib.incident.intake.tracers import (
    KEPT,
    is_agents_sdk,
    is_langfuse,
    is_langsmith,
    of_agents_sdk,
    of_langfuse,
    of_langsmith,
)
from safety_lib.incident.intake.transcripts import (
    is_chat_file,
    list_of,
    of_agentdojo,
    of_atif,
    of_chat,
    of_exchanges,
    of_sample,
    of_tau,
    of_turns,
    sample_id,
    turns_in,
)

_SAMPLE = 64
Items = Sequence[Any]
Named = list[tuple[str, Any]]


@dataclass(frozen=True)
class Shape:
    """A shape that is read.

    Attributes
    ----------
    name : str
        What it is called.
    fits : callable
        Whether the first objects of a file are of it.
    held : callable
        The conversations of a file: the name of each, and what finds it in the file.
    read : callable
        Reads one conversation.
    found : callable
        Gets a conversation out of the file, by what finds it.
    """

    name: str
    fits: Callable[[Items], bool]
    held: Callable[[Items, Door], Named]
    read: Callable[[Any, Door], Iterator[Said]]
    found: Callable[[Items, Any], Any] = lambda items, key: key


def _tables(items: Items) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)]


def _at(items: Items, place: int) -> Any:
    return items[place]


def _is_incident(sample: Items) -> bool:
    first = _tables(sample)[:1]
    if not first or len(sample) > 1 or list_of(first[0]) is not None:
        return "incident_id" in (first or [{}])[0] and not _is_spans(first)
    turns = turns_in(first[0])
    return "incident_id" in first[0] or "sessions" in first[0] or isinstance(turns, list)


def _has_exchanges(sample: Items) -> bool:
    first = _tables(sample)[0] if _is_incident(sample) else {}
    turns = objects_in(turns_in(first))
    if isinstance(first.get("sessions"), list):
        return False
    told = not any(is_message(turn) or field_of(turn, "role") for turn in turns)
    return bool(first) and (not turns or (told and "user" in turns[0]))


def _exchanges(items: Items, door: Door) -> Named:
    named = [(n, item) for n, item in enumerate(items, start=1) if isinstance(item, dict)]
    held = [(str(item.get("incident_id", n)), objects_in(turns_in(item))) for n, item in named]
    return [(name, turns) for name, turns in held if turns or len(items) > 1]


def _sessions(items: Items, door: Door) -> Named:
    first = _tables(items)[0]
    if len(items) > 1:
        numbered = [(n, item) for n, item in enumerate(items, start=1) if isinstance(item, dict)]
        return [(str(item.get("incident_id", n)), turns_in(item)) for n, item in numbered]
    if not isinstance(first.get("sessions"), list):
        return [("", turns_in(first))]
    return [
        (str(session.get("session_id", number)), turns_in(session))
        for number, session in enumerate(objects_in(first["sessions"]), start=1)
    ]


def _is_inspect(sample: Items) -> bool:
    return any("eval" in item and "status" in item for item in _tables(sample)[:1])


def _samples(items: Items, door: Door) -> Named:
    samples = objects_in(_tables(items)[0].get("samples"))
    if not samples:
        raise door.refusal("an Inspect log without samples", "write it with its samples")
    return [(sample_id(sample), sample) for sample in samples]


def _is_spans(sample: Items) -> bool:
    tables = [item for item in _tables(sample) if not isinstance(list_of(item), list)]
    return any(True for item in tables for _ in spans_in(item))


def _all_spans(items: Items) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, dict):
            yield from spans_in(item)


def _talks(items: Items, door: Door) -> Named:
    return list(by_conversation(_all_spans(items)).items())


def _spans_at(items: Items, places: Sequence[int]) -> list[dict[str, Any]]:
    wanted = set(places)
    return [span for place, span in enumerate(_all_spans(items)) if place in wanted]


def _chats(items: Items, door: Door) -> Named:
    """Name conversations: an entry each, or messages that tell of which one they are."""
    ids: list[tuple[str, Any]] = []
    messages: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if isinstance(item, list) or (isinstance(item, dict) and not is_message(item)):
            is_one = isinstance(item, list) or list_of(item) is not None or "input" in item
            if not is_one:
                door.gap("entries without messages are left out", f"entry {place + 1}")
                continue
            told = item.get("id") if isinstance(item, dict) else None
            ids.append((str(place + 1 if told in (None, "") else told), place))
        else:
            messages.setdefault(_session_of(item), []).append(place)
    if ids and messages:
        door.gap("messages beside whole conversations are left out", listing(messages.values()))
    whole = len(messages) == 1 and len(next(iter(messages.values()))) == len(items)
    return ids or [(name, None if whole else places) for name, places in messages.items()]


_OF_SESSION = [name for name in SESSION_ALIASES["session_id"] if name not in ("id", "incident_id")]
_FIRST_STEPS = {name.partition(".")[0] for name in _OF_SESSION}


def _session_of(item: Any) -> str:
    if _FIRST_STEPS.isdisjoint(item):
        return ""
    told = (at_path(item, name) for name in _OF_SESSION)
    return str(next((value for value in told if value not in (None, "")), ""))


def _chat_at(items: Items, key: Any) -> Any:
    if isinstance(key, int):
        return items[key]
    if key is None:
        return _Unwrapped(items) if _session_of(items[0]) else items
    return _Unwrapped([items[place] for place in key])


class _Unwrapped(Sequence[Any]):
    """Messages of a log without the fields that tell of which conversation they are."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        item = self.items[index]
        if not isinstance(item, dict):
            return item
        return {k: v for k, v in item.items() if k not in SESSION_ALIASES["session_id"][:3]}

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            inner = item if isinstance(item, dict) else {}
            rest = {k: v for k, v in inner.items() if k not in SESSION_ALIASES["session_id"][:3]}
            yield rest or item


def _is_tau2(sample: Items) -> bool:
    return any(isinstance(item.get("simulations"), list) for item in _tables(sample)[:1])


def _is_tau(sample: Items) -> bool:
    return any(isinstance(item.get("traj"), list) for item in _tables(sample))


def _tau_name(run: Mapping[str, Any], number: int) -> str:
    told = [str(run[name]) for name in ("task_id", "trial") if run.get(name) not in (None, "")]
    return "/".join(told) or str(number)


def _tau_runs(items: Items, door: Door) -> Named:
    runs = _tables(items)
    if _is_tau2(runs):
        # What the agent was told to keep to stands once for all runs.
        told = at_path(runs[0], "info.environment_info.policy")
        prompt = {"system_prompt": told} if told else {}
        runs = [{**prompt, **run} for run in objects_in(runs[0]["simulations"])]
    return [(_tau_name(run, number), run) for number, run in enumerate(runs, start=1)]


def _entries(items: Items, door: Door) -> Named:
    return [(str(number), number - 1) for number in range(1, len(items) + 1)]


def _claude_sessions(items: Items, door: Door) -> Named:
    return list(sessions_of(items, door).items())


def _by_tracer(name: str) -> Callable[[Items, Door], Named]:
    def held(items: Items, door: Door) -> Named:
        found = KEPT[name].held(_tables(items))
        return list(found.items())

    return held


SHAPES: tuple[Shape, ...] = (
    Shape("Inspect log", _is_inspect, _samples, of_sample),
    Shape("incident file", _has_exchanges, _exchanges, of_exchanges),
    Shape("role-per-turn incident", _is_incident, _sessions, of_turns),
    Shape(
        "OpenAI Agents SDK trace",
        lambda sample: is_agents_sdk(_tables(sample)),
        _by_tracer("OpenAI Agents SDK trace"),
        of_agents_sdk,
    ),
    Shape("OpenTelemetry GenAI spans", _is_spans, _talks, of_spans, _spans_at),
    Shape(
        "Langfuse trace",
        lambda sample: is_langfuse(_tables(sample)),
        _by_tracer("Langfuse trace"),
        of_langfuse,
    ),
    Shape(
        "LangSmith runs",
        lambda sample: is_langsmith(_tables(sample)),
        _by_tracer("LangSmith runs"),
        of_langsmith,
    ),
    Shape(
        "AgentDojo run",
        lambda sample: any(
            "suite_name" in item and "user_task_id" in item for item in _tables(sample)
        ),
        _entries,
        of_agentdojo,
        _at,
    ),
    Shape("tau2 results", _is_tau2, _tau_runs, of_tau),
    Shape("tau-bench results", _is_tau, _tau_runs, of_tau),
    Shape(
        CLAUDE_CODE,
        lambda sample: is_claude_code(_tables(sample)),
        _claude_sessions,
        of_claude_code,
    ),
    Shape(
        "ATIF trajectory",
        lambda sample: any(
            str(item.get("schema_version", "")).startswith("ATIF") for item in _tables(sample)
        ),
        _entries,
        of_atif,
        _at,
    ),
    Shape("OpenAI chat messages", is_chat_file, _chats, of_chat, _chat_at),
)
"""In the order in which they are tried: what is more special comes first."""
READERS: dict[str, Callable[[Any, Door], Iterator[Said]]] = {s.name: s.read for s in SHAPES}
_ALSO_CHATS = "OpenAI, Anthropic, Bedrock, Gemini and LangChain chat messages"
_LOOKS_LIKE: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("a garak report", lambda item: "entry_type" in item),
    ("output of OpenAI's batches", lambda item: "custom_id" in item and "response" in item),
    ("input of OpenAI's batches", lambda item: "custom_id" in item and "body" in item),
    (
        "results of promptfoo",
        lambda item: "results" in item and bool({"evalId", "config"} & {*item}),
    ),
    ("an artifact of this project", lambda item: "artifact" in item and "schema_version" in item),
    ("a trajectory of this project", lambda item: "trajectory_id" in item and "events" in item),
    ("a Jupyter notebook", lambda item: "cells" in item and "nbformat" in item),
    ("a trace of Jaeger", lambda item: any("traceID" in x for x in objects_in(item.get("data")))),
    ("spans of Zipkin", lambda item: "traceId" in item and "localEndpoint" in item),
    (
        "a trace of MLflow",
        lambda item: "trace_info" in item or at_path(item, "data.spans") is not None,
    ),
    ("an export of ChatGPT", lambda item: isinstance(item.get("mapping"), dict)),
    ("an HTTP archive", lambda item: at_path(item, "log.entries") is not None),
    ("a SARIF report", lambda item: "runs" in item and "$schema" in item),
)


def recognised(tree: Any, door: Door) -> tuple[Shape, Items]:
    """Say which shape a file has.

    Returns
    -------
    shape : Shape
        The first that fits.
    items : sequence
        The values of the file.

    Raises
    ------
    ArtifactError
        If it is none, with what it looks like and what is read.
    """
    items = [tree] if isinstance(tree, str) or not isinstance(tree, Sequence) else tree
    sample = items[:_SAMPLE]
    if not any(isinstance(item, dict | list) for item in sample):
        raise door.refusal("holds no JSON object", "give an incident or a trace")
    if isinstance(items, list):
        items = _objects(items, door)
        sample = items[:_SAMPLE]
    for shape in SHAPES:
        if shape.fits(sample):
            return shape, items
    raise _unknown(_tables(sample), door)


def _objects(items: list[Any], door: Door) -> list[Any]:
    """Return the objects and lists among some values; others are noted."""
    for place, item in enumerate(items, start=1):
        if not isinstance(item, dict | list):
            door.gap("entries that are no objects are left out", f"entry {place}")
    return [item for item in items if isinstance(item, dict | list)]


def _unknown(sample: Sequence[dict[str, Any]], door: Door) -> ArtifactError:
    first = sample[0] if sample else {}
    found = (name for name, looks in _LOOKS_LIKE for item in sample[:3] if looks(item))
    told = f"objects with the fields {listing(first)}" if first else "lists of other things"
    looks = next(found, told)
    read = ", ".join(_ALSO_CHATS if s.read is of_chat else s.name for s in SHAPES)
    return door.refusal(f"looks like {looks}, which is not read", f"read are: {read}")
