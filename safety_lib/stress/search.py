"""The attacker of a whole campaign (L3): it chooses where and how to attack next.

Each conversation is held by an attacker that listens; which scenario it goes for, and with which
mutator, is decided by what all conversations before it showed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safety_lib.attack.mutators import mutators
from safety_lib.streams import generator
from safety_lib.world.scenarios import Scenario


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
    >>> from safety_lib.world import load_world
    >>> search = ThompsonSearch(load_world("northwind").scenarios, seed=1)
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
        """Learn what an attack on a scenario showed.

        Parameters
        ----------
        scenario : Scenario
            What was tried.
        broke : bool
            Whether a rule broke.
        tactic : str
            The attacker that was chosen.
        """
        place = self._place[scenario.scenario_id]
        self._tried[place] += 1
        self._broke[place] += broke
        used = self._tactics.index(tactic)
        self._tactic_tried[used] += 1
        self._tactic_broke[used] += broke
