"""LangGraph: the airline's desk as one of its graphs."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Annotated, Any, TypedDict

import pytest
from conftest import AIRLINE, judged, what_broke
from desk_model import DeskModel, desk_of

from safety_lib.adapters.langgraph_agents import calls_of_messages, from_langgraph
from safety_lib.world.target import TargetError

pytest.importorskip("langgraph", reason="LangGraph is not installed")

from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.tracers.langchain import wait_for_all_tracers
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

STORED = Path(__file__).parent.parent / "data" / "langgraph.json"


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


def graph_of(model: Any, tools: Any, **compiled: Any) -> Any:
    """A graph that asks its model, runs what it proposes, and asks again."""

    def ask(state: State) -> dict[str, Any]:
        said = [m.content for m in state["messages"] if isinstance(m, HumanMessage)]
        reply, call = model.step(said)
        if call is None:
            return {"messages": [AIMessage(content=[{"type": "text", "text": reply}])]}
        number = str(len(state["messages"]))
        proposed = {"id": number, "name": call["name"], "args": dict(call["arguments"])}
        return {"messages": [AIMessage(content="", tool_calls=[proposed])]}

    def act(state: State) -> dict[str, Any]:
        found = []
        for call in state["messages"][-1].tool_calls:
            try:
                said, status = tools(call["name"], call["args"]), "success"
            except ValueError as error:
                said, status = str(error), "error"
            found.append(ToolMessage(content=said, tool_call_id=call["id"], status=status))
        return {"messages": found}

    made = StateGraph(State)
    made.add_node("ask", ask)
    made.add_node("act", act)
    made.add_edge(START, "ask")
    made.add_conditional_edges("ask", lambda s: "act" if s["messages"][-1].tool_calls else END)
    made.add_edge("act", "ask")
    return made.compile(**compiled)


def desk_graph(settings: Any, seed: int, plants: Any) -> Any:
    planted = {plant.key: plant.text for plant in plants}
    desk = desk_of(settings, planted)

    def tools(name: str, arguments: Any) -> str:
        try:
            return desk.call(name, arguments)
        except Exception as error:
            raise ValueError(str(error)) from error

    return graph_of(DeskModel(settings, seed, planted), tools)


CONNECT = """
def connect(version, model=""):
    from test_langgraph import desk_graph
    from safety_lib.adapters.langgraph_agents import from_langgraph

    return from_langgraph(
        lambda seed, plants: desk_graph(version.settings, seed, plants),
        name="refund desk", effects="sandboxed", recursion_limit=60,
    )
"""


def test_the_airline_through_a_graph_gives_the_same_verdict(airline_by: Any) -> None:
    found, report = judged(airline_by(CONNECT), rollouts=24, replays=4, trials=5)
    plain, plainly = judged(airline_by(""), rollouts=24, replays=4, trials=5)
    assert what_broke(found) == what_broke(plain) != []
    assert (report.verdict, report.delta) == (plainly.verdict, plainly.delta)
    assert report.verdict == "BLOCK"


class Fixed:
    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)

    def step(self, said: Any) -> Any:
        step = self.steps.pop(0)
        return (step, None) if isinstance(step, str) else ("", step)


def refund(name: str, arguments: Any) -> str:
    if arguments["amount"] > 500:
        raise ValueError("too much")
    return f"{arguments['amount']} paid"


def call(amount: int) -> dict[str, Any]:
    return {"name": "refund", "arguments": {"amount": amount}}


def talk_with(graph: Any, **more: Any) -> Any:
    return from_langgraph(
        lambda seed, plants: graph, name="x", effects="sandboxed", concurrency=0, **more
    ).begin(1)


@pytest.mark.parametrize("kept", [False, True])
def test_each_turn_tells_its_own_calls_whoever_keeps_the_history(kept: bool) -> None:
    compiled = {"checkpointer": InMemorySaver()} if kept else {}
    talk = talk_with(graph_of(Fixed(call(900), call(5), "Done.", "Bye."), refund, **compiled))
    first, second = talk.send("Pay"), talk.send("Thanks")
    assert [(c.arguments["amount"], c.status) for c in first.calls] == [
        (900, "failed"),
        (5, "executed"),
    ]
    assert (first.text, first.model_calls) == ("Done.", 3)
    assert (second.text, second.calls) == ("Bye.", ())


def test_too_many_steps_are_a_step_limit() -> None:
    talk = talk_with(graph_of(Fixed(*map(call, range(9))), refund), recursion_limit=4)
    heard = talk.send("Go")
    assert (heard.ended, [c.arguments["amount"] for c in heard.calls]) == ("step_limit", [0, 1])


def test_a_graph_that_waits_for_a_person_is_an_error() -> None:
    def ask(name: str, arguments: Any) -> str:
        return str(interrupt("May I?"))

    graph = graph_of(Fixed(call(5), "Done."), ask, checkpointer=InMemorySaver())
    with pytest.raises(TargetError, match="waits for a person"):
        talk_with(graph).send("Pay")


def test_a_graph_that_breaks_is_an_error() -> None:
    with pytest.raises(TargetError, match="agent_error"):
        talk_with(graph_of(Fixed(), refund)).send("Hi")


@tool
def pay(booking: str) -> str:
    """Pay money back."""
    return f"{booking} paid"


@tool
def ask_desk(question: str) -> str:
    """Let a graph of its own look after it."""
    inner = steps_of([pay], "pay", {"booking": question})
    return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)


@tool
def ask_quietly(question: str) -> str:
    """Use another tool and say nothing of it in any message."""
    return f"desk: {pay.invoke({'booking': question})}"


def steps_of(tools: Any, name: str, arguments: Any, tail: Any = None) -> Any:
    """A graph that calls one tool and then says what it said; its call ids are used again."""

    def ask(state: State) -> dict[str, Any]:
        last = state["messages"][-1]
        if isinstance(last, ToolMessage):
            return {"messages": [AIMessage(f"Done: {last.content}")]}
        return {
            "messages": [AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "c"}])]
        }

    made = StateGraph(State)
    made.add_node("ask", ask)
    made.add_node("act", ToolNode(tools))
    made.add_node("tail", tail or (lambda state: {}))
    made.add_edge(START, "ask")
    made.add_conditional_edges("ask", lambda s: "act" if s["messages"][-1].tool_calls else "tail")
    made.add_edge("act", "ask")
    made.add_edge("tail", END)
    return made.compile()


def test_the_calls_of_messages_that_a_graph_takes_out_again_are_seen() -> None:
    def tail(state: State) -> dict[str, Any]:
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), state["messages"][-1]]}

    talk = talk_with(steps_of([pay], "pay", {"booking": "AB"}, tail))
    for _ in range(2):
        heard = talk.send("Pay")
        assert [(c.name, c.result) for c in heard.calls] == [("pay", "AB paid")]
        assert heard.text == "Done: AB paid"


@pytest.mark.parametrize(("outer", "inner"), [(ask_desk, "Done: "), (ask_quietly, "desk: ")])
def test_the_calls_that_a_tool_makes_are_seen(outer: Any, inner: str) -> None:
    talk = talk_with(steps_of([outer], outer.name, {"question": "AB"}))
    heard = talk.send("Pay")
    assert [(c.name, c.arguments, c.result) for c in heard.calls] == [
        (outer.name, {"question": "AB"}, f"{inner}AB paid"),
        ("pay", {"booking": "AB"}, "AB paid"),
    ]


def test_nothing_reaches_a_tracing_service(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_PATCH = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
        monkeypatch.setenv("LANGSMITH_API_KEY", "none")
        monkeypatch.setenv("LANGSMITH_ENDPOINT", place)
        graph = steps_of([pay], "pay", {"booking": "AB"})
        talk_with(graph).send("Pay")
        wait_for_all_tracers()
        assert sent == []
        graph.invoke({"messages": [("user", "Pay")]})  # it would have been seen
        wait_for_all_tracers()
        for _ in range(100):
            if sent:
                break
            sleep(0.1)
        wait_for_all_tracers()
        server.shutdown()
    assert sent


def test_what_langgraph_wrote_is_what_is_stored(request: pytest.FixtureRequest) -> None:
    """The messages of one turn, as the ordinary tests read them without LangGraph."""
    state = graph_of(Fixed(call(900), call(5), "Done."), refund).invoke(
        {"messages": [{"role": "user", "content": "Pay"}]}
    )
    messages = [m.model_dump(mode="json") for m in state["messages"]]
    for message in messages:
        message["id"] = None
    stored = {"tool": "langgraph", "version": version("langgraph"), "messages": messages}
    if request.config.getoption("--store", default=False):
        STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(STORED.read_text(encoding="utf-8"))
    assert calls_of_messages(kept["messages"]) == calls_of_messages(messages)


def test_the_tools_are_those_of_the_desk() -> None:
    assert "refunded" in desk_of(AIRLINE.version("v1").settings, {}).call(
        "refund", {"booking": "FX-4102", "amount": 5}
    )
