"""Retracing: hold a conversation again, event by event, and go on from any turn of it.

A replay that silently drifts away from what it claims to replay shows something else. Here every
event is compared with the recorded one, and the first that differs is an error which names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from safety_lib.agent.loop import DesyncError
from safety_lib.incident.recorded import recorded_events
from safety_lib.incident.replay import plan_incident, turns_of
from safety_lib.records import CutPoint, Event, Incident, Trajectory
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import (
    Rollout,
    Script,
    hold,
    resumable,
    run_rollout,
    trial_seed,
)
from safety_lib.rollout.judging import count_broken
from safety_lib.world.versions import Version

_Told = tuple[Any, ...]  # the turn, and what a file can tell of one event


def retrace_incident(incident: Incident, version: Version, run: Run = Run()) -> Trajectory:
    """Hold the conversation of an incident again on its own seed and compare what its file tells.

    A file holds replies and, in the richer shapes, tool calls. What it does not tell is not
    compared; where it tells of no call at all, replies alone are.

    Parameters
    ----------
    incident : Incident
        With a seed and, if its file tells them, replies and calls.
    version : Version
        The version of the incident.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    Trajectory
        The conversation, held again.

    Raises
    ------
    ValueError
        If the incident has no seed.
    DesyncError
        At the first event of the file that the replay does not have.
    """
    if incident.seed is None:
        raise ValueError(f"{incident.incident_id}: the file gives no seed to retrace it on")
    planned = plan_incident(incident, version, turns_of(incident), incident.seed)
    again = run_rollout(planned._replace(stop_at_violation=False), run.model)
    recorded = recorded_events(incident)
    kinds = {"message"} | {event.kind for event in recorded}
    last = incident.trajectory[-1].turn
    whole = [e for e in again.events if e.kind in kinds and e.turn <= last]
    _compare([_told(e) for e in recorded], [_told(e) for e in whole])
    return again


def branch(
    trajectory: Trajectory,
    turn: int,
    version: Version,
    run: Run = Run(),
    *,
    turns: Sequence[str] | None = None,
    seed: int | None = None,
) -> Trajectory:
    """Go back to the end of a turn and go on from there, otherwise than in the record.

    What was said, called and returned up to then is put back as it was, not decided again; the
    company is brought into the same state by the same calls. So an older version, another seed or
    other words can take over a conversation that they would not have led there.

    Parameters
    ----------
    trajectory : Trajectory
        The record.
    turn : int
        The last turn that is kept, from 0 (nothing is) to the number of turns.
    version : Version
        Who goes on.
    turns : sequence of str, optional
        What the user says from then on; by default the rest of the record.
    seed : int, optional
        By default that of the record: then the same version goes on as in the record.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    Trajectory
        The whole conversation, what was put back included.

    Raises
    ------
    ValueError
        If there is no such turn.
    DesyncError
        If a call that is put back does not return what it returned.

    Notes
    -----
    A record has one entry for each call. Text that a model sent beside a call, or several calls in
    one message, come back as messages of one call each.
    """
    if not 0 <= turn <= len(trajectory.user_messages):
        raise ValueError(f"turn must be from 0 to {len(trajectory.user_messages)}, not {turn}")
    rest = trajectory.user_messages[turn:] if turns is None else tuple(turns)
    planned = _again(trajectory, version, rest, trajectory.seed if seed is None else seed)
    kept = [event for event in trajectory.events if event.turn <= turn]
    target = resumable(version, run.model)
    talk = target.resume(planned.seed, planned.plants, kept)
    held = hold(target, Script(rest), planned, talk)
    run.tell(held)
    name = f"{held.trajectory_id}/after turn {turn}"
    return held.model_copy(update={"trajectory_id": name, "n_turns": turn + held.n_turns})


def cut_points(
    trajectory: Trajectory,
    version: Version,
    rule_id: str,
    run: Run = Run(),
    *,
    branches: int,
) -> tuple[CutPoint, ...]:
    """Measure from which turn on a failure was as good as decided.

    The conversation is put back up to each turn before the rule broke and goes on with the recorded
    words on fresh seeds. Where the share that breaks rises, that turn did it.

    Parameters
    ----------
    trajectory : Trajectory
        A replay in which the rule broke.
    version : Version
        The version of the incident.
    rule_id : str
        The rule.
    branches : int
        Fresh seeds for each turn, at least 1; the same for every turn.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    tuple of CutPoint
        For turn 0, which keeps nothing, up to the turn before the violation; empty where nothing
        broke.

    Raises
    ------
    ValueError
        If ``branches`` is less than 1.
    """
    if branches < 1:
        raise ValueError(f"branches must be at least 1, not {branches}")
    last = next((v.turn for v in trajectory.violations if v.rule_id == rule_id), 0)
    seeds = [trial_seed(run.seed, "branch", trajectory.scenario_id, n) for n in range(branches)]
    return tuple(
        CutPoint(
            turn=turn,
            broke=count_broken(
                version.version,
                [branch(trajectory, turn, version, run, seed=s) for s in seeds],
                rule_id,
            ),
        )
        for turn in range(last)
    )


def _again(trajectory: Trajectory, version: Version, turns: Sequence[str], seed: int) -> Rollout:
    return Rollout(
        rollout_id=f"{version.version}/{trajectory.scenario_id}/{seed}",
        version=version,
        scenario_id=trajectory.scenario_id,
        goal=trajectory.goal,
        attack_type=trajectory.attack_type,
        attacker="replay",
        seed=seed,
        max_turns=max(1, len(turns)),
        plants=trajectory.plants,
        turns=tuple(turns),
        stop_at_violation=trajectory.ended == "violation",
    )


def _compare(recorded: Sequence[_Told], replayed: Sequence[_Told]) -> None:
    pairs = enumerate(zip_longest(recorded, replayed), start=1)
    for number, (one, other) in pairs:
        if one != other:
            turn = (one or other or (0,))[0]
            raise DesyncError(number, turn, _shown(one), _shown(other))


def _shown(told: _Told | None) -> str:
    return "nothing more" if told is None else " ".join(map(str, told[1:]))


def _told(event: Event) -> _Told:
    """Return what a file can tell of an event: no ids, no checks."""
    if event.kind == "message":
        return event.turn, event.role, event.content
    if event.kind == "tool_call":
        call = event.call
        return event.turn, call.name, tuple(sorted(map(repr, call.arguments.items()))), event.result
    return event.turn, event.kind
