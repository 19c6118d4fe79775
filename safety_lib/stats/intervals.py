"""Intervals for one rate, and the two result types that every other module returns.

Wilson is for display, Clopper-Pearson's exact bound for guarantees. Nothing here has zero width
when nothing failed: a sample without failures bounds the rate, it does not prove it to be zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.text import Shown

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, repr=False)
class Interval(Shown):
    """An estimate between its bounds; the estimate is NaN where it is undefined.

    Examples
    --------
    >>> print(Interval(-0.2857, -0.5172, -0.0260, 0.95, "tango"))
    -0.286 [-0.517, -0.026]
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str

    def __str__(self) -> str:
        shown = "undefined" if math.isnan(self.estimate) else f"{self.estimate:.3f}"
        return f"{shown} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, repr=False)
class Rate(Shown):
    """k of n with an interval for the rate behind them.

    Examples
    --------
    >>> print(wilson(14, 60))
    14/60 = 0.233 [0.144, 0.354]
    """

    k: int
    n: int
    low: float
    high: float
    level: float
    method: str

    @property
    def estimate(self) -> float:
        """The observed rate k/n, in [0, 1]."""
        return self.k / self.n

    def __str__(self) -> str:
        return f"{self.k}/{self.n} = {self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def whole_number(name: str, value: Any) -> int:
    """Return a count as an int, or raise a ValueError that names it."""
    if not (math.isfinite(value) and value >= 0 and value == int(value)):
        raise ValueError(f"{name} must be a whole number of at least 0, not {value}")
    return int(value)


def k_of_n(k: Any, n: Any) -> tuple[int, int]:
    """Return k and n as ints, or raise a ValueError when they are not k of n >= 1."""
    k, n = whole_number("k", k), whole_number("n", n)
    if n == 0:
        raise ValueError("n must be at least 1")
    if k > n:
        raise ValueError(f"k must be at most n, not {k} of {n}")
    return k, n


def share(name: str, value: float) -> float:
    """Return a level, power or error rate that lies strictly between 0 and 1, or raise."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    return float(value)


def finite_array(name: str, values: ArrayLike) -> FloatArray:
    """Return values as a non-empty vector of finite floats, or raise a ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a non-empty one-dimensional array of finite numbers")
    return array


def z_value(level: float) -> float:
    """Return the normal quantile of a two-sided interval with this level: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + share("level", level)) / 2)


def wilson(k: int, n: int, level: float = 0.95) -> Rate:
    """Score interval for one rate, close to its nominal coverage at every n.

    Parameters
    ----------
    k, n
        Failures and trials, 0 <= k <= n, n >= 1.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Rate
        Bounds in [0, 1] around k/n, 0 at k = 0 and 1 at k = n.

    Raises
    ------
    ValueError
        If k and n are not whole numbers with 0 <= k <= n and n >= 1, or level is not in (0, 1).

    References
    ----------
    Wilson, JASA 22, 1927; Newcombe, Statistics in Medicine 17, 1998, 857-872.

    Examples
    --------
    >>> print(wilson(0, 20))
    0/20 = 0.000 [0.000, 0.161]
    """
    k, n = k_of_n(k, n)
    z2 = z_value(level) ** 2
    p = k / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At k = 0 and k = n the bound is the estimate itself; rounding must not move it past.
    low = 0.0 if k == 0 else min(centre - half, p)
    high = 1.0 if k == n else max(centre + half, p)
    return Rate(k, n, low, high, level, "wilson")


def clopper_pearson_upper(k: int, n: int, level: float = 0.95) -> float:
    """One-sided exact upper bound for one rate; 1 - (1 - level)^(1/n) when nothing failed.

    Parameters
    ----------
    k, n
        Failures and trials, 0 <= k <= n, n >= 1.
    level
        One-sided confidence level in (0, 1).

    Returns
    -------
    float
        In (k/n, 1], and 1 at k = n.

    Raises
    ------
    ValueError
        If k and n are not whole numbers with 0 <= k <= n and n >= 1, or level is not in (0, 1).

    References
    ----------
    Clopper and Pearson, Biometrika 26, 1934; Hanley and Lippman-Hand, JAMA 249, 1983.

    Examples
    --------
    >>> round(clopper_pearson_upper(0, 100), 4)
    0.0295
    """
    from scipy.special import betaincinv

    k, n = k_of_n(k, n)
    share("level", level)
    if k == 0:
        return -math.expm1(math.log(1 - level) / n)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, level))


def bound_without_variation(
    value: float, n: int, tail: float, lowest: float = -1.0, highest: float = 1.0
) -> tuple[float, float]:
    """Bounds on a mean when n independent units all gave the same value.

    Their empirical variance is zero, so a t interval or a bootstrap would claim certainty. What
    the sample does say is that at most a share u = 1 - tail^(1/n) of all units differs (the exact
    bound of Clopper and Pearson), and those could lie at either limit of the scale.

    Parameters
    ----------
    value
        The common value, in [lowest, highest].
    n
        Number of independent units.
    tail
        Error probability on each side, in (0, 1).
    lowest, highest
        Limits of the scale.

    Returns
    -------
    low, high
        Around the value, within the limits.

    Raises
    ------
    ValueError
        If value is outside the scale, n < 1 or tail is not in (0, 1).

    References
    ----------
    Clopper and Pearson, Biometrika 26, 1934; Hanley and Lippman-Hand, JAMA 249, 1983.

    Examples
    --------
    >>> low, high = bound_without_variation(0.0, 59, 0.05)
    >>> round(low, 4), round(high, 4)
    (-0.0495, 0.0495)
    """
    if not lowest <= value <= highest:
        raise ValueError(f"value must lie in [{lowest}, {highest}], not {value}")
    unseen = clopper_pearson_upper(0, n, 1 - share("tail", tail))
    return value - unseen * (value - lowest), value + unseen * (highest - value)


def percentile_interval(
    estimate: float,
    draws: FloatArray,
    units: int,
    level: float = 0.95,
    method: str = "bootstrap",
    lowest: float = -1.0,
    highest: float = 1.0,
) -> Interval:
    """Percentile interval of bootstrap draws, widened where the draws do not vary.

    Parameters
    ----------
    estimate
        The statistic on the data themselves, in [lowest, highest].
    draws
        The statistic on each resample, shape (draws,); NaN where it is undefined.
    units
        Independent units that were resampled: what is left to go by when all draws are equal.
    level
        Two-sided confidence level in (0, 1).
    method
        Name for the result.
    lowest, highest
        Limits of the scale of the statistic.

    Returns
    -------
    Interval
        Around the estimate, also where a skewed statistic lies outside its own percentiles.

    Raises
    ------
    ValueError
        If estimate is outside the scale, units < 1 or level is not in (0, 1).

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Examples
    --------
    >>> print(percentile_interval(0.5, np.linspace(0.2, 0.8, 101), units=12))
    0.500 [0.215, 0.785]
    >>> print(percentile_interval(0.0, np.zeros(100), units=12))
    0.000 [-0.265, 0.265]
    """
    tail = (1 - share("level", level)) / 2
    draws = draws[~np.isnan(draws)]
    if draws.size == 0 or np.ptp(draws) < 1e-12:
        low, high = bound_without_variation(estimate, units, tail, lowest, highest)
    else:
        low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    # A skewed statistic may lie outside its own percentiles.
    return Interval(estimate, min(low, estimate), max(high, estimate), level, method)
