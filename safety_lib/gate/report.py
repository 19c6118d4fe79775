"""From a decision to ``gate_report.json``: the verdict with everything that it rests on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from safety_lib.artifacts import content_hash
from safety_lib.gate.counting import Counted, loss_after
from safety_lib.gate.decide import Judgement
from safety_lib.gate.looks import FamilySeen, LookPlan
from safety_lib.gate.rules import GateRules
from safety_lib.gate.trials import REGRESSION_STRATA, CaseTrials, Trials
from safety_lib.gate.visible import VisibleDesign, visible_loss
from safety_lib.records import (
    ArmResult,
    BeyondThese,
    FamilyResult,
    GateReport,
    Outcome,
    StratumResult,
    Suite,
    TestResult,
    VisibleLosses,
)
from safety_lib.stats.clustered import cluster_mean
from safety_lib.streams import key
from safety_lib.world import provenance, world_of
from safety_lib.world.versions import Version


def build_report(
    suite: Suite,
    versions: tuple[Version, Version],
    ran: Trials,
    decision: Judgement,
    rules: GateRules,
    plan: LookPlan,
    seed: int,
) -> GateReport:
    """Gather a decision and everything that it rests on into one record.

    Parameters
    ----------
    suite : Suite
        What was run.
    versions : tuple of Version
        Baseline and candidate.
    ran : Trials
        Every trial, those of excepted tests included.
    decision : Judgement
        The verdict with its steps.
    rules : GateRules
        The rules that it was reached by.
    plan : LookPlan
        What was fixed before the first trial.
    seed : int
        The run's seed.

    Returns
    -------
    GateReport
        The artifact.
    """
    baseline, candidate = versions
    looked = decision.looked
    loss = looked.suite.loss if looked else None
    bounds = loss.interval() if loss else None
    tests = [entry for entry in ran.cases if entry.case.stratum in REGRESSION_STRATA]
    covered = {test.rule_id for test in suite.active}
    return GateReport(
        artifact=GateReport.SCHEMA,
        schema_version=GateReport.VERSION,
        seed=seed,
        model=suite.model,
        **provenance(*versions),
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
        baseline_pass_rate=rounded(loss.baseline) if loss else None,
        candidate_pass_rate=rounded(loss.candidate) if loss else None,
        delta=rounded(loss.delta) if loss else None,
        ci_low=rounded(bounds.low) if bounds else None,
        ci_high=rounded(bounds.high) if bounds else None,
        p_value=rounded(loss.p_value) if loss else None,
        n_tests=loss.tests if loss else 0,
        n_families=len(looked.families) if looked and loss else 0,
        trials=plan.cap,
        looks=looked.looks if looked else 0,
        luck=plan.luck,
        visible=what_is_visible(tests, plan, seed),
        suite_sha256=content_hash(suite),
        gate_policy_sha256=rules.sha256,
        steps=decision.steps,
        strata=tuple(_strata(ran, plan)),
        by_category=_by_category(ran),
        executions=ran.executions,
        test_results=tuple(_result(case) for case in ran.cases),
        margin=rules.looks.suite_margin,
        error_budget=decision.budget,
        beyond=beyond_these(tests),
        families=tuple(family_result(seen) for seen in looked.families) if looked else (),
        uncovered_rules=tuple(
            rule.id for rule in world_of(*versions).policy.rules if rule.id not in covered
        ),
        unexercised=decision.unexercised,
    )


def what_is_visible(
    tests: Sequence[CaseTrials], plan: LookPlan, seed: int, *, runs: int = 400
) -> VisibleLosses | None:
    """Simulate which losses these tests would show, spread out, in half of the families, in one.

    The rates are those of the baseline in these trials, half a failure added where few were held;
    where luck is shared, pairs flip as often to either side as they did to the rarer one.

    Parameters
    ----------
    tests : sequence of CaseTrials
        Regression tests with their trials.
    plan : LookPlan
        Looks, luck and error shares that are simulated.
    seed : int
        The run's seed.
    runs : int
        Simulated gates for each loss that is tried.

    Returns
    -------
    VisibleLosses or None
        None where no test has a valid trial on both versions.
    """
    tried = [entry for entry in tests if entry.pairs]
    if not tried:
        return None
    counts = np.array([Counted(entry).after(len(entry.baseline)) for entry in tried])
    failed, valid, worse, better, pairs = counts[:, [0, 1, 4, 5, 7]].T
    design = VisibleDesign(
        [entry.case.family for entry in tried],
        (failed + 0.5) / (valid + 1),
        2 * np.minimum(worse, better) / pairs,
        plan,
    )
    found = visible_loss(design, key(seed, "gate", "visible"), runs=runs)
    smallest = [None if x is None else rounded(x) for x in (found.spread, found.half, found.one)]
    return VisibleLosses(power=found.power, spread=smallest[0], half=smallest[1], one=smallest[2])


def beyond_these(tests: Iterable[CaseTrials]) -> BeyondThese | None:
    """Say what other families of tests would show; None where fewer than two have valid trials."""
    rows = [(entry.case.family, entry.pairs) for entry in tests if entry.pairs]
    if len({family for family, _ in rows}) < 2:
        return None
    change = [float(np.mean([c - b for b, c in pairs])) for _, pairs in rows]
    mean = cluster_mean(change, [family for family, _ in rows])
    bounds = mean.interval()
    return BeyondThese(
        n_families=mean.families,
        delta=rounded(mean.estimate),
        ci_low=rounded(bounds.low),
        ci_high=rounded(bounds.high),
    )


def rounded(value: float) -> float:
    """Return a number as reports store it, to six places."""
    return round(float(value), 6)


def family_result(seen: FamilySeen) -> FamilyResult:
    """Return a family as reports store it."""
    bounds = seen.loss.interval() if seen.loss else None
    return FamilyResult(
        family=seen.family,
        n_tests=seen.tests,
        trials=seen.trials,
        delta=rounded(seen.loss.delta) if seen.loss else None,
        ci_low=rounded(bounds.low) if bounds else None,
        ci_high=rounded(bounds.high) if bounds else None,
        p_value=rounded(seen.loss.p_value) if seen.loss else None,
        fresh_trials=seen.fresh_trials,
        fresh_delta=rounded(seen.fresh.delta) if seen.fresh else None,
        fresh_p_value=rounded(seen.fresh.p_value) if seen.fresh else None,
        state=seen.state,
    )


def _strata(ran: Trials, plan: LookPlan) -> Iterable[StratumResult]:
    groups: defaultdict[str, list[CaseTrials]] = defaultdict(list)
    for case in ran.cases:
        groups[case.case.stratum].append(case)
    for name, cases in groups.items():
        loss = loss_after(list(map(Counted, cases)), max(len(c.baseline) for c in cases), plan.luck)
        if loss is None:
            continue
        bounds = loss.interval()
        yield StratumResult(
            stratum=name,
            n_tests=loss.tests,
            n_families=len({c.case.family for c in cases if c.pairs}),
            baseline_pass_rate=rounded(loss.baseline),
            candidate_pass_rate=rounded(loss.candidate),
            delta=rounded(loss.delta),
            ci_low=rounded(bounds.low),
            ci_high=rounded(bounds.high),
            p_value=rounded(loss.p_value),
        )


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
