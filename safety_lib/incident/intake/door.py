"""The file that comes in: how it is read, what of it is missing, and the names that others use."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from safety_lib.artifacts import ArtifactError
from safety_lib.files import DECODER, MOST_BYTES, FileError, as_text_of, open_file, parse_json
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
    "role": ("role", "speaker", "from", "source", "sender"),
    "content": ("content", "parts", "text", "message", "value"),
    "calls": ("tool_calls", "toolCalls", "action", "actions", "function_call"),
    "compliant": ("compliant", "violation", "status"),
    # of a tool call and of its result
    "call_id": ("tool_call_id", "call_id", "tool_use_id", "toolUseId", "toolCallId"),
    "tool": ("name", "tool", "function", "function_name", "tool_name", "toolName"),
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
    "humanmessage": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "aimessage": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "system": "system",
    "systemmessage": "system",
    "developer": "system",
    "tool": "tool",
    "toolmessage": "tool",
    "function": "tool",
    "functionmessage": "tool",
}
MOST_LISTED = 5
_LONGEST_GAP = 300
_ADVICE = "give the path of an incident file, such as artifacts/incident_example.json"
_CUT = "cut out the conversation of the incident"
_BLANK = re.compile(r"\s*")
_BLANKS = b"\xef\xbb\xbf \t\r\n"


_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}


class Door:
    """The file that is being read, what of it is missing, and how to refuse it."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world
        self.prompts: list[str] = []
        self._found: dict[str, dict[str, None]] = {}
        self.other_fields: dict[str, dict[str, None]] = {}

    @property
    def gaps(self) -> tuple[str, ...]:
        """What was noted, a line for each kind, with the places where it is."""
        return tuple(
            one_line(f"{listing(places)}: {what}" if places else what, _LONGEST_GAP)
            for what, places in self._found.items()
        )

    def refusal(self, what: str, advice: str = "correct the file") -> ArtifactError:
        """Return the one line that refuses the file."""
        return ArtifactError(
            f"{one_line(self.path.name)}: {one_line(what, _LONGEST_GAP)}; {advice}"
        )

    def gap(self, what: str, at: str = "", *, of_replay: bool = False) -> None:
        """Note what the file does not tell, or a replay cannot use.

        Parameters
        ----------
        what : str
            The kind of gap; gaps of many conversations are counted by it.
        at : str
            Where in the conversation; each place is noted once.
        of_replay : bool
            Whether it matters to a replay alone.
        """
        places = self._found.setdefault(what, {})
        if at:
            places[at] = None

    def unread(self, fields: Iterable[Any], at: str) -> None:
        """Note fields of a message that nothing reads, and where the message stands."""
        for name in fields:
            self.other_fields.setdefault(str(name), {})[at] = None

    def read(self) -> Any:
        """Return the whole file: JSON, objects in a row or a binary Inspect log.

        Of JSON Lines it is a sequence that parses each line where it is asked for: what one
        conversation needs of a long file is all that is held.
        """
        try:
            with open_file(self.path) as file:
                start = file.read(8)
                for magic, packing in _PACKED.items():
                    if start.startswith(magic):
                        raise self.refusal(f"is packed ({packing})", "unpack it first")
                if start.startswith(b"PK"):
                    return self._inspect()
                file.seek(0)
                lines = self._lines_of(file)
                if lines is not None:
                    return lines
                file.seek(0)
                text = as_text_of(self.path, file.read())
        except FileError as error:
            raise self.refusal(error.what, _ADVICE) from error
        except OSError as error:
            raise self.refusal(f"cannot be read ({error.strerror or error})", _ADVICE) from error
        if not text.strip():
            raise self.refusal("is empty", _ADVICE)
        try:
            return self.parsed(text)
        except json.JSONDecodeError as error:
            return self._in_a_row(text, error)

    def _lines_of(self, file: BinaryIO) -> Lines | None:
        """Return the lines, if the first is a value of its own and not the only one."""
        while raw := file.readline():
            if raw.strip(_BLANKS):
                break
        try:
            first = self.parsed(raw.decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
        more = any(line.strip() for line in file)
        return Lines(self) if more and isinstance(first, dict | list) else None

    def _in_a_row(self, text: str, error: json.JSONDecodeError) -> list[Any]:
        """Return objects that stand one after another, as a console exporter prints them."""
        found: list[Any] = []
        at, end = 0, len(text)
        while (at := _BLANK.match(text, at).end()) < end:  # type: ignore[union-attr]
            try:
                value, at = DECODER.raw_decode(text, at)
            except json.JSONDecodeError as wrong:
                is_cut = wrong.pos > end - 16 or wrong.msg.startswith("Unterminated")
                if not found or not is_cut:
                    break
                self.gap("the last object is cut off and not read", f"object {len(found) + 1}")
                return found
            except RecursionError as deep:
                raise self.refusal("nested too deeply") from deep
            except ValueError as wrong:
                raise self.refusal(str(wrong)) from wrong
            if not isinstance(value, dict):
                break
            found.append(value)
        else:
            return found
        where = f"line {error.lineno}, column {error.colno}"
        raise self.refusal(f"not JSON at {where}, so truncated or damaged", _ADVICE) from error

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
            with zipfile.ZipFile(self.path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise self.refusal(f"not an Inspect log ({error})") from error
        if size > MOST_BYTES:
            what = f"unpacks to {size / 1e6:,.0f} MB, more than 64 MB"
            raise self.refusal(what, _CUT)
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

    def pick(self, names: Sequence[str], wanted: str) -> int:
        """Return the place of the conversation that is wanted, by its id or its number from 1."""
        if not names:
            raise self.refusal("holds no conversation")
        numbers = [number for number, name in enumerate(names, start=1) if name == wanted]
        if wanted and len(numbers) > 1:
            what = f"{len(numbers)} conversations have the id {wanted!r}"
            which = " or ".join(f"--conversation {number}" for number in numbers[:2])
            if not (wanted.isdecimal() and int(wanted) in numbers):
                raise self.refusal(what, f"name one by its number in the file, such as {which}")
        elif wanted and numbers:
            return numbers[0] - 1
        if wanted.isdecimal() and 0 < int(wanted) <= len(names):
            return int(wanted) - 1
        if wanted:
            raise self.refusal(f"holds no conversation {wanted!r}; it has {listing(names)}")
        if len(names) == 1:
            return 0
        what = f"holds {len(names)} conversations ({listing(names)})"
        advice = "name the one of the incident with --conversation"
        if len(set(names)) < len(names):
            what += ", and not each has an id of its own"
            advice += " and its number in the file, from 1"
        raise self.refusal(what, advice)


class Lines(Sequence[Any]):
    """The values of a file of JSON Lines, each parsed when it is asked for."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.starts: list[tuple[int, int]] = []  # where each line begins, and its number
        with door.path.open("rb") as file:
            start = 0
            for number, raw in enumerate(file, start=1):
                if raw.strip(_BLANKS):
                    self.starts.append((start, number))
                start += len(raw)
        if self._at_end() is None:
            self.door.gap(f"line {self.starts.pop()[1]} is cut off and not read")

    def _at_end(self) -> Any:
        with self.door.path.open("rb") as file:
            file.seek(self.starts[-1][0])
            try:
                return self.door.parsed(file.readline().decode("utf-8-sig")) or {}
            except (json.JSONDecodeError, UnicodeDecodeError):
                return None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        with self.door.path.open("rb") as file:
            file.seek(self.starts[index][0])
            return self._value(file.readline(), index)

    def __iter__(self) -> Iterator[Any]:
        with self.door.path.open("rb") as file:
            numbered = enumerate(file, start=1)
            for index, (_, line) in enumerate(self.starts):
                yield self._value(next(raw for number, raw in numbered if number == line), index)

    def _value(self, raw: bytes, index: int) -> Any:
        start, number = self.starts[index]
        try:
            value = self.door.parsed(raw.decode("utf-8" if index else "utf-8-sig"))
        except UnicodeDecodeError as error:
            raise self.door.refusal(f"not UTF-8 at byte {start + error.start}", _ADVICE) from error
        except json.JSONDecodeError as error:
            raise self.door.refusal(f"line {number} is not JSON") from error
        if not isinstance(value, dict | list):
            self.door.gap("lines that are no objects are left out", f"line {number}")
            return {}
        return value


def listing(names: Iterable[Any], most: int = MOST_LISTED) -> str:
    """Return names in a row, and how many more there are.

    Examples
    --------
    >>> listing(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    told = list(map(str, names))
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return ", ".join(told[:most]) + more


def field_of(tree: Mapping[str, Any], name: str) -> Any:
    """Return a field under whichever of its names is there, or None."""
    for path in ALIASES[name]:
        value = at_path(tree, path) if "." in path else tree.get(path)
        if value is not None:
            return value
    return None


def path_to(tree: Mapping[str, Any], name: str) -> str | None:
    """Return the dotted name under which a field is there, or None."""
    return next((path for path in ALIASES[name] if at_path(tree, path) is not None), None)


def at_path(tree: Any, path: str) -> Any:
    """Return what stands at a dotted name, or None."""
    if "." not in path:
        return tree.get(path) if isinstance(tree, dict) else None
    for step in path.split("."):
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def objects_in(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, or the one object as a list."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def messages_in(held: Any, door: Door) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the messages of a conversation with their numbers; what is none is a gap."""
    if isinstance(held, str | Mapping) or not isinstance(held, Sequence):
        raise door.refusal("its conversation is not a list of messages")
    for number, item in enumerate(held, start=1):
        if isinstance(item, dict):
            yield number, item
        else:
            door.gap("entries that are no messages are left out", f"message {number}")


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
