"""Run the suite on both versions and judge the candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date

from safety_lib.agent.versions import Version
from safety_lib.gate.decide import decide, losses_of, suspected
from safety_lib.gate.releases import apply
from safety_lib.gate.report import build_report
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import (
    CaseTrials,
    Known,
    cases_of,
    run_trials,
)
from safety_lib.policy import load_policy
from safety_lib.records import (
    GateException,
    GateHistory,
    GateReport,
    Suite,
    Trajectory,
)
from safety_lib.rollout.conversation import name_of_model


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
    report = build_report(suite, baseline, candidate, ran, decision, rules, trials, seed)
    return report.model_copy(update={"model": " and ".join(asked), "exceptions": listed})
