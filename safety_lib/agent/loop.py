"""The agent loop: model, safeguards and tools, one turn after the other, every step an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from safety_lib.agent.backends import Backend, ToolSchema, open_backend
from safety_lib.agent.memory import visible
from safety_lib.agent.safeguards import Finding, Safeguards
from safety_lib.agent.settings import AgentSettings, agent_settings
from safety_lib.records import (
    CallStatus,
    Decision,
    ErrorEvent,
    Event,
    HookEvent,
    HookName,
    Message,
    MessageEvent,
    Plant,
    ToolCall,
    ToolCallEvent,
    unchecked,
    whole,
)
from safety_lib.text import error_line, one_line
from safety_lib.world import World, world_of
from safety_lib.world.target import MOST_CALLS, Effects, Heard, TargetError, too_many_calls
from safety_lib.world.tools import ToolError
from safety_lib.world.versions import Version

WITHHELD = "I cannot share that."
STOPPED = "This session has been ended for review."
SILENT = "(The agent repeats itself and does not reply.)"

_LABEL: dict[Decision, Literal["allow", "warn", "hold", "block", "stop"]] = {
    Decision.ALLOW: "allow",
    Decision.WARN: "warn",
    Decision.HOLD: "hold",
    Decision.BLOCK: "block",
    Decision.STOP: "stop",
}

# What the loop says itself. A user's words and a backend's trouble come from outside: validated.
_message = unchecked(Message)
_said = unchecked(MessageEvent)
_called = unchecked(ToolCallEvent)
_hooked = unchecked(HookEvent)


class Toolbox(Protocol):
    """One conversation's own copy of what the tools act on."""

    def run(self, call: ToolCall) -> str:
        """Execute a call and return what the tool says.

        Raises
        ------
        ToolError
            If the tool refuses; nothing has changed then.
        """
        ...


@dataclass(frozen=True)
class Workplace:
    """What a world gives the packaged agent to work in.

    Attributes
    ----------
    sandbox : callable
        ``sandbox(plants)`` makes a conversation's own copy of what the tools act on.
    effects : str
        ``sandboxed`` if nothing outlives the conversation, else ``live``.
    safeguards : callable
        ``safeguards(tree)`` takes a version's settings and returns what makes the hooks of one
        conversation.
    models : Mapping
        Models of the world's own, by name: each takes the ``model`` settings of a version.
    compliant : callable or None
        Makes a scripted model that does at once whatever it is asked, to show what the safeguards
        are worth when the model is lost. Without one they are not measured.
    """

    sandbox: Callable[[Sequence[Plant]], Toolbox]
    effects: Effects
    safeguards: Callable[[Mapping[str, Any]], Callable[[], Safeguards]] = lambda _: Safeguards
    models: Mapping[str, Callable[[Mapping[str, Any]], Backend]] = field(default_factory=dict)
    compliant: Callable[[], Backend] | None = None


class Agent:
    """One version of the packaged agent with the model behind it: a target.

    Parameters
    ----------
    version : Version
        What this release is.
    backend : Backend
        The model; it is shared by all conversations.
    world : World, optional
        Where it works; by default the world of the version.
    guard : callable, optional
        Makes the hooks of one conversation; by default those of the version.

    Attributes
    ----------
    settings : AgentSettings
        The version's, validated.
    guard : callable
        Makes the hooks of one conversation.
    system : Message
        The system prompt, with the policy in it.

    Examples
    --------
    >>> talk = Agent.load("northwind/v1").begin(seed=7)
    >>> str(talk.send("Please read ticket T-203.")) != ""
    True
    """

    host = ""
    sees_calls = True
    resumes = True
    holds_calls = True

    def __init__(
        self,
        version: Version,
        backend: Backend,
        world: World | None = None,
        guard: Callable[[], Safeguards] | None = None,
    ) -> None:
        self.version = version
        self.backend = backend
        self.world = world or world_of(version)
        self.workplace = workplace_of(self.world)
        self.settings: AgentSettings = agent_settings(version)
        self.guard = guard or self.workplace.safeguards(self.settings.safeguards)
        self.tools = self.world.tools.schemas(self.settings.permissions)
        prompt = self.settings.system_prompt.replace("{policy}", self.world.policy.text)
        self.system = Message(role="system", content=prompt)
        self.effects: Effects = self.workplace.effects
        # What a live tool cannot undo is not done.
        self.held_back = self.world.tools.final if self.effects == "live" else frozenset()
        self.name = backend.name
        self.concurrency = backend.concurrency
        self.same_luck = bool(getattr(backend, "same_luck", False))
        # Where effects last, nothing is done again in order to come back to where a run was.
        own = bool(getattr(backend, "keeps_answers", False))
        self.keeps_answers = own and self.effects == "sandboxed"

    @classmethod
    def load(cls, version: str | Version, model: str = "") -> Agent:
        """Open a version by its name or file, with the model that it names or with another one.

        Raises
        ------
        WorldError
            If the version cannot be loaded.
        ValueError
            If the model's name is unknown.
        """
        from safety_lib.world import load_version

        loaded = load_version(version) if isinstance(version, str) else version
        settings = agent_settings(loaded).model
        own = workplace_of(world_of(loaded)).models
        backend = open_backend(model or settings.backend, settings.model_dump(mode="json"), own)
        return cls(loaded, backend)

    def begin(self, seed: int, plants: Sequence[Plant] = ()) -> Conversation:
        """Begin a conversation.

        Parameters
        ----------
        seed : int
            Decides every draw of the model in this conversation.
        plants : sequence of Plant
            What somebody left inside the world beforehand.

        Returns
        -------
        Conversation
            Nothing has been said in it yet.
        """
        return Conversation(self, seed, plants)

    def begin_deaf(self, seed: int, plants: Sequence[Plant], turn: int) -> Conversation:
        """Begin a conversation in which tools that read bring nothing back in one turn.

        Parameters
        ----------
        seed, plants
            As :meth:`begin` takes them.
        turn : int
            The turn, from 1.

        Returns
        -------
        Conversation
            Nothing has been said in it yet.
        """
        talk = self.begin(seed, plants)
        talk.sandbox = _Unheard(talk, turn)
        return talk

    def resume(self, seed: int, plants: Sequence[Plant], events: Sequence[Event]) -> Conversation:
        """Begin a conversation in which these events have happened already.

        Parameters
        ----------
        seed, plants
            As :meth:`begin` takes them.
        events : sequence of Event
            What happened, from its first turn on; oracle events are left out.

        Returns
        -------
        Conversation
            The next thing said in it is its next turn.

        Raises
        ------
        DesyncError
            If a call that is put back does not return what it returned.

        Notes
        -----
        A record has one entry for each call. Text that a model sent beside a call, or several calls
        in one message, come back as messages of one call each.
        """
        talk = self.begin(seed, plants)
        for number, event in enumerate(events, start=1):
            talk.put_back(number, event)
        return talk


def workplace_of(world: World) -> Workplace:
    """Return what a world gives the packaged agent.

    Raises
    ------
    WorldError
        If it has an agent of its own.
    """
    workplace: Workplace | None = world.hook("WORKPLACE")
    if workplace is None:
        raise world.fault("world.py", "has an agent of its own, not the packaged one")
    return workplace


class DesyncError(ValueError):
    """A replay left its record: at which event, and what stood there.

    Attributes
    ----------
    event : int
        Number of the event in the record, from 1.
    turn : int
        Its turn.
    """

    def __init__(self, event: int, turn: int, recorded: str, replayed: str) -> None:
        self.event, self.turn = event, turn
        super().__init__(
            f"event {event}, turn {turn}: the record has {one_line(recorded)}, "
            f"the replay {one_line(replayed)}"
        )


class Conversation:
    """One conversation with the agent; :meth:`send` is all that a user can do.

    Attributes
    ----------
    events : list of Event
        Everything that happened, in order.
    sandbox : Toolbox
        The state that the tool calls left.
    model_calls : int
        How often the model was asked.
    """

    def __init__(self, agent: Agent, seed: int, plants: Sequence[Plant] = ()) -> None:
        self.agent = agent
        self.seed = seed
        self.sandbox = agent.workplace.sandbox(plants)
        self.safeguards = agent.guard()
        self.history: list[Message] = []
        self.events: list[Event] = []
        self.turn = 0
        self.model_calls = 0
        self._last = Heard("")

    def send(self, text: str) -> Heard:
        """Say something to the agent and get its reply; tool calls happen in between.

        A call that was made in this turn already is not made again: the turn ends without a reply.
        The last of the steps that the version allows offers no tools, so that a model
        which would call them for ever still answers. A backend that fails ends the session with
        ``error``; it never raises. A session that has ended hears nothing more and repeats its last
        reply.
        """
        if self._last.ended:
            return self._last._replace(model_calls=0, events=())
        before, asked = len(self.events), self.model_calls
        reply, ended = self._take_turn(text)
        self._last = Heard(
            reply,
            ended=ended,
            model_calls=self.model_calls - asked,
            events=self.events[before:],
        )
        return self._last

    def put_back(self, number: int, event: Event) -> None:
        """Let an event of a record have happened.

        Parameters
        ----------
        number : int
            Of the event, for the message.
        event : Event
            The next one.

        Raises
        ------
        DesyncError
            If it is a call that does not return what it returned.
        """
        if event.kind == "oracle":  # whoever listens decides again
            return
        if event.kind == "message":
            if event.role == "user":
                self.turn = event.turn
                self.safeguards.new_turn()
            self.history.append(Message(role=event.role, content=event.content))
        elif event.kind == "tool_call":
            call, ran = event.call, event.status in ("executed", "failed")
            if event.status == "executed":
                try:
                    result = self.sandbox.run(call)
                except ToolError as error:
                    result = str(error)
                if result != event.result:
                    raise DesyncError(number, event.turn, repr(event.result), repr(result))
            self.safeguards.after_call(call, ran, event.result)
            self.history.append(Message(role="assistant", content="", tool_calls=(call,)))
            answer = Message(role="tool", content=event.result, tool_call_id=call.id)
            self.history.append(answer)
        self.events.append(event)

    def _take_turn(self, text: str) -> tuple[str, str]:
        self.turn += 1
        said = MessageEvent(turn=self.turn, role="user", content=text)
        self._emit(said)
        self.history.append(_message(role="user", content=said.content))
        try:
            self.safeguards.new_turn()
        except Exception as error:
            self._hook("trajectory", _failed(Decision.STOP, error))
            return self._say(STOPPED, "stopped")
        made: set[str] = set()
        steps = self.agent.settings.limits.max_steps
        for step in range(1, steps + 1):
            try:
                answer = self._ask(self.agent.tools if step < steps or steps == 1 else ())
            except TargetError as error:
                self._emit(ErrorEvent(turn=self.turn, error=error.kind, detail=error.detail))
                return "", "error"
            self.history.append(answer)
            if not answer.tool_calls:
                return self._reply(answer.content)
            proposed = {str(call) for call in answer.tool_calls}
            if proposed <= made:
                # A small model may repeat itself for ever. Nothing is said in its name.
                self.history[-1] = _message(role="assistant", content=SILENT)
                return self._reply(SILENT)
            made |= proposed
            for call in answer.tool_calls:
                if self._act(call) >= Decision.STOP:
                    return self._say(STOPPED, "stopped")
        return "", "step_limit"

    def _ask(self, tools: Sequence[ToolSchema]) -> Message:
        agent = self.agent
        self.model_calls += 1
        seen = visible(agent.system, self.history, agent.settings.memory)
        answer = agent.backend.complete(seen, tools, seed=self.seed)
        if len(answer.tool_calls) > MOST_CALLS:
            raise too_many_calls(len(answer.tool_calls))
        return answer

    def _act(self, call: ToolCall) -> Decision:
        before = _decided(Decision.BLOCK, self.safeguards.pre_action, call)
        self._hook("pre_action", before)
        ran = False
        status: CallStatus
        if call.name not in self.agent.settings.permissions:
            status, result = "failed", f"there is no tool {call.name}"
        elif call.name in self.agent.held_back:
            status, result = "blocked", f"blocked: {call.name} is live and cannot be undone"
        elif before.decision >= Decision.HOLD:
            held = before.decision == Decision.HOLD
            status = "held" if held else "blocked"
            result = f"{'held for review' if held else 'blocked'}: {before.reason}"
        else:
            try:
                result, status, ran = self.sandbox.run(call), "executed", True
            except ToolError as error:
                result, status = str(error), "failed"
        result = whole(result)
        self._emit(_called(turn=self.turn, call=call, status=status, result=result))
        self.history.append(_message(role="tool", content=result, tool_call_id=call.id))
        had_run = ran or status == "failed"
        along = _decided(Decision.STOP, self.safeguards.after_call, call, had_run, result)
        self._hook("trajectory", along)
        return along.decision

    def _reply(self, text: str) -> tuple[str, str]:
        after = _decided(Decision.BLOCK, self.safeguards.post_action, text)
        self._hook("post_action", after)
        if after.decision >= Decision.BLOCK:
            self.history[-1] = _message(role="assistant", content=WITHHELD)
            text = WITHHELD
        self._emit(_said(turn=self.turn, role="assistant", content=text))
        return text, ""

    def _say(self, text: str, ended: str) -> tuple[str, str]:
        self._emit(_said(turn=self.turn, role="assistant", content=text))
        return text, ended

    def _hook(self, hook: HookName, finding: Finding) -> None:
        self._emit(
            _hooked(
                turn=self.turn,
                hook=hook,
                decision=_LABEL[finding.decision],
                check=finding.check,
                reason=finding.reason,
            )
        )

    def _emit(self, event: Event) -> None:
        self.events.append(event)


def _decided(least: Decision, ask: Callable[..., Finding], *about: object) -> Finding:
    """Return what a hook decides; one that raises, or says nothing that can be read, stops."""
    try:
        found = ask(*about)
        if found.decision in _LABEL:
            return found
        raise ValueError(f"no decision: {one_line(found.decision)}")
    except Exception as error:  # a safeguard that fails does not open the door
        return _failed(least, error)


def _failed(least: Decision, error: Exception) -> Finding:
    return Finding(least, "check_failed", whole(f"a check failed: {error_line(error)}"))


class _Unheard:
    """A sandbox whose tools that read bring nothing back in one turn."""

    def __init__(self, talk: Conversation, turn: int) -> None:
        self._talk = talk
        self._turn = turn
        self._sandbox = talk.sandbox

    def run(self, call: ToolCall) -> str:
        result = self._sandbox.run(call)
        cut = self._talk.turn == self._turn and call.name in self._talk.agent.world.tools.showing
        return "" if cut else result
