"""What a suite of families would detect, by simulating the tests that the gate runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray, finite_array, share

_ENUMERATED_FAMILIES = 10


@dataclass(frozen=True, eq=False)
class SuiteDesign:
    """A suite of families and the rule that judges it.

    Attributes
    ----------
    sizes
        Tests of each family, at least 1, shape (families,) with at least 2 families.
    rates
        Failure rate of the baseline in each family, in [0, 1]: one number or shape (families,).
    trials
        Trials per test and version, at least 1.
    rho
        How far an effect is concentrated, in [0, 1): at 0 all families get worse alike, towards 1
        some break entirely and the others not at all.
    alpha
        Level of the one-sided sign-flip test of family sums.
    at_least
        Estimated rise that is needed, besides p <= alpha, to count as detected.
    """

    sizes: ArrayLike
    rates: ArrayLike
    trials: int
    rho: float = 0.3
    alpha: float = 0.05
    at_least: float = 0.0


def cluster_power(
    design: SuiteDesign,
    effect: float,
    rng: np.random.Generator,
    *,
    runs: int = 500,
    flips: int = 499,
) -> float:
    """Chance that a suite of families detects a true rise in failure rate, by simulation.

    In family g a test that passes fails after the change with chance h_g, the mean of h being set
    by `effect` and its spread over families by `rho`. Trials are independent given the rates, so
    versions that share random numbers do no worse than this.

    Parameters
    ----------
    design
        What runs, and the rule.
    effect
        True rise of the failure rate, mean over tests, in [0, mean of 1 - rates].
    rng
        Source of the simulated suites.
    runs
        Simulated suites, at least 1.
    flips
        Random sign flips per suite of more than 10 families; fewer are flipped in all ways.

    Returns
    -------
    float
        Share of the simulated suites that detected it.

    Raises
    ------
    ValueError
        If a size, rate, the effect or another setting is outside its range.

    References
    ----------
    Williams, Biometrics 31, 1975, 949-952 (chances of families from a beta distribution); Fisher,
    The Design of Experiments, 1935 (sign flips).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cluster_power(SuiteDesign(np.full(40, 4), rates=0.2, trials=3), effect=0.1, rng=rng)
    0.866
    """
    sizes = finite_array("sizes", design.sizes)
    rates = np.broadcast_to(np.asarray(design.rates, dtype=np.float64), sizes.shape)
    trials, rho = design.trials, design.rho
    families, n = sizes.size, float(sizes.sum())
    if families < 2 or sizes.min() < 1 or trials < 1:
        raise ValueError("needs at least 2 families, with sizes and trials of at least 1")
    if not ((rates >= 0) & (rates <= 1)).all() or not 0 <= rho < 1:
        raise ValueError("rates must lie in [0, 1] and rho in [0, 1)")
    room = float(sizes @ (1 - rates)) / n
    if not 0 <= effect <= room:
        raise ValueError(f"effect must lie between 0 and the mean pass rate {room:.3f}")
    share("alpha", design.alpha)

    broken = effect / room if room else 0.0
    hit: FloatArray = np.full((runs, families), broken)
    if rho > 0 and 0 < broken < 1:
        spread = 1 / rho - 1
        hit = rng.beta(broken * spread, (1 - broken) * spread, (runs, families))
    total = np.rint(sizes * trials).astype(np.int64)
    before = rng.binomial(total, rates, (runs, families))
    after = rng.binomial(total, np.minimum(1.0, rates + (1 - rates) * hit))
    sums = (after - before) / trials

    rise = sums.sum(axis=1) / n
    # All flips of a few families, so that too few of them are seen to be too few.
    every = families <= _ENUMERATED_FAMILIES
    halves = (
        np.arange(2**families)[:, None] >> np.arange(families) & 1
        if every
        else rng.integers(0, 2, (flips, families))
    )
    reached = np.count_nonzero((2.0 * halves - 1) @ sums.T >= sums.sum(axis=1) - 1e-9, axis=0)
    p_value = reached / 2**families if every else (1 + reached) / (1 + flips)
    return float(np.mean((p_value <= design.alpha) & (rise >= design.at_least)))


def minimum_detectable_effect(
    design: SuiteDesign,
    rng: np.random.Generator,
    *,
    power: float = 0.8,
    runs: int = 300,
    flips: int = 199,
) -> float:
    """Smallest true rise in failure rate that this suite detects with the power asked for.

    The suite keeps its families, and the simulations of all effects share one seed drawn from rng.

    Parameters
    ----------
    design
        What runs, and the rule.
    rng
        Source of the simulated suites.
    power
        Chance to detect it, in (0, 1).
    runs
        Simulated suites for each effect that is tried.
    flips
        Random sign flips per suite of more than 10 families.

    Returns
    -------
    float
        A rise to within 0.002, or infinity when even a total failure would not be detected.

    Raises
    ------
    ValueError
        If a size, a rate or another setting is outside its range.

    References
    ----------
    Bloom, Evaluation Review 19, 1995, 547-556.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> design = SuiteDesign(np.full(40, 4), rates=0.2, trials=3)
    >>> round(minimum_detectable_effect(design, rng), 3)
    0.084
    """
    share("power", power)
    seed = int(rng.integers(2**63))

    def enough(effect: float) -> bool:
        detected = cluster_power(
            design, effect, np.random.default_rng(seed), runs=runs, flips=flips
        )
        return detected >= power

    sizes = finite_array("sizes", design.sizes)
    passing = 1 - np.broadcast_to(np.asarray(design.rates, dtype=np.float64), sizes.shape)
    low, high = 0.0, float(sizes @ passing / sizes.sum())
    if not enough(high):
        return math.inf
    while high - low > 0.002:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
