"""Size of a paired difference when tests come in families.

The estimate is the mean over tests; its uncertainty comes from the families, because tests of one
family succeed and fail together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import (
    FloatArray,
    Interval,
    bound_without_variation,
    finite_array,
    share,
)
from safety_lib.text import Shown


class FamilySums(NamedTuple):
    """Differences added up by family: three arrays of shape (families,)."""

    labels: NDArray[Any]
    sums: FloatArray
    sizes: NDArray[np.intp]


def family_sums(d: ArrayLike, family: ArrayLike) -> FamilySums:
    """Add up paired differences by family, in the sorted order of the labels.

    Parameters
    ----------
    d
        Paired difference of each test, in [-1, 1], shape (tests,).
    family
        Label of each test's family, shape (tests,).

    Returns
    -------
    FamilySums
        Its sums lie within the sizes on either side of 0.

    Raises
    ------
    ValueError
        If d is empty, not finite or outside [-1, 1], or the shapes differ.

    Examples
    --------
    >>> found = family_sums([1, 0, -1, 1], ["mail", "mail", "pay", "mail"])
    >>> found.labels.tolist(), found.sums.tolist(), found.sizes.tolist()
    (['mail', 'pay'], [2.0, -1.0], [3, 1])
    """
    d = finite_array("d", d)
    family = np.asarray(family)
    if family.shape != d.shape:
        raise ValueError(f"d and family must have one shape, not {d.shape} and {family.shape}")
    if np.abs(d).max() > 1:
        raise ValueError("d must lie in [-1, 1]")
    labels, index = np.unique(family, return_inverse=True)
    sums = np.bincount(index, d).astype(np.float64)
    return FamilySums(labels, sums, np.bincount(index))


@dataclass(frozen=True, slots=True, repr=False)
class ClusterMean(Shown):
    """Mean paired difference with a family-robust standard error; result of `cluster_mean`."""

    estimate: float
    se: float
    n: int
    families: int

    def lower(self, level: float = 0.95) -> float:
        """One-sided lower bound at this level, at least -1."""
        return self._bounds(1 - share("level", level))[0]

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided interval at this level, within [-1, 1]."""
        low, high = self._bounds((1 - share("level", level)) / 2)
        return Interval(self.estimate, low, high, level, "CR1 t")

    def _bounds(self, tail: float) -> tuple[float, float]:
        from scipy.special import stdtrit

        if self.se == 0:
            return bound_without_variation(self.estimate, self.families, tail)
        half = -float(stdtrit(self.families - 1, tail)) * self.se
        return max(-1.0, self.estimate - half), min(1.0, self.estimate + half)

    def __str__(self) -> str:
        return f"D = {self.interval()} ({self.n} tests in {self.families} families)"


def cluster_mean(d: ArrayLike, family: ArrayLike) -> ClusterMean:
    """Mean paired difference over tests with the CR1 cluster-robust standard error.

    SE = sqrt(G / (G - 1) * sum_g (S_g - D n_g)^2) / n, with S_g the sum and n_g the number of
    tests of family g; t intervals have G - 1 degrees of freedom. When all G families have the same
    mean, SE is 0 and the bounds are those of G units without variation instead.

    Parameters
    ----------
    d
        Paired difference of each test, in [-1, 1], shape (tests,).
    family
        Label of each test's family, shape (tests,).

    Returns
    -------
    ClusterMean
        The estimate in [-1, 1] and its standard error; bounds at any level are methods of it.

    Raises
    ------
    ValueError
        If d is empty, not finite or outside [-1, 1], the shapes differ, or there are fewer than
        2 families.

    References
    ----------
    Liang and Zeger, Biometrika 73, 1986; Cameron and Miller, Journal of Human Resources 50, 2015
    (CR1 and G - 1 degrees of freedom).

    Examples
    --------
    >>> print(cluster_mean([1, 0, 1, 0, 0, -1, 0, 0], ["a", "a", "b", "b", "c", "c", "d", "d"]))
    D = 0.125 [-0.637, 0.887] (8 tests in 4 families)
    """
    _, sums, sizes = family_sums(d, family)
    n, families = int(sizes.sum()), sums.size
    if families < 2:
        raise ValueError("needs at least 2 families: one says nothing about the next")
    estimate = float(sums.sum() / n)
    residuals = sums - estimate * sizes
    # Equal family means leave rounding noise, which must not pass for a standard error.
    residuals[np.abs(residuals) < 1e-9] = 0.0
    se = math.sqrt(families / (families - 1) * float(residuals @ residuals)) / n
    return ClusterMean(estimate, se, n, families)
