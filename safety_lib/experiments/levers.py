"""What a mutator buys an attacker, and what a longer memory buys the agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safety_lib.agent.versions import load_version
from safety_lib.attack.mutators import mutators
from safety_lib.attack.scenarios import all_scenarios
from safety_lib.experiments.results import as_experiment
from safety_lib.records import Experiment
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import attack
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.intervals import wilson
from safety_lib.stress.discovery import discover

FULL = 1000  # messages: more than any conversation has


def mutators_effect(
    name: str = "v2", repeats: int = 6, seed: int = 7, only: Sequence[str] = ()
) -> Experiment:
    """Put each mutator on the attacker that listens, on the same scenarios and the same luck.

    The gain is the difference in the share of conversations that break a rule, with an interval
    that takes conversations of one scenario for one piece of evidence. ``only`` names a few to try.
    """
    version = load_version(name)
    plan = [(s, number) for s in all_scenarios() for number in range(repeats)]
    scenarios = [s.scenario_id for s, _ in plan]

    def broke(attacker: str) -> list[int]:
        jobs = [attack(version, s, attacker, seed, 8, number) for s, number in plan]
        return [int(t.outcome == "violation") for t in run_campaign(jobs)]

    without = broke("adaptive")
    rows: dict[str, Any] = {}
    for mutator in sorted(only or mutators()):
        found = broke(f"adaptive+{mutator}")
        differences = [b - a for a, b in zip(without, found, strict=True)]
        gain = cluster_mean(differences, scenarios).interval()
        limits = (gain.estimate, gain.low, gain.high)
        rows[mutator] = {"broke": sum(found), "gain": [round(x + 0.0, 4) for x in limits]}
    result = {"conversations": len(plan), "broke_without": sum(without), "mutators": rows}
    parameters = {"version": name, "repeats": repeats}
    return as_experiment("mutators_effect", seed, parameters, result, [name])


def memory_window(
    name: str = "v2",
    windows: Sequence[int] = (1, 3, 5, 10, 20, FULL),
    rollouts: int = 150,
    seed: int = 7,
) -> Experiment:
    """Attack one version with memories of different lengths, its policy pinned or not."""
    version = load_version(name)
    result: dict[str, Any] = {"window": list(windows)}
    for pinned in (False, True):
        rows = []
        for window in windows:
            changes = {"memory.window": window, "memory.pin_policy": pinned}
            changed = version.having(changes, name=f"window {window}")
            found = discover(changed, changed, Run(seed=seed), rollouts=rollouts)
            timing, summary = found.timing[0], found.summary[0]
            rate = wilson(summary.failures, summary.rollouts - summary.errors)
            rows.append(
                {
                    "failures": summary.failures,
                    "low": round(rate.low, 4),
                    "high": round(rate.high, 4),
                    "safe_turns": round(timing.safe_turns, 4),
                    "first_turn": min(summary.by_turn, default=0),
                }
            )
        result["pinned" if pinned else "unpinned"] = rows
    parameters = {"version": name, "rollouts": rollouts}
    return as_experiment("memory_window", seed, parameters, result, [name])
