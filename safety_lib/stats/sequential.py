"""Evidence that may be looked at after every rollout.

An e-value is a bet against the null hypothesis: by Ville's inequality the chance that it ever
reaches 1 / alpha is at most alpha when the null is true, however often one looks.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray, Interval, share, whole
from safety_lib.stats.paired import finite_array


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
    s, n = whole("s", s), whole("n", n)
    if s > n:
        raise ValueError(f"s must be at most n, not {s} of {n}")
    evidence = -math.log1p(-share("level", level))
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, level, "beta mixture")
    floor = _log_beta(s + 0.5, n - s + 0.5) - _log_beta(0.5, 0.5) - evidence

    def boundary(outside: float) -> float:
        inside = s / n
        for _ in range(60):
            p = (inside + outside) / 2
            likelihood = (s * math.log(p) if s else 0.0) + (
                (n - s) * math.log1p(-p) if n - s else 0.0
            )
            inside, outside = (p, outside) if likelihood > floor else (inside, p)
        return inside

    low = 0.0 if s == 0 else boundary(0.0)
    high = 1.0 if s == n else boundary(1.0)
    return Interval(s / n, low, high, level, "beta mixture")


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def rate_e_value(s: ArrayLike, n: ArrayLike, p0: float) -> FloatArray:
    """Evidence that a rate is above p0, from s failures in n trials.

    A Beta(1/2, 1/2) mixture over the rates above p0: an e-process for every true rate <= p0.

    Parameters
    ----------
    s, n
        Failures and trials so far, 0 <= s <= n; numbers or arrays of one shape.
    p0
        Rate that is tolerated, in (0, 1).

    Returns
    -------
    ndarray
        E-values of that shape, at least 0; reject at 1 / alpha.

    Raises
    ------
    ValueError
        If the counts are impossible or p0 is not in (0, 1).

    References
    ----------
    Ramdas et al., Statistical Science 38, 2023; Waudby-Smith and Ramdas, JRSS B 86, 2024.

    Examples
    --------
    >>> rate_e_value([0, 5, 15], [50, 50, 50], p0=0.1).round(3).tolist()
    [0.022, 0.074, 306.405]
    """
    return _e_value(s, n, p0, prior=0.5, one_sided=True)


def e_process(outcomes: ArrayLike, p0: float) -> FloatArray:
    """`rate_e_value` after each of a sequence of outcomes.

    Parameters
    ----------
    outcomes
        1 for a failure and 0 for none, in the order seen, shape (trials,).
    p0
        Rate that is tolerated, in (0, 1).

    Returns
    -------
    ndarray
        Shape (trials,).

    Raises
    ------
    ValueError
        If outcomes is empty or neither 0 nor 1, or p0 is not in (0, 1).

    Examples
    --------
    >>> e_process([1, 1, 0, 1], p0=0.1).round(2).tolist()
    [6.2, 47.11, 8.68, 54.54]
    """
    outcomes = finite_array("outcomes", outcomes)
    if not np.isin(outcomes, (0, 1)).all():
        raise ValueError("outcomes must be 0 or 1")
    return rate_e_value(np.cumsum(outcomes), np.arange(1, outcomes.size + 1), p0)


def flip_e_value(
    b: ArrayLike, c: ArrayLike, mixture: Literal["one-sided", "uniform", "kt"] = "one-sided"
) -> FloatArray:
    """Evidence that discordant pairs do not fall to both sides alike.

    Parameters
    ----------
    b, c
        Harmful and beneficial flips so far; numbers or arrays of one shape. Feed one sign per
        family, because flips within a family are not independent.
    mixture
        `"one-sided"`: uniform over chances of harm above 1/2, against "at most 1/2"; `"uniform"`
        over all chances or `"kt"` (Beta(1/2, 1/2)), against "exactly 1/2".

    Returns
    -------
    ndarray
        E-values of that shape, at least 0; reject at 1 / alpha.

    Raises
    ------
    ValueError
        If a count is negative or the mixture is unknown.

    References
    ----------
    Krichevsky and Trofimov, IEEE Transactions on Information Theory 27, 1981; Ramdas et al.,
    Statistical Science 38, 2023.

    Examples
    --------
    >>> flip_e_value([10, 9, 8], [0, 1, 2]).round(3).tolist()
    [186.091, 18.509, 4.002]
    """
    if mixture not in ("one-sided", "uniform", "kt"):
        raise ValueError(f"mixture must be one-sided, uniform or kt, not {mixture!r}")
    total = np.asarray(b, dtype=np.float64) + np.asarray(c, dtype=np.float64)
    prior = 0.5 if mixture == "kt" else 1.0
    return _e_value(b, total, 0.5, prior, one_sided=mixture == "one-sided")


def _e_value(s: ArrayLike, n: ArrayLike, p0: float, prior: float, *, one_sided: bool) -> FloatArray:
    from scipy.special import betaincc, betaln

    s, n = np.asarray(s, dtype=np.float64), np.asarray(n, dtype=np.float64)
    share("p0", p0)
    if not ((s >= 0) & (s <= n) & np.isfinite(n)).all():
        raise ValueError("counts must be finite and at least 0, failures at most trials")
    a, b = s + prior, n - s + prior
    log_e = betaln(a, b) - betaln(prior, prior) - s * math.log(p0) - (n - s) * math.log1p(-p0)
    if one_sided:
        with np.errstate(divide="ignore"):
            log_e = log_e + np.log(betaincc(a, b, p0)) - np.log(betaincc(prior, prior, p0))
    return np.asarray(np.exp(np.minimum(log_e, 700.0)), dtype=np.float64)


def sprt_bounds(alpha: float, beta: float) -> tuple[float, float]:
    """Wald's bounds for a likelihood ratio: accept at or below the first, reject at the second.

    Parameters
    ----------
    alpha, beta
        Error rates of false rejection and of false acceptance, in (0, 1), alpha + beta < 1.

    Raises
    ------
    ValueError
        If a rate is not in (0, 1) or they add up to 1 or more.

    References
    ----------
    Wald, Annals of Mathematical Statistics 16, 1945.

    Examples
    --------
    >>> low, high = sprt_bounds(0.05, 0.2)
    >>> round(low, 4), round(high, 4)
    (0.2105, 16.0)
    """
    if share("alpha", alpha) + share("beta", beta) >= 1:
        raise ValueError("alpha and beta must add up to less than 1")
    return beta / (1 - alpha), (1 - beta) / alpha
