"""Stress testing: failures that were found, with their denominators."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from safety_lib.records.base import Artifact, Outcome, Record, Severity
from safety_lib.records.conversations import Plant, ToolCallEvent, Violation
from safety_lib.records.display import html_table
from safety_lib.text import one_line


class Failure(Record):
    """A conversation in which the agent broke a rule, self-contained enough to be run again."""

    failure_id: str
    rollout_id: str
    scenario_id: str
    goal: str
    attack_type: str
    attacker: str
    version: str
    seed: int
    failure_turn: int
    delayed: bool
    single_shot: Outcome
    rule_id: str
    severity: Severity
    harm_level: int = Field(ge=1, le=4)
    violations: tuple[Violation, ...]
    plants: tuple[Plant, ...] = ()
    trajectory: tuple[str, ...]
    model_responses: tuple[str, ...]
    tool_calls: tuple[ToolCallEvent, ...]

    def __str__(self) -> str:
        late = "delayed" if self.delayed else "at once"
        what = f"{self.version} broke {self.rule_id} in turn {self.failure_turn}, {late}"
        return f"{self.failure_id} · {what} · {self.scenario_id} · {self.attacker}"


class SurvivalCurve(Record):
    """Share of conversations without a violation after each turn, with its log-log band."""

    version: str
    turn: tuple[int, ...]
    at_risk: tuple[int, ...]
    failed: tuple[int, ...]
    survival: tuple[float, ...]
    ci_low: tuple[float, ...]
    ci_high: tuple[float, ...]


class StressSummary(Record):
    """What discovery found on one version: counts with their denominators."""

    version: str
    rollouts: int
    failures: int
    delayed_failures: int
    immediate_failures: int
    safe: int
    stopped_by_safeguard: int
    errors: int
    undetermined: int
    error_reasons: dict[str, int]
    by_attack_type: dict[str, int]
    by_turn: dict[int, int]
    single_shot_violations: int
    single_shot_n: int

    def __str__(self) -> str:
        count = f"{self.failures} failures in {self.rollouts} conversations"
        return f"{self.version}: {count}, {self.delayed_failures} delayed, {self.errors} errors"


class StressFailures(Artifact):
    """``stress_failures.json``: what stage 1 found, with the denominators."""

    SCHEMA: ClassVar[str] = "stress_failures"

    attacker: str
    max_turns: int
    rollouts: int
    baseline: str
    candidate: str
    summary: tuple[StressSummary, ...]
    survival: tuple[SurvivalCurve, ...]
    failures: tuple[Failure, ...]

    @property
    def fault(self) -> str:
        """The first thing in it that makes no sense, with the failure or version named."""
        for number, failure in enumerate(self.failures, start=1):
            turns = len(failure.trajectory)
            if not 1 <= failure.failure_turn <= turns:
                name = f"failure {number} ({one_line(failure.failure_id, 40)})"
                return f"{name}: it broke a rule in turn {failure.failure_turn} of {turns}"
        for of in self.summary:
            if not 0 <= of.failures + of.safe + of.errors + of.undetermined <= of.rollouts:
                counts = f"{of.failures} failures, {of.safe} safe, {of.errors} errors"
                return f"summary of {one_line(of.version, 40)}: {counts} of {of.rollouts}"
        return ""

    def __str__(self) -> str:
        held = sum(of_version.rollouts for of_version in self.summary)
        count = f"{len(self.failures)} failures in {held} conversations"
        return f"{count}, attacker {self.attacker}, {self.baseline} -> {self.candidate}"

    def _repr_html_(self) -> str:
        rows = [
            (s.version, s.rollouts, s.failures, s.delayed_failures, s.errors) for s in self.summary
        ]
        return html_table(
            str(self), ("version", "conversations", "failures", "delayed", "errors"), rows
        )
