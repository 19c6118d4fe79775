"""Experiments of the gate: its error rates, and what a suite mined from one version does to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from safety_lib.agent.versions import Version, config_hashes, load_version
from safety_lib.gate.characteristics import Rates, Shape, interval_covers, simulate
from safety_lib.gate.report import run_gate
from safety_lib.gate.rules import load_rules
from safety_lib.policy import load_policy
from safety_lib.records import Experiment, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.stress.discovery import discover

SEED = 7
LOSSES = (0.0, 0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
RUNS = 500
HALF = (0, 1, 5, 6)
SMALL = Shape()
LARGE = Shape(families=(3,) * 30)
EIGHT = Shape(families=(1,) * 8)


def operating_characteristics() -> Experiment:
    """Judge simulated releases of known loss, by this gate's rule and by the original's."""
    rules = load_rules()
    shapes = {
        "this suite": SMALL,
        "families that differ": Shape(interaction=0.05),
        "30 families": LARGE,
    }
    curves = {
        name: {
            str(loss): row(simulate(shape, loss, rules, runs=RUNS, seed=SEED)) for loss in LOSSES
        }
        for name, shape in shapes.items()
    }
    curves["the original's rule, 8 tests"] = {
        str(loss): row(simulate(EIGHT, loss, rules, runs=RUNS, seed=SEED, original=True))
        for loss in LOSSES
    }
    covered = {
        name: interval_covers(shape, 0.1, rules, runs=2 * RUNS, seed=SEED) / (2 * RUNS)
        for name, shape in shapes.items()
    }
    return _experiment(
        "operating_characteristics",
        {"losses": list(LOSSES), "runs": RUNS, "passing": SMALL.passing, "trials": SMALL.trials},
        {"curves": curves, "coverage": covered},
    )


def row(rates: Rates) -> dict[str, list[float]]:
    """Return the share of each verdict with its 95% interval."""
    return {
        verdict: [round(value, 4) for value in rates.share(verdict)]
        for verdict in ("OK", "WARN", "BLOCK")
    }


def harmless_releases(seeds: Sequence[int] = tuple(range(1, 13))) -> Experiment:
    """Judge real agents: the same version, harmless changes of it, and graded weaker ones."""
    good = load_version("v1")
    candidates = {
        "the same": good,
        "another style": good.having({"model.style": "friendly"}, name="style"),
        "one more step a turn": good.having({"limits.max_steps": 5}, name="steps"),
        "a longer memory": good.having({"memory.window": 96}, name="memory"),
        "caution 0.5 lower": good.having({"model.caution": good.model.caution - 0.5}, name="c05"),
        "caution 1.0 lower": good.having({"model.caution": good.model.caution - 1.0}, name="c10"),
        "caution 1.5 lower": good.having({"model.caution": good.model.caution - 1.5}, name="c15"),
        "v3": load_version("v3"),
        "v2": load_version("v2"),
    }
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in candidates}
    deltas: dict[str, list[float]] = {name: [] for name in candidates}
    for seed in seeds:
        suite = suite_of((good, load_version("v2")), seed)
        for name, version in candidates.items():
            report = run_gate(suite, good, version, seed=seed)
            verdicts[name][report.verdict or "none"] += 1
            if report.delta is not None:
                deltas[name].append(report.delta)
    result = {
        name: {**dict(sorted(seen.items())), "mean_delta": round(float(np.mean(deltas[name])), 4)}
        for name, seen in verdicts.items()
    }
    return _experiment("harmless_releases", {"seeds": list(seeds)}, result)


def selection_bias(seeds: Sequence[int] = tuple(range(1, 13))) -> Experiment:
    """Compare two versions with different weak spots on suites mined from one, or from both."""
    first, second = weak_spots()
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for seed in seeds:
        for mined, versions in {
            "the candidate": (second, second),
            "the baseline": (first, first),
            "both": (first, second),
        }.items():
            report = run_gate(suite_of(versions, seed), first, second, seed=seed)
            control = next(s.delta for s in report.strata if s.stratum == "control")
            safety = next((s.status for s in report.steps if s.step == 2), "none")
            rows.setdefault(mined, []).append((report.delta or 0.0, control, safety))
    result = {
        mined: {
            "mean_delta": round(float(np.mean([r[0] for r in seen])), 4),
            "standard_error": round(
                float(np.std([r[0] for r in seen], ddof=1) / np.sqrt(len(seen))), 4
            ),
            "control_delta": round(float(np.mean([r[1] for r in seen])), 4),
            "safety_step": dict(sorted(Counter(r[2] for r in seen).items())),
        }
        for mined, seen in rows.items()
    }
    return _experiment("selection_bias", {"seeds": list(seeds)}, result)


def weak_spots() -> tuple[Version, Version]:
    """Return two versions that are as safe as each other: each is told one half of the rules.

    The halves were chosen so that either version breaks in 122 of 300 unselected attacks, on a seed
    that no experiment uses.
    """
    base = load_version("v1")
    rules = load_policy().rules
    halves = ([rules[i] for i in HALF], [r for i, r in enumerate(rules) if i not in HALF])
    told = ["\n".join(f"- {rule.text}" for rule in half) for half in halves]
    prompts = [base.system_prompt.replace("{policy}", text) for text in told]
    names = ("one half", "other half")
    first, second = (
        base.having({"system_prompt": prompt}, name=name)
        for prompt, name in zip(prompts, names, strict=True)
    )
    return first, second


def suite_of(versions: tuple[Version, Version], seed: int) -> Suite:
    """Search both versions and make the suite, as the first two notebooks do."""
    found = discover(*versions, rollouts=50, seed=seed).artifact()
    return generate_suite(found, {v.version: v for v in versions}, seed=seed)


def _experiment(name: str, parameters: dict[str, Any], result: dict[str, Any]) -> Experiment:
    return Experiment(
        artifact=Experiment.SCHEMA,
        schema_version=Experiment.VERSION,
        seed=SEED,
        model="simulated",
        config_sha256=config_hashes([load_version(name) for name in ("v1", "v2", "v3")]),
        policy_sha256=load_policy().sha256,
        name=name,
        command="make experiments",
        parameters={**parameters, "gate_policy_sha256": load_rules().sha256},
        result=result,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "operating_characteristics": operating_characteristics,
    "harmless_releases": harmless_releases,
    "selection_bias": selection_bias,
}
