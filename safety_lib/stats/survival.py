"""Time to the first violation, for one group of conversations.

Time is the turn of the first violation, or the last turn that was watched when there was none
(censored). Reaching the turn limit is censoring that says nothing about the outcome; a session that
a guardrail ended or an attacker gave up is a competing event, for `cumulative_incidence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safety_lib.stats.intervals import FloatArray, finite_array, share, z_value
from safety_lib.text import Shown, in_lines

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KaplanMeier(Shown):
    """Kaplan-Meier curve: arrays of shape (times,), one row per distinct observed time."""

    time: FloatArray
    survival: FloatArray
    low: FloatArray
    high: FloatArray
    at_risk: Counts
    events: Counts
    level: float

    def at(self, t: float) -> float:
        """Survival at time t: the step that t falls on, and 1 before the first time."""
        step = int(np.searchsorted(self.time, t, side="right")) - 1
        return float(self.survival[step]) if step >= 0 else 1.0

    def __str__(self) -> str:
        columns = (self.time, self.at_risk, self.events, self.survival, self.low, self.high)
        rows = [
            f"{t:6g} {n:8d} {d:7d}  {s:.3f} [{low:.3f}, {high:.3f}]"
            for t, n, d, s, low, high in zip(*columns, strict=True)
        ]
        return in_lines(["  time  at risk  events  survival", *rows])


def kaplan_meier(time: ArrayLike, event: ArrayLike, level: float = 0.95) -> KaplanMeier:
    """Survival by time with a pointwise log-log band, which stays within [0, 1].

    Where nothing has failed yet the lower bound is the exact one for no failure among those at
    risk; where everything has failed the upper bound is its mirror image. The band is therefore
    never of zero width.

    Parameters
    ----------
    time
        Turn of the event or of censoring, positive, shape (subjects,).
    event
        1 or True where the event was seen, 0 or False where it was censored, shape (subjects,).
    level
        Two-sided confidence level in (0, 1) of the band at each time.

    Returns
    -------
    KaplanMeier
        One row for each distinct time, of events and of censoring alike.

    Raises
    ------
    ValueError
        If the shapes differ, time is empty, not finite or not positive, event is neither 0 nor 1,
        or level is not in (0, 1).

    References
    ----------
    Kaplan and Meier, JASA 53, 1958; Kalbfleisch and Prentice, The Statistical Analysis of Failure
    Time Data, 1980 (log-log band).

    Examples
    --------
    >>> print(kaplan_meier([2, 3, 3, 5, 8, 8], [1, 1, 0, 1, 0, 0]))
      time  at risk  events  survival
         2        6       1  0.833 [0.273, 0.975]
         3        5       1  0.667 [0.195, 0.904]
         5        3       1  0.444 [0.066, 0.785]
         8        2       0  0.444 [0.066, 0.785]
    """
    time, event = checked_times(time, event)
    z, tail = z_value(level), (1 - share("level", level)) / 2
    grid, index = np.unique(time, return_inverse=True)
    events = np.bincount(index, weights=event)
    at_risk = from_the_end(np.bincount(index))
    survival = survival_of(events, at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(events / (at_risk * (at_risk - events)))
        log_survival = np.log(survival)
        spread = np.exp(z * np.sqrt(greenwood) / np.abs(log_survival))
        low, high = survival**spread, survival ** (1 / spread)
    low[survival == 1] = tail ** (1 / at_risk[survival == 1])
    high[survival == 1] = 1.0
    low[survival == 0] = 0.0
    ended = np.flatnonzero(survival == 0)
    if ended.size:
        before = high[ended[0] - 1] if ended[0] else 1.0
        high[ended] = min(before, 1 - tail ** (1 / at_risk[ended[0]]))
    return KaplanMeier(
        grid,
        survival,
        low,
        high,
        at_risk.astype(np.int64),
        events.astype(np.int64),
        level,
    )


def checked_times(time: ArrayLike, event: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return times and event indicators as floats, or raise a ValueError."""
    time = finite_array("time", time)
    event = np.asarray(event, dtype=np.float64)
    if event.shape != time.shape:
        raise ValueError(f"time and event must have one shape, not {time.shape}, {event.shape}")
    if time.min() <= 0:
        raise ValueError("time must be positive: turns count from 1")
    if not np.isin(event, (0, 1)).all():
        raise ValueError("event must be 0 or 1")
    return time, event


def from_the_end(counts: NDArray[Any]) -> NDArray[Any]:
    """Cumulative sums from the last column back: how many are still at risk at each time."""
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]


def survival_of(events: NDArray[Any], at_risk: NDArray[Any]) -> FloatArray:
    """Product-limit survival along the last axis; flat where nobody is at risk."""
    curve: FloatArray = np.cumprod(1 - events / np.maximum(at_risk, 1), axis=-1)
    return curve


def last_time_at_risk(time: ArrayLike, minimum: int = 5) -> float:
    """Last time at which at least `minimum` subjects are at risk: curves should stop there.

    Parameters
    ----------
    time
        Time of event or censoring, shape (subjects,).
    minimum
        Fewest subjects, at least 1.

    Returns
    -------
    float
        0 if there are fewer subjects than that.

    Raises
    ------
    ValueError
        If time is empty or not finite, or minimum < 1.

    Examples
    --------
    >>> last_time_at_risk([1, 2, 2, 4, 6, 8, 8, 8])
    4.0
    """
    time = finite_array("time", time)
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1, not {minimum}")
    return float(np.sort(time)[-minimum]) if time.size >= minimum else 0.0


def turns_without_event(time: ArrayLike, event: ArrayLike, tau: float) -> float:
    """Mean number of whole turns without an event, of the first tau.

    The turn in which the event falls is not without one. So this is the sum of the survival after
    each turn: the restricted mean survival time, which is the area under the curve up to tau, less
    the share that had the event by then.

    Parameters
    ----------
    time, event
        As for `kaplan_meier`, in whole turns.
    tau
        Horizon, a whole number of at least 1. At most the last time, unless the curve has reached
        zero by then.

    Returns
    -------
    float
        In [0, tau].

    Raises
    ------
    ValueError
        As for `kaplan_meier`, or if tau is not positive or beyond what was watched.

    References
    ----------
    Restricted mean: Royston and Parmar, BMC Medical Research Methodology 13:152, 2013.

    Examples
    --------
    >>> turns_without_event([2, 4, 4, 4], [1, 0, 0, 0], tau=4)
    3.25
    """
    curve = kaplan_meier(time, event)
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be positive, not {tau}")
    if tau > curve.time[-1] and curve.survival[-1] > 0:
        raise ValueError(f"tau must be at most the last time, {curve.time[-1]:g}")
    return float(whole_turns(curve.time, curve.survival, tau))


def whole_turns(grid: FloatArray, survival: FloatArray, tau: float) -> FloatArray:
    """Sum of the survival after each turn up to tau, from step curves that start at 1.

    Parameters
    ----------
    grid
        Times of the steps, whole turns, positive and rising, shape (times,).
    survival
        Survival from each time on, in [0, 1], shape (..., times).
    tau
        Horizon, a whole number of turns.

    Returns
    -------
    ndarray
        In [0, tau], shape (...).

    Examples
    --------
    >>> float(whole_turns(np.array([2.0, 4.0]), np.array([0.75, 0.5]), tau=4))
    3.0
    """
    # A turn k is the stretch from k to k + 1: the curve has then taken the step at k.
    edges = np.clip(np.concatenate([[1.0], grid, [max(tau, grid[-1]) + 1]]), 1.0, tau + 1)
    widths = np.diff(edges)
    turns: FloatArray = widths[0] + survival @ widths[1:]
    return turns


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CumulativeIncidence(Shown):
    """Aalen-Johansen curves: `incidence` has shape (times, causes)."""

    time: FloatArray
    causes: tuple[int, ...]
    incidence: FloatArray

    def __str__(self) -> str:
        lines = []
        for t, row in zip(self.time, self.incidence, strict=True):
            shares = zip(self.causes, row, strict=True)
            lines.append(f"time {t:g}: " + ", ".join(f"cause {c} {f:.3f}" for c, f in shares))
        return in_lines(lines)


def cumulative_incidence(time: ArrayLike, cause: ArrayLike) -> CumulativeIncidence:
    """Share that has failed from each of several competing causes by each time.

    A cause's own curve is the least that its incidence can be, if no session that another cause
    ended would have failed; the sum over causes is the most, if all of them would have failed at
    once. Both bound what 1 - `kaplan_meier` says when it takes other causes for censoring.

    Parameters
    ----------
    time
        Time of the first event or of censoring, positive, shape (subjects,).
    cause
        0 where censored, otherwise the number 1, 2, ... of the cause, shape (subjects,).

    Returns
    -------
    CumulativeIncidence
        One curve for each cause that occurred, in [0, 1]; together they are at most 1.

    Raises
    ------
    ValueError
        If the shapes differ, time is empty, not finite or not positive, or a cause is not a whole
        number of at least 0.

    References
    ----------
    Aalen and Johansen, Scandinavian Journal of Statistics 5, 1978.

    Examples
    --------
    >>> print(cumulative_incidence([1, 2, 2, 3], [1, 2, 1, 0]))
    time 1: cause 1 0.250, cause 2 0.000
    time 2: cause 1 0.500, cause 2 0.250
    time 3: cause 1 0.500, cause 2 0.250
    """
    time, cause = finite_array("time", time), finite_array("cause", cause)
    if not ((cause >= 0) & (cause == np.rint(cause))).all():
        raise ValueError("cause must be a whole number of at least 0")
    time, event = checked_times(time, cause > 0)
    if cause.shape != time.shape:
        raise ValueError(f"time and cause must have one shape, not {time.shape}, {cause.shape}")
    grid, index = np.unique(time, return_inverse=True)
    at_risk = from_the_end(np.bincount(index))
    survival = survival_of(np.bincount(index, weights=event), at_risk)
    reached = np.concatenate([[1.0], survival[:-1]])
    causes = tuple(int(c) for c in np.unique(cause[cause > 0]))
    steps = [reached * np.bincount(index, weights=cause == c) / at_risk for c in causes]
    incidence = np.cumsum(steps, axis=1).T if causes else np.zeros((grid.size, 0))
    return CumulativeIncidence(grid, causes, incidence)
