"""Evidence that may be looked at after every rollout.

An e-value is a bet against the null hypothesis: by Ville's inequality the chance that it ever
reaches 1 / alpha is at most alpha when the null is true, however often one looks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray, Interval, finite_array, share, whole_number


def confidence_sequence(s: int, n: int, level: float = 0.95) -> Interval:
    """Interval for one rate that holds at all n at once, so that peeking is allowed.

    The set of p with B(s + 1/2, n - s + 1/2) / B(1/2, 1/2) / (p^s (1 - p)^(n - s)) < 1 / alpha:
    those against which a Beta(1/2, 1/2) mixture has not won.

    Parameters
    ----------
    s, n
        Failures and trials so far, 0 <= s <= n; n may be 0.
    level
        Confidence level over the whole sequence, in (0, 1).

    Returns
    -------
    Interval
        Within [0, 1]; the estimate is NaN for n = 0.

    Raises
    ------
    ValueError
        If s and n are not counts with s <= n, or level is not in (0, 1).

    References
    ----------
    Robbins, Annals of Mathematical Statistics 41, 1970; Howard et al., Annals of Statistics 49,
    2021.

    Examples
    --------
    >>> print(confidence_sequence(5, 50))
    0.100 [0.016, 0.287]
    """
    s, n = whole_number("s", s), whole_number("n", n)
    if s > n:
        raise ValueError(f"s must be at most n, not {s} of {n}")
    share("level", level)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, level, "beta mixture")
    above, below = upper_limits([s, n - s], [n, n], level).tolist()
    return Interval(s / n, min(1 - below, s / n), above, level, "beta mixture")


def upper_limits(s: ArrayLike, n: ArrayLike, level: float) -> FloatArray:
    """Upper ends of `confidence_sequence` for many counts at once.

    Parameters
    ----------
    s, n
        Failures and trials so far, 0 <= s <= n and n >= 1, shape (counts,).
    level
        Confidence level over the whole sequence, in (0, 1).

    Returns
    -------
    ndarray
        In (s / n, 1], shape (counts,); 1 where everything failed.

    Examples
    --------
    >>> upper_limits([0, 5], [50, 50], 0.95).round(3).tolist()
    [0.105, 0.287]
    """
    from scipy.special import betaln, xlog1py, xlogy

    s, n = np.asarray(s, dtype=np.float64), np.asarray(n, dtype=np.float64)
    floor = betaln(s + 0.5, n - s + 0.5) - betaln(0.5, 0.5) + math.log1p(-level)
    inside, outside = s / n, np.ones(s.shape)
    for _ in range(60):
        p = (inside + outside) / 2
        holds = xlogy(s, p) + xlog1py(n - s, -p) > floor
        inside, outside = np.where(holds, p, inside), np.where(holds, outside, p)
    return np.asarray(np.where(s == n, 1.0, inside), dtype=np.float64)


def e_process(outcomes: ArrayLike, p0: float) -> FloatArray:
    """Evidence that a rate is above p0, after each of a sequence of outcomes.

    A Beta(1/2, 1/2) mixture over the rates above p0, against p0 itself: the chance that it ever
    reaches 1 / alpha is at most alpha for every true rate <= p0.

    Parameters
    ----------
    outcomes
        1 for a failure and 0 for none, in the order seen, shape (trials,).
    p0
        Rate that is tolerated, in (0, 1).

    Returns
    -------
    ndarray
        E-values, at least 0, shape (trials,); reject at 1 / alpha.

    Raises
    ------
    ValueError
        If outcomes is empty or neither 0 nor 1, or p0 is not in (0, 1).

    References
    ----------
    Ramdas et al., Statistical Science 38, 2023; Waudby-Smith and Ramdas, JRSS B 86, 2024.

    Examples
    --------
    >>> e_process([1, 1, 0, 1], p0=0.1).round(2).tolist()
    [6.2, 47.11, 8.68, 54.54]
    """
    from scipy.special import betaincc, betaln

    outcomes = finite_array("outcomes", outcomes)
    if not np.isin(outcomes, (0, 1)).all():
        raise ValueError("outcomes must be 0 or 1")
    share("p0", p0)
    s = np.cumsum(outcomes)
    clean = np.arange(1, s.size + 1) - s
    log_e = betaln(s + 0.5, clean + 0.5) - betaln(0.5, 0.5)
    log_e -= s * math.log(p0) + clean * math.log1p(-p0)
    with np.errstate(divide="ignore"):
        log_e += np.log(betaincc(s + 0.5, clean + 0.5, p0)) - np.log(betaincc(0.5, 0.5, p0))
    return np.asarray(np.exp(np.minimum(log_e, 700.0)), dtype=np.float64)


def flip_e_value(worse: int, better: int) -> float:
    """Evidence that discordant pairs fall to the worse side more often than to the better.

    A uniform mixture over the chances above 1/2, against a fair coin: E = 2^(n + 1)
    B(worse + 1, better + 1) (1 - I_1/2(worse + 1, better + 1)), n = worse + better. The mean of
    the e-values of several questions is an e-value for all of them at once.

    Parameters
    ----------
    worse, better
        Pairs in which only the candidate, only the baseline failed.

    Returns
    -------
    float
        At least 0; 1 without a discordant pair. Reject at 1 / alpha, after any pair.

    Raises
    ------
    ValueError
        If a count is not a whole number of at least 0.

    References
    ----------
    Ville, 1939; Ramdas et al., Statistical Science 38, 2023; Vovk and Wang, Annals of Statistics
    49, 2021, 1736-1754 (the mean of e-values).

    Examples
    --------
    >>> round(flip_e_value(10, 0), 3), round(flip_e_value(9, 1), 3), round(flip_e_value(5, 5), 3)
    (186.091, 18.509, 0.369)
    """
    from scipy.special import betainc, betaln

    worse, better = whole_number("worse", worse), whole_number("better", better)
    # 1 - I_1/2(a, b) is I_1/2(b, a): no digits are lost where it is close to 1 or 0.
    tail = float(betainc(better + 1, worse + 1, 0.5))
    log_e = (worse + better + 1) * math.log(2) + float(betaln(worse + 1, better + 1))
    return math.exp(min(log_e, 700.0)) * tail
