"""Boundaries against published tables, the normal distribution of scipy, and simulated walks."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from safety_lib.stats.spending import crossing_chances, spending_boundaries, spent

LOOKS = (3, 5, 8, 12, 18, 27, 40, 60)
FRACTIONS = tuple(look / 60 for look in LOOKS)
FIVE = (0.2, 0.4, 0.6, 0.8, 1.0)


def crossed(bounds: tuple[float, ...], fractions: tuple[float, ...]) -> float:
    """Chance to cross one of some boundaries, by scipy's multivariate normal distribution."""
    t = np.array(fractions)
    correlation = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    return 1 - float(multivariate_normal(cov=correlation, seed=1).cdf(np.array(bounds)))


def test_the_boundaries_are_the_published_ones_of_pocock_type_spending():
    # Lan and DeMets' alpha2 at five equal looks, one-sided 2.5%, as ldbounds and gsDesign print it.
    found = spending_boundaries(0.025, FIVE)
    assert found == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=6e-4)


@pytest.mark.parametrize(
    ("looks", "constant"), [(2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413), (10, 2.555)]
)
def test_pococks_constants_spend_five_percent_two_sided(looks, constant):
    # Pocock, Biometrika 64, 1977; Jennison and Turnbull, table 2.1 (one side is half, but for the
    # chance to cross both, which is nothing).
    even = tuple((k + 1) / looks for k in range(looks))
    assert crossing_chances((constant,) * looks, even).sum() == pytest.approx(0.025, abs=5e-5)


@pytest.mark.parametrize(("looks", "constant"), [(3, 2.004), (5, 2.040), (8, 2.072)])
def test_obrien_and_flemings_constants_spend_five_percent_two_sided(looks, constant):
    even = tuple((k + 1) / looks for k in range(looks))
    bounds = tuple(constant / math.sqrt(t) for t in even)
    assert crossing_chances(bounds, even).sum() == pytest.approx(0.025, abs=5e-5)


@pytest.mark.parametrize("alpha", [0.05, 0.008])
def test_uneven_looks_spend_what_was_allowed_look_by_look(alpha):
    bounds = spending_boundaries(alpha, FRACTIONS)
    assert crossed(bounds, FRACTIONS) == pytest.approx(alpha, rel=0.02)
    for k in (1, 3, 5):
        assert crossed(bounds[:k], FRACTIONS[:k]) == pytest.approx(
            spent(alpha, FRACTIONS[k - 1]), rel=0.02
        )
    assert np.cumsum(crossing_chances(bounds, FRACTIONS)) == pytest.approx(
        [spent(alpha, t) for t in FRACTIONS], abs=1e-9
    )


def test_one_look_is_an_ordinary_test():
    assert spending_boundaries(0.008, (1.0,)) == pytest.approx([norm.isf(0.008)], abs=1e-9)


def test_a_look_added_late_leaves_the_looks_before_it_alone():
    assert spending_boundaries(0.05, FRACTIONS)[:4] == pytest.approx(
        spending_boundaries(0.05, (*FRACTIONS[:4], 0.9, 1.0))[:4], abs=1e-9
    )


@pytest.mark.parametrize("drift", [0.0, 2.0, 4.0])
def test_power_is_that_of_simulated_walks(drift):
    bounds = spending_boundaries(0.05, FRACTIONS)
    rng = np.random.default_rng(3)
    steps = np.diff([0, *FRACTIONS])
    walk = (rng.normal(size=(100_000, 8)) * np.sqrt(steps) + drift * steps).cumsum(axis=1)
    beyond = walk / np.sqrt(FRACTIONS) >= bounds
    first = np.where(beyond.any(axis=1), beyond.argmax(axis=1), 8)
    seen = np.bincount(first, minlength=9)[:8] / 100_000
    assert crossing_chances(bounds, FRACTIONS, drift) == pytest.approx(seen, abs=0.006)


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.5, 1.5)])
def test_fractions_that_do_not_rise_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="rise from above 0 to 1"):
        spending_boundaries(0.05, fractions)


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        spending_boundaries(1.0, (1.0,))
    with pytest.raises(ValueError, match="fraction must lie"):
        spent(0.05, 1.1)
    with pytest.raises(ValueError, match="1 boundaries for 2 looks"):
        crossing_chances((2.0,), (0.5, 1.0))
