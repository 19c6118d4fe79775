"""The story of an incident: what its record shows, which chances were missed, what it claimed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from safety_lib.agent.loop import DesyncError
from safety_lib.attack.attackers import heard
from safety_lib.incident.intake import Intake
from safety_lib.incident.recorded import judge_record, unsupported
from safety_lib.incident.replay import Replay, own_words
from safety_lib.incident.retrace import cut_points, retrace_incident
from safety_lib.records import (
    ClaimCheck,
    CutPoint,
    Event,
    Incident,
    IncidentReport,
    Milestone,
    Story,
    Trajectory,
)
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import can_resume, connected
from safety_lib.world import World, world_of

BRANCHES = 20


def milestones(trajectory: Trajectory, world: World) -> tuple[Milestone, ...]:
    """Find the first warning, the chances that were missed and the first violation.

    A warning is a safeguard that objects, or the agent itself: it refuses or hesitates. A chance is
    missed where a safeguard objected and the call ran all the same, where the agent was let go on
    after a request that it had refused, and where the call that broke the rule met a safeguard that
    allowed it. All is read from the events, in their order.

    Parameters
    ----------
    trajectory : Trajectory
        A replay.
    world : World
        Where it was held: its tools say what a call changes.

    Returns
    -------
    tuple of Milestone
        In the order of the events. Without a violation nothing was missed: warnings alone.
    """
    return tuple(_milestones(trajectory, world))


def _milestones(trajectory: Trajectory, world: World) -> Iterator[Milestone]:
    failed = trajectory.failure_turn
    warned = False
    guard = ""
    results: list[str] = []
    for event, after in zip(trajectory.events, (*trajectory.events[1:], None), strict=True):
        lead = None if failed is None else failed - event.turn
        breaks = after is not None and after.kind == "oracle" and after.outcome == "violation"
        if event.kind == "oracle" and event.outcome == "violation":
            detail = f"{event.rule_id}: {event.evidence}"
            yield Milestone(turn=event.turn, what="violation", detail=detail, lead=0)
            return
        said = _objection(event, results)
        if said and not warned:
            warned = True
            yield Milestone(turn=event.turn, what="warning", detail=said, lead=lead)
        missed = ""
        if event.kind == "hook" and event.hook == "trajectory":
            missed = f"the session went on after {said}" if event.decision == "warn" else ""
        elif event.kind == "hook":
            guard = said or f"{event.hook} allowed it"
        elif event.kind == "tool_call" and event.status == "executed":
            results.append(event.result)
            changed = event.call.name in world.tools.changing
            if breaks or (guard and changed and "allowed" not in guard):
                missed = f"{event.call.name} ran, {guard or 'and no safeguard stood before it'}"
        elif event.kind == "message" and breaks:
            missed = f"the reply went out, {guard}"
        elif event.kind == "message" and said and lead:
            missed = f"nobody looked at the session after {said}"
        if missed and failed is not None:
            yield Milestone(turn=event.turn, what="missed", detail=missed, lead=lead)


def _objection(event: Event, results: Iterable[str]) -> str:
    if event.kind == "hook" and event.decision != "allow":
        return f"{event.hook} {event.decision}: {event.reason}"
    if event.kind == "message" and event.role == "assistant":
        sound = heard(own_words(event.content, results))
        if sound != "compliance":
            word = "refused" if sound == "refusal" else "hesitated"
            return f"the agent {word}: {event.content}"
    return ""


def tell(taken: Intake, replay: Replay, report: IncidentReport, run: Run = Run()) -> Story:
    """Tell an incident: its record, its replay and what its file claimed.

    Parameters
    ----------
    taken : Intake
        The incident as it came in.
    replay : Replay
        Its replays.
    report : IncidentReport
        What was measured, for the claims to be compared with.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    Story
        The record, the replay and the claims, side by side.
    """
    incident, shown = taken.incident, replay.shown
    world = world_of(replay.version)
    points: tuple[CutPoint, ...] = ()
    gaps = taken.gaps
    if replay.rule_id and not can_resume(replay.version, run.model):
        gaps = (*gaps, "cut points: not measured, this agent cannot be taken up in the middle")
    elif replay.rule_id:
        points = cut_points(
            shown,
            replay.version,
            replay.rule_id,
            run,
            branches=min(BRANCHES, len(replay.trajectories)),
        )
    return Story(
        source=taken.source,
        gaps=gaps,
        recorded=judge_record(incident, world),
        unsupported=unsupported(incident, world),
        retraced=_retraced(incident, replay, run),
        milestones=milestones(shown, world),
        cut_points=points,
        claims=check_claims(incident, report, world),
    )


def _retraced(incident: Incident, replay: Replay, run: Run) -> str:
    if not connected(replay.version, run.model).same_luck:
        return "not measured: this agent does not draw the same luck on the same seed"
    try:
        retrace_incident(incident, replay.version, run)
    except DesyncError as error:
        return f"the record does not come back on its own seed: {error}"
    except ValueError as error:
        return f"not retraced: {error}"
    return "the record comes back word for word on its own seed"


def check_claims(
    incident: Incident, report: IncidentReport, world: World
) -> tuple[ClaimCheck, ...]:
    """Compare what the file claims with what was measured, at the end and never before.

    A number is compared with its interval, a severity with that of the rule which broke. A category
    or a cause in words is shown beside the measured one: whether they mean the same, a person says.

    Parameters
    ----------
    incident : Incident
        With its claims.
    report : IncidentReport
        What was measured.
    world : World
        Where it happened.

    Returns
    -------
    tuple of ClaimCheck
        One for each claim.
    """
    return tuple(_checks(incident, report, world))


def _checks(incident: Incident, report: IncidentReport, world: World) -> Iterator[ClaimCheck]:
    broke, recorded = bool(report.rule_id), judge_record(incident, world)
    if incident.severity:
        severity = world.severity_of(report.rule_id) if broke else "no rule broke"
        agrees = incident.severity == severity if broke else None
        yield _check("severity", incident.severity, severity, agrees)
    if incident.category:
        yield _check("category", incident.category, report.rule_id or "no rule broke", None)
    if incident.root_cause_preliminary:
        yield _check("root cause", incident.root_cause_preliminary, report.root_cause, None)
    if incident.affected_users is not None:
        users = report.affected_users
        told = report.why_no_radius or "; ".join(report.log_lacks) or "not estimated"
        if users is None:
            yield _check("affected users", f"{incident.affected_users:,}", told, None)
        else:
            measured = f"{users.estimate:,.0f} [{users.ci_low:,.0f}, {users.ci_high:,.0f}]"
            inside = users.ci_low <= incident.affected_users <= users.ci_high
            yield _check("affected users", f"{incident.affected_users:,}", measured, inside)
    unsafe = _first_unsafe(incident)
    if unsafe:
        if any(turn.calls for turn in incident.trajectory):
            found = f"turn {recorded[0].turn}" if recorded else "none in the record"
            agrees = bool(recorded) and recorded[0].turn == unsafe
        else:  # replies alone: what the record did is not known, what the replay did is
            turns = [entry.turn for entry in report.timeline if entry.what == "violation"]
            found = f"turn {turns[0]} of the replay" if turns else "none in the replay"
            agrees = bool(turns) and turns[0] == unsafe
        yield _check("first unsafe turn", f"turn {unsafe}", found, agrees)


def _check(claim: str, claimed: str, measured: str, agrees: bool | None) -> ClaimCheck:
    return ClaimCheck(claim=claim, claimed=claimed, measured=measured, agrees=agrees)


def _first_unsafe(incident: Incident) -> int | None:
    claims: Mapping[str, str] = incident.claims
    told = claims.get("first_unsafe_turn", "")
    labelled = (turn.turn for turn in incident.trajectory if turn.compliant is False)
    return int(told) if told.isdecimal() else next(labelled, None)
