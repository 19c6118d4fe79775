"""Agreement of judges beyond chance."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import FloatArray


def cohen_kappa(table: ArrayLike) -> float:
    """Agreement of two judges on the same items, corrected for chance.

    Parameters
    ----------
    table
        Items by label of the first judge (rows) and of the second (columns), square.

    Returns
    -------
    float
        At most 1, 0 for chance; NaN when both judges gave every item one and the same label.

    Raises
    ------
    ValueError
        If table is not square, holds a negative or non-finite count, or is all 0.

    References
    ----------
    Cohen, Educational and Psychological Measurement 20, 1960.

    Examples
    --------
    >>> round(cohen_kappa([[20, 5], [10, 15]]), 4)
    0.4
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"table must be square, not of shape {table.shape}")
    if not (np.isfinite(table).all() and (table >= 0).all() and table.sum() > 0):
        raise ValueError("table must hold counts of at least 0, not all 0")
    joint = table / table.sum()
    chance = float(joint.sum(axis=1) @ joint.sum(axis=0))
    return (float(np.trace(joint)) - chance) / (1 - chance) if chance < 1 else math.nan


def krippendorff_alpha(
    ratings: ArrayLike, level: Literal["nominal", "ordinal", "interval"] = "nominal"
) -> float:
    """Agreement of any number of judges, with missing ratings.

    Parameters
    ----------
    ratings
        Rating of each judge for each unit, NaN where missing, shape (judges, units).
    level
        Scale of the ratings, which sets how far apart two values are.

    Returns
    -------
    float
        At most 1, 0 for chance; NaN when all ratings that can be paired are equal.

    Raises
    ------
    ValueError
        If ratings is not two-dimensional, no unit has two ratings or the level is unknown.

    References
    ----------
    Krippendorff, Content Analysis, 4th ed., 2018, chapter 12.

    Examples
    --------
    >>> round(krippendorff_alpha([[1, 2, 3, 3], [1, 2, 3, 4]], level="interval"), 4)
    0.8889
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2 or np.isinf(ratings).any():
        raise ValueError("ratings must be a finite array of shape (judges, units)")
    ratings = ratings[:, np.count_nonzero(~np.isnan(ratings), axis=0) >= 2]
    if ratings.size == 0:
        raise ValueError("ratings must give at least one unit two ratings")
    values = np.unique(ratings[~np.isnan(ratings)])
    # Units by values: how many judges gave this value.
    given = np.stack([np.count_nonzero(ratings == v, axis=0) for v in values], axis=1)
    weight = 1 / (given.sum(axis=1) - 1)
    coincidences = given.T @ (given * weight[:, None]) - np.diag(weight @ given)
    totals = coincidences.sum(axis=1)
    distance = _distances(values, totals, level)
    expected = float(totals @ distance @ totals)
    observed = float(np.sum(coincidences * distance))
    return 1 - float(totals.sum() - 1) * observed / expected if expected > 0 else math.nan


def _distances(values: FloatArray, totals: FloatArray, level: str) -> FloatArray:
    if level == "nominal":
        return 1.0 - np.eye(values.size)
    if level == "interval":
        position = values
    elif level == "ordinal":
        # Values are as far apart as the ratings between them, counting half of each end.
        position = np.cumsum(totals) - totals / 2
    else:
        raise ValueError(f"level must be nominal, ordinal or interval, not {level!r}")
    squared: FloatArray = np.subtract.outer(position, position) ** 2
    return squared
