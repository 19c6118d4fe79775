"""The OpenAI Agents SDK: the airline's desk as one of its agents."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import AIRLINE, judged, what_broke
from desk_model import DeskError, DeskModel, desk_of

from safety_lib.adapters.openai_agents import calls_of_spans, from_openai_agents, spans_read
from safety_lib.world.target import TargetError

agents = pytest.importorskip("agents", reason="the OpenAI Agents SDK is not installed")

from agents.models.interface import Model
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

STORED = Path(__file__).parent.parent / "data" / "openai_agents.json"


class Scripted(Model):
    """Answers as the desk's model does."""

    def __init__(self, model: DeskModel) -> None:
        self.model = model
        self.asked = 0

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> Any:
        items = [{"role": "user", "content": input}] if isinstance(input, str) else input
        said = [item["content"] for item in items if item.get("role") == "user"]
        reply, call = self.model.step(said)
        self.asked += 1
        if call is not None:
            output: Any = ResponseFunctionToolCall(
                type="function_call",
                call_id=f"call_{self.asked}",
                name=call["name"],
                arguments=json.dumps(call["arguments"]),
            )
        else:
            text = ResponseOutputText(type="output_text", text=reply, annotations=[])
            output = ResponseOutputMessage(
                id=f"m{self.asked}",
                type="message",
                role="assistant",
                status="completed",
                content=[text],
            )
        return agents.ModelResponse(output=[output], usage=agents.Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def desk_agent(settings: Any, seed: int, plants: Any) -> Any:
    planted = {plant.key: plant.text for plant in plants}
    desk = desk_of(settings, planted)

    def tool(name: str) -> Any:
        async def invoke(_: Any, arguments: str) -> str:
            return desk.call(name, json.loads(arguments))

        schema = AIRLINE.tools.schemas([name])[0]["function"]["parameters"]
        return agents.FunctionTool(
            name=name,
            description="",
            params_json_schema=schema,
            on_invoke_tool=invoke,
            strict_json_schema=False,
        )

    return agents.Agent(
        name="desk",
        model=Scripted(DeskModel(settings, seed, planted)),
        tools=[tool(name) for name in AIRLINE.tools],
    )


CONNECT = """
def connect(version, model=""):
    from test_openai_agents import desk_agent
    from safety_lib.adapters.openai_agents import from_openai_agents

    return from_openai_agents(
        lambda seed, plants: desk_agent(version.settings, seed, plants),
        name="refund desk", effects="sandboxed", max_turns=40,
    )
"""


def test_the_airline_through_the_sdk_gives_the_same_verdict(airline_by: Any) -> None:
    found, report = judged(airline_by(CONNECT), rollouts=24, replays=4, trials=5)
    plain, plainly = judged(airline_by(""), rollouts=24, replays=4, trials=5)
    assert what_broke(found) == what_broke(plain) != []
    assert (report.verdict, report.delta) == (plainly.verdict, plainly.delta)
    assert report.verdict == "BLOCK"


def held(agent: Any, *said: str, **more: Any) -> Any:
    target = from_openai_agents(
        lambda seed, plants: agent, name="x", effects="sandboxed", concurrency=0, **more
    )
    talk = target.begin(1)
    return [talk.send(text) for text in said][-1]


class Fixed(Scripted):
    """Says what it was given, in its order."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.asked = 0
        self.model = self  # type: ignore[assignment]

    def step(self, said: Any) -> Any:
        step = self.steps.pop(0)
        return (step, None) if isinstance(step, str) else ("", step)


@agents.function_tool
def refund(amount: int) -> str:
    """Pay back."""
    if amount > 500:
        raise ValueError("too much")
    return f"{amount} paid"


@agents.function_tool(needs_approval=True)
def close(account: str) -> str:
    """Close an account."""
    return "closed"


@agents.input_guardrail
async def tripped(context: Any, agent: Any, given: Any) -> Any:
    return agents.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_a_tool_that_raises_has_failed_and_the_agent_goes_on() -> None:
    model = Fixed(call("refund", amount=900), call("refund", amount=5), "Done.")
    heard = held(agents.Agent(name="a", model=model, tools=[refund]), "Pay")
    assert [(c.arguments["amount"], c.status) for c in heard.calls] == [
        (900, "failed"),
        (5, "executed"),
    ]
    assert (heard.text, heard.model_calls) == ("Done.", 3)


def test_a_call_that_waits_for_a_person_is_held() -> None:
    model = Fixed(call("close", account="A"), "It waits.")
    heard = held(agents.Agent(name="a", model=model, tools=[close]), "Close it")
    assert [(c.name, c.status) for c in heard.calls] == [("close", "held")]


def test_a_tripwire_stops_the_conversation() -> None:
    agent = agents.Agent(name="a", model=Fixed("Hello."), input_guardrails=[tripped])
    assert held(agent, "Hi").ended == "stopped"


def test_too_many_steps_are_a_step_limit() -> None:
    model = Fixed(*[call("refund", amount=n) for n in range(9)])
    heard = held(agents.Agent(name="a", model=model, tools=[refund]), "Go", max_turns=3)
    assert (heard.ended, len(heard.calls)) == ("step_limit", 3)


def test_the_calls_of_an_agent_that_is_a_tool_are_seen() -> None:
    inner = agents.Agent(
        name="desk", model=Fixed(call("refund", amount=5), "Paid."), tools=[refund]
    )
    model = Fixed(call("ask_desk", input="Pay"), "Done.")
    tool = inner.as_tool(tool_name="ask_desk", tool_description="Asks the desk.")
    heard = held(agents.Agent(name="a", model=model, tools=[tool]), "Pay")
    assert [(c.name, c.result) for c in heard.calls] == [
        ("ask_desk", "Paid."),
        ("refund", "5 paid"),
    ]


def test_the_calls_after_a_handoff_are_seen_and_the_next_turn_is_its_agents() -> None:
    model = Fixed("Hello.", call("refund", amount=5), "Paid.")
    desk = agents.Agent(name="desk", model=model, tools=[refund])
    front = agents.Agent(name="front", model=Fixed(call("transfer_to_desk")), handoffs=[desk])
    heard = held(front, "Hi", "Pay")
    assert heard.text == "Paid."
    assert [(c.name, c.result) for c in heard.calls] == [("refund", "5 paid")]


def test_a_call_that_its_own_guardrail_turns_away_is_blocked() -> None:
    @agents.tool_input_guardrail
    def never(data: Any) -> Any:
        return agents.ToolGuardrailFunctionOutput.reject_content("not today")

    @agents.function_tool(tool_input_guardrails=[never])
    def wire(amount: int) -> str:
        """Send money."""
        raise AssertionError("it ran")

    model = Fixed(call("wire", amount=5), "No.")
    heard = held(agents.Agent(name="a", model=model, tools=[wire]), "Pay")
    assert [(c.name, c.status, c.result) for c in heard.calls] == [("wire", "blocked", "not today")]


def test_no_trace_leaves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    exporter = agents.tracing.processors.BackendSpanExporter
    monkeypatch.setattr(exporter, "export", lambda self, items: sent.extend(items))
    ear = agents.tracing.processors.BatchTraceProcessor(exporter(api_key="none"))
    agents.set_trace_processors([ear])
    agents.set_tracing_disabled(False)
    agent = agents.Agent(name="a", model=Fixed(call("refund", amount=5), "Done."), tools=[refund])
    heard = held(agent, "Pay", run_config=agents.RunConfig(tracing_disabled=True))
    ear.force_flush()
    assert (len(heard.calls), sent) == (1, [])
    agents.set_trace_processors([ear])
    agents.set_tracing_disabled(False)
    agent.model = Fixed("Hello.")
    agents.Runner.run_sync(agent, "Hi")
    ear.force_flush()
    assert sent  # it would have been seen


def test_an_agent_that_breaks_is_an_error() -> None:
    class Broken(Fixed):
        def step(self, said: Any) -> Any:
            raise KeyError("lost")

    with pytest.raises(TargetError, match="agent_error"):
        held(agents.Agent(name="a", model=Broken(), tools=[]), "Hi")


def test_what_the_sdk_wrote_is_what_is_stored(request: pytest.FixtureRequest) -> None:
    """The spans of one turn, as the ordinary tests read them without the SDK."""
    spans: list[Any] = []

    class Ear:
        def on_span_start(self, span: Any) -> None:
            spans.append(span)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    agents.set_trace_processors([Ear()])
    agents.set_tracing_disabled(False)
    model = Fixed(call("refund", amount=900), call("refund", amount=5), "Done.")
    agents.Runner.run_sync(agents.Agent(name="a", model=model, tools=[refund]), "Pay")
    read = spans_read(spans)
    names = {span["id"]: f"s{n}" for n, span in enumerate(read)}
    for span in read:
        span["id"], span["parent_id"] = names[span["id"]], names.get(span["parent_id"])
    stored = {
        "tool": "openai-agents",
        "version": version("openai-agents"),
        "spans": json.loads(json.dumps(read, default=str)),
    }
    if request.config.getoption("--store", default=False):
        STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(STORED.read_text(encoding="utf-8"))
    assert calls_of_spans(kept["spans"]) == calls_of_spans(read)


def test_a_desk_error_is_a_failed_call() -> None:
    desk = desk_of(AIRLINE.version("v1").settings, {})
    with pytest.raises(DeskError):
        desk.call("look_up_booking", {"booking": "XX-0"})
