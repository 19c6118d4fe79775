"""How common something is, from an imperfect detector.

Rogan-Gladen corrects a detector's count by its known errors, Lang-Reiczigel also carries the
uncertainty of those errors, and prediction-powered inference corrects a score by a labelled
sample. Sensitivity and specificity that were measured elsewhere rarely hold in production: take
these as a second opinion beside the stratified audit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from safety_lib.stats.intervals import (
    Interval,
    bound_without_variation,
    finite_array,
    k_of_n,
    share,
    wilson,
    z_value,
)


def rogan_gladen(
    k: int,
    n: int,
    sensitivity: float,
    specificity: float,
    level: float = 0.95,
) -> Interval:
    """Correct k flagged of n by the error rates of a detector that are known exactly.

    p = (k/n + specificity - 1) / (sensitivity + specificity - 1); the bounds transform those of
    `wilson`.

    Parameters
    ----------
    k, n
        Flagged and all, 0 <= k <= n, n >= 1.
    sensitivity, specificity
        Of the detector, in [0, 1], with a sum above 1.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Estimate and bounds within [0, 1].

    Raises
    ------
    ValueError
        If k and n are not counts with k <= n and n >= 1, the detector is no better than chance or
        level is not in (0, 1).

    References
    ----------
    Rogan and Gladen, American Journal of Epidemiology 107, 1978, 71-76.

    Examples
    --------
    >>> print(rogan_gladen(23, 150, sensitivity=0.96, specificity=0.89))
    0.051 [0.000, 0.129]
    """
    rate = wilson(k, n, level)
    youden = _youden(sensitivity, specificity)

    def corrected(flagged: float) -> float:
        return _clip((flagged + specificity - 1) / youden)

    return Interval(
        corrected(rate.estimate), corrected(rate.low), corrected(rate.high), level, "rogan-gladen"
    )


def lang_reiczigel(
    k: int,
    n: int,
    detected: int,
    n_sensitivity: int,
    cleared: int,
    n_specificity: int,
    level: float = 0.95,
) -> Interval:
    """Correct k flagged of n by the error rates of a detector that were estimated.

    Parameters
    ----------
    k, n
        Flagged and all, 0 <= k <= n, n >= 1.
    detected, n_sensitivity
        Flagged among the labelled positives: sensitivity = detected / n_sensitivity.
    cleared, n_specificity
        Not flagged among the labelled negatives: specificity = cleared / n_specificity.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Estimate, which is that of Rogan and Gladen, and bounds within [0, 1].

    Raises
    ------
    ValueError
        If a pair of counts is impossible, the detector is no better than chance or level is not in
        (0, 1).

    References
    ----------
    Lang and Reiczigel, Preventive Veterinary Medicine 113, 2014, 13-22.

    Examples
    --------
    >>> print(lang_reiczigel(23, 150, 96, 100, 178, 200))
    0.051 [0.000, 0.139]
    """
    k, n = k_of_n(k, n)
    z = z_value(level)
    detected, n_sensitivity = k_of_n(detected, n_sensitivity)
    cleared, n_specificity = k_of_n(cleared, n_specificity)
    sensitivity, specificity = detected / n_sensitivity, cleared / n_specificity
    estimate = (k / n + specificity - 1) / _youden(sensitivity, specificity)
    n_flagged, n_se, n_sp = n + z**2, n_sensitivity + 2, n_specificity + 2
    flagged = (k + z**2 / 2) / n_flagged
    se, sp = (detected + 1) / n_se, (cleared + 1) / n_sp
    youden = _youden(se, sp)
    p = (flagged + sp - 1) / youden
    se_variance, sp_variance = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z**2 * (p * se_variance - (1 - p) * sp_variance)
    spread = flagged * (1 - flagged) / n_flagged + p**2 * se_variance + (1 - p) ** 2 * sp_variance
    half = z * math.sqrt(spread) / youden
    low, high = p + shift - half, p + shift + half
    return Interval(_clip(estimate), _clip(low), _clip(high), level, "lang-reiczigel")


def _youden(sensitivity: float, specificity: float) -> float:
    if not (max(sensitivity, specificity) <= 1 < sensitivity + specificity):
        raise ValueError("sensitivity and specificity must lie in [0, 1] and add up to more than 1")
    return sensitivity + specificity - 1


def _clip(x: float) -> float:
    return min(1.0, max(0.0, x))


def ppi_mean(
    scores: ArrayLike, labelled_scores: ArrayLike, labels: ArrayLike, level: float = 0.95
) -> Interval:
    """Mean label of a population from scores for all of it and labels for a random sample.

    The mean score is corrected by its mean error on the sample (prediction-powered inference), so
    the estimate is unbiased however poor the score is.

    Parameters
    ----------
    scores
        Detector scores of the unlabelled, in [0, 1], shape (population,).
    labelled_scores, labels
        Scores and true labels, in [0, 1], of the random sample, shape (sample,), at least 2.
    level
        Two-sided confidence level in (0, 1).

    Returns
    -------
    Interval
        Bounds within [0, 1]. The estimate may leave them by a little, as it is unbiased.

    Raises
    ------
    ValueError
        If an array is empty, not finite or outside [0, 1], the sample shapes differ, there are
        fewer than 2 labels or level is not in (0, 1).

    References
    ----------
    Angelopoulos et al., Science 382, 2023, 669-674.

    Examples
    --------
    >>> print(ppi_mean([0.1, 0.9, 0.2, 0.1] * 50, [0.1, 0.9, 0.2, 0.8] * 5, [0, 1, 0, 1] * 5))
    0.325 [0.240, 0.410]
    """
    scores = finite_array("scores", scores)
    labelled_scores = finite_array("labelled_scores", labelled_scores)
    labels = finite_array("labels", labels)
    if labelled_scores.shape != labels.shape or labels.size < 2:
        raise ValueError("labelled_scores and labels must have one shape, at least 2 of each")
    if any(x.min() < 0 or x.max() > 1 for x in (scores, labelled_scores, labels)):
        raise ValueError("scores and labels must lie in [0, 1]")
    errors = labelled_scores - labels
    estimate = float(scores.mean() - errors.mean())
    score_variance = float(np.var(scores)) / scores.size
    error_variance = float(np.var(errors, ddof=1)) / labels.size
    half = z_value(level) * math.sqrt(score_variance + error_variance)
    low, high = estimate - half, estimate + half
    if error_variance < 1e-18:
        below, above = bound_without_variation(
            float(errors.mean()), labels.size, (1 - share("level", level)) / 2
        )
        low -= above - float(errors.mean())
        high += float(errors.mean()) - below
    return Interval(estimate, _clip(low), _clip(high), level, "prediction-powered")
