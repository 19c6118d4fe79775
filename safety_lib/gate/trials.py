"""Trials: every test on both versions, on common random numbers, as many as are asked for.

Three strata are run and never mixed: the regression tests, an unselected control stratum (every
scenario's script, whether or not it ever broke anything), and the benign twins.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from safety_lib.records import (
    BenignTwin,
    Execution,
    Outcome,
    Plant,
    RegressionTest,
    Severity,
    Stratum,
    Suite,
    ToolCallEvent,
    Trajectory,
    Turn,
)
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import (
    Rollout,
    plan_attack,
    plan_replay,
    trial_seed,
)
from safety_lib.rollout.judging import benign_outcome
from safety_lib.text import Shown
from safety_lib.world import World, world_of
from safety_lib.world.versions import Version

REGRESSION_STRATA = ("baseline_found", "candidate_found", "incident")


@dataclass(frozen=True, repr=False)
class Case(Shown):
    """One test as the gate runs it, from any stratum."""

    case_id: str
    name: str
    stratum: Stratum
    family: str
    category: str
    rule_id: str
    severity: Severity
    trials: int
    turns: tuple[str, ...] = ()
    plants: tuple[Plant, ...] = ()
    scenario_id: str = ""
    max_turns: int = 0
    twin: BenignTwin | None = None
    split: Literal["public", "held_out"] = "public"


@dataclass(repr=False)
class CaseTrials(Shown):
    """The outcomes of one case on both versions, trial by trial, and a transcript to look at."""

    case: Case
    baseline: list[Outcome] = field(default_factory=list)
    candidate: list[Outcome] = field(default_factory=list)
    evidence: tuple[Turn, ...] = ()
    evidence_version: str = ""
    evidence_rank: int = 0

    @property
    def pairs(self) -> list[tuple[bool, bool]]:
        """Passed or failed on baseline and candidate, for the trials that are valid on both."""
        valid = ("safe", "violation")
        return [
            (b == "safe", c == "safe")
            for b, c in zip(self.baseline, self.candidate, strict=True)
            if b in valid and c in valid
        ]


@dataclass(frozen=True, repr=False)
class Trials(Shown):
    """Everything that ran, and the proof that it ran.

    ``confirmations`` are the suspected tests, run again on fresh seeds.
    """

    cases: tuple[CaseTrials, ...]
    executions: tuple[Execution, Execution]
    confirmations: tuple[CaseTrials, ...] = ()


def cases_of(
    suite: Suite, world: World, trials: int, control_trials: int, max_tests: int = 0
) -> list[Case]:
    """List what the gate runs for a suite: its active tests, the controls, the benign twins.

    Controls are held as long as the conversations were in which the suite was found.

    Parameters
    ----------
    suite : Suite
        Active tests only are run.
    world : World
        Whose scenarios and benign twins are run beside them.
    trials : int
        Trials of each regression test and benign twin, at least 1.
    control_trials : int
        Trials of each control scenario.
    max_tests : int
        At most so many cases of each stratum; 0 means all. For models that are slow to ask.

    Returns
    -------
    list of Case
        Regression tests, controls, benign twins, in this order.
    """
    found = [_regression_case(test, suite, trials) for test in suite.active]
    control = list(_controls(world, control_trials, suite.max_turns))
    benign = [
        _benign_case(world, goal_id, twin, trials)
        for goal_id, twins in world.benign_requests.items()
        for twin in twins
    ]
    strata = (found, control, benign)
    return [case for stratum in strata for case in (stratum[:max_tests] if max_tests else stratum)]


class Sampler:
    """Holds trials as they are asked for, each once, on both versions side by side.

    Both versions meet the same seeds. A trial of the one is held beside that of the other, so that
    an endpoint which changes while it is asked changes for both.

    Parameters
    ----------
    cases : sequence of Case
        What can be tried.
    baseline, candidate : Version
        Of the same world.
    run : Run
        Seed, model and where the conversations are held.
    """

    def __init__(
        self, cases: Sequence[Case], baseline: Version, candidate: Version, run: Run
    ) -> None:
        self.run = run
        self._versions = {"baseline": baseline, "candidate": candidate}
        self._world = world_of(baseline, candidate)
        self._first = {case.case_id: CaseTrials(case) for case in cases}
        self._fresh: dict[str, CaseTrials] = {}
        self._tallies = {role: _Tally() for role in self._versions}

    def more(self, wanted: Mapping[str, int], fresh: Mapping[str, int] | None = None) -> None:
        """Hold what is missing until each case has as many trials in all.

        Parameters
        ----------
        wanted : mapping
            Case to trials in all on the seeds of the gate.
        fresh : mapping, optional
            Case to trials in all on the seeds of its confirmations.
        """
        planned: list[tuple[CaseTrials, str]] = []
        # The executor may hold a chunk in advance: what was planned is read back in its order.
        asked = self._rollouts(wanted, fresh or {}, planned)
        for number, trajectory in enumerate(run_campaign(asked, self.run)):
            self._keep(*planned[number], trajectory)

    @property
    def calls_per_turn(self) -> float:
        """Model calls of a user's turn so far, over both versions; 1 before anything was held."""
        turns = sum(tally.turns for tally in self._tallies.values())
        return sum(t.model_calls for t in self._tallies.values()) / turns if turns else 1.0

    @property
    def trials(self) -> Trials:
        """Everything that was held so far."""
        baseline, candidate = (
            tally.execution(self._versions[role]) for role, tally in self._tallies.items()
        )
        return Trials(
            tuple(self._first.values()), (baseline, candidate), tuple(self._fresh.values())
        )

    def _rollouts(
        self,
        wanted: Mapping[str, int],
        fresh: Mapping[str, int],
        planned: list[tuple[CaseTrials, str]],
    ) -> Iterator[Rollout]:
        for stream, asked in (("gate", wanted), ("confirm", fresh)):
            for case_id, trials in asked.items():
                entry = self._first[case_id]
                if stream == "confirm":
                    entry = self._fresh.setdefault(case_id, CaseTrials(entry.case))
                for number in range(len(entry.baseline), trials):
                    seed = trial_seed(self.run.seed, stream, case_id, number)
                    for role, version in self._versions.items():
                        planned.append((entry, role))
                        yield _rollout(entry.case, version, seed, number)

    def _keep(self, entry: CaseTrials, role: str, trajectory: Trajectory) -> None:
        outcome = _outcome(entry.case, trajectory, self._world)
        getattr(entry, role).append(outcome)
        _keep_evidence(entry, trajectory, outcome, role)
        self._tallies[role].add(trajectory, outcome)


class _Tally:
    """What one version did so far, and a digest of all that it said and called."""

    def __init__(self) -> None:
        self.conversations = self.turns = self.model_calls = self.tool_calls = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.digest = hashlib.sha256()

    def add(self, trajectory: Trajectory, outcome: Outcome) -> None:
        self.conversations += 1
        self.turns += trajectory.n_turns
        self.model_calls += trajectory.model_calls
        self.outcomes[outcome] += 1
        calls = [event for event in trajectory.events if isinstance(event, ToolCallEvent)]
        self.tool_calls += len(calls)
        called = (f"{event.call} -> {event.status}" for event in calls)
        self.digest.update(
            "\x1e".join((*trajectory.replies, *called, trajectory.outcome, "\x1d")).encode()
        )

    def execution(self, version: Version) -> Execution:
        return Execution(
            version=version.version,
            config_sha256=version.sha256,
            conversations=self.conversations,
            model_calls=self.model_calls,
            tool_calls=self.tool_calls,
            errors=self.outcomes["error"],
            undetermined=self.outcomes["undetermined"],
            transcript_sha256=self.digest.hexdigest(),
        )


def _rollout(case: Case, version: Version, seed: int, number: int) -> Rollout:
    if case.scenario_id:
        chosen = world_of(version).scenario(case.scenario_id)
        return plan_attack(version, chosen, "static", seed, case.max_turns, number)
    return plan_replay(
        version,
        case.turns,
        name=f"gate/{case.case_id}",
        seed=seed,
        plants=case.plants,
        attack_type=case.category,
        stop_at_violation=case.twin is None,
    )


def _outcome(case: Case, trajectory: Trajectory, world: World) -> Outcome:
    if case.twin is not None:
        return benign_outcome(trajectory, case.twin, world)
    return trajectory.outcome


def _keep_evidence(entry: CaseTrials, trajectory: Trajectory, outcome: Outcome, role: str) -> None:
    # A failing candidate is what a reviewer asks for first, then a failing baseline, then anything.
    rank = 1 + (outcome == "violation") * (2 if role == "candidate" else 1)
    if rank > entry.evidence_rank:
        entry.evidence_rank = rank
        entry.evidence = trajectory.turns
        entry.evidence_version = trajectory.version


def _regression_case(test: RegressionTest, suite: Suite, trials: int) -> Case:
    if test.source.stage == "incident":
        stratum: Stratum = "incident"
    else:
        on_baseline = test.source.version == suite.baseline
        stratum = "baseline_found" if on_baseline else "candidate_found"
    return Case(
        case_id=test.test_id,
        name=test.name,
        stratum=stratum,
        family=test.family,
        category=test.category,
        rule_id=test.rule_id,
        severity=test.severity,
        trials=trials,
        turns=test.attack_turns,
        plants=test.plants,
        split=test.split,
    )


def _controls(world: World, trials: int, max_turns: int) -> Iterator[Case]:
    for chosen in world.scenarios:
        rule = world.policy.rule(chosen.goal.rule)
        yield Case(
            case_id=f"control/{chosen.scenario_id}",
            name=f"{rule.title}: {chosen.family_id.replace('_', ' ')}, scripted",
            stratum="control",
            family=chosen.goal_id,
            category=chosen.family_id,
            rule_id=rule.id,
            severity=world.severity_of(rule.id),
            trials=trials,
            scenario_id=chosen.scenario_id,
            max_turns=min(max_turns, len(chosen.family.script)),
        )


def _benign_case(world: World, goal_id: str, twin: BenignTwin, trials: int) -> Case:
    rule = world.policy.rule(world.goals[goal_id].rule)
    return Case(
        case_id=twin.twin_id,
        name=f"Legitimate request beside {goal_id.replace('_', ' ')}",
        stratum="benign",
        family=goal_id,
        category="benign",
        rule_id=rule.id,
        severity=world.severity_of(rule.id),
        trials=trials,
        turns=twin.turns,
        twin=twin,
    )
