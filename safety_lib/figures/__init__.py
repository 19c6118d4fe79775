"""One figure for each claim of the loop, with the printed reading that says the same in words.

Every helper draws, prints its reading and returns the axes that it drew into. Without ``ax=`` these
stand in a figure of the house's size, which is shown. With ``ax=`` nothing is shown or closed, so
that a reader can put drawings side by side and save them::

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 3.3))
    figures.survival_curves(found.survival, ax=left)
    figures.failures_by_turn(found.summary, ax=right)
    figure.savefig("both.svg")

A cell of 7 by about 3 inches looks as the drawing does alone. matplotlib is loaded by the first
figure and not before.
"""

from safety_lib.figures.cause import (
    causal_graph,
    loop_rounds,
    mitigations,
    radius_coverage,
    root_cause_accuracy,
)
from safety_lib.figures.detection import detection, early_warning, near_misses
from safety_lib.figures.findings import coverage_map, other_endings, safeguard_credit, undiscovered
from safety_lib.figures.gate import forest, operating_characteristics
from safety_lib.figures.incident import blast_radius, intervention_effects, timeline
from safety_lib.figures.moved import what_moved
from safety_lib.figures.other_gates import peers
from safety_lib.figures.regression import funnel, reproduction
from safety_lib.figures.stress import (
    failures_by_turn,
    single_turn_against_multi_turn,
    survival_curves,
)

__all__ = [
    "blast_radius",
    "causal_graph",
    "coverage_map",
    "detection",
    "early_warning",
    "failures_by_turn",
    "forest",
    "funnel",
    "intervention_effects",
    "loop_rounds",
    "mitigations",
    "near_misses",
    "operating_characteristics",
    "other_endings",
    "peers",
    "radius_coverage",
    "reproduction",
    "root_cause_accuracy",
    "safeguard_credit",
    "single_turn_against_multi_turn",
    "survival_curves",
    "timeline",
    "undiscovered",
    "what_moved",
]
