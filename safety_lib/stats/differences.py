"""Intervals for the difference of two rates, independent or paired.

In a pair both versions meet the same test. `b` counts the pairs in which only the first of the two
failed, `c` those in which only the second did; the difference is p1 - p2 = (b - c) / n.
"""

from __future__ import annotations

import math

from safety_lib.stats.intervals import Interval, k_of_n, whole, wilson, z_value


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


def _discordant(b: int, c: int, n: int) -> tuple[int, int, int]:
    b, c = whole("b", b), whole("c", c)
    return b, c, k_of_n(b + c, n)[1]


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
    b, c, n = _discordant(b, c, n)
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


def newcombe_paired(a: int, b: int, c: int, d: int, level: float = 0.95) -> Interval:
    """Square-and-add interval for a paired difference, with phi as observed.

    Parameters
    ----------
    a, b, c, d
        Pairs in which both failed, only the first, only the second, neither.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Within [-1, 1].

    Raises
    ------
    ValueError
        If a count is negative, all are 0 or level is not in (0, 1).

    References
    ----------
    Newcombe, Statistics in Medicine 17, 1998, 2635-2650, method 8 (the article's method 10
    corrects phi for continuity).

    Examples
    --------
    >>> print(newcombe_paired(1, 1, 7, 12))
    -0.286 [-0.502, -0.036]
    """
    a, d = whole("a", a), whole("d", d)
    b, c, n = _discordant(b, c, a + b + c + d)
    first, second = wilson(a + b, n, level), wilson(a + c, n, level)
    p1, p2 = first.estimate, second.estimate
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = (a * d - b * c) / math.sqrt(margins) if margins else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return Interval(
        p1 - p2,
        p1 - p2 - half(p1 - first.low, second.high - p2),
        p1 - p2 + half(first.high - p1, p2 - second.low),
        level,
        "newcombe paired",
    )


def bonett_price(b: int, c: int, n: int, level: float = 0.95) -> Interval:
    """Wald interval, adjusted, for a paired difference: one pair is added to b and to c.

    Parameters and errors are those of `tango`.

    References
    ----------
    Bonett and Price, British Journal of Mathematical and Statistical Psychology 65, 2012.

    Examples
    --------
    >>> print(bonett_price(1, 7, 21))
    -0.286 [-0.508, -0.013]
    """
    b, c, n = _discordant(b, c, n)
    p10, p01 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = z_value(level) * math.sqrt((p10 + p01 - (p10 - p01) ** 2) / (n + 2))
    centre = p10 - p01
    return Interval(
        (b - c) / n, max(-1.0, centre - half), min(1.0, centre + half), level, "bonett-price"
    )
