"""How many failure modes a search has found, and how many it has not.

`counts` is how often each distinct failure mode was seen. The estimates assume that rollouts are
exchangeable; an attacker that adapts breaks this, so read them as a stopping heuristic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import (
    FloatArray,
    clopper_pearson_upper,
    finite_array,
    share,
    z_value,
)
from safety_lib.stats.sequential import upper_limits


def _seen(counts: ArrayLike) -> NDArray[np.int64]:
    counts = finite_array("counts", counts)
    if counts.min() < 0 or not (counts == np.rint(counts)).all() or counts.sum() == 0:
        raise ValueError("counts must be whole numbers of at least 0 and not all 0")
    return counts[counts > 0].astype(np.int64)


def good_turing_missing_mass(counts: ArrayLike) -> float:
    """Estimate the chance that the next failure is of a mode never seen: singletons / failures.

    Parameters
    ----------
    counts
        Failures of each mode, shape (modes,).

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If counts is empty, all 0, or holds anything but whole numbers of at least 0.

    References
    ----------
    Good, Biometrika 40, 1953.

    Examples
    --------
    >>> round(good_turing_missing_mass([0, 1, 1, 4, 2, 5, 2, 4, 1, 2]), 4)
    0.1364
    """
    counts = _seen(counts)
    return float(np.count_nonzero(counts == 1) / counts.sum())


def missing_mass_upper(counts: ArrayLike, level: float = 0.95) -> float:
    """Upper bound on the chance that the next failure is of a mode never seen.

    The normal approximation with variance (f1 (1 - f1 / n) + 2 f2) / n^2, f1 and f2 being the
    modes seen once and twice, and never less than the exact bound on one mode that n failures have
    not shown.

    Parameters
    ----------
    counts
        Failures of each mode, shape (modes,).
    level
        One-sided confidence level in (0, 1).

    Returns
    -------
    float
        In (0, 1].

    Raises
    ------
    ValueError
        As for `good_turing_missing_mass`, or if level is not in (0, 1).

    References
    ----------
    Esty, Annals of Statistics 11, 1983.

    Examples
    --------
    >>> round(missing_mass_upper([0, 1, 1, 4, 2, 5, 2, 4, 1, 2]), 3)
    0.356
    """
    seen = _seen(counts)
    n, estimate = int(seen.sum()), good_turing_missing_mass(seen)
    alpha = 1 - share("level", level)
    f1, f2 = (int(np.count_nonzero(seen == times)) for times in (1, 2))
    slack = z_value(1 - 2 * alpha) * math.sqrt(f1 * (1 - f1 / n) + 2 * f2) / n
    return min(1.0, max(estimate + slack, clopper_pearson_upper(0, n, level)))


def chao1(counts: ArrayLike) -> float:
    """Estimate how many failure modes there are, seen and unseen; a lower bound on average.

    The bias-corrected S + f1 (f1 - 1) / (2 (f2 + 1)), with S modes seen, f1 of them once and f2
    twice.

    Parameters
    ----------
    counts
        Failures of each mode, shape (modes,).

    Returns
    -------
    float
        At least the number of modes seen.

    Raises
    ------
    ValueError
        As for `good_turing_missing_mass`.

    References
    ----------
    Chao, Scandinavian Journal of Statistics 11, 1984, and Statistica Sinica 15, 2005 (corrected).

    Examples
    --------
    >>> chao1([0, 1, 1, 4, 2, 5, 2, 4, 1, 2])
    9.75
    """
    counts = _seen(counts)
    f1, f2 = (int(np.count_nonzero(counts == times)) for times in (1, 2))
    return counts.size + f1 * (f1 - 1) / (2 * (f2 + 1))


def accumulation_curve(counts: ArrayLike, rollouts: int) -> FloatArray:
    """Distinct modes expected after 1, 2, ... rollouts, over all orders of the rollouts seen.

    A curve that is still rising at its end says that the search has not finished.

    Parameters
    ----------
    counts
        Failures of each mode, shape (modes,); a rollout shows at most one mode.
    rollouts
        All rollouts, those without a failure included; at least the number of failures.

    Returns
    -------
    ndarray
        Shape (rollouts,), from the share of rollouts that failed up to the number of modes.

    Raises
    ------
    ValueError
        As for `good_turing_missing_mass`, or if rollouts is below the number of failures.

    References
    ----------
    Hurlbert, Ecology 52, 1971.

    Examples
    --------
    >>> accumulation_curve([2, 1, 1], rollouts=4).round(3).tolist()
    [1.0, 1.833, 2.5, 3.0]
    """
    seen = _seen(counts)
    if rollouts < seen.sum():
        raise ValueError(f"rollouts must be at least the number of failures, {seen.sum()}")
    drawn = np.arange(rollouts)
    modes, repeats = np.unique(seen, return_counts=True)
    # Chance that a mode with m failures is absent from the first r rollouts, as a running product.
    steps = np.maximum(0.0, 1 - modes[:, None] / (rollouts - drawn))
    return np.asarray(repeats @ (1 - np.cumprod(steps, axis=1)), dtype=np.float64)


def new_mode_bound(modes: Sequence[str | None], level: float = 0.95) -> FloatArray:
    """Bound the chance that the next rollout shows a mode not seen yet, after every rollout.

    The bounds hold for all rollouts at once, so that a search may stop at the first that is small
    enough. Whenever a new mode turns up, what is known so far is frozen: the chance to see anything
    outside it is one fixed rate, and a confidence sequence for it goes on from there. The k-th of
    these sequences is given the share 1 / ((k + 1) (k + 2)) of alpha, and the smallest bound that
    any of them ever gave is still a bound, because what is unseen only shrinks.

    Parameters
    ----------
    modes
        What each rollout showed, in the order seen: a mode, or None for no failure.
    level
        Confidence level over the whole search, in (0, 1).

    Returns
    -------
    ndarray
        Shape (rollouts,), in (0, 1], never rising.

    Raises
    ------
    ValueError
        If level is not in (0, 1).

    References
    ----------
    Howard et al., Annals of Statistics 49, 2021 (sequences); Good, Biometrika 40, 1953 (the rate).

    Examples
    --------
    >>> new_mode_bound(["a"] * 200)[[9, 49, 199]].round(3).tolist()
    [0.513, 0.139, 0.039]
    """
    alpha = 1 - share("level", level)
    first: dict[str, int] = {}
    rank = np.array(
        [-1 if mode is None else first.setdefault(mode, len(first)) for mode in modes],
        dtype=np.int64,
    )
    starts = [0] + [int(np.flatnonzero(rank == k)[0]) + 1 for k in range(len(first))]
    bounds = np.ones(rank.size)
    for k, start in enumerate(starts):
        own = 1 - alpha / ((k + 1) * (k + 2))
        outside = np.cumsum(rank[start:] >= k)
        limits = upper_limits(outside, np.arange(1, outside.size + 1), own)
        bounds[start:] = np.minimum(bounds[start:], limits)
    return np.asarray(np.minimum.accumulate(bounds), dtype=np.float64)
