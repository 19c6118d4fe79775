"""What a mutator buys an attacker, and what a longer memory buys the agent."""

from __future__ import annotations

from collections.abc import Sequence

from safety_lib.attack.mutators import mutators
from safety_lib.experiments.results import SEED, WORLD, as_experiment, rounded_estimate
from safety_lib.records import Experiment
from safety_lib.records.experiments import (
    MemoryWindow,
    MutatorEffect,
    MutatorsEffect,
    WindowFailures,
)
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import plan_attack
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.intervals import wilson
from safety_lib.stress.discovery import discover
from safety_lib.world.versions import Version

FULL = 1000  # messages: more than any conversation has


def run_mutators_effect(
    name: str = "v2", repeats: int = 6, seed: int = SEED, only: Sequence[str] = ()
) -> Experiment[MutatorsEffect]:
    """Put each mutator on the attacker that listens, on the same scenarios and the same luck.

    The gain is the difference in the share of conversations that break a rule, with an interval
    that takes conversations of one scenario for one piece of evidence.

    Parameters
    ----------
    name : str
        The version that is attacked.
    repeats : int
        Conversations on each scenario, at least 1.
    seed : int
        The run's seed.
    only : sequence of str, optional
        A few mutators to try; all of them by default.

    Returns
    -------
    Experiment
        ``mutators_effect``.
    """
    version = WORLD.version(name)
    plan = [(s, number) for s in WORLD.scenarios for number in range(repeats)]
    scenarios = [s.scenario_id for s, _ in plan]

    def broke(attacker: str) -> list[int]:
        rollouts = [plan_attack(version, s, attacker, seed, 8, number) for s, number in plan]
        return [int(t.outcome == "violation") for t in run_campaign(rollouts)]

    without = broke("adaptive")
    effects = {}
    for mutator in only or mutators():
        found = broke(f"adaptive+{mutator}")
        differences = [b - a for a, b in zip(without, found, strict=True)]
        gain = cluster_mean(differences, scenarios).interval()
        effects[mutator] = MutatorEffect(
            broke=sum(found), gain=rounded_estimate(gain.estimate, gain.low, gain.high)
        )
    result = MutatorsEffect(conversations=len(plan), broke_without=sum(without), mutators=effects)
    return as_experiment(result, {"version": name, "repeats": repeats}, seed=seed, versions=[name])


def run_memory_window(
    name: str = "v2",
    windows: Sequence[int] = (1, 3, 5, 10, 20, FULL),
    rollouts: int = 150,
    seed: int = SEED,
) -> Experiment[MemoryWindow]:
    """Attack one version with memories of different lengths, its policy pinned or not.

    Parameters
    ----------
    name : str
        The version that is attacked.
    windows : sequence of int
        Lengths in messages, each at least 1.
    rollouts : int
        Conversations with each memory, at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    Experiment
        ``memory_window``.
    """
    version = WORLD.version(name)

    def failures(window: int, pinned: bool) -> WindowFailures:
        changes = {"memory.window": window, "memory.pin_policy": pinned}
        return _failures(version.having(changes, name=f"window {window}"), rollouts, seed)

    result = MemoryWindow(
        window=tuple(windows),
        pinned=tuple(failures(window, pinned=True) for window in windows),
        unpinned=tuple(failures(window, pinned=False) for window in windows),
    )
    return as_experiment(
        result, {"version": name, "rollouts": rollouts}, seed=seed, versions=[name]
    )


def _failures(changed: Version, rollouts: int, seed: int) -> WindowFailures:
    found = discover(changed, changed, Run(seed=seed), rollouts=rollouts)
    timing, summary = found.timing[0], found.summary[0]
    rate = wilson(summary.failures, summary.rollouts - summary.errors)
    return WindowFailures(
        failures=summary.failures,
        low=round(rate.low, 4),
        high=round(rate.high, 4),
        safe_turns=round(timing.safe_turns, 4),
        first_turn=min(summary.by_turn, default=0),
    )
