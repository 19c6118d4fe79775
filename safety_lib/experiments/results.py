"""How an experiment becomes an artifact, and what several experiments begin from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from safety_lib.agent.versions import Version, config_hashes, load_version
from safety_lib.policy import load_policy
from safety_lib.records import Experiment, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.stats.intervals import wilson
from safety_lib.stress.discovery import discover

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"


def as_experiment(
    name: str,
    seed: int,
    parameters: dict[str, Any],
    result: dict[str, Any],
    versions: Sequence[str] = (),
) -> Experiment:
    """Return the artifact of an experiment with the simulated model.

    Parameters
    ----------
    name : str
        The experiment, and the name of its file.
    seed : int
        The run's seed.
    parameters, result : dict
        What it was run with, and what came out.
    versions : sequence of str
        Released versions whose settings it depends on.
    """
    return Experiment(
        artifact=Experiment.SCHEMA,
        schema_version=Experiment.VERSION,
        seed=seed,
        model="simulated",
        config_sha256=config_hashes([load_version(version) for version in versions]),
        policy_sha256=load_policy().sha256,
        name=name,
        command="make experiments",
        parameters=parameters,
        result=result,
    )


def k_of_n(k: int, n: int) -> dict[str, Any]:
    """Return k of n with its Wilson interval, as experiments store it."""
    rate = wilson(k, n)
    return {"k": k, "n": n, "ci_low": round(rate.low, 4), "ci_high": round(rate.high, 4)}


@cache
def mined_suite(versions: tuple[Version, ...], *, rollouts: int = 50, seed: int) -> Suite:
    """Search both versions and make the suite, as the first two notebooks do."""
    run = Run(seed=seed)
    found = discover(versions[0], versions[-1], run, rollouts=rollouts).artifact()
    return generate_suite(found, {version.version: version for version in versions}, run)
