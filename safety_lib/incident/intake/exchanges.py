"""Messages become exchanges: what the user said, what the agent called and what it replied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from safety_lib.incident.intake.door import Door
from safety_lib.incident.intake.outcomes import has_failed
from safety_lib.records import IncidentTurn, ReportedCall
from safety_lib.text import pieces


@dataclass
class ReadCall:
    """A tool call as it is being read; ``failed`` is what its record says outright."""

    name: str
    arguments: dict[str, Any]
    call_id: str = ""
    result: str | None = None
    status: str | None = None
    failed: bool | None = None


@dataclass
class Said:
    """A message as it is being read; a tool message ``answers`` the call of that id.

    ``own_id`` is the id of the message itself, which some tools take for that of the call.
    """

    role: str
    content: str = ""
    calls: list[ReadCall] = field(default_factory=list)
    answers: str = ""
    name: str = ""
    number: Any = None
    compliant: bool | None = None
    notes: list[str] = field(default_factory=list)
    failed: bool | None = None
    own_id: str = ""


def has_words(text: str) -> bool:
    r"""Say whether anything of a text can be seen: blanks and hidden characters cannot.

    Examples
    --------
    >>> has_words("?"), has_words(" \u200b\n")
    (True, False)
    """
    plain = text.lstrip()[:1].isalnum()  # of most texts that is seen at once
    return plain or any(not piece.hidden and piece.text.strip() for piece in pieces(text))


def fold(messages: Iterable[Said], door: Door) -> tuple[list[IncidentTurn], dict[Any, int]]:
    """Gather messages into turns of the user.

    Returns
    -------
    turns : list of IncidentTurn
        In order; one in which the user says nothing is still there.
    number_of : dict
        The file's number of a message to the turn that it is in.
    """
    turns: list[_Turn] = []
    number_of: dict[Any, int] = {}
    waiting = _Waiting()
    prompted = False
    for said in messages:
        if said.role == "system":
            prompted = True
            if said.content and said.content not in door.prompts:
                door.prompts.append(said.content)
        elif said.role == "user":
            if turns and not turns[-1].answered:
                door.gap("two user messages in a row, joined", f"turn {len(turns)}")
                turns[-1].user = "\n".join(filter(None, (turns[-1].user, said.content)))
            else:
                turns.append(_Turn(said.content))
        elif not turns:
            door.gap(f"a message of the {said.role} before the first of a user is left out")
            continue
        elif said.role == "tool":
            _answer(said, turns, waiting, door)
        else:
            turns[-1].reply(said)
            waiting.add(len(turns), said.calls)
        if turns and said.role != "system":
            turns[-1].labels += [said.compliant] if said.compliant is not None else []
            turns[-1].notes += said.notes
            if said.number is not None:
                number_of[said.number] = len(turns)
    if not prompted:
        what = "system prompt: none in the file; the replayed version brings its own"
    else:
        what = "system prompt: in the file and not used; the replayed version brings its own"
    door.gap(what, of_replay=True)
    if turns and not turns[-1].replies:
        door.gap("the file ends before the agent answered", f"turn {len(turns)}")
    for number, turn in enumerate(turns, start=1):
        for call in turn.calls:
            _decide(call, number, door)
    return [turn.typed(number, door) for number, turn in enumerate(turns, start=1)], number_of


def _decide(call: ReadCall, number: int, door: Door) -> None:
    """Say what came of a call that the record does not decide outright."""
    if call.result is None and call.failed is None and call.status is None:
        door.gap(f"{call.name} has no result", f"turn {number}")
    elif call.status == "failed" or (
        call.status is None and has_failed(call.result or "", call.failed)
    ):
        call.status = "failed"
        what = f"{call.name} failed in the file; a replay calls it anew"
        door.gap(what, f"turn {number}", of_replay=True)
    elif call.status is None and call.failed is False:
        call.status = "executed"
    elif call.status is None:
        door.gap("status of tool calls: not told; one with a result is read as executed")


class _Waiting:
    """The calls without a result so far, so that a long conversation is not searched for each."""

    def __init__(self) -> None:
        self.by_id: dict[str, list[tuple[int, ReadCall]]] = {}
        self.by_turn: dict[int, list[ReadCall]] = {}

    def add(self, number: int, calls: Iterable[ReadCall]) -> None:
        for call in calls:
            same = self.by_id.setdefault(call.call_id, []) if call.call_id else []
            if call.result is None:
                same.append((number, call))
                self.by_turn.setdefault(number, []).append(call)

    def knows(self, call_id: str) -> bool:
        return call_id in self.by_id

    def of_id(self, call_id: str) -> tuple[int, ReadCall] | None:
        """Return the latest call of an id: one may come back in a later turn."""
        same = self.by_id.get(call_id, [])
        return next((one for one in same if one[0] == same[-1][0]), None)

    def of_name(self, name: str) -> tuple[int, ReadCall] | None:
        """Return the first call of a name, or of any, in the latest turn that has one."""
        for number in reversed(self.by_turn):
            for call in self.by_turn[number]:
                if not name or call.name == name:
                    return number, call
        return None

    def take(self, number: int, call: ReadCall) -> None:
        calls = self.by_turn[number] = [c for c in self.by_turn[number] if c is not call]
        if not calls:
            del self.by_turn[number]
        same = self.by_id.get(call.call_id, [])
        same[:] = [one for one in same if one[1] is not call]


def _answer(said: Said, turns: Sequence[_Turn], waiting: _Waiting, door: Door) -> None:
    """Give a result to the call that it belongs to, whatever came in between."""
    now = len(turns)
    given = said.answers or said.own_id
    found = waiting.of_id(given)
    if not found and said.answers:
        what = (
            "a second result of the same call is left out"
            if waiting.knows(given)
            else "a result of a call that nobody made is left out"
        )
        door.gap(what, f"turn {now}, {said.answers}")
        turns[-1].answered = True
        return
    if not found:
        found = waiting.of_name(said.name)
        if not found:
            door.gap("a tool result without a call is left out", f"turn {now}")
            return
        if len(waiting.by_turn[found[0]]) > 1:
            what = "results without ids are given to calls in their order"
            door.gap(what, f"turn {found[0]}")
    number, call = found
    waiting.take(number, call)
    call.result = said.content
    call.failed = call.failed if said.failed is None else said.failed
    if number == now:
        turns[-1].answered = True
    else:
        door.gap(f"the result of {call.name} came in turn {now}", f"turn {number}", of_replay=True)


class _Turn:
    __slots__ = ("answered", "calls", "labels", "notes", "replies", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.replies: list[str] = []
        self.calls: list[ReadCall] = []
        self.labels: list[bool] = []
        self.notes: list[str] = []
        self.answered = False

    def reply(self, said: Said) -> None:
        self.answered = True
        self.calls += said.calls
        self.replies += [said.content] if said.content else []

    def typed(self, number: int, door: Door) -> IncidentTurn:
        calls = tuple(
            ReportedCall.model_validate(
                {
                    "name": call.name,
                    "arguments": call.arguments,
                    "result": call.result,
                    "status": call.status,
                }
            )
            for call in self.calls
        )
        note_unknown_tools(calls, door)
        return IncidentTurn(
            turn=number,
            user=self.user,
            assistant="\n".join(self.replies),
            compliant=all(self.labels) if self.labels else None,
            calls=calls,
            notes=tuple(self.notes),
        )


def spoken(turns: Sequence[IncidentTurn], door: Door) -> tuple[list[IncidentTurn], list[int]]:
    """Leave turns in which the user says something: nothing else can be said again.

    What the agent did in the others stays, with the turn before.

    Returns
    -------
    turns : list of IncidentTurn
        Numbered anew.
    places : list of int
        For each turn that was given, the number of the one that it is in now; 0 where it is gone.
    """
    kept: list[IncidentTurn] = []
    places: list[int] = []
    for turn in turns:
        at = f"turn {turn.turn}"
        if has_words(turn.user):
            number = len(kept) + 1
            kept.append(turn if turn.turn == number else turn.model_copy(update={"turn": number}))
        elif not kept:
            if turn.assistant or turn.calls:
                what = "the user says nothing, so it is left out, and what the agent did in it"
                door.gap(what, at)
            else:
                door.gap("the user says nothing, so it is left out", at)
        else:
            door.gap(
                "the user says nothing, so what the agent did is told with the turn before", at
            )
            kept[-1] = _joined(kept[-1], turn)
        places.append(len(kept))
    return kept, places


def _joined(one: IncidentTurn, other: IncidentTurn) -> IncidentTurn:
    labels = [turn.compliant for turn in (one, other) if turn.compliant is not None]
    return one.model_copy(
        update={
            "assistant": "\n".join(filter(None, (one.assistant, other.assistant))),
            "calls": (*one.calls, *other.calls),
            "notes": (*one.notes, *other.notes),
            "compliant": all(labels) if labels else None,
        }
    )


def note_unknown_tools(calls: Iterable[ReportedCall], door: Door) -> None:
    """Name the tools that the company does not have."""
    for name in {call.name: None for call in calls if call.name not in door.world.tools}:
        what = f"tool {name}: the company has none of this name, so no call to it runs"
        door.gap(what, of_replay=True)
