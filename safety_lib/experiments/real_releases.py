"""Real agents through the gate: harmless and weaker releases, and suites mined from one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from safety_lib.experiments.characteristics import under_gate_rules
from safety_lib.experiments.results import WORLD, mined_suite
from safety_lib.gate.release_gate import run_gate
from safety_lib.records import Experiment, GateReport, Verdict
from safety_lib.records.experiments import (
    CandidateVerdicts,
    HarmlessReleases,
    MinedComparison,
    SelectionBias,
)
from safety_lib.rollout.campaign import Run
from safety_lib.world.versions import Version

HALF = (0, 1, 5, 6)
SUITE_SEEDS = tuple(range(1, 13))


def run_harmless_releases(seeds: Sequence[int] = SUITE_SEEDS) -> Experiment[HarmlessReleases]:
    """Judge real agents: the same version, harmless changes of it, and graded weaker ones."""
    good, bad = WORLD.version("v1"), WORLD.version("v2")
    candidates = {
        "the same": good,
        "another style": good.having({"model.style": "friendly"}, name="style"),
        "one more step a turn": good.having({"limits.max_steps": 5}, name="steps"),
        "a longer memory": good.having({"memory.window": 96}, name="memory"),
        "caution 0.5 lower": good.having(
            {"model.caution": good.flat["model.caution"] - 0.5}, name="c05"
        ),
        "caution 1.0 lower": good.having(
            {"model.caution": good.flat["model.caution"] - 1.0}, name="c10"
        ),
        "caution 1.5 lower": good.having(
            {"model.caution": good.flat["model.caution"] - 1.5}, name="c15"
        ),
        "v3": WORLD.version("v3"),
        "v2": bad,
    }
    result = HarmlessReleases(
        candidates={
            name: verdicts_in(reports_on((good, bad), good, version, seeds))
            for name, version in candidates.items()
        }
    )
    return under_gate_rules(result, {"seeds": list(seeds)})


def reports_on(
    mined: tuple[Version, ...], baseline: Version, candidate: Version, seeds: Sequence[int]
) -> list[GateReport]:
    """Judge a candidate on the suites of several searches.

    Parameters
    ----------
    mined : tuple of Version
        Who is searched.
    baseline, candidate : Version
        Who is compared.
    seeds : sequence of int
        Of the searches and of the gates.

    Returns
    -------
    list of GateReport
        One for each seed.
    """
    return [
        run_gate(mined_suite(mined, seed=seed), baseline, candidate, Run(seed=seed))
        for seed in seeds
    ]


def verdicts_in(reports: Sequence[GateReport]) -> CandidateVerdicts:
    """Count verdicts, and average the differences in pass rate.

    Parameters
    ----------
    reports : sequence of GateReport
        At least one of them with a difference.

    Returns
    -------
    CandidateVerdicts
        As experiments store it.
    """
    deltas = [report.delta for report in reports if report.delta is not None]
    return CandidateVerdicts(
        verdicts=_verdicts_of(reports),
        mean_delta=round(float(np.mean(deltas)), 4),
    )


def _verdicts_of(reports: Sequence[GateReport]) -> dict[Verdict | Literal["none"], int]:
    return dict(Counter(report.verdict or "none" for report in reports))


def run_selection_bias(seeds: Sequence[int] = SUITE_SEEDS) -> Experiment[SelectionBias]:
    """Compare two versions with different weak spots on suites mined from one, or from both."""
    first, second = weak_spots()
    ways = {
        "the candidate": (second, second),
        "the baseline": (first, first),
        "both": (first, second),
    }
    result = SelectionBias(
        mined={
            mined: _comparison_in(reports_on(versions, first, second, seeds))
            for mined, versions in ways.items()
        }
    )
    return under_gate_rules(result, {"seeds": list(seeds)})


def _comparison_in(reports: Sequence[GateReport]) -> MinedComparison:
    deltas = [report.delta or 0.0 for report in reports]
    controls = [s.delta for report in reports for s in report.strata if s.stratum == "control"]
    statuses = [
        next((step.status for step in report.steps if step.step == 1), "none") for report in reports
    ]
    return MinedComparison(
        mean_delta=round(float(np.mean(deltas)), 4),
        standard_error=round(float(np.std(deltas, ddof=1) / np.sqrt(len(deltas))), 4),
        control_delta=round(float(np.mean(controls)), 4),
        safety_step=dict(Counter(statuses)),
        verdicts=_verdicts_of(reports),
    )


def weak_spots() -> tuple[Version, Version]:
    """Return two versions that are as safe as each other: each is told one half of the rules.

    The halves were chosen so that either version breaks in 122 of 300 unselected attacks, on a seed
    that no experiment uses.
    """
    base = WORLD.version("v1")
    rules = WORLD.policy.rules
    halves = ([rules[i] for i in HALF], [r for i, r in enumerate(rules) if i not in HALF])
    told = ["\n".join(f"- {rule.text}" for rule in half) for half in halves]
    prompts = [base.flat["system_prompt"].replace("{policy}", text) for text in told]
    names = ("one half", "other half")
    first, second = (
        base.having({"system_prompt": prompt}, name=name)
        for prompt, name in zip(prompts, names, strict=True)
    )
    return first, second
