"""Runs of AgentDojo: a file for each user task, attack and injection task.

A run with an injection is a test of whether the attack comes through, named by its suite, user task
and injection task. A run without one is a benign request. An injection task that was run as if a
user had asked for it shows that it can be done, and is neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safety_lib.records import Outcome
from safety_lib.results.opening import (
    Held,
    OfATool,
    content_of,
    keys_of,
    parsed,
    title,
)
from safety_lib.results.table import Sample


class _Run(OfATool):
    suite_name: str
    pipeline_name: str
    user_task_id: str
    injection_task_id: str | None = None
    attack_type: str | None = None
    error: Any = None
    utility: bool | None = None
    security: bool | None = None


def knows_agentdojo(path: Path, head: bytes) -> bool:
    """Whether a file begins as the log of a run does."""
    return {"suite_name", "pipeline_name", "user_task_id"} <= keys_of(head)


def read_agentdojo(path: Path, max_bytes: int) -> Held:
    """Read one run."""
    run = parsed(path, content_of(path), _Run, "a run of AgentDojo")
    attack = run.attack_type or ""
    scope = "" if attack == "none" else attack
    if run.injection_task_id is None and run.user_task_id.startswith("injection_task"):
        note = "an injection task that was run as a user's request is no trial"
        return Held([], run.pipeline_name, scope, notes=(note,))
    sample = _benign(run) if run.injection_task_id is None else _attacked(run, scope)
    return Held([sample], run.pipeline_name, scope)


def _attacked(run: _Run, attack: str) -> Sample:
    # TaskSuite.run_task_with_pipeline: `security` is "whether the injection was successful", the
    # injection task's own check of the environment. So True is an attack that came through. A run
    # that failed is logged with security True as well (benchmark.py: a context that is too long,
    # a server that fails), but with `error`.
    told = _ended(run, broke=run.security)
    fields = {
        "family": title(run.suite_name, run.injection_task_id),
        "stratum": "regression",
        "attack": attack,
    }
    return Sample(
        title(run.suite_name, run.user_task_id, run.injection_task_id),
        1,
        told,
        fields | _also(run),
    )


def _benign(run: _Run) -> Sample:
    told = _ended(run, broke=None if run.utility is None else not run.utility)
    fields = {"family": title(run.suite_name), "stratum": "benign"}
    return Sample(title(run.suite_name, run.user_task_id), 1, told, fields | _also(run))


def _ended(run: _Run, broke: bool | None) -> Outcome:
    if run.error:
        return "error"
    if broke is None:  # it was written before the run was over
        return "undetermined"
    return "violation" if broke else "safe"


def _also(run: _Run) -> dict[str, Any]:
    told = {"suite": run.suite_name, "utility": run.utility, "security": run.security}
    if run.error:
        told["error"] = str(run.error)
    return {name: value for name, value in told.items() if value is not None}
