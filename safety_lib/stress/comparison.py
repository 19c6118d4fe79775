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
from typing import Literal

import numpy as np

from safety_lib.agent.versions import Version
from safety_lib.attack.mutators import mutators
from safety_lib.attack.scenarios import Scenario, all_scenarios
from safety_lib.records import Trajectory
from safety_lib.rollout.conversation import attack, run
from safety_lib.stats.clustered import cluster_mean
from safety_lib.stats.paired import SignFlip, sign_flip
from safety_lib.streams import generator
from safety_lib.stress.discovery import plan_scenarios
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


class ThompsonSearch:
    """Chooses scenarios by Thompson sampling, with less and less for what has broken before.

    For every scenario a chance to break is drawn from a beta distribution: its own attacks, and a
    prior worth two attacks at the rate of its neighbours, the scenarios of the same goal or family.
    The draw is divided by the square of one more than its violations: what broke is likely to break
    again, but in a way that is known. The tactic, no mutator or one of them on top of the family's
    own words, is drawn beside it by what each of them broke on all scenarios.

    References
    ----------
    Thompson, Biometrika 25, 1933; Russo et al., A Tutorial on Thompson Sampling, 2018.

    Examples
    --------
    >>> search = ThompsonSearch(all_scenarios(), seed=1)
    >>> for _ in range(3):
    ...     scenario, number = search.choose()
    ...     search.tell(scenario, broke=False)
    """

    PRIOR = 2.0

    def __init__(self, scenarios: Sequence[Scenario], seed: int) -> None:
        self._scenarios = scenarios
        self._seed = seed
        self._place = {s.scenario_id: i for i, s in enumerate(scenarios)}
        family = np.array([s.family_id for s in scenarios])
        goal = np.array([s.goal_id for s in scenarios])
        near = (family[:, None] == family) | (goal[:, None] == goal)
        self._near = (near & ~np.eye(len(scenarios), dtype=bool)).astype(np.float64)
        self._tried = np.zeros(len(scenarios))
        self._broke = np.zeros(len(scenarios))
        self._tactics = ("adaptive", *(f"adaptive+{name}" for name in mutators()))
        self._tactic_tried = np.zeros(len(self._tactics))
        self._tactic_broke = np.zeros(len(self._tactics))

    def choose(self) -> tuple[Scenario, int]:
        """Return the scenario to attack next, and the number of the attack on it."""
        beside = (self._near @ self._broke + 0.5) / (self._near @ self._tried + 1)
        rng = generator(self._seed, "stress", "search", int(self._tried.sum()))
        chance = rng.beta(
            self.PRIOR * beside + self._broke,
            self.PRIOR * (1 - beside) + self._tried - self._broke,
        )
        place = int(np.argmax(chance / (1 + self._broke) ** 2))
        return self._scenarios[place], int(self._tried[place])

    def tactic(self) -> str:
        """Return the attacker to send next, such as ``adaptive`` or ``adaptive+urgency``."""
        rng = generator(self._seed, "stress", "tactic", int(self._tactic_tried.sum()))
        held = self._tactic_tried - self._tactic_broke
        return self._tactics[int(np.argmax(rng.beta(1 + self._tactic_broke, 1 + held)))]

    def tell(self, scenario: Scenario, *, broke: bool, tactic: str = "adaptive") -> None:
        """Learn what an attack on a scenario showed."""
        place = self._place[scenario.scenario_id]
        self._tried[place] += 1
        self._broke[place] += broke
        used = self._tactics.index(tactic)
        self._tactic_tried[used] += 1
        self._tactic_broke[used] += broke


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
        trajectory = run(job, model)
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
