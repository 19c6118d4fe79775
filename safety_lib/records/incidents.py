"""Incidents: what comes in from production, and what replaying it showed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from safety_lib.records.base import Artifact, CallStatus, Record, Verdict
from safety_lib.records.conversations import Arguments, Plant, Text, Violation, as_call
from safety_lib.records.display import html_table
from safety_lib.records.suites import Reproduction


class ReportedCall(Record):
    """A tool call as somebody else's record tells it; None where the record does not say."""

    name: Text
    arguments: Arguments
    result: Text | None = None
    status: CallStatus | None = None

    def __str__(self) -> str:
        return as_call(self.name, self.arguments)


class IncidentTurn(Record):
    """One exchange of an incident as it was reported; ``notes`` hold what safeguards said."""

    turn: int = Field(ge=1)
    user: Text
    assistant: Text
    compliant: bool | None
    calls: tuple[ReportedCall, ...] = ()
    notes: tuple[Text, ...] = ()


class Incident(Record):
    """An incident file as it comes in; what it claims is kept as a claim, never as an answer.

    ``plants`` are texts that its record shows in tickets, files or mails and that the company does
    not hold; ``claims`` are labels of the file beyond those that have fields here. No replay uses
    ``system_prompt``: what it told the agent supports what the agent said. None and empty texts say
    that the file does not tell.
    """

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
    system_prompt: Text = ""
    plants: tuple[Plant, ...] = ()
    claims: dict[str, Text] = Field(default_factory=dict)

    def __str__(self) -> str:
        version = f" on {self.agent_version}" if self.agent_version else ""
        told = f"{self.incident_id} · {len(self.trajectory)} turns{version} · {self.description}"
        return told


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
    """``incident_replay.json``: what replaying the incident showed.

    ``new_tests`` are all that were made of it; those of them that no gate runs, because they come
    back too rarely or fail on the reference too, stand in ``set_aside`` as well. ``log_lacks`` says
    what the log could not tell.
    """

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
    set_aside: tuple[str, ...] = ()
    gate_before: Verdict | None
    gate_after: Verdict | None
    gate_of_fix: Verdict | None
    fixed_version: str
    suite_sha256: str
    story: Story | None = None
    log_given: bool = True
    log_lacks: tuple[str, ...] = ()

    @property
    def came_back(self) -> bool:
        """Whether a rule broke when the incident was held again: else it has no cause, no fix."""
        return bool(self.rule_id and self.reproduction.k)

    @property
    def is_watched(self) -> bool:
        """Whether a test of the incident is active."""
        return len(self.set_aside) < len(self.new_tests)

    @property
    def why_no_radius(self) -> str:
        """Why no blast radius was estimated; empty where one was."""
        if self.blast_radius is not None:
            return ""
        if not self.log_given:
            return "not measured: no log was given"
        if not self.came_back:
            return "not estimated: no rule broke in the replays"
        return "; ".join(self.log_lacks) or "not measured: the log cannot tell"

    def __str__(self) -> str:
        if not self.came_back:
            return f"{self.incident_id}: did not come back, {self.reproduction}"
        return f"{self.incident_id}: came back {self.reproduction}, cause {self.root_cause}"

    def _repr_html_(self) -> str:
        rows = [
            ("rule", self.rule_id or "none broke in the replays"),
            ("came back", self.reproduction),
            ("root cause", self.root_cause if self.came_back else "not measured"),
            ("decisive turn", self.decisive_turn or "none"),
            ("affected", self.blast_radius or self.why_no_radius),
            ("new tests", ", ".join(self.new_tests) or "none"),
            (f"gate on {self.version} before", self.gate_before or "no verdict"),
            (f"gate on {self.version} after", self.gate_after or "no verdict"),
        ]
        if self.fixed_version:
            rows.append((f"gate on {self.fixed_version}", self.gate_of_fix or "no verdict"))
        return html_table(str(self), ("asked", "found"), rows)

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What a report does not have it says nothing of; that there was a log is the rule.
        tree: dict[str, Any] = dump(self)
        if self.story is None:
            del tree["story"]
        if self.log_given:
            del tree["log_given"]
        for name in ("set_aside", "log_lacks"):
            if not tree[name]:
                del tree[name]
        return tree
