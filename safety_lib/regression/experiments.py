"""Experiments of the regression stage: what needs more runs than a notebook has time for.

Does the suite notice when a defence is lost, and does a suite from a longer search notice more?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from safety_lib.agent.versions import config_hashes, load_version
from safety_lib.policy import load_policy
from safety_lib.records import Experiment, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.regression.mutants import Adequacy, adequacy, mutants
from safety_lib.stress.discovery import discover

BASE = "v1"  # holds most tests: a version that fails them all has nothing to lose
ROLLOUTS = (50, 200)
TRIALS = 10
SEED = 7


@cache
def suite_of(rollouts: int, seed: int = SEED) -> Suite:
    """Search both versions and make the suite, as the first two notebooks do."""
    versions = {name: load_version(name) for name in ("v1", "v2")}
    found = discover(*versions.values(), rollouts=rollouts, seed=seed).artifact()
    return generate_suite(found, versions, seed=seed)


def adequacy_of(
    rollouts: int, *, names: Sequence[str] = (), trials: int = TRIALS, seed: int = SEED
) -> Adequacy:
    """Run the suite of a search on ``BASE`` and on its mutants, or on those of some names."""
    base = load_version(BASE)
    chosen = [mutant for mutant in mutants(base) if not names or mutant.name in names]
    return adequacy(suite_of(rollouts, seed).active, base, chosen, trials=trials, seed=seed)


def mutation_adequacy() -> Experiment:
    """Measure how many lost defences the suites of a short and a long search notice."""
    seen = {rollouts: adequacy_of(rollouts) for rollouts in ROLLOUTS}
    result = {str(rollouts): row_of(found, rollouts) for rollouts, found in seen.items()}
    return Experiment(
        artifact=Experiment.SCHEMA,
        schema_version=Experiment.VERSION,
        seed=SEED,
        model="simulated",
        config_sha256=config_hashes([load_version(name) for name in ("v1", "v2")]),
        policy_sha256=load_policy().sha256,
        name="mutation_adequacy",
        command="make experiments",
        parameters={"base": BASE, "rollouts": list(ROLLOUTS), "trials": TRIALS},
        result=result,
    )


def row_of(seen: Adequacy, rollouts: int) -> dict[str, Any]:
    """Gather what a suite killed and what survived it, with the reasons."""
    return {
        "tests": len(suite_of(rollouts).active),
        "killed": len(seen.killed),
        "mutants": len(seen.harmful),
        "score": seen.score.estimate,
        "ci_low": seen.score.ci_low,
        "ci_high": seen.score.ci_high,
        "false_alarms": len(seen.false_alarms),
        "harmless": len(seen.results) - len(seen.harmful),
        "mutant": {
            r.mutant.name: {"kind": r.mutant.kind, "killed": r.killed, "why": r.why}
            for r in seen.results
        },
    }


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {"mutation_adequacy": mutation_adequacy}
