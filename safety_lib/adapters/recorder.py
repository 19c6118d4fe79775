"""A recorder for agents that run their tools out of sight.

It listens on this machine between an agent and the model that the agent asks, an OpenAI-compatible
endpoint. What the model proposes and what the tools bring back go through it, so the calls can be
told although the agent tells none::

    def connect(version, model):
        recorder = Recorder("https://api.example/v1")

        def start(seed, plants, base_url):
            return Desk(OpenAI(base_url=base_url), version.settings).answer

        return from_callable(
            recorded(start, recorder), name="desk", effects="sandboxed", sees_calls=True
        )

Nothing is written to disk, and a key goes through and is not kept. A call that was proposed and
whose result never went back is not known to have run: its conversation is an error. So is one in
which the agent asked its model in a way that is not read.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from safety_lib.adapters.reading import calls_of
from safety_lib.agent.backends.calls import CallsSpent, count_request
from safety_lib.records import Plant
from safety_lib.text import one_line
from safety_lib.world.target import Called, TargetError

TIMEOUT = 120.0  # seconds for the model to say something
_PIECE = 1 << 14
_NOT_PASSED_ON = frozenset(
    {"host", "content-length", "connection", "accept-encoding", "transfer-encoding"}
)


class Recorder:
    """Passes requests on to an endpoint and notes the tool calls of each conversation.

    Parameters
    ----------
    upstream : str
        Base URL of the endpoint that the agent would ask, such as ``http://localhost:8000/v1``.

    Examples
    --------
    >>> with Recorder("http://localhost:8000/v1") as recorder:
    ...     recorder.base_url("7").rpartition(":")[0], recorder.calls("7")
    ('http://127.0.0.1', ())
    """

    def __init__(self, upstream: str) -> None:
        place = urlsplit(upstream)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"recorder: {upstream!r} is no http or https address")
        self._notes: dict[str, _Notes] = {}
        self._lock = threading.Lock()
        self._server = _Server(place, self._notes_of)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="recorder", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def base_url(self, conversation: str) -> str:
        """Return the base URL that the agent has to ask in a conversation."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/c/{conversation}"

    def calls(self, conversation: str) -> tuple[Called, ...]:
        """Return the calls of a conversation since they were last asked for, in their order.

        Raises
        ------
        TargetError
            ``unseen_calls`` if a call's result never went back to the model, or the agent asked it
            in a way that is not read.
        """
        return self._notes_of(conversation).take()

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Stop the run where the agent failed because no more calls may be made.

        Raises
        ------
        CallsSpent
            In place of what the agent made of it.
        """
        try:
            yield
        except Exception:
            if self._server.spent is not None:
                raise self._server.spent from None
            raise

    def _notes_of(self, conversation: str) -> _Notes:
        with self._lock:
            return self._notes.setdefault(conversation, _Notes())


def recorded(
    start: Callable[[int, Sequence[Plant], str], Any], recorder: Recorder
) -> Callable[[int, Sequence[Plant]], Any]:
    """Make an agent that runs its tools out of sight into one whose calls are heard.

    Parameters
    ----------
    start : callable
        ``start(seed, plants, base_url)`` begins a conversation of an agent that asks its model at
        that address, and returns what takes the user's words and returns text.
    recorder : Recorder
        What listens.

    Returns
    -------
    callable
        For :func:`~safety_lib.adapters.callables.from_callable`.
    """
    numbers = count(1)

    def begin(seed: int, plants: Sequence[Plant]) -> Callable[[str], Any]:
        name = str(next(numbers))
        made = start(seed, plants, recorder.base_url(name))
        say = getattr(made, "send", made)

        async def later(reply: Any) -> Any:
            with recorder.limits():
                return await reply, recorder.calls(name)

        def send(text: str) -> Any:
            with recorder.limits():
                reply = say(text)
                return later(reply) if inspect.isawaitable(reply) else (reply, recorder.calls(name))

        return send

    return begin


class _Notes:
    """What went by in one conversation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Mapping[str, Any]] = {}
        self._done: dict[str, str] = {}
        self._known: set[str] = set()
        self._unread = ""

    def unread(self, why: str) -> None:
        with self._lock:
            self._unread = self._unread or why

    def asked(self, calls: list[Any]) -> None:
        """Note what the model proposed."""
        for call in calls:
            if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
                self.unread("the model proposed a call that is no call of a function")
                continue
            name = str(call.get("id", ""))
            if name in self._known:  # whose result came back could not be told
                self.unread(f"the model gave two calls the id {one_line(name, 60)!r}")
            with self._lock:
                self._known.add(name)
                self._asked[name] = call["function"]

    def answered(self, messages: Any) -> None:
        """Note which results go back to the model."""
        with self._lock:
            for said in messages if isinstance(messages, list) else ():
                if isinstance(said, Mapping) and said.get("role") == "tool":
                    name = str(said.get("tool_call_id", ""))
                    if name in self._asked:
                        self._done.setdefault(name, _text_of(said.get("content")))
                    elif name not in self._known:
                        self._unread = self._unread or (
                            f"a result came back of {one_line(name, 60)!r}, which no answer that "
                            "was heard proposed"
                        )

    def take(self) -> tuple[Called, ...]:
        with self._lock:
            asked, self._asked = self._asked, {}
            done, self._done = self._done, {}
            unread, self._unread = self._unread, ""
        if unread:
            raise TargetError("unseen_calls", unread)
        missing = [call.get("name") for name, call in asked.items() if name not in done]
        if missing:
            raise TargetError(
                "unseen_calls", f"the result of {missing[0]} never went back to the model"
            )
        return calls_of([_as_call(call, done[name]) for name, call in asked.items()])


def _as_call(function: Mapping[str, Any], result: str) -> dict[str, Any]:
    arguments: Any = function.get("arguments")
    with suppress(ValueError, TypeError):  # what is no JSON is refused where calls are read
        arguments = json.loads(arguments or "{}")
    return {"name": function.get("name"), "arguments": arguments, "result": result}


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return content if isinstance(content, str) else json.dumps(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: Any, notes_of: Callable[[str], _Notes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.spent: CallsSpent | None = None
        self.notes_of = notes_of

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: an agent that hung up knows it."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    _begun = False
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Pass a question about the endpoint on."""
        self._pass_on(None)

    def do_POST(self) -> None:
        """Pass a request on, and note what it and its answer hold."""
        length = self.headers.get("Content-Length") or "0"
        self._pass_on(self.rfile.read(int(length) if length.isdigit() else 0))

    def log_message(self, *_: Any) -> None:
        """Say nothing: a path names a conversation."""

    def _pass_on(self, body: bytes | None) -> None:
        _, _, rest = self.path.partition("/c/")
        name, _, path = rest.partition("/")
        notes = self.server.notes_of(name)
        try:
            count_request(len(body or b""))
        except CallsSpent as error:
            self.server.spent = error
            notes.unread("no more calls may be made")
            self._refuse(429)
            return
        if body is not None:
            self._read_request(notes, path, body)
        up = self.server.upstream
        opened = HTTPSConnection if up.scheme == "https" else HTTPConnection
        connection = opened(up.hostname, up.port, timeout=TIMEOUT)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_PASSED_ON}
        try:
            connection.request(self.command, f"{up.path.rstrip('/')}/{path}", body, kept)
            self._hand_back(notes, connection.getresponse())
        except (OSError, ValueError, HTTPException) as error:
            notes.unread(f"the model could not be asked: {type(error).__name__}")
            self._refuse(502)
        finally:
            connection.close()

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        if not self._begun:  # else the agent sees an answer that breaks off
            with suppress(OSError):  # it may have gone
                self.send_error(status)

    def _read_request(self, notes: _Notes, path: str, body: bytes) -> None:
        if not path.partition("?")[0].endswith("chat/completions"):
            notes.unread(f"the agent asks /{path}, and chat completions alone are read")
            return
        with suppress(ValueError, AttributeError):
            notes.answered(json.loads(body).get("messages"))

    def _hand_back(self, notes: _Notes, answer: HTTPResponse) -> None:
        self._begun = True
        self.send_response(answer.status)
        kind = answer.headers.get("Content-Type", "application/json")
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        streamed = kind.startswith("text/event-stream")
        whole = b""
        while piece := answer.read1(_PIECE) if streamed else answer.read():
            self.wfile.write(piece)
            self.wfile.flush()
            whole += piece
        if answer.status == 200:
            try:
                notes.asked(_streamed(whole) if streamed else _proposed(whole))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                if self.command == "POST":
                    notes.unread("the model's answer is no chat completion, so it is not read")


def _proposed(body: bytes) -> list[Any]:
    messages = [choice["message"] for choice in json.loads(body)["choices"]]
    if any(message.get("function_call") for message in messages):
        return [None]  # as endpoints told calls before they had ids
    return [call for message in messages for call in message.get("tool_calls") or ()]


def _streamed(body: bytes) -> list[Any]:
    """Put the pieces of streamed calls together again."""
    calls: dict[tuple[int, int], dict[str, Any]] = {}
    for choice, delta in _deltas(body):
        if delta.get("function_call"):
            return [None]
        for piece in delta.get("tool_calls") or ():
            place = (choice, int(piece.get("index", 0)))
            call = calls.setdefault(place, {"id": "", "function": {"name": "", "arguments": ""}})
            call["id"] = call["id"] or piece.get("id") or ""
            if piece.get("type", "function") not in ("function", None):
                call["function"] = None
                continue
            function = piece.get("function") or {}
            for part in ("name", "arguments"):
                call["function"][part] += function.get(part) or ""
    return list(calls.values())


def _deltas(body: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("data:") and "[DONE]" not in line:
            for choice in json.loads(line[5:]).get("choices") or ():
                yield int(choice.get("index", 0)), choice.get("delta") or {}
