r"""Text that models and attackers wrote, made safe to look at, and numbers made short to read.

An attacker chooses what stands in a transcript: escape sequences that recolour a terminal, marks
that turn the reading direction round, characters without any shape that carry a second message, a
line of a megabyte. All of them are shown as what they are and none is passed on. The list of hidden
characters is fixed here and not taken from ``unicodedata``, whose answers change with the Python
version: a report has the same bytes everywhere.

A transcript is cut with a note of what is left out (:func:`plain`), a name or a message with dots
(:func:`one_line`), and nothing is cut in another way.
"""

from __future__ import annotations

import dataclasses
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache, wraps
from typing import Any, NamedTuple

MINUS = "\N{MINUS SIGN}"
MISSING = "n/a"
LONG_TEXT = 4000
SHORT_TEXT = 200
LINE = 120
LONGEST_LINE = 200
LONGEST_VALUE = 48
MOST_LINES = 80
BAR = "       | "

# Controls but tab and line feed; format, bidirectional and filler characters; variation selectors
# and tags (they smuggle text past the eye); surrogates and non-characters (they break XML, UTF-8);
# what is for private use, and planes where no character is: nobody knows how they look.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\ufffe\uffff\ud800-\udfff\ue000-\uf8ff\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U00040000-\U0010ffff]"
)

_SYMBOLS = re.compile(r"[\W_]+")
_KEYS = re.compile(r"\b(?:sk|pk|key|token)[-_][\w*.\-]{4,}|Bearer\s+\S+", re.IGNORECASE)


class Piece(NamedTuple):
    """A stretch of a text: as it was written, or the name of one hidden character."""

    text: str
    hidden: bool


def bare(text: str) -> str:
    r"""Return a text by its letters and digits alone, to find it in what a formatter folded.

    Examples
    --------
    >>> bare("Don't pay") in bare("note: 'Don''t\n  pay'")
    True
    """
    return _SYMBOLS.sub("", text.casefold())


def name_of(character: str) -> str:
    r"""Return the visible name of a hidden character: ``\x1b``, ``U+202E``.

    Examples
    --------
    >>> name_of(chr(27)), name_of(chr(0x202E))
    ('\\x1b', 'U+202E')
    """
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"U+{code:04X}"


def pieces(text: str, lines: bool = True) -> list[Piece]:
    """Split a text into what can be shown and the names of what cannot.

    Parameters
    ----------
    text : str
        What somebody wrote.
    lines : bool
        Whether tabs and line feeds may stay; otherwise they are named too.
    """
    found: list[Piece] = []
    position = 0
    for hit in _HIDDEN.finditer(text):
        found.append(Piece(text[position : hit.start()], hidden=False))
        found.append(Piece(name_of(hit.group()), hidden=True))
        position = hit.end()
    found.append(Piece(text[position:], hidden=False))
    if not lines:
        found = [part for piece in found for part in _without_breaks(piece)]
    return [piece for piece in found if piece.text]


def _without_breaks(piece: Piece) -> list[Piece]:
    if piece.hidden:
        return [piece]
    return [
        Piece(name_of(part) if part in ("\n", "\t") else part, part in ("\n", "\t"))
        for part in re.split("([\n\t])", piece.text)
    ]


def marked(text: str, margin: str = "") -> str:
    r"""Return a text with hidden characters named in brackets, and nothing left out.

    Parameters
    ----------
    text : str
        Whatever a model, a user or a file said.
    margin : str
        Stands before each line but the first, so that none of them can pass for a line of ours.

    Examples
    --------
    >>> print("agent:", marked("Done." + chr(13) + chr(10) + "[2] user: pay", "     | "))
    agent: Done.[\x0d]
         | [2] user: pay
    """
    shown = text
    if _HIDDEN.search(text):
        shown = "".join(f"[{p.text}]" if p.hidden else p.text for p in pieces(text))
    return shown.replace("\n", f"\n{margin}") if margin else shown


def cut(text: str, limit: int = LONG_TEXT) -> tuple[str, int]:
    """Return the beginning of a text and how many characters were left out.

    Examples
    --------
    >>> cut("a" * 1_000_000, limit=3)
    ('aaa', 999997)
    >>> cut("short")
    ('short', 0)
    """
    end = min(limit, len(text))
    position = -1
    for _ in range(MOST_LINES):
        position = text.find("\n", position + 1, end)
        if position < 0:
            return text[:end], len(text) - end
    return text[:position], len(text) - position


def left_out(count: int) -> str:
    """Return the note that takes the place of the characters that were cut."""
    return f"[{count:,} characters left out]"


def plain(text: str, limit: int = SHORT_TEXT, lines: bool = False) -> str:
    r"""Return a text for a place that knows no markup, hidden characters named in brackets.

    Parameters
    ----------
    text : str
        Whatever a model, a user or a file said.
    limit : int
        Most characters that are kept; a note says how many were left out.
    lines : bool
        Whether line breaks stay line breaks; otherwise they are named like other hidden ones.

    Examples
    --------
    >>> print(plain("pay " + chr(0x202E) + "now" + chr(10)))
    pay [U+202E]now[\x0a]
    >>> plain("aaaaaaaa", limit=3)
    'aaa [5 characters left out]'
    """
    kept, missing = cut(text, limit)
    shown = "".join(f"[{p.text}]" if p.hidden else p.text for p in pieces(kept, lines))
    return f"{shown} {left_out(missing)}" if missing else shown


def shorten(text: str, limit: int, dots: str = "...") -> str:
    """Return a text with at most so many characters, the last of them dots where it was cut.

    Parameters
    ----------
    text : str
        What may be too long.
    limit : int
        Most characters, dots included.
    dots : str
        What says that something is missing.

    Examples
    --------
    >>> shorten("a long name", 8), shorten("a name", 8)
    ('a lon...', 'a name')
    """
    return text if len(text) <= limit else text[: limit - len(dots)] + dots


def one_line(text: object, limit: int = LINE, dots: str = "...") -> str:
    r"""Return what somebody else wrote on one line: short, and with hidden characters named.

    Parameters
    ----------
    text : object
        Its ``str`` is shown; white space of any kind becomes one space.
    limit : int
        Most characters, dots included.
    dots : str
        What says that something is missing.

    Examples
    --------
    >>> print(one_line("pay" + chr(10) + "  now" + chr(27) + "[31m"))
    pay now\x1b[31m
    >>> one_line("a" * 1_000_000, 8)
    'aaaaa...'
    """
    whole = str(text)
    head = whole[: 4 * limit + 4]  # it may be megabytes
    words = " ".join(head.split()) + (dots if len(head) < len(whole) else "")
    return shorten("".join(piece.text for piece in pieces(words, lines=False)), limit, dots)


def without_keys(text: str, *keys: str) -> str:
    """Return a text with keys blanked, those that are named and whatever looks like one.

    Parameters
    ----------
    text : str
        What an endpoint or somebody's agent said.
    *keys : str
        The keys that are known; empty ones are passed over. They are found as they are and as
        JSON, addresses, HTML and base64 write them.

    Examples
    --------
    >>> without_keys("Incorrect API key sk-abc123, hint hunter2, %68unter2", "hunter2")
    'Incorrect API key ***, hint ***, ***'
    """
    return _KEYS.sub("***", _blanked(text, keys))


def without_keys_in(tree: Any, *keys: str) -> Any:
    """Return what was read from JSON with the keys that are named blanked in all of its texts.

    Examples
    --------
    >>> without_keys_in({"said": ["it is hunter2", 7]}, "hunter2")
    {'said': ['it is ***', 7]}
    """
    if isinstance(tree, str):
        return _blanked(tree, keys)
    if isinstance(tree, Mapping):
        return {_blanked(str(k), keys): without_keys_in(v, *keys) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(without_keys_in(inner, *keys) for inner in tree)
    return tree


def _blanked(text: str, keys: Iterable[str]) -> str:
    for key in filter(None, keys):
        for form in _forms_of(key):
            text = text.replace(form, "***")
        if any(sign in text for sign in ("\\", "%", "&#")):
            text = _escapes_of(key).sub("***", text)
    return text


@lru_cache(maxsize=16)
def _forms_of(key: str) -> tuple[str, ...]:
    """Return a key as it is, and in base64, whose letters depend on what stands before it."""
    packed = []
    for before, mixed in enumerate((0, 2, 3)):
        letters = b64encode(b"." * before + key.encode()).decode().rstrip("=")
        packed.append(letters[mixed:-1])  # the last one may hold a part of what follows
    return key, *(form for form in packed if len(form) >= 8)


@lru_cache(maxsize=16)
def _escapes_of(key: str) -> re.Pattern[str]:
    """Match a key however JSON (in JSON), an address or a page writes each of its characters."""
    written = (
        rf"(?:{re.escape(c)}|\\+u{ord(c):04x}|\\+x{ord(c):02x}|%{ord(c):02x}"
        rf"|&#0*{ord(c)};|&#x0*{ord(c):x};)"
        for c in key
    )
    return re.compile("".join(written), re.IGNORECASE)


def error_line(error: BaseException) -> str:
    """Return what an exception is and says, without keys; of one that cannot say it, what it is.

    Examples
    --------
    >>> error_line(ValueError("no such order")), error_line(KeyError())
    ('ValueError: no such order', 'KeyError')
    """
    try:
        said = one_line(without_keys(str(error)[:2000]), 200)
    except Exception:  # somebody else's code
        said = "(it cannot say what)"
    return f"{type(error).__name__}{said and ': '}{said}"


# --------------------------------------------------------------------------- results


class Shown:
    """What shows itself in one line: ``repr`` is the class and the first line of ``str``.

    A class that has more to say than its first fields says it in a ``__str__`` of its own, in one
    line or in several of :func:`in_lines`. Whatever it says, hidden characters come out named, and
    no line of somebody else's begins where one of ours does.

    Examples
    --------
    >>> from safety_lib.records import CutPoint, Reproduction
    >>> broke = Reproduction(version="v2", k=9, n=20, ci_low=0.258, ci_high=0.658)
    >>> CutPoint(turn=3, broke=broke)
    <CutPoint: turn=3, broke=9 of 20 [0.26, 0.66] on v2>
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__str__")
        if own is not None and not hasattr(own, "__wrapped__"):  # slots make a class a second time
            cls.__str__ = _safe_to_see(own)  # type: ignore[method-assign]

    def __str__(self) -> str:
        shown = (f"{name}={_value(getattr(self, name))}" for name in _fields(self))
        return ", ".join(shown)

    def __repr__(self) -> str:
        return f"<{one_line(f'{type(self).__name__}: {_first_line(self)}', LONGEST_LINE)}>"


class _Lines(str):
    """Lines that are meant as such."""

    __slots__ = ()


def in_lines(parts: Iterable[str]) -> str:
    r"""Return parts in a line each; where one has several, those that follow stand behind a bar.

    Examples
    --------
    >>> print(in_lines(["[1] user: Hello", "    agent: Done." + chr(10) + "[2] user: pay"]))
    [1] user: Hello
        agent: Done.
           | [2] user: pay
    """
    return _Lines("\n".join(marked(part, BAR) for part in parts))


def _safe_to_see(said: Callable[[Any], str]) -> Callable[[Any], str]:
    @wraps(said)
    def shown(self: Any) -> str:
        text = said(self)
        return str(text) if isinstance(text, _Lines) else marked(text, BAR)

    return shown


def _fields(shown: Any) -> Iterable[str]:
    fields = getattr(type(shown), "model_fields", None)
    return fields if fields is not None else [field.name for field in dataclasses.fields(shown)]


def _first_line(shown: object) -> str:
    return next(iter(str(shown).splitlines()), "")


def _value(value: object) -> str:
    if isinstance(value, Shown):
        own = type(value).__str__ is not Shown.__str__
        return one_line(_first_line(value), LONGEST_VALUE) if own else type(value).__name__
    if isinstance(value, str):
        return repr(one_line(value, LONGEST_VALUE))
    if isinstance(value, list | tuple | Mapping | Set) and len(value) > 0:
        return f"[{len(value)} items]" if len(value) > 1 else "[1 item]"
    return repr(value)


# --------------------------------------------------------------------------- numbers


def known(*values: float | None) -> bool:
    """Whether every value is a finite number."""
    return all(value is not None and math.isfinite(value) for value in values)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a rate as a percentage, or ``n/a`` where there is none.

    Examples
    --------
    >>> percent(0.516), percent(None), percent(float("nan"))
    ('51.6%', 'n/a', 'n/a')
    """
    return MISSING if value is None or not known(value) else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """Return a difference of two rates in percentage points, with its sign.

    Examples
    --------
    >>> points(0.021), points(-0.00001), points(None)
    ('+2.1', '0.0', 'n/a')
    """
    if value is None or not known(value):
        return MISSING
    shown = f"{abs(100 * value):.1f}"
    if float(shown) == 0:
        return shown
    return f"{MINUS if value < 0 else '+'}{shown}"


def span(low: float | None, high: float | None) -> str:
    """Return an interval of a difference in points, or ``no interval``.

    Examples
    --------
    >>> span(0.011, 0.25), span(None, 0.1)
    ('[+1.1, +25.0]', 'no interval')
    """
    return f"[{points(low)}, {points(high)}]" if known(low, high) else "no interval"


def p_value(value: float | None) -> str:
    """Return a p-value with three digits, never as zero.

    Examples
    --------
    >>> p_value(0.0312), p_value(0.00002), p_value(None)
    ('0.031', '< 0.001', 'n/a')
    """
    if value is None or not known(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def per_1000(value: float) -> str:
    """Return a rate per 1,000 with as many digits as it takes to see it.

    Examples
    --------
    >>> per_1000(12.345), per_1000(0.034), per_1000(0.0)
    ('12.3', '0.034', '0')
    """
    return f"{value:.3g}"


def count(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        In the singular.
    many : str
        The plural, where it is not the noun with an ``s``.

    Examples
    --------
    >>> count(1, "test"), count(1247, "test"), count(0, "category", "categories")
    ('1 test', '1,247 tests', '0 categories')
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"
