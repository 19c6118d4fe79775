"""The ``openai`` backend: any OpenAI-compatible chat endpoint, through the official client.

Where it is and which key it takes come from the environment (``OPENAI_BASE_URL``,
``OPENAI_API_KEY``). Two protocols carry the tools:

``native``
    the endpoint's own tool calls;
``json``
    for a model whose chat template has no tools: they are listed in the system prompt and the
    answer is constrained by a JSON schema to one call or one reply.

What goes wrong becomes a :class:`~safety_lib.agent.backends.BackendError` of one of the kinds
``rate_limit``, ``server_error``, ``timeout``, ``connection``, ``bad_response``, ``unknown_tool``,
``bad_request`` and ``auth``. Trouble of the endpoint is asked again a bounded number of times.
What the *model* answered never is, however odd: asking until the answer is well-formed would
select among its answers and bias every rate that is measured on them.

No key is ever part of a message: an error quotes the endpoint only after the key and whatever looks
like one have been blanked, and carries no link to the client's own exception.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safety_lib.agent.backends import BackendError, ToolSchema
from safety_lib.agent.backends.answers import AnswerError, keeps
from safety_lib.agent.backends.calls import counted
from safety_lib.agent.backends.tool_calls import (
    NativeAnswer,
    OfAnswer,
    json_request,
    native_message,
    read_json_answer,
    read_native_answer,
    tool_names,
)
from safety_lib.agent.backends.wire import TooLong, Wire
from safety_lib.files import sha256_of
from safety_lib.records import Message, first_fault
from safety_lib.text import one_line, without_keys, without_keys_in

MAX_BODY = 4_000_000
SHORTEST_KEY = 12
_INSTALL = "the openai client is missing: pip install 'agentic-safety-notebooks[openai]'"


# --------------------------------------------------------------------------- settings


class ChatSettings(BaseModel):
    """The settings of a version's model that concern a chat endpoint; others are ignored.

    Only ``temperature``, ``max_tokens`` and ``tool_protocol`` change what the model says.
    ``temperature: null`` leaves it to the endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    temperature: float | None = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    tool_protocol: Literal["native", "json"] = "native"
    timeout_seconds: float = Field(default=60, gt=0)
    retries: int = Field(default=3, ge=0)
    retry_seconds: float = Field(default=0.5, ge=0)
    retry_max_seconds: float = Field(default=20, ge=0)
    concurrency: int = Field(default=8, ge=1)

    @property
    def of_model(self) -> dict[str, Any]:
        """The settings that influence an answer, for the key of a recorded one."""
        return self.model_dump(include={"temperature", "max_tokens", "tool_protocol"})


def read_settings(settings: Mapping[str, Any]) -> ChatSettings:
    """Check the settings of a version's model.

    Parameters
    ----------
    settings : Mapping
        The ``model`` section of a version file.

    Raises
    ------
    ValueError
        If a value is impossible; one line names the setting.

    Examples
    --------
    >>> read_settings({"retries": 0, "caution": 0.4}).retries
    0
    >>> read_settings({"retries": -1})
    Traceback (most recent call last):
    ...
    ValueError: model setting retries: input should be greater than or equal to 0
    """
    try:
        return ChatSettings.model_validate(dict(settings))
    except ValidationError as error:
        name, reason = first_fault(error)
    raise ValueError(f"model setting {name}: {reason[:1].lower()}{reason[1:]}")


# --------------------------------------------------------------------------- what endpoints say


class _Choice(OfAnswer):
    message: NativeAnswer
    finish_reason: str | None = None


class _Completion(OfAnswer):
    choices: list[_Choice] = Field(min_length=1)


class _Trouble(NamedTuple):
    """Why one request failed; collected instead of raised, so that no traceback links to it."""

    kind: str
    detail: str
    retry: bool
    after: float | None = None


# --------------------------------------------------------------------------- the backend


class OpenAIChat:
    """A chat model behind an OpenAI-compatible endpoint.

    Parameters
    ----------
    model : str
        The model's name at the endpoint.
    settings : Mapping
        The keys of :class:`ChatSettings`; any other key is ignored.
    client : openai.OpenAI, optional
        A client to use instead of one that is configured by the environment.
    name : str, optional
        What artifacts call it; ``openai:MODEL`` otherwise.

    Raises
    ------
    BackendError
        ``not_installed`` without the client library, ``auth`` without a key.
    ValueError
        If a setting is impossible.

    Examples
    --------
    >>> backend = OpenAIChat("some-model", {"timeout_seconds": 20})  # doctest: +SKIP
    >>> backend.complete([Message(role="user", content="Hello")], [], seed=1)  # doctest: +SKIP
    """

    keeps_answers = True

    def __init__(
        self,
        model: str,
        settings: Mapping[str, Any],
        *,
        client: Any = None,
        name: str = "",
    ) -> None:
        self.model = model
        self.name = name or f"openai:{model}"
        self.settings = read_settings(settings)
        self.concurrency = self.settings.concurrency
        self._client = client if client is not None else chat_client()
        key = str(self._client.api_key)
        # What stands in for a key where none is needed is short, and may be a word.
        self._keys = [key] if len(key) >= SHORTEST_KEY else []
        self._host = urlsplit(str(self._client.base_url)).hostname or "the endpoint"
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._limit = "max_tokens"

    @property
    def identity(self) -> list[Any]:
        """What decides an answer besides the request."""
        own = self.name.startswith("local:")  # on another port each time
        return [self.name, "" if own else str(self._client.base_url), self.settings.of_model]

    def close(self) -> None:
        """Close the connections to the endpoint."""
        self._client.close()

    @keeps(lambda backend: backend.identity)
    @counted
    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        """Return the model's next message.

        Parameters
        ----------
        messages : sequence of Message
            The conversation as the model sees it.
        tools : sequence of Mapping
            The tools on offer, in the OpenAI tools format.
        seed : int
            Passed on to the endpoint (its low 31 bits, which every endpoint takes).

        Raises
        ------
        BackendError
            Of one of the kinds in the module's docstring, after bounded retries.
        AnswerError
            If the model answered, but neither text nor a tool call.
        """
        protocol = self.settings.tool_protocol
        if protocol == "json" and tools:
            body = json_request(messages, tools, self.settings.max_tokens)
        else:
            body = {"messages": [native_message(message) for message in messages]}
            if tools:
                body["tools"] = [dict(tool) for tool in tools]
        body |= {"model": self.model, "seed": seed % 2**31}
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        with self._slots:
            choice = self._ask(body, seed)
        answer = choice.message
        empty = not answer.tool_calls and not answer.content and answer.refusal is None
        if empty and (answer.content is None or choice.finish_reason != "stop"):
            why = f"neither text nor a tool call (finish_reason={one_line(choice.finish_reason)})"
            raise AnswerError("bad_response", f"{self._host}: {why}")
        offered = tool_names(tools)
        unique = sha256_of([*(message.model_dump(mode="json") for message in messages), seed])
        if protocol == "json" and tools:
            return read_json_answer(answer.content or "", offered, unique)
        return read_native_answer(answer, offered, unique)

    def _ask(self, body: dict[str, Any], seed: int) -> _Choice:
        attempt = 0
        while True:
            got = self._once({**body, self._limit: self.settings.max_tokens})
            if not isinstance(got, _Trouble):
                return got
            if got.kind == "bad_request" and self._renames_the_limit(got.detail):
                continue
            if not got.retry or attempt >= self.settings.retries:
                asked = f" (asked {attempt + 1} times)" if attempt else ""
                raise BackendError(got.kind, f"{self._host}: {got.detail}{asked}")
            time.sleep(self._delay(attempt, seed, got.after))
            attempt += 1

    def _renames_the_limit(self, detail: str) -> bool:
        """Newer models know the limit on an answer by another name; it means the same."""
        renamed = self._limit == "max_tokens" and "max_completion_tokens" in detail
        if renamed:
            self._limit = "max_completion_tokens"
        return renamed

    def _delay(self, attempt: int, seed: int, after: float | None) -> float:
        # Conversations that were turned away together must not come back together; the spread is
        # taken from the seed, so that no random generator is needed for it.
        spread = 0.5 + int(sha256_of([attempt, seed])[:4], 16) / 0x1FFFE
        wanted = self.settings.retry_seconds * (1 << attempt) * spread
        return min(max(wanted, after or 0.0), self.settings.retry_max_seconds)

    def _once(self, body: dict[str, Any]) -> _Choice | _Trouble:
        openai = import_openai()
        seconds = self.settings.timeout_seconds
        try:
            got = self._client.chat.completions.with_raw_response.create(**body, timeout=seconds)
            raw = got.http_response.content
        except openai.APIStatusError as error:
            return self._refused(error.status_code, error.response)
        except UnicodeEncodeError:
            return _Trouble("auth", "the key in OPENAI_API_KEY does not fit into a header", False)
        except openai.APIConnectionError as error:
            return self._unheard(error.__cause__ or error)
        except openai.OpenAIError as error:
            return _Trouble("bad_request", f"the client refuses ({type(error).__name__})", False)
        except Exception as error:  # no shape of an answer ends more than its conversation
            return self._unheard(error)
        return self._parse(raw)

    def _unheard(self, error: BaseException) -> _Trouble:
        name = type(error).__name__
        if isinstance(error, TooLong):
            return _Trouble("bad_response", f"more than {MAX_BODY:,} bytes", False)
        if isinstance(error, TimeoutError) or "Timeout" in name:
            late = f"no complete answer in {self.settings.timeout_seconds:g} s"
            return _Trouble("timeout", late, True)
        return _Trouble("connection", f"no connection or a broken one ({name})", True)

    def _refused(self, status: int, response: Any) -> _Trouble:
        if status in (401, 403):
            # The text of these quotes keys, whole or in part: it is not repeated at all.
            return _Trouble("auth", f"HTTP {status}: the key in OPENAI_API_KEY is refused", False)
        if 300 <= status < 400:
            elsewhere = "it sends to another address, which is not followed; see OPENAI_BASE_URL"
            return _Trouble("bad_request", f"HTTP {status}: {elsewhere}", False)
        kind, retry = "bad_request", False
        if status == 429:
            kind, retry = "rate_limit", True
        elif status == 408:
            kind, retry = "timeout", True
        elif status == 409 or status >= 500:
            kind, retry = "server_error", True
        said = self._public(_text_of(response))
        after = _retry_after(response.headers)
        return _Trouble(kind, f"HTTP {status}{': ' if said else ''}{said}", retry, after)

    def _parse(self, raw: bytes) -> _Choice | _Trouble:
        try:
            # An endpoint that repeats the key, in an answer as in an error, must not get it kept.
            tree = without_keys_in(json.loads(raw), *self._keys)
            return _Completion.model_validate(tree).choices[0]
        except ValidationError:
            shown = self._public(raw.decode(errors="replace"))
            return _Trouble("bad_response", f"no chat completion in the answer: {shown}", True)
        except (ValueError, RecursionError):
            shown = self._public(raw.decode(errors="replace"))
            return _Trouble("bad_response", f"the answer is not JSON: {shown}", True)

    def _public(self, text: str) -> str:
        """Cut a text of the endpoint to a line that can be shown, without anything like a key."""
        return one_line(without_keys(text, *self._keys), 200)


def import_openai() -> Any:
    """Import the official client, which only the backends over HTTP need.

    Raises
    ------
    BackendError
        ``not_installed``, with the command that installs it.
    """
    try:
        import openai
    except ImportError:
        pass
    else:
        return openai
    raise BackendError("not_installed", _INSTALL)


def chat_client(*, proxied: bool = True, **options: Any) -> Any:
    """Return an official client whose requests have an end, and whose answers.

    Parameters
    ----------
    proxied : bool
        Whether a proxy that the environment names may come between.
    **options
        As ``openai.OpenAI`` takes them; by default the environment decides.

    Returns
    -------
    openai.OpenAI
        It asks once, and follows no redirect.

    Raises
    ------
    BackendError
        ``not_installed`` without the client library, ``auth`` without a key.
    """
    openai = import_openai()
    carrier = openai.DefaultHttpxClient(transport=_Transport(proxied), follow_redirects=False)
    try:
        return openai.OpenAI(max_retries=0, http_client=carrier, **options)
    except openai.OpenAIError:
        carrier.close()
    raise BackendError(
        "auth", "OPENAI_API_KEY is not set (an endpoint that needs none takes any value)"
    )


class _Transport:
    """Carries the client's requests over a :class:`Wire`; its own timeouts are of each piece."""

    def __init__(self, proxied: bool) -> None:
        self._wire = Wire(proxied=proxied)

    def __enter__(self) -> _Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    def handle_request(self, request: Any) -> Any:
        headers = {n: v for n, v in request.headers.items() if n.lower() not in _OF_THE_WIRE}
        seconds = request.extensions["timeout"]["read"]
        body = request.read()
        answer = self._wire.post(str(request.url), headers, body, seconds=seconds, most=MAX_BODY)
        httpx = sys.modules[type(request).__module__.partition(".")[0]]  # by the client's version
        kept = {n: v for n, v in answer.headers.items() if n in _KEPT_HEADERS}
        return httpx.Response(answer.status, headers=kept, content=answer.body)


_OF_THE_WIRE = frozenset({"host", "accept-encoding", "connection", "content-length"})
_KEPT_HEADERS = frozenset({"content-type", "retry-after", "retry-after-ms"})


def _text_of(response: Any) -> str:
    text = response.content.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return str(text)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the endpoint wants to be left alone; a date is not worth parsing."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None
