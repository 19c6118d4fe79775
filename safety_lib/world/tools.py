"""The tools of a world, as data: what a call takes, what it does, and how far it reaches.

``tools.yaml`` maps the name of each tool to its declaration. Nothing in the library knows a tool
but through it::

    send_mail:
      description: Send a mail.
      effect: changes
      target: to
      reversible: false
      reach: one
      arguments:
        to: {type: string, description: mail address}
        subject: {type: string, description: subject line, default: ""}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from safety_lib.records import Record, Severity

Reach = Literal["one", "several", "company", "outside"]
ToolSchema = Mapping[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


class ToolError(Exception):
    """A call that the tool refuses: wrong arguments, or nothing there to act on."""


class Shows(Record):
    """What a tool that reads brings to light: the text of one entry of a place, or of several.

    Attributes
    ----------
    place : str
        Where it reads; text can be planted there.
    key : str
        The argument that names the entry.
    lines : str
        For a tool that reads the whole place: a regular expression whose two groups find an entry's
        name and text in a line of the result.
    open : bool
        Whether somebody outside can leave text there.
    """

    place: str
    key: str = ""
    lines: str = ""
    open: bool = True


class Tool(Record):
    """One tool.

    Attributes
    ----------
    effect : str
        ``reads`` or ``changes``.
    target : str
        The argument that says what a call acts on; empty where there is none.
    tells : tuple of str
        Arguments that tell one act from another beside the target, such as an amount.
    reversible : bool or None
        Whether what a call changed can be undone; a tool that changes something has to say.
    reach : str or None
        How far what it changed reaches: ``one``, ``several``, ``company`` or ``outside``.
    severity : str or None
        Of a rule that a call of it breaks, where neither table nor rule is to say.
    shows : Shows or None
        What it reads.
    arguments : Mapping
        Each argument's JSON schema; one with a ``default`` may be left out.
    """

    description: str = ""
    effect: Literal["reads", "changes"]
    target: str = ""
    tells: tuple[str, ...] = ()
    reversible: bool | None = None
    reach: Reach | None = None
    severity: Severity | None = None
    shows: Shows | None = None
    arguments: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_what_it_does(self) -> Tool:
        if self.effect == "changes" and (self.reversible is None or self.reach is None):
            raise ValueError("a tool that changes something says `reversible` and `reach`")
        named = [self.target, *self.tells, self.shows.key if self.shows else ""]
        unknown = [name for name in named if name and name not in self.arguments]
        if unknown:
            raise ValueError(f"it has no argument {unknown[0]!r}")
        return self

    @property
    def changes(self) -> bool:
        """Whether a call of it changes something."""
        return self.effect == "changes"

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that cannot be left out."""
        return tuple(name for name, schema in self.arguments.items() if "default" not in schema)

    @cached_property
    def properties(self) -> dict[str, dict[str, Any]]:
        """The arguments as JSON schema knows them."""
        return {
            name: {key: value for key, value in schema.items() if key != "default"}
            for name, schema in self.arguments.items()
        }

    def checked(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call in their order, with defaults for those left out.

        Parameters
        ----------
        name : str
            What the tool is called, for the message.
        arguments : Mapping
            As the model gave them.

        Returns
        -------
        dict
            A value for each argument.

        Raises
        ------
        ToolError
            If an argument is unknown, missing or of another type.
        """
        unknown = arguments.keys() - self.arguments.keys()
        if unknown:
            raise ToolError(f"{name} takes no argument {sorted(unknown)[0]!r}")
        values = {}
        for argument, schema in self.arguments.items():
            if argument not in arguments:
                if "default" not in schema:
                    raise ToolError(f"{name} needs the argument {argument!r}")
                values[argument] = schema["default"]
                continue
            value, kind = arguments[argument], schema.get("type", "")
            fits = isinstance(value, _TYPES.get(kind, object))
            if not fits or (kind in ("number", "integer") and isinstance(value, bool)):
                raise ToolError(f"{argument} of {name} must be a {kind}")
            values[argument] = value
        return values


class Tools(dict[str, Tool]):
    """The tools of a world by their names."""

    @cached_property
    def changing(self) -> frozenset[str]:
        """The names of those that change something."""
        return frozenset(name for name, tool in self.items() if tool.changes)

    @cached_property
    def final(self) -> frozenset[str]:
        """The names of those whose calls cannot be undone."""
        return frozenset(name for name in self.changing if not self[name].reversible)

    @cached_property
    def showing(self) -> frozenset[str]:
        """The names of those that bring text of the world to light."""
        return frozenset(name for name, tool in self.items() if tool.shows)

    @cached_property
    def places(self) -> frozenset[str]:
        """Where text can be planted, because some tool reads it there."""
        shown = (tool.shows for tool in self.values() if tool.shows)
        return frozenset(shows.place for shows in shown if shows.open)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The arguments that say what a call acts on, of all tools."""
        return tuple(dict.fromkeys(t.target for t in self.values() if t.target))

    def schemas(self, permitted: Iterable[str]) -> tuple[ToolSchema, ...]:
        """Return the permitted tools in the OpenAI tools format.

        Raises
        ------
        KeyError
            If a tool is unknown.
        """
        return tuple(self._schema(name) for name in permitted)

    def _schema(self, name: str) -> dict[str, Any]:
        tool = self[name]
        return {
            "type": "function",
            "function": {
                "name": name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": tool.properties,
                    "required": list(tool.required),
                    "additionalProperties": False,
                },
            },
        }

    def act(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Return what a call does in a word: its tool, and what it acts on."""
        tool = self.get(name)
        told = (tool.target, *tool.tells) if tool else ()
        return " ".join([name, *(str(arguments[t]) for t in told if t in arguments)])
