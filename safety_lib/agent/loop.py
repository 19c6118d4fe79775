"""The agent loop: model, safeguards and tools, one turn after the other, every step an event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from safety_lib.agent.backends import Backend, BackendError, ToolSchema, open_backend
from safety_lib.agent.memory import visible
from safety_lib.agent.safeguards import Finding, Safeguards
from safety_lib.agent.sandbox import Sandbox, ToolError, tool_schemas
from safety_lib.agent.versions import Version, load_version
from safety_lib.policy import Policy, load_policy
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


class Reply(NamedTuple):
    """What one turn gave: the text, and whether the session can go on.

    ``ended`` is empty while it can, else ``stopped`` (a safeguard), ``step_limit`` or ``error``.
    """

    text: str
    ended: str

    def __str__(self) -> str:
        return self.text


class Agent:
    """One version of the agent with the model behind it.

    Parameters
    ----------
    version : Version
        What this release is.
    backend : Backend
        The model; it is shared by all sessions.
    policy : Policy, optional
        The rules that its system prompt states.

    Examples
    --------
    >>> session = Agent.load("v1").session(seed=7)
    >>> str(session.send("Please read ticket T-203.")) != ""
    True
    """

    def __init__(self, version: Version, backend: Backend, policy: Policy | None = None) -> None:
        self.version = version
        self.backend = backend
        self.policy = policy or load_policy()
        self.tools = tool_schemas(version.permissions)
        prompt = version.system_prompt.replace("{policy}", self.policy.text)
        self.system = Message(role="system", content=prompt)

    @classmethod
    def load(cls, version: str | Version, model: str = "") -> Agent:
        """Open a version by its name or file, with the model that it names or with another one.

        Raises
        ------
        VersionError
            If the version cannot be loaded.
        ValueError
            If the model's name is unknown.
        """
        loaded = load_version(version) if isinstance(version, str) else version
        settings = loaded.model.model_dump(mode="json")
        return cls(loaded, open_backend(model or loaded.model.backend, settings))

    def session(
        self,
        seed: int,
        plants: Iterable[Plant] = (),
        observe: Callable[[Event], None] | None = None,
    ) -> Conversation:
        """Begin a conversation.

        Parameters
        ----------
        seed : int
            Decides every draw of the model in this conversation.
        plants : iterable of Plant
            What somebody left inside the company beforehand.
        observe : callable, optional
            Told of every event as it happens.

        Returns
        -------
        Conversation
            Nothing has been said in it yet.
        """
        return Conversation(self, seed, plants, observe)


class Conversation:
    """One conversation with the agent; :meth:`send` is all that a user can do.

    Attributes
    ----------
    events : list of Event
        Everything that happened, in order.
    sandbox : Sandbox
        The state that the tool calls left.
    model_calls : int
        How often the model was asked.
    """

    def __init__(
        self,
        agent: Agent,
        seed: int,
        plants: Iterable[Plant] = (),
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        self.agent = agent
        self.seed = seed
        self.sandbox = Sandbox(plants)
        self.safeguards = Safeguards(agent.version.safeguards)
        self.history: list[Message] = []
        self.events: list[Event] = []
        self.turn = 0
        self.model_calls = 0
        self._observe = observe
        self._last = Reply("", "")

    def send(self, text: str) -> Reply:
        """Say something to the agent and get its reply; tool calls happen in between.

        A call that was made in this turn already is not made again: the turn ends without a reply.
        The last of the steps that the version allows offers no tools, so that a model
        which would call them for ever still answers. A backend that fails ends the session with
        ``error``; it never raises. A session that has ended hears nothing more and repeats its last
        reply.
        """
        if not self._last.ended:
            self._last = self._take_turn(text)
        return self._last

    def _take_turn(self, text: str) -> Reply:
        self.turn += 1
        self.safeguards.new_turn()
        said = MessageEvent(turn=self.turn, role="user", content=text)
        self._emit(said)
        self.history.append(_message(role="user", content=said.content))
        made: set[str] = set()
        steps = self.agent.version.limits.max_steps
        for step in range(1, steps + 1):
            try:
                answer = self._ask(self.agent.tools if step < steps or steps == 1 else ())
            except BackendError as error:
                self._emit(ErrorEvent(turn=self.turn, error=error.kind, detail=error.detail))
                return Reply("", "error")
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
        return Reply("", "step_limit")

    def _ask(self, tools: Sequence[ToolSchema]) -> Message:
        agent = self.agent
        self.model_calls += 1
        seen = visible(agent.system, self.history, agent.version.memory)
        return agent.backend.complete(seen, tools, seed=self.seed)

    def _act(self, call: ToolCall) -> Decision:
        before = self.safeguards.pre_action(call)
        self._hook("pre_action", before)
        ran = False
        status: CallStatus
        if call.name not in self.agent.version.permissions:
            status, result = "failed", f"there is no tool {call.name}"
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
        along = self.safeguards.after_call(call, ran or status == "failed", result)
        self._hook("trajectory", along)
        return along.decision

    def _reply(self, text: str) -> Reply:
        after = self.safeguards.post_action(text)
        self._hook("post_action", after)
        if after.decision >= Decision.BLOCK:
            self.history[-1] = _message(role="assistant", content=WITHHELD)
            text = WITHHELD
        self._emit(_said(turn=self.turn, role="assistant", content=text))
        return Reply(text, "")

    def _say(self, text: str, ended: str) -> Reply:
        self._emit(_said(turn=self.turn, role="assistant", content=text))
        return Reply(text, ended)

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
        if self._observe is not None:
            self._observe(event)
