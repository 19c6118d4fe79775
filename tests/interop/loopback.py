"""A model on loopback that speaks chat completions and responses, and a conversation to hold.

It asks for the ticket that the user named, and says what the tool said. What was held is known, so
what a tool records of it can be compared with it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ASKED = ("Please read ticket T-204.", "And what about T-999?")
TICKETS = {"T-204": "The customer asks for a refund."}
REPLIES = ("It says: The customer asks for a refund.", "I could not read it.")


def read(ticket: str) -> str:
    """Return what a ticket says, or fail as a tool does."""
    if ticket not in TICKETS:
        raise KeyError(f"no ticket {ticket}")
    return TICKETS[ticket]


def _said(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_said(part.get("text", "")) for part in content)
    return str(content)


def _next(last: dict[str, Any]) -> tuple[str, str]:
    """Return the ticket to ask for, or the words to say."""
    result = last.get("output") if last.get("type") == "function_call_output" else None
    if last.get("role") == "tool":
        result = last.get("content")
    if result is None:
        found = re.findall(r"T-\d+", _said(last.get("content")))
        return (found[-1], "") if found else ("", "Hello.")
    text = _said(result)
    return "", REPLIES[0] if TICKETS["T-204"] in text else REPLIES[1]


class _Model(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        items = asked.get("messages") or asked["input"]
        items = [{"role": "user", "content": items}] if isinstance(items, str) else items
        ticket, words = _next(items[-1])
        number = len(items)
        arguments = json.dumps({"ticket": ticket})
        if "messages" in asked:
            call = {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": "read_ticket", "arguments": arguments},
            }
            message = {"role": "assistant", "content": words or None}
            message |= {"tool_calls": [call]} if ticket else {}
            reason = "tool_calls" if ticket else "stop"
            told: dict[str, Any] = {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        else:
            call = {
                "type": "function_call",
                "id": f"fc_{number}",
                "call_id": f"call_{number}",
                "name": "read_ticket",
                "arguments": arguments,
                "status": "completed",
            }
            text = {"type": "output_text", "text": words, "annotations": []}
            said = {
                "type": "message",
                "id": f"msg_{number}",
                "role": "assistant",
                "status": "completed",
                "content": [text],
            }
            told = {
                "object": "response",
                "status": "completed",
                "output": [call if ticket else said],
                "parallel_tool_calls": False,
                "tool_choice": "auto",
                "tools": [],
                "usage": {
                    "input_tokens": 1,
                    "output_tokens": 1,
                    "total_tokens": 2,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens_details": {"reasoning_tokens": 0},
                },
            }
        made = {"id": f"r{number}", "created": 1, "created_at": 1, "model": "made-up", **told}
        body = json.dumps(made).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def endpoint() -> Iterator[str]:
    """Serve the model; yields its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
