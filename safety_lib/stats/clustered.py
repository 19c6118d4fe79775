"""Size of a paired difference when tests come in families.

The estimate is the mean over tests; its uncertainty comes from the families, because tests of one
family succeed and fail together. The three published McNemar tests for clustered pairs are here
for comparison with `cluster_mean` and `sign_flip`, which the gate uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import FloatArray, Interval, bound_without_variation, share
from safety_lib.stats.paired import Alternative, chi2_tail, finite_array


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


@dataclass(frozen=True, slots=True)
class ClusterMean:
    """Mean paired difference with a family-robust standard error; result of `cluster_mean`.

    `design_effect` is the variance relative to tests that are independent: above 1, families make
    the tests worth fewer than they are.
    """

    estimate: float
    se: float
    n: int
    families: int
    design_effect: float

    @property
    def df(self) -> int:
        """Degrees of freedom, families - 1."""
        return self.families - 1

    def lower(self, level: float = 0.95) -> float:
        """One-sided lower bound at this level, at least -1."""
        return self._bounds(1 - share("level", level))[0]

    def upper(self, level: float = 0.95) -> float:
        """One-sided upper bound at this level, at most 1."""
        return self._bounds(1 - share("level", level))[1]

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided interval at this level, within [-1, 1]."""
        low, high = self._bounds((1 - share("level", level)) / 2)
        return Interval(self.estimate, low, high, level, "CR1 t")

    def p_value(self, alternative: Alternative = "two-sided", margin: float = 0.0) -> float:
        """Return the p-value of `estimate = margin` that belongs to the bounds."""
        from scipy.special import stdtr

        if alternative == "two-sided":
            return min(1.0, 2 * min(self.p_value(side, margin) for side in ("greater", "less")))
        if alternative not in ("greater", "less"):
            raise ValueError(f"alternative must be two-sided, greater or less, not {alternative!r}")
        sign = 1 if alternative == "greater" else -1
        if self.se == 0:
            # The level at which bound_without_variation just reaches the margin.
            ratio = (1 + sign * margin) / (1 + sign * self.estimate)
            return min(1.0, ratio) ** self.families
        return float(stdtr(self.df, -sign * (self.estimate - margin) / self.se))

    def _bounds(self, tail: float) -> tuple[float, float]:
        from scipy.special import stdtrit

        if self.se == 0:
            return bound_without_variation(self.estimate, self.families, tail)
        half = -float(stdtrit(self.df, tail)) * self.se
        return max(-1.0, self.estimate - half), min(1.0, self.estimate + half)

    def __str__(self) -> str:
        return (
            f"D = {self.interval()} ({self.n} tests in {self.families} families, "
            f"design effect {self.design_effect:.2f})"
        )


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
    D = 0.125 [-0.637, 0.887] (8 tests in 4 families, design effect 1.12)
    """
    _, sums, sizes = family_sums(d, family)
    d = np.asarray(d, dtype=np.float64)
    n, families = d.size, sums.size
    if families < 2:
        raise ValueError("needs at least 2 families: one says nothing about the next")
    estimate = float(sums.sum() / n)
    residuals = sums - estimate * sizes
    # Equal family means leave rounding noise, which must not pass for a standard error.
    residuals[np.abs(residuals) < 1e-9] = 0.0
    se = math.sqrt(families / (families - 1) * float(residuals @ residuals)) / n
    independent = float(np.var(d, ddof=1)) / n
    design_effect = se**2 / independent if independent > 1e-18 else 1.0
    return ClusterMean(estimate, se, n, families, design_effect)


def clustered_mcnemar(
    b: ArrayLike,
    c: ArrayLike,
    n: ArrayLike,
    method: Literal["obuchowski", "durkalski", "yang"],
) -> tuple[float, float]:
    """Chi-square and p-value (1 df) of a published McNemar test for clustered pairs.

    Parameters
    ----------
    b, c
        Discordant pairs of each cluster, first only and second only, shape (clusters,).
    n
        All pairs of each cluster, n >= b + c and n >= 1, shape (clusters,).
    method
        Which variance to use.

    Returns
    -------
    tuple of float
        Statistic, at least 0, and p-value in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, a count is impossible or the method is unknown.

    References
    ----------
    Obuchowski, Statistics in Medicine 17, 1998; Durkalski et al., Statistics in Medicine 22, 2003;
    Yang, Sun and Hardin, Statistics in Medicine 29, 2010.

    Examples
    --------
    >>> chi2, p = clustered_mcnemar([0, 1, 1, 3], [4, 2, 3, 0], [7, 6, 7, 5], "obuchowski")
    >>> round(chi2, 4), round(p, 4)
    (0.4, 0.5271)
    """
    b, c, n = finite_array("b", b), finite_array("c", c), finite_array("n", n)
    if not b.shape == c.shape == n.shape:
        raise ValueError("b, c and n must have one shape")
    if min(b.min(), c.min(), n.min() - 1) < 0 or (b + c > n).any():
        raise ValueError("b and c must be at least 0, n at least 1 and at least b + c")
    net, clusters = b - c, b.size
    shrink = (clusters - 1) / clusters
    if method == "obuchowski":
        numerator, variance = shrink * net.sum() ** 2, np.sum(net**2)
    elif method == "durkalski":
        numerator, variance = np.sum(net / n) ** 2, np.sum((net / n) ** 2)
    elif method == "yang":
        residual = net - n * net.sum() / n.sum()
        numerator, variance = shrink * net.sum() ** 2, np.sum(residual**2 + net**2) / 2
    else:
        raise ValueError(f"method must be obuchowski, durkalski or yang, not {method!r}")
    chi2 = float(numerator / variance) if variance > 0 else 0.0
    return chi2, chi2_tail(chi2)
