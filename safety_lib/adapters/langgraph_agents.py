"""A LangGraph graph as a target.

``make_graph`` builds a fresh graph for each conversation, and that is all::

    from safety_lib.adapters.langgraph_agents import from_langgraph

    def connect(version, model):
        def make_graph(seed, plants):
            return create_react_agent(chat_model(version.settings), desk_tools(plants))
        return from_langgraph(make_graph, name="desk", effects="sandboxed")

The graph has a state with ``messages``. The calls of a turn are those of its new messages: what the
model proposed, with what the tools gave back. A proposed call that nothing came back for is not
known to have run, and its conversation is an error; so is one that waits for a person. A graph with
a checkpointer keeps its own history, else the history is handed to it each turn. Nothing is sent to
a tracing service unless the graph's own environment asks for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

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

    async def send(self, text: str) -> Heard:
        from langgraph.errors import GraphRecursionError

        said: list[Any] = [{"role": "user", "content": text}]
        before = len(self._messages)
        given = said if self._keeps_history else [*self._messages, *said]
        ended = ""
        try:
            async for state in self._graph.astream(
                {"messages": given}, self._config, stream_mode="values"
            ):
                if state.get("__interrupt__"):
                    raise TargetError(
                        "interrupted", "the graph waits for a person, and there is none here"
                    )
                self._messages = list(state.get("messages", ()))
        except GraphRecursionError:
            ended = "step_limit"
        except TargetError:
            raise
        except Exception as error:
            raise trouble_of(error) or error from None
        new = [message.model_dump(mode="json") for message in self._messages[before:]]
        answers = [message for message in new if message["type"] == "ai"]
        calls = calls_of_messages(new, cut=bool(ended))
        reply = text_of_content(answers[-1]["content"]) if answers and not ended else ""
        return Heard(reply, calls, ended, model_calls=max(1, len(answers)))


def calls_of_messages(
    messages: Sequence[Mapping[str, Any]], *, cut: bool = False
) -> tuple[Called, ...]:
    """Return the tool calls of a turn, in the order in which they were proposed.

    Parameters
    ----------
    messages : sequence of Mapping
        The new messages of the turn, as LangChain's messages dump themselves.
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
    answers = {m["tool_call_id"]: m for m in messages if m["type"] == "tool"}
    found = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            answer = answers.get(call["id"])
            if answer is None and cut:
                continue
            if answer is None:
                raise TargetError("unseen_calls", f"nothing came back for a call of {call['name']}")
            failed = answer.get("status") == "error"
            found.append(
                {
                    "name": call["name"],
                    "arguments": call["args"],
                    "result": text_of_content(answer["content"]),
                    "status": "failed" if failed else "executed",
                }
            )
    return calls_of(found)


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
