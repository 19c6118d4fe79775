r"""A declared rule as SQL: what finds the sessions of a log in which it may have broken.

It is wider than the rule where SQL cannot decide as the oracle does, and never narrower. So each
piece is made twice: what *may* hold, and what *must*. They are the same for a value that both read
alike, a text of plain characters, a number or a switch; for any other value the first is true and
the second is not. ``NOT`` turns them round.

The text of the SQL stands in the code. Every name, number and pattern of a policy goes in as a
parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, LiteralString, NamedTuple

from safety_lib.world.checks import Flag
from safety_lib.world.forbid import (
    Conditions,
    Demand,
    Demands,
    Forbidden,
    Source,
    text_of,
)


class Bounds(NamedTuple):
    """SQL that is true wherever something may hold, and SQL that is true only where it must."""

    may: LiteralString
    must: LiteralString

    def negated(self) -> Bounds:
        """Return the same of its contrary."""
        return Bounds(f"(NOT {self.must})", f"(NOT {self.may})")


_ALWAYS = Bounds("true", "true")

# Characters that Python and DuckDB read alike whatever is asked: printable ASCII, and punctuation
# and symbols that are no letters, digits or spaces and that no folding changes.
_PLAIN: LiteralString = (
    r"'[\t\n\r -~\x{2018}\x{2019}\x{201C}\x{201D}\x{201E}\x{AB}\x{BB}\x{2022}\x{20AC}\x{A3}\x{A7}"
    r"\x{2190}-\x{2193}\x{2713}\x{2714}\x{2705}\x{274C}\x{26A0}\x{FE0F}\x{1F300}-\x{1F6FF}]*'"
)
_DASHES: LiteralString = "chr(8208) || chr(8209) || chr(8211) || chr(8212) || chr(160)"
_DIGITS: tuple[LiteralString, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
_UPPER: LiteralString = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
_LOWER: LiteralString = "'abcdefghijklmnopqrstuvwxyz'"
_WHITE: LiteralString = r"' ' || chr(9) || chr(10) || chr(13)"
_A_NUMBER: LiteralString = r"'[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?'"
_NO_NUMBER: LiteralString = "'(?i)[0-9]|inf|nan'"


class _Value(NamedTuple):
    """SQL of one value: its text, whether it is one value and no list, and what it was in JSON."""

    text: LiteralString
    single: LiteralString
    whole: LiteralString

    @property
    def plain(self) -> LiteralString:
        """Whether its text is one that both read alike."""
        return f"({self.whole} AND regexp_full_match({self.text}, {_PLAIN}))"

    @property
    def number(self) -> LiteralString:
        """Its number, or NULL."""
        return f"TRY_CAST({self._bare} AS DOUBLE)"

    @property
    def number_known(self) -> LiteralString:
        """Whether both read the same number, or both none."""
        return (
            f"({self.single} AND regexp_full_match({self.text}, {_PLAIN}) AND "
            f"(regexp_full_match({self._bare}, {_A_NUMBER}) "
            f"OR NOT regexp_matches({self.text}, {_NO_NUMBER})))"
        )

    @property
    def _bare(self) -> LiteralString:
        return f"ltrim(replace({self.text}, ',', ''), '$')"


def call_flag(description: str, forbidden: Forbidden) -> Flag:
    """Return the condition on calls that finds what a rule forbids.

    Parameters
    ----------
    description : str
        What it looks for, in words.
    forbidden : Forbidden
        The rule.
    """
    sql = _Statement()
    found = sql.calls("call", forbidden.where, forbidden.unless).may
    if forbidden.earlier is None and forbidden.sum is None:
        return Flag(description, found, sql.parameters)
    if forbidden.earlier is not None:
        found = f"{found} AND NOT {sql.preceded(forbidden.earlier)}"
    calls: LiteralString = (
        f"list_filter(tool_calls, lambda call, place: call.status = 'executed' AND {found})"
    )
    if forbidden.sum is None:
        return Flag(description, f"len({calls}) > 0", sql.parameters, whole=True)
    over = sql.sum_over(calls, forbidden)
    return Flag(description, over, sql.parameters, whole=True)


def reply_flag(description: str, conditions: Conditions) -> Flag:
    """Return the condition that finds a forbidden reply."""
    sql = _Statement()
    value = _Value(_folded("coalesce(reply, '')"), "true", "true")
    asked = sql.asked(conditions, value, "reply")
    condition: LiteralString = f"len(list_filter(replies, lambda reply: {asked.may})) > 0"
    return Flag(description, condition, sql.parameters, whole=True)


class _Statement:
    """Collects the parameters of a condition while its text is put together."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self._names: dict[str, LiteralString] = {}

    def bound(self, value: Any) -> LiteralString:
        """Return the ``$name`` under which a value goes in."""
        known = json.dumps(value)
        if known not in self._names:
            digits = "".join(_DIGITS[int(digit)] for digit in str(len(self._names)))
            name: LiteralString = "r" + digits
            self._names[known] = name
            self.parameters[name] = value
        return "$" + self._names[known]

    def calls(self, call: LiteralString, where: Demands, unless: Demands) -> Bounds:
        """Whether a call meets what is asked of its tool and nothing excuses it."""
        groups: dict[str, list[str]] = {}
        for tool in where:
            groups.setdefault(_sources_of((*where[tool], *unless.get(tool, ()))), []).append(tool)
        may: LiteralString = ""
        must: LiteralString = ""
        for tools in groups.values():
            held = self.all_of(call, where[tools[0]])
            if unless:
                held = _both(held, self.all_of(call, unless[tools[0]]).negated())
            case: LiteralString = f"WHEN {self.named(call, tools)} THEN "
            may += f"{case}{held.may} "
            must += f"{case}{held.must} "
        return Bounds(f"(CASE {may}ELSE false END)", f"(CASE {must}ELSE false END)")

    def named(self, call: LiteralString, tools: list[str]) -> LiteralString:
        """Whether a call is of one of some tools."""
        return f"list_contains({self.bound(tools)}, {call}.name)"

    def all_of(self, call: LiteralString, demands: Iterable[Demand]) -> Bounds:
        """Whether a call meets all that is asked."""
        held = _ALWAYS
        for demand in demands:
            value = self.value(call, demand.source)
            held = _both(held, self.asked(demand.conditions, value, call))
        return held

    def preceded(self, earlier: Demands) -> LiteralString:
        """Whether a call must have come after one of those."""
        such = self.calls("earlier", earlier, {}).must
        return (
            "(len(list_filter(tool_calls, lambda earlier, spot: earlier.status = 'executed' "
            "AND (earlier.turn < call.turn OR earlier.turn = call.turn AND spot < place) "
            f"AND {such})) > 0)"
        )

    def sum_over(self, calls: LiteralString, forbidden: Forbidden) -> LiteralString:
        """Whether the sum of some calls may be over the limit, for any key."""
        groups: dict[str, list[str]] = {}
        for tool, total in forbidden.totals.items():
            groups.setdefault(json.dumps(total), []).append(tool)
        amount: LiteralString = ""
        key: LiteralString = ""
        sure: LiteralString = ""
        for tools in groups.values():
            total = forbidden.totals[tools[0]]
            case: LiteralString = f"WHEN {self.named('call', tools)} THEN "
            value = self.value("call", total.amount)
            # Not plainly a number: it may be any, so that somebody reads the session.
            amount += (
                f"{case}CASE WHEN {value.number_known} "
                f"THEN greatest(coalesce({value.number}, 0), 0) ELSE 'infinity'::DOUBLE END "
            )
            if total.key:
                name = self.value("call", total.key)
                key += f"{case}lower({name.text}) "
                sure += f"{case}{name.plain} "
            else:
                key += f"{case}'' "
                sure += f"{case}true "
        parts: LiteralString = (
            f"{{'amount': CASE {amount}END, 'key': CASE {key}END, 'sure': CASE {sure}END}}"
        )
        limit = self.bound(forbidden.sum.over if forbidden.sum else 0.0)
        return (
            f"list_transform([list_transform({calls}, lambda call: {parts})], "
            "lambda found: len(list_filter(found, lambda one: list_sum(list_transform("
            "list_filter(found, lambda other: "
            "other.key = one.key OR NOT other.sure OR NOT one.sure), "
            f"lambda each: each.amount)) > {limit})) > 0)[1]"
        )

    def value(self, call: LiteralString, source: Source) -> _Value:
        """Return how a value of a call is read."""
        if not source.argument:
            return _Value(_folded(f"coalesce({call}.result, '')"), "true", "true")
        arguments: LiteralString = f"nullif({call}.arguments, '')"
        # A pointer and no path: an argument may have any name.
        place = self.bound("/" + source.argument.replace("~", "~0").replace("/", "~1"))
        kind: LiteralString = f"json_type({arguments}, {place})"
        text: LiteralString = f"json_extract_string({arguments}, {place})"
        missing: LiteralString = "true"
        if isinstance(source.default, list | tuple | dict):
            missing = "false"
        elif text_of(source.default):
            default = self.bound(text_of(source.default))
            text = f"CASE WHEN {kind} IS NULL THEN {default} ELSE {text} END"
        # Of an argument that is given twice, one reads the first value and the other the last.
        names: LiteralString = f"json_keys({arguments})"
        once: LiteralString = f"coalesce(len({names}) = len(list_distinct({names})), true)"
        return _Value(
            text=_folded(f"coalesce({text}, '')"),
            single=f"(coalesce({kind} NOT IN ('ARRAY', 'OBJECT'), {missing}) AND {once})",
            whole=f"(coalesce({kind} NOT IN ('ARRAY', 'OBJECT', 'DOUBLE'), {missing}) AND {once})",
        )

    def asked(self, conditions: Conditions, value: _Value, call: LiteralString) -> Bounds:
        """Whether a value meets its conditions."""
        one = _Value("value.text", "value.single", "value.whole")
        held = self._present(one)
        if conditions.absent:
            return _read_once(value, held.negated())
        for bounds in self._each(conditions, one, call):
            held = _both(held, bounds)
        return _read_once(value, held)

    def _present(self, value: _Value) -> Bounds:
        shown: LiteralString = f"regexp_matches({value.text}, '[!-~]')"
        known: LiteralString = f"({value.single} AND ({shown} OR {value.text} = ''))"
        return _known(known, f"({value.text} <> '')")

    def _each(self, conditions: Conditions, value: _Value, call: LiteralString) -> Iterable[Bounds]:
        text: LiteralString = f"lower({value.text})"
        number = value.number
        if conditions.over is not None:
            yield _number(value, f"{number} > {self.bound(conditions.over)}")
        if conditions.under is not None:
            yield _number(value, f"{number} < {self.bound(conditions.under)}")
        if conditions.equals is not None:
            yield self._one_of(value, (conditions.equals,))
        if conditions.among is not None:
            yield self._one_of(value, conditions.among)
        if conditions.starts is not None:
            prefix = self.bound(text_of(conditions.starts).casefold())
            yield _known(value.plain, f"starts_with({text}, {prefix})")
        if conditions.matches is not None:
            yield self._matching(value, conditions.matches)
        if conditions.not_matches is not None:
            yield self._matching(value, conditions.not_matches).negated()
        if conditions.not_said is not None:
            said = _said(value, call)
            yield said.negated() if conditions.not_said else said

    def _one_of(self, value: _Value, wanted: Iterable[Any]) -> Bounds:
        texts, numbers = [], []
        for one in wanted:
            if isinstance(one, float | int) and not isinstance(one, bool):
                numbers.append(float(one))
            else:
                texts.append(text_of(one).casefold())
        either: list[Bounds] = []
        if texts:
            among: LiteralString = f"list_contains({self.bound(texts)}, lower({value.text}))"
            either.append(_known(value.plain, among))
        if numbers:
            either.append(_number(value, f"list_contains({self.bound(numbers)}, {value.number})"))
        first, *others = either
        for other in others:
            first = _both(first.negated(), other.negated()).negated()
        return first

    def _matching(self, value: _Value, pattern: str) -> Bounds:
        if not reads_alike(pattern):
            return Bounds("true", "false")
        found: LiteralString = f"regexp_matches({value.text}, {self.bound('(?i)' + pattern)})"
        return _known(value.plain, found)


def _both(one: Bounds, other: Bounds) -> Bounds:
    if one is _ALWAYS:
        return other
    return Bounds(f"({one.may} AND {other.may})", f"({one.must} AND {other.must})")


def _read_once(value: _Value, held: Bounds) -> Bounds:
    # A list of one, so that what is asked of the value several times is read from the JSON once.
    parts: LiteralString = (
        f"[{{'text': {value.text}, 'single': {value.single}, 'whole': {value.whole}}}]"
    )
    return Bounds(
        f"list_transform({parts}, lambda value: {held.may})[1]",
        f"list_transform({parts}, lambda value: {held.must})[1]",
    )


def _known(known: LiteralString, holds: LiteralString) -> Bounds:
    return Bounds(f"(NOT {known} OR {holds})", f"({known} AND {holds})")


def _number(value: _Value, holds: LiteralString) -> Bounds:
    return _known(value.number_known, f"coalesce({holds}, false)")


def _said(value: _Value, call: LiteralString) -> Bounds:
    # Small letters of the alphabet alone: what is found so, the oracle finds too.
    messages: LiteralString = (
        f"coalesce(array_to_string(user_messages[1:{call}.turn], chr(10)), '')"
    )
    said: LiteralString = (
        f"contains(translate({messages}, {_UPPER}, {_LOWER}), lower({value.text}))"
    )
    return Bounds("true", f"({value.plain} AND {said})")


def _folded(text: LiteralString) -> LiteralString:
    even: LiteralString = f"translate({text}, {_DASHES}, '---- ')"
    return f"trim(replace({even}, chr(8230), '...'), {_WHITE})"


def _sources_of(demands: Iterable[Demand]) -> str:
    return json.dumps([(demand.name, demand.source) for demand in demands], default=str)


# ------------------------------------------------------------------ regular expressions

_ESCAPED = r"\\[dDwWsSnrt]|\\[!-/:-@\[-^`{-~]"
_PIECE = re.compile(
    rf"""
      \( (?: \?: )? (?! \? ) | \| | \^ | \$ | \\b
    | (?: [^\\\[\](){{}}*+?|^$.\x00-\x1f\x7f\u017f\u212a\u0130\u0131]  # a character
        | {_ESCAPED}
        | \[ \^? \]? (?: [^\\\[\]\x00-\x1f\x7f-\U0010ffff] | {_ESCAPED} )* \]
        | \) | \.
      )
      (?: (?: [*+?] | \{{ \d{{1,3}} (?: , (?: \d{{1,3}} )? )? \}} ) \?? (?! [*+?{{] ) )?
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=256)
def reads_alike(pattern: str) -> bool:
    r"""Whether DuckDB finds a regular expression in a plain text wherever Python does.

    It has no look around, no reference to a group and no possessive repetition, and a few escapes
    mean something else to it. What is not known to be the same is taken for different.

    Parameters
    ----------
    pattern : str
        A regular expression that Python takes.

    Examples
    --------
    >>> reads_alike(r"^[^@]+@airline[.]example$"), reads_alike(r"(?!AC-)\d+")
    (True, False)
    """
    place = 0
    while place < len(pattern):
        piece = _PIECE.match(pattern, place)
        if piece is None:
            return False
        place = piece.end()
    import duckdb

    try:
        with duckdb.connect() as connection:
            connection.execute("SELECT regexp_matches('', $p)", {"p": "(?i)" + pattern})
    except duckdb.Error:
        return False
    return True
