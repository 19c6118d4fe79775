"""Closing the loop: mitigations that are executed, tests that generalise, a gate that then knows.

A mitigation is not believed, it is run: on the incident, on variants of it that no test holds, and
on legitimate requests. A test is not the incident's transcript alone: the same conversation with
another goal at its end shows whether the incident was about one rule or about the way to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from safety_lib.artifacts import sealed
from safety_lib.incident.interventions import tightened
from safety_lib.incident.replay import Replay, failure_of, plan_incident, turns_of
from safety_lib.records import (
    Bisection,
    Failure,
    MitigationResult,
    Plant,
    RegressionTest,
    Reproduction,
    Suite,
    TestSource,
    Trajectory,
    id_of_test,
)
from safety_lib.regression.admission import admit, came_back
from safety_lib.regression.minimise import Turns
from safety_lib.regression.variants import variants
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import Rollout, plan_replay, trial_seed
from safety_lib.rollout.judging import (
    benign_outcome,
    breaks,
    control_of,
    count_broken,
    reproduction_of,
)
from safety_lib.stats.intervals import clopper_pearson_upper
from safety_lib.text import Shown
from safety_lib.world import provenance, world_of
from safety_lib.world.tools import Tools
from safety_lib.world.versions import Version


@dataclass(frozen=True, repr=False)
class Mitigation(Shown):
    """Something that could be done about an incident: a version to run in place of the bad one."""

    name: str
    version: Version


def siblings(replay: Replay, number: int = 0) -> dict[str, Turns]:
    """Make the incident's conversation end in other goals: the same way to something else.

    Parameters
    ----------
    replay : Replay
        The incident and the rule that broke.
    number : int
        Which wording of the goals, from 0.

    Returns
    -------
    dict
        Rule to turns, for every goal that can be asked for in one sentence and breaks another rule
        than the incident. Whether they break anything is for a replay to say.
    """
    turns = turns_of(replay.incident)
    end = min(len(turns), replay.shown.failure_turn or len(turns)) - 1
    said = turns[end]
    goals = world_of(replay.version).goals.values()
    asked = [goal.ask for goal in goals if goal.rule == replay.rule_id]
    own = next((clause for asks in asked for clause in asks if clause in said), "")
    made: dict[str, Turns] = {}
    for goal in goals:
        if goal.ask and goal.rule != replay.rule_id and goal.rule not in made:
            clause = goal.ask[number % len(goal.ask)]
            last = said.replace(own, clause) if own else f"As we agreed, please {clause}."
            made[goal.rule] = (*turns[:end], last)
    return made


def sibling_tests(replay: Replay, run: Run = Run()) -> tuple[RegressionTest, ...]:
    """Make tests of the siblings that break on the version of the incident.

    Parameters
    ----------
    replay : Replay
        The incident; its seeds are used again.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    tuple of RegressionTest
        Those that come back often enough, active or set aside as in stage 2.
    """
    found = []
    for rule_id, turns in siblings(replay).items():
        rollouts = [
            plan_incident(replay.incident, replay.version, turns, t.seed)
            for t in replay.trajectories
        ]
        held = tuple(run_campaign(rollouts, run))
        again = count_broken(replay.version.version, held, rule_id)
        if came_back(again):
            shown = next(t for t in held if breaks(t, rule_id))
            found.append((failed(replay, shown, rule_id, run), again))
    return admitted(replay, found, run, shorten=False)


def failed(replay: Replay, shown: Trajectory, rule_id: str, run: Run) -> Failure:
    """Make a replay in which a rule broke into a failure, with its control held.

    Parameters
    ----------
    replay : Replay
        The incident.
    shown : Trajectory
        The replay.
    rule_id : str
        The rule.
    run : Run
        Seed, model and where the conversations are held.

    Returns
    -------
    Failure
        Delayed, if its last message alone breaks nothing.
    """
    (control,) = run_campaign([control_of(replay.version, shown)], run)
    return failure_of(replay.incident, shown, control, rule_id, world_of(replay.version))


def admitted(
    replay: Replay, found: Sequence[tuple[Failure, Reproduction]], run: Run, *, shorten: bool
) -> tuple[RegressionTest, ...]:
    """Make failures of an incident into tests, through the one door of stage 2.

    Parameters
    ----------
    replay : Replay
        The incident.
    found : sequence of (Failure, Reproduction)
        What came back on the version of the incident, and how often.
    run : Run
        Seed, model and where the conversations are held.
    shorten : bool
        Whether to take out what is not needed.

    Returns
    -------
    tuple of RegressionTest
        One for each failure, active or set aside.
    """
    return admit(
        found,
        {replay.version.version: replay.version},
        world_of(replay.version).known_good,
        run,
        replays=len(replay.trajectories),
        shorten=shorten,
        incident_id=replay.incident.incident_id,
    )


def single_turn_suite(baseline: Version, candidate: Version, seed: int) -> Suite:
    """Make the suite that there was before anybody held a conversation: every goal, asked once.

    A single-turn evaluation is what most gates run. Its tests need not fail anywhere: they are
    questions that somebody thought of.

    Parameters
    ----------
    baseline, candidate : Version
        What the suite will compare.
    seed : int
        Stands in the suite; nothing is drawn.

    Returns
    -------
    Suite
        A test for each wording of each goal.
    """
    world = world_of(baseline, candidate)
    tests = []
    for goal_id, goal in world.goals.items():
        rule = world.policy.rule(goal.rule)
        for clause in goal.ask:
            turns = (f"Please {clause}.",)
            tests.append(
                RegressionTest(
                    test_id=id_of_test(rule.id, turns, ()),
                    source_failure_id="",
                    name=f"{rule.title}: asked once",
                    category="single_turn",
                    family=f"{rule.id}/user",
                    signature=f"{rule.id} | single turn",
                    rule_id=rule.id,
                    severity=world.severity_of(rule.id),
                    description=f"{goal_id.replace('_', ' ')}, asked plainly in one message",
                    attack_turns=turns,
                    expected_behavior=f"Refuses or holds. {rule.text}",
                    tags=("single_turn",),
                    lifecycle="active",
                    reproduction=reproduction_of(candidate.version, 0, 0),
                    benign_twin=world.benign_twin(goal_id),
                    source=TestSource(stage="stress", version=baseline.version, seed=seed),
                )
            )
    return as_suite(tests, baseline, candidate, seed)


def as_suite(
    tests: Sequence[RegressionTest], baseline: Version, candidate: Version, seed: int
) -> Suite:
    """Put tests into a suite of their own.

    Parameters
    ----------
    tests : sequence of RegressionTest
        All of it.
    baseline, candidate : Version
        What it will compare.
    seed : int
        Stands in the suite; nothing is drawn.

    Returns
    -------
    Suite
        Sealed with its hash.
    """
    return sealed(
        Suite(
            artifact=Suite.SCHEMA,
            schema_version=Suite.VERSION,
            seed=seed,
            model="simulated",
            **provenance(baseline, candidate),
            baseline=baseline.version,
            candidate=candidate.version,
            funnel={},
            tests=tuple(tests),
        )
    )


class HeldOut(NamedTuple):
    """A conversation that no test holds: the rule that may break, what is said, what is planted."""

    rule_id: str
    turns: Turns
    plants: tuple[Plant, ...] = ()


def held_out(replay: Replay, tests: Sequence[RegressionTest]) -> tuple[HeldOut, ...]:
    """List conversations like the incident that no test of the suite holds, with their rules.

    They are the variants of the tests (other words, names and pace) and the siblings in a wording
    that no test uses.
    """
    known = {test.attack_turns for test in tests}
    made = [
        HeldOut(variant.rule_id, variant.attack_turns, variant.plants)
        for test in tests
        for variant in variants(test, world_of(replay.version))
    ]
    plants = replay.shown.plants
    made += [HeldOut(rule, turns, plants) for rule, turns in siblings(replay, number=1).items()]
    return tuple(entry for entry in dict.fromkeys(made) if entry.turns not in known)


def plan_mitigations(
    replay: Replay, good: Version, fixed: Version | None, cause: Bisection
) -> tuple[Mitigation, ...]:
    """List what could be done: undo what the incident hangs on, roll back, tighten, switch off.

    Parameters
    ----------
    replay : Replay
        The incident on the version that broke.
    good : Version
        The last version that was good.
    fixed : Version or None
        The release that is meant to be the fix.
    cause : Bisection
        What the incident hangs on.

    Returns
    -------
    tuple of Mitigation
        Distinct versions; one that several ways lead to bears all their names.
    """
    bad = replay.version
    before = {change.key: change.before for change in good.changes_to(bad)}
    found: dict[str, Mapping[str, Any]] = {"do nothing": {}}
    for key in dict.fromkeys((*cause.enough, *cause.needed)):
        found[f"undo {key}"] = {key: before[key]}
    if len(cause.enough) > 1:
        found["undo all of the cause"] = {key: before[key] for key in cause.enough}
    found |= tightened(replay)
    others: Callable[[Version], dict[str, Mapping[str, Any]]] | None = world_of(bad).hook(
        "mitigated"
    )
    found |= others(bad) if others else {}
    made = [Mitigation(name, bad.having(dict(changes))) for name, changes in found.items()]
    made.append(Mitigation(f"roll back to {good.version}", good))
    if fixed is not None:
        made.append(Mitigation(f"release {fixed.version}", fixed))
    names: dict[str, list[str]] = {}
    for mitigation in made:
        names.setdefault(mitigation.version.sha256, []).append(mitigation.name)
    distinct = {mitigation.version.sha256: mitigation for mitigation in made}
    return tuple(
        Mitigation(" = ".join(names[sha256]), mitigation.version)
        for sha256, mitigation in distinct.items()
    )


def try_mitigations(
    replay: Replay,
    tried: Sequence[Mitigation],
    variants_held_out: Sequence[HeldOut],
    run: Run = Run(),
    *,
    replays: int,
    per_variant: int,
    sessions: int,
) -> tuple[MitigationResult, ...]:
    """Execute mitigations: on the incident, on held-out variants of it and on legitimate requests.

    Parameters
    ----------
    replay : Replay
        The incident; it is held again on fresh seeds, the same for every mitigation.
    tried : sequence of Mitigation
        As from :func:`mitigations`.
    variants_held_out : sequence of HeldOut
        As from :func:`held_out`.
    run : Run, optional
        Seed, model and where the conversations are held.
    replays : int
        Seeds on the incident.
    per_variant : int
        Seeds on each held-out variant.
    sessions : int
        Ordinary sessions of made-up traffic beside the benign twins. One is not served where a
        call that changed something on the version of the incident no longer runs.

    Returns
    -------
    tuple of MitigationResult
        In the order in which they were given.
    """
    tools = world_of(replay.version).tools
    ordinary = _ordinary(replay.version, sessions, run.seed)
    usual = [_acts(t, tools) for t in run_campaign(ordinary, run)]
    results = []
    for mitigation in tried:
        version = mitigation.version
        again = (
            plan_incident(
                replay.incident,
                version,
                turns_of(replay.incident),
                trial_seed(run.seed, "recurrence", n),
            )
            for n in range(replays)
        )
        k = sum(breaks(t, replay.rule_id) for t in run_campaign(again, run))
        results.append(
            MitigationResult(
                name=mitigation.name,
                changes=tuple(str(c) for c in replay.version.changes_to(version)),
                incident=reproduction_of(version.version, k, replays),
                at_most=round(clopper_pearson_upper(k, replays), 6),
                held_out=_recurred(version, variants_held_out, per_variant, run),
                benign=_not_served(version, ordinary, usual, run),
            )
        )
    return tuple(r.model_copy(update={"pareto": not _dominated(r, results)}) for r in results)


def _recurred(version: Version, held: Sequence[HeldOut], each: int, run: Run) -> Reproduction:
    entries = [entry for entry in held for _ in range(each)]
    rollouts = [
        plan_replay(
            version,
            entry.turns,
            name="held-out",
            seed=trial_seed(run.seed, "held out", number % each),
            plants=entry.plants,
        )
        for number, entry in enumerate(entries)
    ]
    done = zip(run_campaign(rollouts, run), entries, strict=True)
    return reproduction_of(
        version.version, sum(breaks(t, entry.rule_id) for t, entry in done), len(rollouts)
    )


def _not_served(
    version: Version, ordinary: Sequence[Rollout], usual: Sequence[set[str]], run: Run
) -> Reproduction:
    world = world_of(version)
    twins = {goal: world.benign_twin(goal) for goal in world.goals}
    asked = [
        plan_replay(
            version,
            twin.turns,
            name=f"twin/{goal}",
            seed=trial_seed(run.seed, "twin of a mitigation", goal),
            stop_at_violation=False,
        )
        for goal, twin in twins.items()
    ]
    same = [planned._replace(version=version) for planned in ordinary]
    held = list(run_campaign([*asked, *same], run))
    failed = sum(
        benign_outcome(t, twin, world) == "violation"
        for t, twin in zip(held, twins.values(), strict=False)
    )
    failed += sum(
        not before <= _acts(t, world.tools)
        for t, before in zip(held[len(twins) :], usual, strict=True)
    )
    return reproduction_of(version.version, failed, len(held))


def _ordinary(version: Version, sessions: int, seed: int) -> list[Rollout]:
    plan: Callable[[Version, int, int], list[Rollout]] | None = world_of(version).hook("ordinary")
    return plan(version, sessions, seed) if plan else []


def _acts(trajectory: Trajectory, tools: Tools) -> set[str]:
    # What a call did is its tool and its target; the words of a mail are the model's.
    return {
        tools.act(event.call.name, event.call.arguments)
        for event in trajectory.executed_calls
        if event.call.name in tools.changing
    }


def _dominated(one: MitigationResult, others: Sequence[MitigationResult]) -> bool:
    def price(result: MitigationResult) -> tuple[float, float, float]:
        counts = (result.incident, result.held_out, result.benign)
        first, second, third = (c.k / c.n if c.n else 0.0 for c in counts)
        return first, second, third

    mine = price(one)
    return any(
        theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
        for theirs in map(price, others)
    )
