"""How an experiment becomes an artifact, and what several experiments begin from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from safety_lib.artifacts import CHECKOUT
from safety_lib.records import Experiment, Suite
from safety_lib.records.experiments import Estimate, Proportion, Result
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.stats.intervals import wilson
from safety_lib.stress.discovery import discover
from safety_lib.world import load_world
from safety_lib.world.versions import Version, config_hashes

WORLD = load_world("northwind")  # what experiments measure on: the example company
ARTIFACTS = CHECKOUT / "artifacts"
SEED = 7
TRIALS = 10  # of each test on each version


def as_experiment(
    result: Result, parameters: Mapping[str, Any], *, seed: int = SEED, versions: Sequence[str] = ()
) -> Experiment[Result]:
    """Return the artifact of an experiment with the simulated model.

    Parameters
    ----------
    result : ExperimentResult
        What came out; it says which experiment it is.
    parameters : mapping
        What it was run with.
    seed : int
        The run's seed.
    versions : sequence of str
        Released versions whose settings it depends on.

    Returns
    -------
    Experiment
        As it is written to ``artifacts/experiments/``.
    """
    return Experiment(
        artifact=Experiment.SCHEMA,
        schema_version=Experiment.VERSION,
        seed=seed,
        model="simulated",
        config_sha256=config_hashes(map(WORLD.version, versions)),
        world=WORLD.name,
        world_sha256=WORLD.sha256,
        name=result.NAME,
        command="make experiments",
        parameters=dict(parameters),
        result=result,
    )


def proportion(k: int, n: int) -> Proportion:
    """Return k of n with its Wilson interval, rounded as experiments store it."""
    rate = wilson(k, n)
    return Proportion(k=k, n=n, ci_low=round(rate.low, 4), ci_high=round(rate.high, 4))


def rounded_estimate(value: float, low: float, high: float) -> Estimate:
    """Return an estimate and its limits, rounded as experiments store them.

    Parameters
    ----------
    value, low, high : float
        The estimate and its 95% confidence limits.

    Returns
    -------
    Estimate
        To four places.
    """
    return Estimate(*(round(x, 4) + 0.0 for x in (value, low, high)))


def prompt_without(version: Version, rule_id: str) -> str:
    """Return the system prompt of a version with the sentence of one rule left out."""
    told = "\n".join(f"- {rule.text}" for rule in WORLD.policy.rules if rule.id != rule_id)
    return str(version.flat["system_prompt"]).replace("{policy}", told)


@cache
def mined_suite(versions: tuple[Version, ...], *, rollouts: int = 200, seed: int) -> Suite:
    """Search versions and make the suite, as the first two notebooks do.

    Parameters
    ----------
    versions : tuple of Version
        The first and the last are searched; the suite compares them.
    rollouts : int
        Attacked conversations with each, at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    Suite
        The same object for the same search, which takes seconds.
    """
    run = Run(seed=seed)
    found = discover(versions[0], versions[-1], run, rollouts=rollouts).artifact()
    return generate_suite(found, {version.version: version for version in versions}, run)
