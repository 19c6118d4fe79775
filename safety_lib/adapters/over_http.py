"""An agent behind an HTTP endpoint of its own shape, as a target.

A template says what is sent each turn, paths say where the reply, the tool calls and the session
stand in the JSON that comes back::

    def connect(version, model):
        return over_http(
            "https://desk.example/chat",
            HttpShape(
                request={"message": "{text}", "session": "{session}", "mode": "test"},
                reply="answer.text",
                calls="answer.actions",
                session="session_id",
                headers={"Authorization": "Bearer ${DESK_TOKEN}"},
            ),
            name="desk", effects="sandboxed",
        )

Trouble of the endpoint is asked again a bounded number of times; what the agent answered never is.
Nor is a turn that the agent may have begun, where it remembers the conversation or its effects
last: it would act twice, and one of the two would be out of sight.
What stays wrong costs the conversation, as an error of the kind ``rate_limit``, ``server_error``,
``timeout``, ``connection``, ``bad_request``, ``auth`` or ``bad_response``. What headers take from
the environment stands in no error and no artifact.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from safety_lib.adapters.reading import heard_of
from safety_lib.agent.backends.answers import kept
from safety_lib.agent.backends.calls import count_request
from safety_lib.agent.backends.wire import Arrived, TooLong, Wire
from safety_lib.records import Plant, Record
from safety_lib.streams import uniform
from safety_lib.text import one_line, without_keys, without_keys_in
from safety_lib.world.target import Effects, Heard, Target, TargetError

MAX_ANSWER = 4_000_000  # bytes
FIRST_WAIT = 0.5  # seconds, about, before the second try
LONGEST_WAIT = 30.0  # seconds between two tries
SHORTEST_SECRET = 12  # a shorter one may be a word that an agent says
_NOT_BEGUN = frozenset({"rate_limit"})
_ASKED_AGAIN = _NOT_BEGUN | {"server_error", "timeout", "connection"}
_SHOWN = 4_000  # bytes, far more than is shown: no secret is cut in two
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_FILLED = re.compile(r"\{(text|seed|session|messages|plants)\}")


class HttpShape(Record):
    """How an endpoint is spoken to.

    Attributes
    ----------
    request : object
        What is sent, as JSON; in its texts ``{text}`` is what the user says, ``{seed}`` the seed of
        the conversation, ``{session}`` what the endpoint called it (empty at first) and
        ``{messages}`` all that was said so far, as chat messages, ``{plants}`` what is to stand in
        the agent's world beforehand. A text that is one of them alone takes the value itself.
    reply : str
        Where the reply stands, such as ``choices.0.message.content``.
    calls : str
        Where the list of tool calls stands, each ``{name, arguments, result, status}`` or in the
        shape of a chat completion; empty if the endpoint tells none. Where its last step alone is
        missing from an answer no call was made.
    session : str
        Where the endpoint says what it calls the conversation; empty if it does not.
    headers : Mapping
        Sent along; ``${NAME}`` in them comes from the environment.
    """

    request: Any
    reply: str = Field(min_length=1)
    calls: str = ""
    session: str = ""
    headers: dict[str, str] = Field(default_factory=dict)


def over_http(
    url: str,
    shape: HttpShape,
    *,
    name: str,
    effects: Effects | None,
    same_luck: bool = False,
    timeout: float = 60.0,
    retries: int = 3,
    concurrency: int = 8,
) -> Target:
    """Return a target that is spoken to over HTTP.

    Parameters
    ----------
    url : str
        Of the endpoint, http or https; each turn is one POST.
    shape : HttpShape
        What is sent, and where the answer stands.
    name : str
        What artifacts call the agent.
    effects : str or None
        ``sandboxed`` or ``live``; None does not say, and is then treated as live.
    same_luck : bool, optional
        Whether the same seed gives the same draws, whatever the version.
    timeout : float, optional
        Seconds for each try.
    retries : int, optional
        How often trouble of the endpoint is asked again.
    concurrency : int, optional
        How many conversations it serves at once, at least 1.

    Returns
    -------
    Target
        It sees calls if the shape has a place for them, and can hold none back.

    Raises
    ------
    ValueError
        If the URL is none or holds a password, the request has no place for what the user says, a
        number is impossible, or a header needs an environment variable that is not set.
    """
    place = urlsplit(url)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise ValueError(f"over_http: {one_line(url, 80)} is no http or https address")
    template = json.dumps(shape.request)
    faults = [
        ("@" in place.netloc, "the address holds a name or password; headers take it from ${NAME}"),
        (
            "{text}" not in template and "{messages}" not in template,
            "the request has neither {text} nor {messages}: the agent would hear nothing",
        ),
        (not 0 < timeout <= threading.TIMEOUT_MAX, "timeout is no positive number of seconds"),
        (retries < 0, "retries is below 0"),
    ]
    for wrong, fault in faults:
        if wrong:
            raise ValueError(f"over_http: {fault}")
    return _HttpTarget(
        _Endpoint(url, shape, timeout, retries),
        name=name,
        effects=effects,
        host="" if place.hostname in _LOOPBACK else place.hostname,
        same_luck=same_luck,
        concurrency=max(1, concurrency),
    )


class _HttpTarget:
    resumes = False
    holds_calls = False
    keeps_answers = True

    def __init__(
        self,
        endpoint: _Endpoint,
        *,
        name: str,
        effects: Effects | None,
        host: str,
        same_luck: bool,
        concurrency: int,
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.effects: Any = effects
        self.host = host
        self.same_luck = same_luck
        self.concurrency = concurrency
        self.sees_calls = bool(endpoint.shape.calls)

    def __repr__(self) -> str:
        return f"<{one_line(self.name, 60)} at {self.host or 'this machine'}>"

    def begin(self, seed: int, plants: Sequence[Plant] = ()) -> _HttpTalk:
        if plants and "{plants}" not in json.dumps(self.endpoint.shape.request):
            raise TargetError(
                "not_measured",
                "the request has no place for planted text; add {plants} to it, or leave "
                "`injection` out of goals.yaml",
            )
        return _HttpTalk(self.endpoint, seed, plants, lasting=self.effects != "sandboxed")


class _HttpTalk:
    def __init__(
        self, endpoint: _Endpoint, seed: int, plants: Sequence[Plant], *, lasting: bool
    ) -> None:
        self._endpoint = endpoint
        self._lasting = lasting
        self._seed = seed
        self._plants = [plant.model_dump(mode="json") for plant in plants]
        self._session = ""
        self._messages: list[dict[str, str]] = []

    def send(self, text: str) -> Heard:
        shape = self._endpoint.shape
        self._messages.append({"role": "user", "content": text})
        values = {
            "text": text,
            "seed": self._seed,
            "session": self._session,
            "messages": self._messages,
            "plants": self._plants,
        }
        again = _NOT_BEGUN if self._lasting or self._session else _ASKED_AGAIN
        answer = self._endpoint.ask(_filled(shape.request, values), self._seed, again)
        if shape.session:
            told = _at(answer, shape.session)
            self._session = self._session if told is None else str(told)
            if not self._session:  # every turn would begin another conversation
                raise TargetError("bad_response", f"the answer has no {shape.session}")
        calls = self._calls(answer)
        reply = _at(answer, shape.reply)
        if reply is None and calls:  # as in a chat completion
            reply = ""
        if not isinstance(reply, str):
            what = "nothing" if reply is None else f"a {type(reply).__name__}"
            raise TargetError("bad_response", f"{shape.reply} of the answer is {what}, not text")
        heard = heard_of((reply, calls), sees_calls=True)
        self._messages.append({"role": "assistant", "content": heard.text})
        return heard

    def _calls(self, answer: Any) -> Any:
        path = self._endpoint.shape.calls
        calls = _at(answer, path) if path else None
        above = path.rpartition(".")[0]
        if path and calls is None and not isinstance(_at(answer, above), Mapping):
            raise TargetError("bad_response", f"the answer has no {above or 'object'} with calls")
        return (
            list(map(_flat, calls)) if isinstance(calls, list) else [] if calls is None else calls
        )


class _Trouble(NamedTuple):
    kind: str
    detail: str
    after: float | None = None


class _Endpoint:
    """One address and the way to ask it; its headers are filled in when it is made."""

    def __init__(self, url: str, shape: HttpShape, timeout: float, retries: int) -> None:
        self.shape = shape
        self._url = url
        self._host = urlsplit(url).hostname or ""
        self._timeout = timeout
        self._retries = retries
        self._secrets: list[str] = []
        self._headers = {
            "Content-Type": "application/json",
            **{name: _VARIABLE.sub(self._variable, text) for name, text in shape.headers.items()},
        }
        self._wire = Wire()
        for name, text in self._headers.items():
            if not text.isascii() or not text.isprintable():
                raise ValueError(f"over_http: the value of {name} does not fit into a header")

    def ask(self, body: Any, seed: int, again: frozenset[str]) -> Any:
        """Return the JSON that the endpoint answers with."""
        data = json.dumps(body).encode()
        return kept([self._url, body], lambda: self._asked(data, seed, again))

    def _asked(self, data: bytes, seed: int, again: frozenset[str]) -> Any:
        count_request(len(data))
        for attempt in range(self._retries + 1):
            got = self._once(data)
            if not isinstance(got, _Trouble):
                return got
            if got.kind not in again or attempt == self._retries:
                asked = f" (asked {attempt + 1} times)" if attempt else ""
                raise TargetError(got.kind, f"{self._host}: {got.detail}{asked}")
            time.sleep(self._delay(attempt, seed, got.after))
        raise AssertionError("the last try returns or raises")

    def _delay(self, attempt: int, seed: int, after: float | None) -> float:
        # Conversations that were turned away together must not come back together.
        wanted = FIRST_WAIT * (1 << attempt) * (0.5 + uniform(seed, "http", attempt))
        return min(max(wanted, after or 0.0), LONGEST_WAIT)

    def _once(self, data: bytes) -> Any:
        try:
            answer = self._wire.post(
                self._url, self._headers, data, seconds=self._timeout, most=MAX_ANSWER
            )
        except TimeoutError:
            return _Trouble("timeout", f"no answer in {self._timeout:g} s")
        except TooLong:
            return _Trouble("bad_response", f"an answer of more than {MAX_ANSWER:,} bytes")
        except HTTPException as error:
            return _Trouble("connection", f"the answer is broken ({type(error).__name__})")
        except (OSError, ValueError) as error:
            return _Trouble("connection", self._public(str(error)))
        if answer.status >= 300:
            return self._refused(answer)
        try:
            # A key that the agent repeats is kept nowhere.
            return without_keys_in(json.loads(answer.body), *self._long_secrets)
        except (ValueError, RecursionError):
            shown = self._public(answer.body[:_SHOWN].decode("utf-8", "replace"))
            return _Trouble("bad_response", f"the answer is not JSON: {shown!r}")

    def _refused(self, answer: Arrived) -> _Trouble:
        status = answer.status
        said = self._public(answer.body[:_SHOWN].decode("utf-8", "replace"))
        kind = "bad_request"
        if status == 429:
            kind = "rate_limit"
        elif status >= 500 or status == 408:
            kind = "server_error"
        elif status in (401, 403):
            kind, said = "auth", ""  # the text of these quotes keys, whole or in part
        elif status < 400:
            said = "it sends to another address, which is not followed"
        after = None
        with suppress(ValueError):
            after = float(answer.headers.get("retry-after", ""))
        return _Trouble(kind, f"status {status}{said and ': '}{said}", after)

    def _variable(self, found: re.Match[str]) -> str:
        value = os.environ.get(found.group(1), "").strip()  # a file ends with a line
        if not value:
            raise ValueError(
                f"over_http: a header needs the environment variable {found.group(1)}; set it"
            )
        self._secrets.append(value)
        return value

    @property
    def _long_secrets(self) -> list[str]:
        return [secret for secret in self._secrets if len(secret) >= SHORTEST_SECRET]

    def _public(self, text: str) -> str:
        return one_line(without_keys(text, *self._secrets), 200)


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(template, str):
        whole = _FILLED.fullmatch(template)
        if whole:
            return values[whole.group(1)]
        return _FILLED.sub(lambda found: _as_text(values[found.group(1)]), template)
    if isinstance(template, Mapping):
        return {key: _filled(value, values) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(value, values) for value in template]
    return template


def _flat(call: Any) -> Any:
    """Return a call of a chat completion as one of ours; any other as it is."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # what is no JSON is refused where calls are read
            arguments = json.loads(arguments or "{}")
    rest = {key: value for key, value in call.items() if key in ("result", "status")}
    return {"name": function.get("name"), "arguments": arguments, **rest}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _at(tree: Any, path: str) -> Any:
    """Return what a path leads to in a tree of JSON, or None."""
    for step in path.split(".") if path else ():
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        elif isinstance(tree, list) and step.isdigit() and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree
