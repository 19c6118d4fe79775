"""What one message says: its text, the calls in it and the results, whoever wrote it.

Providers and frameworks cut a message into blocks and call them differently: typed or by their only
key, in camel case or not, with the words under ``text``, ``content`` or ``value``. Every block is
text, a call, a result, or a gap with its place. Results that stand in a message of the user, as
several providers send them, are no words of the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from safety_lib.incident.intake.door import (
    ALIASES,
    ROLES,
    Door,
    as_text,
    field_of,
    listing,
    objects_in,
)
from safety_lib.incident.intake.exchanges import ReadCall, Said
from safety_lib.incident.intake.outcomes import told_failure

_STATUSES = ("executed", "blocked", "held", "failed")
_TEXT = {"text", "inputtext", "outputtext", "summarytext", "plaintext", "markdown", "refusal"}
_REASONING = {"thinking", "reasoning", "reasoningcontent", "redactedthinking", "thought"}
# A block without a type is what its key says, and what stands there is the block itself.
_KEYS = (
    *("toolUse", "toolResult", "functionCall", "function_call", "functionResponse"),
    *("function_response", "tool_call", "toolCall", "toolInvocation", "reasoningContent"),
)
_THOUGHTS = ("text", "content", "thinking", "summary", "reasoning", "reasoningText")
_WORDS = ("text", "content", "refusal", "value", "output_text")
# What a message or a block tells beside its words and calls, and nobody has to be told of.
_KEPT = {
    *("id", "uuid", "type", "index", "model", "metadata", "signature", "cache_control", "lc"),
    *("role", "finish_reason", "error", "is_error", "isError", "status", "success", "annotations"),
}
_MESSAGE_KEPT = {*_KEPT, *ALIASES["role"], *ALIASES["content"], *ALIASES["calls"]} | {
    *(*ALIASES["call_id"], "name", "function", "refusal", "tool_messages", "tool_call", "data"),
    *("invalid_tool_calls", "additional_kwargs", "tool_name", "toolName", "example"),
    *("stop_reason", "stop_sequence", "stop_details", "usage", "usage_metadata"),
    "response_metadata",
}


def role_of(item: Mapping[str, Any]) -> str | None:
    """Return who says a message, or None where it does not say so."""
    told = [item.get(name) for name in ALIASES["role"]] + [item.get("type")]
    for role in told:
        if isinstance(role, str) and role.lower() in ROLES:
            return ROLES[role.lower()]
    return None


def is_message(item: Any) -> bool:
    """Say whether something is a message, or an item that stands among messages."""
    if not isinstance(item, dict):
        return False
    if "role" in item:
        return True
    inner = unwrapped(item)
    is_typed = _kind(inner) in ("call", "result", "reasoning")
    return role_of(inner) is not None or "role" in inner or (is_typed and "type" in inner)


def unwrapped(item: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what LangChain, OpenInference or a choice puts around it."""
    inner = item.get("kwargs")
    if "lc" in item and isinstance(inner, dict):
        named = item.get("id")
        kind = str(named[-1]) if isinstance(named, list) and named else ""
        return {**inner, "type": inner.get("type") or kind}
    if "role" in item:
        return item
    for name in ("message", "content"):
        inner = item.get(name)
        is_whole = isinstance(inner, dict) and (name == "message" or "role" in inner)
        if isinstance(inner, dict) and is_whole and "content" not in (item.keys() - {name}):
            return unwrapped(inner)
    inner = item.get("data")
    if isinstance(inner, dict) and "type" in item and "content" not in item:
        return {"type": item["type"], **inner}
    return item


def said_in(item: dict[str, Any], at: str, door: Door, role: str = "") -> list[Said]:
    """Read one message, or one item of those that stand in its place.

    Parameters
    ----------
    item : dict
        A message of any provider; an item of OpenAI's Responses.
    at : str
        Where it stands.
    door : Door
        Told what of it cannot be read.
    role : str, optional
        Who says it, where the message itself does not tell.

    Returns
    -------
    list of Said
        In the order of its blocks: a result beside the words of a user is a message of the tool.
        Empty where nobody that is known says it.
    """
    plain = _plain_words(item)
    if plain is not None and item["role"] in _TALKERS:
        return [Said(role or item["role"], plain)] if plain or item["role"] == "user" else []
    item = unwrapped(item)
    reader = _Message(at, door)
    if "role" not in item and _kind(item) in ("call", "result", "reasoning"):
        reader.role = "assistant"
        reader.block(item)
        return reader.said()
    reader.role = role or role_of(item) or ""
    if not reader.role:
        told = next((item[n] for n in (*ALIASES["role"], "type") if n in item), None)
        door.gap(f"role {told} is unknown and left out", at)
        return []
    inner = item.get("tool_messages")
    if isinstance(inner, list):  # tau2 sends the results of one message together
        return [said for one in objects_in(inner) for said in said_in(one, at, door, reader.role)]
    rest = (k for k in item if k not in _MESSAGE_KEPT and (item[k] == {} or has_content(item[k])))
    door.unread(rest, at)
    if reader.role == "tool":
        reader.result_of(item)
    else:
        reader.message(item)
    return reader.said()


_TALKERS = ("user", "assistant", "system")


def _plain_words(item: Mapping[str, Any]) -> str | None:
    """Return the words of a message that holds nothing else: most are so, and some files long."""
    if len(item) != 2 or "role" not in item:
        return None
    content = item.get("content") or item.get("parts")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        block = content[0]
        if len(block) == 2 and block.get("type") == "text":
            content = block.get("text") or block.get("content")
    return content if isinstance(content, str) else None


def messages_said(items: Any, place: str, door: Door, role: str = "") -> list[Said]:
    """Read a list of messages, or one; a text alone is what the given role says.

    Parameters
    ----------
    items : object
        Messages, also in lists of their own; what is none is a gap.
    place : str
        Of whom they are, before the number of each.
    door : Door
        Told what cannot be read.
    role : str, optional
        Who says what does not tell it.

    Returns
    -------
    list of Said
        In their order.
    """
    if isinstance(items, str):
        return [Said(role or "user", items)]
    found: list[Said] = []
    for number, item in enumerate(items if isinstance(items, list) else [items], start=1):
        at = f"{place}message {number}"
        if isinstance(item, list):  # LangChain sends batches of one
            found += messages_said(item, place, door, role)
        elif isinstance(item, dict):
            own = role_of(unwrapped(item))
            found += said_in(item, at, door, "" if own else role)
        elif isinstance(item, str) and role:
            found.append(Said(role, item))
        elif item is not None:
            door.gap("entries that are no messages are left out", at)
    return found


class _Message:
    """One message: its blocks, gathered into what was said in their order."""

    def __init__(self, at: str, door: Door) -> None:
        self.role = ""
        self.at = at
        self.door = door
        self.done: list[Said] = []
        self.text: list[str] = []
        self.calls: list[ReadCall] = []
        self.is_empty = True

    def said(self) -> list[Said]:
        self.flush()
        if self.role == "user" and self.is_empty:
            self.done.append(Said("user"))
        return self.done

    def flush(self) -> None:
        if self.text or self.calls:
            self.done.append(Said(self.role, "\n".join(self.text), self.calls))
            self.text, self.calls = [], []
            self.is_empty = False

    def message(self, item: dict[str, Any]) -> None:
        told = [item[name] for name in ALIASES["content"] if has_content(item.get(name))]
        for content in told[:1]:
            self.content(content)
        words = "\n".join(self.text)
        for other in told[1:]:
            if as_text(other) != words and not isinstance(other, list):
                self.door.gap("its text stands under two names; the first is read", self.at)
            elif isinstance(other, list) and not self.text:
                self.content(other)
        refusal = item.get("refusal")
        if isinstance(refusal, str) and refusal and refusal not in self.text:
            self.text.append(refusal)
        more = item.get("additional_kwargs")
        self.call_list(field_of(item, "calls"))
        self.call_list(item.get("invalid_tool_calls"))
        if isinstance(more, dict) and not self.calls:
            self.call_list(more.get("tool_calls") or more.get("function_call"))
        self.is_empty = self.is_empty and not self.done

    def call_list(self, calls: Any) -> None:
        """Take calls that stand beside the content; LangChain tells those of blocks twice."""
        known = {call.call_id for call in self.calls if call.call_id}
        for entry in calls if isinstance(calls, list) else [calls]:
            if isinstance(entry, dict) and entry:
                inner = entry.get("tool_call")
                call = call_in(inner if isinstance(inner, dict) else entry, self.at, self.door)
                if call.call_id not in known:
                    self.calls.append(call)
            elif entry is not None:
                self.door.gap("a tool call that is none is left out", self.at)

    def content(self, content: Any) -> None:
        for block in content if isinstance(content, list) else [content]:
            self.block(block)

    def block(self, block: Any) -> None:
        if not isinstance(block, dict):
            if block not in (None, ""):
                self.text.append(as_text(block))
            return
        name = next((key for key in _KEYS if isinstance(block.get(key), dict)), "")
        kind = _kind(block)
        if name and kind != "text":
            block = {**block[name], "type": name}
        if kind == "text" and not block.get("thought"):
            self.words(block)
        elif kind == "call":
            self.call(block)
        elif kind == "result":
            self.flush()
            self.result(block)
        elif kind == "reasoning" or block.get("thought"):
            if any(
                has_content(block.get(n)) for n in (*_WORDS, "thinking", "summary", "reasoning")
            ):
                self.door.gap("reasoning is left out", self.at)
        elif kind == "message":
            for said in said_in(block, self.at, self.door, role_of(block) or self.role):
                self.text += [said.content] if said.content else []
                self.calls += said.calls
        else:
            self.door.gap(f"content of type {kind} is left out", self.at)

    def words(self, block: dict[str, Any]) -> None:
        told = next((block[name] for name in _WORDS if block.get(name) is not None), "")
        if isinstance(told, dict):  # OpenAI's Assistants put the text and its notes together
            told = told.get("value", told)
        if isinstance(told, list):
            self.content(told)
        elif told != "":
            self.text.append(as_text(told))
        _note_rest(str(block.get("type", "text")), block, _OF_TEXT, self.at, self.door)

    def call(self, block: dict[str, Any]) -> None:
        kind = str(block.get("type") or "")
        if kind.startswith("tool-") and "toolCallId" in block:  # Vercel's messages of a chat
            block = {**block, "toolName": block.get("toolName") or kind.removeprefix("tool-")}
        elif field_of(block, "tool") is None and kind.endswith("_call"):  # a tool of the provider
            given = {k: v for k, v in block.items() if k not in _KEPT and has_content(v)}
            block = {"id": block.get("id"), "name": kind.removesuffix("_call"), "arguments": given}
        self.calls.append(call_in(block, self.at, self.door))

    def result(self, block: dict[str, Any]) -> None:
        given = next((block[n] for n in _RESULTS if block.get(n) is not None), None)
        if given is None:
            self.door.gap("a result in which nothing is read", self.at)
        _note_rest("result", block, _OF_RESULT, self.at, self.door)
        failed = told_failure(block)
        if isinstance(given, dict) and str(given.get("type", "")).startswith("error-"):
            failed = True
        self.done.append(
            Said(
                "tool",
                self.result_or_error(given, block),
                answers=str(field_of(block, "call_id") or block.get("id") or ""),
                name=str(block.get("name") or block.get("toolName") or ""),
                failed=failed,
            )
        )
        self.is_empty = False

    def result_of(self, item: dict[str, Any]) -> None:
        """Read a message of a tool: its content is a result, or holds blocks that are."""
        content = field_of(item, "content")
        blocks = content if isinstance(content, list) else [content]
        if any(isinstance(block, dict) and _kind(block) == "result" for block in blocks):
            self.content(blocks)
            return
        if content is None:
            content = next((item[n] for n in _RESULTS if item.get(n) is not None), None)
        if content is None and not any(name in item for name in (*_RESULTS, "value")):
            self.door.gap("a result in which nothing is read", self.at)
        named = item.get("function") or item.get("name") or item.get("tool_name")
        self.done.append(
            Said(
                "tool",
                self.result_or_error(content, item),
                answers=str(field_of(item, "call_id") or ""),
                name=named if isinstance(named, str) else "",
                failed=told_failure(item),
                own_id=str(item.get("id") or ""),
            )
        )

    def result_or_error(self, given: Any, item: Mapping[str, Any]) -> str:
        """Return what a tool returned, or what it said of its failure instead."""
        told = item.get("error")
        text = self.result_text(given) if has_content(given) else ""
        said = as_text(told) if told and isinstance(told, str | dict) else ""
        return text or said or self.result_text(given)

    def result_text(self, given: Any) -> str:
        """Return what a tool returned as text: blocks are joined, anything else is JSON."""
        if given is None or isinstance(given, str):
            return given or ""
        if isinstance(given, dict):
            if len(given) == 1 and next(iter(given)) in ("result", "output"):
                return self.result_text(next(iter(given.values())))
            if str(given.get("type", "")).removeprefix("error-") in ("text", "json"):
                told = next((given[n] for n in ("value", *_WORDS) if n in given), None)
                return self.result_text(told) if told is not None else as_text(given)
            if len(given) == 1 and next(iter(given)) in ("text", "json"):
                return self.result_text(next(iter(given.values())))
            return as_text(given)
        if isinstance(given, list) and given and all(map(_is_of_result, given)):
            texts = [self.result_text(one) for one in given if self._is_shown(one)]
            return "\n".join(texts)
        return as_text(given)

    def _is_shown(self, block: Any) -> bool:
        if isinstance(block, str) or _kind(block) == "text" or "json" in block:
            return True
        self.door.gap(f"content of type {_kind(block)} is left out", self.at)
        return False


_RESULTS = ("content", "output", "response", "result", "results", "parts", "text", "tools")


_OF_TEXT = {*_KEPT, *_WORDS}
_OF_RESULT = {*_KEPT, *_RESULTS, *ALIASES["call_id"], *ALIASES["tool"]} | {
    *("state", "requestor", "scheduling")
}
_OF_CALL = {*_KEPT, *ALIASES["call_id"], *ALIASES["tool"], *ALIASES["arguments"]} | {
    *(*ALIASES["result"], "requestor", "state", "caller", "placeholder_args", "view"),
    "parse_error",
}


def _note_rest(kind: str, block: Mapping[str, Any], known: Set[str], at: str, door: Door) -> None:
    """Note the fields of a block that nothing reads."""
    rest = [key for key in block if key not in known and has_content(block[key])]
    if rest:
        door.unread((f"{kind}.{key}" for key in rest), at)


def has_content(value: Any) -> bool:
    """Say whether a field holds anything."""
    return value is not None and value is not False and value not in ("", [], {})


def _is_of_result(block: Any) -> bool:
    if isinstance(block, dict):
        typed = isinstance(block.get("type"), str) and bool({*_WORDS, "source"} & block.keys())
        typed |= isinstance(block.get("type"), str) and "image" in block["type"]
        return typed or (len(block) == 1 and next(iter(block)) in ("text", "json", "image"))
    return False


def _kind(block: Mapping[str, Any]) -> str:
    """Return what a block is: text, call, result, reasoning, message, or its own type."""
    told = block.get("type")
    if not isinstance(told, str) or not told:
        return _kind_by_key(block)
    word = "".join(filter(str.isalnum, told.lower()))
    if word in _TEXT:
        return "text"
    if word in _REASONING:
        return "reasoning"
    if word.endswith(("calloutput", "callresponse", "toolresult", "functionresponse")):
        return "result"
    if word == "toolresponse":
        return "result"
    if word.endswith(("call", "tooluse")) or (word in ("function", "toolinvocation")):
        return "call"
    if told.startswith("tool-") and "toolCallId" in block:
        return "call"
    return "message" if word == "message" else told


def _kind_by_key(block: Mapping[str, Any]) -> str:
    for key in _KEYS:
        if isinstance(block.get(key), dict):
            return _kind({"type": key})
    if any(isinstance(block.get(name), str) for name in _WORDS):
        return "text"
    return next(iter(block), "nothing")


def call_in(item: Mapping[str, Any], at: str, door: Door) -> ReadCall:
    """Read one tool call, whatever its fields are called.

    Parameters
    ----------
    item : Mapping
        The call.
    at : str
        Where it stands.
    door : Door
        Told what is missing.

    Returns
    -------
    ReadCall
        Arguments that are no JSON object are kept under ``unparsed``.
    """
    inner = item.get("function")
    inside = inner if isinstance(inner, dict) else item
    named = field_of(inside, "tool")
    name = named if isinstance(named, str) else ""
    given = field_of(inside, "arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError):
            door.gap(f"arguments of {name} are not JSON and kept as text", at)
    if given is None:
        door.gap(f"{name or 'a call'} has no arguments", at)
        given = {}
    arguments = given if isinstance(given, dict) else {"unparsed": given}
    result = field_of(item, "result")
    status = item.get("status")
    if not name:
        door.gap("a tool call has no name", at)
        name = "unnamed"
    _note_rest("call", item, _OF_CALL, at, door)
    if item.get("requestor") == "user":
        door.gap(f"a call of {name} by the user is told as the agent's", at)
    return ReadCall(
        name,
        arguments,
        str(field_of(item, "call_id") or item.get("id") or ""),
        None if result is None else _Message(at, door).result_text(result),
        status if status in _STATUSES else None,
        # Of a call alone "completed" says that it was written, not that it ran.
        told_failure(item) if result is not None or told_failure(item) else None,
    )


# --------------------------------------------------------------------------- one call of a model


def asked_in(value: Any, place: str, door: Door) -> list[Said]:
    """Read what a model was asked, as tracing tools record it: messages, a text, or either inside.

    Parameters
    ----------
    value : object
        A text, also one of JSON; a message, or a list; an object with these under its name.
    place : str
        Of whom, before the number of a message.
    door : Door
        Told what cannot be read.

    Returns
    -------
    list of Said
        In their order; empty where nothing is told.
    """
    value = decoded(value)
    if isinstance(value, dict) and not is_message(value):
        system = [value[n] for n in ("system", "instructions") if has_content(value.get(n))]
        inner = next((value[n] for n in _ASKED if has_content(value.get(n))), None)
        found = asked_in(inner, place, door) if inner is not None else []
        return [*(Said("system", as_text(one)) for one in system), *found]
    return messages_said(value, place, door, "user") if has_content(value) else []


def answered_in(value: Any, place: str, door: Door) -> list[Said]:
    """Read what a model answered, as tracing tools and providers record it.

    Parameters
    ----------
    value : object
        A text, also one of JSON; a message, or a list; an answer of a provider that holds them.
    place : str
        Of whom, before the number of a message.
    door : Door
        Told what cannot be read.

    Returns
    -------
    list of Said
        In their order; empty where nothing is told.
    """
    text, value = value, decoded(value)
    if isinstance(value, dict) and not is_message(value):
        for name in _ANSWERED:
            if has_content(value.get(name)):
                return answered_in(value[name], place, door)
        if not (value.keys() & {*ALIASES["content"], *ALIASES["calls"]}):
            if isinstance(text, str):  # a model may be asked to answer in JSON
                return [Said("assistant", text)]
            if has_content(value):
                door.gap(f"an answer is not read: it has the fields {listing(value)}", place)
            return []
    if isinstance(value, list):
        return [said for one in value for said in answered_in(one, place, door)]
    return messages_said(value, place, door, "assistant") if has_content(value) else []


_ASKED = ("messages", "contents", "input", "prompts", "prompt", "question", "query", "content")
_ANSWERED = ("choices", "generations", "candidates", "message", "output", "messages", "response")


def decoded(value: Any) -> Any:
    """Return what a text of JSON holds, if it holds a list, an object or a text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
