"""The exercises of notebook 03: what is right, worked out from the reader's own run."""

from __future__ import annotations

from safety_lib.exercises import Exercise
from safety_lib.records import GateReport

SMALLEST_P = Exercise(
    lambda families: 0.5**families,
    "If the versions did not differ, each family would fall to either side like a coin. How many "
    "coins, and how many ways for all of them to fall to one side?",
    within=1e-6,
)

UPPER = Exercise(
    lambda n: 1 - 0.05 ** (1 / n),
    "Which share p would show nothing in n trials with a chance of just 5%? Solve "
    "(1 - p)^n = 0.05, or use the rule of three.",
    within=0.002,
)


def _deciding(report: GateReport) -> int:
    order = {"invalid": 3, "block": 2, "warn": 1, "pass": 0}
    return max(report.steps, key=lambda step: (order[step.status], -step.step)).step


DECIDING = Exercise(
    _deciding,
    "Look at the status of each step in `report.steps`; the worst one decides, and the first of "
    "several.",
)
