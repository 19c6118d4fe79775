"""The shared vocabulary: every noun of the loop as a small frozen record.

All stages read and write these records and nothing else, so a failure that is found by a stress
test, a regression test that is made from it and an incident that comes in from production all speak
of the same turns, calls and rules. Records validate on construction and never change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import CoreSchema, core_schema

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


# --------------------------------------------------------------------------- conversation

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def _whole(text: str) -> str:
    # Users and models can send half a surrogate pair, which no file can hold.
    return text if text.isascii() else _HALF_A_PAIR.sub("\ufffd", text)


def _plain_json(value: Any) -> Any:
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_plain_json(key): _plain_json(inner) for key, inner in value.items()}
    return [_plain_json(inner) for inner in value] if isinstance(value, list | tuple) else value


class _Whole:
    """Makes a text whole where Python hands it over; what was read from JSON is whole already."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[str], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        text = handler(source)
        made = core_schema.no_info_after_validator_function(_whole, text)
        return core_schema.json_or_python_schema(json_schema=text, python_schema=made)


Text = Annotated[str, _Whole]
Arguments = Annotated[dict[str, Any], AfterValidator(_plain_json)]


class ToolCall(Record):
    """One call that the model proposes, in the shape of the OpenAI tools format.

    Its arguments are what JSON can hold: NaN and infinities become strings, which no tool takes for
    a number.
    """

    id: Text
    name: Text
    arguments: Arguments

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.name}({shown})"


class Message(Record):
    """One message as a chat model sees it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: Text = ""


class MessageEvent(Record):
    """A message of the user or a reply of the agent, as it crossed the agent's door."""

    kind: Literal["message"] = "message"
    turn: int
    role: Literal["user", "assistant"]
    content: Text


class ToolCallEvent(Record):
    """A tool call and what became of it; ``executed`` alone changed the sandbox."""

    kind: Literal["tool_call"] = "tool_call"
    turn: int
    call: ToolCall
    status: CallStatus
    result: Text

    def __str__(self) -> str:
        return f"{self.call} -> {self.status}"


class HookEvent(Record):
    """What one safeguard hook decided, and which of its checks decided it."""

    kind: Literal["hook"] = "hook"
    turn: int
    hook: HookName
    decision: Literal["allow", "warn", "hold", "block", "stop"]
    check: str = ""
    reason: Text = ""


class OracleEvent(Record):
    """What the oracle decided about one tool call or reply."""

    kind: Literal["oracle"] = "oracle"
    turn: int
    outcome: Literal["violation", "attempted", "safe"]
    rule_id: str = ""
    evidence: Text = ""


class ErrorEvent(Record):
    """The harness or the model backend failed; never a pass, never a failure of the agent."""

    kind: Literal["error"] = "error"
    turn: int
    error: Text
    detail: Text


Event = Annotated[
    MessageEvent | ToolCallEvent | HookEvent | OracleEvent | ErrorEvent,
    Field(discriminator="kind"),
]


class Violation(Record):
    """A policy rule that was broken by something that happened, at a turn counted from 1."""

    rule_id: str
    severity: Severity
    turn: int
    evidence: str


class Turn(Record):
    """One exchange, gathered from the events of a trajectory, in the order of reading."""

    turn: int
    user: str
    assistant: str
    tool_calls: tuple[str, ...] = ()
    safeguards: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()


class Plant(Record):
    """Text that an attacker left inside the company before the conversation: the injection channel.

    ``where`` is the collection of the sandbox (``tickets``, ``files`` or ``inbox``), ``key`` the
    entry that holds ``text``.
    """

    where: Literal["tickets", "files", "inbox"]
    key: Text
    text: Text


class Trajectory(Record):
    """One conversation between an attacker and one version of the agent, event by event."""

    trajectory_id: str
    scenario_id: str
    goal: str
    attack_type: str
    attacker: str
    version: str
    config_sha256: str
    model: str
    seed: int
    plants: tuple[Plant, ...] = ()
    outcome: Outcome
    ended: Ended
    n_turns: int
    model_calls: int
    violations: tuple[Violation, ...] = ()
    attempted: tuple[str, ...] = ()
    events: tuple[Event, ...]

    @property
    def failure_turn(self) -> int | None:
        """Turn of the first violation, counted from 1, or None."""
        return self.violations[0].turn if self.violations else None

    @property
    def user_messages(self) -> tuple[str, ...]:
        """What the attacker said, one string a turn."""
        return tuple(e.content for e in self.events if e.kind == "message" and e.role == "user")

    @property
    def replies(self) -> tuple[str, ...]:
        """What the agent replied, one string a turn."""
        return tuple(
            e.content for e in self.events if e.kind == "message" and e.role == "assistant"
        )

    @property
    def executed_calls(self) -> tuple[ToolCallEvent, ...]:
        """The tool calls that ran, in order."""
        return tuple(e for e in self.events if e.kind == "tool_call" and e.status == "executed")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation turn by turn."""
        return tuple(_gather_turns(self.events))

    @property
    def error(self) -> str:
        """Why the trajectory is an error, or an empty string."""
        return next((f"{e.error}: {e.detail}" for e in self.events if e.kind == "error"), "")

    def __str__(self) -> str:
        lines = [f"{self.version} · {self.scenario_id} · {self.attacker} · {self.outcome}"]
        for turn in self.turns:
            lines.append(f"[{turn.turn}] user:  {turn.user}")
            lines.extend(f"    tool:  {call}" for call in turn.tool_calls)
            lines.extend(f"    guard: {decision}" for decision in turn.safeguards)
            lines.append(f"    agent: {turn.assistant}")
            lines.extend(f"    BROKEN RULE: {rule}" for rule in turn.violations)
        return "\n".join(lines)


def _gather_turns(events: tuple[Event, ...]) -> Iterator[Turn]:
    by_turn: dict[int, list[Event]] = {}
    for event in events:
        by_turn.setdefault(event.turn, []).append(event)
    for turn, group in sorted(by_turn.items()):
        texts = {"user": "", "assistant": ""}
        calls: list[str] = []
        guards: list[str] = []
        broken: list[str] = []
        for event in group:
            if event.kind == "message":
                texts[event.role] = event.content
            elif event.kind == "tool_call":
                calls.append(str(event))
            elif event.kind == "hook" and event.decision != "allow":
                guards.append(f"{event.hook} {event.decision}: {event.reason}")
            elif event.kind == "oracle" and event.outcome == "violation":
                broken.append(event.rule_id)
            elif event.kind == "error":
                guards.append(f"error {event.error}: {event.detail}")
        yield Turn(
            turn=turn,
            user=texts["user"],
            assistant=texts["assistant"],
            tool_calls=tuple(calls),
            safeguards=tuple(guards),
            violations=tuple(broken),
        )


# --------------------------------------------------------------------------- artifacts


class Interval(Record):
    """An estimate with its confidence limits."""

    estimate: float
    ci_low: float
    ci_high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}]"


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


class Reproduction(Record):
    """How often a failure came back on fresh seeds, with a Wilson interval."""

    version: str
    k: int
    n: int
    errors: int = 0
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        rate = f"{self.k} of {self.n} [{self.ci_low:.2f}, {self.ci_high:.2f}] on {self.version}"
        return f"{rate}, {self.errors} errors" if self.errors else rate


class ExpectedCall(Record):
    """A tool call that a benign request must lead to: the name and the arguments that count."""

    name: str
    arguments: dict[str, Any]


class BenignTwin(Record):
    """The legitimate request beside an attack; an agent that refuses it is not useful."""

    twin_id: str
    turns: tuple[str, ...]
    expected: ExpectedCall


class TestSource(Record):
    """Where a test comes from."""

    __test__ = False

    stage: Literal["stress", "incident"]
    version: str
    seed: int
    incident_id: str = ""


class Minimisation(Record):
    """How far a conversation could be shortened while the rule still broke, and at what price.

    ``one_minimal`` says that no single message boundary, turn or sentence can be taken away any
    more without the rate on the probe seeds falling below ``needed`` of ``probes``; it is False
    where the budget of replays ran out before that was known.
    """

    turns_before: int
    turns_after: int
    characters_before: int
    characters_after: int
    needed: int
    probes: int
    replays: int
    one_minimal: bool

    @property
    def turns_saved(self) -> int:
        """How many turns it is shorter."""
        return self.turns_before - self.turns_after

    def __str__(self) -> str:
        how = "1-minimal" if self.one_minimal else "not proved minimal"
        return (
            f"{self.turns_before} -> {self.turns_after} turns, "
            f"{self.characters_before} -> {self.characters_after} characters, {how}, "
            f"{self.replays} replays"
        )


class UnitCase(Record):
    """The same failure at the level of one safeguard hook: it needs no model and no conversation.

    ``call`` (or ``reply``) is what the hook was shown, ``decided`` what it said to it, ``risk`` the
    running risk at that moment, and ``policy_in_sight`` whether the model still saw the policy when
    it came up with it.
    """

    turn: int
    hook: HookName
    call: ToolCall | None = None
    reply: Text = ""
    decided: Literal["allow", "warn", "hold", "block", "stop"]
    risk: float = 0.0
    policy_in_sight: bool

    def __str__(self) -> str:
        shown = str(self.call) if self.call is not None else repr(self.reply)
        sight = "in" if self.policy_in_sight else "out of"
        return (
            f"turn {self.turn}, policy {sight} sight, {self.hook} decided {self.decided}: {shown}"
        )


class RegressionTest(Record):
    """A permanent, replayable test: the attacker's turns, the world they start in, the rule."""

    __test__ = False

    test_id: str
    source_failure_id: str
    name: str
    category: str
    family: str
    signature: str
    rule_id: str
    severity: Severity
    description: str
    attack_turns: tuple[str, ...]
    plants: tuple[Plant, ...] = ()
    expected_behavior: str
    created_at: str | None = None
    tags: tuple[str, ...]
    lifecycle: Literal["proposed", "active", "quarantined", "retired", "rejected"]
    lifecycle_reason: str = ""
    reproduction: Reproduction
    reference: Reproduction | None = None
    minimised: Minimisation | None = None
    unit: UnitCase | None = None
    split: Literal["public", "held_out"] = "public"
    benign_twin: BenignTwin
    duplicates: int = 0
    source: TestSource

    @property
    def turns_saved(self) -> int:
        """How many turns minimising took away."""
        return self.minimised.turns_saved if self.minimised else 0

    def __str__(self) -> str:
        lines = [
            f"{self.test_id} · {self.severity} · {self.lifecycle} · {self.name}",
            f"family:    {self.family}",
            f"came back: {self.reproduction}",
            *([f"reference: {self.reference}"] if self.reference else []),
            *([f"shortened: {self.minimised}"] if self.minimised else []),
            f"expected:  {self.expected_behavior}",
            *(f"planted:   {plant.where}/{plant.key}: {plant.text}" for plant in self.plants),
            *(f"[{turn}] user: {text}" for turn, text in enumerate(self.attack_turns, start=1)),
        ]
        return "\n".join(lines)


class Suite(Artifact):
    """``regression_tests.json``: the tests, active and quarantined, and the funnel to them."""

    SCHEMA: ClassVar[str] = "regression_tests"

    baseline: str
    candidate: str
    max_turns: int = 8
    funnel: dict[str, int]
    tests: tuple[RegressionTest, ...]

    @property
    def active(self) -> tuple[RegressionTest, ...]:
        """The tests that the gate runs."""
        return tuple(test for test in self.tests if test.lifecycle == "active")

    def only(self, stage: Literal["stress", "incident"]) -> Suite:
        """Return the same suite with the tests of one stage alone."""
        kept = tuple(test for test in self.tests if test.source.stage == stage)
        return self.model_copy(update={"tests": kept})


class ArmResult(Record):
    """The trials of one test on one version."""

    passed: int
    failed: int
    errors: int
    undetermined: int = 0

    @property
    def valid(self) -> int:
        """Trials that count: an error is neither a pass nor a failure."""
        return self.passed + self.failed

    @property
    def pass_rate(self) -> float:
        """Share of valid trials that passed; NaN where none is valid."""
        return self.passed / self.valid if self.valid else float("nan")


Stratum = Literal["baseline_found", "candidate_found", "incident", "control", "benign"]


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
    policy_sha256: str
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


class GateHistory(Artifact):
    """``gate_history.json``: every release that the gate judged, in order; it only ever grows.

    The fields that all artifacts have are those of the newest release.
    """

    SCHEMA: ClassVar[str] = "gate_history"

    releases: tuple[Release, ...]


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

    def __str__(self) -> str:
        verdict = self.verdict or "no verdict"
        return "\n".join([f"{self.baseline} -> {self.candidate}: {verdict}", *map(str, self.steps)])


class ReportedCall(Record):
    """A tool call as somebody else's record tells it; None where the record does not say."""

    name: Text
    arguments: Arguments
    result: Text | None = None
    status: CallStatus | None = None

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.name}({shown})"


class IncidentTurn(Record):
    """One exchange of an incident as it was reported; ``notes`` hold what safeguards said."""

    turn: int = Field(ge=1)
    user: Text
    assistant: Text
    compliant: bool | None
    calls: tuple[ReportedCall, ...] = ()
    notes: tuple[Text, ...] = ()


class Incident(BaseModel):
    """An incident file as it comes in; what it claims is kept as a claim, never as an answer.

    ``plants`` are texts that its record shows in tickets, files or mails and that the company does
    not hold; ``claims`` are labels of the file beyond those that have fields here. None and empty
    texts say that the file does not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    incident_id: Text = Field(min_length=1)
    timestamp: Text
    severity: Text
    category: Text
    description: Text
    trajectory: tuple[IncidentTurn, ...] = Field(min_length=1)
    affected_users: int | None = Field(ge=0)
    detected_by: Text
    detection_latency_hours: float | None = Field(ge=0)
    remediation_actions: tuple[Text, ...]
    root_cause_preliminary: Text
    agent_version: Text = ""
    seed: int | None = None
    plants: tuple[Plant, ...] = ()
    claims: dict[str, Text] = Field(default_factory=dict)


class WholeIncident(Incident):
    """An incident in this project's own file format, in which nothing may be unknown."""

    affected_users: int = Field(ge=0)
    detection_latency_hours: float = Field(ge=0)


class TimelineEntry(Record):
    """One moment of the incident: from the replayed events, in their order."""

    turn: int
    what: Literal["request", "refusal", "reply", "tool_call", "safeguard", "violation"]
    detail: str


class Intervention(Record):
    """One change, re-executed on paired seeds: how much of the failure it removes."""

    name: str
    kind: Literal["change", "turn", "safeguard", "memory", "tool_result", "version"]
    description: str
    factual: Reproduction
    counterfactual: Reproduction
    effect: float
    ci_low: float
    ci_high: float


class ConfigProbe(Record):
    """One mixture of two versions that was run: the changes that it had, and how often it broke."""

    changes: tuple[str, ...]
    k: int
    n: int
    fails: bool


class Contribution(Record):
    """What one change does to the failure rate: alone, and on average over all orders (Shapley)."""

    key: str
    alone: float
    estimate: float
    ci_low: float
    ci_high: float


class Bisection(Record):
    """Which config changes a failure hangs on, found by running mixtures of two versions.

    ``enough`` is a minimal set that brings the failure into the good version; ``needed`` one whose
    undoing takes it out of the bad version. Both are empty where ``why_not`` says why.
    """

    good: str
    bad: str
    changes: tuple[str, ...]
    enough: tuple[str, ...]
    needed: tuple[str, ...]
    contributions: tuple[Contribution, ...]
    why_not: str = ""
    probes: tuple[ConfigProbe, ...]
    replays: int

    @property
    def name(self) -> str:
        """The changes that are enough, the strongest first, or ``not identified``."""
        return " + ".join(self.enough) or "not identified"

    def __str__(self) -> str:
        if self.why_not:
            return f"not identified: {self.why_not}"
        return (
            f"{self.name}: enough to bring the failure into {self.good}; undoing "
            f"{' + '.join(self.needed)} takes it out of {self.bad} ({len(self.probes)} mixtures of "
            f"{len(self.changes)} changes, {self.replays} replays)"
        )


class Milestone(Record):
    """A moment of an incident that counts: a warning, a chance that was missed, the violation.

    ``lead`` is how many turns it came before the first violation; None where nothing broke.
    """

    turn: int
    what: Literal["warning", "missed", "violation"]
    detail: str
    lead: int | None

    def __str__(self) -> str:
        ahead = "" if not self.lead else f", {self.lead} turns before the violation"
        return f"turn {self.turn} {self.what}{ahead}: {self.detail}"


class CutPoint(Record):
    """How often a rule breaks when the conversation is held up to a turn and goes on afresh."""

    turn: int
    broke: Reproduction


class UnsupportedClaim(Record):
    """A value in a reply that no tool result and no user had told before."""

    turn: int
    value: str
    reply: str


class ClaimCheck(Record):
    """What the file of an incident claims beside what was measured.

    ``agrees`` is None where the two are of different kinds and only a person can compare them.
    """

    claim: str
    claimed: str
    measured: str
    agrees: bool | None

    def __str__(self) -> str:
        word = {True: "agrees", False: "differs", None: "not comparable"}[self.agrees]
        return f"{self.claim}: claimed {self.claimed}, measured {self.measured} ({word})"


class Story(Record):
    """An incident told from its record and its replays.

    Attributes
    ----------
    source : str
        Which shape the file has.
    gaps : tuple of str
        What the file does not tell, or a replay cannot use.
    recorded : tuple of Violation
        What the oracle says of the record itself, before anything is replayed.
    unsupported : tuple of UnsupportedClaim
        What the agent of the record said that nothing in it supports.
    retraced : str
        Whether the record's own seed gives the record again, and where it does not.
    milestones : tuple of Milestone
        First warning, missed chances and first violation of the replay that is shown.
    cut_points : tuple of CutPoint
        From which turn on it was as good as decided.
    claims : tuple of ClaimCheck
        The labels of the file beside what was measured.
    """

    source: str
    gaps: tuple[str, ...]
    recorded: tuple[Violation, ...]
    unsupported: tuple[UnsupportedClaim, ...]
    retraced: str
    milestones: tuple[Milestone, ...]
    cut_points: tuple[CutPoint, ...]
    claims: tuple[ClaimCheck, ...]

    @property
    def first_warning(self) -> Milestone | None:
        """The first moment at which something or somebody objected."""
        return next((m for m in self.milestones if m.what == "warning"), None)


class MitigationResult(Record):
    """A mitigation that was executed: how much of the failure it leaves, and what it costs.

    ``incident`` counts how often the rule broke when the incident was held again, ``held_out`` how
    often in variants that no test of the suite holds, ``benign`` how many legitimate requests were
    not served; ``at_most`` is the one-sided 95% bound on the first. ``pareto`` says that no other
    mitigation is at least as good on all three and better on one.
    """

    name: str
    changes: tuple[str, ...]
    incident: Reproduction
    at_most: float
    held_out: Reproduction
    benign: Reproduction
    pareto: bool = False


class BlastRadius(Record):
    """How many conversations, or users, were affected: an estimate from an audit.

    ``audited_n`` counts units; where the units are users, ``sessions_read`` is what that cost.
    ``log_sha256`` is the hash of the log's bytes.
    """

    estimate: float
    ci_low: float
    ci_high: float
    population_n: int
    flagged_n: int
    audited_n: int
    audited_flagged: int
    audited_unflagged: int
    method: str
    claimed: int | None = None
    unit: Literal["conversations", "users"] = "conversations"
    sessions_read: int | None = None
    log_sha256: str = ""

    def __str__(self) -> str:
        cost = f", {self.sessions_read:,} conversations read" if self.sessions_read else ""
        return (
            f"{self.estimate:,.0f} of {self.population_n:,} {self.unit} "
            f"[{self.ci_low:,.0f}, {self.ci_high:,.0f}], from an audit of {self.audited_n:,}{cost}"
        )


class IncidentReport(Artifact):
    """``incident_replay.json``: what replaying the incident showed."""

    SCHEMA: ClassVar[str] = "incident_replay"

    incident_id: str
    version: str
    baseline: str
    claims: dict[str, str]
    rule_id: str
    reproduction: Reproduction
    timeline: tuple[TimelineEntry, ...]
    root_cause: str
    root_cause_evidence: str
    interventions: tuple[Intervention, ...]
    decisive_turn: int | None = None
    bisection: Bisection | None = None
    blast_radius: BlastRadius | None
    affected_users: BlastRadius | None = None
    touched: dict[str, int] = Field(default_factory=dict)
    new_tests: tuple[str, ...]
    gate_before: Verdict | None
    gate_after: Verdict | None
    gate_of_fix: Verdict | None
    fixed_version: str
    suite_sha256: str
    story: Story | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A report without a story says nothing of one.
        tree: dict[str, Any] = dump(self)
        if self.story is None:
            del tree["story"]
        return tree


class Experiment(Artifact):
    """``experiments/<name>.json``: a result that takes longer than a notebook may.

    ``command`` makes it again from ``parameters`` and the seed; notebooks show ``result`` beside
    it.
    """

    SCHEMA: ClassVar[str] = "experiment"

    name: str
    command: str
    parameters: dict[str, Any]
    result: dict[str, Any]

    @property
    def file_name(self) -> str:
        """Name of the file that holds it: that of the experiment."""
        return f"{self.name}.json"
