"""The ``openai`` backend against a real server on the loopback interface that misbehaves."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety_lib.__main__ import main
from safety_lib.agent.backends import Backend, BackendError, open_backend
from safety_lib.agent.backends.openai import OpenAIChat, read_settings
from safety_lib.agent.backends.tool_calls import answer_schema, json_request, read_json_answer
from safety_lib.agent.loop import Agent
from safety_lib.records import Message, ToolCall
from safety_lib.report.summary import stress_lines
from safety_lib.rollout import conversation
from safety_lib.rollout.campaign import Run
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version
from safety_lib.world.versions import Version

pytest.importorskip("openai", reason="the openai client is not installed")

KEY = "sk-planted-0123456789abcdef"
FAST = {"retries": 2, "retry_seconds": 0.001, "retry_max_seconds": 0.05, "timeout_seconds": 5}
READ_FILE = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file. It must exist.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "description": "path of the file"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
PAY = {
    "type": "function",
    "function": {
        "name": "pay",
        "description": "Pay an amount.",
        "parameters": {
            "type": "object",
            "properties": {"amount": {"type": "number"}, "to": {"enum": ["a", "b"]}},
            "required": ["amount", "to"],
        },
    },
}
HELLO = [Message(role="system", content="Be brief."), Message(role="user", content="Hello")]

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the script of its server: the last entry answers all later requests."""

    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(self.body)
            self.server.keys.append(self.headers["Authorization"])
            script = self.server.script
            step = script.pop(0) if len(script) > 1 else script[0]
        step(self)

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Endpoint(ThreadingHTTPServer):
    """A server on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.script: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client left: some tests want just that

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def chat(endpoint: Endpoint) -> Iterator[Callable[..., OpenAIChat]]:
    opened: list[OpenAIChat] = []

    def make(**settings: Any) -> OpenAIChat:
        opened.append(OpenAIChat("tiny", FAST | settings))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def answers(message: Any, finish: str = "stop") -> Reply:
    body = {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}
    return lambda handler: handler.say(200, json.dumps(body).encode())


def says(text: str) -> Reply:
    return answers({"role": "assistant", "content": text})


def calls(name: str, arguments: Any) -> Reply:
    call = {"id": "x1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return answers({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")


def fails(status: int, text: str = "no", headers: dict[str, str] | None = None) -> Reply:
    body = json.dumps({"error": {"message": text}}).encode()
    return lambda handler: handler.say(status, body, headers)


def raw(body: bytes) -> Reply:
    return lambda handler: handler.say(200, body)


def hangs(handler: Handler) -> None:
    time.sleep(0.6)
    handler.close_connection = True


def drips(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        time.sleep(0.05)
    handler.close_connection = True


def closes(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    closes(handler)


def failure(backend: Backend, tools: Any = ()) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend.complete(HELLO, tools, seed=1)
    return caught.value


# --------------------------------------------------------------------------- what goes well


def test_a_reply_comes_back_and_the_request_says_it_all(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [says("Hi.")]
    backend = chat(temperature=0.2, max_tokens=33, caution=0.1)
    assert backend.complete(HELLO, [READ_FILE], seed=2**40 + 5) == Message(
        role="assistant", content="Hi."
    )
    assert endpoint.requests == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
            ],
            "tools": [READ_FILE],
            "temperature": 0.2,
            "max_tokens": 33,
            "seed": 5,
        }
    ]
    assert isinstance(backend, Backend)
    assert (backend.name, backend.concurrency) == ("openai:tiny", 8)


def test_tool_calls_go_out_and_come_back_in_the_openai_form(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [calls("read_file", '{"path": "a.txt"}'), calls("pay", {"amount": 2})]
    backend = chat()
    first = backend.complete(HELLO, [READ_FILE, PAY], seed=1)
    assert [(c.name, c.arguments) for c in first.tool_calls] == [("read_file", {"path": "a.txt"})]
    result = Message(role="tool", content="empty", tool_call_id=first.tool_calls[0].id)
    second = backend.complete([*HELLO, first, result], [READ_FILE, PAY], seed=1)
    assert second.tool_calls[0].arguments == {"amount": 2}
    sent = endpoint.requests[1]["messages"][2:]
    assert sent[0]["tool_calls"][0]["function"] == {
        "name": "read_file",
        "arguments": '{"path": "a.txt"}',
    }
    assert sent[1] == {
        "role": "tool",
        "content": "empty",
        "tool_call_id": sent[0]["tool_calls"][0]["id"],
    }


def test_call_ids_are_reproducible_and_differ_along_a_conversation(
    endpoint: Endpoint, chat: Any
) -> None:
    endpoint.script = [calls("read_file", '{"path": "a"}')]
    backend = chat()
    first = backend.complete(HELLO, [READ_FILE], seed=1).tool_calls[0].id
    assert backend.complete(HELLO, [READ_FILE], seed=1).tool_calls[0].id == first
    longer = [*HELLO, Message(role="user", content="again")]
    assert backend.complete(longer, [READ_FILE], seed=1).tool_calls[0].id != first
    assert first.isalnum()
    assert len(first) == 9


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_no_arguments_are_an_empty_object(endpoint: Endpoint, chat: Any, arguments: Any) -> None:
    endpoint.script = [calls("read_file", arguments)]
    assert chat().complete(HELLO, [READ_FILE], seed=1).tool_calls[0].arguments == {}


def test_a_refusal_is_text_that_the_agent_said(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [answers({"role": "assistant", "content": None, "refusal": "I cannot."})]
    assert chat().complete(HELLO, [], seed=1).content == "I cannot."


def test_trouble_that_passes_is_not_an_error(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [fails(429, headers={"Retry-After": "0"}), fails(503), says("Hi.")]
    assert chat().complete(HELLO, [], seed=1).content == "Hi."
    assert len(endpoint.requests) == 3
    assert endpoint.requests[0] == endpoint.requests[2]


def test_a_model_that_renames_max_tokens_is_asked_its_way(endpoint: Endpoint, chat: Any) -> None:
    hint = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    endpoint.script = [fails(400, hint), says("Hi.")]
    backend = chat(retries=0)
    assert backend.complete(HELLO, [], seed=1).content == "Hi."
    backend.complete(HELLO, [], seed=1)
    assert [r.get("max_completion_tokens") for r in endpoint.requests] == [None, 256, 256]
    assert "max_tokens" not in endpoint.requests[1]


def test_temperature_null_leaves_it_to_the_endpoint(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [says("Hi.")]
    chat(temperature=None).complete(HELLO, [], seed=1)
    assert "temperature" not in endpoint.requests[0]


def test_no_more_requests_at_once_than_the_settings_allow(endpoint: Endpoint, chat: Any) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def counted(handler: Handler) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        says("Hi.")(handler)

    endpoint.script = [counted]
    backend = chat(concurrency=2)
    threads = [
        threading.Thread(target=backend.complete, args=(HELLO, []), kwargs={"seed": i})
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoint.requests) == 8
    assert most == 2


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("reply", "kind", "asked"),
    [
        (fails(429), "rate_limit", 3),
        (fails(429, headers={"Retry-After": "3600"}), "rate_limit", 3),
        (fails(429, headers={"retry-after-ms": "nan"}), "rate_limit", 3),
        (fails(500), "server_error", 3),
        (fails(503), "server_error", 3),
        (fails(409), "server_error", 3),
        (fails(408), "timeout", 3),
        (closes, "connection", 3),
        (breaks_off, "connection", 3),
        (raw(b"{broken"), "bad_response", 3),
        (raw(b"\xff\xfe"), "bad_response", 3),
        (raw(b"[" * 100_000), "bad_response", 3),
        (raw(b""), "bad_response", 3),
        (raw(b"[]"), "bad_response", 3),
        (raw(b'{"choices": []}'), "bad_response", 3),
        (raw(b'{"choices": null}'), "bad_response", 3),
        (raw(b'{"choices": [{"message": null}]}'), "bad_response", 3),
        (raw(b'{"error": {"message": "overloaded"}}'), "bad_response", 3),
        (answers({"content": None}), "bad_response", 1),
        (answers({"content": ""}, "length"), "bad_response", 1),
        (answers({"content": None}, "content_filter"), "bad_response", 1),
        (calls("read_file", '{"path": "half a \\ud800 pair"}'), "bad_response", 1),
        (calls("read_file", '{"path":'), "bad_response", 1),
        (calls("read_file", "[1]"), "bad_response", 1),
        (calls("read_file", '{"path": NaN}'), "bad_response", 1),
        (calls("read_file", '{"path": 1e999}'), "bad_response", 1),
        (calls("read_file", {"path": float("inf")}), "bad_response", 1),
        (calls("rm_rf", "{}"), "unknown_tool", 1),
        (fails(400), "bad_request", 1),
        (fails(404), "bad_request", 1),
        (fails(422), "bad_request", 1),
        (fails(401), "auth", 1),
        (fails(403), "auth", 1),
    ],
)
def test_every_failure_is_an_error_of_a_known_kind_after_bounded_retries(
    endpoint: Endpoint, chat: Any, reply: Reply, kind: str, asked: int
) -> None:
    endpoint.script = [reply]
    start = time.monotonic()
    error = failure(chat(), [READ_FILE])
    assert error.kind == kind
    assert len(endpoint.requests) == asked
    assert time.monotonic() - start < 3
    assert "\n" not in str(error)
    assert pickle.loads(pickle.dumps(error)).kind == kind


@pytest.mark.parametrize("reply", [hangs, drips])
def test_a_slow_endpoint_is_a_timeout(endpoint: Endpoint, chat: Any, reply: Reply) -> None:
    endpoint.script = [reply]
    start = time.monotonic()
    error = failure(chat(timeout_seconds=0.15, retries=1))
    assert error.kind == "timeout"
    assert len(endpoint.requests) == 2
    assert time.monotonic() - start < 2


def test_an_endless_answer_is_cut(
    endpoint: Endpoint, chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safety_lib.agent.backends.openai.MAX_BODY", 100_000)
    endpoint.script = [raw(b" " * 1_000_000)]
    assert "100,000 bytes" in failure(chat()).detail


def test_nobody_listening_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    backend = OpenAIChat("tiny", FAST)
    error = failure(backend)
    backend.close()
    assert error.kind == "connection"
    assert "asked 3 times" in error.detail


def test_without_a_key_the_message_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BackendError, match="OPENAI_API_KEY is not set") as caught:
        open_backend("openai:tiny", {})
    assert caught.value.kind == "auth"


def test_without_the_client_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(BackendError, match=r"pip install 'agentic-safety-notebooks\[openai\]'"):
        OpenAIChat("tiny", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_seconds": 0}, "model setting timeout_seconds"),
        ({"concurrency": 0}, "model setting concurrency"),
        ({"tool_protocol": "xml"}, "model setting tool_protocol"),
        ({"max_tokens": "many"}, "model setting max_tokens"),
    ],
)
def test_an_impossible_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(settings)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_key_that_the_endpoint_quotes_is_not_passed_on(
    endpoint: Endpoint, chat: Any, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    quoted = f"Incorrect API key {KEY} (Bearer {KEY}), hint {KEY[:9]}***{KEY[-4:]}"
    endpoint.script = [fails(status, quoted)]
    error = failure(chat())
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert KEY not in shown
    assert KEY[:9] not in shown
    assert error.__context__ is None
    assert error.__cause__ is None
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("safety_lib", "openai"))]
    assert KEY not in "".join(ours)


@pytest.mark.parametrize("key", ["sk-sch\u00f6n-1234", "sk-line\nbreak-1234"])
def test_a_key_that_no_header_can_carry_is_not_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    endpoint.script = [says("Hi.")]
    backend = OpenAIChat("tiny", FAST)
    error = failure(backend)
    backend.close()
    assert error.kind in ("auth", "connection")
    assert "1234" not in "".join(traceback.format_exception(error))


def test_a_password_in_the_address_is_not_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = endpoint.server_address[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:hunter2@127.0.0.1:{port}/v1")
    endpoint.script = [fails(500)]
    backend = OpenAIChat("tiny", FAST)
    error = failure(backend)
    backend.close()
    assert "hunter2" not in str(error)
    assert "127.0.0.1" in str(error)


# --------------------------------------------------------------------------- the JSON protocol


def test_the_json_protocol_says_tools_in_plain_messages(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [says('{"tool": "read_file", "arguments": {"path": "a"}}')]
    backend = chat(tool_protocol="json")
    first = backend.complete(HELLO, [READ_FILE, PAY], seed=1)
    assert [str(call) for call in first.tool_calls] == ["read_file(path='a')"]
    result = Message(role="tool", content="empty", tool_call_id=first.tool_calls[0].id)
    backend.complete([*HELLO, first, result], [READ_FILE, PAY], seed=1)
    before, after = (request["messages"] for request in endpoint.requests)
    assert "tools" not in endpoint.requests[0]
    assert before == after[: len(before)], "a server's prompt cache reads the start once"
    assert after[len(before) :] == [
        {"role": "assistant", "content": '{"tool": "read_file", "arguments": {"path": "a"}}'},
        {"role": "user", "content": "Result of read_file: empty\nTell the user with tool none."},
    ]
    system = before[0]["content"].splitlines()
    assert system[0] == "Be brief."
    assert system[-2:] == [
        'Read a file: {"tool": "read_file", "arguments": {"path": "<path>"}}',
        'Pay an amount: {"tool": "pay", "arguments": {"amount": "<amount>", "to": "<to>"}}',
    ]


def test_the_schema_has_one_alternative_per_tool_with_bounded_strings() -> None:
    read, pay, talk = answer_schema([READ_FILE, PAY], 100)["anyOf"]
    assert read["properties"]["tool"] == {"const": "read_file"}
    assert read["properties"]["arguments"]["properties"] == {
        "path": {"type": "string", "maxLength": 50}
    }
    assert pay["properties"]["arguments"]["properties"]["to"] == {"enum": ["a", "b"]}
    assert talk["properties"] == {
        "tool": {"const": "none"},
        "reply": {"type": "string", "minLength": 1, "maxLength": 84},
    }


def test_without_tools_the_json_protocol_is_plain_chat(endpoint: Endpoint, chat: Any) -> None:
    endpoint.script = [says("Hi.")]
    assert chat(tool_protocol="json").complete(HELLO, [], seed=1).content == "Hi."
    assert "response_format" not in endpoint.requests[0]


def test_text_beside_a_call_and_several_calls_stay_in_the_history() -> None:
    history = Message(
        role="assistant",
        content="One moment.",
        tool_calls=tuple(ToolCall(id=i, name="pay", arguments={"amount": 1}) for i in "ab"),
    )
    chat = json_request([history], [PAY], 64)["messages"]
    assert chat[-1]["content"].count("\n") == 2
    assert chat[0]["role"] == "system", "the tools are told even when the system prompt has left"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "bad_response"),
        ("Sure!", "bad_response"),
        ('{"tool": "read_file", "arguments": {"path": "a', "bad_response"),
        ("[]", "bad_response"),
        ('{"tool": 3}', "bad_response"),
        ('{"tool": "none", "reply": 3}', "bad_response"),
        ('{"tool": "read_file", "arguments": []}', "bad_response"),
        ('{"tool": "rm", "arguments": {}}', "unknown_tool"),
        ('{"tool": "none", "reply": "\\ud800"}', "bad_response"),
        ("[" * 100_000, "bad_response"),
    ],
)
def test_an_answer_outside_the_protocol_is_an_error(text: str, kind: str) -> None:
    with pytest.raises(BackendError) as caught:
        read_json_answer(text, ["read_file"], "")
    assert caught.value.kind == kind


def test_a_tool_with_the_name_of_no_tool_is_refused() -> None:
    tool = {"type": "function", "function": {"name": "none"}}
    with pytest.raises(BackendError, match="cannot offer a tool named none"):
        json_request(HELLO, [tool], 64)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ANSWERS = (
    JSON.map(json.dumps)
    | st.text()
    | st.fixed_dictionaries(
        {"tool": st.sampled_from(["none", "read_file", "other"]) | JSON},
        optional={"reply": JSON, "arguments": JSON},
    ).map(json.dumps)
)


@given(ANSWERS)
def test_whatever_a_model_writes_is_a_message_or_a_backend_error(text: str) -> None:
    try:
        message = read_json_answer(text, ["read_file"], "")
    except BackendError as error:
        assert error.kind in ("bad_response", "unknown_tool")
    else:
        assert message.role == "assistant"
        assert json.loads(message.model_dump_json())


# --------------------------------------------------------------------------- a whole campaign


@pytest.fixture
def hurried(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Version]:
    """The version in production, asking again once and without a pause."""
    agents: dict[Any, Agent] = {}
    monkeypatch.setattr(conversation, "_targets", agents)  # those of another test know its endpoint
    monkeypatch.setattr(OpenAIChat, "_delay", lambda *_: 0.001)
    settings = {"model.retries": 1, "model.timeout_seconds": 0.25}
    yield load_version("northwind/v1").having(settings, name="v1")
    for agent in agents.values():
        cast(OpenAIChat, agent.backend).close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "kind", "asked"),
    [
        (fails(429), "rate_limit", 2),
        (fails(500), "server_error", 2),
        (hangs, "timeout", 2),
        (raw(b"{broken"), "bad_response", 2),
        (raw(b'{"choices": []}'), "bad_response", 2),
        (closes, "connection", 2),
        (calls("rm_rf", "{}"), "unknown_tool", 1),
    ],
    ids=["429", "500", "slow", "broken_json", "no_choices", "closed", "unknown_tool"],
)
def test_a_campaign_against_a_bad_endpoint_finishes_and_says_how_many_and_why(
    endpoint: Endpoint, hurried: Version, reply: Reply, kind: str, asked: int
) -> None:
    endpoint.script = [reply]
    found = discover(
        hurried, hurried, run=Run(model="openai:tiny"), rollouts=4, attacker="static", max_turns=2
    )
    assert len(endpoint.requests) == 2 * 4 * asked  # the campaign, and everything asked once
    summary = found.summary[0]
    assert (summary.errors, summary.rollouts) == (4, 4)
    assert summary.failures == summary.safe == summary.undetermined == 0
    assert sum(summary.error_reasons.values()) == 4
    assert all(reason.startswith(f"{kind}: ") for reason in summary.error_reasons)
    told = "\n".join(stress_lines(found.artifact(), "artifacts"))
    assert "4 of 4 conversations are errors" in told
    assert f"4 x {kind}: " in told
    assert KEY not in told
    assert found.survival[0].turn == ()  # what did not happen is no evidence of safety


@pytest.mark.slow
def test_errors_amid_answers_are_counted_apart(endpoint: Endpoint, hurried: Version) -> None:
    def some(handler: Handler) -> None:
        broken = handler.body["seed"] % 3 == 0
        (fails(500) if broken else says("I cannot do that."))(handler)

    endpoint.script = [some]
    summaries = [
        discover(
            hurried,
            hurried,
            run=Run(model="openai:tiny"),
            rollouts=12,
            attacker="static",
            max_turns=3,
        ).summary[0]
        for _ in range(2)
    ]
    assert summaries[0] == summaries[1]  # whatever the order in which threads were answered
    assert 0 < summaries[0].errors < 12
    assert summaries[0].safe == 12 - summaries[0].errors


def test_the_command_says_how_many_and_why(
    endpoint: Endpoint, hurried: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.script = [fails(503, "overloaded"), fails(429, "slow down")]
    file = tmp_path / "hurried.yaml"
    file.write_text(json.dumps(hurried.model_dump(mode="json")), encoding="utf-8")
    arguments = ["--rollouts", "3", "--max-turns", "1", "--artifacts", str(tmp_path / "a")]
    versions = ["--baseline", str(file), "--candidate", str(file), "--model", "openai:tiny"]
    assert main(["stress", *arguments, *versions]) == 3
    told, error = capsys.readouterr()
    assert "every conversation of v1 is an error" in error
    assert "v1: 3 of 3 conversations are errors" in told
    assert "3 x rate_limit: 127.0.0.1" in told
    assert "slow down" in told
    assert "0 failures in 3 conversations" in told
