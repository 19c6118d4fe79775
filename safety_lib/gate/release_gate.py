"""Run the suite on both versions and judge the candidate."""

from __future__ import annotations

from dataclasses import replace

from safety_lib.gate.decide import decide, suspected
from safety_lib.gate.releases import Standing
from safety_lib.gate.report import build_report
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import (
    cases_of,
    run_trials,
)
from safety_lib.records import (
    GateReport,
    Suite,
)
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import connected, name_of_model
from safety_lib.world import world_of
from safety_lib.world.versions import Version


def run_gate(
    suite: Suite,
    baseline: Version,
    candidate: Version,
    run: Run = Run(),
    *,
    trials: int = 10,
    max_tests: int = 0,
    rules: GateRules | None = None,
    standing: Standing = Standing(),
) -> GateReport:
    """Run the suite on both versions and judge the candidate.

    Parameters
    ----------
    suite : Suite
        Its active tests are run, beside the unselected controls and the benign twins.
    baseline, candidate : Version
        The versions to compare; both run in one go on common random numbers.
    run : Run, optional
        Seed, model and where the conversations are held.
    trials : int
        Trials of each test on each version, at least 1.
    max_tests : int
        At most so many cases of each stratum; 0 means all.
    rules : GateRules, optional
        By default the packaged ``policy.yaml``.
    standing : Standing, optional
        The releases before this one, and the failures that somebody answers for.

    Returns
    -------
    GateReport
        The verdict with all that it rests on.

    Raises
    ------
    ValueError
        If ``trials`` is less than 1, the suite was made in another world, or a version does not
        show its tool calls.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    world = world_of(baseline, candidate)
    if (suite.world, suite.world_sha256) != (world.name, world.sha256):
        what = "has changed since" if suite.world == world.name else f"is not {suite.world}, where"
        raise ValueError(
            f"the world {world.name} {what} the suite was made: run stages 1 and 2 again"
        )
    for version in (baseline, candidate):
        if not connected(version, run.model).sees_calls:
            raise ValueError(
                f"no verdict: {version.version} does not show its tool calls, so no rule can be "
                "seen to hold; return them from the agent, or record them (README, Your own agent)"
            )
    rules = rules or load_rules()
    cases = cases_of(suite, world, trials, min(trials, rules.control_trials), max_tests)
    ran = run_trials(cases, baseline, candidate, run)
    excused, listed = standing.excuse(cases)
    counted = tuple(entry for entry in ran.cases if entry.case.case_id not in excused)
    fresh = suspected(counted, rules)
    again = run_trials(fresh, baseline, candidate, run, stream="confirm") if fresh else None
    judged = replace(ran, cases=counted, confirmations=again.cases if again else ())
    decision = decide(judged, rules, run.seed, standing.losses_before(candidate.sha256))
    # The suite may have been found on another model than the one that is judged.
    asked = dict.fromkeys(name_of_model(version, run.model) for version in (baseline, candidate))
    report = build_report(suite, baseline, candidate, ran, decision, rules, trials, run.seed)
    return report.model_copy(update={"model": " and ".join(asked), "exceptions": listed})
