"""Replay: the incident's user says the same again, on fresh seeds, on the version that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from safety_lib.agent.versions import Version
from safety_lib.attack.attackers import heard
from safety_lib.attack.scenarios import load_goals
from safety_lib.policy import load_policy
from safety_lib.records import (
    SEVERITIES,
    Failure,
    Incident,
    Reproduction,
    TimelineEntry,
    Trajectory,
)
from safety_lib.regression.generate import count
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import Rollout, replay, trial_seed


@dataclass(frozen=True)
class Replay:
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
    """Return the seeds of the replays: the incident's own first, where the file gives it."""
    fresh = tuple(trial_seed(seed, "incident", incident.incident_id, i) for i in range(replays))
    return fresh if incident.seed is None else (incident.seed, *fresh[: replays - 1])


def turns_of(incident: Incident) -> tuple[str, ...]:
    """Return what the user said, turn by turn."""
    ordered = sorted(incident.trajectory, key=lambda turn: turn.turn)
    return tuple(turn.user for turn in ordered)


def replay_incident(
    incident: Incident, version: Version, *, replays: int, seed: int, model: str = ""
) -> Replay:
    """Replay an incident on several seeds and let the oracle say what broke.

    Parameters
    ----------
    incident : Incident
        Its assistant's words are not replayed: the agent answers for itself.
    version : Version
        Where to replay it.
    replays : int
        Seeds, at least 1.
    seed : int
        The run's seed.
    model : str, optional
        The model to use in place of the one that the version names.

    Raises
    ------
    ValueError
        If ``replays`` is less than 1.
    """
    if replays < 1:
        raise ValueError(f"replays must be at least 1, not {replays}")
    jobs = [
        job(incident, version, turns_of(incident), s) for s in seeds_of(incident, replays, seed)
    ]
    held = tuple(run_campaign(jobs, model=model))
    broken = Counter(v.rule_id for t in held for v in t.violations[:1])
    rule_id = broken.most_common(1)[0][0] if broken else ""
    return Replay(
        incident=incident,
        version=version,
        rule_id=rule_id,
        reproduction=count(version.version, held, rule_id),
        trajectories=held,
    )


def job(incident: Incident, version: Version, turns: Sequence[str], seed: int) -> Rollout:
    """Plan one replay of an incident, with its turns or with other ones."""
    return replay(
        version,
        turns,
        name=f"incident/{incident.incident_id}",
        seed=seed,
        plants=incident.plants,
        attack_type=incident.category,
    )


def timeline(trajectory: Trajectory) -> tuple[TimelineEntry, ...]:
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


def failure_of(incident: Incident, trajectory: Trajectory, rule_id: str) -> Failure:
    """Make a replay in which the rule broke into a failure, as stage 1 would have found it.

    Raises
    ------
    ValueError
        If no rule broke in it.
    """
    if not trajectory.violations:
        raise ValueError(f"{trajectory.trajectory_id}: no rule broke in this replay")
    rule = load_policy().rule(rule_id)
    goal = next(name for name, goal in load_goals().items() if goal.rule == rule_id)
    return Failure(
        failure_id=f"{incident.incident_id}/{len(trajectory.user_messages)}",
        rollout_id=trajectory.trajectory_id,
        scenario_id=trajectory.scenario_id,
        goal=goal,
        attack_type=incident.category,
        attacker="incident",
        version=trajectory.version,
        seed=trajectory.seed,
        failure_turn=trajectory.failure_turn or trajectory.n_turns,
        delayed=(trajectory.failure_turn or 1) > 1,
        single_shot="undetermined",
        rule_id=rule_id,
        severity=rule.severity,
        harm_level=SEVERITIES.index(rule.severity) + 1,
        violations=trajectory.violations,
        plants=trajectory.plants,
        trajectory=trajectory.user_messages,
        model_responses=trajectory.replies,
        tool_calls=tuple(e for e in trajectory.events if e.kind == "tool_call"),
    )
