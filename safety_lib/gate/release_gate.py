"""Run the suite on both versions, from look to look, until the answer is in."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safety_lib.agent.backends.calls import calls_left
from safety_lib.artifacts import content_hash
from safety_lib.gate.counting import Luck
from safety_lib.gate.decide import decide, judge_validity
from safety_lib.gate.last_line import compare_safeguards
from safety_lib.gate.ledger import begin, end, hash_of, kept_report
from safety_lib.gate.looks import MOST_TRIALS, LookPlan, judge_looks
from safety_lib.gate.releases import Standing
from safety_lib.gate.report import build_report
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import REGRESSION_STRATA, Case, Sampler, Trials, cases_of
from safety_lib.records import Attempt, GateHistory, GateReport, LedgerLine, Pair, Suite
from safety_lib.rollout.campaign import Run
from safety_lib.rollout.conversation import connected, name_of_model
from safety_lib.world import world_of
from safety_lib.world.versions import Version

# Confirmations come on top of what is planned: a fifth of the calls is kept for them.
_PLANNED = 0.8
# A run that is this far from valid is not paid for to its end.
_HOPELESS_ERRORS = 0.5


def run_gate(
    suite: Suite,
    baseline: Version,
    candidate: Version,
    run: Run = Run(),
    *,
    trials: int = MOST_TRIALS,
    max_tests: int = 0,
    rules: GateRules | None = None,
    standing: Standing = Standing(),
) -> GateReport:
    """Run the suite on both versions and judge the candidate, from look to look.

    The gate looks at the trials where ``looks.yaml`` says and stops as soon as the answer is in. It
    asks the safeguards first, which takes no trial: where they lost something, none is held.

    Parameters
    ----------
    suite : Suite
        Its active tests are run, beside the unselected controls and the benign twins.
    baseline, candidate : Version
        The versions to compare; both meet the same seeds, trial by trial.
    run : Run, optional
        Seed, model and where the conversations are held.
    trials : int
        Most trials of each test on each version, at least 1: where the last look is.
    max_tests : int
        At most so many cases of each stratum; 0 means all.
    rules : GateRules, optional
        By default the packaged ``policy.yaml``.
    standing : Standing, optional
        The attempt and the releases before it, and the failures that somebody answers for.

    Returns
    -------
    GateReport
        The verdict with all that it rests on.

    Raises
    ------
    ValueError
        If ``trials`` is less than 1, the suite was made in another world, a version does not show
        its tool calls, or the calls that are left pay for no trial.
    """
    luck = _luck_of(suite, (baseline, candidate), run, trials)
    world = world_of(baseline, candidate)
    rules = rules or load_rules()
    entry = standing.entry
    cases = cases_of(suite, world, trials, min(trials, rules.control_trials), max_tests)
    excused, listed = standing.excuse(cases)
    sampler = Sampler(cases, baseline, candidate, run)
    safeguards = compare_safeguards(suite.breaches, baseline, candidate)
    plan = LookPlan(trials, luck, rules.looks, entry.attempt if entry else Attempt())
    if safeguards.lost:
        ran = replace(sampler.trials, cases=())
    else:
        plan = replace(plan, cap=min(trials, _affordable_trials(cases, sampler)))
        ran = run_trials(cases, excused, plan, sampler, rules)
    decision = decide(
        _counted(ran, excused),
        rules,
        plan,
        run.seed,
        before=standing.released_before(baseline.sha256),
        changed=tuple(change.key for change in baseline.changes_to(candidate)),
        safeguards=safeguards,
    )
    report = build_report(suite, (baseline, candidate), ran, decision, rules, plan, run.seed)
    return report.model_copy(
        update={
            # The suite may have been found on another model than the one that is judged.
            "model": _model_of((baseline, candidate), run),
            "exceptions": listed,
            "safeguards": safeguards,
            "attempt": entry.attempt if entry else None,
            "begun": hash_of(entry) if entry else "",
        }
    )


class Recorded(NamedTuple):
    """A verdict on record: its report, the ledger up to it, and whether it was there before."""

    report: GateReport
    history: GateHistory
    again: bool


def judge_once(
    path: str | Path,
    suite: Suite,
    baseline: Version,
    candidate: Version,
    run: Run = Run(),
    *,
    trials: int = MOST_TRIALS,
    rules: GateRules | None = None,
    standing: Standing = Standing(),
) -> Recorded:
    """Run the gate as one attempt of a ledger: a pair that has a verdict is not judged again.

    Parameters
    ----------
    path : str or Path
        The ledger, a ``.json`` file; made where it is not there.
    suite, baseline, candidate, run, trials, rules
        As for `run_gate`.
    standing : Standing, optional
        For its exceptions; history and attempt are read from the ledger.

    Returns
    -------
    Recorded
        The verdict as the ledger has it, the same bytes whenever it is asked for.

    Raises
    ------
    ArtifactError
        If the ledger or a report beside it was edited or damaged.
    ValueError
        As `run_gate`.
    """
    rules = rules or load_rules()
    versions = baseline, candidate
    luck = _luck_of(suite, versions, run, trials)
    world = world_of(*versions)
    excused, _ = standing.excuse(cases_of(suite, world, 1, 1))
    asked = LedgerLine(
        baseline=baseline.version,
        candidate=candidate.version,
        pair=Pair(
            baseline_sha256=baseline.sha256,
            candidate_sha256=candidate.sha256,
            suite_sha256=content_hash(suite),
            world_sha256=world.sha256,
            gate_policy_sha256=rules.sha256,
            model=_model_of(versions, run),
            luck=luck,
            excused=tuple(sorted(excused)),
        ),
        seed=run.seed,
        trials=trials,
    )
    history, line = begin(path, asked, rules.looks)
    again = line.release is not None
    if not again:
        ours = replace(standing, history=history, entry=line)
        found = run_gate(suite, *versions, run, trials=trials, rules=rules, standing=ours)
        history, line = end(path, line, found)
        again = line.report_sha256 != content_hash(found)
    return Recorded(kept_report(path, line), history, again)


def _model_of(versions: Sequence[Version], run: Run) -> str:
    return " and ".join(dict.fromkeys(name_of_model(version, run.model) for version in versions))


def _luck_of(suite: Suite, versions: tuple[Version, Version], run: Run, trials: int) -> Luck:
    """Say whether both versions meet the same luck; refuse what no verdict can come of."""
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    world = world_of(*versions)
    if (suite.world, suite.world_sha256) != (world.name, world.sha256):
        what = "has changed since" if suite.world == world.name else f"is not {suite.world}, where"
        raise ValueError(
            f"the world {world.name} {what} the suite was made: run stages 1 and 2 again"
        )
    for version in versions:
        if not connected(version, run.model).sees_calls:
            raise ValueError(
                f"no verdict: {version.version} does not show its tool calls, so no rule can be "
                "seen to hold; return them from the agent, or record them (guide: Your own agent)"
            )
    world.expect_rules(suite.tests)
    same_luck = all(connected(version, run.model).same_luck for version in versions)
    return "shared" if same_luck else "independent"


def _affordable_trials(cases: Sequence[Case], sampler: Sampler) -> int:
    """Say how many trials of each test the calls that are left pay for, after one of each control.

    A limit on calls sets the last look before the first one is taken: no look knows what was seen.
    """
    if calls_left() is None:
        return sys.maxsize
    control = _control_trials(cases)
    sampler.more(dict.fromkeys(control, 1))
    left = calls_left() or 0
    tried = sampler.trials.executions
    spent = sum(ran.model_calls for ran in tried)
    turns = sum(ran.turns for ran in tried)
    once = sum(2 * len(case.turns) for case in cases if case.stratum != "control")
    each = math.ceil(once * spent / turns) if turns else once
    again = max(control.values(), default=1) - 1
    found = int(_PLANNED * (left - again * spent) / max(1, each))
    if found < 1:
        raise ValueError(
            f"no verdict: {left:,} calls are left, and one trial of each test and what is left of "
            f"the controls take about {math.ceil(each / _PLANNED) + again * spent:,}; "
            "raise --max-calls"
        )
    return found


def run_trials(
    cases: Sequence[Case],
    excused: Collection[str],
    plan: LookPlan,
    sampler: Sampler,
    rules: GateRules,
) -> Trials:
    """Hold trials until the looks have an answer, or the run is far from valid.

    Controls say nothing in the answer: they are tried once, and as often as the error budget needs
    where the answer is not BLOCK. Excused tests say nothing either; they are tried as often as the
    suite, so that the report can show what is excused.

    Parameters
    ----------
    cases : sequence of Case
        What the sampler can try.
    excused : collection of str
        Ids of tests that the decision leaves out.
    plan : LookPlan
        What was fixed before the first trial.
    sampler : Sampler
        Holds the trials.
    rules : GateRules
        What a valid run is.

    Returns
    -------
    Trials
        All that ran, excused tests and controls included.
    """
    control = _control_trials(cases)
    sampler.more(dict.fromkeys(control, 1))
    lenient = rules.model_copy(
        update={
            "max_error_share": max(_HOPELESS_ERRORS, rules.max_error_share),
            "benign_floor": rules.benign_floor / 2,
        }
    )
    while True:
        seen = _counted(sampler.trials, excused)
        tests = [e for e in seen.cases if e.case.stratum in REGRESSION_STRATA]
        if not tests:
            return sampler.trials
        looked = judge_looks(seen.cases, seen.confirmations, plan)
        if looked.verdict is not None:
            # A release that is blocked is not let out, whatever is left of its budget.
            sampler.more(control if looked.verdict != "BLOCK" else {})
            return sampler.trials
        if looked.looks and judge_validity(seen, lenient).status == "invalid":
            return sampler.trials
        most = max((looked.wanted.get(e.case.case_id, 0) for e in tests), default=0)
        sampler.more(looked.wanted | dict.fromkeys(excused, most), looked.wanted_fresh)


def _control_trials(cases: Sequence[Case]) -> dict[str, int]:
    return {case.case_id: case.trials for case in cases if case.stratum == "control"}


def _counted(ran: Trials, excused: Collection[str]) -> Trials:
    counted = tuple(entry for entry in ran.cases if entry.case.case_id not in excused)
    return replace(ran, cases=counted)
