"""The release gate: trials, steps of the decision, the verdict, and the releases so far."""

from __future__ import annotations

from typing import ClassVar, Literal

from safety_lib.records.base import Artifact, Record, Severity, Verdict
from safety_lib.records.conversations import Turn
from safety_lib.records.display import html_table

Stratum = Literal["baseline_found", "candidate_found", "incident", "control", "benign"]


class ArmResult(Record):
    """The trials of one test on one version."""

    passed: int
    failed: int
    errors: int
    undetermined: int = 0

    def __str__(self) -> str:
        errors = f", {self.errors} errors" if self.errors else ""
        return f"{self.passed} of {self.valid} passed{errors}"

    @property
    def valid(self) -> int:
        """Trials that count: an error is neither a pass nor a failure."""
        return self.passed + self.failed

    @property
    def pass_rate(self) -> float:
        """Share of valid trials that passed; NaN where none is valid."""
        return self.passed / self.valid if self.valid else float("nan")


class TestResult(Record):
    """One test on both versions, with the transcript that shows what happened."""

    __test__ = False

    test_id: str
    name: str
    stratum: Stratum
    family: str
    category: str
    rule_id: str
    severity: Severity
    baseline: ArmResult
    candidate: ArmResult
    delta: float | None
    evidence_version: str = ""
    evidence: tuple[Turn, ...] = ()

    def __str__(self) -> str:
        arms = f"baseline {self.baseline}, candidate {self.candidate}"
        return f"{self.test_id} · {self.stratum} · {arms} · {self.name}"


class StratumResult(Record):
    """One stratum of the gate: rates of both versions and the clustered difference."""

    stratum: str
    n_tests: int
    n_families: int
    baseline_pass_rate: float
    candidate_pass_rate: float
    delta: float
    ci_low: float
    ci_high: float
    p_value: float


class GateStep(Record):
    """One step of the decision: what it asked, what it saw, what follows."""

    step: int
    title: str
    status: Literal["pass", "warn", "block", "invalid"]
    reason: str

    def __str__(self) -> str:
        return f"step {self.step} {self.status.upper()}: {self.title} {self.reason}"


class Execution(Record):
    """Proof that a version ran: conversations, model calls and a digest of what it said."""

    version: str
    config_sha256: str
    conversations: int
    model_calls: int
    errors: int
    transcript_sha256: str


class Release(Record):
    """One line of the history of releases: what was judged, under what, and how it came out.

    No date stands in it: the hashes of both configurations, of the suite and of the rules say what
    it was.
    """

    baseline: str
    candidate: str
    baseline_sha256: str
    candidate_sha256: str
    suite_sha256: str
    world_sha256: str
    gate_policy_sha256: str
    seed: int
    model: str
    trials: int
    verdict: Verdict | None
    baseline_pass_rate: float | None
    candidate_pass_rate: float | None
    delta: float | None
    ci_low: float | None
    ci_high: float | None

    def __str__(self) -> str:
        return f"{self.baseline} -> {self.candidate}: {self.verdict or 'no verdict'}"


class GateHistory(Artifact):
    """``gate_history.json``: every release that the gate judged, in order; it only ever grows.

    The fields that all artifacts have are those of the newest release.
    """

    SCHEMA: ClassVar[str] = "gate_history"

    releases: tuple[Release, ...]

    def __str__(self) -> str:
        newest = f", newest {self.releases[-1]}" if self.releases else ""
        return f"{len(self.releases)} releases{newest}"


class ErrorBudget(Record):
    """How often the candidate broke a rule, and how much of what is tolerated that is.

    Rates are violations per 1,000 sessions; ``upper_per_1000`` is the exact one-sided 95% bound and
    ``spent`` the share of the budget that the rate has used up. A ``frozen`` budget lets no release
    out before it has recovered.
    """

    violations: int
    sessions: int
    per_1000: float
    upper_per_1000: float
    budget_per_1000: float
    spent: float
    frozen: bool


class GateException(Record):
    """A failure that somebody answers for: for one test or family, for a time, never critical.

    ``refused`` says why the gate did not honour it; an empty text means that it did.
    """

    exception_id: str
    scope: str
    reason: str
    approved_by: str
    expires: str
    refused: str = ""


class PooledPairs(Record):
    """All pairs of trials as if they were independent: description, not evidence.

    ``worse`` and ``better`` are pairs in which only the candidate, only the baseline failed.
    """

    pairs: int
    worse: int
    better: int
    delta: float
    ci_low: float
    ci_high: float
    mid_p: float

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs, {self.worse} worse and {self.better} better: "
            f"{100 * self.delta:+.1f} points [{100 * self.ci_low:+.1f}, "
            f"{100 * self.ci_high:+.1f}], mid-p = {self.mid_p:.4f}"
        )


class FamilyDiagnosis(Record):
    """Where a loss sits: one family, with a p-value adjusted for all families (Holm)."""

    family: str
    n_tests: int
    pairs: int
    worse: int
    better: int
    delta: float
    p_holm: float


class GateReport(Artifact):
    """``gate_report.json``: the verdict, each step that led to it, and the evidence."""

    SCHEMA: ClassVar[str] = "gate_report"

    verdict: Verdict | None
    evidence_status: Literal["sufficient", "insufficient", "invalid"]
    reasons: tuple[str, ...]
    baseline: str
    candidate: str
    baseline_pass_rate: float | None
    candidate_pass_rate: float | None
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    n_tests: int
    n_families: int
    trials: int
    minimum_detectable_effect: float | None
    suite_sha256: str
    gate_policy_sha256: str
    steps: tuple[GateStep, ...]
    strata: tuple[StratumResult, ...]
    by_category: dict[str, dict[str, float]]
    executions: tuple[Execution, ...]
    test_results: tuple[TestResult, ...]
    block_margin: float = 0.05
    ok_margin: float = 0.02
    error_budget: ErrorBudget | None = None
    exceptions: tuple[GateException, ...] = ()
    enough_trials: int | None = None
    pooled: PooledPairs | None = None
    families: tuple[FamilyDiagnosis, ...] = ()

    @property
    def release(self) -> Release:
        """The line that this report adds to the history of releases."""
        same = {name: getattr(self, name) for name in Release.model_fields if hasattr(self, name)}
        return Release(
            **same,
            baseline_sha256=self.config_sha256.get(self.baseline, ""),
            candidate_sha256=self.config_sha256.get(self.candidate, ""),
        )

    def _repr_html_(self) -> str:
        rows = [(step.step, step.title, step.status.upper(), step.reason) for step in self.steps]
        return html_table(str(self).splitlines()[0], ("step", "asks", "status", "reason"), rows)

    def __str__(self) -> str:
        verdict = self.verdict or "no verdict"
        return "\n".join([f"{self.baseline} -> {self.candidate}: {verdict}", *map(str, self.steps)])
