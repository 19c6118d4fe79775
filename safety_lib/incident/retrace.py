"""Retracing: hold a conversation again, event by event, and go on from any turn of it.

A replay that silently drifts away from what it claims to replay shows something else. Here every
event is compared with the recorded one, and the first that differs is an error which names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

from safety_lib.agent.loop import Agent, Conversation
from safety_lib.agent.sandbox import ToolError
from safety_lib.agent.versions import Version
from safety_lib.incident.recorded import events_of
from safety_lib.incident.replay import plan_incident, turns_of
from safety_lib.records import CutPoint, Event, Incident, Message, Plant, Trajectory
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import Rollout, Script, hold, run_rollout, trial_seed
from safety_lib.rollout.judging import count_broken
from safety_lib.text import one_line

_Told = tuple[Any, ...]  # the turn, and what a file can tell of one event


class DesyncError(ValueError):
    """A replay left its record: at which event, and what stood there.

    Attributes
    ----------
    event : int
        Number of the event in the record, from 1.
    turn : int
        Its turn.
    """

    def __init__(self, event: int, turn: int, recorded: str, replayed: str) -> None:
        self.event, self.turn = event, turn
        super().__init__(
            f"event {event}, turn {turn}: the record has {one_line(recorded)}, "
            f"the replay {one_line(replayed)}"
        )


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
    recorded = events_of(incident)
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
    agent = _Resumed(Agent.load(version, run.model), kept)
    held = hold(agent, Script(rest), planned)
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


class _Resumed(Agent):
    """An agent whose conversations begin in the middle."""

    def __init__(self, agent: Agent, kept: Sequence[Event]) -> None:
        super().__init__(agent.version, agent.backend, agent.policy)
        self._kept = kept

    def session(
        self,
        seed: int,
        plants: Iterable[Plant] = (),
        observe: Callable[[Event], None] | None = None,
    ) -> Conversation:
        session = super().session(seed, plants, observe)
        for number, event in enumerate(self._kept, start=1):
            _put_back(session, number, event)
        return session


def _put_back(session: Conversation, number: int, event: Event) -> None:
    if event.kind == "oracle":  # the oracle that listens decides again
        return
    if event.kind == "message":
        if event.role == "user":
            session.turn = event.turn
            session.safeguards.new_turn()
        session.history.append(Message(role=event.role, content=event.content))
    elif event.kind == "tool_call":
        call, ran = event.call, event.status in ("executed", "failed")
        if event.status == "executed":
            try:
                result = session.sandbox.run(call)
            except ToolError as error:
                result = str(error)
            if result != event.result:
                raise DesyncError(number, event.turn, repr(event.result), repr(result))
        session.safeguards.after_call(call, ran, event.result)
        session.history.append(Message(role="assistant", content="", tool_calls=(call,)))
        session.history.append(Message(role="tool", content=event.result, tool_call_id=call.id))
    session.events.append(event)
    if session._observe is not None:
        session._observe(event)


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
