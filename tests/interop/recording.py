"""What each tracing tool records of the same conversation, as that tool writes it.

Run with the Python of an environment that has the tool: ``python recording.py pydantic-ai OUT``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

from loopback import ASKED, endpoint, read

TOOL = {
    "type": "function",
    "function": {
        "name": "read_ticket",
        "description": "Read a ticket.",
        "parameters": {
            "type": "object",
            "properties": {"ticket": {"type": "string"}},
            "required": ["ticket"],
        },
    },
}


def spans_by_opentelemetry() -> tuple[Any, Callable[[], list[Any]]]:
    """Return a provider, and what its console exporter prints of the spans."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, lambda: [json.loads(s.to_json()) for s in exporter.get_finished_spans()]


def of_pydantic_ai(url: str) -> list[Any]:
    """An agent of Pydantic AI with its own instrumentation, two runs with the history passed on."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    try:
        from pydantic_ai.models.instrumented import InstrumentationSettings
    except ImportError:
        from pydantic_ai import InstrumentationSettings

    provider, recorded = spans_by_opentelemetry()
    given: dict[str, Any] = {"tracer_provider": provider}
    number = os.environ.get("INSTRUMENTATION_VERSION")
    if number:
        given["version"] = int(number)
    if number == "1" and os.environ.get("EVENT_MODE"):
        given["event_mode"] = os.environ["EVENT_MODE"]
    settings = InstrumentationSettings(**given)
    model = OpenAIChatModel("made-up", provider=OpenAIProvider(base_url=url, api_key="none"))
    instrumented: dict[str, Any] = {}
    try:
        agent = Agent(model, system_prompt="You are a desk.", instrument=settings)
    except Exception:
        from pydantic_ai.capabilities import Instrumentation

        instrumented["capabilities"] = [Instrumentation(settings)]
        agent = Agent(model, system_prompt="You are a desk.", **instrumented)
    from pydantic_ai import ModelRetry

    @agent.tool_plain(retries=2)
    def read_ticket(ticket: str) -> str:
        """Read a ticket."""
        try:
            return read(ticket)
        except KeyError as error:
            raise ModelRetry(str(error)) from error

    history: Any = None
    with provider.get_tracer("desk").start_as_current_span("conversation"):
        for text in ASKED:
            history = agent.run_sync(text, message_history=history).all_messages()
    return recorded()


def _chat(client: Any, tracer: Any = None) -> None:
    messages: list[Any] = [{"role": "system", "content": "You are a desk."}]
    for text in ASKED:
        messages.append({"role": "user", "content": text})
        while True:
            done = client.chat.completions.create(model="made-up", messages=messages, tools=[TOOL])
            said = done.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                break
            for call in said.tool_calls:
                try:
                    result = read(**json.loads(call.function.arguments))
                except KeyError as error:
                    result = f"KeyError: {error}"
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def of_traceloop(url: str) -> list[Any]:
    """The OpenAI client under traceloop's instrumentation."""
    import openai
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    provider, recorded = spans_by_opentelemetry()
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    with provider.get_tracer("desk").start_as_current_span("conversation"):
        _chat(openai.OpenAI(base_url=url, api_key="none"))
    return recorded()


def of_openinference(url: str) -> list[Any]:
    """The OpenAI client under OpenInference's instrumentation, as Phoenix asks for it."""
    import openai
    from openinference.instrumentation.openai import OpenAIInstrumentor

    provider, recorded = spans_by_opentelemetry()
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    with provider.get_tracer("desk").start_as_current_span("conversation"):
        _chat(openai.OpenAI(base_url=url, api_key="none"))
    return recorded()


def of_openai_agents(url: str) -> list[Any]:
    """An agent of the OpenAI Agents SDK, its traces as its exporter sends them."""
    import agents
    import agents.tracing.processor_interface
    import openai

    sent: list[Any] = []

    class Exporter(agents.tracing.processor_interface.TracingExporter):
        def export(self, items: list[Any]) -> None:
            sent.extend(item.export() for item in items)

    agents.set_trace_processors([agents.tracing.processors.BatchTraceProcessor(Exporter())])

    @agents.function_tool
    def read_ticket(ticket: str) -> str:
        """Read a ticket."""
        return read(ticket)

    client = openai.AsyncOpenAI(base_url=url, api_key="none")
    kind = os.environ.get("AGENTS_API", "chat")
    by = agents.OpenAIChatCompletionsModel if kind == "chat" else agents.OpenAIResponsesModel
    agent = agents.Agent(
        name="desk",
        instructions="You are a desk.",
        model=by("made-up", client),
        tools=[read_ticket],
    )
    items: list[Any] = []
    with agents.trace("desk", group_id="g1"):
        for text in ASKED:
            items.append({"role": "user", "content": text})
            items = agents.Runner.run_sync(agent, items).to_input_list()
    agents.tracing.get_trace_provider().shutdown()
    return [item for item in sent if item]


def of_langsmith(url: str) -> list[Any]:
    """A graph of LangGraph under LangSmith's tracer, its runs as the service keeps them."""
    import langsmith
    from langchain_core.tools import tool
    from langchain_core.tracers.langchain import LangChainTracer
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import ToolNode, create_react_agent

    @tool
    def read_ticket(ticket: str) -> str:
        """Read a ticket."""
        return read(ticket)

    with service() as (address, sent):
        client = langsmith.Client(api_url=address, api_key="none", auto_batch_tracing=False)
        tracer = LangChainTracer(client=client, project_name="desk")
        model = ChatOpenAI(model="made-up", base_url=url, api_key="none")
        agent = create_react_agent(
            model, ToolNode([read_ticket], handle_tool_errors=True), prompt="You are a desk."
        )
        state: Any = {"messages": []}
        for text in ASKED:
            said = [*state["messages"], {"role": "user", "content": text}]
            config: Any = {"callbacks": [tracer], "metadata": {"thread_id": "t1"}}
            state = agent.invoke({"messages": said}, config)
        tracer.wait_for_futures()
    runs: dict[str, dict[str, Any]] = {}
    for path, body in sent:
        if path.startswith("/runs"):
            known = runs.setdefault(body.get("id") or path.rpartition("/")[2], {})
            known |= {name: value for name, value in body.items() if value is not None}
    return list(runs.values())


def of_langfuse(url: str) -> list[Any]:
    """The OpenAI client under Langfuse: spans of its version 3 and later."""
    from langfuse import Langfuse

    provider, recorded = spans_by_opentelemetry()
    with service() as (address, _):
        keys = {"public_key": "pk", "secret_key": "sk", "host": address}
        client = Langfuse(**keys, tracer_provider=provider)
        from langfuse.openai import OpenAI

        with client.start_as_current_observation(name="conversation"):
            _chat(OpenAI(base_url=url, api_key="none"))
        client.flush()
    return recorded()


def of_langfuse_2(url: str) -> list[Any]:
    """The OpenAI client under Langfuse's version 2: what it sends, as the service keeps it."""
    from langfuse import Langfuse
    from langfuse.decorators import langfuse_context, observe

    with service() as (address, sent):
        keys = {"public_key": "pk", "secret_key": "sk", "host": address}
        Langfuse(**keys)
        langfuse_context.configure(**keys)
        from langfuse.openai import OpenAI

        observe(name="conversation")(_chat)(OpenAI(base_url=url, api_key="none"))
        langfuse_context.flush()
    made: dict[str, dict[str, Any]] = {}
    for _, body in sent:
        for event in body.get("batch", []):
            kind, _, _ = event["type"].partition("-")
            told = {k: v for k, v in event["body"].items() if v is not None}
            made.setdefault(told["id"], {"type": kind.upper()}).update(told)
    (trace,) = (one for one in made.values() if one["type"] == "TRACE")
    trace.pop("type")
    trace["observations"] = [one for one in made.values() if one is not trace]
    return [trace]


@contextmanager
def service() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Serve what a tracing tool sends to, on loopback; yields its address and what was sent."""
    sent: list[tuple[str, Any]] = []

    class Service(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with suppress(ValueError):
                sent.append((self.path, json.loads(raw)))
            self.do_GET()

        do_PATCH = do_POST

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


RECORDERS: dict[str, tuple[str, Callable[[str], list[Any]]]] = {
    "pydantic-ai": ("pydantic-ai-slim", of_pydantic_ai),
    "traceloop": ("opentelemetry-instrumentation-openai", of_traceloop),
    "openinference": ("openinference-instrumentation-openai", of_openinference),
    "openai-agents": ("openai-agents", of_openai_agents),
    "langsmith": ("langsmith", of_langsmith),
    "langfuse": ("langfuse", of_langfuse),
    "langfuse-2": ("langfuse", of_langfuse_2),
}


def recorded_by(name: str) -> dict[str, Any]:
    """Hold the conversation and return what the tool recorded, with its version."""
    package, record = RECORDERS[name]
    with endpoint() as url:
        spans = record(url)
    return {"tool": package, "version": version(package), "spans": spans}


if __name__ == "__main__":
    print(json.dumps(recorded_by(sys.argv[1]), indent=1))
