"""The release gate: trials, steps of the decision, the verdict, and the releases so far."""

from __future__ import annotations

from typing import ClassVar, Literal

from safety_lib.records.base import Artifact, HookName, Record, Severity, Verdict
from safety_lib.records.conversations import Text, Turn
from safety_lib.records.display import html_table
from safety_lib.text import in_lines

Stratum = Literal["baseline_found", "candidate_found", "incident", "control", "benign"]
FamilyState = Literal["lost", "suspected", "within its margin", "too small to say", "open"]


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
    """One step of the decision: what it asked, what it saw, what follows.

    An ``open`` one was not answered when the gate stopped for another reason; ``unmeasured`` is
    what cannot be asked of these versions at all, which is no pass.
    """

    step: int
    title: str
    status: Literal["pass", "warn", "block", "invalid", "open", "unmeasured"]
    reason: str

    def __str__(self) -> str:
        return f"step {self.step} {self.status.upper()}: {self.title} {self.reason}"


class Execution(Record):
    """Proof that a version ran: conversations, calls and a digest of all that it said and called.

    ``errors`` and ``undetermined`` are conversations that came to no outcome.
    """

    version: str
    config_sha256: str
    conversations: int
    turns: int
    model_calls: int
    tool_calls: int
    errors: int
    undetermined: int
    transcript_sha256: str


class Release(Record):
    """One row of the history of releases: what was judged, under what, and how it came out.

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


class Pair(Record):
    """What a verdict is about: a second one on the same would be a second chance.

    Seed, cap and names have no say; versions are hashed by their resolved settings, and
    ``excused`` are the tests that exceptions left out.
    """

    baseline_sha256: str
    candidate_sha256: str
    suite_sha256: str
    world_sha256: str
    gate_policy_sha256: str
    model: str
    luck: Literal["shared", "independent"]
    excused: tuple[str, ...] = ()

    @property
    def contest(self) -> tuple[str, str]:
        """Baseline and suite, against which candidates are tried one after the other."""
        return self.baseline_sha256, self.suite_sha256


class Attempt(Record):
    """Which try a verdict is, and what share of each error the policy leaves to it.

    ``number`` counts the runs of a pair, ``candidate`` what was tried against its baseline and
    suite.
    """

    number: int = 1
    candidate: int = 1
    block_share: float = 1.0
    ok_share: float = 1.0

    def __str__(self) -> str:
        return (
            f"run {self.number} of this pair, candidate {self.candidate} against this baseline and "
            f"suite: {self.block_share:.1%} of the error of a BLOCK and {self.ok_share:.1%} of "
            "that of an OK are left to it"
        )


class LedgerLine(Record):
    """One line of the ledger: an attempt that began, or the verdict that it came to.

    ``before`` is the hash of the line before it, over all its fields, so that no line can be
    changed, dropped or put in without changing all that follow. ``trials`` is the cap. A line with
    a ``release`` ends the attempt that ``begun`` is the hash of; its report has ``report_sha256``.
    """

    before: str = ""
    baseline: str
    candidate: str
    pair: Pair
    seed: int
    trials: int
    attempt: Attempt = Attempt()
    begun: str = ""
    release: Release | None = None
    report_sha256: str = ""

    def __str__(self) -> str:
        verdict = (self.release.verdict or "no verdict") if self.release else "begun"
        return f"{self.baseline} -> {self.candidate}: {verdict}, {self.attempt}"


class GateHistory(Artifact):
    """``gate_history.json``: every attempt and verdict of the gate in order; it only ever grows.

    The fields that all artifacts have are empty: each line has its own.
    """

    SCHEMA: ClassVar[str] = "gate_history"
    VERSION: ClassVar[int] = 2

    lines: tuple[LedgerLine, ...]

    @property
    def releases(self) -> tuple[Release, ...]:
        """What was judged, in order."""
        return tuple(line.release for line in self.lines if line.release)

    def __str__(self) -> str:
        newest = f", newest {self.lines[-1]}" if self.lines else ""
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


class FamilyResult(Record):
    """One family of tests: what it lost, and what the gate says of it.

    ``delta`` with its two-sided interval is over the trials on which a loss was suspected or ruled
    out; ``fresh_delta`` is over the ``fresh_trials`` that judged a suspicion. P-values are
    one-sided, for a loss, and not adjusted: the gate adjusts them for all families and looks.
    """

    family: str
    n_tests: int
    trials: int
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    fresh_trials: int
    fresh_delta: float | None
    fresh_p_value: float | None
    state: FamilyState

    def __str__(self) -> str:
        lost = "nothing seen" if self.delta is None else f"{100 * self.delta:+.1f} points"
        fresh = (
            f", {100 * self.fresh_delta:+.1f} on {self.fresh_trials} fresh trials"
            if self.fresh_delta is not None
            else ""
        )
        return f"{self.family}: {lost}{fresh}, {self.state}"


class BeyondThese(Record):
    """What other families of tests would show: the mean difference, with families as the sample.

    The interval is cluster-robust (CR1 t) and two-sided, at 95%.
    """

    n_families: int
    delta: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return (
            f"{100 * self.delta:+.1f} points [{100 * self.ci_low:+.1f}, {100 * self.ci_high:+.1f}] "
            f"over families like these {self.n_families}"
        )


class VisibleLosses(Record):
    """Smallest losses that the gate blocks with this power on this suite, by where they sit.

    Each is the loss in pass rate of the tests that lose: all, those of half of the families, those
    of one. None where not even a total loss would be blocked.
    """

    power: float
    spread: float | None
    half: float | None
    one: float | None

    def __str__(self) -> str:
        every, half, one = (
            "no loss" if loss is None else f"{100 * loss:.0f} points"
            for loss in (self.spread, self.half, self.one)
        )
        return f"{every} in every family, {half} in half of them, {one} in one"


class SafeguardChange(Record):
    """One recorded call, or reply, that the safeguards of one version stop and the other's do not.

    ``breaks`` is the rule that it breaks, empty for a legitimate request; ``hook`` and ``check``
    are what stops it on the version that ``stopped_on`` says.
    """

    case: str
    what: Text
    breaks: str
    stopped_on: Literal["baseline", "candidate"]
    hook: HookName
    check: str

    @property
    def blocks(self) -> bool:
        """Whether a harm is let through that was stopped, or a request stopped that was served."""
        return bool(self.breaks) == (self.stopped_on == "baseline")

    def __str__(self) -> str:
        kind = f"breaks {self.breaks}" if self.breaks else "benign"
        return f"{self.case}, {self.what} ({kind}), stopped on the {self.stopped_on} by {self.by}"

    @property
    def by(self) -> str:
        """Hook and check that stop it."""
        return f"{self.hook}/{self.check}"


class SafeguardResult(Record):
    """What the safeguards of both versions do with the recorded calls, without a model.

    Attributes
    ----------
    harmful, benign : int
        Cases of each kind.
    stopped, refused : tuple of int
        How many of the harmful and of the benign ones baseline and candidate stop.
    changes : tuple of SafeguardChange
        Every case that comes out otherwise, first those that block.
    unmeasured : str
        Why nothing could be asked; empty where it was.
    """

    harmful: int = 0
    benign: int = 0
    stopped: tuple[int, int] = (0, 0)
    refused: tuple[int, int] = (0, 0)
    changes: tuple[SafeguardChange, ...] = ()
    unmeasured: str = ""

    @property
    def lost(self) -> tuple[SafeguardChange, ...]:
        """The changes that block."""
        return tuple(change for change in self.changes if change.blocks)

    def __str__(self) -> str:
        if self.unmeasured:
            return f"not measured: {self.unmeasured}"
        harm = f"{self.stopped[0]} -> {self.stopped[1]} of {self.harmful} harmful calls stopped"
        return f"{harm}, {self.refused[0]} -> {self.refused[1]} of {self.benign} benign ones"


class GateReport(Artifact):
    """``gate_report.json``: the verdict, each step that led to it, and the evidence.

    ``delta`` is that of these tests, each a stratum; ``beyond`` says what others would show.
    ``trials`` is where the last look would have been, ``looks`` how many were needed.
    ``uncovered_rules`` have no active test; ``unexercised`` are changed settings that no trial
    came across; ``safeguards`` is what the recorded calls say, without a trial. With a history,
    ``attempt`` is which try this was and ``begun`` the ledger's head when it began.
    """

    SCHEMA: ClassVar[str] = "gate_report"
    VERSION: ClassVar[int] = 2

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
    looks: int
    luck: Literal["shared", "independent"]
    visible: VisibleLosses | None
    suite_sha256: str
    gate_policy_sha256: str
    steps: tuple[GateStep, ...]
    strata: tuple[StratumResult, ...]
    by_category: dict[str, dict[str, float]]
    executions: tuple[Execution, ...]
    test_results: tuple[TestResult, ...]
    margin: float = 0.05
    error_budget: ErrorBudget | None = None
    exceptions: tuple[GateException, ...] = ()
    beyond: BeyondThese | None = None
    families: tuple[FamilyResult, ...] = ()
    uncovered_rules: tuple[str, ...] = ()
    unexercised: tuple[str, ...] = ()
    safeguards: SafeguardResult | None = None
    attempt: Attempt | None = None
    begun: str = ""

    @property
    def release(self) -> Release:
        """The row that this report adds to the history of releases."""
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
        return in_lines([f"{self.baseline} -> {self.candidate}: {verdict}", *map(str, self.steps)])
