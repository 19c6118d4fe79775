"""Versions of an agent: small YAML files that differ by a readable list of changes.

A version is everything that a release can change, as a tree of settings; which settings there are
is for the world to say. Its hash stands in every artifact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from safety_lib.files import sha256_of
from safety_lib.records import Record, first_fault
from safety_lib.text import error_line, one_line

FILE_ENDINGS = (".yaml", ".yml")


class WorldError(ValueError):
    """A world or a version of it is missing or malformed; the message names file and field."""


class Change(Record):
    """One difference between two versions; what one of them has not is None there."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {one_line(self.before, 60)} -> {one_line(self.after, 60)}"


class Version(Record):
    """One release of an agent.

    Attributes
    ----------
    version : str
        Its name.
    world : str
        What finds its world again: a packaged name, or the path of a folder.
    settings : dict
        A tree of everything that a release can change.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: str = Field(min_length=1)
    world: str
    settings: dict[str, Any]

    def __hash__(self) -> int:
        return hash((self.version, self.world, self.sha256))

    def __str__(self) -> str:
        return f"{self.version}, {len(self.flat)} settings, {self.sha256[:8]}"

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The settings as one flat mapping of dotted keys."""
        return dict(_flatten(self.settings))

    @cached_property
    def sha256(self) -> str:
        """Hash of the resolved settings; name and world do not enter it."""
        return sha256_of(self.flat)

    def changes_to(self, other: Version) -> tuple[Change, ...]:
        """List what another version does differently, by key.

        Examples
        --------
        >>> from safety_lib.world import load_version
        >>> before, after = load_version("northwind/v2"), load_version("northwind/v3")
        >>> [str(change) for change in before.changes_to(after)]
        ['memory.window: 10 -> 24', 'memory.pin_policy: False -> True']
        """
        mine, theirs = self.flat, other.flat
        return tuple(
            Change(key=key, before=mine.get(key), after=theirs.get(key))
            for key in dict.fromkeys((*mine, *theirs))
            if mine.get(key) != theirs.get(key)
        )

    def having(self, changes: Mapping[str, Any], name: str = "") -> Version:
        """Return this version with some settings replaced.

        Parameters
        ----------
        changes : mapping
            Dotted key to value, such as ``{"memory.window": 24}``.
        name : str, optional
            Name of the result; by default this version's name and the changed keys.

        Raises
        ------
        WorldError
            If a key does not exist or a value does not fit.

        Examples
        --------
        >>> from safety_lib.world import load_version
        >>> load_version("northwind/v1").having({"memory.window": 3}).flat["memory.window"]
        3
        """
        from safety_lib.world import load_world

        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            *path, leaf = key.split(".")
            node: Any = tree["settings"]
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise WorldError(f"{self.version} has no setting {key!r}")
            node[leaf] = value
        tree["version"] = name or f"{self.version}+{'+'.join(changes)}"
        return Version.fitting(tree, self.version, load_world(self.world).settings_of)

    @classmethod
    def fitting(
        cls, tree: Mapping[str, Any], where: str, fit: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> Version:
        """Make a version of a tree whose settings the world accepts.

        Parameters
        ----------
        tree : Mapping
            With ``version``, ``world`` and ``settings``.
        where : str
            The file, for the message.
        fit : callable
            Returns the settings with defaults filled in.

        Returns
        -------
        Version
            With the settings resolved.

        Raises
        ------
        WorldError
            With one line that names the file and the field.
        """
        field = ""
        try:
            version = cls.model_validate(tree)
            field = "settings."
            fitted = version.model_copy(update={"settings": fit(version.settings)})
        except ValidationError as error:
            name, reason = first_fault(error)
            at = f"{field}{name}".rstrip(".") or "the whole file"
            raise WorldError(f"{where}: field {at}: {reason}") from error
        except WorldError as error:
            raise WorldError(f"{where}: {error}") from error
        except (Exception, SystemExit) as error:  # settings_of is somebody's code
            raise WorldError(f"{where}: settings_of of world.py: {error_line(error)}") from error
        for key, value in fitted.flat.items():
            if not _is_json(value):
                raise WorldError(
                    f"{where}: field settings.{key}: JSON cannot hold {one_line(value, 60)}"
                )
        return fitted


def config_hashes(versions: Iterable[Version]) -> dict[str, str]:
    """Map the name of each version to the hash of its settings."""
    return {version.version: version.sha256 for version in versions}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
