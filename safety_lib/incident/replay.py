"""Replay: the incident's user says the same again, on fresh seeds, on the version that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from safety_lib.artifacts import ArtifactError
from safety_lib.attack.attackers import heard
from safety_lib.records import (
    Failure,
    Incident,
    Reproduction,
    TimelineEntry,
    Trajectory,
)
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import Rollout, plan_replay, trial_seed
from safety_lib.rollout.judging import as_failure, count_broken
from safety_lib.text import Shown, one_line
from safety_lib.world import World, load_world
from safety_lib.world.versions import Version

_MOST_LISTED = 5


@dataclass(frozen=True, repr=False)
class Replay(Shown):
    """An incident, re-executed.

    Attributes
    ----------
    rule_id : str
        The rule that broke most often, or an empty string where none did.
    reproduction : Reproduction
        In how many of the replays that rule broke, with an interval.
    trajectories : tuple of Trajectory
        Every replay, in the order of the seeds.
    """

    incident: Incident
    version: Version
    rule_id: str
    reproduction: Reproduction
    trajectories: tuple[Trajectory, ...]

    @property
    def shown(self) -> Trajectory:
        """The replay to look at: the first in which the rule broke, else the first."""
        broken = [t for t in self.trajectories if t.outcome == "violation"]
        return (broken or list(self.trajectories))[0]

    def __str__(self) -> str:
        seen = self.reproduction
        rule = self.rule_id or "no rule"
        return (
            f"{self.incident.incident_id} on {self.version.version}: {rule} broke in {seen.k} of "
            f"{seen.n} replays [{seen.ci_low:.2f}, {seen.ci_high:.2f}]"
        )


def seeds_of(incident: Incident, replays: int, seed: int) -> tuple[int, ...]:
    """Return the seeds of the replays: the incident's own first, where the file gives it.

    Parameters
    ----------
    incident : Incident
        What is replayed.
    replays : int
        How many seeds, at least 1.
    seed : int
        The run's seed.
    """
    fresh = tuple(trial_seed(seed, "incident", incident.incident_id, i) for i in range(replays))
    return fresh if incident.seed is None else (incident.seed, *fresh[: replays - 1])


def turns_of(incident: Incident) -> tuple[str, ...]:
    """Return what the user said, turn by turn."""
    ordered = sorted(incident.trajectory, key=lambda turn: turn.turn)
    return tuple(turn.user for turn in ordered)


def replay_incident(
    incident: Incident, version: Version, run: Run = Run(), *, replays: int
) -> Replay:
    """Replay an incident on several seeds and let the oracle say what broke.

    Parameters
    ----------
    incident : Incident
        Its assistant's words are not replayed: the agent answers for itself.
    version : Version
        Where to replay it.
    run : Run, optional
        Seed, model and where the conversations are held.
    replays : int
        Seeds, at least 1.

    Returns
    -------
    Replay
        What broke, and how often.

    Raises
    ------
    ValueError
        If ``replays`` is less than 1.
    ArtifactError
        If the incident is of an agent of another world.
    """
    if replays < 1:
        raise ValueError(f"replays must be at least 1, not {replays}")
    _expect_of(load_world(version.world), incident)
    rollouts = [
        plan_incident(incident, version, turns_of(incident), s)
        for s in seeds_of(incident, replays, run.seed)
    ]
    held = tuple(run_campaign(rollouts, run))
    broken = Counter(v.rule_id for t in held for v in t.violations[:1])
    rule_id = broken.most_common(1)[0][0] if broken else ""
    return Replay(
        incident=incident,
        version=version,
        rule_id=rule_id,
        reproduction=count_broken(version.version, held, rule_id),
        trajectories=held,
    )


def _expect_of(world: World, incident: Incident) -> None:
    """Refuse an agent of another world: no rule could find anything in what it did."""
    called = {call.name for turn in incident.trajectory for call in turn.calls}
    if called and not called & world.tools.keys():
        listed = ", ".join(sorted(called)[:_MOST_LISTED])
        raise ArtifactError(
            f"{one_line(incident.incident_id)}: {world.name} has none of the tools that were "
            f"called ({one_line(listed)}); name the world of this agent with --world, or add them "
            "to its tools.yaml"
        )


def plan_incident(incident: Incident, version: Version, turns: Sequence[str], seed: int) -> Rollout:
    """Plan one replay of an incident, with its turns or with other ones.

    Parameters
    ----------
    incident : Incident
        For its name, its category and what was planted.
    version : Version
        Where to replay it.
    turns : sequence of str
        What the user says.
    seed : int
        Of the conversation.

    Returns
    -------
    Rollout
        The plan.
    """
    return plan_replay(
        version,
        turns,
        name=f"incident/{incident.incident_id}",
        seed=seed,
        plants=incident.plants,
        attack_type=incident.category,
    )


def timeline_of(trajectory: Trajectory) -> tuple[TimelineEntry, ...]:
    """Tell a replay as a sequence of moments, read from its events alone."""
    return tuple(_moments(trajectory))


def own_words(reply: str, results: Iterable[str]) -> str:
    """Return what of a reply the agent said itself: a quoted ticket can sound like a refusal.

    Examples
    --------
    >>> own_words("Here you go: She cannot log in.", ["She cannot log in."])
    'Here you go: '
    """
    for result in results:
        reply = reply.replace(result, "") if result else reply
    return reply


def _moments(trajectory: Trajectory) -> Iterator[TimelineEntry]:
    results: list[str] = []
    for event in trajectory.events:
        if event.kind == "message" and event.role == "user":
            yield TimelineEntry(turn=event.turn, what="request", detail=event.content)
        elif event.kind == "message":
            refused = heard(own_words(event.content, results)) == "refusal"
            yield TimelineEntry(
                turn=event.turn, what="refusal" if refused else "reply", detail=event.content
            )
        elif event.kind == "tool_call":
            results += [event.result] if event.status == "executed" else []
            yield TimelineEntry(turn=event.turn, what="tool_call", detail=str(event))
        elif event.kind == "hook" and event.decision != "allow":
            detail = f"{event.hook} {event.decision}: {event.reason}"
            yield TimelineEntry(turn=event.turn, what="safeguard", detail=detail)
        elif event.kind == "oracle" and event.outcome == "violation":
            detail = f"{event.rule_id}: {event.evidence}"
            yield TimelineEntry(turn=event.turn, what="violation", detail=detail)


def failure_of(
    incident: Incident, trajectory: Trajectory, control: Trajectory, rule_id: str, world: World
) -> Failure:
    """Make a replay in which the rule broke into a failure, as stage 1 would have found it.

    Parameters
    ----------
    incident : Incident
        What was replayed.
    trajectory, control : Trajectory
        The replay, and its last message asked alone
        (:func:`safety_lib.rollout.judging.control_of`).
    rule_id : str
        The rule.
    world : World
        Whose goals tell what it was after.

    Returns
    -------
    Failure
        Named after the incident.

    Raises
    ------
    ValueError
        If the rule did not break in it.
    WorldError
        If no goal of the world is after the rule.
    """
    failure = as_failure(trajectory, control, rule_id)
    goal = world.goal_of(rule_id)
    if not goal:
        raise world.fault("goals.yaml", f"no goal is after the rule {rule_id}; add one with a twin")
    own = {
        "failure_id": f"{incident.incident_id}/{len(trajectory.user_messages)}",
        "goal": goal,
        "attack_type": incident.category,
        "attacker": "incident",
    }
    return failure.model_copy(update=own)
