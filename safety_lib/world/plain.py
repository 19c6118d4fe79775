"""Values that somebody else's code or model put into a call: what JSON can hold, and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safety_lib.text import one_line
from safety_lib.world.target import TargetError

MOST_NESTED = 64  # deeper than any tool takes, and no deeper than a journal can be read again
LARGEST_NUMBER = 1024  # bits, as many as a float reaches


def plain_json(value: Any, what: str, number: int, name: str) -> Any:
    """Return a copy of a value of a call that is what JSON can hold.

    Parameters
    ----------
    value : Any
        Of strings, numbers, booleans, None, lists, tuples and mappings with text for keys.
    what : str
        What it is of the call, for the message.
    number : int
        Of the call, from 1.
    name : str
        Of its tool.

    Returns
    -------
    Any
        Of strings, numbers, booleans, None, lists and dicts.

    Raises
    ------
    TargetError
        ``bad_response`` with the place of what is none of these.

    Examples
    --------
    >>> plain_json({"to": ("a", "b")}, "an argument of", 1, "send")
    {'to': ['a', 'b']}
    >>> plain_json({"to": [1, {2}]}, "an argument of", 1, "send")
    Traceback (most recent call last):
    ...
    safety_lib.world.target.TargetError: bad_response: an argument of call 1, send: to.1 is a set; \
expected what JSON can hold
    """
    try:
        return _plain(value, 0)
    except _Unfit as unfit:
        place = one_line(".".join(map(str, reversed(unfit.path))), 60)
        at = f"{what} call {number}, {one_line(name, 60)}{place and ': '}{place}"
        fault = f"{at} {unfit.what}; expected what JSON can hold"
    raise TargetError("bad_response", fault)


class _Unfit(Exception):
    """Something that JSON cannot hold, and the way to it from the inside out."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.path: list[Any] = []


def _plain(value: Any, nested: int) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if nested > MOST_NESTED:
        raise _Unfit(f"is nested more than {MOST_NESTED} deep")
    if kind is dict or isinstance(value, Mapping):
        copy = {}
        key: Any = None
        try:
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise _Unfit(f"is {what_it_is(key)} for a key")
                copy[str.__str__(key)] = _plain(inner, nested + 1)
        except _Unfit as unfit:
            unfit.path.append(key)
            raise
        return copy
    if isinstance(value, list | tuple):
        listed = []
        try:
            for inner in value:
                listed.append(_plain(inner, nested + 1))
        except _Unfit as unfit:
            unfit.path.append(len(listed))
            raise
        return listed
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> str | int | float:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if value.bit_length() <= LARGEST_NUMBER:
            return int(value)
        raise _Unfit("is a number too large")
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise _Unfit(f"is {value}")
    raise _Unfit(f"is {what_it_is(value)}")


def what_it_is(value: Any) -> str:
    """Say what somebody's value is, in few words."""
    if value is None:
        return "nothing (None)"
    kind = type(value).__name__
    if isinstance(value, str):
        return f"the text {one_line(repr(value), 60)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value[:4]) or 'nothing'}"
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
