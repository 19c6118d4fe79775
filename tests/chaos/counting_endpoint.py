"""A chat endpoint that answers as the simulated agent does, and counts what it is asked."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from safety_lib.agent.backends import open_backend
from safety_lib.records import Message, ToolCall
from safety_lib.world import load_version
from safety_lib.worlds.northwind.simulated import SimulatedModel

CONCURRENCY = 8  # calls at a time, by default


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the endpoint."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Endpoint

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.say(*self.server.reply(raw, self.headers["Authorization"]))

    def say(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Endpoint(ThreadingHTTPServer):
    """Answers while the block runs.

    Attributes
    ----------
    lock : threading.Lock
        Held while something is counted.
    environment : Mapping
        What a process needs to know to ask here.
    """

    daemon_threads = True
    key = "none"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self._brain = open_backend(
            "simulated",
            load_version("northwind/v2").settings["model"],
            {"simulated": SimulatedModel},
        )

    @property
    def environment(self) -> Mapping[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": self.key}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()

    def reply(self, raw: bytes, authorization: str) -> tuple[int, Any]:
        """Return status and body of the answer to a request."""
        return 200, completion(self.answer(json.loads(raw)))

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the simulated agent says; another seed is other luck."""
        messages = [message_of(wire) for wire in body["messages"]]
        reply = self._brain.complete(messages, body.get("tools", []), seed=body["seed"])
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in reply.tool_calls
        ]
        said: dict[str, Any] = {"role": "assistant", "content": reply.content}
        return said | ({"tool_calls": calls} if calls else {})

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Counting(Endpoint):
    """Counts each request; with a status other than 200 it refuses them all.

    Attributes
    ----------
    asked : Counter
        Request, byte for byte, to how often it came.
    status : int
        What it answers with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[bytes] = Counter()
        self.status = 200

    def reply(self, raw: bytes, authorization: str) -> tuple[int, Any]:
        with self.lock:
            self.asked[raw] += 1
        if self.status != 200:
            return self.status, {"error": {"message": "not now"}}
        return super().reply(raw, authorization)

    def wait_for(self, calls: int, run: subprocess.Popen[str]) -> None:
        """Wait until so many requests came, or a process ended."""
        for _ in range(30_000):
            if self.asked.total() >= calls or run.poll() is not None:
                return
            time.sleep(0.002)


def completion(message: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


def message_of(wire: Mapping[str, Any]) -> Message:
    calls = tuple(
        ToolCall(
            id=call["id"],
            name=call["function"]["name"],
            arguments=json.loads(call["function"]["arguments"]),
        )
        for call in wire.get("tool_calls", ())
    )
    return Message(
        role=wire["role"],
        content=wire["content"],
        tool_calls=calls,
        tool_call_id=wire.get("tool_call_id", ""),
    )
