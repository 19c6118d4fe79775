"""How much each of several causes contributes, when every combination of them was tried."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray, Interval, percentile_interval


def _weights(combinations: int) -> FloatArray:
    """Matrix (causes, combinations) that maps outcomes to Shapley values."""
    causes = combinations.bit_length() - 1
    if combinations != 2**causes or causes < 1:
        raise ValueError(f"needs 2^k outcomes for k >= 1 causes, not {combinations}")
    masks = np.arange(combinations)
    present = (masks >> np.arange(causes)[:, None]) & 1
    others = present.sum(axis=0) - present
    share_of_orders = np.array(
        [1 / (causes * math.comb(causes - 1, size)) for size in range(causes)]
    )
    weights: FloatArray = share_of_orders[others] * (2 * present - 1)
    return weights


def shapley_intervals(
    outcomes: ArrayLike, rng: np.random.Generator, level: float = 0.95, draws: int = 2_000
) -> tuple[Interval, ...]:
    """Shapley value of each cause for the mean outcome, with bootstrap intervals over units.

    The value is the mean effect of the cause over all orders of switching causes on.

    Parameters
    ----------
    outcomes
        Outcome in [0, 1] of each independent unit under each combination, shape (units, 2^k); bit
        i of the column says that cause i is on.
    rng
        Source of the resamples.
    level
        Two-sided confidence level in (0, 1) of each interval.
    draws
        Number of resamples.

    Returns
    -------
    tuple of Interval
        One for each cause, within [-1, 1]. The estimates add up to the mean outcome with all
        causes on minus that with none.

    Raises
    ------
    ValueError
        If outcomes is not of shape (units, 2^k), empty, not finite or outside [0, 1], or level is
        not in (0, 1).

    References
    ----------
    Shapley, Contributions to the Theory of Games II, 1953; Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> outcomes = rng.random((60, 4)) < [0.1, 0.3, 0.1, 0.9]
    >>> print(*shapley_intervals(outcomes, rng), sep="; ")
    0.433 [0.341, 0.525]; 0.250 [0.158, 0.333]
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim != 2 or outcomes.shape[0] == 0:
        raise ValueError(f"outcomes must have shape (units, 2^k), not {outcomes.shape}")
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError("outcomes must lie in [0, 1]")
    units = outcomes.shape[0]
    per_unit = outcomes @ _weights(outcomes.shape[1]).T
    resamples = rng.multinomial(units, np.full(units, 1 / units), size=draws)
    resampled = resamples @ per_unit / units
    return tuple(
        percentile_interval(
            float(np.clip(per_unit[:, i].mean(), -1, 1)), resampled[:, i], units, level
        )
        for i in range(per_unit.shape[1])
    )
