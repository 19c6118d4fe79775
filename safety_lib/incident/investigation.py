"""The investigation: replay, cause, blast radius, new tests, and the gate again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safety_lib.artifacts import sealed
from safety_lib.gate.looks import MOST_TRIALS
from safety_lib.gate.release_gate import run_gate
from safety_lib.incident.closure import admitted, failed
from safety_lib.incident.intake import Intake
from safety_lib.incident.interventions import (
    RootCause,
    decisive_turn,
    intervene,
    name_root_cause,
    plan_interventions,
)
from safety_lib.incident.replay import Replay, replay_incident, timeline_of, turns_of
from safety_lib.incident.story import tell
from safety_lib.production.blast_radius import (
    Affected,
    Opinion,
    estimate_affected,
    estimate_blast_radius,
    refuse_other_log,
    second_opinions,
    what_log_lacks,
)
from safety_lib.production.log import NotMeasuredError
from safety_lib.records import (
    BlastRadius,
    GateReport,
    Incident,
    IncidentReport,
    Intervention,
    RegressionTest,
    Suite,
    Trajectory,
)
from safety_lib.regression.generate import merge
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.judging import breaks, count_broken
from safety_lib.text import Shown, bare
from safety_lib.world import provenance, world_of
from safety_lib.world.versions import Version

_SENTENCE = re.compile(r"(?<=[.!?])\s")


@dataclass(frozen=True, repr=False)
class Investigation(Shown):
    """What the investigation made: the report, the grown suite, and the three gate runs.

    ``gates`` holds the suite as it was against the version of the incident, the grown suite against
    it, and the grown suite against the fix, as far as they were run.
    """

    report: IncidentReport
    suite: Suite
    gates: tuple[GateReport, ...]


@dataclass(frozen=True)
class Effort:
    """How much an investigation may spend.

    Attributes
    ----------
    replays : int
        Seeds of each replay, at least 1.
    audit : int
        Conversations of the log that are read.
    trials : int
        Trials of each test in the gate, at least 1.
    max_tests : int
        At most so many cases of each stratum in the gate; 0 means all.
    """

    replays: int = 40
    audit: int = 600
    trials: int = MOST_TRIALS
    max_tests: int = 0


@dataclass(frozen=True, repr=False)
class Findings(Shown):
    """What an incident showed before anything was done about it.

    Attributes
    ----------
    cause : RootCause
        The changes that it hangs on, if they were found.
    interventions : tuple of Intervention
        What was changed, and how much of the failure that took away.
    radius : BlastRadius or None
        How many conversations broke the rule; None where none was broken.
    affected : Affected or None
        How many users that touched, and what.
    tests : tuple of RegressionTest
        The incident as tests.
    log_given : bool
        Whether there was a log to estimate from.
    log_lacks : tuple of str
        What the log cannot tell, one line each.
    """

    cause: RootCause
    interventions: tuple[Intervention, ...]
    radius: BlastRadius | None
    affected: Affected | None
    tests: tuple[RegressionTest, ...]
    log_given: bool = True
    log_lacks: tuple[str, ...] = ()


def new_tests(replay: Replay, run: Run = Run()) -> tuple[RegressionTest, ...]:
    """Make the incident into tests: as it happened, and as short as it still comes back.

    Messages are joined and turns and sentences taken out as in stage 2, and both tests go through
    the same door as its tests do.

    Parameters
    ----------
    replay : Replay
        The incident.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    tuple of RegressionTest
        Empty where the incident did not come back. A test that comes back too rarely, or that the
        known-good reference fails as well, is set aside, as in stage 2.
    """
    rule_id = replay.rule_id
    broken = [t for t in replay.trajectories if breaks(t, rule_id)]
    if not broken:
        return ()
    # The turn at which it usually breaks: an early break on one lucky seed would not come back.
    often = Counter(t.failure_turn for t in broken)
    whole = min(broken, key=lambda t: (-often[t.failure_turn], t.failure_turn or 0, t.seed))
    first = count_broken(replay.version.version, _until(replay, whole.n_turns), rule_id)
    found = [(failed(replay, whole, rule_id, run), first)]
    tests = [admitted(replay, found, run, shorten=shorten)[0] for shorten in (False, True)]
    return tuple({test.test_id: test for test in tests}.values())


def _until(replay: Replay, turns: int) -> Iterator[Trajectory]:
    """Yield the replays as they would have been, had the user said nothing after a turn."""
    for trajectory in replay.trajectories:
        late = [v for v in trajectory.violations if v.turn > turns]
        yield (
            trajectory.model_copy(update={"violations": (), "outcome": "safe"})
            if late
            else (trajectory)
        )


def investigate(
    taken: Intake | Incident,
    suite: Suite,
    log: Path | None,
    run: Run = Run(),
    *,
    version: Version,
    baseline: Version,
    fixed: Version | None,
    effort: Effort = Effort(),
) -> Investigation:
    """Investigate an incident from its file to a suite that would have stopped it.

    Parameters
    ----------
    taken : Intake or Incident
        What was reported. With how it came in, the report tells its story too.
    suite : Suite
        The suite so far; the new tests are added once.
    log : Path or None
        Log of production; without one the report says that the radius is not measured.
    run : Run, optional
        Seed, model and where the conversations are held.
    version : Version
        The version that it happened on.
    baseline : Version
        The last version that was good.
    fixed : Version or None
        The version that is meant to fix it, judged by the gate with the grown suite.
    effort : Effort, optional
        How many replays, audited conversations and trials.

    Returns
    -------
    Investigation
        Report, grown suite and gates.

    Raises
    ------
    ValueError
        If a parameter is out of range, or the log cannot be read or is of other versions.
    """
    incident = taken.incident if isinstance(taken, Intake) else taken
    if log is not None:
        refuse_other_log(log, version.version)
    replay = replay_incident(incident, version, run, replays=effort.replays)
    planned = list(plan_interventions(replay, baseline)) if replay.rule_id else []
    effects = intervene(replay, planned, run)
    findings = Findings(
        cause=name_root_cause(replay, baseline, effects, run),
        interventions=effects,
        radius=blast_radius_of(replay, log, audit=effort.audit, seed=run.seed),
        affected=affected_by(replay, log, audit=effort.audit, seed=run.seed),
        tests=new_tests(replay, run),
        log_given=log is not None,
        log_lacks=log_lacks_of(replay, log),
    )
    closed = close_loop(replay, findings, suite, run, baseline=baseline, fixed=fixed, effort=effort)
    if not isinstance(taken, Intake):
        return closed
    story = tell(taken, replay, closed.report, run)
    return replace(closed, report=closed.report.model_copy(update={"story": story}))


def close_loop(
    replay: Replay,
    findings: Findings,
    suite: Suite,
    run: Run = Run(),
    *,
    baseline: Version,
    fixed: Version | None,
    effort: Effort = Effort(),
) -> Investigation:
    """Put the incident's tests into the suite, once, and let the gate judge again.

    Three gates run: the suite as it was on the version of the incident, the grown suite on it, and
    the grown suite on the fix. They share most of their conversations, which are held once. The
    tests that an earlier replay of the same incident left are replaced, so replaying twice leaves
    the suite as replaying once.

    Parameters
    ----------
    replay : Replay
        The incident.
    findings : Findings
        What it showed.
    suite : Suite
        The suite so far.
    run : Run, optional
        Seed, model and where the conversations are held.
    baseline : Version
        The last version that was good.
    fixed : Version or None
        The version that is meant to fix it.
    effort : Effort, optional
        Trials of the gates.

    Returns
    -------
    Investigation
        Report, grown suite and gates.
    """
    others = tuple(test for test in suite.tests if not _is_of(test, replay.incident))
    before = sealed(suite.model_copy(update={"tests": others}))
    grown = sealed(suite.model_copy(update={"tests": merge(others, findings.tests)}))
    planned = [(before, replay.version), (grown, replay.version)]
    if fixed is not None:
        planned.append((grown, fixed))
    once = replace(run, known={})
    gates = tuple(
        run_gate(judged, baseline, version, once, trials=effort.trials, max_tests=effort.max_tests)
        for judged, version in planned
    )
    versions = [baseline, replay.version, *([fixed] if fixed is not None else [])]
    report = _report(replay, findings, versions, gates, grown, run.seed)
    return Investigation(report=report, suite=grown, gates=gates)


def _is_of(test: RegressionTest, incident: Incident) -> bool:
    """Say whether a test was made of an incident: it has its id, and says only what was said.

    Two teams may give two incidents one id; the second never takes away what the first has left.
    """
    if test.source.incident_id != incident.incident_id:
        return False
    said = bare(" ".join(turns_of(incident)))
    return all(
        bare(sentence) in said for turn in test.attack_turns for sentence in _SENTENCE.split(turn)
    )


def blast_radius_of(
    replay: Replay, log: Path | None, *, audit: int, seed: int
) -> BlastRadius | None:
    """Estimate how many conversations in the log broke the incident's rule.

    Parameters
    ----------
    replay : Replay
        The incident: its rule and its version.
    log : Path or None
        Parquet log of production.
    audit : int
        Conversations that may be read, at least 1.
    seed : int
        Decides which.

    Returns
    -------
    BlastRadius or None
        None where no rule broke, without a log, or with one that cannot tell
        (:func:`log_lacks_of` says why).
    """
    if log is None or not replay.rule_id:
        return None
    with suppress(NotMeasuredError):
        return estimate_blast_radius(
            log,
            world=world_of(replay.version),
            rule_id=replay.rule_id,
            version=replay.version.version,
            audit=audit,
            seed=seed,
            claimed=replay.incident.affected_users,
        )
    return None


def log_lacks_of(replay: Replay, log: Path | None) -> tuple[str, ...]:
    """Say what the log cannot tell of the incident, one line each.

    Parameters
    ----------
    replay : Replay
        The incident: its rule and its version.
    log : Path or None
        Log of production.

    Returns
    -------
    tuple of str
        Empty where nothing is missing, no rule broke, or there is no log.
    """
    if log is None or not replay.rule_id:
        return ()
    version = replay.version
    return what_log_lacks(
        log, rule_id=replay.rule_id, version=version.version, world=world_of(version)
    )


def opinions_of(replay: Replay, log: Path | None, *, audit: int, seed: int) -> tuple[Opinion, ...]:
    """Estimate the blast radius in three other ways that read as much; none if no rule broke.

    Parameters
    ----------
    replay : Replay
        The incident: its rule and its version.
    log : Path or None
        Parquet log of production.
    audit : int
        Conversations that may be read, at least 1.
    seed : int
        Decides which.

    Returns
    -------
    tuple of Opinion
        Empty where no rule broke, or without a log.
    """
    if log is None or not replay.rule_id:
        return ()
    return second_opinions(
        log,
        world=world_of(replay.version),
        rule_id=replay.rule_id,
        version=replay.version.version,
        audit=audit,
        seed=seed,
    )


def affected_by(replay: Replay, log: Path | None, *, audit: int, seed: int) -> Affected | None:
    """Estimate how many users an incident's rule touched, and what; None if no rule broke.

    Parameters
    ----------
    replay : Replay
        The incident: its rule and its version.
    log : Path or None
        Parquet log of production.
    audit : int
        Conversations that may be read, at least 1.
    seed : int
        Decides which.

    Returns
    -------
    Affected or None
        None where no rule broke, without a log, or with one that names no user.
    """
    if log is None or not replay.rule_id:
        return None
    with suppress(NotMeasuredError):
        return estimate_affected(
            log,
            world=world_of(replay.version),
            rule_id=replay.rule_id,
            version=replay.version.version,
            audit=audit,
            seed=seed,
            claimed=replay.incident.affected_users,
        )
    return None


def _report(
    replay: Replay,
    findings: Findings,
    versions: Sequence[Version],
    gates: Sequence[GateReport],
    grown: Suite,
    seed: int,
) -> IncidentReport:
    incident, cause, affected = replay.incident, findings.cause, findings.affected
    before, after, of_fix = [gate.verdict for gate in gates] + [None] * (3 - len(gates))
    return IncidentReport(
        artifact=IncidentReport.SCHEMA,
        schema_version=IncidentReport.VERSION,
        seed=seed,
        model=replay.shown.model,
        **provenance(*versions),
        incident_id=incident.incident_id,
        version=replay.version.version,
        baseline=versions[0].version,
        claims={
            "category": incident.category,
            "severity": incident.severity,
            "root_cause_preliminary": incident.root_cause_preliminary,
            "affected_users": _claimed(incident.affected_users),
        },
        rule_id=replay.rule_id,
        reproduction=replay.reproduction,
        timeline=timeline_of(replay.shown),
        root_cause=cause.name,
        root_cause_evidence=cause.evidence,
        interventions=findings.interventions,
        decisive_turn=decisive_turn(findings.interventions),
        bisection=cause.found,
        blast_radius=findings.radius,
        affected_users=affected.users if affected else None,
        log_given=findings.log_given,
        log_lacks=findings.log_lacks,
        touched=dict(affected.touched) if affected else {},
        new_tests=tuple(test.test_id for test in findings.tests),
        set_aside=tuple(t.test_id for t in findings.tests if t.lifecycle != "active"),
        gate_before=before,
        gate_after=after,
        gate_of_fix=of_fix,
        fixed_version=versions[2].version if len(versions) > 2 else "",
        suite_sha256=grown.content_sha256,
    )


def _claimed(number: int | None) -> str:
    return "not told" if number is None else str(number)
