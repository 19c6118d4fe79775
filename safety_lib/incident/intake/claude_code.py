"""Sessions of Claude Code: a line for each message, each with the one that it follows.

A session is a tree. Who goes back to an earlier prompt and says something else begins a branch, and
the lines of the other stay in the file: only the branch that was lived to the end is the
conversation. Calls that ran side by side are no branches. What the tool itself put in, and what its
sub-agents did, is not of the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safety_lib.incident.intake.blocks import said_in
from safety_lib.incident.intake.door import Door, objects_in
from safety_lib.incident.intake.exchanges import Said
from safety_lib.incident.intake.transcripts import said_by_user
from safety_lib.text import count, one_line

CLAUDE_CODE = "Claude Code session"
_TALK = ("user", "assistant")
_NOT_SAID = {
    "isSidechain": "a message of a sub-agent is left out",
    "isMeta": "what the tool put in by itself is left out",
    "isCompactSummary": "a summary that the tool made is left out",
    "isVisibleInTranscriptOnly": "a note of the tool is left out",
}
_PUT_IN = [name for name in _NOT_SAID if name != "isSidechain"]


@dataclass(slots=True)
class _Line:
    """What a line tells of its place in the tree."""

    place: int
    own: str
    parent: str | None  # None where it does not say
    kind: str
    is_inner: bool
    goes_on: bool  # after a summary, which follows what it sums up
    message: str
    is_result: bool


@dataclass
class Session:
    """The lines of one session, and where they stand in the file."""

    items: Sequence[Any] = ()
    lines: list[_Line] = field(default_factory=list)


def is_claude_code(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is a session of Claude Code: a line for each message."""
    return any(
        "sessionId" in item and item.get("type") in _TALK and "message" in item for item in items
    )


def is_line(item: Mapping[str, Any]) -> bool:
    """Whether something alone is a line of a session: a message, or what stands among them."""
    return "sessionId" in item and isinstance(item.get("type"), str) and "role" not in item


def sessions_of(items: Sequence[Any], door: Door) -> dict[str, Session]:
    """Return the sessions of a file by their ids; lines of none are of the only one, or a gap."""
    held: dict[str, Session] = {}
    loose: list[tuple[int, Any]] = []
    for place, line in enumerate(items):
        if isinstance(line, dict) and line.get("sessionId"):
            session = held.setdefault(str(line["sessionId"]), Session(items))
            session.lines.append(_line_of(line, place))
        else:
            kind = str(line.get("type")) if isinstance(line, dict) else "none"
            loose.append((place, kind))
    for place, kind in loose:
        door.gap(f"an entry of type {kind} is not read", f"line {place + 1}")
    return held


def _line_of(line: Mapping[str, Any], place: int) -> _Line:
    message = line.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content")
    parent = line["parentUuid"] or "" if "parentUuid" in line else None
    goes_on = bool(line.get("isCompactSummary") or line.get("subtype") == "compact_boundary")
    blocks = objects_in(content) if isinstance(content, list) else []
    kind = "user" if _queued(line) is not None else str(line.get("type"))
    if not (message or kind == "user") or any(line.get(name) for name in _PUT_IN):
        kind = "none"
    return _Line(
        place,
        str(line.get("uuid") or ""),
        str(line["logicalParentUuid"]) if goes_on and line.get("logicalParentUuid") else parent,
        kind,
        bool(line.get("isSidechain")),
        goes_on,
        str(message.get("id") or ""),
        bool(blocks) and all(block.get("type") == "tool_result" for block in blocks),
    )


def of_claude_code(session: Session, door: Door) -> Iterator[Said]:
    """Read the branch of a session that was lived to the end, without what the tool put in."""
    talk = [line for line in session.lines if line.kind in _TALK]
    is_inner = bool(talk) and all(line.is_inner for line in talk)
    if is_inner:
        door.gap("this is the conversation of a sub-agent: its user is another agent")
    left = _taken_back([line for line in session.lines if line.is_inner == is_inner])
    seen: set[str] = set()
    for known, line in zip(session.lines, _lines(session), strict=True):
        at = f"line {known.place + 1}"
        if known.place in left:
            if left[known.place]:
                what = f"a branch of {count(left[known.place], 'message')} that was taken back"
                door.gap(f"{what} is left out: {_words(line)}", at)
            continue
        if known.own and known.own in seen:
            continue  # a session that was resumed repeats its lines
        seen.add(known.own)
        for said in _said(line, at, is_inner, door):
            said.number = known.place + 1
            yield said


def _lines(session: Session) -> Iterator[dict[str, Any]]:
    places = [line.place for line in session.lines]
    if len(places) * 2 < len(session.items):
        yield from (session.items[place] for place in places)
    else:  # in one go, which is quicker
        wanted = set(places)
        yield from (item for place, item in enumerate(session.items) if place in wanted)


def _said(line: dict[str, Any], at: str, is_inner: bool, door: Door) -> Iterator[Said]:
    kind, message = line.get("type"), line.get("message")
    queued = _queued(line)
    if queued is not None:
        kind, message = "user", {"content": queued}
    elif isinstance(line.get("attachment"), dict):
        kind = f"attachment ({line['attachment'].get('type')})"
    if kind not in _TALK or not isinstance(message, dict):
        door.gap(f"an entry of type {kind} is not read", at)
        return
    why = next((why for name, why in _NOT_SAID.items() if line.get(name)), "")
    if why and not (is_inner and "sub-agent" in why):
        door.gap(why, at)
        return
    if line.get("isApiErrorMessage"):
        door.gap("an error of the provider is told as a reply", at)
    elif message.get("model") == "<synthetic>":
        door.gap("what the tool wrote in the agent's place is left out", at)
        return
    yield from said_by_user(said_in({"role": kind, **message}, at, door), at, door)


def _queued(line: Mapping[str, Any]) -> Any:
    """Return what the user said while the agent was at work, which stands in an attachment."""
    attached = line.get("attachment")
    if isinstance(attached, dict) and attached.get("type") == "queued_command":
        return attached.get("prompt") if attached.get("commandMode", "prompt") == "prompt" else None
    return None


def _words(line: Mapping[str, Any]) -> str:
    message = line.get("message")
    content = message.get("content") if isinstance(message, dict) else _queued(line)
    texts = [str(b["text"]) for b in objects_in(content) if "text" in b]
    return one_line(content if isinstance(content, str) else " ".join(texts) or "a call", 60)


def _taken_back(lines: Sequence[_Line]) -> dict[int, int]:
    """Return the places of messages that are not of the branch that was lived to the end.

    Returns
    -------
    dict
        How many messages the branch has, at the place of its first; 0 at the others.
    """
    by_id: dict[str, _Line] = {}
    above: dict[str, str] = {}
    before = last = ""
    # Only a prompt begins a conversation: where an answer does too, nobody kept the tree.
    no_tree = any(
        one.parent == "" and one.own and (one.kind == "assistant" or one.is_result) for one in lines
    )
    for line in lines:
        if not line.own or line.own in by_id:
            continue
        by_id[line.own] = line
        is_cut = line.parent is None or (line.parent and line.parent not in by_id)
        follows = is_cut or (not line.parent and (line.goes_on or no_tree))
        above[line.own] = before if follows else line.parent or ""
        before = line.own
        last = line.own if line.kind in _TALK else last
    lived: set[str] = set()
    while last and last not in lived:
        lived.add(last)
        last = above.get(last, "")
    asked = {line.message for own, line in by_id.items() if own in lived and line.message}
    found: dict[int, int] = {}
    branch: dict[str, int] = {}
    for own, line in by_id.items():
        parent = above[own]
        # Of calls side by side each is a line, and only one of the results has the next one below.
        beside = line.is_result or line.message in asked
        if own in lived or (beside and parent in lived):
            lived.add(own)
        elif parent in branch or line.kind in _TALK:
            branch[own] = branch.get(parent, line.place)
            found[line.place] = 0
            found[branch[own]] += line.kind in _TALK
    return found
