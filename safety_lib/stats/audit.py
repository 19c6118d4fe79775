"""Positives in a finite population, from a random sample of it without replacement.

A production log is finite: once half of it has been audited, only the other half is uncertain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import share, whole_number, z_value
from safety_lib.text import Shown


def hypergeometric_upper(
    k: int, n: int, population: int, level: float = 0.95, *, mid_p: bool = False
) -> int:
    """Exact one-sided upper bound on the positives in a finite population.

    The largest number of positives under which a random sample of n without replacement shows k
    or fewer with a probability above 1 - level. With ``mid_p`` it is no longer a guarantee, but
    right on average, where the exact bound is too wide because counts are whole numbers.

    Parameters
    ----------
    k, n
        Positives among the n that were sampled, whole numbers with 0 <= k <= n.
    population
        Size of the population, at least n. With n = 0 the bound is the whole population.
    level
        One-sided confidence level in (0, 1).
    mid_p
        Count the probability of exactly k half.

    Returns
    -------
    int
        A count in [k, population - (n - k)].

    Raises
    ------
    ValueError
        If the counts are not 0 <= k <= n <= population, or level is not in (0, 1).

    References
    ----------
    Buonaccorsi, The American Statistician 41, 1987, 215-218.

    Examples
    --------
    >>> hypergeometric_upper(0, 300, 10_000)
    97
    """
    k, n, population = (
        whole_number("k", k),
        whole_number("n", n),
        whole_number("population", population),
    )
    if not k <= n <= population:
        raise ValueError(f"needs k <= n <= population, not {k}, {n}, {population}")
    alpha = 1 - share("level", level)
    low, high = k, population - (n - k)
    while low < high:
        middle = (low + high + 1) // 2
        if _hypergeometric_cdf(k, n, population, middle, mid_p=mid_p) > alpha:
            low = middle
        else:
            high = middle - 1
    return low


def _hypergeometric_cdf(k: int, n: int, population: int, positives: int, *, mid_p: bool) -> float:
    """Chance to draw k positives or fewer, for k <= positives."""
    from scipy.special import gammaln

    def log_choose(a: Any, b: Any) -> Any:
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)  # -inf where b > a

    x = np.arange(k + 1)
    ways = log_choose(positives, x) + log_choose(population - positives, n - x)
    probability = np.exp(ways - log_choose(population, n))
    if mid_p:
        probability[-1] /= 2
    return float(probability.sum())


def hypergeometric_lower(
    k: int, n: int, population: int, level: float = 0.95, *, mid_p: bool = False
) -> int:
    """Exact one-sided lower bound on the positives in a finite population.

    The mirror image of `hypergeometric_upper`: what is not positive is bounded from above.

    Parameters
    ----------
    k, n
        Positives among the n that were sampled, whole numbers with 0 <= k <= n.
    population
        Size of the population, at least n. With n = 0 the bound is 0.
    level
        One-sided confidence level in (0, 1).
    mid_p
        Count the probability of exactly k half.

    Returns
    -------
    int
        A count in [k, population - (n - k)].

    Raises
    ------
    ValueError
        If the counts are not 0 <= k <= n <= population, or level is not in (0, 1).

    References
    ----------
    Buonaccorsi, The American Statistician 41, 1987, 215-218.

    Examples
    --------
    >>> hypergeometric_lower(5, 100, 1_000)
    21
    """
    return int(population) - hypergeometric_upper(n - k, n, population, level, mid_p=mid_p)


@dataclass(frozen=True, slots=True, repr=False)
class StratifiedEstimate(Shown):
    """Positives in a stratified population with bounds; result of `stratified_audit`.

    Examples
    --------
    >>> print(stratified_audit([1_000, 19_000], [100, 300], [70, 0]))
    700 of 20000 [592, 1066]
    """

    total: float
    low: float
    high: float
    population: int
    level: float
    method: str

    def __str__(self) -> str:
        return f"{self.total:.0f} of {self.population} [{self.low:.0f}, {self.high:.0f}]"


def stratified_audit(
    sizes: ArrayLike,
    audited: ArrayLike,
    positive: ArrayLike,
    level: float = 0.95,
    method: Literal["hypergeometric", "mover", "normal"] = "hypergeometric",
) -> StratifiedEstimate:
    """Estimate sum_h N_h x_h / n_h from a random audit of n_h of the N_h in each stratum.

    The hypergeometric interval adds up exact bounds per stratum at level 1 - (1 - level) / H
    (Bonferroni over the H strata): conservative, and valid when an audit finds nothing. The mover
    interval takes mid-p bounds per stratum at the level itself and adds their distances from the
    estimates as squares (method of variance estimates recovery), so that it covers about as often
    as it says, and still tells how much an audit that found nothing can have missed. The normal
    interval uses the Horvitz-Thompson variance with finite-population correction; where a stratum
    shows no variation, its variance is that of (x + 1) / (n + 2).

    Parameters
    ----------
    sizes, audited, positive
        N_h, n_h and x_h of each stratum, 0 <= x_h <= n_h <= N_h, shape (strata,). n_h >= 1 unless
        the stratum is empty.
    level
        Two-sided confidence level in (0, 1).
    method
        Which interval.

    Returns
    -------
    StratifiedEstimate
        `total` is the estimated count; its bounds leave out neither the positives that were seen
        nor more than what was not seen to be negative.

    Raises
    ------
    ValueError
        If the shapes differ, the counts are impossible, a non-empty stratum was not audited, all
        strata are empty, level is not in (0, 1) or the method is unknown.

    References
    ----------
    Cochran, Sampling Techniques, 3rd ed., 1977, chapters 3 and 5; Buonaccorsi, The American
    Statistician 41, 1987; Zou and Donner, Statistics in Medicine 27, 2008, 1693-1702 (mover).

    Examples
    --------
    >>> stratified_audit([1_000, 19_000], [100, 300], [70, 0]).total
    700.0
    """
    columns = [np.atleast_1d(np.asarray(x)) for x in (sizes, audited, positive)]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise ValueError("sizes, audited and positive must have one shape")
    strata = [
        (whole_number("sizes", size), whole_number("audited", n), whole_number("positive", x))
        for size, n, x in zip(*columns, strict=True)
        if size != 0
    ]
    if not strata:
        raise ValueError("needs at least one stratum that is not empty")
    if not all(x <= n <= size and n >= 1 for size, n, x in strata):
        raise ValueError("needs 0 <= positive <= audited <= sizes and audited >= 1 in each stratum")
    population = sum(size for size, _, _ in strata)
    total = sum(size * x / n for size, n, x in strata)
    if method == "hypergeometric":
        tail = (1 - share("level", level)) / (2 * len(strata))
        low: float = sum(hypergeometric_lower(x, n, size, 1 - tail) for size, n, x in strata)
        high: float = sum(hypergeometric_upper(x, n, size, 1 - tail) for size, n, x in strata)
    elif method == "mover":
        tail = (1 - share("level", level)) / 2
        below = above = 0.0
        for size, n, x in strata:
            estimate = size * x / n
            below += (estimate - hypergeometric_lower(x, n, size, 1 - tail, mid_p=True)) ** 2
            above += (hypergeometric_upper(x, n, size, 1 - tail, mid_p=True) - estimate) ** 2
        seen = sum(x for _, _, x in strata)
        unseen = sum(size - n for size, n, _ in strata)
        low = max(float(seen), total - math.sqrt(below))
        high = min(float(seen + unseen), total + math.sqrt(above))
    elif method == "normal":
        half = z_value(level) * math.sqrt(sum(_variance(*stratum) for stratum in strata))
        seen = sum(x for _, _, x in strata)
        unseen = sum(size - n for size, n, _ in strata)
        low, high = max(float(seen), total - half), min(float(seen + unseen), total + half)
    else:
        raise ValueError(f"method must be hypergeometric, mover or normal, not {method!r}")
    return StratifiedEstimate(total, low, high, population, level, method)


def _variance(size: int, n: int, x: int) -> float:
    p, df = (x / n, n - 1) if 0 < x < n else ((x + 1) / (n + 2), n)
    return size**2 * (1 - n / size) * p * (1 - p) / df
