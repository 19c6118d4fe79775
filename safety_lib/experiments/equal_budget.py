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
from itertools import count, islice
from typing import Any, Literal

from safety_lib.agent.versions import Version, load_version
from safety_lib.attack.scenarios import Scenario, all_scenarios
from safety_lib.experiments.results import as_experiment
from safety_lib.records import Experiment, Trajectory
from safety_lib.rollout.conversation import attack, run_rollout
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.paired import SignFlip, sign_flip
from safety_lib.streams import generator
from safety_lib.stress.discovery import plan_scenarios
from safety_lib.stress.search import ThompsonSearch
from safety_lib.stress.unseen import mode

Way = Literal["static", "adaptive", "search"]


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

    def __str__(self) -> str:
        return (
            f"{self.way}: {self.violations} violations of {self.modes} modes in {self.queries} "
            f"turns ({self.conversations} conversations)"
        )


def hunt(
    version: Version, way: Way, budget: int, seed: int, *, max_turns: int = 8, model: str = ""
) -> Hunt:
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
        The longest conversation.
    model : str, optional
        The model to use in place of the one that the version names.

    Raises
    ------
    ValueError
        If the budget is below 1 or the way is unknown.

    Examples
    --------
    >>> from safety_lib.agent.versions import load_version
    >>> hunt(load_version("v2"), "adaptive", budget=40, seed=7).queries
    40
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")
    if way not in ("static", "adaptive", "search"):
        raise ValueError(f"way must be static, adaptive or search, not {way!r}")
    search = ThompsonSearch(all_scenarios(), seed) if way == "search" else None
    planned = _forever(seed)
    held: list[Trajectory] = []
    left = budget
    while left > 0:
        scenario, number = search.choose() if search else next(planned)
        attacker = search.tactic() if search else way
        job = attack(version, scenario, attacker, seed, min(max_turns, left), number)
        trajectory = run_rollout(job, model)
        held.append(trajectory)
        # A conversation that fails at once has put one question all the same.
        left -= max(1, trajectory.n_turns)
        if search:
            search.tell(scenario, broke=trajectory.outcome == "violation", tactic=attacker)
    shown = [name for t in held if (name := mode(t)) is not None]
    return Hunt(way, budget - max(left, 0), len(held), len(shown), len(set(shown)))


def _forever(seed: int) -> Iterator[tuple[Scenario, int]]:
    """Yield the plan of discovery without an end."""
    scenarios = len(all_scenarios())
    for lap in count(1):
        yield from islice(plan_scenarios(lap * scenarios, seed), (lap - 1) * scenarios, None)


@dataclass(frozen=True)
class Lead:
    """How much more one way found than another at the same budget, over many seeds.

    ``gain`` is a mean for each hundred turns, with its t interval over seeds; the sign-flip test
    asks whether a lead of either sign could be luck.
    """

    what: Literal["violations", "modes"]
    ways: tuple[Way, Way]
    gain: float
    low: float
    high: float
    test: SignFlip

    def __str__(self) -> str:
        return (
            f"{self.ways[1]} against {self.ways[0]}: {self.gain:+.2f} {self.what} "
            f"[{self.low:+.2f}, {self.high:+.2f}] for each hundred turns, "
            f"p = {self.test.p_value:.4f} ({self.test.families} seeds)"
        )


def lead(
    first: Sequence[Hunt], second: Sequence[Hunt], what: Literal["violations", "modes"], seed: int
) -> Lead:
    """Compare two ways that met the same seeds with the same budget, pair by pair.

    Parameters
    ----------
    first, second : sequence of Hunt
        One for each seed, in the same order; at least two.
    what : str
        What counts: ``violations`` or ``modes``.
    seed : int
        Decides the sign flips where there are too many seeds to try all.

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
    return Lead(
        what=what,
        ways=(first[0].way, second[0].way),
        gain=round(100 * gain.estimate, 4),
        low=round(100 * gain.low, 4),
        high=round(100 * gain.high, 4),
        test=sign_flip(found, rng=generator(seed, "stress", "lead", what)),
    )


WAYS: tuple[Way, ...] = ("static", "adaptive", "search")


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
    return as_experiment("attackers_at_equal_budget", seeds[0], parameters, result, names)


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
