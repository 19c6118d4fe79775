"""Tests of whether two versions differ on the same tests.

A test gives one paired difference d, in [-1, 1]. Tests of one family share a cause, so the family
is the independent unit, and `sign_flip` tests on family sums. McNemar's test, which takes every
pair for independent, is for pairs of one family, and the reference that readers know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import FloatArray, finite_array, whole_number
from safety_lib.text import Shown

Alternative = Literal["two-sided", "greater", "less"]

_ENUMERATED_FAMILIES = 20
_CONVOLUTION_STEPS = 50_000_000
_LARGEST_UNIT = 10_000


@dataclass(frozen=True, slots=True, repr=False)
class McNemar(Shown):
    """McNemar's exact test: `mid_p` is two-sided, `one_sided_p` asks for b > c.

    Examples
    --------
    >>> print(mcnemar(1, 7))
    b=1 c=7: mid-p 0.0391, p of b > c 0.9961
    """

    b: int
    c: int
    mid_p: float
    one_sided_p: float

    def __str__(self) -> str:
        return f"b={self.b} c={self.c}: mid-p {self.mid_p:.4f}, p of b > c {self.one_sided_p:.4f}"


def mcnemar(b: int, c: int) -> McNemar:
    """Test whether discordant pairs fall to both sides alike.

    Parameters
    ----------
    b, c
        Pairs in which only the first, only the second version failed.

    Returns
    -------
    McNemar
        Both p-values are in (0, 1]; without a discordant pair they are 1.

    Raises
    ------
    ValueError
        If b or c is not a whole number of at least 0.

    References
    ----------
    McNemar, Psychometrika 12, 1947; Fagerland, Lydersen and Laake, BMC Medical Research
    Methodology 13:91, 2013 (mid-p).

    Examples
    --------
    >>> mcnemar(7, 1).one_sided_p
    0.03515625
    """
    from scipy.special import bdtr

    b, c = whole_number("b", b), whole_number("c", c)
    n = b + c
    smaller_tail, upper_tail = (float(bdtr(k, n, 0.5)) for k in (min(b, c), c))
    mid_p = min(1.0, 2 * smaller_tail - math.comb(n, b) / 2**n)
    return McNemar(b, c, mid_p, upper_tail)


@dataclass(frozen=True, slots=True, repr=False)
class SignFlip(Shown):
    """Result of `sign_flip`.

    Examples
    --------
    >>> print(sign_flip([2, 1, 3, 1, 2], "greater"))
    T = 9 over 5 families, p = 0.0312 (greater, exact)
    """

    statistic: float
    families: int
    p_value: float
    alternative: Alternative
    method: Literal["exact", "monte carlo"]

    def __str__(self) -> str:
        return (
            f"T = {self.statistic:.4g} over {self.families} families, "
            f"p = {self.p_value:.4f} ({self.alternative}, {self.method})"
        )


def sign_flip(
    sums: ArrayLike,
    alternative: Alternative = "two-sided",
    rng: np.random.Generator | None = None,
    draws: int = 9_999,
) -> SignFlip:
    """Test family sums against the sign flips that are equally likely when versions do not differ.

    The p-value is exact when the sums are multiples of one common unit (whole trials are) or when
    there are at most 20 families; otherwise it is a Monte Carlo p-value (1 + k) / (1 + draws).

    Parameters
    ----------
    sums
        Sum of the paired differences of each family, shape (families,).
    alternative
        `"greater"`: the differences are positive; `"less"`; or `"two-sided"`.
    rng
        Source of random flips; needed only for the Monte Carlo p-value.
    draws
        Random flips of the Monte Carlo p-value, at least 1.

    Returns
    -------
    SignFlip
        The sum over all families, and its p-value in (0, 1].

    Raises
    ------
    ValueError
        If sums is empty, not one-dimensional or not finite, if the alternative is unknown, or if
        random flips are needed and rng is None.

    References
    ----------
    Fisher, The Design of Experiments, 1935; Phipson and Smyth, Statistical Applications in
    Genetics and Molecular Biology 9, 2010 (the +1).

    Examples
    --------
    >>> print(sign_flip([0.5, 1.0, 0.5, 1.5, 0.5, -0.5], "greater"))
    T = 3.5 over 6 families, p = 0.0781 (greater, exact)
    """
    s = finite_array("sums", sums)
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative must be two-sided, greater or less, not {alternative!r}")
    total = float(s.sum())
    toward = {"two-sided": abs(total), "greater": total, "less": -total}[alternative]
    # A sum such as 0.1 + 0.2 - 0.3 leaves rounding noise, which is no difference.
    magnitudes = np.abs(s[np.abs(s) > 1e-9])
    units = _in_common_units(magnitudes)
    method: Literal["exact", "monte carlo"] = "exact"
    if units is not None:
        scale = units.sum() / magnitudes.sum() if units.size else 1.0
        # A flip gives T' = 2W - sum|S|, W the sum over a random half of the families.
        at_least = (round(toward * scale) + int(units.sum()) + 1) // 2
        p = float(_subset_sum_chances(units)[at_least:].sum())
    elif magnitudes.size <= _ENUMERATED_FAMILIES:
        flips = np.zeros(1)
        for magnitude in magnitudes:
            flips = np.concatenate([flips - magnitude, flips + magnitude])
        p = float(np.mean(flips >= toward - 1e-9 * magnitudes.sum()))
    elif rng is not None:
        method = "monte carlo"
        halves = rng.integers(0, 2, (draws, magnitudes.size), dtype=np.int8)
        flips = 2 * (halves @ magnitudes) - magnitudes.sum()
        extreme = np.abs(flips) if alternative == "two-sided" else flips
        reached = np.count_nonzero(extreme >= toward - 1e-9 * magnitudes.sum())
        p = (1 + reached) / (1 + draws)
    else:
        raise ValueError("sums share no common unit: give rng for a Monte Carlo p-value")
    if method == "exact" and alternative == "two-sided":
        p = min(1.0, 2 * p)
    return SignFlip(total, s.size, p, alternative, method)


def _in_common_units(magnitudes: FloatArray) -> NDArray[np.int64] | None:
    """Magnitudes as whole multiples of their largest common unit, if that is cheap to use."""
    fractions = [Fraction(m).limit_denominator(_LARGEST_UNIT) for m in set(magnitudes.tolist())]
    scale = math.lcm(*(f.denominator for f in fractions))
    if scale > _CONVOLUTION_STEPS:
        return None
    divisor = math.gcd(*(int(f * scale) for f in fractions)) or 1
    units = magnitudes * (scale / divisor)
    if np.abs(units - np.rint(units)).max(initial=0.0) > 1e-6:
        return None
    if units.sum() * units.size > _CONVOLUTION_STEPS:
        return None
    return np.rint(units).astype(np.int64)


def _subset_sum_chances(units: NDArray[np.int64]) -> FloatArray:
    """Chance of each sum over a random subset that takes every member with probability 1/2."""
    chances = np.zeros(int(units.sum()) + 1)
    chances[0] = 1.0
    for unit in units:
        shifted = chances[: chances.size - unit].copy()
        chances /= 2
        chances[unit:] += shifted / 2
    return chances
