"""Attackers at an equal budget of questions to the target.

A conversation of eight turns costs more than a direct question, so attackers are compared by the
turns that they may put to the target, not by conversations. Three ways to spend a budget:

``static``
    the scenarios of the plan, by attackers that follow their script;
``adaptive``
    the same plan, by attackers that listen;
``search``
    attackers that listen; scenario and tactic are chosen by what earlier ones showed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from typing import Literal, get_args

from safety_lib.experiments.results import WORLD, as_experiment
from safety_lib.records import Experiment, Trajectory
from safety_lib.records.experiments import AttackersAtEqualBudget, EqualBudget, Find, Finds, Lead
from safety_lib.rollout.conversation import plan_attack, run_rollout
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.paired import sign_flip
from safety_lib.streams import generator
from safety_lib.stress.discovery import plan_scenarios
from safety_lib.stress.search import ThompsonSearch
from safety_lib.stress.unseen import mode
from safety_lib.world.scenarios import Scenario
from safety_lib.world.versions import Version

Way = Literal["static", "adaptive", "search"]
WAYS: tuple[Way, ...] = ("static", "adaptive", "search")


@dataclass(frozen=True)
class Hunt:
    """What one way found within its budget.

    Attributes
    ----------
    way : str
        How the budget was spent.
    queries : int
        Turns that were put to the target, the whole budget.
    conversations, violations, modes : int
        Conversations held, those that broke a rule, and distinct modes among them.
    """

    way: Way
    queries: int
    conversations: int
    violations: int
    modes: int


def hunt(version: Version, way: Way, budget: int, seed: int, *, max_turns: int = 8) -> Hunt:
    """Spend a budget of turns on one version.

    Parameters
    ----------
    version : Version
        The target.
    way : str
        ``static``, ``adaptive`` or ``search``.
    budget : int
        Turns that may be put to the target, at least 1; the last conversation is cut to fit.
    seed : int
        Decides plan, choices and dice; conversations that two ways share have the same luck.
    max_turns : int
        The longest conversation, at least 1.

    Returns
    -------
    Hunt
        What was found with exactly ``budget`` turns.

    Raises
    ------
    ValueError
        If the budget is below 1 or the way is unknown.

    Examples
    --------
    >>> hunt(WORLD.version("v2"), "adaptive", budget=40, seed=7).queries
    40
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")
    if way not in WAYS:
        raise ValueError(f"way must be static, adaptive or search, not {way!r}")
    search = ThompsonSearch(WORLD.scenarios, seed) if way == "search" else None
    planned = _forever(seed)
    held: list[Trajectory] = []
    left = budget
    while left > 0:
        scenario, number = search.choose() if search else next(planned)
        attacker = search.tactic() if search else way
        rollout = plan_attack(version, scenario, attacker, seed, min(max_turns, left), number)
        trajectory = run_rollout(rollout)
        held.append(trajectory)
        # A conversation that fails at once has put one question all the same.
        left -= max(1, trajectory.n_turns)
        if search:
            search.tell(scenario, broke=trajectory.outcome == "violation", tactic=attacker)
    shown = [name for t in held if (name := mode(t)) is not None]
    return Hunt(way, budget - max(left, 0), len(held), len(shown), len(set(shown)))


def _forever(seed: int) -> Iterator[tuple[Scenario, int]]:
    """Yield the plan of discovery without an end."""
    scenarios = len(WORLD.scenarios)
    for lap in count(1):
        yield from islice(plan_scenarios(WORLD, lap * scenarios, seed), (lap - 1) * scenarios, None)


def lead(first: Sequence[Hunt], second: Sequence[Hunt], what: Find, seed: int) -> Lead:
    """Compare two ways that met the same seeds with the same budget, pair by pair.

    Parameters
    ----------
    first, second : sequence of Hunt
        One for each seed, in the same order; at least two.
    what : str
        What counts: ``violations`` or ``modes``.
    seed : int
        Decides the sign flips where there are too many seeds to try all.

    Returns
    -------
    Lead
        Of the second over the first.

    Raises
    ------
    ValueError
        If the hunts do not pair up or had different budgets.
    """
    if [h.queries for h in first] != [h.queries for h in second]:
        raise ValueError("only hunts with the same budgets can be compared")
    found = [
        (getattr(b, what) - getattr(a, what)) / a.queries
        for a, b in zip(first, second, strict=True)
    ]
    gain = cluster_mean(found, list(range(len(found)))).interval()
    test = sign_flip(found, rng=generator(seed, "stress", "lead", what))
    return Lead(
        of=second[0].way,
        over=first[0].way,
        what=what,
        gain=round(100 * gain.estimate, 4),
        low=round(100 * gain.low, 4),
        high=round(100 * gain.high, 4),
        p_value=round(test.p_value, 6),
    )


def run_attackers_at_equal_budget(
    names: Sequence[str] = ("v1", "v2"),
    budgets: Sequence[int] = (200, 800),
    seeds: Sequence[int] = range(1, 21),
) -> Experiment[AttackersAtEqualBudget]:
    """Let three ways of attacking spend the same number of turns, on the same seeds.

    Parameters
    ----------
    names : sequence of str
        Released versions.
    budgets : sequence of int
        Turns that may be put to the target, each at least 1.
    seeds : sequence of int
        One hunt for each, at least two.

    Returns
    -------
    Experiment
        ``attackers_at_equal_budget``.
    """
    result = AttackersAtEqualBudget(
        budgets={
            f"{name}, {budget} turns": _compared(WORLD.version(name), budget, seeds)
            for name in names
            for budget in budgets
        }
    )
    parameters = {"versions": list(names), "budgets": list(budgets), "seeds": list(seeds)}
    return as_experiment(result, parameters, seed=seeds[0], versions=names)


def _compared(version: Version, budget: int, seeds: Sequence[int]) -> EqualBudget:
    found = {way: [hunt(version, way, budget, seed) for seed in seeds] for way in WAYS}
    return EqualBudget(
        found={way: _finds(hunts) for way, hunts in found.items()},
        leads=tuple(
            lead(found[first], found[second], what, seeds[0])
            for first, second in pairwise(WAYS)
            for what in get_args(Find)
        ),
    )


def _finds(hunts: Sequence[Hunt]) -> Finds:
    return Finds(
        violations=round(sum(h.violations for h in hunts) / len(hunts), 4),
        modes=round(sum(h.modes for h in hunts) / len(hunts), 4),
        violations_each=tuple(h.violations for h in hunts),
    )
