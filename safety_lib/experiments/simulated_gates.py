"""Gates on simulated trials whose truth is known: how often the sequential decision is wrong.

The suite is smaller than the median one of fresh seeds (nine families, fifteen tests, the
baseline's rates on mined tests), the benign requests are as good as real ones. Trials are drawn on
purpose: an error rate needs thousands of releases whose truth is known. Each goes through
:func:`safety_lib.gate.looks.judge_looks`, as those of the real gate do.
``python -m safety_lib.experiments.simulated_gates`` prints every truth at 4,000 gates, which takes
half an hour; the tests run some of them, small.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np

from safety_lib.gate.looks import Looked, LookPlan, judge_looks
from safety_lib.gate.trials import Case, CaseTrials
from safety_lib.records import Outcome
from safety_lib.stats.intervals import FloatArray, wilson
from safety_lib.streams import generator

SIZES = (4, 3, 2, 1, 1, 1, 1, 1, 1)
FAMILY = np.repeat(np.arange(len(SIZES)), SIZES)
RATES = np.array([1, 1, 1, 1, 0.95, 0.95, 0.95, 0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.8, 0.7])
CRITICAL = 2
TEST_CALLS, BENIGN_CALLS = 10.0, 3.9
FRESH = 100
PLAN = LookPlan()
WORDS: tuple[Outcome, Outcome] = ("violation", "safe")
Rates = FloatArray
Dice = np.random.Generator


def everywhere(loss: float) -> Callable[[Rates, Dice], Rates]:
    """Let every test lose as much.

    Parameters
    ----------
    loss : float
        Loss in pass rate, in [0, 1].

    Returns
    -------
    callable
        From the baseline's pass rates to the candidate's.
    """
    return lambda base, dice: base - loss


def in_half(loss: float) -> Callable[[Rates, Dice], Rates]:
    """Let the tests of five of the nine families lose, the suite's mean as much as asked.

    Parameters
    ----------
    loss : float
        Loss of the mean pass rate, in [0, 1].

    Returns
    -------
    callable
        From the baseline's pass rates to the candidate's; which families lose is drawn.
    """

    def worse(base: Rates, dice: Dice) -> Rates:
        losing = np.isin(FAMILY, dice.permutation(len(SIZES))[:5])
        lost: Rates = losing * (loss * len(base) / losing.sum())
        return base - lost

    return worse


def in_one(loss: float) -> Callable[[Rates, Dice], Rates]:
    """Let the tests of one family lose, the suite's mean as much as asked.

    Parameters
    ----------
    loss : float
        Loss of the mean pass rate, at most what the largest family has.

    Returns
    -------
    callable
        From the baseline's pass rates to the candidate's; which family loses is drawn among those
        that have so much to lose.
    """

    def worse(base: Rates, dice: Dice) -> Rates:
        needed = loss * len(base)
        room = [f for f in range(len(SIZES)) if base[f == FAMILY].sum() >= needed - 1e-9]
        losing = dice.choice(room) == FAMILY
        lost: Rates = losing * (needed / losing.sum())
        return base - lost

    return worse


def in_one_test(loss: float) -> Callable[[Rates, Dice], Rates]:
    """Let the one test of a small family lose as much.

    Parameters
    ----------
    loss : float
        Loss in pass rate of that test, in [0, 1].

    Returns
    -------
    callable
        From the baseline's pass rates to the candidate's.
    """

    def worse(base: Rates, dice: Dice) -> Rates:
        losing = dice.choice(np.flatnonzero(np.array(SIZES) == 1)) == FAMILY
        lost: Rates = losing * loss
        return base - lost

    return worse


@dataclass(frozen=True)
class Truth:
    """One truth, judged many times.

    Attributes
    ----------
    name : str
        What is true; the draws depend on it.
    worse : callable
        Gives the candidate's pass rates from the baseline's.
    plan : LookPlan
        Looks, luck and error shares.
    twins : int
        Benign requests.
    twin_rate, benign_loss : float
        How often the baseline serves one, and what the candidate loses of that.
    error_rate : float
        Share of the trials of either version that come to no outcome.
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
    """Verdicts, what brought them, and model calls as a share of a fixed 60-trial rule's.

    Attributes
    ----------
    runs : int
        Gates.
    verdicts, causes : Counter
        How often each came.
    calls, fresh : float
        Of all trials, and of the confirmations alone.
    """

    runs: int
    verdicts: Counter[str]
    causes: Counter[str]
    calls: float
    fresh: float

    def share(self, verdict: str) -> tuple[float, float, float]:
        """Return the share of a verdict with its 95% bounds (Wilson)."""
        rate = wilson(self.verdicts[verdict], self.runs)
        return rate.estimate, rate.low, rate.high


def _trials_of(
    case: Case, base: float, cand: float, n: int, truth: Truth, dice: Dice
) -> CaseTrials:
    luck = dice.random((2, n))
    if truth.plan.luck == "shared":
        luck[1] = luck[0]
    arms: list[list[Outcome]] = []
    for passing, drawn in zip((base, cand), luck, strict=True):
        outcomes = [WORDS[bool(u < passing)] for u in drawn]
        if truth.error_rate:
            lost = dice.random(n) < truth.error_rate
            outcomes = ["error" if e else o for o, e in zip(outcomes, lost, strict=True)]
        arms.append(outcomes)
    return CaseTrials(case, arms[0], arms[1])


def case_of(
    name: str, family: str, stratum: str = "candidate_found", severity: str = "high"
) -> Case:
    """Make a case with nothing in it but what the decision reads.

    Parameters
    ----------
    name, family, stratum, severity : str
        As in :class:`safety_lib.gate.trials.Case`.

    Returns
    -------
    Case
        Without words and turns.
    """
    return Case(name, name, stratum, family, "", "", severity, 0)  # type: ignore[arg-type]


def drawn_gate(truth: Truth, dice: Dice) -> tuple[list[CaseTrials], list[CaseTrials]]:
    """Draw all trials that one gate could ask for, and all fresh ones.

    Parameters
    ----------
    truth : Truth
        What is true.
    dice : numpy Generator
        Decides the draws.

    Returns
    -------
    cases, fresh : list of CaseTrials
        Tests and benign requests at the cap, and confirmations of every test.
    """
    base = dice.permutation(RATES)
    cand = np.clip(truth.worse(base, dice), 0, 1)
    critical = set(dice.permutation(len(base))[:CRITICAL].tolist())
    cases, fresh = [], []
    for i, (b, c) in enumerate(zip(base, cand, strict=True)):
        severity = "critical" if i in critical else "high"
        case = case_of(f"t{i}", f"f{FAMILY[i]}", severity=severity)
        cases.append(_trials_of(case, b, c, truth.plan.cap, truth, dice))
        fresh.append(_trials_of(case, b, c, FRESH, truth, dice))
    for i in range(truth.twins):
        case = case_of(f"b{i}", f"g{i}", "benign")
        twin = truth.twin_rate, truth.twin_rate - truth.benign_loss
        cases.append(_trials_of(case, *twin, truth.plan.cap, truth, dice))
    return cases, fresh


def _calls_of(seen: Looked) -> tuple[float, float]:
    first = sum(
        n * (BENIGN_CALLS if k.startswith("b") else TEST_CALLS) for k, n in seen.used.items()
    )
    return 2 * first, 2 * TEST_CALLS * sum(seen.used_fresh.values())


def fixed_calls(twins: int) -> float:
    """Count the model calls of both versions where each case is tried 60 times, come what may.

    Parameters
    ----------
    twins : int
        Benign requests beside the tests.

    Returns
    -------
    float
        What the calls of a gate are a share of.
    """
    return 2 * 60 * (TEST_CALLS * len(RATES) + BENIGN_CALLS * twins)


def simulate_gates(truth: Truth, runs: int, seed: int = 0) -> Found:
    """Judge many gates of one truth.

    Parameters
    ----------
    truth : Truth
        What is true.
    runs : int
        Gates, at least 1.
    seed : int
        Decides the draws.

    Returns
    -------
    Found
        The verdicts with what they cost.

    Examples
    --------
    >>> simulate_gates(Truth("30 points, spread", everywhere(0.3)), runs=5).verdicts["BLOCK"]
    5
    """
    dice = generator(seed, "gate", "simulated", truth.name)
    fixed = fixed_calls(truth.twins)
    verdicts: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    first = again = 0.0
    for _ in range(runs):
        seen = judge_looks(*drawn_gate(truth, dice), truth.plan)
        assert seen.verdict is not None
        verdicts[seen.verdict] += 1
        if seen.verdict == "BLOCK":
            causes.update(reason.split(":")[0] for reason in seen.reasons)
        if seen.verdict == "WARN":
            causes.update(one.kind for one in seen.missing)
        calls = _calls_of(seen)
        first, again = first + calls[0], again + calls[1]
    return Found(runs, verdicts, causes, (first + again) / runs / fixed, again / runs / fixed)


SHARED = LookPlan(luck="shared")
TRUTHS = (
    Truth("equal", everywhere(0)),
    Truth("5 points, spread", everywhere(0.05)),
    Truth("10 points, spread", everywhere(0.10)),
    Truth("5 points of the mean in half of the families", in_half(0.05)),
    Truth("10 points of the mean in half of the families", in_half(0.10)),
    Truth("5 points of the mean in one family", in_one(0.05)),
    Truth("25 points in a family of one test", in_one_test(0.25)),
    Truth("30 points in a family of one test", in_one_test(0.30)),
    Truth("half a point, spread", everywhere(0.005)),
    Truth("equal, 8 twins at 95%", everywhere(0), twins=8, twin_rate=0.95),
    Truth("benign 5 points worse, 8 twins at 95%", everywhere(0), PLAN, 8, 0.95, 0.05),
    Truth("equal, 3% errors in both", everywhere(0), error_rate=0.03),
    Truth("equal, shared luck", everywhere(0), SHARED),
    Truth("5 points, spread, shared luck", everywhere(0.05), SHARED),
    Truth("10 points, spread, shared luck", everywhere(0.10), SHARED),
    Truth("5 points of the mean in one family, shared luck", in_one(0.05), SHARED),
)
SHORT_TRUTHS = tuple(
    Truth(f"{name}, last look at {cap}", worse, LookPlan(cap=cap))
    for cap in (1, 3, 10)
    for name, worse in (
        ("equal", everywhere(0)),
        ("5 points, spread", everywhere(0.05)),
        ("10 points, spread", everywhere(0.10)),
        ("5 points of the mean in one family", in_one(0.05)),
    )
)


def line_of_truth(truth: Truth, found: Found) -> str:
    """Say one truth in one line.

    Parameters
    ----------
    truth : Truth
        What is true.
    found : Found
        What the gate said.

    Returns
    -------
    str
        Shares of the verdicts with bounds, calls, and what brought the verdicts.
    """
    shares = []
    for verdict in ("OK", "WARN", "BLOCK"):
        rate, low, high = (100 * x for x in found.share(verdict))
        shares.append(f"{verdict} {rate:.1f} [{low:.1f}, {high:.1f}]")
    calls = f"calls {100 * found.calls:.0f}% of 60 fixed ({100 * found.fresh:.0f}% fresh)"
    return f"{truth.name}: {'; '.join(shares)}; {calls}; {dict(found.causes)}"


if __name__ == "__main__":
    RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
    for one in (*TRUTHS, *SHORT_TRUTHS):
        if ONLY in one.name:
            click.echo(line_of_truth(one, simulate_gates(one, RUNS)))
