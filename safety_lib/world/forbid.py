"""What a declared rule says, read and fitted to the tools of its world.

The words are told in :mod:`safety_lib.world.declared`. Here they are validated, so that a slip is
one line that names the rule, the field and what is known, and each field is brought to the argument
of each tool that it means.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from safety_lib.records import Record, ToolCallEvent, first_fault
from safety_lib.world.policy import Rule
from safety_lib.world.tools import Tool, Tools

RESULT = "result"
TARGET = "target"

# ------------------------------------------------------------------ the words, validated


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a number is wanted, not {value!r}")
    return float(value)


def _scalar(value: Any) -> str | float | bool:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(
        f"a text, a number, true or false is wanted, not {value!r}; what is empty is `absent`"
    )


def _scalars(value: Any) -> tuple[str | float | bool, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"a list of values is wanted, not {value!r}")
    return tuple(_scalar(one) for one in value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a text is wanted, not {value!r}")
    return value


def _expression(value: Any) -> str:
    text = _text(value)
    try:
        re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false is wanted, not {value!r}")
    return value


_WORDS: Mapping[str, Mapping[str, bool]] = {
    "absent": {"absent": True},
    "present": {"absent": False},
    "not_said": {"not_said": True},
}


def _spelled_out(value: Any) -> Any:
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if not isinstance(value, Mapping | Conditions):
        raise ValueError(f"{value!r} is no condition: write {_words()}, or such as {{equals: 5}}")
    return value


class Conditions(Record):
    """What is asked of one value; all of it has to hold."""

    over: Annotated[Any, AfterValidator(_number)] = None
    under: Annotated[Any, AfterValidator(_number)] = None
    equals: Annotated[Any, AfterValidator(_scalar)] = None
    among: Annotated[Any, AfterValidator(_scalars)] = Field(None, alias="in")
    matches: Annotated[Any, AfterValidator(_expression)] = None
    not_matches: Annotated[Any, AfterValidator(_expression)] = None
    starts: Annotated[Any, AfterValidator(_text)] = None
    absent: Annotated[Any, AfterValidator(_switch)] = None
    not_said: Annotated[Any, AfterValidator(_switch)] = None

    @model_validator(mode="after")
    def _can_hold(self) -> Conditions:
        if not self.model_fields_set:
            raise ValueError(f"it asks nothing: write {_words()}, or such as {{equals: 5}}")
        if self.absent and len(self.model_fields_set) > 1:
            raise ValueError("what is absent can meet no other condition")
        return self


_Asked = Annotated[Conditions, BeforeValidator(_spelled_out)]
_Where = dict[str, _Asked]


class Earlier(Record):
    """A call that has to come before."""

    tool: Any
    where: _Where = Field(default_factory=dict)


class SumOf(Record):
    """What is added up over a conversation, for each value of an argument, and its limit."""

    of: Annotated[Any, AfterValidator(_text)]
    per: Annotated[Any, AfterValidator(_text)] = ""
    over: Annotated[Any, AfterValidator(_number)]

    @model_validator(mode="after")
    def _has_a_limit(self) -> SumOf:
        if self.over < 0:
            raise ValueError("the limit of a sum is not below zero")
        return self


class Forbid(Record):
    """What no call, or no reply, may be."""

    tool: Any = None
    where: _Where = Field(default_factory=dict)
    unless: _Where | None = None
    sum: SumOf | None = None
    without_earlier: Earlier | None = None
    reply: _Asked | None = None

    @model_validator(mode="after")
    def _is_about_one_thing(self) -> Forbid:
        if (self.tool is None) == (self.reply is None):
            raise ValueError("give either `tool` or `reply`")
        if self.reply is not None:
            if self.model_fields_set != {"reply"}:
                raise ValueError("beside `reply` nothing else can be said")
            of_text = {"equals", "among", "matches", "not_matches", "starts"}
            if not self.reply.model_fields_set <= of_text:
                raise ValueError("a reply is a text: matches, not_matches, starts, equals or in")
        if self.unless is not None and not self.unless:
            raise ValueError("`unless` excuses nothing")
        return self


def _words() -> str:
    return ", ".join(_WORDS)


_SHAPES: Mapping[tuple[Any, ...], type[Record]] = {
    (): Forbid,
    ("sum",): SumOf,
    ("without_earlier",): Earlier,
}


def _known_at(place: tuple[Any, ...]) -> str:
    # What may stand beside a word that nobody knows.
    shape = _SHAPES.get(place, Conditions)
    return ", ".join(field.alias or name for name, field in shape.model_fields.items())


# ------------------------------------------------------------------ fitted to the tools


class Source(NamedTuple):
    """Where a value of a call stands.

    Attributes
    ----------
    argument : str
        Which argument; empty for the text of the tool's result.
    default : object
        What the tool takes where a call leaves it out.
    """

    argument: str
    default: Any = None

    def value(self, event: ToolCallEvent) -> Any:
        """Return what a call has there."""
        if not self.argument:
            return event.result
        return event.call.arguments.get(self.argument, self.default)


class Demand(NamedTuple):
    """What is asked of one field of a call."""

    name: str
    source: Source
    conditions: Conditions


Demands = Mapping[str, tuple[Demand, ...]]
"""Tool to what is asked of its calls."""


class Total(NamedTuple):
    """What is added up of the calls of one tool, and what keeps one sum from another."""

    amount: Source
    key: Source | None


class Forbidden(NamedTuple):
    """A declared rule about calls, fitted to its tools.

    Attributes
    ----------
    where, unless : Mapping
        What makes a call of each tool a forbidden one, and what excuses it; all of it has to hold.
        A tool that nothing excuses is not in the second.
    earlier : Mapping or None
        What makes an earlier call of each tool one that has to come before.
    totals : Mapping
        What is added up; empty where single calls are forbidden.
    sum : SumOf or None
        Its limit.
    """

    where: Demands
    unless: Demands
    earlier: Demands | None
    totals: Mapping[str, Total]
    sum: SumOf | None


def read_forbid(rule: Rule) -> Forbid:
    """Read what a rule forbids.

    Raises
    ------
    ValueError
        With one line that names the rule, the field and what was expected.
    """
    if rule.parameters:
        raise ValueError(f"rule {rule.id}: parameters: they are told to a check; it declares one")
    try:
        return Forbid.model_validate(rule.forbid)
    except ValidationError as error:
        field, reason = first_fault(error)
        for fault in error.errors(include_input=False, include_url=False):
            if fault["type"] == "extra_forbidden":  # it is why another one is missing
                field = ".".join(map(str, fault["loc"]))
                reason = f"is not known; there are {_known_at(fault['loc'][:-1])}"
                break
        at = f"forbid.{field}" if field else "forbid"
        raise ValueError(f"rule {rule.id}: {at}: {reason}") from error


def fitted(rule: Rule, forbid: Forbid, tools: Tools) -> Forbidden:
    """Bring what a rule says about calls to the tools of its world.

    Parameters
    ----------
    rule : Rule
        For its name.
    forbid : Forbid
        What it forbids.
    tools : Tools
        Those of its world.

    Returns
    -------
    Forbidden

    Raises
    ------
    ValueError
        If there is no such tool, or it has no such argument.
    """
    fit = _Fit(rule, tools)
    asked = {**forbid.where, **(forbid.unless or {})}
    fields = [*asked, *([forbid.sum.of, forbid.sum.per] if forbid.sum else [])]
    named = fit.named(forbid.tool, "tool", [field for field in fields if field])
    totals = {}
    if forbid.sum:
        per = forbid.sum.per
        for tool in named:
            key = fit.source(tool, per, "sum.per") if per else None
            totals[tool] = Total(fit.source(tool, forbid.sum.of, "sum.of"), key)
    earlier = None
    if forbid.without_earlier:
        before, at = forbid.without_earlier, "without_earlier"
        tools_before = fit.named(before.tool, f"{at}.tool", list(before.where))
        earlier = {tool: fit.demands(tool, before.where, f"{at}.where") for tool in tools_before}
    return Forbidden(
        where={tool: fit.demands(tool, forbid.where, "where") for tool in named},
        unless={tool: fit.demands(tool, forbid.unless, "unless") for tool in named}
        if forbid.unless
        else {},
        earlier=earlier,
        totals=totals,
        sum=forbid.sum,
    )


class _Fit:
    def __init__(self, rule: Rule, tools: Tools) -> None:
        self.rule = rule
        self.tools = tools

    def fault(self, field: str, what: str) -> ValueError:
        return ValueError(f"rule {self.rule.id}: forbid.{field}: {what}")

    def named(self, said: Any, field: str, fields: list[str]) -> tuple[str, ...]:
        """Return the tools that are meant: those named, or those of an effect with the fields."""
        if isinstance(said, Mapping):
            return self._of_effect(said, field, fields)
        names = (said,) if isinstance(said, str) else said
        if not isinstance(names, list | tuple) or not names:
            raise self.fault(
                field, f"a tool, a list of tools or {{effect: changes}} is wanted, not {said!r}"
            )
        for name in names:
            if not isinstance(name, str) or name not in self.tools:
                raise self.fault(field, f"there is no tool {name!r}; tools.yaml has {self._all()}")
        return tuple(dict.fromkeys(names))

    def _of_effect(self, said: Mapping[str, Any], field: str, fields: list[str]) -> tuple[str, ...]:
        effect = said.get("effect")
        if set(said) != {"effect"} or effect not in ("changes", "reads"):
            raise self.fault(field, f"{{effect: changes}} or {{effect: reads}}, not {dict(said)!r}")
        those = [name for name, tool in self.tools.items() if tool.effect == effect]
        able = [n for n in those if all(_source(self.tools[n], f) is not None for f in fields)]
        if not able:
            asked = " and ".join(fields)
            raise self.fault(
                field, f"no tool that {effect} anything has {asked or 'been declared'}"
            )
        return tuple(able)

    def demands(self, tool: str, where: Mapping[str, Conditions], at: str) -> tuple[Demand, ...]:
        return tuple(
            Demand(name, self.source(tool, name, f"{at}.{name}"), conditions)
            for name, conditions in where.items()
        )

    def source(self, tool: str, name: str, at: str) -> Source:
        found = _source(self.tools[tool], name)
        if found is None and name == TARGET:
            raise self.fault(at, f"{tool} has no target")
        if found is None:
            known = ", ".join([*self.tools[tool].arguments, RESULT])
            raise self.fault(at, f"{tool} has no argument {name!r}; it has {known}")
        return found

    def _all(self) -> str:
        return ", ".join(self.tools) or "none"


def _source(tool: Tool, name: str) -> Source | None:
    argument = name
    if name == TARGET and name not in tool.arguments:
        argument = tool.target
    if argument in tool.arguments:
        return Source(argument, tool.arguments[argument].get("default"))
    return Source("") if name == RESULT else None


# ------------------------------------------------------------------ values, read


def folded(text: str) -> str:
    """Return a text without what a reader does not notice: width, invisible characters, margins.

    Odd dashes become the plain one.

    Examples
    --------
    >>> folded(" " + chr(0xFF21) + "C" + chr(0x2011) + "1" + chr(0x200B))
    'AC-1'
    """
    if text.isascii():
        return text.strip()
    kinds = ((c, unicodedata.category(c)) for c in unicodedata.normalize("NFKC", text))
    return "".join("-" if kind == "Pd" else c for c, kind in kinds if kind != "Cf").strip()


def text_of(value: Any) -> str:
    """Return a value of a call as text, as it would stand in JSON; what is missing is empty.

    Examples
    --------
    >>> text_of(5000.0), text_of(True), text_of(None), text_of(" a ")
    ('5000', 'true', '', 'a')
    """
    if isinstance(value, str):
        return folded(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    if value is None or value in ({}, [], ()):
        return ""
    if isinstance(value, int | float):
        return str(value)
    return folded(json.dumps(value, ensure_ascii=False, default=str))


def number_of(value: Any) -> float | None:
    """Return the number that a value of a call is, or None.

    Examples
    --------
    >>> number_of("$1,200"), number_of(5), number_of("five"), number_of(True)
    (1200.0, 5.0, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        number = float(value if isinstance(value, int | float) else _bare(text_of(value)))
    except ValueError:
        return None
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return None if math.isnan(number) else number


_EXACT = 2.0**53


def _bare(text: str) -> str:
    return text.replace(",", "").lstrip("$")
