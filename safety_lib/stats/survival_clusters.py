"""Time to the first violation when conversations come in scenarios.

Conversations of one scenario fail alike, so what is resampled or swapped here is the scenario.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import FloatArray, Interval, percentile_interval, share
from safety_lib.stats.survival import (
    checked_times,
    from_the_end,
    survival_of,
    whole_turns,
)
from safety_lib.text import Shown


def _cluster_table(
    weight: FloatArray, time: FloatArray, cluster: ArrayLike, grid: FloatArray
) -> FloatArray:
    """Sum of weights per cluster and time, so that resampling clusters is a matrix product."""
    labels, row = np.unique(np.asarray(cluster), return_inverse=True)
    if row.shape != time.shape:
        raise ValueError(f"time and cluster must have one shape, not {time.shape}, {row.shape}")
    cell = row * grid.size + np.searchsorted(grid, time)
    sums = np.bincount(cell, weight, labels.size * grid.size).astype(np.float64)
    return sums.reshape(labels.size, grid.size)


def delayed_share(
    time: ArrayLike,
    event: ArrayLike,
    cluster: ArrayLike,
    rng: np.random.Generator,
    *,
    first: float = 1.0,
    level: float = 0.95,
    draws: int = 2_000,
) -> Interval:
    """Share of failures that a test of the first turn alone would miss: 1 - F(first) / F(last).

    F = 1 - S is the Kaplan-Meier incidence. The interval resamples whole clusters, because
    conversations of one scenario fail alike.

    Parameters
    ----------
    time, event
        As for `kaplan_meier`.
    cluster
        Scenario of each conversation, shape (subjects,).
    rng
        Source of the resamples.
    first
        Last turn that the short test sees.
    level
        Two-sided confidence level in (0, 1).
    draws
        Number of resamples.

    Returns
    -------
    Interval
        Within [0, 1]; with nothing failed the estimate is NaN in [0, 1]. When no cluster that
        failed did so early (or all did), the bound is the exact one for that many clusters.

    Raises
    ------
    ValueError
        As for `kaplan_meier`, or if cluster has another shape.

    References
    ----------
    Field and Welsh, Journal of the Royal Statistical Society B 69, 2007 (cluster bootstrap).

    Examples
    --------
    >>> time, event = [1, 3, 4, 5, 2, 5, 5, 5], [1, 1, 1, 0, 1, 0, 0, 0]
    >>> scenario = ["a", "a", "b", "b", "c", "c", "d", "d"]
    >>> print(delayed_share(time, event, scenario, np.random.default_rng(1)))
    0.750 [0.500, 1.000]
    """
    time, event = checked_times(time, event)
    grid = np.unique(time)
    events = _cluster_table(event, time, cluster, grid)
    leaving = _cluster_table(np.ones(time.size), time, cluster, grid)
    clusters = events.shape[0]
    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    early = int(np.searchsorted(grid, first, side="right")) - 1

    def delayed(d: FloatArray, gone: FloatArray) -> FloatArray:
        failed = 1 - survival_of(d, from_the_end(gone))
        by_first = failed[..., early] if early >= 0 else 0.0 * failed[..., -1]
        with np.errstate(invalid="ignore"):
            ratio: FloatArray = 1 - by_first / failed[..., -1]
        return ratio

    estimate = float(delayed(events.sum(axis=0), leaving.sum(axis=0)))
    if math.isnan(estimate):
        return Interval(estimate, 0.0, 1.0, share("level", level), "cluster bootstrap")
    resampled = delayed(weights @ events, weights @ leaving)
    failing = int(np.count_nonzero(events.sum(axis=1)))
    return percentile_interval(estimate, resampled, failing, level, "cluster bootstrap", lowest=0.0)


@dataclass(frozen=True, slots=True, repr=False)
class Logrank(Shown):
    """Logrank test: observed and expected events of the two arms, in the order of `arms`.

    Examples
    --------
    >>> print(logrank([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 0, 0], ["v2", "v2", "v2", "v1", "v1", "v1"]))
    v1 1/2.85, v2 3/1.15: chi2 5.05, p 0.0246
    """

    arms: tuple[str, str]
    observed: tuple[int, int]
    expected: tuple[float, float]
    variance: float
    chi2: float
    p_value: float

    def __str__(self) -> str:
        sides = zip(self.arms, self.observed, self.expected, strict=True)
        shown = ", ".join(f"{arm} {o}/{e:.2f}" for arm, o, e in sides)
        return f"{shown}: chi2 {self.chi2:.2f}, p {self.p_value:.4f}"


def logrank(time: ArrayLike, event: ArrayLike, arm: ArrayLike) -> Logrank:
    """Compare the event times of two arms, taking every subject for independent.

    Parameters
    ----------
    time, event
        As for `kaplan_meier`, shape (subjects,).
    arm
        Label of each subject's arm, two distinct ones, shape (subjects,).

    Returns
    -------
    Logrank
        The arms in the sorted order of their labels; without an event the p-value is 1.

    Raises
    ------
    ValueError
        As for `kaplan_meier`, or if arm has another shape or not exactly two values.

    References
    ----------
    Mantel, Cancer Chemotherapy Reports 50, 1966; Peto and Peto, JRSS A 135, 1972.

    Examples
    --------
    >>> logrank([1, 2, 3, 4], [1, 1, 1, 1], [0, 1, 0, 1]).observed
    (2, 2)
    """
    time, event = checked_times(time, event)
    labels, _, events, leaving = _by_arm(time, event, arm, np.zeros(time.size))
    events, leaving = events[:, 0], leaving[:, 0]
    excess, variance = _logrank_parts(events, leaving)
    observed = events.sum(axis=1)
    chi2 = float(excess**2 / variance) if variance > 0 else 0.0
    return Logrank(
        (str(labels[0]), str(labels[1])),
        (int(observed[0]), int(observed[1])),
        (float(observed[0] - excess), float(observed[1] + excess)),
        float(variance),
        chi2,
        math.erfc(math.sqrt(chi2 / 2)),
    )


def _by_arm(
    time: FloatArray, event: FloatArray, arm: ArrayLike, cluster: ArrayLike
) -> tuple[NDArray[Any], FloatArray, FloatArray, FloatArray]:
    """Arm labels, time grid, and events and departures of shape (2, clusters, times)."""
    labels, side = np.unique(np.asarray(arm), return_inverse=True)
    if side.shape != time.shape:
        raise ValueError(f"time and arm must have one shape, not {time.shape}, {side.shape}")
    if labels.size != 2:
        raise ValueError(f"arm must have exactly two values, not {labels.size}")
    grid = np.unique(time)
    sides = [(side == s).astype(np.float64) for s in (0, 1)]
    events = np.stack([_cluster_table(s * event, time, cluster, grid) for s in sides])
    leaving = np.stack([_cluster_table(s, time, cluster, grid) for s in sides])
    return labels, grid, events, leaving


def _logrank_parts(events: FloatArray, leaving: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Observed minus expected of the first arm, and its variance; arrays (2, ..., times)."""
    at_risk = from_the_end(leaving)
    n, d = at_risk.sum(axis=0), events.sum(axis=0)
    portion = at_risk[0] / np.maximum(n, 1)
    excess = np.sum(events[0] - d * portion, axis=-1)
    variance = np.sum(d * portion * (1 - portion) * (n - d) / np.maximum(n - 1, 1), axis=-1)
    return excess, variance


@dataclass(frozen=True, slots=True, repr=False)
class ArmComparison(Shown):
    """Result of `compare_arms`: the second arm against the first."""

    arms: tuple[str, str]
    tau: float
    gained: Interval
    p_value: float
    clusters: int
    logrank: Logrank

    def __str__(self) -> str:
        return (
            f"{self.arms[1]} against {self.arms[0]}: {self.gained} turns gained up to turn "
            f"{self.tau:g}, p = {self.p_value:.4f} ({self.clusters} scenarios)"
        )


def compare_arms(
    time: ArrayLike,
    event: ArrayLike,
    arm: ArrayLike,
    cluster: ArrayLike,
    rng: np.random.Generator,
    *,
    tau: float | None = None,
    level: float = 0.95,
    draws: int = 2_000,
) -> ArmComparison:
    """Compare two arms that met the same scenarios: the turns gained, and whether by chance.

    The p-value swaps the arms of whole scenarios at random and takes the logrank statistic; the
    interval for the difference of the mean turns without an event resamples scenarios. No
    proportional hazards are assumed.

    Parameters
    ----------
    time, event
        As for `kaplan_meier`, shape (subjects,).
    arm
        Label of each subject's arm, two distinct ones; the one that sorts first is the reference.
    cluster
        Scenario of each subject, shape (subjects,).
    rng
        Source of swaps and resamples.
    tau
        Horizon in whole turns; by default the last time that both arms have.
    level
        Two-sided confidence level in (0, 1).
    draws
        Number of swaps and of resamples. The smallest p-value is 1 / (1 + draws).

    Returns
    -------
    ArmComparison
        `gained` is what the second arm has more of turns without an event, as
        :func:`safety_lib.stats.survival.turns_without_event` counts them, in [-tau, tau].

    Raises
    ------
    ValueError
        As for `logrank`, or if tau is not positive or beyond the last time that both arms have.

    References
    ----------
    Royston and Parmar, BMC Medical Research Methodology 13:152, 2013; Good, Permutation,
    Parametric and Bootstrap Tests of Hypotheses, 2005.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> failure = np.concatenate([rng.geometric(0.3, 48), rng.geometric(0.1, 48)])
    >>> time, event = np.minimum(failure, 8), failure <= 8
    >>> arm, scenario = np.repeat(["v1", "v2"], 48), np.tile(np.repeat(np.arange(12), 4), 2)
    >>> print(compare_arms(time, event, arm, scenario, rng))
    v2 against v1: 3.042 [1.792, 4.271] turns gained up to turn 8, p = 0.0025 (12 scenarios)
    """
    time, event = checked_times(time, event)
    test = logrank(time, event, arm)
    _, grid, events, leaving = _by_arm(time, event, arm, cluster)
    clusters = events.shape[1]
    watched = min(float(grid[side.sum(axis=0) > 0][-1]) for side in leaving)
    tau = watched if tau is None else tau
    if not 0 < tau <= watched:
        raise ValueError(f"tau must be positive and at most the last common time, {watched:g}")

    swap = rng.integers(0, 2, (draws, clusters)).astype(np.float64)
    excess, variance = _logrank_parts(_swapped(events, swap), _swapped(leaving, swap))
    z2 = np.divide(excess**2, variance, out=np.zeros(draws), where=variance > 0)
    p_value = (1 + np.count_nonzero(z2 >= test.chi2 - 1e-9)) / (1 + draws)

    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)

    def gained(d: FloatArray, gone: FloatArray) -> FloatArray:
        means = whole_turns(grid, survival_of(d, from_the_end(gone)), tau)
        difference: FloatArray = means[1] - means[0]
        return difference

    estimate = float(gained(events.sum(axis=1), leaving.sum(axis=1)))
    interval = percentile_interval(
        estimate,
        gained(weights @ events, weights @ leaving),
        clusters,
        level,
        "cluster bootstrap",
        lowest=-tau,
        highest=tau,
    )
    return ArmComparison(test.arms, tau, interval, p_value, clusters, test)


def _swapped(table: FloatArray, swap: FloatArray) -> FloatArray:
    """Tables (2, clusters, times) after each row of swaps: (2, draws, times)."""
    moved = swap @ (table[1] - table[0])
    return np.stack([table[0].sum(axis=0) + moved, table[1].sum(axis=0) - moved])
