"""Boundaries for a question that is asked at several looks and stops when it is answered.

The error is spent over the looks (Lan and DeMets): how much may have been spent by a look depends
on the information that it holds, as a share of that of the last look, and on nothing that was
seen. Looks need not be equally far apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from safety_lib.stats.intervals import FloatArray, share

_NODES = 160
_FAR = 9.0  # standard errors beyond which the normal density is nothing


def spent(alpha: float, fraction: float) -> float:
    """Error that may have been spent when this share of the information is in.

    alpha * log(1 + (e - 1) t), the spending function that comes close to Pocock's constant
    boundary: a clear answer may come early.

    Parameters
    ----------
    alpha
        Error of the whole question, one-sided, in (0, 1).
    fraction
        Information so far over that of the last look, in [0, 1].

    Returns
    -------
    float
        In [0, alpha].

    Raises
    ------
    ValueError
        If alpha is not in (0, 1) or the fraction not in [0, 1].

    References
    ----------
    Lan and DeMets, Biometrika 70, 1983, 659-663.

    Examples
    --------
    >>> round(spent(0.05, 0.5), 4), spent(0.05, 1.0)
    (0.031, 0.05)
    """
    share("alpha", alpha)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], not {fraction}")
    return alpha * math.log1p((math.e - 1) * fraction)


def spending_boundaries(alpha: float, fractions: Sequence[float]) -> tuple[float, ...]:
    """Critical values of a one-sided test at each of its looks.

    The test rejects at the first look whose z is at least its value; under the null hypothesis
    the chance to have done so by a look is what `spent` allows. The z of the looks are those of
    sums of independent normal increments, and the chance of crossing is integrated look by look.

    Parameters
    ----------
    alpha
        Error over all looks, one-sided, in (0, 1).
    fractions
        Information of each look over that of the last, rising, the last one 1.

    Returns
    -------
    tuple of float
        One z a look.

    Raises
    ------
    ValueError
        If alpha is not in (0, 1), or the fractions do not rise from above 0 to 1.

    References
    ----------
    Armitage, McPherson and Rowe, JRSS A 132, 1969, 235-244 (the recursion); Lan and DeMets,
    Biometrika 70, 1983; Jennison and Turnbull, Group Sequential Methods, 2000, chapters 7 and 19.

    Examples
    --------
    >>> [round(z, 3) for z in spending_boundaries(0.025, (0.2, 0.4, 0.6, 0.8, 1.0))]
    [2.438, 2.427, 2.41, 2.397, 2.386]
    """
    share("alpha", alpha)
    return _boundaries(alpha, _rising(fractions))


@lru_cache(maxsize=256)
def _boundaries(alpha: float, fractions: tuple[float, ...]) -> tuple[float, ...]:
    walk = _Walk(0.0)
    found: list[float] = []
    before = 0.0
    for fraction in fractions:
        allowed = spent(alpha, fraction)
        low, high = -1.0, _FAR
        for _ in range(45):
            middle = (low + high) / 2
            too_much = walk.beyond(middle, fraction) > allowed - before
            low, high = (middle, high) if too_much else (low, middle)
        walk.step(high, fraction)
        found.append(high)
        before = allowed
    return tuple(found)


def crossing_chances(
    boundaries: Sequence[float], fractions: Sequence[float], drift: float = 0.0
) -> FloatArray:
    """Chance that a sequence of looks first crosses its boundary at each of them.

    Parameters
    ----------
    boundaries
        Critical z of each look, shape (looks,).
    fractions
        Information of each look over that of the last, rising, the last one 1.
    drift
        Mean of z at the last look; that of a look before it is drift * sqrt(fraction).

    Returns
    -------
    ndarray
        Shape (looks,); the sum is the error under no drift, and the power under some.

    Raises
    ------
    ValueError
        If the fractions do not rise from above 0 to 1, or the lengths differ.

    References
    ----------
    Armitage, McPherson and Rowe, JRSS A 132, 1969, 235-244.

    Examples
    --------
    >>> crossing_chances((2.413,) * 5, (0.2, 0.4, 0.6, 0.8, 1.0)).sum().round(4)
    np.float64(0.025)
    """
    checked = _rising(fractions)
    if len(boundaries) != len(checked):
        raise ValueError(f"{len(boundaries)} boundaries for {len(checked)} looks")
    walk = _Walk(drift)
    chances = []
    for boundary, fraction in zip(boundaries, checked, strict=True):
        chances.append(walk.beyond(boundary, fraction))
        walk.step(boundary, fraction)
    return np.array(chances, dtype=np.float64)


def _rising(fractions: Sequence[float]) -> tuple[float, ...]:
    given = tuple(float(f) for f in fractions)
    steps = zip((0.0, *given), given, strict=False)
    if not given or given[-1] != 1 or any(a >= b for a, b in steps):
        raise ValueError(f"fractions must rise from above 0 to 1, not {given}")
    return given


@cache
def _gauss_legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


class _Walk:
    """Density of z * sqrt(fraction) over the paths that have not crossed yet."""

    def __init__(self, drift: float) -> None:
        self.drift = drift
        self.fraction = 0.0
        self.places: NDArray[np.float64] = np.zeros(1)
        self.masses: NDArray[np.float64] = np.ones(1)

    def beyond(self, boundary: float, fraction: float) -> float:
        """Chance to be at or beyond the boundary at this look, and at no look before it."""
        from scipy.special import ndtr

        spread = math.sqrt(fraction - self.fraction)
        mean = self.places + self.drift * (fraction - self.fraction)
        return float(self.masses @ ndtr((mean - boundary * math.sqrt(fraction)) / spread))

    def step(self, boundary: float, fraction: float) -> None:
        """Go on to the next look on the paths that stay below the boundary."""
        spread = math.sqrt(fraction - self.fraction)
        mean = self.places + self.drift * (fraction - self.fraction)
        nodes, weights = _gauss_legendre()
        centre = self.drift * fraction
        low = centre - _FAR * math.sqrt(fraction)
        high = min(boundary * math.sqrt(fraction), centre + _FAR * math.sqrt(fraction))
        half = max(high - low, 0.0) / 2
        places = low + half * (nodes + 1)
        density = np.exp(-(((places[:, None] - mean) / spread) ** 2) / 2) @ self.masses
        self.places = places
        self.masses = half * weights * density / (spread * math.sqrt(2 * math.pi))
        self.fraction = fraction
