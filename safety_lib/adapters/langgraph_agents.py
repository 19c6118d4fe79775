"""A LangGraph graph as a target.

``make_graph`` builds a fresh graph for each conversation, and that is all::

    from safety_lib.adapters.langgraph_agents import from_langgraph

    def connect(version, model):
        def make_graph(seed, plants):
            return create_react_agent(chat_model(version.settings), desk_tools(plants))
        return from_langgraph(make_graph, name="desk", effects="sandboxed")

The graph has a state with ``messages``. The calls of a turn are those of the messages that were new
in any of its steps, also of graphs inside it and of messages that the graph took out again, and
those of LangChain tools that ran without a message. A call that nothing came back for is not known
to have run, and its conversation is an error; so is one that waits for a person. A graph with a
checkpointer keeps its own history, else the history is handed to it each turn. Nothing is sent to a
tracing service, whatever the environment says: it would hold what the attacks made the agent say.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from safety_lib.adapters.callables import from_callable
from safety_lib.adapters.reading import calls_of
from safety_lib.adapters.troubles import missing, trouble_of
from safety_lib.records import Plant
from safety_lib.world.target import Called, Effects, Heard, Target, TargetError

MakeGraph = Callable[[int, Sequence[Plant]], Any]


def from_langgraph(
    make_graph: MakeGraph,
    *,
    name: str,
    effects: Effects,
    recursion_limit: int = 25,
    timeout: float = 60.0,
    concurrency: int = 8,
) -> Target:
    """Return a target whose conversations are held by a compiled graph.

    Parameters
    ----------
    make_graph : callable
        ``make_graph(seed, plants)`` returns a fresh compiled graph; it may be asynchronous.
    name : str
        What artifacts call the agent.
    effects : str
        ``sandboxed`` if nothing that it does outlives the conversation, else ``live``.
    recursion_limit : int, optional
        Most steps of one turn, as LangGraph counts them.
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
        ``not_installed`` if LangGraph is not.
    ValueError
        If one of them is impossible; one line names it.
    """
    if recursion_limit < 1:
        raise ValueError("from_langgraph: recursion_limit is below 1")
    try:
        import langgraph.errors  # noqa: F401 - asked before a campaign begins
    except ImportError as error:
        raise missing("langgraph", "langgraph") from error
    numbers = count(1)

    async def start(seed: int, plants: Sequence[Plant]) -> _Thread:
        made = make_graph(seed, plants)
        graph = await made if inspect.isawaitable(made) else made
        return _Thread(graph, f"conversation-{next(numbers)}", recursion_limit)

    return from_callable(
        start,
        name=name,
        effects=effects,
        sees_calls=True,
        timeout=timeout,
        concurrency=concurrency,
    )


class _Thread:
    """One conversation with a graph."""

    def __init__(self, graph: Any, name: str, limit: int) -> None:
        self._graph = graph
        self._keeps_history = getattr(graph, "checkpointer", None) not in (None, False)
        self._config = {"recursion_limit": limit, "configurable": {"thread_id": name}}
        self._messages: list[Any] = []
        self._seen: set[Any] = set()

    async def send(self, text: str) -> Heard:
        from langgraph.errors import GraphRecursionError
        from langsmith.run_helpers import tracing_context

        said: list[Any] = [{"role": "user", "content": text}]
        given = said if self._keeps_history else [*self._messages, *said]
        new: list[dict[str, Any]] = []
        ran = _tools_that_ran(new)
        ended, own = "", len(self._messages)
        config = {**self._config, "callbacks": [ran]}
        try:
            with tracing_context(enabled=False):
                async for place, state in self._graph.astream(
                    {"messages": given}, config, stream_mode="values", subgraphs=True
                ):
                    self._note(place, state, new)
        except GraphRecursionError:
            ended = "step_limit"
        except TargetError:
            raise
        except Exception as error:
            raise trouble_of(error) or error from None
        calls = calls_of_messages(new, ran.runs, cut=bool(ended))
        answers = [m for m in self._messages[own:] or self._messages[-1:] if m.type == "ai"]
        reply = text_of_content(answers[-1].content) if answers and not ended else ""
        asked = sum(message["type"] == "ai" for message in new)
        return Heard(reply, calls, ended, model_calls=max(1, asked))

    def _note(self, place: Sequence[str], state: Any, new: list[dict[str, Any]]) -> None:
        """Note the messages of a step that no step before it had."""
        held = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
        if not place and held.get("__interrupt__"):
            raise TargetError("interrupted", "the graph waits for a person, and there is none here")
        messages = [m for m in held.get("messages") or () if hasattr(m, "model_dump")]
        if not place:
            self._messages = messages
        nameless: Counter[str] = Counter()
        for message in messages:
            key = message.id
            if key is None:
                if place:  # a graph inside was handed it, or its tools are seen as they run
                    continue
                written = message.model_dump_json()
                nameless[written] += 1
                key = (written, nameless[written])
            if key not in self._seen:
                self._seen.add(key)
                new.append(message.model_dump(mode="json"))


class ToolRun(NamedTuple):
    """A tool that LangChain ran: how many messages were new before it, and what came of it."""

    after: int
    id: str | None
    name: str
    arguments: dict[str, Any]
    result: str | None = None
    failed: bool = False


def _tools_that_ran(new: Sequence[Any]) -> Any:
    """Return a callback handler that keeps, as ``runs``, each tool that LangChain runs."""
    from langchain_core.callbacks import BaseCallbackHandler

    class ToolsThatRan(BaseCallbackHandler):  # type: ignore[misc]
        run_inline = True  # in the order in which they start, not in that of a pool's threads

        def __init__(self) -> None:
            self._runs: dict[Any, ToolRun] = {}

        @property
        def runs(self) -> tuple[ToolRun, ...]:
            return tuple(self._runs.values())

        def on_tool_start(self, serialized: Any, input_str: str, **told: Any) -> None:
            arguments = told.get("inputs")
            self._runs[told["run_id"]] = ToolRun(
                len(new),
                told.get("tool_call_id"),
                str((serialized or {}).get("name") or told.get("name")),
                arguments if isinstance(arguments, dict) else {"input": input_str},
            )

        def on_tool_end(self, output: Any, **told: Any) -> None:
            run = self._runs[told["run_id"]]
            content = getattr(output, "content", output)
            said = text_of_content(content) if isinstance(content, str | list) else str(content)
            failed = getattr(output, "status", "") == "error"
            self._runs[told["run_id"]] = run._replace(
                id=run.id or getattr(output, "tool_call_id", None), result=said, failed=failed
            )

        def on_tool_error(self, error: BaseException, **told: Any) -> None:
            run = self._runs[told["run_id"]]
            said = f"{type(error).__name__}: {error}"
            self._runs[told["run_id"]] = run._replace(result=said, failed=True)

    return ToolsThatRan()


def calls_of_messages(
    messages: Sequence[Mapping[str, Any]], runs: Sequence[ToolRun] = (), *, cut: bool = False
) -> tuple[Called, ...]:
    """Return the tool calls of a turn, in the order in which they were proposed.

    Parameters
    ----------
    messages : sequence of Mapping
        The new messages of the turn, as LangChain's messages dump themselves.
    runs : sequence of ToolRun, optional
        The tools that LangChain ran meanwhile: one without a message is a call as well.
    cut : bool, optional
        Whether the turn was cut off: calls that were still to run are then left out.

    Returns
    -------
    tuple of Called
        Each with what came back.

    Raises
    ------
    TargetError
        ``unseen_calls`` if nothing came back for a call.

    Examples
    --------
    >>> asked = {"type": "ai", "content": "",
    ...          "tool_calls": [{"id": "1", "name": "refund", "args": {"amount": 20}}]}
    >>> told = {"type": "tool", "tool_call_id": "1", "content": "done", "status": "success"}
    >>> calls_of_messages([asked, told])
    (Called(name='refund', arguments={'amount': 20}, result='done', status='executed'),)
    """
    answers: dict[Any, list[Mapping[str, Any]]] = {}
    for message in messages:
        if message["type"] == "tool":
            answers.setdefault(message["tool_call_id"], []).append(message)
    left = list(runs)
    found: list[tuple[int, dict[str, Any]]] = []
    for place, message in enumerate(messages, start=1):
        for call in message.get("tool_calls") or ():
            run = _run_of(call, left)
            if run is not None:
                left.remove(run)
            told = _answer_to(call, answers.get(call["id"], []))
            if told is not None:
                said, failed = text_of_content(told["content"]), told.get("status") == "error"
            elif run is not None and run.result is not None:
                said, failed = run.result, run.failed
            elif cut and run is None:
                continue
            else:
                raise TargetError("unseen_calls", f"nothing came back for a call of {call['name']}")
            found.append((place, _told(call["name"], call["args"], said, failed)))
    for run in left:
        if run.result is None:
            raise TargetError("unseen_calls", f"nothing came back for a call of {run.name}")
        found.append((run.after, _told(run.name, run.arguments, run.result, run.failed)))
    return calls_of([call for _, call in sorted(found, key=lambda pair: pair[0])])


def _run_of(call: Mapping[str, Any], runs: Sequence[ToolRun]) -> ToolRun | None:
    """Return the run that a proposed call led to: the one with its id, or the first like it."""
    named = (run for run in runs if run.id is not None and run.id == call["id"])
    alike = (
        run
        for run in runs
        if run.id is None and (run.name, run.arguments) == (call["name"], call["args"])
    )
    return next(named, None) or next(alike, None)


def _answer_to(
    call: Mapping[str, Any], answers: list[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Take a call's answer from those of its id, which may be used twice."""
    for answer in answers:
        if answer.get("name") in (None, call["name"]):
            answers.remove(answer)
            return answer
    return None


def _told(name: str, arguments: Any, result: str, failed: bool) -> dict[str, Any]:
    status = "failed" if failed else "executed"
    return {"name": name, "arguments": arguments, "result": result, "status": status}


def text_of_content(content: Any) -> str:
    """Return the text of a message's content, which may come in blocks.

    Examples
    --------
    >>> text_of_content([{"type": "text", "text": "Hello"}, " there", {"type": "image"}])
    'Hello there'
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(p if isinstance(p, str) else str(p.get("text", "")) for p in parts)
