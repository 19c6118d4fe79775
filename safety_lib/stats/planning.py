"""How many tests and families a comparison needs, in closed form."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from safety_lib.stats.intervals import FloatArray, k_of_n, share

Sided = Literal[1, 2]


def _quantiles(power: float, alpha: float, sided: Sided) -> tuple[float, float]:
    if sided not in (1, 2):
        raise ValueError(f"sided must be 1 or 2, not {sided}")
    normal = NormalDist()
    return normal.inv_cdf(1 - share("alpha", alpha) / sided), normal.inv_cdf(share("power", power))


def _discordance(p10: float, p01: float) -> tuple[float, float]:
    if not (p10 >= 0 and p01 >= 0 and p10 + p01 <= 1 and p10 != p01):
        raise ValueError("p10 and p01 must differ, be at least 0 and add up to at most 1")
    return p10 + p01, p10 - p01


def sample_size_paired(
    p10: float, p01: float, power: float = 0.8, alpha: float = 0.05, sided: Sided = 1
) -> int:
    """Independent pairs that McNemar's test needs to tell p10 from p01.

    Parameters
    ----------
    p10, p01
        Chances that a pair is discordant one way and the other way.
    power, alpha
        Chance to detect the difference and false-alarm rate, in (0, 1).
    sided
        1 for a one-sided, 2 for a two-sided test.

    Raises
    ------
    ValueError
        If p10 = p01, the chances are impossible or a rate is not in (0, 1).

    References
    ----------
    Miettinen, Biometrics 24, 1968; Connor, Biometrics 43, 1987.

    Examples
    --------
    >>> sample_size_paired(0.10, 0.02), sample_size_paired(0.10, 0.02, sided=2)
    (114, 145)
    """
    z_alpha, z_beta = _quantiles(power, alpha, sided)
    discordant, delta = _discordance(p10, p01)
    root = z_alpha * math.sqrt(discordant) + z_beta * math.sqrt(discordant - delta**2)
    return math.ceil((root / delta) ** 2)


def mcnemar_power(n: int, p10: float, p01: float, alpha: float = 0.05, sided: Sided = 1) -> float:
    """Exact power of the mid-p McNemar test with n independent pairs.

    Parameters and errors are those of `sample_size_paired`, with n >= 1 pairs. The one-sided test
    looks in the direction in which p10 and p01 differ.

    References
    ----------
    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013.

    Examples
    --------
    >>> round(mcnemar_power(114, 0.10, 0.02), 3)
    0.827
    """
    from scipy.special import gammaln, xlog1py, xlogy

    n = k_of_n(0, n)[1]
    _quantiles(0.5, alpha, sided)
    discordant, _ = _discordance(p10, p01)
    size, k = np.ogrid[: n + 1, : n + 1]
    rest = np.maximum(size - k, 0)

    def chances(p: float) -> FloatArray:
        """Binomial chances of k (columns) at each size (rows)."""
        ways = gammaln(size + 1) - gammaln(k + 1) - gammaln(rest + 1)
        pmf: FloatArray = np.exp(ways + xlogy(k, p) + xlog1py(rest, -p)) * (k <= size)
        return pmf

    fair = chances(0.5)
    upper = np.cumsum(fair[:, ::-1], axis=1)[:, ::-1] - fair / 2
    reject = (upper if sided == 1 else 2 * np.minimum(upper, 1 - upper)) <= alpha
    given_size = np.sum(reject * chances(max(p10, p01) / discordant), axis=1)
    return float(chances(discordant)[n] @ given_size)


def sample_size_repeated(
    delta: float,
    between: float,
    within: tuple[float, float] = (0.0, 0.0),
    trials: tuple[int, int] = (1, 1),
    power: float = 0.8,
    alpha: float = 0.05,
    sided: Sided = 2,
) -> int:
    """Return the tests needed to detect a mean paired difference when each test is repeated.

    Repeats shrink only the variance within a test: (z_alpha + z_beta)^2 (between + within_a / K_a
    + within_b / K_b) / delta^2.

    Parameters
    ----------
    delta
        Difference to detect, not 0.
    between
        Variance over tests of the true paired difference.
    within
        Mean variance of one trial, for each version.
    trials
        Trials K per test, for each version.
    power, alpha, sided
        As for `sample_size_paired`.

    Raises
    ------
    ValueError
        If delta is 0, a variance is negative, trials < 1 or a rate is not in (0, 1).

    References
    ----------
    Miller, arXiv:2411.00640.

    Examples
    --------
    >>> sample_size_repeated(0.03, between=1 / 9)
    969
    """
    if not (abs(delta) > 0 and between >= 0 and min(within) >= 0 and min(trials) >= 1):
        raise ValueError("delta must not be 0, variances must be at least 0 and trials at least 1")
    variance = between + within[0] / trials[0] + within[1] / trials[1]
    return math.ceil(sum(_quantiles(power, alpha, sided)) ** 2 * variance / delta**2)


def design_effect(members: float, rho: float) -> float:
    """Factor by which families of this size inflate the number of tests needed.

    Parameters
    ----------
    members
        Tests per family, at least 1.
    rho
        Correlation within a family, in [0, 1].

    Raises
    ------
    ValueError
        If members < 1 or rho is not in [0, 1].

    References
    ----------
    Kish, Survey Sampling, 1965.

    Examples
    --------
    >>> design_effect(5, 0.3)
    2.2
    """
    if not (members >= 1 and 0 <= rho <= 1):
        raise ValueError("members must be at least 1 and rho in [0, 1]")
    return 1 + (members - 1) * rho


def families_needed(
    se: float, families: int, effect: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Families like those observed that a one-sided test needs to detect this effect.

    Parameters
    ----------
    se
        Standard error of the mean difference with the families at hand, positive.
    families
        Their number, at least 2.
    effect
        Difference to detect, not 0.
    power, alpha
        Chance to detect it and false-alarm rate, in (0, 1).

    Returns
    -------
    int
        At least 5: with fewer the exact sign-flip test cannot reach p < 0.05.

    Raises
    ------
    ValueError
        If se or effect is 0, families < 2 or a rate is not in (0, 1).

    Examples
    --------
    >>> families_needed(se=0.03, families=12, effect=0.05)
    27
    """
    if not (se > 0 and families >= 2 and abs(effect) > 0):
        raise ValueError("se must be positive, families at least 2 and effect not 0")
    needed = families * (sum(_quantiles(power, alpha, 1)) * se / effect) ** 2
    return max(math.ceil(needed), math.ceil(math.log2(1 / alpha)))
