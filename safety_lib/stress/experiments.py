"""Experiments of the stress stage: what needs more conversations than a notebook has time for.

What does it buy an attacker to listen, and to choose? What does a longer memory buy the agent?
Which safeguard does the work? And are a search's own predictions true?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safety_lib.agent.versions import load_version
from safety_lib.attack.mutators import mutators
from safety_lib.attack.scenarios import all_scenarios
from safety_lib.records import Experiment
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import attack
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.intervals import wilson
from safety_lib.stress.ablation import ablate
from safety_lib.stress.calibration import (
    make_experiment,
    next_scenarios_gain,
    undiscovered_prediction,
)
from safety_lib.stress.comparison import Hunt, Lead, Way, hunt, lead
from safety_lib.stress.discovery import discover

WAYS: tuple[Way, ...] = ("static", "adaptive", "search")
FULL = 1000  # messages: more than any conversation has


def attackers_at_equal_budget(
    names: Sequence[str] = ("v1", "v2"),
    budgets: Sequence[int] = (200, 800),
    seeds: Sequence[int] = range(1, 21),
) -> Experiment:
    """Let three ways of attacking spend the same number of turns, on the same seeds."""
    result: dict[str, Any] = {}
    for name in names:
        for budget in budgets:
            found: dict[str, list[Hunt]] = {
                way: [hunt(load_version(name), way, budget, seed) for seed in seeds] for way in WAYS
            }
            result[f"{name}, {budget} turns"] = {
                "found": {way: _found(hunts) for way, hunts in found.items()},
                "leads": [
                    _lead(lead(found[first], found[second], what, seeds[0]))
                    for first, second in (("static", "adaptive"), ("adaptive", "search"))
                    for what in ("violations", "modes")
                ],
            }
    parameters = {"versions": list(names), "budgets": list(budgets), "seeds": list(seeds)}
    return make_experiment("attackers_at_equal_budget", seeds[0], names, parameters, result)


def _found(hunts: Sequence[Hunt]) -> dict[str, Any]:
    return {
        "violations": round(sum(h.violations for h in hunts) / len(hunts), 4),
        "modes": round(sum(h.modes for h in hunts) / len(hunts), 4),
        "violations_each": [h.violations for h in hunts],
    }


def _lead(one: Lead) -> dict[str, Any]:
    return {
        "of": one.ways[1],
        "over": one.ways[0],
        "what": one.what,
        "gain": one.gain,
        "low": one.low,
        "high": one.high,
        "p_value": round(one.test.p_value, 6),
    }


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
    return make_experiment("mutators_effect", seed, [name], parameters, result)


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
            found = discover(changed, changed, rollouts=rollouts, seed=seed)
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
    return make_experiment("memory_window", seed, [name], parameters, result)


def safeguard_ablation(
    names: Sequence[str] = ("v1", "v2"),
    repeats: int = 10,
    seed: int = 7,
    strict_stop_at: float = 2.0,
) -> Experiment:
    """Run every combination of safeguards on the same attacks and legitimate requests.

    The last version is tried once more with a monitor that ends sessions early.
    """
    versions = {name: load_version(name) for name in names}
    changes = {"safeguards.trajectory.stop_at": strict_stop_at}
    strict = f"{names[-1]}, strict monitor"
    versions[strict] = versions[names[-1]].having(changes, name=strict)
    result: dict[str, Any] = {}
    for name, version in versions.items():
        seen = ablate(version, repeats=repeats, seed=seed)
        result[name] = {
            "combinations": [
                {
                    "on": list(one.on),
                    "attacks": one.attacks,
                    "broke": one.broke,
                    "requests": one.requests,
                    "refused": one.refused,
                    "calls": one.calls,
                }
                for one in seen.combinations
            ],
            "prevented": _intervals(seen.prevented),
            "refused": _intervals(seen.refused),
        }
    parameters = {"versions": list(names), "repeats": repeats, "strict_stop_at": strict_stop_at}
    return make_experiment("safeguard_ablation", seed, names, parameters, result)


def _intervals(of: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        name: [round(x + 0.0, 4) for x in (i.estimate, i.low, i.high)] for name, i in of.items()
    }


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "attackers_at_equal_budget": attackers_at_equal_budget,
    "mutators_effect": mutators_effect,
    "memory_window": memory_window,
    "safeguard_ablation": safeguard_ablation,
    "undiscovered_prediction": undiscovered_prediction,
    "next_scenarios_gain": next_scenarios_gain,
}
