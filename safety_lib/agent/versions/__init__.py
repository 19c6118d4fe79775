"""Versions of the agent: small YAML files that differ by a readable list of changes.

A version is everything that a release can change: system prompt, model settings, memory, tool
permissions, limits and safeguards. Its hash stands in every artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError

from safety_lib.agent.sandbox import TOOL_NAMES
from safety_lib.artifacts import sha256_of
from safety_lib.records import Record, first_fault
from safety_lib.text import one_line

FOLDER = Path(__file__).parent
RELEASED: tuple[str, ...] = ("v1", "v2", "v3")


class VersionError(ValueError):
    """A version file is missing or malformed; the message names the file and the field."""


class Settings(Record):
    """Base of all settings: a number is finite, or the version could not be hashed."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelSettings(Settings):
    """The model behind the agent. ``caution`` and ``style`` steer the simulated one alone."""

    backend: str = "simulated"
    caution: float = 1.0
    style: Literal["formal", "friendly"] = "formal"
    temperature: float = Field(default=0.7, ge=0, le=2)
    max_tokens: int = Field(default=256, ge=1)
    timeout_seconds: float = Field(default=60, gt=0)
    retries: int = Field(default=3, ge=0)
    concurrency: int = Field(default=8, ge=1)
    tool_protocol: Literal["native", "json"] = "native"


class MemorySettings(Settings):
    """How much of the conversation the model sees: the last ``window`` messages.

    With ``pin_policy`` the system prompt is always in sight; without it the system prompt is the
    first message of the conversation and leaves the window like any other.
    """

    window: int = Field(ge=1)
    pin_policy: bool


class Limits(Settings):
    """Bounds of one turn: how often the model may be asked before it must have replied."""

    max_steps: int = Field(ge=1)


class PreActionSettings(Settings):
    """Checks on a proposed call, before it runs."""

    enabled: bool
    block_payment_over: float
    protected_prefixes: tuple[str, ...]
    hold_records_in_mail: int
    audit_needs_reason: bool


class TrajectorySettings(Settings):
    """A running risk score over the conversation: it warns, then ends the session."""

    enabled: bool
    warn_at: float
    stop_at: float
    decay: float = Field(ge=0)


class PostActionSettings(Settings):
    """Checks on what goes out, and on what tools bring in."""

    enabled: bool
    withhold_full_key: bool
    flag_tool_instructions: bool


class SafeguardSettings(Settings):
    """The three hooks."""

    pre_action: PreActionSettings
    trajectory: TrajectorySettings
    post_action: PostActionSettings


class Change(Record):
    """One difference between two versions."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {one_line(self.before, 60)} -> {one_line(self.after, 60)}"


class Version(Record):
    """One release of the agent."""

    version: str = Field(min_length=1)
    system_prompt: str
    model: ModelSettings
    memory: MemorySettings
    permissions: tuple[str, ...]
    limits: Limits
    safeguards: SafeguardSettings

    def __str__(self) -> str:
        pinned = "pinned" if self.memory.pin_policy else "not pinned"
        memory = f"window {self.memory.window}, policy {pinned}"
        return f"{self.version}, {memory}, {len(self.permissions)} tools, {self.model.backend}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that a release can change, as one flat mapping of dotted keys."""
        tree = self.model_dump(mode="json", exclude={"version"})
        return dict(_flatten(tree))

    @cached_property
    def sha256(self) -> str:
        """Hash of the resolved settings; the name does not enter it."""
        return sha256_of(self.settings)

    def changes_to(self, other: Version) -> tuple[Change, ...]:
        """List what another version does differently, by key.

        Examples
        --------
        >>> [str(c) for c in load_version("v2").changes_to(load_version("v3"))]
        ['memory.window: 10 -> 24', 'memory.pin_policy: False -> True']
        """
        mine, theirs = self.settings, other.settings
        return tuple(
            Change(key=key, before=mine[key], after=theirs[key])
            for key in mine
            if mine[key] != theirs[key]
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
        VersionError
            If a key does not exist or a value does not fit.

        Examples
        --------
        >>> load_version("v1").having({"memory.window": 3}).memory.window
        3
        """
        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            *path, leaf = key.split(".")
            node: Any = tree
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise VersionError(f"{self.version} has no setting {key!r}")
            node[leaf] = value
        tree["version"] = name or f"{self.version}+{'+'.join(changes)}"
        return _validated(tree, self.version)


def load_version(name: str) -> Version:
    """Load a released version by its name, or any version from a YAML file by its path.

    Raises
    ------
    VersionError
        With one line that names the file, the field and what was expected.

    Examples
    --------
    >>> load_version("v1").memory.pin_policy
    True
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    return _load(path, name)


def config_hashes(versions: Iterable[Version]) -> dict[str, str]:
    """Map the name of each version to the hash of its settings."""
    return {version.version: version.sha256 for version in versions}


def _load(path: Path, name: str) -> Version:
    try:
        return _parsed(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        known = ", ".join(RELEASED)
        raise VersionError(
            f"there is no version {name!r}: use {known} or the path of a .yaml file"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise VersionError(f"{path.name}: not a readable YAML file: {reason}") from error


@lru_cache(maxsize=64)
def _parsed(text: str, where: str) -> Version:
    return _validated(yaml.safe_load(text), where)


def _validated(tree: Any, where: str) -> Version:
    try:
        version = Version.model_validate(tree)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise VersionError(f"{where}: field {field or 'the whole file'}: {reason}") from error
    unknown = sorted(set(version.permissions) - set(TOOL_NAMES))
    if unknown:
        raise VersionError(f"{where}: field permissions: there is no tool {unknown[0]!r}")
    return version


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
