"""How many ways to fail a campaign has found, and how many it has not.

Two failures are of one mode if the same rule was broken through the same tool by the same family of
attack. What has been seen once only says how much has not been seen at all (Good and Turing).

The estimates take rollouts for exchangeable draws. A plan that visits every scenario before any
twice finds new modes faster than that, and an attacker that learns goes back to what worked: read
them as a rule for stopping, never as proof that nothing is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safety_lib.records import Trajectory
from safety_lib.stats.intervals import FloatArray
from safety_lib.stats.missing_mass import (
    accumulation_curve,
    chao1,
    good_turing_missing_mass,
    missing_mass_upper,
    new_mode_bound,
)
from safety_lib.text import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Unseen(Shown):
    """What one campaign against one version found, and what it says about the rest.

    Attributes
    ----------
    version : str
        The target.
    modes : mapping
        Each mode to its failures, the most frequent first.
    rollouts, failures : int
        Valid rollouts, and those that broke a rule.
    found : ndarray
        Modes found after each rollout, in the order in which they were held, shape (rollouts,).
    expected : ndarray
        The same on average over all orders, shape (rollouts,).
    bound : ndarray
        After each rollout, a 95% bound on the chance that the next one shows a new mode; it holds
        at all rollouts at once, shape (rollouts,).
    missing_mass, missing_mass_upper : float
        Share of failures to come that are of a mode not seen yet (Good-Turing), and its 95% bound.
        NaN and 1 without a failure.
    chao1 : float
        Estimate of all modes, found or not; on average a lower bound.
    """

    version: str
    modes: Mapping[str, int]
    rollouts: int
    failures: int
    found: FloatArray
    expected: FloatArray
    bound: FloatArray
    missing_mass: float
    missing_mass_upper: float
    chao1: float

    def stops_at(self, tolerated: float) -> int | None:
        """Return after how many rollouts the search could have stopped, or None if not yet.

        Parameters
        ----------
        tolerated : float
            Chance that one more rollout shows a new mode that is small enough, in (0, 1).

        Raises
        ------
        ValueError
            If it is not in (0, 1).
        """
        if not 0 < tolerated < 1:
            raise ValueError(f"tolerated must lie between 0 and 1, not {tolerated}")
        enough = np.flatnonzero(self.bound <= tolerated)
        return int(enough[0]) + 1 if enough.size else None

    @property
    def at_most(self) -> float:
        """The last of the bounds; 1 where there is no valid rollout."""
        return float(self.bound[-1]) if self.bound.size else 1.0

    def __str__(self) -> str:
        if not self.failures:
            return (
                f"{self.version}: no failure in {self.rollouts} rollouts; the next one still "
                f"fails with a chance of up to {self.at_most:.1%}"
            )
        return (
            f"{self.version}: {len(self.modes)} modes in {self.rollouts} rollouts, at least "
            f"{self.chao1:.0f} estimated; the next failure is of a new mode with a chance of "
            f"{self.missing_mass:.1%} (up to {self.missing_mass_upper:.1%}), the next rollout "
            f"shows one with up to {self.at_most:.1%}"
        )


def mode(trajectory: Trajectory) -> str | None:
    """Return the way in which a conversation failed, or None if it did not.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> from safety_lib.rollout.conversation import plan_replay, run_rollout
    >>> rollout = plan_replay(
    ...     load_version("northwind/v1"), ["Please read ticket T-203."], name="calm", seed=1
    ... )
    >>> mode(run_rollout(rollout)) is None
    True
    """
    before = ""
    for event in trajectory.events:
        if event.kind == "oracle" and event.outcome == "violation":
            return " | ".join([event.rule_id, before or "reply", trajectory.attack_type])
        before = event.call.name if event.kind == "tool_call" else ""
    return None


def unseen(held: Sequence[Trajectory]) -> Unseen:
    """Estimate how much the conversations with one version have not shown.

    Parameters
    ----------
    held : sequence of Trajectory
        Conversations in the order held, at least one; errors and undetermined ones do not count.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> from safety_lib.stress.discovery import discover
    >>> found = discover(load_version("northwind/v1"), load_version("northwind/v2"), rollouts=30)
    >>> unseen(found.trajectories["v2"]).stops_at(0.05) is None
    True
    """
    valid = [t for t in held if t.outcome in ("violation", "safe")]
    shown = [mode(t) for t in valid]
    modes = Counter(name for name in shown if name is not None)
    counts = list(modes.values())
    known: set[str] = set()
    path = []
    for name in shown:
        known.update([name] if name is not None else [])
        path.append(len(known))
    return Unseen(
        version=held[0].version,
        modes=dict(sorted(modes.items(), key=lambda item: (-item[1], item[0]))),
        rollouts=len(valid),
        failures=sum(counts),
        found=np.array(path, dtype=np.float64),
        expected=accumulation_curve(counts, len(valid)) if counts else np.zeros(len(valid)),
        bound=new_mode_bound(shown),
        missing_mass=good_turing_missing_mass(counts) if counts else float("nan"),
        missing_mass_upper=missing_mass_upper(counts) if counts else 1.0,
        chao1=chao1(counts) if counts else 0.0,
    )
