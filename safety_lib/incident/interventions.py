"""Interventions: change one thing, run the incident again on the same seeds, measure the difference.

No cause is looked up. A cause is what, when it is taken away, takes the failure away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from safety_lib.agent.versions import Change, Version
from safety_lib.incident.replay import Replay, job, turns_of
from safety_lib.records import Intervention, Reproduction, Trajectory
from safety_lib.regression.generate import count
from safety_lib.rollout.campaign import run_campaign
from safety_lib.stats.differences import tango

Kind = Literal["change", "turn", "memory", "version"]

LONG_MEMORY = 1000
NAMED_SHARE = 0.5


@dataclass(frozen=True)
class Experiment:
    """One intervention before it is run: on which version, with which turns."""

    name: str
    kind: Kind
    description: str
    version: Version
    turns: tuple[str, ...]


@dataclass(frozen=True)
class RootCause:
    """The changes that the failure hangs on, and what shows it.

    Attributes
    ----------
    name : str
        The keys of the changes joined by `` + ``, strongest first, or ``not identified``.
    evidence : str
        The effects that were measured, in one sentence.
    """

    name: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}"


def experiments(replay: Replay, baseline: Version) -> Iterator[Experiment]:
    """Plan the interventions: undo each change, each turn, lengthen memory, change the version."""
    version, turns = replay.version, turns_of(replay.incident)
    for change in baseline.changes_to(version):
        yield Experiment(
            name=f"revert {change.key}",
            kind="change",
            description=f"{version.version} with {change.key} as in {baseline.version}",
            version=version.having({change.key: change.before}),
            turns=turns,
        )
    if version.sha256 != baseline.sha256:
        yield Experiment(
            name=f"run on {baseline.version}",
            kind="version",
            description=f"{baseline.version} in place of {version.version}",
            version=baseline,
            turns=turns,
        )
    yield Experiment(
        name="remember everything",
        kind="memory",
        description=f"memory window of {LONG_MEMORY} messages",
        version=version.having({"memory.window": LONG_MEMORY}),
        turns=turns,
    )
    for i in range(len(turns)):
        if len(turns) > 1:
            yield Experiment(
                name=f"without turn {i + 1}",
                kind="turn",
                description=f"the user never says: {turns[i]}",
                version=version,
                turns=turns[:i] + turns[i + 1 :],
            )


def intervene(
    replay: Replay, planned: Sequence[Experiment], model: str = ""
) -> tuple[Intervention, ...]:
    """Run each intervention on the seeds of the replay and measure its effect.

    Parameters
    ----------
    replay : Replay
        The factual runs; its seeds are used again, so that pairs meet the same luck.
    planned : sequence of Experiment
        What to change.
    model : str, optional
        The model to use in place of those that the versions name.

    Returns
    -------
    tuple of Intervention
        Effect = share of replays that break factually minus counterfactually, in [-1, 1], with the
        Tango interval for paired proportions; only pairs that are valid on both sides count.
    """
    seeds = [t.seed for t in replay.trajectories]
    jobs = [job(replay.incident, e.version, e.turns, s) for e in planned for s in seeds]
    held = tuple(run_campaign(jobs, model=model))
    factual = [_broke(t, replay.rule_id) for t in replay.trajectories]
    results = []
    for i, experiment in enumerate(planned):
        counterfactual = held[i * len(seeds) : (i + 1) * len(seeds)]
        after = [_broke(t, replay.rule_id) for t in counterfactual]
        pairs = [(a, b) for a, b in zip(factual, after, strict=True) if None not in (a, b)]
        prevented = sum(1 for a, b in pairs if a and not b)
        caused = sum(1 for a, b in pairs if b and not a)
        interval = tango(prevented, caused, len(pairs)) if pairs else None
        results.append(
            Intervention(
                name=experiment.name,
                kind=experiment.kind,
                description=experiment.description,
                factual=replay.reproduction,
                counterfactual=count(experiment.version.version, counterfactual, replay.rule_id),
                effect=round((prevented - caused) / len(pairs), 6) if pairs else 0.0,
                ci_low=round(interval.low, 6) if interval else -1.0,
                ci_high=round(interval.high, 6) if interval else 1.0,
            )
        )
    return tuple(results)


def name_root_cause(
    replay: Replay, baseline: Version, interventions: Sequence[Intervention], model: str = ""
) -> RootCause:
    """Name the configuration changes that the failure hangs on.

    A change is named when undoing it alone takes away at least half of the failures and the
    interval of its effect excludes zero. The named changes are then put into the baseline, alone:
    if the failure appears there, they are enough as well as needed.
    """
    changes = {f"revert {c.key}": c for c in baseline.changes_to(replay.version)}
    rate = _rate(replay.reproduction)
    named = sorted(
        (
            i
            for i in interventions
            if i.kind == "change" and i.ci_low > 0 and i.effect >= NAMED_SHARE * rate
        ),
        key=lambda i: (-i.effect, i.name),
    )
    if not named or rate == 0:
        return RootCause("not identified", "no single change takes the failure away when undone")
    causes = [changes[i.name] for i in named]
    alone = _with_changes_alone(replay, baseline, causes, model)
    removed = "; ".join(
        f"undoing {changes[i.name]} leaves {i.counterfactual.k} of {i.counterfactual.n}"
        for i in named
    )
    evidence = (
        f"{replay.reproduction.k} of {replay.reproduction.n} replays break; {removed}; "
        f"{baseline.version} with nothing but {'these changes' if len(causes) > 1 else 'it'} "
        f"breaks in {alone.k} of {alone.n}"
    )
    return RootCause(" + ".join(cause.key for cause in causes), evidence)


def _with_changes_alone(
    replay: Replay, baseline: Version, causes: Sequence[Change], model: str
) -> Reproduction:
    settings: Mapping[str, Any] = {cause.key: cause.after for cause in causes}
    version = baseline.having(settings)
    turns = turns_of(replay.incident)
    jobs = [job(replay.incident, version, turns, t.seed) for t in replay.trajectories]
    return count(version.version, run_campaign(jobs, model=model), replay.rule_id)


def _broke(trajectory: Trajectory, rule_id: str) -> bool | None:
    if any(v.rule_id == rule_id for v in trajectory.violations):
        return True
    return False if trajectory.outcome in ("safe", "violation") else None


def _rate(reproduction: Reproduction) -> float:
    return reproduction.k / reproduction.n if reproduction.n else 0.0
