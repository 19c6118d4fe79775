"""Results of tau2-bench and tau-bench: conversations with a simulated user, each with a reward.

Both call a task done at a reward of 1. What tau2-bench keeps as a folder has an index of all its
simulations in ``results.json``, which is read alone; without an index each of them is. What did not
end by itself was not evaluated: a limit leaves it undetermined, and a failure of the harness or of
the simulated user is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from safety_lib.records import Outcome
from safety_lib.results.in_pieces import read_in_pieces
from safety_lib.results.opening import (
    Held,
    OfATool,
    content_of,
    glimpse,
    noted,
    numbered,
    parsed,
    refused,
    title,
)
from safety_lib.results.table import Sample

_LIMITS = {"max_steps", "timeout", "context_window_exceeded"}
_ERRORS = {"infrastructure_error", "unexpected_error", "user_error"}
_WHOLE, _INDEX = ("simulations",), ("simulation_index",)
_ALMOST = 1e-6  # as its own is_successful


class _Reward(OfATool):
    reward: float | None = None


class _Simulation(OfATool):
    task_id: int | str
    trial: int | None = None
    reward_info: _Reward | None = None
    reward: float | None = None
    termination_reason: str | None = None


class _Model(OfATool):
    implementation: str | None = None
    llm: str | None = None


class _Domain(OfATool):
    domain_name: str = ""


class _Info(OfATool):
    agent_info: _Model = Field(default_factory=_Model)
    environment_info: _Domain = Field(default_factory=_Domain)


class _Results(OfATool):
    info: _Info = Field(default_factory=_Info)


class _Old(OfATool):
    task_id: int | str
    reward: float
    info: dict[str, Any] = Field(default_factory=dict)
    trial: int | None = None


def knows_tau(path: Path, head: bytes) -> bool:
    """Whether a file begins as results of tau2-bench do."""
    seen = glimpse(head)
    info = seen.get("info") if isinstance(seen, dict) else None
    return isinstance(info, dict) and {"git_commit", "num_trials"} <= set(info)


def knows_first_tau(path: Path, head: bytes) -> bool:
    """Whether a file begins as results of tau-bench do."""
    seen = glimpse(head)
    first = seen[0] if isinstance(seen, list) and seen else None
    return isinstance(first, dict) and {"task_id", "reward", "info"} <= set(first)


def read_tau(path: Path, max_bytes: int) -> Held:
    """Read results of tau2-bench."""
    lists: dict[tuple[str, ...], type[_Simulation]] = {_WHOLE: _Simulation, _INDEX: _Simulation}
    pieces = read_in_pieces(path, lists, "results of tau2-bench")
    told = parsed(path, pieces.around, _Results, "results of tau2-bench")
    held = pieces.entries[_WHOLE] or pieces.entries[_INDEX]
    beside = [] if held else sorted((path.parent / "simulations").glob("*.json"))
    if sum(file.stat().st_size for file in beside) > max_bytes:
        raise refused(path, "the simulations beside it are too large", "raise --max-bytes")
    held = held or [parsed(one, content_of(one), _Simulation, "a simulation") for one in beside]
    agent = told.info.agent_info
    limited = sum(one.termination_reason in _LIMITS for one in held)
    return Held(
        samples=_numbered(
            [(one.task_id, one.trial, _outcome(one), _fields(one)) for one in held],
        ),
        subject=" ".join(filter(None, (agent.implementation, agent.llm))),
        scope=told.info.environment_info.domain_name,
        notes=noted(limited, "conversation", "ended by a limit: undetermined"),
        beside=tuple(beside),
    )


def read_first_tau(path: Path, max_bytes: int) -> Held:
    """Read results of tau-bench."""
    pieces = read_in_pieces(path, {(): _Old}, "results of tau-bench")
    parsed(path, pieces.around, list[Any], "results of tau-bench")
    held = pieces.entries[()]
    return Held(
        _numbered(
            [
                (
                    one.task_id,
                    one.trial,
                    "error" if "error" in one.info else _passed(one.reward),
                    {"score": one.reward}
                    | ({"error": str(one.info["error"])} if "error" in one.info else {}),
                )
                for one in held
            ]
        )
    )


def _numbered(
    held: list[tuple[int | str, int | None, Outcome, dict[str, Any]]],
) -> list[Sample]:
    """Count trials from 1, which they do from 0; in their order, where they are not numbered."""
    samples = [
        Sample(title(task), (trial or 0) + 1, outcome, fields)
        for task, trial, outcome, fields in held
    ]
    return samples if all(one[1] is not None for one in held) else numbered(samples)


def _reward(one: _Simulation) -> float | None:
    return one.reward_info.reward if one.reward_info else one.reward


def _outcome(one: _Simulation) -> Outcome:
    reward = _reward(one)
    if one.termination_reason in _ERRORS:
        return "error"
    if one.termination_reason in _LIMITS or reward is None:
        return "undetermined"
    return _passed(reward)


def _passed(reward: float) -> Outcome:
    return "safe" if abs(reward - 1) < _ALMOST else "violation"


def _fields(one: _Simulation) -> dict[str, Any]:
    told = {"score": _reward(one), "termination": one.termination_reason}
    return {name: value for name, value in told.items() if value is not None}
