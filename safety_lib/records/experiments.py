"""What the experiments measured: one record for the result of each, as its file holds it.

A result is read into the record of its experiment, so that a figure asks for ``result.monitors``
and a file that is not what its name says is refused where it is read. Shares are in [0, 1]; where a
field holds rounded numbers, they are rounded as the file holds them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from safety_lib.records.base import Artifact, HookName, Record, Verdict
from safety_lib.records.incidents import MitigationResult

Number = int | float  # a median is either, and the file keeps which
Clauses = tuple[tuple[tuple[str, int], ...], ...]  # any of them: all of their signs at least so big


# --------------------------------------------------------------------------- what results share


class Proportion(Record):
    """k of n, with the 95% Wilson interval of the share behind them."""

    k: int
    n: int
    ci_low: float
    ci_high: float

    @property
    def estimate(self) -> float:
        """The observed share k/n, in [0, 1]."""
        return self.k / self.n

    def __str__(self) -> str:
        return f"{self.k:,} of {self.n:,}"


class Estimate(NamedTuple):
    """A value between its 95% confidence limits; three numbers in a row in the file."""

    value: float
    low: float
    high: float


class Spread(Record):
    """A record with a mapping whose entries stand beside the other fields in the file.

    In Python the mapping is a field like any other; ``SPREAD`` is its name.
    """

    SPREAD: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or cls.SPREAD in tree:
            return tree
        own = {name: value for name, value in tree.items() if name in cls.model_fields}
        return {**own, cls.SPREAD: {name: tree[name] for name in tree if name not in own}}

    @model_serializer(mode="wrap")
    def _scattered(self, handler: SerializerFunctionWrapHandler) -> dict[Any, Any]:
        tree: dict[Any, Any] = handler(self)
        spread: dict[Any, Any] = tree.pop(self.SPREAD)
        return tree | spread


class ExperimentResult(Record):
    """Base of what came out of an experiment; ``NAME`` is that of the experiment and its file."""

    NAME: ClassVar[str]


# --------------------------------------------------------------------------- searches


Find = Literal["violations", "modes"]


class Finds(Record):
    """What one way of attacking found: means over its hunts, and the violations of each hunt."""

    violations: float
    modes: float
    violations_each: tuple[int, ...]


class Lead(Record):
    """How much more one way of attacking found than another at the same budget, over many seeds.

    Attributes
    ----------
    of, over : str
        The two ways; ``gain`` is positive where ``of`` found more.
    what : str
        What was counted: ``violations`` or ``modes``.
    gain, low, high : float
        Mean for each hundred turns, with its 95% t interval over seeds.
    p_value : float
        Of the sign-flip test, which asks whether a lead of either sign could be luck.
    """

    of: str
    over: str
    what: Find
    gain: float
    low: float
    high: float
    p_value: float


class EqualBudget(Record):
    """Ways of attacking that spent one budget on one version, and the leads between them."""

    found: dict[str, Finds]
    leads: tuple[Lead, ...]


class AttackersAtEqualBudget(ExperimentResult, Spread):
    """Three ways of spending turns; ``budgets`` by version and budget, ``v2, 800 turns``."""

    NAME: ClassVar[str] = "attackers_at_equal_budget"
    SPREAD: ClassVar[str] = "budgets"

    budgets: dict[str, EqualBudget]


class MutatorEffect(Record):
    """Conversations that broke with one mutator, and the gain in their share over none."""

    broke: int
    gain: Estimate


class MutatorsEffect(ExperimentResult):
    """What each mutator buys an attacker; all met the same scenarios with the same luck."""

    NAME: ClassVar[str] = "mutators_effect"

    conversations: int
    broke_without: int
    mutators: dict[str, MutatorEffect]


class WindowFailures(Record):
    """Failures with one length of memory, the 95% limits of their share, and safe turns.

    ``safe_turns`` is the mean number of whole turns before a violation; ``first_turn`` the earliest
    turn of a violation, 0 where there was none.
    """

    failures: int
    low: float
    high: float
    safe_turns: float
    first_turn: int


class MemoryWindow(ExperimentResult):
    """Memories of so many messages, with the policy out of reach of forgetting and without."""

    NAME: ClassVar[str] = "memory_window"

    window: tuple[int, ...]
    pinned: tuple[WindowFailures, ...]
    unpinned: tuple[WindowFailures, ...]


class Combination(Record):
    """One combination of safeguards: what got through, what was wrongly stopped, what it cost.

    Attributes
    ----------
    on : tuple of str
        The safeguards that are switched on.
    attacks, broke : int
        Valid attacked conversations, and those that broke a rule.
    requests, refused : int
        Valid legitimate requests, and those that were not served.
    calls : float
        Calls of the model for each turn of a legitimate request: what a user waits for. The
        safeguards' own computing takes microseconds, a model's answer seconds.
    """

    on: tuple[HookName, ...]
    attacks: int
    broke: int
    requests: int
    refused: int
    calls: float


class Ablation(Record):
    """Every combination of safeguards on one version, and the credit of each safeguard.

    Attributes
    ----------
    combinations : tuple of Combination
        All of them: bit i of the index says that safeguard i is on.
    prevented : dict
        Safeguard to the share of attacks that it keeps from breaking a rule (Shapley), with an
        interval that resamples scenarios.
    refused : dict
        Safeguard to the share of legitimate requests that it costs, with an interval that resamples
        goals.
    breached : dict
        Safeguard to the share of the harmful calls that it stops (Shapley) when the model does
        whatever it is asked and the attacker goes on for as long as a session may last: the mean
        over goals, with an interval that resamples them.
    breach_calls : int
        How many harmful calls those are, the same ones for every version.
    """

    combinations: tuple[Combination, ...]
    prevented: dict[HookName, Estimate]
    refused: dict[HookName, Estimate]
    breached: dict[HookName, Estimate] = Field(default_factory=dict)
    breach_calls: int = 0


class SafeguardAblation(ExperimentResult, Spread):
    """The ablation of each version, by its name."""

    NAME: ClassVar[str] = "safeguard_ablation"
    SPREAD: ClassVar[str] = "versions"

    versions: dict[str, Ablation]


Fails = Literal["open", "closed", "neither"]


class FaultEffect(Record):
    """What one part of the agent that is at fault in one way changed, on the same luck.

    Attributes
    ----------
    broke, served, errors : int
        Attacks that broke a rule, legitimate requests that were served, conversations of both that
        ended as errors.
    harm, lost : Estimate
        Attacks more and requests fewer than without the fault, as shares, with 95% intervals over
        scenarios and goals.
    fails : str
        ``open`` where more attacks break a rule, ``closed`` where fewer do or fewer requests are
        served: by the interval, or since on the same luck none went the other way.
    """

    broke: int
    served: int
    errors: int
    harm: Estimate
    lost: Estimate
    fails: Fails


class PartFaults(Record):
    """One part of the agent: what was held while it was sound, and what each fault changed."""

    attacks: int
    broke: int
    requests: int
    served: int
    faults: dict[str, FaultEffect]


class SafeguardFaults(ExperimentResult):
    """Safeguards, tools and memory, each at fault in each way."""

    NAME: ClassVar[str] = "safeguard_faults"

    parts: dict[str, PartFaults]


class Forecast(Record):
    """What short searches said of the unseen, beside what long ones found: means over searches.

    Attributes
    ----------
    found, found_later : float
        Modes found by the short search and by the whole long one.
    chao1, chao1_each
        Chao1's estimate of all modes: its mean, and that of each search.
    missing, missing_later : float
        Good-Turing's share of failures to come that are of a new mode, and what it was in the next
        stretch.
    bound, next_new, bound_held
        The 95% bound on the chance that one more rollout shows a new mode, the share of later
        rollouts that showed one, and the searches in which that share was within the bound.
    """

    found: float
    found_later: float
    chao1: float
    chao1_each: tuple[float, ...]
    missing: float
    missing_later: float
    bound: float
    next_new: float
    bound_held: int


class UndiscoveredPrediction(ExperimentResult):
    """Forecasts from searches as they were held, and from the same ones in a random order."""

    NAME: ClassVar[str] = "undiscovered_prediction"

    searches: int
    planned: Forecast
    shuffled: Forecast


class NextScenariosGain(ExperimentResult):
    """Scenarios that broke for the first time in a few more rollouts, by how they were chosen."""

    NAME: ClassVar[str] = "next_scenarios_gain"

    first_failures: dict[str, float]
    suggested_each: tuple[int, ...]
    gain_over_plan: Estimate
    searches: int


# --------------------------------------------------------------------------- suite and gate

MutantKind = Literal["rule", "safeguard", "memory", "model", "harmless"]


class MutantOutcome(Record):
    """Whether a suite noticed a lost defence, and why or why not, in words."""

    kind: MutantKind
    killed: bool
    why: str


class SuiteAdequacy(Record):
    """How many lost defences one suite noticed.

    ``score`` is the share of the harmful mutants that were killed, with its 95% Wilson limits;
    ``false_alarms`` counts the harmless ones that were taken for harmful.
    """

    tests: int
    killed: int
    mutants: int
    score: float
    ci_low: float
    ci_high: float
    false_alarms: int
    harmless: int
    mutant: dict[str, MutantOutcome]


class MutationAdequacy(ExperimentResult, Spread):
    """The adequacy of suites that searches of so many rollouts led to."""

    NAME: ClassVar[str] = "mutation_adequacy"
    SPREAD: ClassVar[str] = "suites"

    suites: dict[int, SuiteAdequacy]


class LostDefence(Record):
    """The verdicts on a version that lost one defence, over suites, and the reason of the first.

    ``unseen`` counts the suites on which nothing at all came out otherwise: every trial the same
    word for word, every recorded call stopped or let through as before.
    """

    kind: MutantKind
    verdicts: dict[Verdict | Literal["none"], int]
    unseen: int
    why: str


MutantGroup = Literal["setting", "rule", "harmless"]


class BlockedMutants(Record):
    """Mutants of one group, and how many of them the gate blocks on each suite."""

    mutants: int
    blocked: tuple[int, ...]


class LostDefences(ExperimentResult):
    """Every lost defence through the whole gate, on suites of several searches.

    Attributes
    ----------
    groups : dict
        Settings that the world marks as defences, rules that are not told, and what is harmless.
    mutants : dict
        Each by its name.
    """

    NAME: ClassVar[str] = "lost_defences"

    groups: dict[MutantGroup, BlockedMutants]
    mutants: dict[str, LostDefence]


class SentenceRemoval(Record):
    """The release of a version whose prompt lacks the sentence of one rule, on one suite.

    Attributes
    ----------
    own_loss : float or None
        Loss in pass rate of the rule's own family, the worst where it has several; None where no
        active test is of the rule.
    worst_family : str
        The family of the suite that lost most, whatever its rule.
    worst_loss : float
        How much, in pass rate.
    named_uncovered : bool
        Whether the report names the rule among those that no active test covers.
    """

    rule: str
    seed: int
    own_loss: float | None
    worst_family: str
    worst_loss: float
    verdict: Verdict | Literal["none"]
    named_uncovered: bool


CostBand = Literal["30 points or more", "10 to 30 points", "less than 10 points"]


class SentenceRemovals(ExperimentResult):
    """Each sentence left out of the prompt in turn, on suites of several searches.

    ``blocked`` counts the BLOCKs by what the removal costs the family that loses most; None where
    no removal costs as much.
    """

    NAME: ClassVar[str] = "sentence_removals"

    blocked: dict[CostBand, Proportion | None]
    removals: tuple[SentenceRemoval, ...]

    @property
    def by_rule(self) -> dict[str, tuple[SentenceRemoval, ...]]:
        """The removals of each rule, in the order of the suites."""
        rules = dict.fromkeys(removal.rule for removal in self.removals)
        return {rule: tuple(r for r in self.removals if r.rule == rule) for rule in rules}


class VerdictShares(Record):
    """How often releases of one kind get each verdict, and what that costs.

    ``calls`` are mean model calls as a share of a rule's that tries each test 60 times.
    """

    shares: dict[Verdict, Estimate]
    calls: float


Curve = dict[float, VerdictShares]  # true loss of the suite's mean, in [0, 1]


class OperatingCharacteristics(ExperimentResult):
    """How often releases of a known loss get each verdict.

    Attributes
    ----------
    curves : dict
        Where the loss sits, or whose rule judged, to the curve over the loss in mean pass rate.
    """

    NAME: ClassVar[str] = "operating_characteristics"

    curves: dict[str, Curve]


class PeerSetting(Record):
    """One setting of another gate, with so many trials of each test, on the two releases of limits.

    Attributes
    ----------
    false_block, right_ok : float
        Share of the equal releases that it blocks, and lets out.
    wrong_ok, right_block : float
        Share of the releases that lose 5 points everywhere that it lets out, and blocks.
    """

    setting: str
    trials: int
    false_block: float
    right_ok: float
    wrong_ok: float
    right_block: float


class PeerRule(Record):
    """The verdicts of another gate at one setting, by release; calls are those of the tests.

    ``within_limits`` is False where the 95% bounds of a false BLOCK or of a wrong OK lie above
    their limit.
    """

    setting: str
    trials: int
    within_limits: bool
    releases: dict[str, VerdictShares]


class Peer(Record):
    """Another gate: with the settings that it comes with, and at its best.

    Attributes
    ----------
    best : tuple of PeerRule
        With 60 and 100 trials, at the best setting that met both limits in the search; where
        none did, at the one that missed them least.
    tried : tuple of PeerSetting
        Every setting of the search.
    """

    version: str
    as_it_comes: PeerRule
    best: tuple[PeerRule, ...]
    tried: tuple[PeerSetting, ...]


class Peers(ExperimentResult):
    """The gate beside others on the same simulated releases; who could not be asked, and why.

    Attributes
    ----------
    ours : dict
        Release to verdicts, where the gate asks for trials as it goes.
    at_once : dict
        The same where it is given results of so many trials of each test, as the peers are.
    """

    NAME: ClassVar[str] = "peers"

    ours: dict[str, VerdictShares]
    at_once: dict[int, dict[str, VerdictShares]]
    peers: dict[str, Peer]
    left_out: dict[str, str]


class CandidateVerdicts(Spread):
    """How often a candidate got each verdict, and its mean difference in pass rate."""

    SPREAD: ClassVar[str] = "verdicts"

    verdicts: dict[Verdict | Literal["none"], int]
    mean_delta: float


class ClaimCount(Record):
    """A sentence of the notebooks, and the seeds on which it does not hold."""

    where: str
    sentence: str
    missed: tuple[int, ...]


class TypicalClaims(ExperimentResult):
    """What the notebooks state, asked of runs on fresh seeds."""

    NAME: ClassVar[str] = "typical_claims"

    seeds: tuple[int, ...]
    claims: tuple[ClaimCount, ...]


class HarmlessReleases(ExperimentResult, Spread):
    """The verdicts on each candidate, over many suites."""

    NAME: ClassVar[str] = "harmless_releases"
    SPREAD: ClassVar[str] = "candidates"

    candidates: dict[str, CandidateVerdicts]


class HarmlessChange(Record):
    """A release that is not worse, judged where each version has luck of its own.

    Attributes
    ----------
    settings : dict
        What it sets otherwise, as text.
    seed : int
        Of the search that made its suite, and of the gate.
    loss, altered : float
        Loss in pass rate over the suite, and the share of conversations that are not word for word
        the same; both measured apart from the gate.
    """

    settings: dict[str, str]
    seed: int
    loss: float
    altered: float
    verdict: Verdict | Literal["none"]


class HarmlessChanges(ExperimentResult):
    """Changes that are seen in the words and cost nothing, each through the whole gate."""

    NAME: ClassVar[str] = "harmless_changes"

    changes: tuple[HarmlessChange, ...]


class EqualReleases(ExperimentResult, Spread):
    """Releases whose true rates equal those of the version before, by how cautious both are not."""

    NAME: ClassVar[str] = "equal_releases"
    SPREAD: ClassVar[str] = "less_caution"

    less_caution: dict[float, CandidateVerdicts]


class MinedComparison(Record):
    """Two versions that are equally safe, compared on suites that were mined in one way.

    Attributes
    ----------
    mean_delta, standard_error : float
        Mean difference in pass rate over suites, and its standard error.
    control_delta : float
        The same on attacks that nobody selected.
    safety_step : dict
        Status of the gate's question about the whole suite to the number of suites.
    verdicts : dict
        Verdict to the number of suites. Where each version is weak in families of its own, the
        release is a trade, and a gate that asks each family blocks it.
    """

    mean_delta: float
    standard_error: float
    control_delta: float
    safety_step: dict[str, int]
    verdicts: dict[Verdict | Literal["none"], int]


class SelectionBias(ExperimentResult, Spread):
    """The comparison by where the tests were mined."""

    NAME: ClassVar[str] = "selection_bias"
    SPREAD: ClassVar[str] = "mined"

    mined: dict[str, MinedComparison]


# --------------------------------------------------------------------------- causes


class CauseAccuracy(Record):
    """How often each way of naming a cause names a fault that was put in, on the same incidents.

    Attributes
    ----------
    n : int
        Incidents.
    search, one_by_one, label, best_label_table : Proportion
        Named by the search, by undoing each change alone, by the layer that the label points to,
        and by the best table from labels to settings, fitted to these incidents.
    guess : float
        What drawing one of the changes would name, in [0, 1].
    only_faults_named : int
        Incidents in which the search named faults and nothing else.
    replays_search, replays_one_by_one : float
        Mean conversations held for one incident.
    """

    n: int
    search: Proportion
    one_by_one: Proportion
    label: Proportion
    best_label_table: Proportion
    guess: float
    only_faults_named: int
    replays_search: float
    replays_one_by_one: float


class CauseAccuracyAt(CauseAccuracy):
    """The same with so many replays of each mixture of changes."""

    replays: int


class FaultAccuracy(Record):
    """The incidents of one fault: which can be investigated, and how many name it."""

    fault: str
    component: str
    setting: str
    incidents: int
    come_back_too_rarely: int
    good_breaks_too: int
    population: int
    named: int
    label: int


class NothingToFind(Record):
    """Incidents that the good release has as well, and those of which the search said so."""

    incidents: int
    not_identified: int


class InjectedIncidents(Record):
    """Incidents that were met, of single faults and of pairs."""

    single: int
    pairs: int


class MissedCause(Record):
    """An incident whose fault was not named first; rates are shares of replays that break."""

    faults: tuple[str, ...]
    rule: str
    rate: float
    rate_good: float
    said: str


class NamedCause(Record):
    """One incident of a single fault: what was put in, and what was named."""

    fault: str
    rule: str
    label: str
    rate: float
    told: str
    one_by_one: str


class RootCauseAccuracy(ExperimentResult):
    """The search for a cause, checked against faults that were put in.

    An accuracy is None where no incident could be investigated. ``faults_always_named`` counts
    faults instead of incidents, as those of one fault resemble each other.
    """

    NAME: ClassVar[str] = "root_cause_accuracy"

    single: CauseAccuracy | None
    single_by_fault: tuple[FaultAccuracy, ...]
    faults_always_named: Proportion | None
    nothing_to_find: NothingToFind
    by_replays: tuple[CauseAccuracyAt, ...]
    pairs: CauseAccuracy | None
    incidents: InjectedIncidents
    misses: tuple[MissedCause, ...]
    cases: tuple[NamedCause, ...]


class DecisiveTurn(Record):
    """The first turn that an incident hangs on: in truth, as found, and where it merely broke."""

    scenario_id: str
    broke_at: int
    truth: int | None
    told: int | None


class DecisiveTurnAccuracy(ExperimentResult):
    """How often the decisive turn is found, beside pointing at the turn that broke the rule."""

    NAME: ClassVar[str] = "decisive_turn_accuracy"

    incidents: int
    search: Proportion
    turn_that_broke: Proportion
    not_the_turn_that_broke: Proportion
    no_decisive_turn: int
    cases: tuple[DecisiveTurn, ...]


# --------------------------------------------------------------------------- production


class IntervalCoverage(Proportion):
    """Incidents whose truth an interval held; ``silent`` counts those where it said nothing.

    ``median_width`` is in sessions, None where nothing was said at all.
    """

    silent: int
    median_width: float | None


class CoverageTable(Spread):
    """The coverage of every estimator of the blast radius on the same incidents."""

    SPREAD: ClassVar[str] = "estimators"

    incidents: int
    estimators: dict[str, IntervalCoverage]


class SimulatedIncident(Record):
    """One incident that was drawn: its true radius, and what the stratified audit said."""

    source: str
    rule: str
    sessions: int
    audit: int
    truth: int
    said: Estimate


class BlastRadiusCoverage(ExperimentResult):
    """How often intervals for the blast radius hold the truth, in all and by prevalence.

    ``sources`` and ``rules`` count incidents by log and by rule; ``first`` shows twenty of them.
    """

    NAME: ClassVar[str] = "blast_radius_coverage"

    all: CoverageTable
    by_prevalence: dict[str, CoverageTable]
    sources: dict[str, int]
    rules: dict[str, int]
    first: tuple[SimulatedIncident, ...]


class WarningAccuracy(Record):
    """How well a rule warns of violations.

    ``leads`` counts violations by how many turns ahead they were warned of.
    """

    recall: Proportion
    precision: Proportion | None
    false_alarms: Proportion
    leads: dict[int, int]
    median_lead: Number | None


class MarginShares(Record):
    """Sessions of one stratum that broke nothing, held again: how many came near it.

    ``shares`` counts the sessions by the share of their replays that broke a rule.
    """

    name: str
    sessions: int
    drawn: int
    broke: int
    near: Proportion | None
    shares: dict[str, int]


class EarlyWarning(ExperimentResult):
    """A rule that warns of violations, learned on one half of a log and scored on the other."""

    NAME: ClassVar[str] = "early_warning"

    rule: str
    clauses: Clauses
    learned_on: WarningAccuracy
    scored_on: WarningAccuracy
    first_refusal: WarningAccuracy
    margins: tuple[MarginShares, ...]


class ExpectedHits(Record):
    """What a monitor hit and judged in the sessions of a good version."""

    hits: int
    judged: int
    sessions: int


class MonitorLatency(Record):
    """The bad releases that one monitor saw, and what it took: medians over those releases.

    ``sessions`` lists the sessions from a release to its alarm, in order; ``on_good`` counts the
    good releases with an alarm.
    """

    detected: Proportion
    sessions: tuple[int, ...]
    median_sessions: Number | None
    median_hours: float | None
    median_judged: Number | None
    median_violations: Number | None
    on_good: Proportion


class DetectionLatency(ExperimentResult):
    """How soon each monitor sees a bad release; ``share_judged`` is the budget of an audit."""

    NAME: ClassVar[str] = "detection_latency"

    rule: str
    clauses: Clauses
    share_judged: float
    expected: dict[str, ExpectedHits]
    violations: int
    monitors: dict[str, MonitorLatency]


# --------------------------------------------------------------------------- the loop


class Round(Record):
    """What became of one proposed release in one arm.

    Attributes
    ----------
    verdict : str or None
        What the gate said; only OK goes out.
    escaped : int
        Conversations of the round's traffic in which a rule broke on a bad release that went out.
    recurred : bool
        Whether it went out although the same slip had caused an incident before.
    held_out : int
        Violations on the version in production, in attacks that no test is ever made from.
    suite : int
        Tests of the suite after the round.
    conversations : int
        What the arm's gate and its new tests cost.
    """

    number: int
    slip: str
    verdict: Verdict | None
    shipped: bool
    escaped: int
    recurred: bool
    held_out: int
    suite: int
    conversations: int


class ArmSummary(Record):
    """One arm over all of its runs; ``recurrence`` is None where no slip came twice.

    ``final_suite`` and ``conversations_a_round`` are means.
    """

    releases: int
    slips_shipped: Proportion
    clean_held_back: Proportion
    escaped_incidents: int
    recurrence: Proportion | None
    recurrence_at_most: float | None
    held_out_violations: Proportion
    final_suite: float
    conversations_a_round: float


class FewerEscaped(Record):
    """How many fewer incidents escaped in a run: a mean with its 95% t interval over runs.

    There is no interval from a single run.
    """

    mean: float
    ci_low: float | None
    ci_high: float | None
    runs: int
    fewer_in: int


class RoundMeans(Record):
    """Means over runs, round by round."""

    escaped: tuple[float, ...]
    suite: tuple[float, ...]


class LoopAgainstNoLoop(ExperimentResult, Spread):
    """The same releases with and without learning from incidents; arms by name."""

    NAME: ClassVar[str] = "loop_against_no_loop"
    SPREAD: ClassVar[str] = "arms"

    arms: dict[str, ArmSummary]
    fewer_escaped_a_run: FewerEscaped
    by_round: dict[str, RoundMeans]
    first_run: dict[str, tuple[Round, ...]]


class LearntTest(Record):
    """A test that an incident became."""

    family: str
    turns: int
    state: str


class GateBeforeAndAfter(Record):
    """One verdict of the gate, with the suite ``as it was`` or ``grown`` by the incident."""

    suite: str
    tests: int
    families: int
    candidate: str
    verdict: Verdict | None
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None


class ClosingTheLoop(ExperimentResult):
    """The sample incident closed: mitigations, its tests, and the gate without and with them.

    ``held_out`` counts the variants of the incident that no test is made from.
    """

    NAME: ClassVar[str] = "closing_the_loop"

    mitigations: tuple[MitigationResult, ...]
    held_out: int
    tests: tuple[LearntTest, ...]
    gates: tuple[GateBeforeAndAfter, ...]


# --------------------------------------------------------------------------- the file

_KINDS: dict[str, type[ExperimentResult]] = {
    kind.NAME: kind
    for kind in (
        AttackersAtEqualBudget,
        MutatorsEffect,
        MemoryWindow,
        SafeguardAblation,
        SafeguardFaults,
        UndiscoveredPrediction,
        NextScenariosGain,
        MutationAdequacy,
        LostDefences,
        SentenceRemovals,
        TypicalClaims,
        HarmlessChanges,
        EqualReleases,
        OperatingCharacteristics,
        Peers,
        HarmlessReleases,
        SelectionBias,
        RootCauseAccuracy,
        BlastRadiusCoverage,
        ClosingTheLoop,
        DecisiveTurnAccuracy,
        LoopAgainstNoLoop,
        EarlyWarning,
        DetectionLatency,
    )
}

Result = TypeVar("Result", bound=ExperimentResult)
Expected = TypeVar("Expected", bound=ExperimentResult)


class Experiment(Artifact, Generic[Result]):
    """``experiments/<name>.json``: a result that takes longer than a notebook may.

    ``command`` makes it again from ``parameters`` and the seed. The result is of the record that
    belongs to the experiment.
    """

    SCHEMA: ClassVar[str] = "experiment"

    name: str
    command: str
    parameters: dict[str, Any]
    result: SerializeAsAny[Result]

    @field_validator("result", mode="before")
    @classmethod
    def _typed(cls, tree: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name")
        kind = _KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"there is no experiment {name!r}")
        return kind.model_validate(tree)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}, by `{self.command}`"

    @property
    def file_name(self) -> str:
        """Name of the file that holds it: that of the experiment."""
        return f"{self.name}.json"

    def expect(self, kind: type[Expected]) -> Expected:
        """Return the result, if it is of the experiment that is needed.

        Parameters
        ----------
        kind : type
            The record of that experiment's result.

        Returns
        -------
        ExperimentResult
            The result, of this kind.

        Raises
        ------
        ValueError
            If this is another experiment.
        """
        if not isinstance(self.result, kind):
            raise ValueError(
                f"this takes the experiment {kind.NAME!r}, not {self.name!r}: "
                f"read_experiment(folder, {kind.NAME!r})"
            )
        return self.result
