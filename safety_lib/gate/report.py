"""From a decision to ``gate_report.json``: the verdict with everything that it rests on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date

from safety_lib.agent.versions import Version, config_hashes
from safety_lib.artifacts import content_hash
from safety_lib.gate.critical import suspected
from safety_lib.gate.decide import Decision, compare, decide
from safety_lib.gate.describe import diagnose_families, pooled_pairs
from safety_lib.gate.drift import losses_of
from safety_lib.gate.exceptions import apply
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.sequential import enough_trials
from safety_lib.gate.trials import (
    REGRESSION_STRATA,
    CaseTrials,
    Known,
    Trials,
    cases_of,
    run_trials,
)
from safety_lib.policy import load_policy
from safety_lib.records import (
    ArmResult,
    GateException,
    GateHistory,
    GateReport,
    Outcome,
    StratumResult,
    Suite,
    TestResult,
    Trajectory,
)
from safety_lib.rollout.conversation import name_of_model
from safety_lib.stats.power import minimum_detectable_effect
from safety_lib.streams import generator


def run_gate(
    suite: Suite,
    baseline: Version,
    candidate: Version,
    *,
    trials: int = 10,
    seed: int = 7,
    model: str = "",
    max_tests: int = 0,
    rules: GateRules | None = None,
    on_result: Callable[[Trajectory], None] | None = None,
    known: Known | None = None,
    exceptions: Sequence[GateException] = (),
    as_of: date | None = None,
    history: GateHistory | None = None,
) -> GateReport:
    """Run the suite on both versions and judge the candidate.

    Parameters
    ----------
    suite : Suite
        Its active tests are run, beside the unselected controls and the benign twins.
    baseline, candidate : Version
        The versions to compare; both run in one go on common random numbers.
    trials : int
        Trials of each test on each version, at least 1.
    seed : int
        The run's seed.
    model : str, optional
        The model to use in place of those that the versions name.
    max_tests : int
        At most so many cases of each stratum; 0 means all.
    rules : GateRules, optional
        By default the packaged ``policy.yaml``.
    on_result : callable, optional
        Told of each conversation.
    known : dict, optional
        Conversations of gates before this one, which are not held again; what is held is added.
    exceptions : sequence of GateException
        Tests that the decision leaves out, where they may be; the report lists all of them.
    as_of : date, optional
        The day on which exceptions must not have expired. The gate looks at no clock.
    history : GateHistory, optional
        The releases before this one, whose small losses may add up.

    Raises
    ------
    ValueError
        If ``trials`` is less than 1, or the suite was made under another policy.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    if exceptions and as_of is None:
        raise ValueError("exceptions expire: say as of which day they are judged")
    policy = load_policy()
    if suite.policy_sha256 != policy.sha256:
        raise ValueError("the suite was made under another policy: run stages 1 and 2 again")
    rules = rules or load_rules()
    cases = cases_of(suite, trials, min(trials, rules.control_trials), max_tests)
    ran = run_trials(
        cases, baseline, candidate, seed=seed, model=model, on_result=on_result, known=known
    )
    excused, listed = apply(exceptions, cases, as_of) if as_of else (frozenset(), ())
    counted = tuple(entry for entry in ran.cases if entry.case.case_id not in excused)
    fresh = suspected(counted, rules)
    confirmations: tuple[CaseTrials, ...] = ()
    if fresh:
        again = run_trials(
            fresh, baseline, candidate, seed=seed, model=model, known=known, stream="confirm"
        )
        confirmations = again.cases
    judged = replace(ran, cases=counted, confirmations=confirmations)
    before = losses_of(history, candidate.sha256) if history else ()
    decision = decide(judged, rules, seed, before)
    # The suite may have been found on another model than the one that is judged.
    asked = dict.fromkeys(name_of_model(version, model) for version in (baseline, candidate))
    report = _report(suite, baseline, candidate, ran, decision, rules, trials, seed)
    return report.model_copy(update={"model": " and ".join(asked), "exceptions": listed})


def _report(
    suite: Suite,
    baseline: Version,
    candidate: Version,
    ran: Trials,
    decision: Decision,
    rules: GateRules,
    trials: int,
    seed: int,
) -> GateReport:
    safety = decision.safety
    return GateReport(
        artifact=GateReport.SCHEMA,
        schema_version=GateReport.VERSION,
        seed=seed,
        model=suite.model,
        config_sha256=config_hashes([baseline, candidate]),
        policy_sha256=load_policy().sha256,
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
    """
    cases = [c for c in ran.cases if c.case.stratum in REGRESSION_STRATA and c.pairs]
    families = Counter(c.case.family for c in cases)
    if len(families) < 2:
        return None
    failing = sum(1 - sum(b for b, _ in c.pairs) / len(c.pairs) for c in cases) / len(cases)
    effect = minimum_detectable_effect(
        list(families.values()),
        failing,
        trials,
        generator(seed, "gate", "detectable"),
        alpha=rules.alpha,
        at_least=rules.block_margin,
        runs=200,
        flips=99,
    )
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
