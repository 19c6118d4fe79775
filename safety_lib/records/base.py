"""What all records share: the words of the loop, the base of a record, and that of a file."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

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


class Record(BaseModel):
    """Base of all records: frozen, and a field that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(Record):
    """What every file under ``artifacts/`` carries: what made it, from which seed and configs.

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
    policy_sha256: str
    content_sha256: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file that holds it."""
        return f"{self.SCHEMA}.json"
