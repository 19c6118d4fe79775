"""From a decision to ``gate_report.json``: the verdict with everything that it rests on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from safety_lib.artifacts import content_hash
from safety_lib.gate.decide import Judgement, compare
from safety_lib.gate.rules import GateRules
from safety_lib.gate.trials import (
    REGRESSION_STRATA,
    CaseTrials,
    Trials,
)
from safety_lib.records import (
    ArmResult,
    FamilyDiagnosis,
    GateReport,
    Outcome,
    PooledPairs,
    StratumResult,
    Suite,
    TestResult,
)
from safety_lib.stats.differences import tango
from safety_lib.stats.multiplicity import holm
from safety_lib.stats.paired import mcnemar
from safety_lib.stats.power import SuiteDesign, minimum_detectable_effect
from safety_lib.stats.sequential import e_process
from safety_lib.streams import generator
from safety_lib.world import provenance
from safety_lib.world.versions import Version


def build_report(
    suite: Suite,
    baseline: Version,
    candidate: Version,
    ran: Trials,
    decision: Judgement,
    rules: GateRules,
    trials: int,
    seed: int,
) -> GateReport:
    """Gather a decision and everything that it rests on into one record.

    Parameters
    ----------
    suite : Suite
        What was run.
    baseline, candidate : Version
        On what it was run.
    ran : Trials
        Every trial, those of excepted tests included.
    decision : Judgement
        The verdict with its steps.
    rules : GateRules
        The rules that it was reached by.
    trials : int
        Trials of each test on each version.
    seed : int
        The run's seed.

    Returns
    -------
    GateReport
        The artifact.
    """
    safety = decision.safety
    return GateReport(
        artifact=GateReport.SCHEMA,
        schema_version=GateReport.VERSION,
        seed=seed,
        model=suite.model,
        **provenance(baseline, candidate),
        verdict=decision.verdict,
        evidence_status=(
            "invalid"
            if decision.verdict is None
            else "insufficient"
            if decision.verdict == "WARN"
            else "sufficient"
        ),
        reasons=decision.reasons,
        baseline=baseline.version,
        candidate=candidate.version,
        baseline_pass_rate=safety.baseline_pass_rate if safety else None,
        candidate_pass_rate=safety.candidate_pass_rate if safety else None,
        delta=safety.delta if safety else None,
        ci_low=safety.ci_low if safety else None,
        ci_high=safety.ci_high if safety else None,
        p_value=safety.p_value if safety else None,
        n_tests=safety.n_tests if safety else 0,
        n_families=safety.n_families if safety else 0,
        trials=trials,
        minimum_detectable_effect=detectable_loss(ran, rules, trials, seed),
        suite_sha256=content_hash(suite),
        gate_policy_sha256=rules.sha256,
        steps=decision.steps,
        strata=tuple(_strata(ran, rules, seed)),
        by_category=_by_category(ran),
        executions=ran.executions,
        test_results=tuple(_result(case) for case in ran.cases),
        block_margin=rules.block_margin,
        ok_margin=rules.ok_margin,
        error_budget=decision.budget,
        enough_trials=enough_trials(ran.cases, rules.alpha),
        pooled=pooled_pairs(ran.cases, rules.level),
        families=diagnose_families(ran.cases),
    )


def detectable_loss(ran: Trials, rules: GateRules, trials: int, seed: int) -> float | None:
    """Return the smallest true loss in pass rate that these tests block with 80% power.

    The gate's own rule is simulated on tests like these (same families, same baseline rates, same
    number of trials). None where no loss at all could be detected, as with four families.

    Parameters
    ----------
    ran : Trials
        For the families and the baseline's pass rates.
    rules : GateRules
        The rule that is simulated.
    trials : int
        Trials of each test.
    seed : int
        The run's seed.
    """
    cases = [c for c in ran.cases if c.case.stratum in REGRESSION_STRATA and c.pairs]
    families = Counter(c.case.family for c in cases)
    if len(families) < 2:
        return None
    failing = sum(1 - sum(b for b, _ in c.pairs) / len(c.pairs) for c in cases) / len(cases)
    design = SuiteDesign(
        list(families.values()),
        failing,
        trials,
        alpha=rules.alpha,
        at_least=rules.block_margin,
    )
    rng = generator(seed, "gate", "detectable")
    effect = minimum_detectable_effect(design, rng, runs=200, flips=99)
    return None if math.isinf(effect) else round(effect, 3)


def _strata(ran: Trials, rules: GateRules, seed: int) -> list[StratumResult]:
    groups: defaultdict[str, list[CaseTrials]] = defaultdict(list)
    for case in ran.cases:
        groups[case.case.stratum].append(case)
    compared = ((name, compare(cases, rules, seed)) for name, cases in groups.items())
    return [seen.as_stratum(name) for name, seen in compared if seen is not None]


def _by_category(ran: Trials) -> dict[str, dict[str, float]]:
    groups: defaultdict[str, list[CaseTrials]] = defaultdict(list)
    for case in ran.cases:
        if case.case.stratum not in ("benign", "control") and case.pairs:
            groups[case.case.category].append(case)
    table = {}
    for category, cases in sorted(groups.items()):
        base = sum(sum(b for b, _ in c.pairs) / len(c.pairs) for c in cases) / len(cases)
        cand = sum(sum(s for _, s in c.pairs) / len(c.pairs) for c in cases) / len(cases)
        table[category] = {
            "n_tests": float(len(cases)),
            "baseline_pass_rate": round(base, 6),
            "candidate_pass_rate": round(cand, 6),
            "delta": round(cand - base, 6),
        }
    return table


def _result(entry: CaseTrials) -> TestResult:
    case, pairs = entry.case, entry.pairs
    delta = sum(c - b for b, c in pairs) / len(pairs) if pairs else None
    return TestResult(
        test_id=case.case_id,
        name=case.name,
        stratum=case.stratum,
        family=case.family,
        category=case.category,
        rule_id=case.rule_id,
        severity=case.severity,
        baseline=_arm(entry.baseline),
        candidate=_arm(entry.candidate),
        delta=None if delta is None else round(delta, 6),
        evidence_version=entry.evidence_version,
        evidence=entry.evidence,
    )


def _arm(outcomes: list[Outcome]) -> ArmResult:
    return ArmResult(
        passed=outcomes.count("safe"),
        failed=outcomes.count("violation"),
        errors=outcomes.count("error"),
        undetermined=outcomes.count("undetermined"),
    )


def pooled_pairs(cases: Sequence[CaseTrials], level: float) -> PooledPairs | None:
    """Describe all pairs of the regression tests as if they were independent.

    Returns
    -------
    PooledPairs or None
        None where no pair is valid. The interval is Tango's for paired proportions, the p-value
        McNemar's mid-p (two-sided).
    """
    pairs = [p for c in cases if c.case.stratum in REGRESSION_STRATA for p in c.pairs]
    if not pairs:
        return None
    worse, better = _discordant(pairs)
    interval = tango(better, worse, len(pairs), level)
    return PooledPairs(
        pairs=len(pairs),
        worse=worse,
        better=better,
        delta=round((better - worse) / len(pairs), 6),
        ci_low=round(interval.low, 6),
        ci_high=round(interval.high, 6),
        mid_p=round(mcnemar(worse, better).mid_p, 6),
    )


def diagnose_families(cases: Sequence[CaseTrials]) -> tuple[FamilyDiagnosis, ...]:
    """Say for each family how much it lost, with a p-value that holds for all of them at once.

    The p-value is McNemar's, exact and one-sided, over the pairs of the family, adjusted by Holm
    (Scandinavian Journal of Statistics 6, 1979). It finds where to look; the verdict is step 2's.
    """
    groups: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    tests: defaultdict[str, int] = defaultdict(int)
    for entry in cases:
        if entry.case.stratum in REGRESSION_STRATA and entry.pairs:
            groups[entry.case.family] += entry.pairs
            tests[entry.case.family] += 1
    if not groups:
        return ()
    counts = {family: _discordant(pairs) for family, pairs in groups.items()}
    p_values = [mcnemar(worse, better).one_sided_p for worse, better in counts.values()]
    rows = [
        FamilyDiagnosis(
            family=family,
            n_tests=tests[family],
            pairs=len(groups[family]),
            worse=counts[family][0],
            better=counts[family][1],
            delta=round((counts[family][1] - counts[family][0]) / len(groups[family]), 6),
            p_holm=round(float(adjusted), 6),
        )
        for family, adjusted in zip(groups, holm(p_values), strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: (row.delta, row.family)))


def _discordant(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int]:
    return sum(b and not c for b, c in pairs), sum(c and not b for b, c in pairs)


def enough_trials(cases: Sequence[CaseTrials], alpha: float) -> int | None:
    """Return after how many trials of each test a loss was beyond doubt; None if it never was.

    Where the versions do not differ, a pair in which just one of them fails falls to either side
    like a coin. The e-process bets against that coin, one round of trials after the other, and may
    be looked at after every round: the chance that it ever reaches ``1 / alpha`` is at most
    ``alpha`` (Ville). It asks whether the two are the same agent, not whether the loss matters.

    Parameters
    ----------
    cases : sequence of CaseTrials
        Regression tests count, on trials that are valid on both versions.
    alpha : float
        In (0, 1).
    """
    tests = [entry for entry in cases if entry.case.stratum in REGRESSION_STRATA]
    rounds = max((len(entry.baseline) for entry in tests), default=0)
    seen: list[int] = []
    for number in range(rounds):
        for entry in tests:
            if number < len(entry.baseline):
                pair = (entry.baseline[number], entry.candidate[number])
                if sorted(pair) == ["safe", "violation"]:
                    seen.append(int(pair[1] == "violation"))
        if seen and e_process(seen, 0.5)[-1] >= 1 / alpha:
            return number + 1
    return None
