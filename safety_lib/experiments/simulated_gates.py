"""Gates on simulated trials whose truth is known: how often the sequential decision is wrong.

The suite is like the median one of fresh seeds (nine families, fifteen tests, the baseline's rates
on mined tests), the benign requests are as good as real ones. ``python tests/simulated_gates.py``
prints the operating characteristics at 4,000 gates a cell; the tests run some of the cells, small.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from safety_lib.gate.looks import Looked, LookPlan, judge_looks
from safety_lib.gate.trials import Case, CaseTrials
from safety_lib.records import Outcome
from safety_lib.stats.intervals import wilson

SIZES = (4, 3, 2, 1, 1, 1, 1, 1, 1)
FAMILY = np.repeat(np.arange(len(SIZES)), SIZES)
RATES = np.array([1, 1, 1, 1, 0.95, 0.95, 0.95, 0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.8, 0.7])
CRITICAL = 2
TEST_CALLS, BENIGN_CALLS = 10.0, 3.9
FRESH = 100
PLAN = LookPlan()
WORDS: tuple[Outcome, Outcome] = ("violation", "safe")
Rates = Any
Dice = np.random.Generator


def spread(loss: float) -> Callable[[Rates, Dice], Rates]:
    """Every test loses as much."""
    return lambda base, dice: base - loss


def in_half(loss: float) -> Callable[[Rates, Dice], Rates]:
    """The tests of five of the nine families lose, the suite's mean as much as asked."""

    def worse(base: Rates, dice: Dice) -> Rates:
        losing = np.isin(FAMILY, dice.permutation(len(SIZES))[:5])
        return base - losing * loss * len(base) / losing.sum()

    return worse


def in_one(loss: float) -> Callable[[Rates, Dice], Rates]:
    """The tests of one family lose, the suite's mean as much as asked."""

    def worse(base: Rates, dice: Dice) -> Rates:
        needed = loss * len(base)
        room = [f for f in range(len(SIZES)) if base[f == FAMILY].sum() >= needed]
        losing = dice.choice(room) == FAMILY
        return base - losing * needed / losing.sum()

    return worse


def in_one_test(loss: float) -> Callable[[Rates, Dice], Rates]:
    """The one test of a small family loses as much."""

    def worse(base: Rates, dice: Dice) -> Rates:
        losing = dice.choice(np.flatnonzero(np.array(SIZES) == 1)) == FAMILY
        return base - losing * loss

    return worse


@dataclass(frozen=True)
class Cell:
    """One truth, judged many times.

    ``worse`` gives the candidate's pass rates from the baseline's; ``benign_loss`` is what the
    benign requests lose.
    """

    name: str
    worse: Callable[[Rates, Dice], Rates]
    plan: LookPlan = PLAN
    twins: int = 12
    twin_rate: float = 0.99
    benign_loss: float = 0.0
    error_rate: float = 0.0


@dataclass(frozen=True)
class Found:
    """Verdicts, what brought them, and calls as a share of a fixed 60-trial rule's."""

    runs: int
    verdicts: Counter[str]
    causes: Counter[str]
    calls: float
    fresh: float

    def share(self, verdict: str) -> tuple[float, float, float]:
        """Share of a verdict with its 95% bounds."""
        rate = wilson(self.verdicts[verdict], self.runs)
        return rate.estimate, rate.low, rate.high


def trials_of(case: Case, base: float, cand: float, n: int, cell: Cell, dice: Dice) -> CaseTrials:
    """Draw n trials of one case on both versions, on shared luck or on independent."""
    luck = dice.random((2, n))
    if cell.plan.luck == "shared":
        luck[1] = luck[0]
    arms: list[list[Outcome]] = []
    for passing, drawn in zip((base, cand), luck, strict=True):
        outcomes = [WORDS[bool(u < passing)] for u in drawn]
        if cell.error_rate:
            lost = dice.random(n) < cell.error_rate
            outcomes = ["error" if e else o for o, e in zip(outcomes, lost, strict=True)]
        arms.append(outcomes)
    return CaseTrials(case, arms[0], arms[1])


def case_of(
    name: str, family: str, stratum: str = "candidate_found", severity: str = "high"
) -> Case:
    """Make a case with nothing in it but what the decision reads."""
    return Case(name, name, stratum, family, "", "", severity, 0)  # type: ignore[arg-type]


def drawn_gate(cell: Cell, dice: Dice) -> tuple[list[CaseTrials], list[CaseTrials]]:
    """Draw all trials that one gate could ask for, and all fresh ones."""
    base = dice.permutation(RATES)
    cand = np.clip(cell.worse(base, dice), 0, 1)
    critical = set(dice.permutation(len(base))[:CRITICAL].tolist())
    cases, fresh = [], []
    for i, (b, c) in enumerate(zip(base, cand, strict=True)):
        severity = "critical" if i in critical else "high"
        case = case_of(f"t{i}", f"f{FAMILY[i]}", severity=severity)
        cases.append(trials_of(case, b, c, cell.plan.cap, cell, dice))
        fresh.append(trials_of(case, b, c, FRESH, cell, dice))
    for i in range(cell.twins):
        case = case_of(f"b{i}", f"g{i}", "benign")
        twin = cell.twin_rate, cell.twin_rate - cell.benign_loss
        cases.append(trials_of(case, *twin, cell.plan.cap, cell, dice))
    return cases, fresh


def calls_of(seen: Looked) -> tuple[float, float]:
    """Model calls of both versions: of the trials, and of the confirmations."""
    first = sum(
        n * (BENIGN_CALLS if k.startswith("b") else TEST_CALLS) for k, n in seen.used.items()
    )
    return 2 * first, 2 * TEST_CALLS * sum(seen.used_fresh.values())


def simulate_gates(cell: Cell, runs: int, seed: int = 0) -> Found:
    """Judge many gates of one truth."""
    dice = np.random.default_rng([seed, *cell.name.encode()])
    fixed = 2 * 60 * (TEST_CALLS * len(RATES) + BENIGN_CALLS * cell.twins)
    verdicts: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    first = again = 0.0
    for _ in range(runs):
        seen = judge_looks(*drawn_gate(cell, dice), cell.plan)
        assert seen.verdict is not None
        verdicts[seen.verdict] += 1
        if seen.verdict == "BLOCK":
            causes.update(reason.split(":")[0] for reason in seen.reasons)
        if seen.verdict == "WARN":
            causes.update(one.kind for one in seen.missing)
        calls = calls_of(seen)
        first, again = first + calls[0], again + calls[1]
    return Found(runs, verdicts, causes, (first + again) / runs / fixed, again / runs / fixed)


SHARED = LookPlan(luck="shared")
FULL = (
    Cell("equal", spread(0)),
    Cell("5 points, spread", spread(0.05)),
    Cell("10 points, spread", spread(0.10)),
    Cell("5 points of the mean in half of the families", in_half(0.05)),
    Cell("10 points of the mean in half of the families", in_half(0.10)),
    Cell("5 points of the mean in one family", in_one(0.05)),
    Cell("25 points in a family of one test", in_one_test(0.25)),
    Cell("30 points in a family of one test", in_one_test(0.30)),
    Cell("half a point, spread", spread(0.005)),
    Cell("equal, 8 twins at 95%", spread(0), twins=8, twin_rate=0.95),
    Cell("benign 5 points worse, 8 twins at 95%", spread(0), PLAN, 8, 0.95, 0.05),
    Cell("equal, 3% errors in both", spread(0), error_rate=0.03),
    Cell("equal, shared luck", spread(0), SHARED),
    Cell("5 points, spread, shared luck", spread(0.05), SHARED),
    Cell("10 points, spread, shared luck", spread(0.10), SHARED),
    Cell("5 points of the mean in one family, shared luck", in_one(0.05), SHARED),
)
SMALL = tuple(
    Cell(f"{name}, last look at {cap}", worse, LookPlan(cap=cap))
    for cap in (1, 3, 10)
    for name, worse in (
        ("equal", spread(0)),
        ("5 points, spread", spread(0.05)),
        ("10 points, spread", spread(0.10)),
        ("5 points of the mean in one family", in_one(0.05)),
    )
)


def line_of_cell(cell: Cell, found: Found) -> str:
    """Say one cell in one line."""
    shares = []
    for verdict in ("OK", "WARN", "BLOCK"):
        rate, low, high = (100 * x for x in found.share(verdict))
        shares.append(f"{verdict} {rate:.1f} [{low:.1f}, {high:.1f}]")
    calls = f"calls {100 * found.calls:.0f}% of 60 fixed ({100 * found.fresh:.0f}% fresh)"
    return f"{cell.name}: {'; '.join(shares)}; {calls}; {dict(found.causes)}"


if __name__ == "__main__":
    RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
    for one in (*FULL, *SMALL):
        if ONLY in one.name:
            print(line_of_cell(one, simulate_gates(one, RUNS)), flush=True)
