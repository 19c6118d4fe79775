"""A recorder for agents that run their tools out of sight.

It listens on this machine between an agent and the model that the agent asks, an OpenAI-compatible
endpoint. What the model proposes and what the tools bring back go through it, so the calls can be
told although the agent tells none::

    def connect(version, model):
        recorder = CallRecorder("https://api.example/v1")

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
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
)
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from safety_lib.adapters.reading import calls_of
from safety_lib.agent.backends.calls import CallsSpent, count_request
from safety_lib.agent.backends.wire import TooLong, bound
from safety_lib.records import Plant
from safety_lib.world.target import Called, TargetError

TIMEOUT = 600.0  # seconds for the model to say all that it says
LONGEST = 64_000_000  # bytes of an answer
_PIECE = 1 << 14
_NOT_PASSED_ON = frozenset(
    {"host", "content-length", "connection", "accept-encoding", "transfer-encoding"}
)


class CallRecorder:
    """Passes requests on to an endpoint and notes the tool calls of each conversation.

    Parameters
    ----------
    upstream : str
        Base URL of the endpoint that the agent would ask, such as ``http://localhost:8000/v1``.

    Examples
    --------
    >>> with CallRecorder("http://localhost:8000/v1") as recorder:
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

    def __enter__(self) -> CallRecorder:
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
    start: Callable[[int, Sequence[Plant], str], Any], recorder: CallRecorder
) -> Callable[[int, Sequence[Plant]], Any]:
    """Make an agent that runs its tools out of sight into one whose calls are heard.

    Parameters
    ----------
    start : callable
        ``start(seed, plants, base_url)`` begins a conversation of an agent that asks its model at
        that address, and returns what takes the user's words and returns text.
    recorder : CallRecorder
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


class _Noted:
    """A call that the model proposed, and its result once that went back."""

    def __init__(self, key: str, function: Mapping[str, Any]) -> None:
        self.key = key
        self.function = function
        self.result: str | None = None


class _Notes:
    """What went by in one conversation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[_Noted] = []
        self._told = 0
        self._unread = ""

    def unread(self, why: str) -> None:
        with self._lock:
            self._unread = self._unread or why

    def asked(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Note what the model proposed."""
        with self._lock:
            self._calls += [_Noted(str(call.get("id", "")), call["function"]) for call in calls]

    def answered(self, messages: Any) -> None:
        """Note which results go back to the model.

        The whole history goes back each time, and endpoints give a name twice: the newest result of
        a name belongs to its newest call.
        """
        results: dict[str, list[str]] = {}
        for said in messages if isinstance(messages, list) else ():
            if isinstance(said, Mapping) and said.get("role") == "tool":
                key = str(said.get("tool_call_id", ""))
                results.setdefault(key, []).append(_text_of(said.get("content")))
        with self._lock:
            for call in reversed(self._calls):
                if results.get(call.key):
                    newest = results[call.key].pop()
                    call.result = newest if call.result is None else call.result

    def take(self) -> tuple[Called, ...]:
        with self._lock:
            new, self._told = self._calls[self._told :], len(self._calls)
            unread, self._unread = self._unread, ""
        if unread:
            raise TargetError("unseen_calls", unread)
        for call in new:
            if call.result is None:
                raise TargetError(
                    "unseen_calls",
                    f"the result of {call.function.get('name')} never went back to the model",
                )
        return calls_of([_as_call(call.function, call.result or "") for call in new])


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


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Pass a question about the endpoint on."""
        self._pass_on(None)

    def do_POST(self) -> None:
        """Pass a request on, and note what it and its answer hold."""
        length = int(self.headers.get("Content-Length") or 0)
        self._pass_on(self.rfile.read(length))

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
            self.send_error(429)
            return
        if body is not None:
            self._read_request(notes, path, body)
        up = self.server.upstream
        opened = HTTPSConnection if up.scheme == "https" else HTTPConnection
        connection = opened(up.hostname, up.port, timeout=TIMEOUT)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_PASSED_ON}
        try:
            bound(connection, TIMEOUT, LONGEST)
            connection.request(self.command, f"{up.path.rstrip('/')}/{path}", body, kept)
            self._hand_back(notes, connection.getresponse())
        except (OSError, HTTPException, TooLong) as error:
            notes.unread(f"the model could not be asked: {type(error).__name__}")
            with suppress(OSError):  # the agent may have gone
                self.send_error(502)
        finally:
            connection.close()

    def _asks_the_model(self) -> bool:
        path = self.path.partition("?")[0]
        return self.command == "POST" and path.endswith("chat/completions")

    def _read_request(self, notes: _Notes, path: str, body: bytes) -> None:
        if not self._asks_the_model():
            notes.unread(f"the agent asks /{path}, and chat completions alone are read")
            return
        with suppress(ValueError, AttributeError):
            notes.answered(json.loads(body).get("messages"))

    def _hand_back(self, notes: _Notes, answer: HTTPResponse) -> None:
        self.send_response(answer.status)
        kind = answer.headers.get("Content-Type", "application/json")
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        streamed = kind.startswith("text/event-stream")
        whole, noted = b"", False
        while piece := _next(answer, len(whole)):
            whole += piece
            if streamed and not noted and b"[DONE]" in whole:
                # Whoever reads this goes on at once, and may ask again before the stream is closed.
                noted = self._note(notes, answer, whole)
            self.wfile.write(piece)
            self.wfile.flush()
        if answer.length:
            raise IncompleteRead(whole, answer.length)
        if not noted:
            self._note(notes, answer, whole)

    def _note(self, notes: _Notes, answer: HTTPResponse, whole: bytes) -> bool:
        """Note what the model proposed, or that it cannot be told."""
        if answer.status == 200 and self._asks_the_model():
            streamed = answer.headers.get("Content-Type", "").startswith("text/event-stream")
            try:
                notes.asked(_calls_in(_streamed(whole) if streamed else [_message_of(whole)]))
            except (ValueError, LookupError, TypeError, AttributeError):
                notes.unread("the model answered in a way that is not read")
        return True


def _next(answer: HTTPResponse, read: int) -> bytes:
    if read > LONGEST:
        raise TooLong
    return answer.read1(_PIECE)


def _message_of(body: bytes) -> Any:
    (choice,) = json.loads(body)["choices"]
    return choice["message"]


def _calls_in(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the calls that the model proposes; anything else than they is an error."""
    calls = []
    for message in messages:
        if message.get("function_call"):
            raise ValueError("calls as they were before they had names")
        for call in message.get("tool_calls") or ():
            if not isinstance(call["function"]["name"], str):
                raise ValueError("a call without a name")
            calls.append(call)
    return calls


def _streamed(body: bytes) -> list[Mapping[str, Any]]:
    """Put the pieces of a streamed message together again, as far as they are calls."""
    calls: dict[int, dict[str, Any]] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        if not line.startswith("data:") or line[5:].strip() == "[DONE]":
            continue
        for choice in json.loads(line[5:])["choices"]:
            delta = choice.get("delta") or {}
            if choice.get("index", 0) or delta.get("function_call"):
                raise ValueError("several answers, or calls as they were before they had names")
            for piece in delta.get("tool_calls") or ():
                made = {"id": "", "function": {"name": "", "arguments": ""}}
                call = calls.setdefault(int(piece.get("index", 0)), made)
                call["id"] = call["id"] or piece.get("id") or ""
                function = piece.get("function") or {}
                for part in ("name", "arguments"):
                    call["function"][part] += function.get(part) or ""
    return [{"tool_calls": list(calls.values())}]
