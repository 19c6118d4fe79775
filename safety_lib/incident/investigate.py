"""The investigation: replay, cause, blast radius, new tests, and the gate again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safety_lib.agent.versions import Version, config_hashes
from safety_lib.artifacts import sealed
from safety_lib.gate.release_gate import run_gate
from safety_lib.gate.trials import Known
from safety_lib.incident.closure import admitted
from safety_lib.incident.intake import Intake
from safety_lib.incident.interventions import (
    RootCause,
    decisive_turn,
    experiments,
    intervene,
    name_root_cause,
)
from safety_lib.incident.replay import Replay, failure_of, job, replay_incident, timeline
from safety_lib.incident.story import tell
from safety_lib.policy import load_policy
from safety_lib.production.blast_radius import (
    Affected,
    Opinion,
    estimate_affected,
    estimate_blast_radius,
    second_opinions,
)
from safety_lib.records import (
    BlastRadius,
    GateReport,
    Incident,
    IncidentReport,
    Intervention,
    Minimisation,
    RegressionTest,
    Suite,
    Trajectory,
)
from safety_lib.regression.generate import count, merge
from safety_lib.regression.minimise import KEPT_SHARE, minimise
from safety_lib.rollout.campaign import run_campaign

MOST_REDUCTIONS = 40


@dataclass(frozen=True)
class Investigation:
    """What the investigation made: the report, the grown suite, and the three gate runs.

    ``gates`` holds the suite as it was against the version of the incident, the grown suite against
    it, and the grown suite against the fix, as far as they were run.
    """

    report: IncidentReport
    suite: Suite
    gates: tuple[GateReport, ...]


def new_tests(replay: Replay, *, seed: int, model: str = "") -> tuple[RegressionTest, ...]:
    """Make the incident into tests: as it happened, and as short as it still comes back.

    Messages are joined and turns and sentences taken out, as in stage 2, as long as the rule still
    breaks in at least 80% of the replays that broke before, on the same seeds.

    Returns
    -------
    tuple of RegressionTest
        Empty where the incident did not come back. A test that comes back too rarely, or that the
        known-good reference fails as well, is set aside, as in stage 2.
    """
    broken = [t for t in replay.trajectories if t.violations and _breaks(t, replay.rule_id)]
    if not broken:
        return ()
    # The turn at which it usually breaks: an early break on one lucky seed would not come back.
    often = Counter(t.failure_turn for t in broken)
    whole = min(broken, key=lambda t: (-often[t.failure_turn], t.failure_turn or 0, t.seed))
    said = whole.user_messages
    short, how = _shortened(replay, said, model)
    made = []
    for turns in dict.fromkeys((said, short)):
        held = _replayed(replay, turns, model)
        seen = next((t for t in held if _breaks(t, replay.rule_id)), None)
        if seen is None:
            continue
        failure = failure_of(replay.incident, seen, replay.rule_id)
        made.append(
            admitted(
                failure.model_copy(update={"trajectory": turns}),
                count(replay.version.version, held, replay.rule_id),
                seed,
                replay.incident.incident_id,
                model,
                how if turns == short else None,
            )
        )
    return tuple(made)


def investigate(
    incident: Incident,
    *,
    version: Version,
    baseline: Version,
    fixed: Version | None,
    suite: Suite,
    log: Path,
    replays: int = 40,
    audit: int = 600,
    trials: int = 10,
    seed: int = 7,
    model: str = "",
    max_tests: int = 0,
    on_result: Callable[[Trajectory], None] | None = None,
    taken: Intake | None = None,
) -> Investigation:
    """Investigate an incident from its file to a suite that would have stopped it.

    Parameters
    ----------
    incident : Incident
        What was reported.
    version : Version
        The version that it happened on.
    baseline : Version
        The last version that was good.
    fixed : Version or None
        The version that is meant to fix it, judged by the gate with the grown suite.
    suite : Suite
        The suite so far; the new tests are added once.
    log : Path
        Parquet log of production.
    replays : int
        Seeds of each replay.
    audit : int
        Conversations of the log that are audited.
    trials, max_tests
        As in :func:`safety_lib.gate.release_gate.run_gate`.
    seed : int
        The run's seed.
    model : str, optional
        The model to use in place of those that the versions name.
    taken : Intake, optional
        How the incident came in; with it, the report tells its story too.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    replay = replay_incident(incident, version, replays=replays, seed=seed, model=model)
    found = intervene(replay, list(experiments(replay, baseline)), model) if replay.rule_id else ()
    seen = close_loop(
        replay,
        baseline,
        fixed,
        cause=name_root_cause(replay, baseline, found, model),
        interventions=found,
        radius=blast_radius_of(replay, log, audit=audit, seed=seed),
        affected=affected_by(replay, log, audit=audit, seed=seed),
        tests=new_tests(replay, seed=seed, model=model),
        suite=suite,
        trials=trials,
        max_tests=max_tests,
        seed=seed,
        model=model,
        on_result=on_result,
    )
    if taken is None:
        return seen
    story = tell(taken, replay, seen.report, model=model)
    return replace(seen, report=seen.report.model_copy(update={"story": story}))


def close_loop(
    replay: Replay,
    baseline: Version,
    fixed: Version | None,
    *,
    cause: RootCause,
    interventions: tuple[Intervention, ...],
    radius: BlastRadius | None,
    affected: Affected | None = None,
    tests: tuple[RegressionTest, ...],
    suite: Suite,
    trials: int = 10,
    max_tests: int = 0,
    seed: int = 7,
    model: str = "",
    on_result: Callable[[Trajectory], None] | None = None,
) -> Investigation:
    """Put the incident's tests into the suite, once, and let the gate judge again.

    The tests that an earlier replay of the same incident left are replaced, so replaying twice
    leaves the suite as replaying once. Parameters are as in :func:`investigate`.
    """
    incident_id = replay.incident.incident_id
    others = tuple(test for test in suite.tests if test.source.incident_id != incident_id)
    before = sealed(suite.model_copy(update={"tests": others}))
    grown = sealed(suite.model_copy(update={"tests": merge(others, tests)}))
    planned = [(before, replay.version), (grown, replay.version)]
    if fixed is not None:
        planned.append((grown, fixed))
    known: Known = {}  # the three gates share most of their conversations
    gates = tuple(
        run_gate(
            judged,
            baseline,
            version,
            trials=trials,
            seed=seed,
            model=model,
            max_tests=max_tests,
            on_result=on_result,
            known=known,
        )
        for judged, version in planned
    )
    report = _report(
        replay, baseline, fixed, cause, interventions, radius, tests, gates, grown, seed
    )
    if affected is not None:
        whom = {"affected_users": affected.users, "touched": dict(affected.touched)}
        report = report.model_copy(update=whom)
    return Investigation(report=report, suite=grown, gates=gates)


def blast_radius_of(replay: Replay, log: Path, *, audit: int, seed: int) -> BlastRadius | None:
    """Estimate how many conversations in the log broke the incident's rule; None if none did."""
    if not replay.rule_id:
        return None
    return estimate_blast_radius(
        log,
        rule_id=replay.rule_id,
        version=replay.version.version,
        audit=audit,
        seed=seed,
        claimed=replay.incident.affected_users,
    )


def opinions_of(replay: Replay, log: Path, *, audit: int, seed: int) -> tuple[Opinion, ...]:
    """Estimate the blast radius in three other ways that read as much; none if no rule broke."""
    if not replay.rule_id:
        return ()
    return second_opinions(
        log, rule_id=replay.rule_id, version=replay.version.version, audit=audit, seed=seed
    )


def affected_by(replay: Replay, log: Path, *, audit: int, seed: int) -> Affected | None:
    """Estimate how many users an incident's rule touched, and what; None if no rule broke."""
    if not replay.rule_id:
        return None
    return estimate_affected(
        log,
        rule_id=replay.rule_id,
        version=replay.version.version,
        audit=audit,
        seed=seed,
        claimed=replay.incident.affected_users,
    )


def _report(
    replay: Replay,
    baseline: Version,
    fixed: Version | None,
    cause: RootCause,
    interventions: tuple[Intervention, ...],
    radius: BlastRadius | None,
    tests: tuple[RegressionTest, ...],
    gates: tuple[GateReport, ...],
    grown: Suite,
    seed: int,
) -> IncidentReport:
    incident, version = replay.incident, replay.version
    verdicts = [gate.verdict for gate in gates] + [None] * 3
    versions = [baseline, version] + ([fixed] if fixed else [])
    return IncidentReport(
        artifact=IncidentReport.SCHEMA,
        schema_version=IncidentReport.VERSION,
        seed=seed,
        model=replay.shown.model,
        config_sha256=config_hashes(versions),
        policy_sha256=load_policy().sha256,
        incident_id=incident.incident_id,
        version=version.version,
        baseline=baseline.version,
        claims={
            "category": incident.category,
            "severity": incident.severity,
            "root_cause_preliminary": incident.root_cause_preliminary,
            "affected_users": _claimed(incident.affected_users),
        },
        rule_id=replay.rule_id,
        reproduction=replay.reproduction,
        timeline=timeline(replay.shown),
        root_cause=cause.name,
        root_cause_evidence=cause.evidence,
        interventions=interventions,
        decisive_turn=decisive_turn(interventions),
        bisection=cause.found,
        blast_radius=radius,
        new_tests=tuple(test.test_id for test in tests),
        gate_before=verdicts[0],
        gate_after=verdicts[1],
        gate_of_fix=verdicts[2] if fixed else None,
        fixed_version=fixed.version if fixed else "",
        suite_sha256=grown.content_sha256,
    )


def _claimed(number: int | None) -> str:
    return "not told" if number is None else str(number)


def _shortened(
    replay: Replay, turns: tuple[str, ...], model: str
) -> tuple[tuple[str, ...], Minimisation]:
    seeds = [t.seed for t in replay.trajectories]
    needed = max(1.0, KEPT_SHARE * sum(_breaks(t, replay.rule_id) for t in replay.trajectories))
    replays = 0

    def still_breaks(shorter: tuple[str, ...]) -> bool:
        nonlocal replays
        jobs = [job(replay.incident, replay.version, shorter, seed) for seed in seeds]
        broke = done = 0
        for done, trajectory in enumerate(run_campaign(jobs, model=model), start=1):
            broke += _breaks(trajectory, replay.rule_id)
            if broke >= needed or broke + len(jobs) - done < needed:
                break  # the rest cannot change the answer
        replays += done
        return broke >= needed

    found = minimise(turns, still_breaks, budget=MOST_REDUCTIONS)
    return found.turns, Minimisation(
        turns_before=len(turns),
        turns_after=len(found.turns),
        characters_before=sum(map(len, turns)),
        characters_after=sum(map(len, found.turns)),
        needed=math.ceil(needed),
        probes=len(seeds),
        replays=replays,
        one_minimal=found.one_minimal,
    )


def _replayed(replay: Replay, turns: tuple[str, ...], model: str) -> tuple[Trajectory, ...]:
    jobs = [job(replay.incident, replay.version, turns, t.seed) for t in replay.trajectories]
    return tuple(run_campaign(jobs, model=model))


def _breaks(trajectory: Trajectory, rule_id: str) -> bool:
    return any(v.rule_id == rule_id for v in trajectory.violations)
