"""The exercises of notebook 01: what is right, worked out from the reader's own run."""

from __future__ import annotations

from safety_lib.exercises import Exercise

SURVIVED = Exercise(
    lambda curve: curve.survival[-1],
    "Multiply 1 - failed / at_risk over the turns. A session that the monitor ended leaves the "
    "group at risk; it is no success.",
    within=0.005,
)

WORST_CASE = Exercise(
    lambda endings: endings.highest,
    "Count all that broke a rule or were ended by something else, over all conversations.",
    within=0.005,
)

MISSING = Exercise(
    lambda search: search.missing_mass,
    "Good and Turing: modes that were seen exactly once, over all failures.",
    within=0.005,
)
