"""Whole conversations that other tools write down: chats, benchmarks, coding agents, Inspect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from safety_lib.incident.intake.blocks import (
    answered_in,
    asked_in,
    call_in,
    has_content,
    is_message,
    role_of,
    said_in,
)
from safety_lib.incident.intake.door import (
    ALIASES,
    Door,
    as_text,
    at_path,
    field_of,
    flattened,
    listing,
    messages_in,
    objects_in,
)
from safety_lib.incident.intake.exchanges import Said
from safety_lib.incident.intake.outcomes import told_failure

_LABELS: dict[Any, bool] = {"safe": True, "compliant": True, "unsafe": False, "violation": False}
_LISTS = ("messages", "traj", "contents", "conversations", "items")
_PROMPTS = ("system", "instructions", "systemInstruction", "system_instruction", "system_prompt")
_ANSWERS = ("output", "choices", "candidates", "response", "completion")
_MOST_FIELDS = 20


def note_fields(tree: Mapping[str, Any], known: Iterable[str], door: Door) -> None:
    """Name the fields beside the messages that nothing reads.

    Parameters
    ----------
    tree : Mapping
        What holds the messages.
    known : iterable of str
        The fields that are read, or say nothing of the conversation.
    door : Door
        Is told.
    """
    names = {*known}
    rest = [str(n) for n in tree if n not in names and (tree[n] is False or has_content(tree[n]))]
    if rest:
        told = listing(sorted(rest), _MOST_FIELDS)
        door.gap(f"fields of the file that are not read: {told}", of_replay=True)


def list_of(item: Mapping[str, Any]) -> Any:
    """Return the messages of a conversation, under whichever name they stand; None without."""
    return next((item[name] for name in _LISTS if name in item), None)


def is_chat_file(items: Sequence[Any]) -> bool:
    """Whether it is chat messages of any provider: a list of them, or objects that hold lists."""
    if any(isinstance(item, list) and any(map(is_message, item)) for item in items):
        return True
    tables = [item for item in items if isinstance(item, dict)]
    if any("incident_id" in item for item in tables[:1]):
        return False
    if any(list_of(item) is not None or _has_both(item) for item in tables):
        return True
    return any(is_message(item) and "trajectory" not in item for item in tables)


def _has_both(item: Mapping[str, Any]) -> bool:
    """Whether it is a request and its answer, as OpenAI's Responses are kept."""
    return has_content(item.get("input")) and isinstance(item.get("output"), list)


def of_chat(held: Any, door: Door) -> Iterator[Said]:
    """Read chat messages: a list of them, or an object that holds them beside other things."""
    items = held
    if isinstance(held, dict):
        yield from _prompts(held)
        items = list_of(held)
        if items is None:
            yield from asked_in(held.get("input"), "input ", door)
        note_fields(held, (*_LISTS, *_PROMPTS, *_ANSWERS, "input", "id", "object"), door)
    said: list[Said] = []
    if items is not None:
        for number, item in messages_in(items, door):
            found = said_in(item, f"message {number}", door)
            said = found or said
            yield from found
    if isinstance(held, dict):
        yield from _last_answer(held, said, door)


def _prompts(held: Mapping[str, Any]) -> Iterator[Said]:
    for name in _PROMPTS:
        if has_content(held.get(name)):
            yield Said("system", as_text(held[name]))


def _last_answer(held: Mapping[str, Any], last: Sequence[Said], door: Door) -> Iterator[Said]:
    """Yield the answer that stands beside the request, unless the messages end with it."""
    for name in _ANSWERS:
        if has_content(held.get(name)):
            found = answered_in(held[name], f"{name} ", door)
            is_known = [one.content for one in found] == [one.content for one in last[-1:]]
            if found and not (is_known and not any(one.calls for one in found)):
                yield from found
            elif not found:
                door.gap(f"fields of the file that are not read: {name}", of_replay=True)


def of_turns(held: Any, door: Door) -> Iterator[Said]:
    """Read an incident that has a role for each turn."""
    for number, item in messages_in(held, door):
        at = f"message {number}"
        known = {name for field_name in _OF_MESSAGE for name in ALIASES[field_name]}
        notes = [f"{k}: {v}" for k, v in flattened({k: item[k] for k in item if k not in known})]
        label = _label(item)
        found = said_in({k: v for k, v in item.items() if k in known or k in _OF_ITEM}, at, door)
        for said in found:
            said.number = item["turn"] if isinstance(item.get("turn"), int) else number
            said.compliant = label
            said.notes = [note for note in notes if not note.startswith("turn:")]
            yield said


_OF_MESSAGE = ("role", "content", "calls", "compliant", "call_id")
_OF_ITEM = {"type", "name", "id", "error", "is_error"}


def _label(item: Mapping[str, Any]) -> bool | None:
    if isinstance(item.get("compliant"), bool):
        return bool(item["compliant"])
    if isinstance(item.get("violation"), bool):
        return not item["violation"]
    return _LABELS.get(item.get("status")) if isinstance(item.get("status"), str) else None


# --------------------------------------------------------------------------- benchmarks


def of_agentdojo(run: dict[str, Any], door: Door) -> Iterator[Said]:
    """Read a run of AgentDojo; what was injected stands in results of its tools."""
    note_fields(run, ("messages",), door)
    yield from of_chat(run.get("messages"), door)


def of_tau(run: dict[str, Any], door: Door) -> Iterator[Said]:
    """Read a conversation of tau-bench or tau2; the sign with which its user ends is no word."""
    note_fields(run, ("traj", "messages", "task_id", "trial", "id", *_PROMPTS), door)
    yield from _prompts(run)
    for said in of_chat(list_of(run), door):
        signs = [sign for sign in _SIGNS if said.role == "user" and sign in said.content]
        for sign in signs:
            said.content = said.content.replace(sign, "").strip()
            door.gap(f"{sign} is a sign of the benchmark's user and left out", "the last messages")
        if said.role != "user" or said.content or not signs:
            if said.role == "user" and said.calls:
                door.gap("calls of the benchmark's user are told as the agent's", "its messages")
            yield said


_SIGNS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")


def of_sample(sample: dict[str, Any], door: Door) -> Iterator[Said]:
    """Read a sample of an Inspect log."""
    attached = sample.get("attachments") or {}

    def resolved(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("attachment://"):
            name = value.removeprefix("attachment://")
            if not isinstance(attached, dict) or name not in attached:
                door.gap("an attachment is not in the log", name)
                return ""
            return attached[name]
        if isinstance(value, dict):
            return {key: resolved(inner) for key, inner in value.items()}
        return [resolved(inner) for inner in value] if isinstance(value, list) else value

    if sample.get("error"):
        door.gap("the sample ended with an error")
    if sample.get("scores"):
        door.gap("scores of the sample are not read: the oracle of this project decides")
    known = ("messages", "attachments", "error", "scores", "id", "epoch", "uuid", "input")
    note_fields(sample, known, door)
    yield from of_chat(resolved(sample.get("messages")), door)


def sample_id(sample: Mapping[str, Any]) -> str:
    """Return the id of a sample of an Inspect log, and its epoch."""
    return f"{sample.get('id')}/{sample.get('epoch', 1)}"


# --------------------------------------------------------------------------- coding agents


_OF_THE_TOOL = (
    *("<command-name>", "<command-message>", "<local-command-", "<system-reminder>"),
    *("[Request interrupted", "<bash-", "<task-notification>"),
    *("Caveat: The messages below were generated by the user", "This session is being continued"),
)


def said_by_user(said: Iterable[Said], at: str, door: Door) -> Iterator[Said]:
    """Leave out what a coding agent's tool wrote in the place of its user.

    Parameters
    ----------
    said : iterable of Said
        What one message holds.
    at : str
        Where it stands.
    door : Door
        Is told.

    Yields
    ------
    Said
        The rest.
    """
    for one in said:
        if one.role == "user" and one.content.startswith(_OF_THE_TOOL):
            door.gap("what the tool wrote in the user's place is left out", at)
        else:
            yield one


def of_atif(trajectory: dict[str, Any], door: Door) -> Iterator[Said]:
    """Read a trajectory in the Agent Trajectory Interchange Format."""
    known = ("steps", "schema_version", "session_id", "trajectory_id")
    note_fields(trajectory, known, door)
    steps = list(messages_in(trajectory.get("steps"), door))
    is_inner = bool(steps) and all(_extra(step).get("is_sidechain") for _, step in steps)
    if is_inner:
        door.gap("this is the conversation of a sub-agent: its user is another agent")
    for number, step in steps:
        at = f"step {step.get('step_id', number)}"
        if step.get("is_copied_context"):
            door.gap("a step that repeats an earlier trajectory is left out", at)
            continue
        if _extra(step).get("is_sidechain") and not is_inner:
            door.gap("a message of a sub-agent is left out", at)
            continue
        own = {k: v for k, v in step.items() if k not in _OF_STEP}
        role = role_of(step)
        if role is None:
            door.gap(f"role {step.get('source')} is unknown and left out", at)
            continue
        found = list(said_by_user(said_in({**own, "role": role}, at, door), at, door))
        for said in found:
            said.number = number
        yield from found
        if step.get("reasoning_content"):
            door.gap("reasoning is left out", at)
        for result in objects_in(at_path(step, "observation.results")):
            yield from _observed(result, any(said.calls for said in found), at, door)


def _observed(result: dict[str, Any], is_asked: bool, at: str, door: Door) -> Iterator[Said]:
    """Read a result; Harbor adds words of its own to it, and keeps what the tool returned."""
    if result.get("subagent_trajectory_ref"):
        door.gap("the trajectory of a sub-agent is not read", at)
    if not is_asked and not result.get("source_call_id"):
        if has_content(result.get("content")):
            door.gap("what the environment showed is left out", at)
        return
    told = _extra(result).get("tool_result_metadata")
    told = told if isinstance(told, dict) else {}
    raw = told.get("raw_tool_result")
    raw = raw if isinstance(raw, dict) and "content" in raw else {}
    yield from said_in(
        {
            **{k: v for k, v in result.items() if k not in _OF_RESULT},
            **{k: raw[k] for k in raw if k == "content"},
            "role": "tool",
            "tool_call_id": result.get("source_call_id") or "",
            "is_error": told_failure({**told, **_extra(result), **result}) or None,
        },
        at,
        door,
    )


_OF_STEP = {"step_id", "source", "timestamp", "observation", "reasoning_content", "metrics",
            "model_name", "is_copied_context", "extra", "llm_call_count",
            "reasoning_effort"}  # fmt: skip


_OF_RESULT = ("source_call_id", "subagent_trajectory_ref", "extra")


def _extra(result: Mapping[str, Any]) -> dict[str, Any]:
    found = result.get("extra")
    return found if isinstance(found, dict) else {}


def of_exchanges(turns: Iterable[Mapping[str, Any]], door: Door) -> Iterator[Said]:
    """Read the turns of this project's own incident file, which may lack what it needs whole."""
    for number, turn in enumerate(turns, start=1):
        yield Said("user", str(turn.get("user") or ""))
        calls = [call_in(c, f"turn {number}", door) for c in objects_in(turn.get("calls"))]
        if turn.get("assistant") or calls:
            yield Said("assistant", str(turn.get("assistant") or ""), calls)


def turns_in(tree: Mapping[str, Any]) -> Any:
    """Return what stands under the name of an incident's conversation."""
    return field_of(tree, "trajectory")
