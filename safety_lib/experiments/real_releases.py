"""Real agents through the gate: harmless and weaker releases, and suites mined from one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from safety_lib.agent.versions import Version, load_version
from safety_lib.experiments.characteristics import SEED, under_gate_rules
from safety_lib.experiments.results import mined_suite
from safety_lib.gate.release_gate import run_gate
from safety_lib.policy import load_policy
from safety_lib.records import Experiment
from safety_lib.rollout.campaign import Run

HALF = (0, 1, 5, 6)


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
        suite = mined_suite((good, load_version("v2")), seed=seed)
        for name, version in candidates.items():
            report = run_gate(suite, good, version, Run(seed=seed))
            verdicts[name][report.verdict or "none"] += 1
            if report.delta is not None:
                deltas[name].append(report.delta)
    result = {
        name: {**dict(sorted(seen.items())), "mean_delta": round(float(np.mean(deltas[name])), 4)}
        for name, seen in verdicts.items()
    }
    return under_gate_rules("harmless_releases", SEED, {"seeds": list(seeds)}, result)


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
            report = run_gate(mined_suite(versions, seed=seed), first, second, Run(seed=seed))
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
    return under_gate_rules("selection_bias", SEED, {"seeds": list(seeds)}, result)


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
