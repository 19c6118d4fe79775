"""The recorder: it hears the calls of an agent that tells none, and says where it could not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from safety_lib.adapters.callables import from_callable
from safety_lib.adapters.recorder import CallRecorder, recorded
from safety_lib.agent.backends.calls import CallsSpent, counting_calls
from safety_lib.world.target import TargetError

KEY = "sk-planted-52b8aa01"


class Model(BaseHTTPRequestHandler):
    """Asks for a refund of what the user names, then says that it is done."""

    seen: list[str | None]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append(self.headers["Authorization"])
        newest = body["messages"][-1]
        if newest["role"] == "user" and newest["content"].isdigit():
            number = len(body["messages"])
            function = {"name": "refund", "arguments": json.dumps({"amount": newest["content"]})}
            calls = [{"id": f"c{number}", "type": "function", "function": function}]
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
        else:
            message = {"role": "assistant", "content": "Done."}
        self.send_response(200)
        self.send_header(
            "Content-Type", "text/event-stream" if body.get("stream") else "application/json"
        )
        self.end_headers()
        if body.get("stream"):
            for delta in pieces(message):
                self.wfile.write(b"data: " + json.dumps(delta).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
            time.sleep(body.get("lingers", 0))
        else:
            self.wfile.write(json.dumps({"choices": [{"message": message}]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


def pieces(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(message.get("tool_calls", ())):
        head = {"index": index, "id": call["id"], "function": {"name": call["function"]["name"]}}
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [head]}}]}
        for sign in call["function"]["arguments"]:
            part = {"index": index, "function": {"arguments": sign}}
            yield {"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}
    if message["content"]:
        yield {"choices": [{"index": 0, "delta": {"content": message["content"]}}]}


@pytest.fixture
def upstream() -> Iterator[str]:
    Model.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


class Agent:
    """Asks its model and runs its tools where nobody looks; it tells its reply alone."""

    def __init__(self, base_url: str, *, stream: bool = False, silent: bool = False) -> None:
        self.url, self.stream, self.silent = base_url, stream, silent
        self.messages: list[dict[str, Any]] = []
        self.ran: list[Any] = []

    def answer(self, text: str) -> str:
        self.messages.append({"role": "user", "content": text})
        while True:
            message = self.ask()
            self.messages.append(message)
            calls = message.get("tool_calls")
            if not calls or self.silent:
                return message["content"] or "Done."
            for call in calls:
                self.ran.append(json.loads(call["function"]["arguments"]))
                result = {
                    "role": "tool",
                    "tool_call_id": call["id"],
                    "content": f"paid {self.ran[-1]['amount']}",
                }
                self.messages.append(result)

    def ask(self) -> dict[str, Any]:
        body = json.dumps({"messages": self.messages, "stream": self.stream}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        try:
            with urlopen(Request(f"{self.url}/chat/completions", body, headers)) as answer:
                text = answer.read().decode()
        except HTTPError as error:
            error.close()
            raise OSError(error.code) from None
        if not self.stream:
            message: dict[str, Any] = json.loads(text)["choices"][0]["message"]
            return message
        calls: list[dict[str, Any]] = []
        content = ""
        for line in text.splitlines():
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                content += delta.get("content", "")
                for piece in delta.get("tool_calls", ()):
                    if "id" in piece:
                        function = {"name": piece["function"]["name"], "arguments": ""}
                        calls.append({"id": piece["id"], "function": function})
                    calls[-1]["function"]["arguments"] += piece["function"].get("arguments", "")
        return {"role": "assistant", "content": content, "tool_calls": calls}


@pytest.mark.parametrize("stream", [False, True])
def test_the_calls_that_are_heard_are_those_that_were_made(upstream: str, stream: bool) -> None:
    made: list[Agent] = []

    def start(seed: int, plants: Any, base_url: str) -> Any:
        made.append(Agent(base_url, stream=stream))
        return made[-1].answer

    with CallRecorder(upstream) as recorder:
        target = from_callable(
            recorded(start, recorder), name="desk", effects="sandboxed", sees_calls=True
        )
        one, other = target.begin(1), target.begin(2)
        heard = [one.send("5"), other.send("7"), one.send("Hello"), one.send("6")]
    told = [[call.arguments for call in turn.calls] for turn in heard]
    assert told == [[{"amount": "5"}], [{"amount": "7"}], [], [{"amount": "6"}]]
    assert [agent.ran for agent in made] == [[{"amount": "5"}, {"amount": "6"}], [{"amount": "7"}]]
    assert {call.result for turn in heard for call in turn.calls} == {"paid 5", "paid 6", "paid 7"}


def test_a_key_goes_through_and_is_not_kept(upstream: str) -> None:
    with CallRecorder(upstream) as recorder:
        Agent(recorder.base_url("a")).answer("5")
        assert Model.seen == [f"Bearer {KEY}"] * 2
        assert KEY not in repr(vars(recorder)) + repr(vars(recorder._notes["a"]))


def test_a_call_without_a_result_is_no_call_that_is_known_to_have_run(upstream: str) -> None:
    with CallRecorder(upstream) as recorder:
        Agent(recorder.base_url("a"), silent=True).answer("5")
        with pytest.raises(TargetError, match="the result of refund never went back"):
            recorder.calls("a")
        assert recorder.calls("a") == ()


def test_what_is_not_read_is_said(upstream: str) -> None:
    with CallRecorder(upstream) as recorder:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
        urlopen(Request(f"{recorder.base_url('a')}/responses", body)).read()
        with pytest.raises(TargetError, match="chat completions alone are read"):
            recorder.calls("a")


class Scripted(Model):
    """Answers with the next of some bytes, whatever it is asked."""

    script: list[bytes]
    kind = "application/json"

    def do_GET(self) -> None:
        self.say(b'{"data": []}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.say(type(self).script.pop(0))

    def say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def scripted() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def completion(**message: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", **message}}]}).encode()


def proposing(amount: int, key: str) -> bytes:
    function = {"name": "refund", "arguments": json.dumps({"amount": amount})}
    return completion(content=None, tool_calls=[{"id": key, "function": function}])


@pytest.mark.parametrize("key", ["call_0", ""])
def test_calls_that_an_endpoint_names_alike_are_all_heard(scripted: str, key: str) -> None:
    done = completion(content="Done.")
    Scripted.script = [proposing(1, key), proposing(2, key), done, proposing(3, key), done]
    with CallRecorder(scripted) as recorder:
        agent = Agent(recorder.base_url("a"))
        heard = []
        for _ in range(2):
            agent.answer("Pay")
            heard.append([call.result for call in recorder.calls("a")])
    assert heard == [["paid 1", "paid 2"], ["paid 3"]]


@pytest.mark.parametrize(
    "body",
    [
        b"{broken",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        completion(content="", function_call={"name": "refund", "arguments": "{}"}),
        completion(content="", tool_calls=[{"id": "1"}]),
        b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}',
    ],
)
def test_an_answer_that_is_not_read_is_no_answer_without_calls(scripted: str, body: bytes) -> None:
    Scripted.script = [body]
    with CallRecorder(scripted) as recorder:
        request = Request(f"{recorder.base_url('a')}/chat/completions", b'{"messages": []}')
        with urlopen(request) as answer:
            assert answer.read() == body
        with pytest.raises(TargetError, match="answered in a way that is not read"):
            recorder.calls("a")


def test_a_question_about_the_endpoint_is_passed_on_and_says_nothing(scripted: str) -> None:
    with CallRecorder(scripted) as recorder:
        with urlopen(f"{recorder.base_url('a')}/models") as answer:
            assert json.loads(answer.read()) == {"data": []}
        assert recorder.calls("a") == ()


def test_a_streamed_call_is_noted_before_its_end_is_passed_on(upstream: str) -> None:
    with CallRecorder(upstream) as recorder:
        agent = Agent(recorder.base_url("a"), stream=True)
        agent.messages.append({"role": "user", "content": "5"})
        body = json.dumps({"messages": agent.messages, "stream": True, "lingers": 0.2}).encode()
        with urlopen(Request(f"{agent.url}/chat/completions", body)) as answer:
            while b"[DONE]" not in answer.readline():
                pass
            with pytest.raises(TargetError, match="never went back"):  # so it is known of
                recorder.calls("a")


def test_a_model_that_is_not_there_is_an_error_of_the_conversation() -> None:
    with CallRecorder("http://127.0.0.1:9/v1") as recorder:
        with pytest.raises(OSError, match="502"):
            Agent(recorder.base_url("a")).answer("5")
        with pytest.raises(TargetError, match="the model could not be asked"):
            recorder.calls("a")


def test_an_asynchronous_agent_is_heard_too(upstream: str) -> None:
    def start(seed: int, plants: Any, base_url: str) -> Any:
        agent = Agent(base_url)

        async def answer(text: str) -> str:
            return agent.answer(text)

        return answer

    with CallRecorder(upstream) as recorder:
        target = from_callable(
            recorded(start, recorder), name="desk", effects="sandboxed", sees_calls=True
        )
        assert [call.name for call in target.begin(1).send("9").calls] == ["refund"]


def test_no_more_calls_are_passed_on_than_may_be_made(upstream: str) -> None:
    with CallRecorder(upstream) as recorder, counting_calls(3):
        target = from_callable(
            recorded(lambda seed, plants, url: Agent(url).answer, recorder),
            name="desk",
            effects="sandboxed",
            sees_calls=True,
        )
        target.begin(1).send("5")
        with pytest.raises(CallsSpent):
            target.begin(2).send("5")
        assert len(Model.seen) == 3


@pytest.mark.parametrize("upstream_url", ["", "desk", "ftp://x"])
def test_an_address_that_is_none_is_refused(upstream_url: str) -> None:
    with pytest.raises(ValueError, match="no http or https address"):
        CallRecorder(upstream_url)
