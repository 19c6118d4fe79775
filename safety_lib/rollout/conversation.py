"""One conversation: attacker x agent x oracle -> Trajectory."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

from pydantic import ValidationError

from safety_lib.agent.backends import BackendError
from safety_lib.agent.backends.answers import in_conversation, kept
from safety_lib.agent.backends.calls import CallsSpent
from safety_lib.agent.loop import Workplace
from safety_lib.attack.attackers import Attacker, make_attacker
from safety_lib.records import (
    Ended,
    ErrorEvent,
    Event,
    MessageEvent,
    Plant,
    Trajectory,
    first_fault,
    unchecked,
)
from safety_lib.rollout.permission import refuse_live
from safety_lib.streams import key
from safety_lib.text import error_line, one_line
from safety_lib.world import World, world_of
from safety_lib.world.oracle import CheckError, Oracle, outcome_of
from safety_lib.world.scenarios import Scenario
from safety_lib.world.target import Heard, Resumable, Talk, Target, TargetError, events_of
from safety_lib.world.versions import Version


class Rollout(NamedTuple):
    """One conversation that is to be held: everything that decides it, and nothing that does not.

    An attack names its scenario and its attacker; a replay has the attacker ``replay`` and brings
    the user's ``turns`` along. It is plain data, cheap to send to another process.
    """

    rollout_id: str
    version: Version
    scenario_id: str
    goal: str
    attack_type: str
    attacker: str
    seed: int
    max_turns: int
    plants: tuple[Plant, ...] = ()
    turns: tuple[str, ...] = ()
    stop_at_violation: bool = True


class Script:
    """An attacker that says given turns in order: replays, controls and benign twins."""

    def __init__(self, turns: Sequence[str]) -> None:
        self._turns = turns

    def next_message(self, replies: Sequence[str]) -> str | None:
        """Return the next turn of the script."""
        return self._turns[len(replies)] if len(replies) < len(self._turns) else None


def plan_attack(
    version: Version, scenario: Scenario, attacker: str, seed: int, max_turns: int, number: int = 0
) -> Rollout:
    """Plan one attack on one version.

    Parameters
    ----------
    version : Version
        The target.
    scenario : Scenario
        Goal and family.
    attacker : str
        ``direct``, ``static`` or ``adaptive``.
    seed : int
        The run's seed; the rollout's own seed follows from it, the scenario and ``number`` and is
        the same for every version, so that versions meet the same luck.
    max_turns : int
        Turns after which an unbroken conversation is censored, at least 1.
    number : int
        Tells repeated rollouts of one scenario apart.

    Returns
    -------
    Rollout
        The plan.
    """
    return Rollout(
        rollout_id=f"{version.version}/{scenario.scenario_id}/{attacker}/{number}",
        version=version,
        scenario_id=scenario.scenario_id,
        goal=scenario.goal_id,
        attack_type=scenario.family_id,
        attacker=attacker,
        seed=trial_seed(seed, scenario.scenario_id, number),
        max_turns=max_turns,
        plants=scenario.plants,
    )


def plan_replay(
    version: Version,
    turns: Sequence[str],
    *,
    name: str,
    seed: int,
    plants: Iterable[Plant] = (),
    goal: str = "",
    attack_type: str = "",
    stop_at_violation: bool = True,
) -> Rollout:
    """Plan a conversation in which the user says given turns, whatever the agent replies.

    Parameters
    ----------
    version : Version
        The target.
    turns : sequence of str
        What the user says, in order.
    name : str
        Tells what is replayed; part of the rollout's id.
    seed : int
        Of the conversation.
    plants : iterable of Plant
        Text that stands in the company before it begins.
    goal, attack_type : str, optional
        Where it comes from.
    stop_at_violation : bool
        Whether it ends at the first broken rule.

    Returns
    -------
    Rollout
        The plan.
    """
    return Rollout(
        rollout_id=f"{version.version}/{name}/{seed}",
        version=version,
        scenario_id=name,
        goal=goal,
        attack_type=attack_type,
        attacker="replay",
        seed=seed,
        max_turns=len(turns),
        plants=tuple(plants),
        turns=tuple(turns),
        stop_at_violation=stop_at_violation,
    )


def trial_seed(seed: int, *names: str | int) -> int:
    """Return the seed of one trial: 31 bits, as chat endpoints take them.

    Examples
    --------
    >>> trial_seed(7, "replay", 0) != trial_seed(7, "replay", 1)
    True
    """
    return key(seed, "trial", *names) & 0x7FFFFFFF


def run_rollout(rollout: Rollout, model: str = "") -> Trajectory:
    """Hold one conversation and record it.

    A target that fails makes the trajectory an ``error``; nothing is raised for it.

    Parameters
    ----------
    rollout : Rollout
        What to hold.
    model : str, optional
        The model to use in place of the one that the version names.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> said = ["Please read ticket T-203."]
    >>> run_rollout(plan_replay(load_version("northwind/v1"), said, name="demo", seed=1)).outcome
    'safe'
    """
    target = connected(rollout.version, model)
    if getattr(target, "keeps_answers", False) or not _says_it_once(target):
        return _run(rollout, target)
    # It asks its model by itself, out of sight: the conversation is what can be kept.
    said = [p.model_dump(mode="json") for p in rollout.plants]
    rest = list(rollout._replace(version=None, plants=()))  # type: ignore[arg-type]
    with _in(rollout):
        line = kept(
            [model, said, rest],
            lambda: _run(rollout, target).model_dump_json(),
            lambda line: Trajectory.model_validate_json(line).outcome != "error",
        )
    return Trajectory.model_validate_json(line)


def _run(rollout: Rollout, target: Target) -> Trajectory:
    attacker: Attacker
    if rollout.attacker == "replay":
        attacker = Script(rollout.turns)
    else:
        world = world_of(rollout.version)
        workplace: Workplace | None = world.hook("WORKPLACE")
        own = workplace.models if workplace else None
        chosen = world.scenario(rollout.scenario_id)
        attacker = make_attacker(rollout.attacker, chosen, rollout.seed, own)
    return hold(target, attacker, rollout)


def _in(rollout: Rollout) -> AbstractContextManager[None]:
    world = world_of(rollout.version).sha256
    version = rollout.version.sha256
    return in_conversation(world, version, rollout.rollout_id, rollout.seed)


def hold(
    target: Target, attacker: Attacker, rollout: Rollout, talk: Talk | None = None
) -> Trajectory:
    """Hold a conversation with any attacker and any target that are already made.

    Parameters
    ----------
    target : Target
        Who is talked to.
    attacker : Attacker
        Who talks.
    rollout : Rollout
        Names, seed, plants and the most turns; the world of its version is what the oracle judges
        by.
    talk : Talk, optional
        A conversation with the target that was begun already; its ``events`` have happened.

    Returns
    -------
    Trajectory
        What was said, called and broken.
    """
    with _in(rollout):
        return _hold(target, attacker, rollout, talk)


def _hold(target: Target, attacker: Attacker, rollout: Rollout, talk: Talk | None) -> Trajectory:
    record = _Record(world_of(rollout.version), rollout.plants)
    replies: list[str] = []
    ended: Ended = "completed"
    try:
        begun = talk or target.begin(rollout.seed, rollout.plants)
        first = record.take_over(getattr(talk, "events", ()))
    except (Exception, SystemExit) as error:
        record.trouble(1, error)
        ended = "error"
    while ended == "completed" and len(replies) < rollout.max_turns:
        turn = first + len(replies) + 1
        try:
            message = attacker.next_message(replies)
        except BackendError as error:
            record.trouble(turn, error)
            ended = "error"
            break
        if message is None:
            ended = "completed" if rollout.attacker == "replay" else "gave_up"
            break
        heard = record.turn(turn, message, begun)
        replies.append(heard.text if heard else "")
        if heard is None:
            ended = "error"
        elif record.oracle.violations and rollout.stop_at_violation:
            ended = "violation"
        elif heard.ended:
            ended = _ENDED.get(heard.ended, "error")
            break
    oracle = record.oracle
    # Who shows no calls may have broken any rule: that none was seen says nothing.
    finished = target.sees_calls and ended in ("completed", "gave_up", "stopped")
    return _trajectory(
        trajectory_id=rollout.rollout_id,
        scenario_id=rollout.scenario_id,
        goal=rollout.goal,
        attack_type=rollout.attack_type,
        attacker=rollout.attacker,
        version=rollout.version.version,
        config_sha256=rollout.version.sha256,
        model=target.name,
        seed=rollout.seed,
        plants=rollout.plants,
        outcome=outcome_of(oracle, error=ended == "error", finished=finished),
        ended=ended,
        n_turns=len(replies),
        model_calls=record.model_calls,
        violations=tuple(oracle.violations),
        attempted=tuple(oracle.attempted),
        events=tuple(record.events),
    )


class _Record:
    """What happened in a conversation so far, and what the oracle makes of it."""

    def __init__(self, world: World, plants: Sequence[Plant]) -> None:
        self.world = world
        self.oracle = Oracle(world.rules, plants)
        self.events: list[Event] = []
        self.model_calls = 0

    def observe(self, event: Event) -> None:
        self.events.append(event)
        self.events.extend(self.oracle.observe(event))

    def trouble(self, turn: int, error: Exception | SystemExit) -> None:
        self.observe(_trouble(turn, error))

    def take_over(self, happened: Sequence[Event]) -> int:
        """Let what stands in a resumed conversation have happened; return its last turn."""
        for event in happened:
            self.observe(event)
        return happened[-1].turn if happened else 0

    def turn(self, turn: int, message: str, talk: Talk) -> Heard | None:
        """Say something and take in what comes of it; None where that is an error."""
        try:
            heard = talk.send(message)
            happened = events_of(turn, message, heard)
            fault: Exception | None = _unknown_tool(happened, self.world.tools)
            self.model_calls += heard.model_calls
        except (Exception, SystemExit) as error:
            self.observe(MessageEvent(turn=turn, role="user", content=message))
            self.trouble(turn, error)
            return None
        for event in happened:
            try:
                self.observe(event)
            except CheckError as error:  # a check that cannot read a call has not passed it
                cause = error.__cause__
                if not isinstance(cause, TargetError):
                    cause = TargetError("check_failed", str(error))
                fault = fault or cause
        if fault is not None:
            self.trouble(turn, fault)
            return None
        return heard


def _trouble(turn: int, error: Exception | SystemExit) -> ErrorEvent:
    """Return what failed as an event; that no more calls may be made is for the run to hear."""
    if isinstance(error, CallsSpent):
        raise error
    if isinstance(error, TargetError):
        kind, detail = error.kind, error.detail
    elif isinstance(error, ValidationError):
        field, reason = first_fault(error)
        kind, detail = "bad_response", f"{field or 'what came back'}: {reason}"
    else:
        kind, detail = "agent_error", error_line(error)
    return ErrorEvent(turn=turn, error=kind, detail=one_line(detail))


def _unknown_tool(events: Sequence[Event], known: Container[str]) -> TargetError | None:
    for event in events:
        ran = event.kind == "tool_call" and event.status == "executed"
        if event.kind == "tool_call" and ran and event.call.name not in known:
            what = f"a call of {event.call.name}, which tools.yaml of the world does not have"
            return TargetError("unknown_tool", what)
    return None


def concurrency_of(version: Version, model: str = "") -> int:
    """Return how many conversations a target serves at once; 0 if it computes here."""
    return connected(version, model).concurrency


def is_asked_once(version: Version, model: str = "") -> bool:
    """Say whether an answer of a target is worth keeping: it is paid for, or would be another one.

    Where the same seed gives the same answer in this process, to ask again costs next to nothing.
    """
    return _says_it_once(connected(version, model))


def _says_it_once(target: Target) -> bool:
    return bool(target.concurrency) or not target.same_luck


def name_of_model(version: Version, model: str = "") -> str:
    """Return what trajectories call what stands behind a version."""
    return connected(version, model).name


def connected(version: Version, model: str = "") -> Target:
    """Return the target of a version, opened once in each process.

    Raises
    ------
    WorldError
        If its world cannot open it.
    LiveTargetError
        If what it does may last and nobody allowed that.
    """
    known = (version.world, version.sha256, model)
    if known not in _targets:
        world = world_of(version)
        _targets[known] = world.connect(version, model)
    target = _targets[known]
    refuse_live(target, world_of(version))  # what was allowed once is not allowed for ever
    return target


def can_resume(version: Version, model: str = "") -> bool:
    """Say whether a version can be taken up in the middle of a conversation."""
    return connected(version, model).resumes


def resumable(version: Version, model: str = "") -> Resumable:
    """Return the target of a version that can be taken up in the middle.

    Raises
    ------
    ValueError
        If it cannot: what rests on it is then not measured.
    """
    target = connected(version, model)
    if not target.resumes:
        raise ValueError(f"{version.version} cannot be taken up in the middle of a conversation")
    return cast(Resumable, target)


_trajectory = unchecked(Trajectory)

_ENDED: dict[str, Ended] = {
    "completed": "completed",
    "stopped": "stopped",
    "step_limit": "step_limit",
    "error": "error",
}

_targets: dict[tuple[str, str, str], Target] = {}
