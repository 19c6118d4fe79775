"""What a release of the packaged agent can change, validated: the settings of its versions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from safety_lib.records import Record
from safety_lib.world.versions import Version


class Settings(Record):
    """Base of all settings: a number is finite, or the version could not be hashed."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelSettings(Settings):
    """The model behind the agent. ``caution`` and ``style`` steer a simulated one alone.

    ``gguf`` with its ``sha256``, and ``adapter`` with its ``adapter_sha256``, are files of the
    ``local`` backend; what is not named is no setting, so that it does not count as a change.
    """

    backend: str = "simulated"
    caution: float = 1.0
    style: Literal["formal", "friendly"] = "formal"
    temperature: float = Field(default=0.7, ge=0, le=2)
    max_tokens: int = Field(default=256, ge=1)
    timeout_seconds: float = Field(default=60, gt=0)
    retries: int = Field(default=3, ge=0)
    concurrency: int = Field(default=8, ge=1)
    tool_protocol: Literal["native", "json"] = "native"
    gguf: str = ""
    sha256: str = ""
    adapter: str = ""
    adapter_sha256: str = ""

    @model_serializer(mode="wrap")
    def _as_named(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value != ""}


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


class AgentSettings(Settings):
    """Everything that a release of the packaged agent can change.

    ``safeguards`` is for the world to validate: what its hooks check is its own.
    """

    system_prompt: str
    model: ModelSettings
    memory: MemorySettings
    permissions: tuple[str, ...]
    limits: Limits
    safeguards: dict[str, Any]


def agent_settings(version: Version) -> AgentSettings:
    """Return the settings of a version of the packaged agent.

    Raises
    ------
    pydantic.ValidationError
        If they are of another agent.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> agent_settings(load_version("northwind/v1")).memory.pin_policy
    True
    """
    return AgentSettings.model_validate(version.settings)
