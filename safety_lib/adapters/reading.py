"""What an agent gave back, read into what was heard.

An agent is somebody else's code: what it returns is looked at once, here, and what does not fit
is a :class:`~safety_lib.world.target.TargetError` of the kind ``bad_response`` whose line says what
came back and what was expected. A call that cannot be read is never left out: a conversation with
an unread call is an error, neither a pass nor a failure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from safety_lib.records import CallStatus
from safety_lib.text import one_line
from safety_lib.world.plain import plain_json, what_it_is
from safety_lib.world.target import MOST_CALLS, Called, Heard, TargetError, too_many_calls

_STATUSES = get_args(CallStatus)
_ENDINGS = ("", "completed", "stopped", "step_limit", "error")
_FIELDS = frozenset({"name", "arguments", "result", "status"})
_OF_A_CLIENT = frozenset({"id", "type"})  # what chat clients leave in a call; it says nothing here
_REPLY = "expected text, (text, calls) or a Heard"
_CALL = "expected a Called, {name, arguments, result, status} or (name, arguments, result)"


def heard_of(returned: Any, *, sees_calls: bool) -> Heard:
    """Return what was heard in a turn, from what an agent returned.

    Parameters
    ----------
    returned : str, tuple or Heard
        Text, text with calls, or all of it.
    sees_calls : bool
        Whether the agent tells its calls.

    Raises
    ------
    TargetError
        ``bad_response`` if it is none of these, or says nothing at all.

    Examples
    --------
    >>> heard = heard_of(("Done.", [("refund", {"amount": 20})]), sees_calls=True)
    >>> str(heard), heard.calls[0].arguments
    ('Done.', {'amount': 20})
    >>> heard_of(None, sees_calls=True)
    Traceback (most recent call last):
    ...
    safety_lib.world.target.TargetError: bad_response: the agent returned nothing (None); \
expected text, (text, calls) or a Heard
    """
    if isinstance(returned, str):
        heard = Heard(returned)
    elif isinstance(returned, Heard):
        heard = _checked(returned)
    elif isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], str):
        heard = Heard(returned[0], calls_of(returned[1]))
    else:
        raise TargetError("bad_response", f"the agent returned {what_it_is(returned)}; {_REPLY}")
    if heard.calls and not sees_calls:
        raise TargetError(
            "bad_response",
            "the agent returned calls although the target says sees_calls=False; "
            "say True if it tells every call that it makes",
        )
    if not (heard.calls or heard.ended or heard.events or heard.text.strip()):
        raise TargetError("bad_response", f"the agent returned an empty text and no call; {_REPLY}")
    return heard


def calls_of(returned: Any) -> tuple[Called, ...]:
    """Return the calls of a turn, from a sequence of whatever an agent holds for calls.

    Raises
    ------
    TargetError
        ``bad_response`` if it is no list or tuple, has too many, or one of them cannot be read.
    """
    if not isinstance(returned, list | tuple):
        raise TargetError(
            "bad_response", f"the calls are {what_it_is(returned)}; expected a list of calls"
        )
    if len(returned) > MOST_CALLS:
        raise too_many_calls(len(returned))
    return tuple(_call_of(call, number) for number, call in enumerate(returned, start=1))


def _checked(heard: Heard) -> Heard:
    if not isinstance(heard.text, str):
        raise TargetError("bad_response", f"Heard.text is {what_it_is(heard.text)}; expected text")
    if heard.ended not in _ENDINGS:
        known = ", ".join(repr(ending) for ending in _ENDINGS)
        raise TargetError(
            "bad_response", f"Heard.ended is {what_it_is(heard.ended)}; expected one of {known}"
        )
    if not isinstance(heard.model_calls, int) or heard.model_calls < 0:
        raise TargetError(
            "bad_response",
            f"Heard.model_calls is {what_it_is(heard.model_calls)}; expected a number",
        )
    return heard._replace(calls=calls_of(heard.calls))


def _call_of(call: Any, number: int) -> Called:
    if isinstance(call, Called):
        return _called(number, call.name, call.arguments, call.result, call.status)
    if isinstance(call, tuple) and len(call) in (2, 3):
        return _called(number, *call)
    if not isinstance(call, Mapping):
        raise TargetError("bad_response", f"call {number} is {what_it_is(call)}; {_CALL}")
    unknown = sorted(str(key) for key in call.keys() - _FIELDS - _OF_A_CLIENT)
    missing = [key for key in ("name", "arguments") if key not in call]
    if unknown or missing:
        fault = f"no field {missing[0]!r}" if missing else f"a field {one_line(unknown[0], 40)!r}"
        raise TargetError("bad_response", f"call {number} has {fault}; {_CALL}")
    result, status = call.get("result"), call.get("status")
    return _called(number, call["name"], call["arguments"], result, status)


def _called(
    number: int, name: Any, arguments: Any, result: Any = None, status: Any = None
) -> Called:
    if not isinstance(name, str) or not name:
        raise TargetError(
            "bad_response", f"the name of call {number} is {what_it_is(name)}; expected text"
        )
    if isinstance(arguments, str):
        arguments = _object_in(arguments)
    if not isinstance(arguments, dict | Mapping):
        raise TargetError(
            "bad_response",
            f"the arguments of call {number}, {one_line(name, 60)}, are {what_it_is(arguments)}; "
            "expected a mapping or its JSON",
        )
    if status is not None and status not in _STATUSES:
        raise TargetError(
            "bad_response",
            f"the status of call {number}, {one_line(name, 60)}, is {what_it_is(status)}; "
            f"expected one of {', '.join(_STATUSES)}",
        )
    plain = plain_json(arguments, "an argument of", number, name)
    if result is None:
        result = ""
    elif not isinstance(result, str):
        held = plain_json(result, "the result of", number, name)
        result = json.dumps(held, ensure_ascii=False)
    return Called(name, plain, result, status or "executed")


def _object_in(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
