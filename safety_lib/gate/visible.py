"""What a suite can see: the smallest losses that the sequential decision blocks, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safety_lib.gate.looks import LookPlan
from safety_lib.stats.intervals import FloatArray, share
from safety_lib.stats.strata import UNSEEN_FAILURES
from safety_lib.text import Shown

LossPlace = Literal["spread", "half", "one"]
_STEPS = 8


@dataclass(frozen=True, eq=False, repr=False)
class VisibleDesign(Shown):
    """A suite as the simulation needs it.

    Attributes
    ----------
    families : sequence of str
        Family of each test.
    failing : ndarray
        Failure rate of the baseline on each test, in [0, 1].
    flips : ndarray
        Where luck is shared: share of the pairs of each test that would come out differently,
        to both sides alike, if nothing were worse. Not used where luck is independent.
    plan : LookPlan
        Looks, luck and error shares.
    """

    families: Sequence[str]
    failing: FloatArray
    flips: FloatArray
    plan: LookPlan

    @property
    def groups(self) -> NDArray[np.bool_]:
        """Which tests each family has, shape (families, tests)."""
        names = list(dict.fromkeys(self.families))
        return np.array([[f == name for f in self.families] for name in names])


@dataclass(frozen=True, repr=False)
class VisibleLoss(Shown):
    """Smallest loss that is blocked with the power asked for, by where it sits.

    Each is the loss in pass rate of the tests that lose, in (0, 1]: all tests, those of half of
    the families, those of one. None where not even a total loss would be seen.

    Examples
    --------
    >>> print(VisibleLoss(0.8, 0.055, 0.102, None))
    80% power: 5.5 points in every family, 10.2 in half of them, no loss in one alone
    """

    power: float
    spread: float | None
    half: float | None
    one: float | None

    def __str__(self) -> str:
        def said(loss: float | None) -> str:
            return "no loss" if loss is None else f"{100 * loss:.1f}"

        every = "no loss" if self.spread is None else f"{100 * self.spread:.1f} points"
        return (
            f"{100 * self.power:.0f}% power: {every} in every family, {said(self.half)} in half "
            f"of them, {said(self.one)} in one alone"
        )


def visible_loss(
    design: VisibleDesign, seed: int, *, power: float = 0.8, runs: int = 400
) -> VisibleLoss:
    """Find the smallest losses that a suite blocks with some power.

    The suite's question and the family rule with its confirmation are simulated at every look;
    critical tests would see more, so these are upper limits. P-values are normal with continuity
    correction. All losses are tried on the same random numbers.

    Parameters
    ----------
    design : VisibleDesign
        The suite and the looks.
    seed : int
        Decides the draws.
    power : float
        Chance to block, in (0, 1).
    runs : int
        Simulated gates for each loss that is tried.

    Returns
    -------
    VisibleLoss
        To within 1 / 256 of the largest loss.

    Raises
    ------
    ValueError
        If power is not in (0, 1).
    """
    share("power", power)

    def smallest(where: LossPlace) -> float | None:
        low, high = 0.0, 1.0
        if block_chance(design, high, where, seed, runs=runs) < power:
            return None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            seen = block_chance(design, middle, where, seed, runs=runs) >= power
            low, high = (low, middle) if seen else (middle, high)
        return high

    return VisibleLoss(power, smallest("spread"), smallest("half"), smallest("one"))


def block_chance(
    design: VisibleDesign, loss: float, where: LossPlace, seed: int, *, runs: int = 400
) -> float:
    """Chance that the suite's question or the family rule blocks a loss.

    Parameters
    ----------
    design : VisibleDesign
        The suite and the looks.
    loss : float
        Loss in pass rate of the tests that lose, in [0, 1]; a test that passes less often than
        that loses all it has.
    where : "spread", "half" or "one"
        In every family, in a random half of them, or in a random one.
    seed : int
        Decides the draws.
    runs : int
        Simulated gates.

    Returns
    -------
    float
        In [0, 1].
    """
    rng = np.random.default_rng(seed)
    groups, plan = design.groups, design.plan
    families = len(groups)
    losing = {"spread": families, "half": (families + 1) // 2, "one": 1}[where]
    ranks = rng.random((runs, families)).argsort(axis=1).argsort(axis=1)
    hit = (ranks < losing) @ groups.astype(np.int64)
    worse_rate = np.minimum(design.failing + loss * hit, 1.0)
    first = _Losses(design, worse_rate, plan.looks, rng)
    again = _Losses(design, worse_rate, plan.rules.confirm_looks, rng)
    rules = plan.left
    everything = np.ones(groups.shape[1], dtype=np.bool_)
    ok_z = np.array(plan.boundaries(rules.wrong_ok))
    suite_open = _open(first.inside(everything, rules.suite_margin) >= ok_z)
    z, _ = first.lost(everything)
    # At a look that settles the question nothing is blocked any more.
    crosses = (z >= np.array(plan.boundaries(rules.suite_block))) & suite_open[:, 1:]
    blocked = np.asarray(crosses.any(axis=1))
    bounds = np.array(plan.confirm_boundaries(rules.family_block / families))
    family_z = np.array(plan.boundaries(rules.wrong_ok / 2))
    clear_z = np.array(plan.confirm_boundaries(rules.wrong_ok / 2))
    screen = plan.level_z(rules.screen)
    for tests in groups:
        family_open = _open(first.inside(tests, rules.family_margin) >= family_z)
        z, lost = first.lost(tests)
        tried = suite_open[:, :-1] | family_open[:, :-1]
        suspected = ((z >= screen) & (lost >= rules.family_loss) & tried).any(axis=1)
        unclear = _open(again.inside(tests, rules.family_margin) >= clear_z)[:, :-1]
        z, lost = again.lost(tests)
        confirmed = ((z >= bounds) & (lost >= rules.family_loss) & unclear).any(axis=1)
        blocked |= suspected & confirmed
    return float(blocked.mean())


def _open(settled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a question is open before each look, and after the last, shape (runs, looks + 1)."""
    start = np.ones((len(settled), 1), dtype=np.bool_)
    return np.concatenate([start, ~np.logical_or.accumulate(settled, axis=1)], axis=1)


class _Losses:
    """Simulated counts of every test at every look, shape (runs, tests, looks)."""

    def __init__(
        self,
        design: VisibleDesign,
        worse_rate: FloatArray,
        looks: Sequence[int],
        rng: np.random.Generator,
    ) -> None:
        self.shared = design.plan.luck == "shared"
        self.looks = np.array(looks)
        steps = np.diff([0, *looks])
        shape = (*worse_rate.shape, len(looks))
        base = np.broadcast_to(design.failing, worse_rate.shape)[:, :, None]
        if self.shared:
            lost = worse_rate - design.failing
            flips = np.minimum(np.broadcast_to(design.flips, lost.shape), 1 - lost) / 2
            better = rng.binomial(steps, flips[:, :, None], shape)
            worse = rng.binomial(steps - better, ((lost + flips) / (1 - flips))[:, :, None])
            self.before, self.after = better.cumsum(axis=2), worse.cumsum(axis=2)
        else:
            self.before = rng.binomial(steps, base, shape).cumsum(axis=2)
            self.after = rng.binomial(steps, worse_rate[:, :, None], shape).cumsum(axis=2)

    def lost(self, tests: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
        """Z of a loss over some tests, and the observed loss, shape (runs, looks)."""
        before, after = self.before[:, tests], self.after[:, tests]
        n = self.looks
        change = (after - before).sum(axis=1)
        failed = before + after
        if self.shared:
            variance = failed.sum(axis=1).astype(np.float64)
        else:
            # Twice the hypergeometric deviation of the candidate's failures, n1 = n2 = n.
            variance = (failed * (2 * n - failed) / np.maximum(2 * n - 1, 1)).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(variance > 0, (change - 1) / np.sqrt(variance), -np.inf)
        return z, change / (n * tests.sum())

    def inside(self, tests: NDArray[np.bool_], margin: float) -> FloatArray:
        """How many standard errors the loss stays inside a margin, shape (runs, looks)."""
        before, after = self.before[:, tests], self.after[:, tests]
        n, count = self.looks, tests.sum()
        delta = (before - after).sum(axis=1) / (n * count)
        if self.shared:
            each = (before + after - (before - after) ** 2 / n) / (n * np.maximum(n - 1, 1))
        else:
            each = sum(k * (n - k) / (n**2 * np.maximum(n - 1, 1)) for k in (before, after))
        unseen = 2 * UNSEEN_FAILURES / (n * count) ** 2
        inside: FloatArray = (delta + margin) / np.sqrt(each.sum(axis=1) / count**2 + unseen)
        return inside
