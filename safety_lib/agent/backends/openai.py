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

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safety_lib.agent.backends import BackendError, ToolSchema
from safety_lib.agent.backends.calls import counted
from safety_lib.records import Message, ToolCall, first_fault
from safety_lib.text import one_line, without_keys

NO_TOOL = "none"
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


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Wire):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(_Wire):
    function: _Function


class _Answer(_Wire):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(_Wire):
    message: _Answer
    finish_reason: str | None = None


class _Completion(_Wire):
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
        self._client = client if client is not None else _client_of_environment()
        self._key = str(self._client.api_key)
        # What stands in for a key where none is needed is short, and may be a word.
        self._secret = len(self._key) >= SHORTEST_KEY
        self._host = urlsplit(str(self._client.base_url)).hostname or "the endpoint"
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._limit = "max_tokens"

    def close(self) -> None:
        """Close the connections to the endpoint."""
        self._client.close()

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
        """
        protocol = self.settings.tool_protocol
        if protocol == "json" and tools:
            body = json_request(messages, tools, self.settings.max_tokens)
        else:
            body = {"messages": [_native(message) for message in messages]}
            if tools:
                body["tools"] = [dict(tool) for tool in tools]
        body |= {"model": self.model, "seed": seed % 2**31}
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        with self._slots:
            answer = self._ask(body, seed)
        offered = _names(tools)
        unique = _digest([message.model_dump(mode="json") for message in messages], seed)
        if protocol == "json" and tools:
            return read_json_answer(answer.content or "", offered, unique)
        return _read_native(answer, offered, unique)

    def _ask(self, body: dict[str, Any], seed: int) -> _Answer:
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
        spread = 0.5 + int(_digest([attempt], seed)[:4], 16) / 0x1FFFE
        wanted = self.settings.retry_seconds * (1 << attempt) * spread
        return min(max(wanted, after or 0.0), self.settings.retry_max_seconds)

    def _once(self, body: dict[str, Any]) -> _Answer | _Trouble:
        openai = import_openai()
        try:
            with self._client.chat.completions.with_streaming_response.create(
                **body, timeout=self.settings.timeout_seconds
            ) as response:
                raw = self._body(response)
        except openai.APITimeoutError:
            return _Trouble("timeout", f"no answer in {self.settings.timeout_seconds:g} s", True)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            return _Trouble("connection", f"no connection or a broken one ({cause})", True)
        except openai.APIStatusError as error:
            return self._refused(error.status_code, error.response)
        except UnicodeEncodeError:
            return _Trouble("auth", "the key in OPENAI_API_KEY does not fit into a header", False)
        except openai.OpenAIError as error:
            return _Trouble("bad_request", f"the client refuses ({type(error).__name__})", False)
        if isinstance(raw, _Trouble):
            return raw
        # An endpoint that repeats the key, in an answer as in an error, must not get it kept.
        return self._parse(raw.replace(self._key.encode(), b"***") if self._secret else raw)

    def _body(self, response: Any) -> bytes | _Trouble:
        """Read the whole body; the client's own timeout is per read, a slow drip would pass it."""
        deadline = time.monotonic() + self.settings.timeout_seconds
        body = bytearray()
        try:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    late = f"no complete answer in {self.settings.timeout_seconds:g} s"
                    return _Trouble("timeout", late, True)
                if len(body) > MAX_BODY:
                    return _Trouble("bad_response", f"more than {MAX_BODY:,} bytes", False)
        except Exception as error:
            # The transport's own exceptions, of httpx or httpx2 by the client's version: the client
            # does not wrap them once the body has begun.
            name = type(error).__name__
            kind = "timeout" if "Timeout" in name else "connection"
            return _Trouble(kind, f"the answer broke off ({name})", True)
        return bytes(body)

    def _refused(self, status: int, response: Any) -> _Trouble:
        if status in (401, 403):
            # The text of these quotes keys, whole or in part: it is not repeated at all.
            return _Trouble("auth", f"HTTP {status}: the key in OPENAI_API_KEY is refused", False)
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

    def _parse(self, raw: bytes) -> _Answer | _Trouble:
        try:
            choice = _Completion.model_validate(json.loads(raw)).choices[0]
        except ValidationError:
            shown = self._public(raw.decode(errors="replace"))
            return _Trouble("bad_response", f"no chat completion in the answer: {shown}", True)
        except (ValueError, RecursionError):
            shown = self._public(raw.decode(errors="replace"))
            return _Trouble("bad_response", f"the answer is not JSON: {shown}", True)
        answer = choice.message
        empty = not answer.tool_calls and not answer.content and answer.refusal is None
        if empty and (answer.content is None or choice.finish_reason != "stop"):
            why = f"finish_reason={choice.finish_reason}"
            return _Trouble("bad_response", f"neither text nor a tool call ({why})", False)
        return answer

    def _public(self, text: str) -> str:
        """Cut a text of the endpoint to a line that can be shown, without anything like a key."""
        return one_line(without_keys(text, self._key), 200)


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


def _client_of_environment() -> Any:
    openai = import_openai()
    try:
        return openai.OpenAI(max_retries=0)
    except openai.OpenAIError:
        pass
    raise BackendError(
        "auth", "OPENAI_API_KEY is not set (an endpoint that needs none takes any value)"
    )


def _text_of(response: Any) -> str:
    try:
        text = str(response.text)
    except Exception:  # an error page that cannot be read either
        return ""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return text


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


def _digest(parts: Sequence[Any], seed: int) -> str:
    text = json.dumps([*parts, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _names(tools: Sequence[ToolSchema]) -> list[str]:
    return [str(tool["function"]["name"]) for tool in tools]


# --------------------------------------------------------------------------- native tool calls


def _native(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _read_native(answer: _Answer, offered: Sequence[str], unique: str) -> Message:
    """Turn an answer into a message.

    Calls get identifiers of their own instead of the endpoint's random ones, so that the same
    conversation gives the same bytes; nine letters and digits are what every endpoint takes back.
    """
    calls = []
    for index, call in enumerate(answer.tool_calls or ()):
        function = call.function
        if function.name not in offered:
            raise _unknown_tool(function.name, offered)
        calls.append(
            ToolCall(
                id=_call_id(unique, index),
                name=function.name,
                arguments=_arguments(function.name, function.arguments),
            )
        )
    return Message(
        role="assistant",
        content=answer.content or answer.refusal or "",
        tool_calls=tuple(calls),
    )


def _call_id(unique: str, index: int) -> str:
    return _digest([unique], index)[:9]


def _unknown_tool(name: str, offered: Sequence[str]) -> BackendError:
    # An agent that is offered no such tool cannot have called it: what the model would have done
    # next is unknown, so the conversation is an error and neither a pass nor a failure.
    known = ", ".join(offered) or "no tool"
    return BackendError(
        "unknown_tool", f"the model called {one_line(name, 60)!r}; offered: {known}"
    )


def _arguments(tool: str, raw: str | dict[str, Any] | None) -> dict[str, Any]:
    parsed = _parsed(json.dumps(raw) if isinstance(raw, dict) else raw or "{}")
    if isinstance(parsed, dict):
        return parsed
    raise BackendError("bad_response", f"the arguments of {tool} are not a JSON object")


def _parsed(text: str) -> Any:
    """Parse what a model wrote; ``None`` if it is not JSON that a journal can hold again."""
    try:
        value = json.loads(text, parse_constant=_not_json, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _not_json(digits)


# --------------------------------------------------------------------------- the JSON protocol


def json_request(
    messages: Sequence[Message], tools: Sequence[ToolSchema], max_tokens: int
) -> dict[str, Any]:
    """Say a conversation with tools in plain chat messages.

    The tools stand in the system prompt, one line each: what it does and the JSON that does it. Two
    example exchanges follow: a greeting, and a call with its result and the reply. Calls of the
    conversation are shown as that JSON, results as a user's message. The start stays the same all
    through a conversation, so a server that caches prompts reads it once.

    Parameters
    ----------
    messages : sequence of Message
        The conversation.
    tools : sequence of Mapping
        The tools on offer.
    max_tokens : int
        Longest answer; the schema bounds every string by it, so that a model that rambles still
        closes its JSON.

    Returns
    -------
    dict
        ``messages`` and ``response_format`` of the request.

    Raises
    ------
    BackendError
        ``bad_request`` if a tool has the name that stands for no call.

    Examples
    --------
    >>> tool = {"function": {"name": "read_file", "description": "Read a file.", "parameters": {
    ...     "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}
    >>> request = json_request([Message(role="user", content="Read a.txt")], [tool], 256)
    >>> print(request["messages"][0]["content"].splitlines()[-1])
    Read a file: {"tool": "read_file", "arguments": {"path": "<path>"}}
    """
    if NO_TOOL in _names(tools):
        raise BackendError("bad_request", f"the JSON protocol cannot offer a tool named {NO_TOOL}")
    called = {call.id: call.name for message in messages for call in message.tool_calls}
    start = [message.content for message in messages[:1] if message.role == "system"]
    chat = [{"role": "system", "content": "\n".join([*start, _tool_list(tools)])}]
    chat += _examples(tools)
    for message in messages[len(start) :]:
        if message.role == "assistant":
            chat.append({"role": "assistant", "content": "\n".join(_as_json(message))})
        elif message.role == "tool":
            name = called.get(message.tool_call_id, "the tool")
            chat.append({"role": "user", "content": _result_text(name, message.content)})
        else:
            chat.append({"role": message.role, "content": message.content})
    schema = {"name": "answer", "strict": False, "schema": answer_schema(tools, max_tokens)}
    return {
        "messages": chat,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def answer_schema(tools: Sequence[ToolSchema], max_tokens: int) -> dict[str, Any]:
    """Return the schema of an answer: one alternative per tool, one more for plain talk.

    An alternative per tool, with the arguments of that tool, made a 135M model call the right tool
    where one object with an enum of names and free arguments did not. ``tool`` comes first, so that
    the rest follows from the choice.
    """
    alternatives = [
        _closed(
            {
                "tool": {"const": tool["function"]["name"]},
                "arguments": _bounded(tool["function"].get("parameters") or {}, max_tokens // 2),
            }
        )
        for tool in tools
    ]
    # A figure takes a token, so the longest reply of figures must fit beside the object around it.
    reply = {"type": "string", "minLength": 1, "maxLength": max(1, max_tokens - _FRAME)}
    return {"anyOf": [*alternatives, _closed({"tool": {"const": NO_TOOL}, "reply": reply})]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_FRAME = 16  # tokens of {"tool": "none", "reply": ""}, and some to spare
_KEPT = ("type", "enum", "const", "required", "minimum", "maximum")


def _bounded(schema: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Copy the parts of a schema that every grammar engine knows, with bounded strings."""
    kept = {key: schema[key] for key in _KEPT if key in schema}
    kind = schema.get("type", "object" if "properties" in schema or not schema else None)
    if kind == "string" and "enum" not in kept and "const" not in kept:
        kept["maxLength"] = min(schema.get("maxLength", longest), longest)
    elif kind == "array":
        kept |= {"items": _bounded(schema.get("items") or {"type": "string"}, longest)}
        kept["maxItems"] = min(schema.get("maxItems", 4), 4)
    elif kind == "object":
        properties = schema.get("properties") or {}
        kept |= {"type": "object", "additionalProperties": False}
        kept["properties"] = {name: _bounded(of, longest) for name, of in properties.items()}
    return kept


def read_json_answer(text: str, offered: Sequence[str], unique: str) -> Message:
    """Turn the one JSON object of the protocol back into a message.

    Parameters
    ----------
    text : str
        What the model said.
    offered : sequence of str
        Names of the tools that it was offered.
    unique : str
        A word that no other answer of the conversation has: the id of a call is made from it.

    Returns
    -------
    Message
        With at most one tool call.

    Raises
    ------
    BackendError
        ``bad_response`` if the text is not that object, ``unknown_tool`` if it names a tool that
        was not offered.

    Examples
    --------
    >>> read_json_answer('{"tool": "none", "reply": "Hello!"}', ["read_file"], "").content
    'Hello!'
    """
    answer = _parsed(text)
    if not isinstance(answer, dict) or not isinstance(answer.get("tool"), str):
        shown = one_line(text)
        raise BackendError("bad_response", f"not the JSON object that was asked for: {shown!r}")
    name, reply, arguments = answer["tool"], answer.get("reply", ""), answer.get("arguments", {})
    if not isinstance(reply, str) or not isinstance(arguments, dict):
        raise BackendError("bad_response", "reply must be a text and arguments an object")
    if name == NO_TOOL:
        return Message(role="assistant", content=reply)
    if name not in offered:
        raise _unknown_tool(name, offered)
    call = ToolCall(id=_call_id(unique, 0), name=name, arguments=arguments)
    return Message(role="assistant", content=reply, tool_calls=(call,))


def _tool_list(tools: Sequence[ToolSchema]) -> str:
    rule = "Answer with one JSON object. Pick the line that does what the user asks and fill it in."
    return "\n".join([rule, *(_tool_line(tool["function"]) for tool in tools)])


def _tool_line(function: Mapping[str, Any]) -> str:
    blanks = {name: f"<{name}>" for name in _parameters(function)}
    return f"{_title(function)}: {_call_text(str(function['name']), blanks)}"


def _title(function: Mapping[str, Any]) -> str:
    """First sentence of what a tool does: the model reads every word at 4 ms each."""
    text = str(function.get("description") or function["name"])
    return text.split(". ")[0].rstrip(".")[:80]


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = (function.get("parameters") or {}).get("properties") or {}
    return properties


def _call_text(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"tool": name, "arguments": arguments}, ensure_ascii=False)


def _talk_text(reply: str) -> str:
    return json.dumps({"tool": NO_TOOL, "reply": reply}, ensure_ascii=False)


def _result_text(name: str, result: str) -> str:
    # Without the second line a small model makes the same call again until its steps are used up.
    return f"Result of {name}: {result}\nTell the user with tool {NO_TOOL}."


def _examples(tools: Sequence[ToolSchema]) -> list[dict[str, str]]:
    """Show both forms once; without them a small model calls a tool whatever it is told."""
    said = ["Hello!", _talk_text("Hello! How can I help you?")]
    for tool in tools:
        function = tool["function"]
        name, parameters = str(function["name"]), _parameters(function)
        if [of.get("type") for of in parameters.values()] == ["string"]:
            said += [
                f"{_title(function)}: A-17",
                _call_text(name, dict.fromkeys(parameters, "A-17")),
                _result_text(name, "Blue, 12 pieces."),
                _talk_text("It says: blue, 12 pieces."),
            ]
            break
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def _as_json(message: Message) -> Iterator[str]:
    """Show what the assistant said in the form that it is asked to answer in."""
    if message.content or not message.tool_calls:
        yield _talk_text(message.content)
    for call in message.tool_calls:
        yield _call_text(call.name, call.arguments)
