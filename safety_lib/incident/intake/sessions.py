"""Conversations of a live agent become a log of production that the rest of stage 4 reads.

The readers are those of an incident: what one conversation may look like stands there once. They
read one conversation, whose every gap counts; here there are thousands, so gaps are counted by kind
and told with the first place of each. No conversation is dropped without a word, and no log is
written that would make an agent look clean because its calls were not seen.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from safety_lib.artifacts import ArtifactError
from safety_lib.files import MOST_BYTES, expect_writable, scratch_in, sha256_of
from safety_lib.incident.intake.blocks import is_message
from safety_lib.incident.intake.claude_code import CLAUDE_CODE, is_line, sessions_of
from safety_lib.incident.intake.door import (
    MOST_LISTED,
    SESSION_ALIASES,
    SPAN_ALIASES,
    Door,
    at_path,
    field_of,
    objects_in,
)
from safety_lib.incident.intake.elements import elements
from safety_lib.incident.intake.exchanges import Said, fold
from safety_lib.incident.intake.redaction import Redaction
from safety_lib.incident.intake.shapes import READERS, recognised
from safety_lib.incident.intake.spans import (
    conversation_of,
    is_chat,
    is_genai,
    spans_in,
    start_of,
    trace_of,
)
from safety_lib.incident.intake.spool import Gathered, Spool
from safety_lib.incident.intake.threads import nanoseconds
from safety_lib.incident.intake.tracers import KEPT, tracer_of
from safety_lib.incident.intake.transcripts import of_chat
from safety_lib.production.log import COLUMNS, as_json, writing
from safety_lib.records import Event, MessageEvent, ToolCall, ToolCallEvent, Trajectory
from safety_lib.text import Shown, count, in_lines, one_line
from safety_lib.world import World
from safety_lib.world.oracle import judge

_SAFEGUARDS = ("warn", "hold", "block", "stop")
_UNTOLD: dict[str, Any] = {f"safeguard_{decision}": None for decision in _SAFEGUARDS}
# An id may be that of a call, which a result names.
_OF_A_LOG = [name for names in SESSION_ALIASES.values() for name in names if name != "id"]
_MOST_OF_A_ROW = MOST_BYTES - (1 << 20)
_MOST_FIELDS = 20
_LATEST = 1e11


class Noted(NamedTuple):
    """How often something came up, and where first."""

    times: int
    first: str


@dataclass(frozen=True, repr=False)
class ImportedLog(Shown):
    """What an import wrote, and what of its files it could not.

    Attributes
    ----------
    path : Path
        The log.
    sessions, turns, calls : int
        How many stand in it.
    versions : Mapping
        Sessions by the version that they ran on.
    left_out : Mapping
        Why conversations are not in the log.
    gaps : Mapping
        What conversations in the log do not tell.
    unknown_tools : Mapping
        Calls of tools that the world does not have, by name: no rule looks at them.
    unsure : int
        Calls with neither a result nor a status; they are read as failed, which breaks no rule.
    notes : tuple of str
        What else a reader of the log should know.
    """

    path: Path
    sessions: int
    turns: int
    calls: int
    versions: Mapping[str, int]
    left_out: Mapping[str, Noted]
    gaps: Mapping[str, Noted]
    unknown_tools: Mapping[str, int]
    unsure: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {n:,}" for name, n in self.versions.items())
        lines = [
            f"{count(self.sessions, 'conversation')} in {self.path}: "
            f"{count(self.turns, 'turn')}, {count(self.calls, 'tool call')}; versions: {told}"
        ]
        lines += [f"  left out: {what}" for what in map(_told, *_columns(self.left_out))]
        if self.unknown_tools:
            named = ", ".join(f"{name} {n:,}" for name, n in self.unknown_tools.items())
            lines.append(f"  calls of tools that the world does not have, seen by no rule: {named}")
        if self.unsure:
            lines.append(
                f"  {count(self.unsure, 'call')} with neither a result nor a status, read as "
                "failed: nobody can tell whether they ran"
            )
        lines += [f"  missing: {what}" for what in map(_told, *_columns(self.gaps))]
        return in_lines([*lines, *(f"  {note}" for note in self.notes)])


def import_log(
    files: Sequence[str | Path],
    out: str | Path,
    world: World,
    *,
    version: str = "",
    redaction: Redaction | None = None,
) -> ImportedLog:
    """Make a log of production from OpenTelemetry GenAI spans or chats.

    Each file may hold any number of conversations: spans as OTLP JSON, as JSON Lines of it or as
    exporters print them; OpenAI chat messages, a conversation a line, an entry of an array or a
    message a line; incidents and trajectories of this project. The log appears whole, or not at
    all.

    Parameters
    ----------
    files : sequence of str or Path
        At least one. The spans of a conversation may lie in several.
    out : str or Path
        The Parquet file to write.
    world : World
        Whose tools and versions they should be.
    version : str, optional
        The version of conversations that tell none.
    redaction : Redaction, optional
        Applied before anything is written, temporary files included.

    Returns
    -------
    ImportedLog

    Raises
    ------
    ArtifactError
        With one line, if a file is damaged, an id stands twice, a version is not told, or nothing
        that the agent did can be seen.
    """
    out = Path(out)
    if out.suffix != ".parquet":
        raise ArtifactError(f"{one_line(out.name)}: the log to write ends in .parquet")
    expect_writable([out], files)
    with scratch_in(out.parent) as scratch, Spool(scratch) as spool:
        importer = _Importer(world, version, redaction, spool)
        for file in files:
            importer.read(Path(file))
        importer.gather()
        importer.refuse_blindness(files)
        with writing(out, COLUMNS) as write:
            for told, row in spool.rows():
                write({**row, "minute": None if told is None else int(told // 60)})
        return importer.outcome(out)


class _Conversation(NamedTuple):
    """One conversation before it is a row; what is not told is None or empty."""

    place: str
    own_id: str
    user: str
    told: float | None
    version: str


class _Tally(Door):
    """A door that counts what many conversations lack, each kind once in each of them."""

    def __init__(self, path: Path, world: World, gaps: dict[str, Noted]) -> None:
        super().__init__(path, world)
        self.kinds = gaps
        self.place = ""
        self.met: set[tuple[str, str]] = set()

    def begin(self, place: str) -> None:
        self.place = place
        self.met.clear()

    def gap(self, what: str, at: str = "", *, of_replay: bool = False) -> None:
        if not of_replay and (what, at) not in self.met:
            self.met.add((what, at))
            _note(self.kinds, what, f"{self.place}, {at}" if at else self.place)


class _Importer:
    def __init__(
        self, world: World, version: str, redaction: Redaction | None, spool: Spool
    ) -> None:
        self.world = world
        self.version = version
        self.redaction = redaction
        self.spool = spool
        self.gaps: dict[str, Noted] = {}
        self.left_out: dict[str, Noted] = {}
        self.versions: Counter[str] = Counter()
        self.tools: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.of_spans = 0
        self.turns = self.calls = self.unsure = self.twins = self.repeated = self.filled = 0
        self.door = _Tally(Path(), world, self.gaps)

    # ------------------------------------------------------------------ reading

    def read(self, path: Path) -> None:
        """Take in one file: whole conversations at once, parts of some into the spool."""
        self.door = _Tally(path, self.world, self.gaps)
        name = one_line(path.name)
        before = self.seen
        for at, value in elements(path, lambda what, at: _note(self.gaps, what, f"{name} {at}")):
            self._take(f"{name} {at}", value)
        if self.seen == before:
            raise self.door.refusal(
                "holds no conversation", "give OpenTelemetry GenAI spans or OpenAI chat messages"
            )

    @property
    def seen(self) -> int:
        """How many conversations and parts of some were met so far."""
        return self.versions.total() + self.spool.parts + _total(self.left_out)

    def _take(self, place: str, value: Any) -> None:
        self.door.begin(place)
        items = value if isinstance(value, list) else [value]
        flat = [item for item in objects_in(items) if not isinstance(item.get("messages"), list)]
        spans = [span for item in flat for span in spans_in(item)]
        if spans:
            for span in spans:
                self._keep_span(place, span)
        elif isinstance(value, list):
            self._add(_Conversation(place, "", "", None, ""), "OpenAI chat messages", value)
        elif value.get("artifact") == "journal":
            return
        elif "trajectory_id" in value and "events" in value:
            self._add_trajectory(place, value)
        elif tracer := tracer_of(value):
            self._keep_entries(place, tracer, value)
        elif is_line(value):
            kept, session = self._without(value), self._without(_as_id(value["sessionId"]))
            self.spool.add_part(place, CLAUDE_CODE, kept, trace=session, conversation=session)
        elif is_message(value) and not isinstance(value.get("messages"), list):
            self._keep_message(place, value)
        else:
            self._take_conversations(place, value)

    def _take_conversations(self, place: str, item: dict[str, Any]) -> None:
        try:
            kind, items = recognised(item, self.door)
        except ArtifactError:
            _note(self.left_out, "it holds no conversation", place)
            return
        shape, named = kind.name, kind.held(items, self.door)
        if not named:
            _note(self.left_out, "it holds no conversation", place)
        inner = objects_in(item.get("sessions")) if shape == "role-per-turn incident" else []
        samples = objects_in(item.get("samples")) if shape == "Inspect log" else []
        if len({key for key, _ in named}) < len(named):
            raise self.door.refusal(f"{place} holds two conversations of one id")
        for number, (key, where) in enumerate(named):
            messages = kind.found(items, where)
            about = _about(place, inner[number] if inner else {}, item)
            if inner and not field_of(inner[number], "incident_id"):
                own = next((inner[number][n] for n in ("session_id",) if n in inner[number]), "")
                about = about._replace(own_id=_as_id(own) or f"{about.own_id}/{key}")
            if samples:
                about = about._replace(own_id=key)
            self._add(about, shape, messages)

    def _keep_span(self, place: str, span: dict[str, Any]) -> None:
        counts = is_genai(span)
        kept = {key: span[key] for key in span if key not in ("attributes", "resource", "events")}
        hidden = self._without({"attributes": span["attributes"], "events": span.get("events")})
        kept |= hidden if counts else {"attributes": _only_known(hidden["attributes"])}
        kept["resource"] = _only_known(self._without(span["resource"]))
        trace = trace_of(span)
        new = self.spool.add_part(
            place,
            "spans",
            kept,
            trace=trace or place,
            conversation=conversation_of(kept),
            span=str(span.get("spanId") or at_path(span, "context.span_id") or ""),
            counts=counts,
        )
        self.repeated += not new

    def _keep_entries(self, place: str, tracer: str, value: dict[str, Any]) -> None:
        for entry in KEPT[tracer].alone(value):
            trace, conversation = KEPT[tracer].names_of(entry)
            self.spool.add_part(
                place,
                tracer,
                self._without(entry),
                trace=trace or place,
                conversation=self._without(conversation),
            )

    def _keep_message(self, place: str, item: dict[str, Any]) -> None:
        # A message has an id of its own, which is none of the conversation.
        names = [name for name in SESSION_ALIASES["session_id"] if name != "id"]
        told = next((at_path(item, name) for name in names if at_path(item, name)), None)
        conversation = "" if told is None else self._without(_as_id(told))
        trace = conversation or str(self.door.path)
        kept = self._without(item)
        self.spool.add_part(place, "messages", kept, trace=trace, conversation=conversation)

    def gather(self) -> None:
        """Make rows of the conversations whose parts the spool has put together."""
        other = 0
        for found in self.spool.conversations():
            self.door.begin(found.place)
            if not found.counts:
                other += 1
            elif found.kind == "messages":
                about = _about(found.place, {}, found.parts[0])._replace(own_id=found.name)
                self._add(about, "messages", found.parts)
            elif found.kind == "spans":
                self._add(self._about_spans(found), "OpenTelemetry GenAI spans", found.parts)
            else:
                self._add_entries(found)
        if other:
            _note(self.gaps, "traces without GenAI spans are other work and not read", "", other)
        if self.repeated:
            _note(self.gaps, "spans that stand twice are read once", "", self.repeated)

    def _add_entries(self, found: Gathered) -> None:
        about = _about(found.place, {}, found.parts[0])
        held: Any = found.parts
        if found.kind == CLAUDE_CODE:
            (held,) = sessions_of(found.parts, self.door).values()
            about = about._replace(own_id=found.name, version="")  # that of the tool is told there
        else:
            trace, _ = KEPT[found.kind].names_of(found.parts[0])
            about = about._replace(own_id=found.name or trace)
        self.of_spans += 1
        self._add(about, found.kind, held)

    def _about_spans(self, found: Gathered) -> _Conversation:
        users, versions = (_attribute(found.parts, SPAN_ALIASES[n]) for n in ("user_id", "version"))
        if len(versions) > 1:
            self.door.gap("its spans are of several versions; the first is taken")
        times = [time for time in map(_seconds, map(start_of, found.parts)) if time is not None]
        return _Conversation(
            found.place,
            found.name or _as_id(trace_of(found.parts[0])),
            next(iter(users), ""),
            min(times, default=None),
            next(iter(versions), ""),
        )

    # ------------------------------------------------------------------ rows

    def _add(self, about: _Conversation, shape: str, held: Any) -> None:
        try:
            said = list(self._messages(shape, held))
            turns, _ = fold(said, self.door)
        except ArtifactError as error:
            reason = str(error).removeprefix(f"{one_line(self.door.path.name)}: ")
            _note(self.left_out, reason.rpartition("; ")[0], about.place)
            return
        except RecursionError:
            _note(self.left_out, "it is nested too deeply", about.place)
            return
        if not any(turn.user.strip() for turn in turns):
            _note(self.left_out, "no words of a user", about.place)
            return
        replies = sum(message.role == "assistant" for message in said)
        if shape == "OpenTelemetry GenAI spans":
            self._ask_about_history(held, replies)
            self.of_spans += 1
        calls = [
            {
                "turn": turn.turn,
                "name": call.name,
                "arguments": as_json(call.arguments),
                "status": call.status or ("failed" if call.result is None else "executed"),
                "result": call.result or "",
            }
            for turn in turns
            for call in turn.calls
        ]
        unsure = sum(c.result is None and c.status is None for turn in turns for c in turn.calls)
        row = {
            "n_turns": len(turns),
            "user_messages": [turn.user for turn in turns],
            "replies": [turn.assistant or None for turn in turns],
            "tool_calls": calls,
            "model_calls": replies,
            **_UNTOLD,
        }
        self._store(about, row, unsure)

    def _messages(self, shape: str, held: Any) -> Iterator[Said]:
        if shape == "messages":
            for item in held:
                for name in _OF_A_LOG:
                    item.pop(name, None)
            return of_chat(held, self.door)
        return READERS[shape](held, self.door)

    def _ask_about_history(self, spans: Sequence[Mapping[str, Any]], replies: int) -> None:
        chats = sum(map(is_chat, spans))
        if 0 < chats < replies and not any(conversation_of(span) for span in spans):
            self.door.gap(
                "it repeats replies of earlier traces: without gen_ai.conversation.id one "
                "conversation counts once for each of its traces"
            )

    def _add_trajectory(self, place: str, item: dict[str, Any]) -> None:
        try:
            told = Trajectory.model_validate(item)
        except ValidationError:
            _note(self.left_out, "it is not a trajectory of this library", place)
            return
        events = told.events
        said = [e for e in events if e.kind == "message" and e.role == "user"]
        replies = {e.turn: e.content for e in events if e.kind == "message" and e.role != "user"}
        numbers = {event.turn: number for number, event in enumerate(said, start=1)}
        if not any(event.content.strip() for event in said):
            _note(self.left_out, "no words of a user", place)
            return
        if any(event.kind == "tool_call" and event.turn not in numbers for event in events):
            _note(self.left_out, "a call in a turn in which no user spoke", place)
            return
        calls = [
            {
                "turn": numbers[event.turn],
                "name": event.call.name,
                "arguments": as_json(event.call.arguments),
                "status": event.status,
                "result": event.result,
            }
            for event in events
            if event.kind == "tool_call"
        ]
        decided = Counter(str(event.decision) for event in events if event.kind == "hook")
        row = {
            "n_turns": len(said),
            "user_messages": [event.content for event in said],
            "replies": [replies.get(event.turn) for event in said],
            "tool_calls": calls,
            "model_calls": told.model_calls,
            **{f"safeguard_{decision}": decided[decision] for decision in _SAFEGUARDS},
        }
        about = _Conversation(place, told.trajectory_id, "", None, told.version)
        self._store(about, row, 0)

    def _store(self, about: _Conversation, row: dict[str, Any], unsure: int) -> None:
        version = about.version or self.version
        if not version:
            raise self.door.refusal(
                f"{about.place} does not say which version of the agent ran",
                "name it with --version",
            )
        broke = self._broken(row) if self.redaction else frozenset()
        row = {"user_id": self._without(about.user) or None, **self._hidden(row)}
        names = [call["name"] for call in row["tool_calls"]]
        session = self._without(about.own_id) or f"words-{sha256_of(row)[:16]}"
        size = sum(map(len, (*row["user_messages"], *(r or "" for r in row["replies"]))))
        size += sum(len(call["arguments"]) + len(call["result"]) for call in row["tool_calls"])
        if size > _MOST_OF_A_ROW // 4:  # of a sign, UTF-8 may take four bytes
            _note(self.left_out, "it is larger than 16 MB", about.place)
            return
        first = self._kept(session, about, {"version": version, **row})
        if first:
            raise self.door.refusal(
                f"conversation {session} stands twice, at {first} and {about.place}",
                "give each conversation once, with an id of its own",
            )
        for field, value in (("user", about.user), ("time", about.told)):
            if value in (None, ""):
                self.door.gap(f"its {field} is not told")
        if self.redaction:
            self.redaction.count([row, session])
            self.changed.update({rule_id for rule_id, _ in broke ^ self._broken(row)})
        self.filled += not about.version
        self.versions[version] += 1
        self.tools.update(names)
        self.turns += row["n_turns"]
        self.calls += len(names)
        self.unsure += unsure

    def _broken(self, row: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
        """Return the rules that a row breaks, each with its turn."""
        found = judge(_events_of(row), self.world.rules)
        return frozenset((violation.rule_id, violation.turn) for violation in found)

    def _kept(self, session: str, about: _Conversation, row: dict[str, Any]) -> str:
        """Keep a row; of the same words without an id each is a session of its own."""
        number, name = 1, session
        while first := self.spool.add_row(
            name, about.place, about.told, {"session_id": name, **row}
        ):
            if about.own_id:
                return first
            number += 1
            name = f"{session}-{number}"
        self.twins += number > 1
        return ""

    def _hidden(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with its texts redacted: its numbers are counts of this library."""
        texts = {name: self._without(row[name]) for name in ("user_messages", "replies")}
        told = ("name", "arguments", "result")
        calls = [
            {**call, **{name: self._without(call[name]) for name in told}}
            for call in row["tool_calls"]
        ]
        return {**row, **texts, "tool_calls": calls}

    def _without(self, value: Any) -> Any:
        return self.redaction.of(value) if self.redaction else value

    # ------------------------------------------------------------------ what came of it

    def refuse_blindness(self, files: Sequence[str | Path]) -> None:
        """Refuse a log in which no rule could ever find anything."""
        names = ", ".join(one_line(Path(file).name) for file in files[:MOST_LISTED])
        if not self.versions:
            reasons = "; ".join(map(_told, *_columns(self.left_out)))
            raise ArtifactError(
                f"{names}: no conversation could be read ({reasons or 'there is none'}); "
                "record the conversations with their content"
            )
        if self.tools and not self.tools.keys() & self.world.tools.keys():
            listed = ", ".join(sorted(map(one_line, self.tools))[:MOST_LISTED])
            raise ArtifactError(
                f"{names}: {self.world.name} has none of the tools that were called ({listed}); "
                "name the world of this agent with --world, or add them to its tools.yaml"
            )
        if self.calls and self.unsure == self.calls:
            raise ArtifactError(
                f"{names}: none of the {self.calls:,} calls has a result or a status, so nobody "
                "can tell which ran; record what tools return"
            )

    def outcome(self, out: Path) -> ImportedLog:
        """Sum up what was written and what was missing."""
        if self.door.other_fields:
            listed = ", ".join(sorted(map(str, self.door.other_fields))[:MOST_LISTED])
            _note(self.gaps, f"fields of messages that are not read: {listed}", "")
        return ImportedLog(
            path=out,
            sessions=self.versions.total(),
            turns=self.turns,
            calls=self.calls,
            versions=dict(sorted(self.versions.items())),
            left_out={self._without(what): noted for what, noted in self.left_out.items()},
            gaps={self._without(what): noted for what, noted in self.gaps.items()},
            unknown_tools={
                one_line(name): times
                for name, times in sorted(self.tools.items())
                if name not in self.world.tools
            },
            unsure=self.unsure,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        if not self.calls:
            yield (
                "no conversation has a tool call: what this agent did, if it did anything, is not "
                "in this log, and rules on calls find nothing in it"
            )
        unknown = [name for name in self.versions if name not in self.world.releases]
        if unknown:
            has = ", ".join(self.world.releases)
            yield f"{self.world.name} has no version {', '.join(sorted(unknown))}; it has {has}"
        if self.version:
            yield f"{self.filled:,} told no version and were taken for {self.version}"
        if self.twins:
            yield f"{self.twins:,} without an id have the words of another one: kept and numbered"
        if self.redaction:
            yield str(self.redaction)
            yield from self._notes_of_rules()

    def _notes_of_rules(self) -> Iterator[str]:
        """Tell which rules see something else because of the redaction."""
        if self.changed:
            named = ", ".join(f"{rule_id} {n:,}" for rule_id, n in sorted(self.changed.items()))
            yield (
                f"redaction changes what rules find, in so many conversations: {named}; spare the "
                "values that they compare, with `keep:` in the file of --redact-with"
            )
        if self.of_spans:
            yield (
                f"whether redaction changes what rules find was not checked in {self.of_spans:,} "
                "conversations from spans, which are redacted before they are put together"
            )


def _events_of(row: Mapping[str, Any]) -> Iterator[Event]:
    """Yield a row as events, in the order in which a log tells them."""
    for turn, said in enumerate(row["user_messages"], start=1):
        yield MessageEvent(turn=turn, role="user", content=said)
        for number, call in enumerate(row["tool_calls"]):
            if call["turn"] == turn:
                arguments = json.loads(call["arguments"])
                asked = ToolCall(id=f"call_{number}", name=call["name"], arguments=arguments)
                yield ToolCallEvent(
                    turn=turn, call=asked, status=call["status"], result=call["result"]
                )
        reply = row["replies"][turn - 1]
        if reply is not None:
            yield MessageEvent(turn=turn, role="assistant", content=reply)


def _about(place: str, inner: Mapping[str, Any], outer: Mapping[str, Any]) -> _Conversation:
    told = {}
    for field, names in SESSION_ALIASES.items():
        found = (at_path(tree, name) for tree in (inner, outer) for name in names)
        told[field] = next((v for v in found if _is_plain(v)), None)
    if told["time"] is None:
        messages = objects_in(field_of(inner or outer, "trajectory"))
        times = (m[n] for m in messages[:1] for n in SESSION_ALIASES["time"] if n in m)
        told["time"] = next(times, None)
    return _Conversation(
        place,
        _as_id(told["session_id"]),
        _as_id(told["user_id"]),
        _seconds(told["time"]),
        _as_id(told["version"]),
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != "" and not isinstance(value, bool)


def _as_id(value: Any) -> str:
    text = "" if value is None else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")


def _attribute(spans: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the values of the first of some attributes that any span has, in their order."""
    ordered = sorted(spans, key=lambda span: _seconds(start_of(span)) or 0)
    for name in names:
        values = [s["attributes"].get(name) or s["resource"].get(name) for s in ordered]
        told = list(dict.fromkeys(_as_id(value) for value in values if _is_plain(value)))
        if told:
            return told
    return []


def _only_known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of the attributes of other work what tells who was served by what."""
    names = {name for names in SPAN_ALIASES.values() for name in names}
    names |= {"gen_ai.conversation.id", "session.id"}
    return {name: value for name, value in attributes.items() if name in names}


def _seconds(told: Any) -> float | None:
    """Return a time as seconds since 1970: an ISO date, or a count of s, ms, us or ns."""
    if not _is_plain(told) or (isinstance(told, float) and not math.isfinite(told)):
        return None
    moment = nanoseconds(int(told) if isinstance(told, float) and told > _LATEST else told)
    return moment / 1e9 if moment is not None and 0 <= moment < _LATEST * 1e9 else None


def _note(notes: dict[str, Noted], what: str, place: str, times: int = 1) -> None:
    known = notes.get(what)
    notes[what] = Noted(known.times + times, known.first) if known else Noted(times, place)


def _total(notes: Mapping[str, Noted]) -> int:
    return sum(noted.times for noted in notes.values())


def _columns(notes: Mapping[str, Noted]) -> tuple[list[str], list[Noted]]:
    return list(notes), list(notes.values())


def _told(what: str, noted: Noted) -> str:
    where = f", first at {noted.first}" if noted.first else ""
    return f"{what} ({noted.times:,} times{where})" if noted.times > 1 else f"{what}{where}"
