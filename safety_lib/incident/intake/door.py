"""The file that comes in: how it is read, what of it is missing, and the names that others use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_lib.artifacts import ArtifactError
from safety_lib.files import FileError, as_text_of, parse_json, read_bytes
from safety_lib.text import one_line
from safety_lib.world import World

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
SESSION_ALIASES: dict[str, tuple[str, ...]] = {
    "session_id": (
        "session_id",
        "conversation_id",
        "thread_id",
        "metadata.session_id",
        "metadata.conversation_id",
        "incident_id",
        "id",
    ),
    "user_id": ("user_id", "user", "safety_identifier", "metadata.user_id"),
    "time": ("timestamp", "time", "created_at", "created", "started_at", "start_time", "date"),
    "version": (
        "agent_version",
        "version",
        "metadata.agent_version",
        "metadata.version",
        "environment.agent_version",
    ),
}
"""What a log asks of a conversation, and what others call it."""
SPAN_ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": ("enduser.id", "user.id", "enduser.pseudo.id"),
    "version": ("gen_ai.agent.version", "service.version"),
}
"""The same of the attributes of a span or its resource."""
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
MOST_LISTED = 5
_LONGEST_GAP = 200


class Door:
    """The file that is being read, what of it is missing, and how to refuse it."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world
        self.gaps: list[str] = []
        self.other_fields: set[str] = set()
        self.prompts: list[str] = []

    def refusal(self, what: str, advice: str = "correct the file") -> ArtifactError:
        """Return the one line that refuses the file."""
        return ArtifactError(f"{one_line(self.path.name)}: {one_line(what)}; {advice}")

    def gap(self, what: str, at: str = "", *, of_replay: bool = False) -> None:
        """Note once what the file does not tell, or a replay cannot use.

        Parameters
        ----------
        what : str
            The kind of gap; gaps of many conversations are counted by it.
        at : str
            Where in the conversation.
        of_replay : bool
            Whether it matters to a replay alone.
        """
        line = one_line(f"{at}: {what}" if at else what, _LONGEST_GAP)
        if line not in self.gaps:
            self.gaps.append(line)

    def read(self) -> Any:
        """Return the whole file: JSON, JSON Lines or a binary Inspect log."""
        advice = "give the path of an incident file, such as artifacts/incident_example.json"
        try:
            data = read_bytes(self.path)
            if data.startswith(b"PK"):
                return self._inspect()
            text = as_text_of(self.path, data)
        except FileError as error:
            raise self.refusal(error.what, advice) from error
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise self.refusal("is empty", advice)
        try:
            return self.parsed(text)
        except json.JSONDecodeError as error:
            try:
                first = self.parsed(lines[0])
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
                yield self.parsed(line)
            except json.JSONDecodeError as error:
                if number <= len(lines):
                    raise self.refusal(f"line {number} is not JSON") from error
                self.gap(f"line {number} is cut off and not read")

    def parsed(self, text: str) -> Any:
        """Return what a text of JSON holds.

        Raises
        ------
        json.JSONDecodeError
            If it is not JSON.
        ArtifactError
            If it is, and cannot be used.
        """
        try:
            return parse_json(self.path, text)
        except FileError as error:
            if isinstance(error.__cause__, json.JSONDecodeError):
                raise error.__cause__ from None
            raise self.refusal(error.what) from error

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

    def pick(self, conversations: dict[str, Any], wanted: str) -> tuple[str, Any]:
        """Return the id and the content of the conversation that is wanted."""
        ids = list(conversations)
        if not ids:
            raise self.refusal("holds no conversation")
        if wanted in conversations:
            return wanted, conversations[wanted]
        if wanted.isdecimal() and 0 < int(wanted) <= len(ids):
            return ids[int(wanted) - 1], conversations[ids[int(wanted) - 1]]
        listed = ", ".join(ids[:MOST_LISTED]) + (", ..." if len(ids) > MOST_LISTED else "")
        if wanted:
            raise self.refusal(f"holds no conversation {wanted!r}; it has {listed}")
        if len(ids) > 1:
            what = f"holds {len(ids)} conversations ({listed})"
            raise self.refusal(what, "name the one of the incident with --conversation")
        return ids[0], conversations[ids[0]]


def field_of(tree: Mapping[str, Any], name: str) -> Any:
    """Return a field under whichever of its names is there, or None."""
    path = path_to(tree, name)
    return None if path is None else at_path(tree, path)


def path_to(tree: Mapping[str, Any], name: str) -> str | None:
    """Return the dotted name under which a field is there, or None."""
    return next((path for path in ALIASES[name] if at_path(tree, path) is not None), None)


def at_path(tree: Any, path: str) -> Any:
    """Return what stands at a dotted name, or None."""
    for step in path.split("."):
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def objects_in(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, or the one object as a list."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def messages_in(held: Any, door: Door) -> list[dict[str, Any]]:
    """Return the messages of a conversation; what is none is a gap."""
    if not isinstance(held, list):
        raise door.refusal("its conversation is not a list of messages")
    found = objects_in(held)
    if len(found) < len(held):
        none = f"{len(held) - len(found)} of {len(held)}"
        door.gap("entries that are no messages are left out", none)
    return found


def as_text(value: Any) -> str:
    """Return a text as it is, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flattened(
    tree: Mapping[str, Any], above: str = "", depth: int = 4
) -> Iterator[tuple[str, str]]:
    """Yield the leaves of a tree with their dotted names.

    Parameters
    ----------
    tree : mapping
        What to flatten.
    above : str
        The name of what it stands in.
    depth : int
        How far down to go; what is deeper is JSON.
    """
    for key, value in tree.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value and depth:
            yield from flattened(value, path, depth - 1)
        elif value not in (None, "", [], {}):
            plain = isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)
            yield path, ", ".join(map(str, value)) if plain else as_text(value)
