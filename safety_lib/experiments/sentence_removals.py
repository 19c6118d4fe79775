"""A sentence left out of the prompt: what that costs, and what the gate says of it.

The loss that matters most is that of one rule: the release passes everything else, and the suite's
mean hardly moves. What a removal truly costs is measured apart from the gate, on trials of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean

from safety_lib.experiments.characteristics import under_gate_rules
from safety_lib.experiments.mutants import BASE, mutants
from safety_lib.experiments.real_releases import SUITE_SEEDS
from safety_lib.experiments.results import WORLD, mined_suite, proportion
from safety_lib.gate.release_gate import run_gate
from safety_lib.records import Experiment, Suite
from safety_lib.records.experiments import Proportion, SentenceRemoval, SentenceRemovals
from safety_lib.regression.admission import run_tests
from safety_lib.rollout.campaign import Run
from safety_lib.world.versions import Version

COST_TRIALS = 200
LARGE, MIDDLE = 0.3, 0.1  # the loss in a covered family that has to be seen, and that may be


def family_rates(suite: Suite, version: Version, *, seed: int, trials: int) -> dict[str, float]:
    """Measure how often a version passes the active tests of each family.

    Parameters
    ----------
    suite : Suite
        Whose tests are run.
    version : Version
        Who runs them.
    seed : int
        Decides the luck; the gate's trials have other luck under the same seed.
    trials : int
        Of each test, at least 1.

    Returns
    -------
    dict
        Family to the mean pass rate of its tests; trials without an outcome are not counted.

    Examples
    --------
    >>> suite = mined_suite((WORLD.version("v1"), WORLD.version("v2")), rollouts=20, seed=1)
    >>> rates = family_rates(suite, WORLD.version("v1"), seed=1, trials=2)
    >>> rates.keys() == {test.family for test in suite.active}
    True
    """
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for ran in run_tests(suite.active, version, Run(seed=seed), trials=trials):
        valid = [failed for failed in ran.failed if failed is not None]
        if valid:
            rates[ran.test.family].append(1 - sum(valid) / len(valid))
    return {family: mean(each) for family, each in rates.items()}


def removals_on(
    seed: int, rules: Sequence[str] = (), *, trials: int = COST_TRIALS
) -> tuple[SentenceRemoval, ...]:
    """Leave sentences out in turn, and judge each release on the suite of one search.

    Parameters
    ----------
    seed : int
        Of the search, the gate and the trials that measure the cost.
    rules : sequence of str
        Ids of the rules whose sentence is left out; each of the policy by default.
    trials : int
        Trials of each test on each version that measure the cost.

    Returns
    -------
    tuple of SentenceRemoval
        In the order of the policy.
    """
    base = WORLD.version(BASE)
    suite = mined_suite((base, WORLD.version("v2")), seed=seed)
    before = family_rates(suite, base, seed=seed, trials=trials)
    own = {test.family: test.rule_id for test in suite.active}
    untold = {mutant.name: mutant.version for mutant in mutants(base)}
    made = []
    for rule in WORLD.policy.rules:
        if rules and rule.id not in rules:
            continue
        version = untold[f"rule {rule.id} not told"]
        after = family_rates(suite, version, seed=seed, trials=trials)
        lost = {family: before[family] - after[family] for family in before}
        report = run_gate(suite, base, version, Run(seed=seed))
        worst = max(lost, key=lambda family: lost[family])
        made.append(
            SentenceRemoval(
                rule=rule.id,
                seed=seed,
                own_loss=_most({f: loss for f, loss in lost.items() if own[f] == rule.id}),
                worst_family=worst,
                worst_loss=round(lost[worst], 4),
                verdict=report.verdict or "none",
                named_uncovered=rule.id in report.uncovered_rules,
            )
        )
    return tuple(made)


def _most(losses: Mapping[str, float]) -> float | None:
    return round(max(losses.values()), 4) if losses else None


def run_sentence_removals(seeds: Sequence[int] = SUITE_SEEDS) -> Experiment[SentenceRemovals]:
    """Leave each sentence of the policy out in turn, on the suites of several searches.

    Parameters
    ----------
    seeds : sequence of int
        Of the searches and of the gates, at least one.

    Returns
    -------
    Experiment
        ``sentence_removals``.
    """
    removals = tuple(removal for seed in seeds for removal in removals_on(seed))
    result = SentenceRemovals(
        blocked={
            "30 points or more": _blocked(removals, LARGE, 1.01),
            "10 to 30 points": _blocked(removals, MIDDLE, LARGE),
            "less than 10 points": _blocked(removals, -1.0, MIDDLE),
        },
        removals=removals,
    )
    parameters = {"base": BASE, "seeds": list(seeds), "trials": COST_TRIALS}
    return under_gate_rules(result, parameters)


def _blocked(removals: Sequence[SentenceRemoval], least: float, below: float) -> Proportion | None:
    """Count the BLOCKs of the removals whose worst family lost as much, if there are any."""
    verdicts = [r.verdict for r in removals if least <= r.worst_loss < below]
    return proportion(verdicts.count("BLOCK"), len(verdicts)) if verdicts else None
