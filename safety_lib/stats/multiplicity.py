"""Many families at once, and many trials of one test."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray, finite_array


def holm(p: ArrayLike) -> FloatArray:
    """Adjust p-values so that rejecting those <= alpha keeps the family-wise error at alpha.

    Parameters
    ----------
    p
        P-values in [0, 1], shape (tests,).

    Returns
    -------
    ndarray
        Adjusted p-values in the order given, shape (tests,).

    Raises
    ------
    ValueError
        If p is empty, not finite or outside [0, 1].

    References
    ----------
    Holm, Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = finite_array("p", p)
    if p.min() < 0 or p.max() > 1:
        raise ValueError("p must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def pass_hat_k(passes: ArrayLike, trials: ArrayLike, k: int) -> float:
    """Chance that k trials of a test *all* pass (pass^k): mean over tests of C(c,k) / C(n,k).

    Parameters
    ----------
    passes, trials
        Passes c and trials n of each test, 0 <= c <= n: one number or shape (tests,).
    k
        Trials that are drawn, 1 <= k <= n for every test.

    Returns
    -------
    float
        In [0, 1]; an unbiased estimate for each test.

    Raises
    ------
    ValueError
        If the counts are impossible or k is outside [1, n].

    References
    ----------
    Yao et al., tau-bench, arXiv:2406.12045.

    Examples
    --------
    >>> round(pass_hat_k(4, 8, 2), 4)
    0.2143
    """
    return float(np.mean(_all_drawn(passes, trials, k)))


def pass_at_k(passes: ArrayLike, trials: ArrayLike, k: int) -> float:
    """Chance that *any* of k trials passes (pass@k): mean over tests of 1 - C(n-c,k) / C(n,k).

    Parameters
    ----------
    passes, trials
        Passes c and trials n of each test, 0 <= c <= n: one number or shape (tests,).
    k
        Trials that are drawn, 1 <= k <= n for every test.

    Returns
    -------
    float
        In [0, 1]; an unbiased estimate for each test.

    Raises
    ------
    ValueError
        If the counts are impossible or k is outside [1, n].

    References
    ----------
    Chen et al., arXiv:2107.03374.

    Examples
    --------
    >>> round(pass_at_k(2, 5, 2), 4)
    0.7
    """
    failures = np.asarray(trials, dtype=np.float64) - np.asarray(passes, dtype=np.float64)
    return float(np.mean(1 - _all_drawn(failures, trials, k)))


def _all_drawn(hits: ArrayLike, trials: ArrayLike, k: int) -> FloatArray:
    hits, trials = np.broadcast_arrays(
        np.atleast_1d(np.asarray(hits, dtype=np.float64)),
        np.atleast_1d(np.asarray(trials, dtype=np.float64)),
    )
    if hits.size == 0 or not ((hits >= 0) & (hits <= trials)).all():
        raise ValueError("passes must lie between 0 and trials, in at least one test")
    if not 1 <= k <= trials.min():
        raise ValueError(f"k must lie between 1 and the fewest trials of a test, not {k}")
    drawn = np.arange(k)
    factors = np.maximum(0.0, (hits[:, None] - drawn) / (trials[:, None] - drawn))
    chances: FloatArray = factors.prod(axis=1)
    return chances
