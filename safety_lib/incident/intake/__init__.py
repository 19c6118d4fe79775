"""An incident or a trace of another tool comes in and becomes one typed incident.

What is read, and how each shape is recognised, stands in :mod:`safety_lib.incident.intake.shapes`;
the names that others have for the same thing in ``ALIASES``. Nothing is invented: what a file does
not tell stays empty, and what it tells and a replay cannot use is listed as a gap, with its place.
A turn in which the user says nothing is never replayed. Labels are kept as claims; no stage reads
them before it has an answer of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake.door import (
    ALIASES,
    MOST_LISTED,
    Door,
    field_of,
    flattened,
    listing,
    path_to,
)
from safety_lib.incident.intake.exchanges import fold, has_words, note_unknown_tools, spoken
from safety_lib.incident.intake.outcomes import speaks_of_failure
from safety_lib.incident.intake.redaction import Redaction
from safety_lib.incident.intake.shapes import recognised
from safety_lib.records import (
    Incident,
    IncidentTurn,
    Plant,
    ReportedCall,
    WholeIncident,
    first_fault,
)
from safety_lib.text import Shown, in_lines, one_line
from safety_lib.world import World
from safety_lib.world.tools import Shows

__all__ = ["Intake", "find_incident", "take_in"]

_NO_NAME = "0123456789/-. "
_MOST_FIELDS = 20
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


@dataclass(frozen=True, repr=False)
class Intake(Shown):
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
        return in_lines(lines)


def find_incident(name: str, folder: str | Path) -> Path:
    """Find an incident file or a trace by its name in a folder of artifacts, or by its path.

    Parameters
    ----------
    name : str
        The name of a file in ``folder``, or a path; empty for ``incident_example.json``.
    folder : str or Path
        Where to look first.

    Raises
    ------
    ArtifactError
        If it is in neither place.
    """
    name = name or "incident_example.json"
    for path in (Path(folder) / name, Path(name)):
        if path.exists():
            return path
    raise ArtifactError(
        f"{one_line(name)}: there is no such file, nor one in {one_line(str(folder))}; "
        "give the path of an incident file, such as artifacts/incident_example.json"
    )


def take_in(
    path: str | Path, world: World, conversation: str = "", redaction: Redaction | None = None
) -> Intake:
    """Read an incident, or a trace of another tool, whichever of the shapes it has.

    Parameters
    ----------
    path : str or Path
        A JSON or JSON Lines file in UTF-8; a binary Inspect log needs inspect-ai.
    world : World
        Where it happened: its tools say which calls are known, its contents what was planted.
    conversation : str, optional
        Which conversation to take from a file that holds several: its id, or its number from 1.
    redaction : Redaction, optional
        Takes personal data out of every text, before any of it can be written.

    Returns
    -------
    Intake

    Raises
    ------
    ArtifactError
        With one line: the file, what is wrong and what to do.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> print(take_in("artifacts/incident_example.json", load_world("northwind")))
    INC-2024-001 from incident file: 7 turns, 0 tool calls, 0 planted texts
    """
    door = Door(Path(path), world)
    try:
        taken = _taken(door, conversation)
        return _redacted(taken, redaction) if redaction else taken
    except RecursionError as error:
        raise door.refusal("nested too deeply") from error


def _taken(door: Door, conversation: str) -> Intake:
    shape, items = recognised(door.read(), door)
    named = shape.held(items, door)
    if shape.name == "incident file" and not named:
        return _own(items[0], door)
    place = door.pick([name for name, _ in named], conversation)
    about: dict[str, Any] = {}
    if shape.name in ("incident file", "role-per-turn incident"):
        about = items[place if len(items) > 1 else 0]
    if shape.name == "incident file":
        return _own(about, door)
    messages = shape.read(shape.found(items, named[place][1]), door)
    turns, number_of = fold(messages, door)
    if not turns:
        raise door.refusal("holds no message of a user, so there is nothing to replay")
    told, places = spoken(turns, door)
    if not told:
        what = "no message of a user has words, so there is nothing to replay"
        lost = [gap for gap in door.gaps if "left out" in gap][:MOST_LISTED]
        raise door.refusal(what, "; ".join(lost) or "correct the file")
    moved = {number: places[turn - 1] for number, turn in number_of.items()}
    return Intake(_incident(about, told, moved, door), shape.name, door.gaps)


def _redacted(taken: Intake, redaction: Redaction) -> Intake:
    incident = taken.incident
    # What has to match something of this library stays: the version, and numbers, which count.
    texts = {
        name: redaction.of(value)
        for name, value in incident
        if isinstance(value, str) and name != "agent_version"
    }
    turns = tuple(
        turn.model_copy(
            update={
                "user": redaction.of(turn.user),
                "assistant": redaction.of(turn.assistant),
                "notes": tuple(map(redaction.of, turn.notes)),
                "calls": tuple(
                    ReportedCall(
                        name=redaction.of(call.name),
                        arguments=redaction.of(call.arguments),
                        result=redaction.of(call.result),
                        status=call.status,
                    )
                    for call in turn.calls
                ),
            }
        )
        for turn in incident.trajectory
    )
    plants = [Plant.model_validate(redaction.of(plant.model_dump())) for plant in incident.plants]
    told = incident.model_copy(
        update={
            **texts,
            "trajectory": turns,
            "plants": tuple(plants),
            "claims": redaction.of(incident.claims),
            "remediation_actions": tuple(map(redaction.of, incident.remediation_actions)),
        }
    )
    redaction.count(told.model_dump(mode="json"))
    return Intake(told, taken.source, tuple(map(redaction.of, taken.gaps)))


def _own(tree: dict[str, Any], door: Door) -> Intake:
    try:
        incident = WholeIncident.model_validate(tree)
    except ValidationError as error:
        field, reason = first_fault(error)
        more = error.error_count() - 1
        also = f" (and {more} more)" if more else ""
        raise door.refusal(f"field {one_line(field) or 'the whole'}: {reason}{also}") from error
    for turn in incident.trajectory:
        if not has_words(turn.user):
            raise door.refusal(f"turn {turn.turn}: the user says nothing, so it cannot be replayed")
        note_unknown_tools(turn.calls, door)
    if incident.seed is None:
        door.gap("seed: the file gives none, so fresh ones are drawn")
    return Intake(incident, "incident file", door.gaps)


def _incident(
    about: Mapping[str, Any],
    turns: Sequence[IncidentTurn],
    number_of: Mapping[Any, int],
    door: Door,
) -> Incident:
    told = {name: field_of(about, name) for name in ALIASES}
    unknown = [name for name in _TOLD if told[name] in (None, "", [], {})]
    if unknown:
        door.gap(f"not told: {', '.join(unknown)}")
    own_id = str(told["incident_id"] or "")
    if not own_id.strip(_NO_NAME):
        told["incident_id"] = _name_of(turns)
        why = f"{own_id} is a number" if own_id else "none in the file"
        door.gap(f"incident_id: {why}; named after a hash of what was said")
    version = _known_version(told["agent_version"], door)
    seed = told["seed"] if type(told["seed"]) is int else None
    if seed is None:
        door.gap("seed: none in the file, so fresh ones are drawn")
    if door.other_fields:
        told_of = (f"{name} ({listing(at, 1)})" for name, at in sorted(door.other_fields.items()))
        door.gap(f"fields of messages that are not read: {listing(told_of, _MOST_FIELDS)}")
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
            system_prompt="\n".join(door.prompts),
            plants=plants,
            claims=claims,
        )
    except ValidationError as error:
        field, reason = first_fault(error)
        raise door.refusal(f"field {field}: {reason}") from error


def _name_of(turns: Sequence[IncidentTurn]) -> str:
    """Name a conversation after what was said and done in it."""
    told = hashlib.sha256()
    for turn in turns:
        told.update(turn.model_dump_json(include={"user", "assistant", "calls"}).encode())
    return f"trace-{told.hexdigest()[:12]}"


def _claims(about: Mapping[str, Any], number_of: Mapping[Any, int]) -> dict[str, str]:
    used = {path_to(about, name) for name in ALIASES} - {None}
    claims = {}
    for path, value in flattened({k: about[k] for k in about if k not in ("sessions",)}):
        if path not in used and path.split(".")[0] not in ALIASES["trajectory"]:
            claims[path] = value
    unsafe = about.get("first_unsafe_turn")
    if isinstance(unsafe, int) and unsafe in number_of:
        claims["first_unsafe_turn"] = str(number_of[unsafe])  # messages are counted there
    return claims


def _plants(turns: Iterable[IncidentTurn], door: Door) -> Iterator[Plant]:
    """Yield what the record shows in open places and the world does not hold."""
    done = set()
    contents: Mapping[str, Mapping[str, Any]] = door.world.hook("CONTENTS", {})
    for turn in turns:
        for call in turn.calls:
            if call.result is None or call.status not in (None, "executed"):
                continue
            tool = door.world.tools.get(call.name)
            if tool is None or tool.shows is None:
                continue
            held = contents.get(tool.shows.place, {})
            if not tool.shows.open:
                named = call.arguments.get(tool.shows.key)
                if contents and named not in held:
                    what = f"{door.world.company} has no {tool.shows.key} {named}"
                    door.gap(f"turn {turn.turn}: {what}")
                continue
            for key, text in _read(call, tool.shows, turn.turn, door):
                if key not in done and held.get(key) != text:
                    done.add(key)
                    if call.status is None and speaks_of_failure(text):
                        what = f"a result of {call.name} speaks of an error; it is planted as text"
                        door.gap(what, f"turn {turn.turn}")
                    yield Plant(where=tool.shows.place, key=key, text=text)


def _read(call: ReportedCall, shows: Shows, number: int, door: Door) -> Iterator[tuple[str, str]]:
    text = call.result or ""
    if shows.lines:
        for line in text.splitlines():
            entry = re.match(shows.lines, line)
            if entry:
                yield entry.group(1), entry.group(2)
            elif line.strip():
                door.gap(f"turn {number}: a line of the {shows.place} names no entry, left out")
        return
    key = call.arguments.get(shows.key)
    if isinstance(key, str):
        yield key, text


def _known_version(told: Any, door: Door) -> str:
    if told in (None, ""):
        door.gap("agent_version: not told; the replay is told one")
        return ""
    if str(told) not in door.world.releases:
        door.gap(f"agent_version: {told} is none of this project's; the replay is told one")
        return ""
    return str(told)
