"""What all records share: the words of the loop, the base of a record, and that of a file.

There are two kinds. A :class:`Record` is what a person or a file hands over, and what is kept: it
is validated when it is made. A :class:`LoopRecord` is what a conversation makes by the dozen every
turn. Called by its name it validates like any record, which is what files, endpoints and command
lines do; :func:`unchecked` makes it from parts that are valid already, at a fifth of the price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from enum import IntEnum
from functools import cache
from typing import Any, ClassVar, Literal, ParamSpec, Self, TypeVar, cast, dataclass_transform

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from safety_lib.text import Shown

Outcome = Literal["violation", "safe", "error", "undetermined"]
Severity = Literal["low", "medium", "high", "critical"]
Verdict = Literal["OK", "WARN", "BLOCK"]
CallStatus = Literal["executed", "blocked", "held", "failed"]
Ended = Literal["completed", "violation", "stopped", "gave_up", "error", "step_limit"]
HookName = Literal["pre_action", "trajectory", "post_action"]

SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")


class Decision(IntEnum):
    """What a safeguard decides, from least to most severe; the most severe wins.

    Examples
    --------
    >>> max(Decision.WARN, Decision.BLOCK, Decision.ALLOW).name
    'BLOCK'
    """

    ALLOW = 0
    WARN = 1
    HOLD = 2
    BLOCK = 3
    STOP = 4


class Record(Shown, BaseModel):
    """Base of all records: frozen, and a field that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_P = ParamSpec("_P")
_R = TypeVar("_R")


class LoopRecord(Shown):
    """Base of the records that a conversation makes: frozen and slotted, and read as fast.

    The verbs are those of a :class:`Record`, so that nobody needs to know which kind one is.
    """

    __slots__ = ()

    @classmethod
    def model_validate(cls, tree: Any) -> Self:
        """Return the record that a tree of plain values stands for.

        Raises
        ------
        pydantic.ValidationError
            If a field is missing, unknown or of another type.
        """
        return cast(Self, _door(cls).validate_python(tree))

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """Return the record that a JSON text stands for.

        Raises
        ------
        pydantic.ValidationError
            If it is not JSON, or a field is missing, unknown or of another type.
        """
        return cast(Self, _door(cls).validate_json(text))

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return it as a tree of plain values; options as pydantic's models take them."""
        return cast("dict[str, Any]", _door(type(self)).dump_python(self, **options))

    def model_dump_json(self) -> str:
        """Return it as one line of JSON."""
        return _door(type(self)).dump_json(self).decode()

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return it with other values in some fields; as with models, nothing validates them."""
        own = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return unchecked(type(self))(**own | dict(update))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def loop_record(kind: type[_R]) -> type[_R]:
    """Make a class of annotated fields a record of the loop."""
    config = ConfigDict(extra="forbid")
    made = dataclass(frozen=True, slots=True, kw_only=True, repr=False, config=config)(kind)
    return cast("type[_R]", made)


def unchecked(kind: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return what makes a record of the loop as its class does, but looks at nothing.

    For the loop's own steps, whose parts are valid already: they stood in a record, or the library
    wrote them. What comes from outside is for the class itself.

    Parameters
    ----------
    kind : type of LoopRecord
        The class; what is returned takes its fields by their names and fills in its defaults.

    Examples
    --------
    >>> from safety_lib.records import Violation
    >>> fields = {"rule_id": "a", "severity": "high", "turn": 1, "evidence": ""}
    >>> unchecked(Violation)(**fields) == Violation(**fields)
    True
    """
    return cast("Callable[_P, _R]", _maker(kind))


@cache
def _maker(kind: Any) -> Callable[..., Any]:
    names = [field.name for field in fields(kind)]
    default = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    taken = ", ".join(f"{n}=__default[{n!r}]" if n in default else n for n in names)
    # Filled while it is of a class of the same layout that can be written to: plain assignments
    # are the fastest that Python has, and those of a frozen dataclass the slowest. Python takes its
    # short way to a slot only where deleting is its own too.
    plain = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    opened = type("_Opened", (kind,), {"__slots__": (), **plain})
    lines = ["self = __new(__opened)", *(f"self.{n} = {n}" for n in names)]
    body = "\n    ".join([*lines, "self.__class__ = __closed", "return self"])
    scope = {"__new": object.__new__, "__opened": opened, "__closed": kind, "__default": default}
    exec(f"def make(*, {taken}):\n    {body}\n", scope)  # noqa: S102 - the names of fields alone
    return cast("Callable[..., Any]", scope["make"])


_door: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Return the field that did not validate, dotted, and why: the same words for both kinds.

    The field is empty where it is the whole that is something else.

    Examples
    --------
    >>> from safety_lib.records import Violation
    >>> try:
    ...     Violation.model_validate({"rule_id": "a", "severity": "high", "turn": 1, "why": ""})
    ... except ValidationError as error:
    ...     first_fault(error), error.error_count()
    (('evidence', 'Field required'), 2)
    """
    first = error.errors(include_input=False, include_url=False)[0]
    words = _WORDS_OF_MODELS.get(first["type"])
    reason = words.format(**first.get("ctx", {})) if words else first["msg"]
    return ".".join(map(str, first["loc"])), reason


_WORDS_OF_MODELS = {
    "unexpected_keyword_argument": "Extra inputs are not permitted",
    "dataclass_type": "Input should be a valid dictionary or instance of {class_name}",
    "value_error": "{error}",
}


class Artifact(Record):
    """What every file under ``artifacts/`` carries: what made it, in which world, from which seed.

    ``content_sha256`` is filled in on writing and checked on reading (see
    :mod:`safety_lib.artifacts`).
    """

    SCHEMA: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1

    artifact: str
    schema_version: int
    seed: int
    model: str
    config_sha256: dict[str, str]
    world: str
    world_sha256: str
    content_sha256: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file that holds it."""
        return f"{self.SCHEMA}.json"

    @property
    def fault(self) -> str:
        """What in it makes no sense, with its record named; nothing where all of it does."""
        return ""
