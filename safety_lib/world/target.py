"""The target: whoever is tested, behind one method that matters.

A target begins conversations; a conversation takes what the user says and tells what was heard.
What a target cannot do it says, and what it cannot do is not measured. An exception out of it costs
the conversation that it was in, as an error event, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from safety_lib.records import (
    CallStatus,
    Event,
    MessageEvent,
    Plant,
    ToolCall,
    ToolCallEvent,
)
from safety_lib.text import BAR, marked

Effects = Literal["sandboxed", "live"]
MOST_CALLS = 100  # in one answer; a model that asks for more is lost, and each call costs time


class TargetError(RuntimeError):
    """A target could not answer; the conversation becomes an error, never a verdict.

    Parameters
    ----------
    kind : str
        Short stable name of the trouble, such as ``timeout``, ``connection``, ``bad_response`` or
        ``agent_error``; reports count errors by it.
    detail : str
        One line for a person: what happened and what to do next.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[type[TargetError], tuple[str, str]]:
        return type(self), (self.kind, self.detail)


def too_many_calls(number: int) -> TargetError:
    """Return the error of an answer that calls more tools than are run.

    Examples
    --------
    >>> print(too_many_calls(10_000))
    bad_response: 10,000 tool calls in one answer; at most 100 are taken
    """
    return TargetError(
        "bad_response", f"{number:,} tool calls in one answer; at most {MOST_CALLS} are taken"
    )


@dataclass(frozen=True, slots=True)
class Called:
    """One tool call that was seen.

    Attributes
    ----------
    name : str
        Of the tool.
    arguments : Mapping
        What it was called with.
    result : str
        What the tool said.
    status : str
        ``executed``, or ``blocked``, ``held`` or ``failed``.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    status: CallStatus = "executed"


class Heard(NamedTuple):
    """What one turn gave.

    Attributes
    ----------
    text : str
        The reply.
    calls : tuple of Called
        The tool calls of this turn, in their order.
    ended : str
        Empty while the conversation can go on, else ``completed`` (the agent is done and hears no
        more), ``stopped`` (a safeguard), ``step_limit`` or ``error``.
    model_calls : int
        How often a model was asked in this turn.
    events : tuple of Event
        All of the turn, what the user said included, from a target that tells more than calls; it
        then stands for ``text`` and ``calls``.
    """

    text: str
    calls: tuple[Called, ...] = ()
    ended: str = ""
    model_calls: int = 1
    events: Sequence[Event] = ()

    def __str__(self) -> str:
        return marked(self.text, BAR)


class Talk(Protocol):
    """One conversation with a target."""

    def send(self, text: str) -> Heard:
        """Say something and hear what comes of it.

        Raises
        ------
        TargetError
            If the target could not answer. Any other exception counts as one of the agent.
        """
        ...


class Target(Protocol):
    """Whoever is tested.

    Attributes
    ----------
    name : str
        What artifacts call what stands behind it: ``simulated``, ``openai:MODEL``, ``desk``.
    effects : str
        ``sandboxed`` if nothing that it does outlives the conversation, ``live`` otherwise. There
        is no default.
    host : str
        Where it runs: empty in this process or on this machine, else the name of the host.
    sees_calls : bool
        Whether the tool calls that it makes are heard. Without them there is no verdict.
    same_luck : bool
        Whether the same seed gives the same draws, whatever the version.
    resumes : bool
        Whether it can be taken up in the middle (:class:`Resumable`).
    holds_calls : bool
        Whether a call can be kept from running: a live target has to be able to where its tools
        cannot be undone.
    concurrency : int
        How many conversations it serves at once over a network; 0 means that it computes in this
        process and belongs in a process pool.
    """

    name: str
    effects: Effects
    host: str
    sees_calls: bool
    same_luck: bool
    resumes: bool
    holds_calls: bool
    concurrency: int

    def begin(self, seed: int, plants: Sequence[Plant] = ()) -> Talk:
        """Begin a conversation that knows nothing of any other.

        Parameters
        ----------
        seed : int
            Decides the luck of this conversation, where the target has any to decide.
        plants : sequence of Plant
            What somebody left inside the world beforehand.
        """
        ...


class Resumable(Target, Protocol):
    """A target that can be taken up in the middle, and that can be kept from hearing a tool."""

    def resume(self, seed: int, plants: Sequence[Plant], events: Sequence[Event]) -> Talk:
        """Begin a conversation in which these events have happened already.

        Parameters
        ----------
        seed, plants
            As :meth:`Target.begin` takes them.
        events : sequence of Event
            What happened, from the first turn on.

        Returns
        -------
        Talk
            Its ``events`` are those.
        """
        ...

    def begin_deaf(self, seed: int, plants: Sequence[Plant], turn: int) -> Talk:
        """Begin a conversation in which tools that read bring nothing back in one turn.

        Parameters
        ----------
        seed, plants
            As :meth:`Target.begin` takes them.
        turn : int
            Which one, from 1.

        Returns
        -------
        Talk
            Nothing has been said in it yet.
        """
        ...


def events_of(turn: int, said: str, heard: Heard) -> Sequence[Event]:
    """Return what happened in a turn as events: what was said, called and replied.

    Parameters
    ----------
    turn : int
        Its number, from 1.
    said : str
        By the user.
    heard : Heard
        What came of it.

    Raises
    ------
    TargetError
        If it is something else.
    """
    if not isinstance(heard, Heard):
        raise TargetError("bad_response", f"a turn gave {type(heard).__name__} instead of Heard")
    if heard.events:
        return heard.events
    if len(heard.calls) > MOST_CALLS:
        raise too_many_calls(len(heard.calls))
    events: list[Event] = [MessageEvent(turn=turn, role="user", content=said)]
    for number, call in enumerate(heard.calls, start=1):
        asked = ToolCall(id=f"{turn}.{number}", name=call.name, arguments=dict(call.arguments))
        events.append(ToolCallEvent(turn=turn, call=asked, status=call.status, result=call.result))
    if heard.text or heard.ended in ("", "completed"):
        events.append(MessageEvent(turn=turn, role="assistant", content=heard.text))
    return events
