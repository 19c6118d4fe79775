"""Messages become exchanges: what the user said, what the agent called and what it replied."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from safety_lib.incident.intake.door import Door
from safety_lib.records import IncidentTurn, ReportedCall

_FAILED = re.compile(r"\s*(error\b|timed? ?out|no (ticket|file) )", re.IGNORECASE)


@dataclass
class ReadCall:
    """A tool call as it is being read."""

    name: str
    arguments: dict[str, Any]
    call_id: str = ""
    result: str | None = None
    status: str | None = None


@dataclass
class Said:
    """A message as it is being read; a tool message ``answers`` the call of that id."""

    role: str
    content: str = ""
    calls: list[ReadCall] = field(default_factory=list)
    answers: str = ""
    name: str = ""
    number: Any = None
    compliant: bool | None = None
    notes: list[str] = field(default_factory=list)
    failed: bool = False


def fold(messages: Iterable[Said], door: Door) -> tuple[list[IncidentTurn], dict[Any, int]]:
    """Gather messages into turns of the user.

    Returns
    -------
    turns : list of IncidentTurn
        In order.
    number_of : dict
        The file's number of a message to the turn that it is in.
    """
    turns: list[_Turn] = []
    number_of: dict[Any, int] = {}
    prompted = False
    for said in messages:
        if said.role == "system":
            prompted = True
            door.prompts += [said.content] if said.content not in door.prompts else []
        elif said.role == "user":
            if turns and not turns[-1].answered:
                door.gap("two user messages in a row, joined", f"turn {len(turns)}")
                turns[-1].user += "\n" + said.content
            else:
                turns.append(_Turn(said.content))
        elif not turns:
            door.gap(f"a message of the {said.role} before the first of a user is left out")
            continue
        elif said.role == "tool":
            turns[-1].answer(said, len(turns), door)
        else:
            turns[-1].reply(said)
        if turns and said.role != "system":
            turns[-1].labels += [said.compliant] if said.compliant is not None else []
            turns[-1].notes += said.notes
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
            if call.result is None:
                door.gap(f"{call.name} has no result", f"turn {number}")
            elif call.status == "failed" or (call.status is None and _FAILED.match(call.result)):
                call.status = "failed"
                what = f"{call.name} failed in the file; a replay calls it anew"
                door.gap(what, f"turn {number}", of_replay=True)
            elif call.status is None:
                door.gap("status of tool calls: not told; one with a result is read as executed")
    return [turn.typed(number, door) for number, turn in enumerate(turns, start=1)], number_of


class _Turn:
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

    def answer(self, said: Said, number: int, door: Door) -> None:
        """Give a result to the call that it belongs to, whatever came in between."""
        self.answered = True
        waiting = [call for call in self.calls if call.result is None]
        mine = [call for call in waiting if said.answers and call.call_id == said.answers]
        if not mine and said.answers:
            what = "a result of a call that nobody made is left out"
            door.gap(what, f"turn {number}, {said.answers}")
            return
        if not mine:
            mine = [call for call in waiting if not said.name or call.name == said.name]
            if not mine:
                door.gap("a tool result without a call is left out", f"turn {number}")
                return
            if len(waiting) > 1:
                what = "results without ids are given to calls in their order"
                door.gap(what, f"turn {number}")
        mine[0].result = said.content
        mine[0].status = "failed" if said.failed else mine[0].status

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


def note_unknown_tools(calls: Iterable[ReportedCall], door: Door) -> None:
    """Name the tools that the company does not have."""
    for call in calls:
        if call.name not in door.world.tools:
            what = f"tool {call.name}: the company has none of this name, so no call to it runs"
            door.gap(what, of_replay=True)
