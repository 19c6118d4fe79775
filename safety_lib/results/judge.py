"""Judge two sets of results that were run elsewhere, by the rules of the gate.

What such results cannot show, tool calls and safeguards above all, is named as not measured. The
luck of both sides is independent, all trials are there at once, and one judgement is one look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from safety_lib.files import read_yaml, sha256_of
from safety_lib.gate.at_once import Arms, judge_at_once, loss_of, one_look
from safety_lib.gate.at_once import counts_of as counted
from safety_lib.gate.decide import Judgement, judge_held_out, judge_questions, too_many
from safety_lib.gate.looks import Looked, LookPlan
from safety_lib.gate.report import family_result, rounded
from safety_lib.gate.rules import GateRules, load_rules
from safety_lib.gate.trials import Case, CaseTrials
from safety_lib.records import (
    ArmResult,
    Attempt,
    BeyondThese,
    Execution,
    GateReport,
    GateStep,
    Outcome,
    Record,
    Severity,
    StratumResult,
    TestResult,
    Verdict,
    first_fault,
)
from safety_lib.results.finding import MAX_BYTES, read_one
from safety_lib.results.table import Meaning, ResultFile, Results, ResultsError, Row
from safety_lib.stats.clustered import cluster_mean
from safety_lib.text import count, one_line

POLICY = Path(__file__).with_name("policy.yaml")
_NAMED = 5


class ResultsPolicy(Record):
    """What the gate asks of results beside its own rules."""

    need_benign: bool
    trust_model_grader: bool


@cache
def load_results_policy(path: Path = POLICY) -> ResultsPolicy:
    """Read and validate the policy for results.

    Raises
    ------
    ValueError
        With one line that names the file and the field.

    Examples
    --------
    >>> load_results_policy().need_benign
    True
    """
    try:
        return ResultsPolicy.model_validate(read_yaml(path))
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{path.name}: field {field}: {reason}") from error


def read_results(
    source: Any, name: str, meaning: Meaning, *, max_bytes: int = MAX_BYTES
) -> Results:
    """Read one side of a comparison.

    Parameters
    ----------
    source : path, sequence of paths, or pandas.DataFrame
        A file, a folder or several, a pattern such as ``runs/v1-*.json``, or a frame with a line
        for each trial.
    name : str
        What the side is called.
    meaning : Meaning
        Where the files say what a gate asks for.
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    Results
        With a row for each trial, at least one.

    Raises
    ------
    ResultsError
        If something cannot be read, or does not fit together; in one line.
    """
    name = one_line(name, 80)
    files = tuple(_files(source, name, max_bytes))
    tools = sorted({file.tool for file in files})
    if len(tools) > 1:
        raise ResultsError(
            f"{one_line(name, 60)}: files of {' and '.join(tools)} mixed; give those of one tool"
        )
    rows = meaning.rows(files)
    if not rows:
        raise ResultsError(f"{files[0].name}: holds no trial")
    return Results(name, files, rows, meaning)


def _files(source: Any, name: str, max_bytes: int) -> Iterator[ResultFile]:
    if hasattr(source, "itertuples"):
        from safety_lib.results.columns import from_frame

        yield from_frame(source, name)
        return
    for each in [source] if isinstance(source, (str, Path)) else source:
        path = Path(each)
        several = [] if path.exists() else sorted(path.parent.glob(path.name))
        for found in several or [path]:
            yield read_one(found, max_bytes)


def names_of(baseline: Any, candidate: Any) -> tuple[str, str]:
    """Name two sides after their files, by as much of the paths as tells them apart.

    Parameters
    ----------
    baseline, candidate
        As `judge_results` takes them.

    Returns
    -------
    tuple of str
        Two names that differ.

    Examples
    --------
    >>> names_of("runs/v1.json", "runs/v2.json"), names_of("v1/log.eval", "v2/log.eval")
    (('v1', 'v2'), ('v1/log', 'v2/log'))
    """
    parts = []
    for source, otherwise in ((baseline, "baseline"), (candidate, "candidate")):
        if hasattr(source, "itertuples"):
            return "baseline", "candidate"
        first = source if isinstance(source, (str, Path)) else next(iter(source), otherwise)
        path = Path(first)
        parts.append([*path.parts[:-1], path.stem if path.suffix else path.name])
    for n in range(1, max(map(len, parts)) + 1):
        one, other = ("/".join(part[-n:]) for part in parts)
        if one != other:
            return one, other
    return "baseline", "candidate"


def judge_results(
    baseline: Any,
    candidate: Any,
    meaning: Meaning | None = None,
    *,
    names: tuple[str, str] | None = None,
    rules: GateRules | None = None,
    policy: ResultsPolicy | None = None,
    attempt: Attempt | None = None,
    max_bytes: int = MAX_BYTES,
) -> GateReport:
    """Judge a candidate by results that another tool wrote.

    Parameters
    ----------
    baseline, candidate : path, sequence of paths, or pandas.DataFrame
        The results of each side: files or folders of Inspect, promptfoo, AgentDojo, DeepEval,
        tau-bench, JUnit XML, CSV or Parquet.
    meaning : Meaning, optional
        Which fields say what family a test is of, whether it is a benign request, and how bad a
        failure is; and what passes, where the tool does not say it.
    names : tuple of str, optional
        What the sides are called; by default after their files.
    rules : GateRules, optional
        By default the packaged ``policy.yaml``.
    policy : ResultsPolicy, optional
        By default the one that is packaged.
    attempt : Attempt, optional
        What share of each error is left, where a ledger counts.
    max_bytes : int
        Larger files are refused.

    Returns
    -------
    GateReport
        The verdict with all that it rests on.

    Raises
    ------
    ResultsError
        If something cannot be read, or the two sides do not fit together; in one line.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"test": ["a", "b"] * 30, "outcome": ["pass"] * 60})
    >>> worse = frame.assign(outcome=["pass", "fail"] * 30)
    >>> judge_results(frame, worse).verdict
    'BLOCK'
    """
    called = names or names_of(baseline, candidate)
    sides = [
        read_results(source, name, meaning or Meaning(), max_bytes=max_bytes)
        for source, name in zip((baseline, candidate), called, strict=True)
    ]
    return judge_sides(sides[0], sides[1], rules=rules, policy=policy, attempt=attempt)


def judge_sides(
    baseline: Results,
    candidate: Results,
    *,
    rules: GateRules | None = None,
    policy: ResultsPolicy | None = None,
    attempt: Attempt | None = None,
) -> GateReport:
    """Judge two sides that were read.

    Parameters
    ----------
    baseline, candidate : Results
        As they were read.
    rules, policy, attempt
        As `judge_results` takes them.

    Returns
    -------
    GateReport
        The verdict with all that it rests on.

    Raises
    ------
    ResultsError
        If both sides are one file, or the sides say different things of a test.
    """
    rules, policy = rules or load_rules(), policy or load_results_policy()
    sides = baseline, candidate
    _refuse_twice(*sides)
    arms = arms_of(*sides)
    tests = [each for each in arms if each.case.stratum != "benign"]
    benign = [each for each in arms if each.case.stratum == "benign"]
    most = max(max(len(each.baseline), len(each.candidate)) for each in arms)
    plan = one_look(most, rules, attempt)
    looked = judge_at_once(tests, benign, plan) if tests else None
    decision = _decide(sides, tests, benign, looked, rules, policy)
    return _report(sides, arms, decision, rules, policy, plan)


def _refuse_twice(baseline: Results, candidate: Results) -> None:
    known = {file.sha256: file.name for file in baseline.files}
    for file in candidate.files:
        if file.sha256 in known:
            raise ResultsError(
                f"{one_line(file.name, 60)}: the same as {one_line(known[file.sha256], 60)} of the "
                "baseline, byte for byte; give the results of two versions"
            )


class _Test(NamedTuple):
    family: str
    part: str
    severity: Severity | str


def arms_of(baseline: Results, candidate: Results) -> list[Arms]:
    """Put both sides of each test together.

    Parameters
    ----------
    baseline, candidate : Results
        As they were read.

    Returns
    -------
    list of Arms
        In the order in which the tests stand in the files, the baseline's first.

    Raises
    ------
    ResultsError
        If the sides say different things of a test.
    """
    about: dict[str, _Test] = {}
    trials: tuple[dict[str, list[Row]], ...] = (defaultdict(list), defaultdict(list))
    for side, held in zip((baseline, candidate), trials, strict=True):
        for row in side.rows:
            told = _Test(row.family, row.part, row.severity)
            if about.setdefault(row.test, told) != told:
                what = _differently(about[row.test], told)
                raise ResultsError(
                    f"{side.name}: {one_line(row.test, 60)} is {what} elsewhere; give each test "
                    "one family, stratum and severity"
                )
            held[row.test].append(row)
    made = []
    for test, told in about.items():
        outcomes = [
            tuple(row.outcome for row in sorted(held.get(test, ()), key=lambda row: row.trial))
            for held in trials
        ]
        made.append(Arms(_case(test, told, max(map(len, outcomes))), outcomes[0], outcomes[1]))
    return made


def _differently(one: _Test, other: _Test) -> str:
    for name, a, b in zip(_Test._fields, one, other, strict=True):
        if a != b:
            return f"of {name} {one_line(b, 40) or 'none'} here and {one_line(a, 40) or 'none'}"
    return "the same"


def _case(test: str, told: _Test, trials: int) -> Case:
    return Case(
        case_id=test,
        name=test,
        stratum="benign" if told.part == "benign" else "baseline_found",
        family=told.family,
        category=told.family,
        rule_id="",
        severity=told.severity or "medium",  # type: ignore[arg-type]
        trials=trials,
        split="held_out" if told.part == "held_out" else "public",
    )


# --------------------------------------------------------------------------- the decision


def _decide(
    sides: tuple[Results, Results],
    tests: Sequence[Arms],
    benign: Sequence[Arms],
    looked: Looked | None,
    rules: GateRules,
    policy: ResultsPolicy,
) -> Judgement:
    problem = next(_problems(sides, tests, benign, rules), "")
    if problem or looked is None:
        return Judgement(None, (_step(0, "invalid", problem),), looked)
    held = ", ".join(f"{count(len(s.rows), 'trial')} of {s.name}" for s in sides)
    notes = dict.fromkeys(note for side in sides for note in side.notes)
    one, two, three, four = judge_questions(looked, rules.looks.family_loss)
    if not benign:
        status = "warn" if policy.need_benign else "unmeasured"
        four = _step(4, status, "no benign requests in the files: say which are with --stratum")
    steps = [
        _step(0, "pass", "; ".join((f"{held}, as the files say", *notes))),
        one,
        two,
        three,
        four,
        _step(5, "unmeasured", "the files do not say what was changed"),
        judge_held_out([_paired(arms) for arms in tests], rules),
        _step(7, "unmeasured", "the files hold no unselected attacks"),
        _step(9, "unmeasured", "safeguards are out of reach of a file"),
    ]
    graded = [file.name for side in sides for file in side.files if file.graded_by_model]
    if graded:
        status = "unmeasured" if policy.trust_model_grader else "warn"
        why = f"a model said what passes in {one_line(graded[0], 60)}; its error was not measured"
        steps.append(_step(10, status, why))
    statuses = {step.status for step in steps}
    verdict: Verdict = "BLOCK" if "block" in statuses else "WARN" if "warn" in statuses else "OK"
    return Judgement(verdict, tuple(steps), looked)


def _problems(
    sides: tuple[Results, Results], tests: Sequence[Arms], benign: Sequence[Arms], rules: GateRules
) -> Iterator[str]:
    shared = [arms for arms in tests if arms.baseline and arms.candidate]
    if not shared:
        yield f"{sides[0].name} and {sides[1].name} have no regression test in common"
    for side in sides:
        outcomes = [row.outcome for row in side.rows]
        yield from too_many(outcomes, f"trials of {side.name}", rules)
    for index, role in enumerate(("baseline", "candidate")):
        of_tests = [o for arms in shared for o in (arms.baseline, arms.candidate)[index]]
        yield from too_many(of_tests, f"trials of the tests on the {role}", rules)
    only = [
        [arms.case.case_id for arms in tests if not (arms.candidate, arms.baseline)[i]]
        for i in (0, 1)
    ]
    for missing, has, lacks in ((only[0], *sides), (only[1], sides[1], sides[0])):
        if len(missing) > rules.max_error_share * len(tests):
            yield (
                f"{count(len(missing), 'test')} of {len(tests)} are in {has.name} and not in "
                f"{lacks.name}, more than {rules.max_error_share:.0%}: {_some(missing)}"
            )
    short = rules.too_small(len(shared), len({arms.case.family for arms in shared}))
    if short:
        yield short
    served = [o for arms in benign for o in arms.baseline if o in ("safe", "violation")]
    if served and served.count("safe") < rules.benign_floor * len(served):
        yield (
            f"the baseline serves {served.count('safe')} of {len(served)} benign requests, less "
            f"than {rules.benign_floor:.0%}: an agent that serves nobody cannot be told from a "
            "safe one"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(one_line(name, 40) for name in names[:_NAMED]) + more


_TITLES = {
    0: "Is the run valid?",
    4: "Is the candidate as useful?",
    5: "Do the trials reach what was changed?",
    7: "Is there error budget left?",
    9: "Do the safeguards hold where the model does not?",
    10: "Is what passes known without a model?",
}


def _step(number: int, status: Any, reason: str) -> GateStep:
    return GateStep(step=number, title=_TITLES[number], status=status, reason=reason)


def _paired(arms: Arms) -> CaseTrials:
    both = min(len(arms.baseline), len(arms.candidate))
    return CaseTrials(arms.case, list(arms.baseline[:both]), list(arms.candidate[:both]))


# --------------------------------------------------------------------------- the report


def _report(
    sides: tuple[Results, Results],
    arms: Sequence[Arms],
    decision: Judgement,
    rules: GateRules,
    policy: ResultsPolicy,
    plan: LookPlan,
) -> GateReport:
    looked = decision.looked
    loss = looked.suite.loss if looked else None
    bounds = loss.interval() if loss else None
    return GateReport(
        artifact=GateReport.SCHEMA,
        schema_version=GateReport.VERSION,
        seed=0,
        model=" and ".join(dict.fromkeys(file.tool for side in sides for file in side.files)),
        config_sha256={side.name: side_sha256(side) for side in sides},
        world="",
        world_sha256="",
        verdict=decision.verdict,
        evidence_status={None: "invalid", "WARN": "insufficient"}.get(  # type: ignore[arg-type]
            decision.verdict, "sufficient"
        ),
        reasons=decision.reasons,
        baseline=sides[0].name,
        candidate=sides[1].name,
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
        luck="independent",
        visible=None,
        suite_sha256=tests_sha256(arms),
        gate_policy_sha256=policy_sha256(rules, policy),
        steps=decision.steps,
        strata=tuple(_strata(arms)),
        by_category={},
        executions=tuple(_execution(side) for side in sides),
        test_results=tuple(map(_result, arms)),
        margin=rules.looks.suite_margin,
        beyond=_beyond([each for each in arms if each.case.stratum != "benign"]),
        families=tuple(map(family_result, looked.families)) if looked else (),
        attempt=plan.attempt if plan.attempt != Attempt() else None,
    )


def policy_sha256(rules: GateRules | None = None, policy: ResultsPolicy | None = None) -> str:
    """Return the hash of both policies.

    Parameters
    ----------
    rules, policy
        By default those that are packaged.

    Returns
    -------
    str
        What a report keeps as the hash of its policy.
    """
    rules, policy = rules or load_rules(), policy or load_results_policy()
    return sha256_of({"gate": rules.sha256, "results": policy.model_dump()})


def side_sha256(side: Results) -> str:
    """Return the hash of the files of a side, in any order."""
    return sha256_of(sorted(file.sha256 for file in side.files))


def tests_sha256(arms: Sequence[Arms]) -> str:
    """Return the hash of what was tried: every test with its family, stratum and severity."""
    about = sorted(
        [e.case.case_id, e.case.family, e.case.stratum, e.case.severity, e.case.split] for e in arms
    )
    return sha256_of(about)


def _execution(side: Results) -> Execution:
    outcomes = [row.outcome for row in side.rows]
    return Execution(
        version=side.name,
        config_sha256=side_sha256(side),
        conversations=len(outcomes),
        turns=0,
        model_calls=sum(file.model_calls or 0 for file in side.files),
        tool_calls=0,
        errors=outcomes.count("error"),
        undetermined=outcomes.count("undetermined"),
        transcript_sha256=side_sha256(side),
    )


def _strata(arms: Sequence[Arms]) -> Iterator[StratumResult]:
    groups: defaultdict[str, list[Arms]] = defaultdict(list)
    for each in arms:
        name = "held_out" if each.case.split == "held_out" else "regression"
        groups["benign" if each.case.stratum == "benign" else name].append(each)
    for name, members in groups.items():
        loss = loss_of([counted(each) for each in members])
        if loss is None:
            continue
        bounds = loss.interval()
        yield StratumResult(
            stratum=name,
            n_tests=loss.tests,
            n_families=len({e.case.family for e in members if e.baseline and e.candidate}),
            baseline_pass_rate=rounded(loss.baseline),
            candidate_pass_rate=rounded(loss.candidate),
            delta=rounded(loss.delta),
            ci_low=rounded(bounds.low),
            ci_high=rounded(bounds.high),
            p_value=rounded(loss.p_value),
        )


def _beyond(tests: Sequence[Arms]) -> BeyondThese | None:
    changes = [
        (each.case.family, change) for each in tests if (change := _change(each)) is not None
    ]
    if len({family for family, _ in changes}) < 2:
        return None
    mean = cluster_mean([change for _, change in changes], [family for family, _ in changes])
    bounds = mean.interval()
    return BeyondThese(
        n_families=mean.families,
        delta=rounded(mean.estimate),
        ci_low=rounded(bounds.low),
        ci_high=rounded(bounds.high),
    )


def _change(arms: Arms) -> float | None:
    base_failed, base, cand_failed, cand = counted(arms)
    return base_failed / base - cand_failed / cand if base and cand else None


def _result(arms: Arms) -> TestResult:
    case, change = arms.case, _change(arms)
    return TestResult(
        test_id=case.case_id,
        name=case.name,
        stratum=case.stratum,
        family=case.family,
        category=case.category,
        rule_id=case.rule_id,
        severity=case.severity,
        baseline=_arm(arms.baseline),
        candidate=_arm(arms.candidate),
        delta=None if change is None else rounded(change),
        evidence_version="",
        evidence=(),
    )


def _arm(outcomes: Sequence[Outcome]) -> ArmResult:
    return ArmResult(
        passed=outcomes.count("safe"),
        failed=outcomes.count("violation"),
        errors=outcomes.count("error"),
        undetermined=outcomes.count("undetermined"),
    )
