"""An agent of the OpenAI Agents SDK as a target.

``make_agent`` builds a fresh agent for each conversation, and that is all::

    from safety_lib.adapters.openai_agents import from_openai_agents

    def connect(version, model):
        def make_agent(seed, plants):
            return desk(version.settings, plants)  # an agents.Agent, or (agent, context)
        return from_openai_agents(make_agent, name="desk", effects="sandboxed")

The calls are read off the SDK's own spans, not off the items of a result: spans also tell the calls
of agents that are tools of other agents, and those that ran before a guardrail ended the turn.
Spans go to no server: while a conversation is held this module is the one processor of traces in
the process. What it hears:

- a handoff is no call; the agent that has taken over answers the next turn;
- a call that needs approval is ``held``: nobody approves it, the agent is told so and goes on;
- a call that a guardrail of its tool turned away is ``blocked``;
- a tripwire ends the conversation as ``stopped``, too many steps as ``step_limit``.

A tool of an MCP server that the SDK connects to counts as executed where the server answered with
an error: the SDK passes that answer on like any other.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from safety_lib.adapters.callables import from_callable
from safety_lib.adapters.reading import calls_of
from safety_lib.adapters.troubles import missing, trouble_of
from safety_lib.records import Plant
from safety_lib.world.target import Called, Effects, Heard, Target, TargetError

MakeAgent = Callable[[int, Sequence[Plant]], Any]
Span = Mapping[str, Any]

# Tools that run at the model's provider; the SDK has no span of its own for them.
HOSTED = {
    "code_interpreter_call": "code_interpreter",
    "file_search_call": "file_search",
    "image_generation_call": "image_generation",
    "mcp_call": "",  # it brings a name
    "web_search_call": "web_search",
}
_BOOKKEEPING = frozenset({"id", "type", "status", "name", "arguments", "output", "error", "result"})
_ASKS_A_MODEL = ("response", "generation")


def from_openai_agents(
    make_agent: MakeAgent,
    *,
    name: str,
    effects: Effects,
    max_turns: int = 10,
    run_config: Any = None,
    timeout: float = 60.0,
    concurrency: int = 8,
) -> Target:
    """Return a target whose conversations are held by an agent of the OpenAI Agents SDK.

    Parameters
    ----------
    make_agent : callable
        ``make_agent(seed, plants)`` returns a fresh ``agents.Agent``, or ``(agent, context)`` with
        the context of its runs; it may be asynchronous.
    name : str
        What artifacts call the agent.
    effects : str
        ``sandboxed`` if nothing that it does outlives the conversation, else ``live``.
    max_turns : int, optional
        Most steps of one turn, as the SDK counts them.
    run_config : agents.RunConfig, optional
        As ``Runner.run`` takes it; what it says about tracing is left out.
    timeout : float, optional
        Seconds for the start and for each turn.
    concurrency : int, optional
        How many conversations it serves at once; 0 if its model computes in this process.

    Returns
    -------
    Target
        That sees its calls; it can neither be taken up in the middle nor kept from running a call.

    Raises
    ------
    TargetError
        ``not_installed`` if the SDK is not.
    ValueError
        If one of them is impossible; one line names it.
    """
    if max_turns < 1:
        raise ValueError("from_openai_agents: max_turns is below 1")
    try:
        import agents  # noqa: F401 - whether it is there is asked before a campaign begins
    except ImportError as error:
        raise missing("openai-agents", "openai-agents") from error

    async def start(seed: int, plants: Sequence[Plant]) -> _Session:
        made = make_agent(seed, plants)
        made = await made if inspect.isawaitable(made) else made
        agent, context = made if isinstance(made, tuple) else (made, None)
        return _Session(agent, context, max_turns, run_config)

    return from_callable(
        start,
        name=name,
        effects=effects,
        sees_calls=True,
        timeout=timeout,
        concurrency=concurrency,
    )


# --------------------------------------------------------------------------- what is read


@dataclass
class Heed:
    """What a run says about its calls beside its spans.

    Attributes
    ----------
    held : list of Mapping
        ``name`` and ``arguments`` of each call that waited for approval.
    turned_away : list of str
        What tools' guardrails said in place of a result.
    stopped_before, stopped_after : str
        What was raised by a tool's guardrail that ends the run before or after its call.
    """

    held: list[Mapping[str, Any]] = field(default_factory=list)
    turned_away: list[str] = field(default_factory=list)
    stopped_before: str = ""
    stopped_after: str = ""


def calls_of_spans(spans: Iterable[Span], heed: Heed | None = None) -> tuple[Called, ...]:
    """Return the tool calls of a turn, in the order in which they began.

    Parameters
    ----------
    spans : iterable of Mapping
        As :func:`spans_read` returns them.
    heed : Heed, optional
        What else the run said.

    Raises
    ------
    TargetError
        ``bad_response`` if a call has no arguments that can be read.

    Examples
    --------
    >>> span = {"id": "1", "parent_id": None, "error": None, "span_data": {
    ...     "type": "function", "name": "refund", "input": '{"amount": 20}', "output": "done"}}
    >>> calls_of_spans([span])
    (Called(name='refund', arguments={'amount': 20}, result='done', status='executed'),)
    """
    heed = heed or Heed()
    spans = list(spans)
    waiting = _waiting(spans, heed.held)
    dropped = _above(spans, waiting)
    found: list[Any] = []
    for span in spans:
        data = span["span_data"]
        if data["type"] == "response":
            found += [_hosted(item) for item in data.get("hosted", ())]
        if data["type"] != "function" or span["id"] in dropped:
            continue
        if data.get("input") is None:
            raise TargetError(
                "bad_response",
                f"the arguments of {data['name']} are not told; "
                "let no RunConfig of the agent leave sensitive data out of its traces",
            )
        status = "held" if span["id"] in waiting else _status(span, heed)
        said = "waits for approval" if status == "held" else data.get("output")
        found.append((data["name"], data["input"], said, status))
    return calls_of([_as_mapping(*call) for call in found])


def _as_mapping(name: str, arguments: Any, result: Any, status: str) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "result": result or "", "status": status}


def _status(span: Span, heed: Heed) -> str:
    error = span.get("error")
    if error:
        said = (error.get("data") or {}).get("error")
        if heed.stopped_before and said == heed.stopped_before:
            return "blocked"
        return "executed" if heed.stopped_after and said == heed.stopped_after else "failed"
    return "blocked" if span["span_data"].get("output") in heed.turned_away else "executed"


def _waiting(spans: Sequence[Span], held: Iterable[Mapping[str, Any]]) -> set[str]:
    """Find the spans of the calls that waited for approval: they came to no result."""
    found: set[str] = set()
    for call in held:
        for span in spans:
            data = span["span_data"]
            same = data.get("name") == call["name"] and data.get("input") == call["arguments"]
            open_ = data.get("output") is None and not span.get("error")
            if data["type"] == "function" and same and open_ and span["id"] not in found:
                found.add(span["id"])
                break
    return found


def _above(spans: Sequence[Span], waiting: set[str]) -> set[str]:
    """Find the calls of agents in which others wait: each comes again when the run goes on."""
    parents = {span["id"]: span.get("parent_id") for span in spans}
    above: set[str] = set()
    for at in waiting:
        parent = parents.get(at)
        while parent is not None:
            above.add(parent)
            parent = parents.get(parent)
    return above


def _hosted(item: Mapping[str, Any]) -> tuple[str, Any, Any, str]:
    kind = str(item["type"])
    arguments = item.get("arguments")
    if arguments is None:
        arguments = {key: value for key, value in item.items() if key not in _BOOKKEEPING}
    said = item.get("error") or item.get("output") or ""
    failed = bool(item.get("error")) or item.get("status") == "failed"
    name = str(item.get("name") or HOSTED[kind])
    return name, arguments, said, "failed" if failed else "executed"


def spans_read(spans: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the spans of a turn as plain values: of those that tell of a call, all that is read.

    Parameters
    ----------
    spans : iterable of agents.tracing.Span
        In the order in which they began.
    """
    return [_span_read(span) for span in spans]


def _span_read(span: Any) -> dict[str, Any]:
    data = span.span_data
    told: dict[str, Any] = {"type": data.type}
    if data.type == "function":
        told |= {"name": data.name, "input": data.input, "output": said_by(data.output)}
    elif data.type == "response":
        items = getattr(getattr(data, "response", None), "output", None) or ()
        told["hosted"] = [
            item.model_dump(mode="json", exclude_none=True)
            for item in items
            if getattr(item, "type", "") in HOSTED
        ]
    error = span.error and {"message": span.error["message"], "data": span.error.get("data")}
    return {"id": span.span_id, "parent_id": span.parent_id, "span_data": told, "error": error}


def said_by(output: Any) -> str | None:
    r"""Return what a tool gave back as the model reads it, or None if it gave nothing.

    Examples
    --------
    >>> said_by([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
    'one\ntwo'
    >>> said_by({"amount": 20})
    "{'amount': 20}"
    """
    if output is None or isinstance(output, str):
        return output
    if isinstance(output, list | tuple):
        return "\n".join(said_by(part) or "" for part in output)
    text = output.get("text") if isinstance(output, Mapping) else getattr(output, "text", None)
    return text if isinstance(text, str) else str(output)


def final_text(output: Any) -> str:
    """Return the reply that a final output is: text, or the JSON of a typed one.

    Examples
    --------
    >>> final_text("Done."), final_text({"amount": 20}), final_text(None)
    ('Done.', '{"amount": 20}', '')
    """
    if output is None or isinstance(output, str):
        return output or ""
    as_json = getattr(output, "model_dump_json", None)
    if as_json is not None:
        return str(as_json())
    return json.dumps(output, default=str, ensure_ascii=False)


# --------------------------------------------------------------------------- what drives it

_heard: ContextVar[list[Any] | None] = ContextVar("_heard", default=None)


class _Ear:
    """A processor of traces that writes nothing: each conversation gets its own spans."""

    def on_span_start(self, span: Any) -> None:
        heard = _heard.get()
        if heard is not None:
            heard.append(span)

    def on_span_end(self, span: Any) -> None: ...

    def on_trace_start(self, trace: Any) -> None: ...

    def on_trace_end(self, trace: Any) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self) -> None: ...


_ear = _Ear()


class _Session:
    """One conversation: the history, and who answers next."""

    def __init__(self, agent: Any, context: Any, max_turns: int, run_config: Any) -> None:
        self.first = agent  # the items of the history hold on to no agent
        self.agent = agent
        self.context = context
        self.max_turns = max_turns
        self.run_config = run_config
        self.history: list[Any] = []

    async def send(self, text: str) -> Heard:
        import agents

        # The agent's own code may have chosen otherwise in the meantime.
        agents.set_trace_processors([_ear])  # type: ignore[list-item,unused-ignore]
        agents.set_tracing_disabled(False)
        spans: list[Any] = []
        _heard.set(spans)
        said = [*self.history, {"role": "user", "content": text}]
        heed, answer, ended, run = Heed(), "", "", None
        try:
            run = await self._run(said, heed)
            answer, self.agent = final_text(run.final_output), run.last_agent
            self.history = run.to_input_list()
        except agents.ModelRefusalError as refusal:
            answer, run = refusal.refusal, refusal.run_data
            self.history = [*said, {"role": "assistant", "content": answer}]
        except agents.MaxTurnsExceeded as error:
            ended, run = "step_limit", error.run_data
        except _tripwires() as error:
            ended, run = "stopped", error.run_data
            before = isinstance(error, agents.ToolInputGuardrailTripwireTriggered)
            after = isinstance(error, agents.ToolOutputGuardrailTripwireTriggered)
            heed.stopped_before = str(error) if before else ""
            heed.stopped_after = str(error) if after else ""
        except Exception as error:
            raise trouble_of(error) or error from None
        finally:
            _heard.set(None)
        if run is not None:
            heed.turned_away += _turned_away(run)
        read = spans_read(spans)
        asked = sum(span["span_data"]["type"] in _ASKS_A_MODEL for span in read)
        answers = len(run.raw_responses) if run is not None else 0
        calls = calls_of_spans(read, heed)
        return Heard(answer, calls, ended, model_calls=max(asked, answers))

    async def _run(self, said: Any, heed: Heed) -> Any:
        from agents import RunConfig, Runner

        config = replace(
            self.run_config or RunConfig(),
            tracing_disabled=False,
            tracing=None,
            trace_include_sensitive_data=True,
        )
        run = await Runner.run(
            self.agent, said, context=self.context, max_turns=self.max_turns, run_config=config
        )
        while run.interruptions:
            state = run.to_state()
            for waits in run.interruptions:
                heed.held.append({"name": waits.name, "arguments": waits.arguments})
                state.reject(waits)
            run = await Runner.run(self.agent, state, run_config=config)
        return run


def _tripwires() -> tuple[type[Any], ...]:
    import agents

    return (
        agents.InputGuardrailTripwireTriggered,
        agents.OutputGuardrailTripwireTriggered,
        agents.ToolInputGuardrailTripwireTriggered,
        agents.ToolOutputGuardrailTripwireTriggered,
    )


def _turned_away(run: Any) -> Iterable[str]:
    for result in getattr(run, "tool_input_guardrail_results", ()):
        behavior = result.output.behavior
        if behavior.get("type") == "reject_content":
            yield str(behavior["message"])
