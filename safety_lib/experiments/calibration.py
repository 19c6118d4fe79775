"""Experiments on how a search is planned and stopped.

Two questions need more rollouts than a notebook has time for. Does a short search say correctly how
much it has not seen, when a search eight times as long is held against it? And do the scenarios
that coverage suggests find more failures than those that the plan would take next?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safety_lib.experiments.results import WORLD, as_experiment, rounded_estimate
from safety_lib.records import Experiment, Trajectory
from safety_lib.records.experiments import Forecast, NextScenariosGain, UndiscoveredPrediction
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import plan_attack
from safety_lib.stats.clustered import cluster_mean
from safety_lib.streams import generator
from safety_lib.stress.coverage import coverage
from safety_lib.stress.discovery import plan_scenarios
from safety_lib.stress.unseen import mode, unseen
from safety_lib.world.versions import Version


@dataclass(frozen=True)
class Prediction:
    """What a short search predicted, and what came when it went on.

    Attributes
    ----------
    found, predicted, found_later : int, float, int
        Modes found, Chao1's estimate of all modes, and modes found by the whole search.
    missing, missing_later : float
        Good-Turing's share of failures to come that are of a new mode, and what it was in the next
        stretch, as long as the search had been.
    bound, next_new : float
        The 95% bound on the chance that one more rollout shows a new mode, and the share of
        rollouts of the rest of the long search that showed a mode the short one had not.
    """

    found: int
    predicted: float
    found_later: int
    missing: float
    missing_later: float
    bound: float
    next_new: float


def hold_search(version: Version, rollouts: int, seed: int) -> tuple[Trajectory, ...]:
    """Hold a search of adaptive attacks on one version, in the order of the plan.

    Parameters
    ----------
    version : Version
        The target.
    rollouts : int
        Conversations, at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    tuple of Trajectory
        One for each rollout.
    """
    plan = plan_scenarios(WORLD, rollouts, seed)
    return tuple(run_campaign([plan_attack(version, s, "adaptive", seed, 8, n) for s, n in plan]))


def predict(held: Sequence[Trajectory], short: int) -> Prediction:
    """Let the beginning of a search predict the rest of it.

    Parameters
    ----------
    held : sequence of Trajectory
        A long search against one version.
    short : int
        Rollouts of its beginning, at least 1 and at most half of it.

    Returns
    -------
    Prediction
        What was said after ``short`` rollouts, and what came.

    Raises
    ------
    ValueError
        If the beginning is more than half of the search.

    Examples
    --------
    >>> seen = predict(hold_search(WORLD.version("v2"), 40, seed=1), short=20)
    >>> seen.found <= seen.found_later
    True
    """
    if not 0 < 2 * short <= len(held):
        raise ValueError(f"short must be at most half of {len(held)} rollouts, not {short}")
    early, whole = unseen(held[:short]), unseen(held)
    following = [name for t in held[short : 2 * short] if (name := mode(t)) is not None]
    later = [mode(t) for t in held[short:]]
    new = [name not in early.modes for name in following]
    return Prediction(
        found=len(early.modes),
        predicted=early.chao1,
        found_later=len(whole.modes),
        missing=early.missing_mass,
        missing_later=float(np.mean(new)) if new else 0.0,
        bound=float(early.bound[-1]),
        next_new=float(np.mean([m is not None and m not in early.modes for m in later])),
    )


def run_undiscovered_prediction(
    name: str = "v2", short: int = 50, long: int = 400, seeds: Sequence[int] = range(1, 21)
) -> Experiment[UndiscoveredPrediction]:
    """Hold what short searches say about the unseen against long ones, over many seeds.

    Each search is taken in the order in which it was held and in a random order. The second makes
    its rollouts the exchangeable draws that the estimates ask for; the plan visits every scenario
    before any twice.

    Parameters
    ----------
    name : str
        The version that is searched.
    short, long : int
        Rollouts of the beginning of a search, and of all of it: at least twice as many.
    seeds : sequence of int
        One search for each, at least one.

    Returns
    -------
    Experiment
        ``undiscovered_prediction``.
    """
    planned: list[Prediction] = []
    shuffled: list[Prediction] = []
    for seed in seeds:
        held = hold_search(WORLD.version(name), long, seed)
        planned.append(predict(held, short))
        order = generator(seed, "stress", "shuffled").permutation(long)
        shuffled.append(predict([held[i] for i in order], short))
    result = UndiscoveredPrediction(
        searches=len(seeds), planned=_forecast(planned), shuffled=_forecast(shuffled)
    )
    parameters = {"version": name, "short": short, "long": long, "seeds": list(seeds)}
    return as_experiment(result, parameters, seed=seeds[0], versions=[name])


def _forecast(rows: Sequence[Prediction]) -> Forecast:
    return Forecast(
        found=_mean([p.found for p in rows]),
        found_later=_mean([p.found_later for p in rows]),
        chao1=_mean([p.predicted for p in rows]),
        chao1_each=tuple(round(p.predicted, 4) for p in rows),
        missing=_mean([p.missing for p in rows]),
        missing_later=_mean([p.missing_later for p in rows]),
        bound=_mean([p.bound for p in rows]),
        next_new=_mean([p.next_new for p in rows]),
        bound_held=sum(p.next_new <= p.bound for p in rows),
    )


def first_failures(version: Version, budget: int, more: int, seed: int) -> dict[str, int]:
    """Count the scenarios that broke for the first time within a few more rollouts, three ways.

    After a search of ``budget`` rollouts the next ``more`` go to the scenarios that coverage
    suggests, one each; to those that the plan takes next; or to the least tried ones that have not
    broken, which is what care without neighbours would do.

    Parameters
    ----------
    version : Version
        The target.
    budget : int
        Rollouts of the search, at least 1.
    more : int
        Rollouts after it, at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    dict
        ``suggested``, ``plan`` and ``least tried`` to a count in [0, more].

    Examples
    --------
    >>> sorted(first_failures(WORLD.version("v2"), budget=20, more=4, seed=1))
    ['least tried', 'plan', 'suggested']
    """
    plan = plan_scenarios(WORLD, budget + more, seed)
    held = tuple(
        run_campaign([plan_attack(version, s, "adaptive", seed, 8, n) for s, n in plan[:budget]])
    )
    laid = coverage(held, WORLD)
    broken = {t.scenario_id for t in held if t.outcome == "violation"}
    suggested = [s.scenario_id for s in laid.next_scenarios(more)]
    careful = sorted(
        (cell for cell in laid.scenarios if not cell.broke),
        key=lambda cell: (cell.tried, cell.goal, cell.family),
    )
    ways = {
        "suggested": suggested,
        "plan": [s.scenario_id for s, _ in plan[budget:]],
        "least tried": [f"{cell.goal}/{cell.family}" for cell in careful[:more]],
    }
    return {way: _newly_broken(version, ids, broken, seed) for way, ids in ways.items()}


def _newly_broken(version: Version, ids: Sequence[str], broken: set[str], seed: int) -> int:
    # A number beyond every plan's, so that no way meets the luck of a rollout that was held.
    rollouts = [plan_attack(version, WORLD.scenario(i), "adaptive", seed, 8, 1000) for i in ids]
    return len({t.scenario_id for t in run_campaign(rollouts) if t.outcome == "violation"} - broken)


def run_next_scenarios_gain(
    name: str = "v2", budget: int = 30, more: int = 8, seeds: Sequence[int] = range(1, 41)
) -> Experiment[NextScenariosGain]:
    """Compare what coverage suggests with what the plan would take next, over many seeds.

    Parameters
    ----------
    name : str
        The version that is searched.
    budget, more : int
        As in :func:`first_failures`.
    seeds : sequence of int
        One search for each, at least two.

    Returns
    -------
    Experiment
        ``next_scenarios_gain``.
    """
    counts = [first_failures(WORLD.version(name), budget, more, seed) for seed in seeds]
    paired = [(c["suggested"] - c["plan"]) / more for c in counts]  # shares, in [-1, 1]
    gain = cluster_mean(paired, list(seeds)).interval()
    result = NextScenariosGain(
        first_failures={way: _mean([c[way] for c in counts]) for way in counts[0]},
        suggested_each=tuple(c["suggested"] for c in counts),
        gain_over_plan=rounded_estimate(*(more * x for x in (gain.estimate, gain.low, gain.high))),
        searches=len(counts),
    )
    parameters = {"version": name, "budget": budget, "more": more, "seeds": list(seeds)}
    return as_experiment(result, parameters, seed=seeds[0], versions=[name])


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
