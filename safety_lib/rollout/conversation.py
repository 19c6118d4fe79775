"""One conversation: attacker x agent x oracle -> Trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from safety_lib.agent.backends import BackendError
from safety_lib.agent.loop import Agent
from safety_lib.agent.versions import Version
from safety_lib.attack.attackers import Attacker, make_attacker
from safety_lib.attack.scenarios import Scenario
from safety_lib.attack.scenarios import scenario as find_scenario
from safety_lib.policy.oracle import Oracle, outcome_of
from safety_lib.records import (
    Ended,
    ErrorEvent,
    Event,
    Plant,
    Trajectory,
    unchecked,
)
from safety_lib.streams import key


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

    A backend that fails makes the trajectory an ``error``; nothing is raised for it.

    Parameters
    ----------
    rollout : Rollout
        What to hold.
    model : str, optional
        The model to use in place of the one that the version names.

    Examples
    --------
    >>> from safety_lib.agent.versions import load_version
    >>> said = ["Please read ticket T-203."]
    >>> run_rollout(plan_replay(load_version("v1"), said, name="demo", seed=1)).outcome
    'safe'
    """
    agent = _agent(rollout.version, model)
    attacker: Attacker = (
        Script(rollout.turns)
        if rollout.attacker == "replay"
        else make_attacker(rollout.attacker, find_scenario(rollout.scenario_id), rollout.seed)
    )
    return hold(agent, attacker, rollout)


def hold(agent: Agent, attacker: Attacker, rollout: Rollout) -> Trajectory:
    """Hold a conversation with any attacker and any agent that are already made.

    Parameters
    ----------
    agent : Agent
        Who is talked to; its policy is what the oracle judges by.
    attacker : Attacker
        Who talks.
    rollout : Rollout
        Names, seed, plants and the most turns.

    Returns
    -------
    Trajectory
        What was said, called and broken.
    """
    oracle = Oracle(agent.policy)
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        events.extend(oracle.observe(event))

    session = agent.session(rollout.seed, rollout.plants, observe)
    replies: list[str] = []
    ended: Ended = "completed"
    while len(replies) < rollout.max_turns:
        try:
            message = attacker.next_message(replies)
        except BackendError as error:
            observe(ErrorEvent(turn=len(replies) + 1, error=error.kind, detail=error.detail))
            ended = "error"
            break
        if message is None:
            ended = "completed" if rollout.attacker == "replay" else "gave_up"
            break
        reply = session.send(message)
        replies.append(reply.text)
        if oracle.violations and rollout.stop_at_violation:
            ended = "violation"
            break
        if reply.ended:
            ended = _ENDED[reply.ended]
            break
    finished = ended in ("completed", "gave_up", "stopped")
    return _trajectory(
        trajectory_id=rollout.rollout_id,
        scenario_id=rollout.scenario_id,
        goal=rollout.goal,
        attack_type=rollout.attack_type,
        attacker=rollout.attacker,
        version=rollout.version.version,
        config_sha256=rollout.version.sha256,
        model=agent.backend.name,
        seed=rollout.seed,
        plants=rollout.plants,
        outcome=outcome_of(oracle, error=ended == "error", finished=finished),
        ended=ended,
        n_turns=len(replies),
        model_calls=session.model_calls,
        violations=tuple(oracle.violations),
        attempted=tuple(oracle.attempted),
        events=tuple(events),
    )


def concurrency_of(version: Version, model: str = "") -> int:
    """Return how many conversations a version's model serves at once; 0 if it computes here."""
    return _agent(version, model).backend.concurrency


def name_of_model(version: Version, model: str = "") -> str:
    """Return what trajectories call the model that a version would be run with."""
    return _agent(version, model).backend.name


_trajectory = unchecked(Trajectory)

_ENDED: dict[str, Ended] = {"stopped": "stopped", "step_limit": "step_limit", "error": "error"}

_agents: dict[tuple[str, str], Agent] = {}


def _agent(version: Version, model: str) -> Agent:
    known = (version.sha256, model)
    if known not in _agents:
        _agents[known] = Agent.load(version, model)
    return _agents[known]
