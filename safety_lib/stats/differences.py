"""Intervals for the difference of two rates, independent or paired.

In a pair both versions meet the same test. `b` counts the pairs in which only the first of the two
failed, `c` those in which only the second did; the difference is p1 - p2 = (b - c) / n.
"""

from __future__ import annotations

import math

from safety_lib.stats.intervals import Interval, k_of_n, whole_number, wilson, z_value


def newcombe_difference(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> Interval:
    """Hybrid score interval for k1/n1 - k2/n2 of two independent samples.

    Parameters
    ----------
    k1, n1, k2, n2
        Failures and trials of each sample.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Within [-1, 1].

    Raises
    ------
    ValueError
        If a k is not in [0, n], an n is 0 or level is not in (0, 1).

    References
    ----------
    Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10.

    Examples
    --------
    >>> print(newcombe_difference(56, 70, 48, 80))
    0.200 [0.052, 0.334]
    """
    first, second = wilson(k1, n1, level), wilson(k2, n2, level)
    p1, p2 = first.estimate, second.estimate
    return Interval(
        p1 - p2,
        p1 - p2 - math.hypot(p1 - first.low, second.high - p2),
        p1 - p2 + math.hypot(first.high - p1, p2 - second.low),
        level,
        "newcombe",
    )


def tango(b: int, c: int, n: int, level: float = 0.95) -> Interval:
    """Score interval for a paired difference, good in small samples and without discordance.

    Parameters
    ----------
    b, c
        Pairs in which only the first, only the second failed.
    n
        All pairs, n >= b + c.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Within [-1, 1].

    Raises
    ------
    ValueError
        If b or c is negative, b + c > n, n is 0 or level is not in (0, 1).

    References
    ----------
    Tango, Statistics in Medicine 17, 1998, 891-908.

    Examples
    --------
    >>> print(tango(1, 7, 21))
    -0.286 [-0.517, -0.026]
    >>> print(tango(0, 0, 60))
    0.000 [-0.060, 0.060]
    """
    b, c = whole_number("b", b), whole_number("c", c)
    n = k_of_n(b + c, n)[1]
    z = z_value(level)

    def score_exceeds(delta: float) -> bool:
        linear = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta)))
        q = (root - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * q + delta * (1 - delta))))
        return abs(b - c - n * delta) > z * spread

    def boundary(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            if score_exceeds(middle):
                outside = middle
            else:
                inside = middle
        return inside

    estimate = (b - c) / n
    return Interval(estimate, boundary(estimate, -1.0), boundary(estimate, 1.0), level, "tango")
