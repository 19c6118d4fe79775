"""The difference of two versions on a fixed set of tests, each test a stratum of its own.

The question is whether the candidate lost on *these* tests, so that only luck within a test is
chance. What other tests would show is another question (`safety_lib.stats.clustered`).

Arms whose luck is independent are two samples of each test. Where both versions meet the same
luck, a trial is a pair, and only pairs that came out differently say anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import FloatArray, Interval, share
from safety_lib.text import Shown, p_value

# Above so many failures the lattice is fine enough for a normal tail.
_EXACT_FAILURES = 400
# Wilson's z^2 / 2 at z = 2: where k of n failed, up to about two more could have.
UNSEEN_FAILURES = 2.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StrataLoss(Shown):
    """Loss of the candidate over tests; result of `independent_loss` and of `shared_loss`.

    Attributes
    ----------
    tests : int
        Tests with a valid trial on both sides.
    baseline, candidate : float
        Mean over the tests of the pass rate, in [0, 1].
    delta : float
        Candidate minus baseline, in [-1, 1]; every test counts the same.
    se : float
        Standard error of delta from luck within the tests. It is never zero.
    p_value : float
        One-sided, for a loss, in (0, 1].

    Examples
    --------
    >>> print(independent_loss([0, 1], [10, 10], [4, 3], [10, 10]))
    95.0% -> 65.0%, delta -30.0 points [-61.0, +1.0], p 0.023, 2 tests
    """

    tests: int
    baseline: float
    candidate: float
    delta: float
    se: float
    p_value: float

    def margin_z(self, margin: float, excess: float = 0.0) -> float:
        """How many standard errors the loss stays inside a margin.

        Parameters
        ----------
        margin
            Loss that is tolerated, in (0, 1).
        excess
            Share of the trials that is counted as lost on top of those that failed, in [0, 1].
        """
        return (self.delta - excess + share("margin", margin)) / self.se

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided interval for delta, within [-1, 1]."""
        from scipy.special import ndtri

        half = float(ndtri((1 + share("level", level)) / 2)) * self.se
        return Interval(
            self.delta, max(-1.0, self.delta - half), min(1.0, self.delta + half), level, "strata"
        )

    def __str__(self) -> str:
        seen = self.interval()
        return (
            f"{self.baseline:.1%} -> {self.candidate:.1%}, delta {100 * self.delta:+.1f} points "
            f"[{100 * seen.low:+.1f}, {100 * seen.high:+.1f}], p {p_value(self.p_value)}, "
            f"{self.tests} tests"
        )


def independent_loss(
    base_failed: ArrayLike,
    base_trials: ArrayLike,
    cand_failed: ArrayLike,
    cand_trials: ArrayLike,
) -> StrataLoss:
    """Compare two arms that each had their own luck.

    The p-value is that of Cochran, Mantel and Haenszel: given how often each test failed in both
    arms together, the candidate's share of the failures is hypergeometric, with variance
    n1 n2 m (N - m) / (N^2 (N - 1)). It is exact (all tests convolved) up to 400 failures, and
    beyond that normal with a continuity correction. At one trial an arm it is McNemar's test on
    the tests that came out differently.

    The standard error is that of two binomial arms a test, unbiased (n - 1), as if two more
    failures had been seen in each arm: where nothing varied it still says how often the tests were
    tried. At one trial a test it is taken from the tests that came out differently.

    Parameters
    ----------
    base_failed, base_trials, cand_failed, cand_trials
        Failures and valid trials of each test on each side, shape (tests,). Tests without a valid
        trial on both sides are left out.

    Returns
    -------
    StrataLoss
        The loss with its standard error and p-value.

    Raises
    ------
    ValueError
        If the counts are impossible, or no test has a valid trial on both sides.

    References
    ----------
    Mantel and Haenszel, JNCI 22, 1959, 719-748; Cochran, Biometrics 10, 1954, 417-451; Mehta,
    Patel and Gray, JASA 80, 1985, 969-973 (exact, by convolution); Wilson, JASA 22, 1927, and
    Agresti and Coull, American Statistician 52, 1998 (z^2 / 2 more failures, here 2).

    Examples
    --------
    >>> loss = independent_loss([0, 0], [10, 10], [5, 4], [10, 10])
    >>> round(loss.delta, 3), round(loss.p_value, 5)
    (-0.45, 0.0007)
    """
    k1, n1 = _counts("baseline", base_failed, base_trials)
    k2, n2 = _counts("candidate", cand_failed, cand_trials)
    if k1.shape != k2.shape:
        raise ValueError(f"{k1.size} tests on the baseline, {k2.size} on the candidate")
    both = (n1 > 0) & (n2 > 0)
    k1, n1, k2, n2 = k1[both], n1[both], k2[both], n2[both]
    if k1.size == 0:
        raise ValueError("no test has a valid trial on both sides")
    base, cand = 1 - k1 / n1, 1 - k2 / n2
    delta = float((cand - base).mean())
    if n1.max() == 1 and n2.max() == 1:
        variance = _one_trial_variance(k1, k2)
    else:
        each = _binomial_variance(k1, n1) + _binomial_variance(k2, n2)
        variance = float(each.sum()) / each.size**2
    variance += UNSEEN_FAILURES * float(n1.sum() ** -2 + n2.sum() ** -2)
    return StrataLoss(
        tests=int(k1.size),
        baseline=float(base.mean()),
        candidate=float(cand.mean()),
        delta=delta,
        se=math.sqrt(variance),
        p_value=_mantel_haenszel_p(k1, n1, k2, n2),
    )


def shared_loss(
    worse: ArrayLike, better: ArrayLike, both_failed: ArrayLike, pairs: ArrayLike
) -> StrataLoss:
    """Compare two versions that met the same luck, pair by pair.

    A pair in which one version failed falls to either side like a coin where they do not differ,
    in every test; so does their sum over the tests, and the p-value is exact. The standard error
    is that of the paired difference within each test, unbiased (n - 1), as if two more such pairs
    had been seen each way: where nothing varied it still says how often the tests were tried.

    Parameters
    ----------
    worse, better, both_failed, pairs
        Pairs of each test in which only the candidate, only the baseline, both failed; and all
        that are valid on both sides, shape (tests,). Tests without a valid pair are left out.

    Returns
    -------
    StrataLoss
        The loss with its standard error and p-value.

    Raises
    ------
    ValueError
        If the counts are impossible, or no test has a valid pair.

    References
    ----------
    McNemar, Psychometrika 12, 1947; Mantel and Haenszel, JNCI 22, 1959 (a pair is a stratum).

    Examples
    --------
    >>> print(shared_loss([4, 3], [0, 0], [1, 0], [10, 10]))
    95.0% -> 60.0%, delta -35.0 points [-64.4, -5.6], p 0.008, 2 tests
    """
    w, b, f, n = (np.asarray(x, dtype=np.float64) for x in (worse, better, both_failed, pairs))
    if not w.shape == b.shape == f.shape == n.shape:
        raise ValueError("worse, better, both_failed and pairs must have one entry a test")
    if any((x < 0).any() for x in (w, b, f)) or (w + b + f > n).any():
        raise ValueError("worse, better and both failed must add up to at most the pairs")
    tried = n > 0
    w, b, f, n = w[tried], b[tried], f[tried], n[tried]
    if n.size == 0:
        raise ValueError("no test has a valid pair")
    change = (b - w) / n
    if n.max() == 1:
        variance = _one_trial_variance(b, w)
    else:
        # One pair alone says nothing of its variance, which is 1 at most.
        each = np.where(n > 1, (w + b - (b - w) ** 2 / n) / (n * np.maximum(n - 1, 1)), 1.0)
        variance = float(each.sum()) / n.size**2
    variance += 2 * UNSEEN_FAILURES * float(n.sum() ** -2)
    return StrataLoss(
        tests=int(n.size),
        baseline=float((1 - (b + f) / n).mean()),
        candidate=float((1 - (w + f) / n).mean()),
        delta=float(change.mean()),
        se=math.sqrt(variance),
        p_value=_coin_tail(int(w.sum()), int(b.sum())),
    )


def _counts(side: str, failed: ArrayLike, trials: ArrayLike) -> tuple[FloatArray, FloatArray]:
    k = np.asarray(failed, dtype=np.float64)
    n = np.asarray(trials, dtype=np.float64)
    if k.shape != n.shape or k.ndim != 1 or (k < 0).any() or (k > n).any():
        raise ValueError(f"failures of the {side} must lie between 0 and its trials, test by test")
    return k, n


def _binomial_variance(failed: FloatArray, trials: FloatArray) -> FloatArray:
    """Unbiased variance of each test's rate; of one trial alone it is 1/4 at most."""
    seen = failed * (trials - failed) / (trials**2 * np.maximum(trials - 1, 1))
    return np.where(trials > 1, seen, 0.25)


def _one_trial_variance(better: FloatArray, worse: FloatArray) -> float:
    """Variance of the mean difference where each test was tried once: that between the tests."""
    tests = better.size
    differs = float(np.abs(better - worse).sum())
    change = float((better - worse).sum())
    return (differs - change**2 / tests) / (tests * max(tests - 1, 1))


def _coin_tail(heads: int, tails: int) -> float:
    from scipy.special import bdtr

    return float(bdtr(tails, heads + tails, 0.5))


def _mantel_haenszel_p(k1: FloatArray, n1: FloatArray, k2: FloatArray, n2: FloatArray) -> float:
    m, total = k1 + k2, n1 + n2
    varied = (m > 0) & (m < total)
    k2, n1, n2, m, total = k2[varied], n1[varied], n2[varied], m[varied], total[varied]
    if m.size == 0:
        return 1.0
    seen = int(k2.sum())
    if m.sum() <= _EXACT_FAILURES:
        chances, lowest = np.ones(1), 0
        for failures, first, second in zip(m, n1, n2, strict=True):
            part, least = _hypergeometric(int(first), int(second), int(failures))
            chances, lowest = np.convolve(chances, part), lowest + least
        return min(1.0, float(chances[max(0, seen - lowest) :].sum()))
    from scipy.special import ndtr

    expected = float((n2 * m / total).sum())
    variance = float((n1 * n2 * m * (total - m) / (total**2 * (total - 1))).sum())
    return float(ndtr(-(seen - expected - 0.5) / math.sqrt(variance)))


@lru_cache(maxsize=65536)
def _hypergeometric(n1: int, n2: int, failures: int) -> tuple[NDArray[np.float64], int]:
    """Chance of each number of failures in the second arm, and the least number it can have."""
    least, most = max(0, failures - n1), min(n2, failures)
    log_ways = [
        math.lgamma(n2 + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n2 - k + 1)
        + math.lgamma(n1 + 1)
        - math.lgamma(failures - k + 1)
        - math.lgamma(n1 - failures + k + 1)
        for k in range(least, most + 1)
    ]
    ways = np.exp(np.array(log_ways) - max(log_ways))
    return ways / ways.sum(), least
