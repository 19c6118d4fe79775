"""Judgements of results in a ledger: a file that grew is another attempt, never a fresh chance."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safety_lib.artifacts import content_hash
from safety_lib.files import sha256_of
from safety_lib.gate.ledger import begin, end, kept_report
from safety_lib.gate.rules import load_rules
from safety_lib.records import GateHistory, GateReport, LedgerLine, Pair
from safety_lib.results.judge import (
    arms_of,
    judge_sides,
    policy_sha256,
    side_sha256,
    tests_sha256,
)
from safety_lib.results.table import Results


class JudgedResults(NamedTuple):
    """A verdict on results as a ledger has it.

    ``again`` says that it was reached before, and is shown as it was.
    """

    report: GateReport
    history: GateHistory
    again: bool


def judge_results_once(path: str | Path, baseline: Results, candidate: Results) -> JudgedResults:
    """Judge two sides as one attempt of a ledger.

    The contest is that of the baseline's name and the tests. Whatever is judged in it next, another
    version or the same with more trials, is one more candidate, and spends the error of an OK as
    such. The same files again get the verdict that stands.

    Parameters
    ----------
    path : str or Path
        The ledger, a ``.json`` file; made where it is not there.
    baseline, candidate : Results
        As they were read.

    Returns
    -------
    JudgedResults
        The verdict as the ledger has it, the same bytes whenever it is asked for.

    Raises
    ------
    ArtifactError
        If the ledger or a report beside it was edited or damaged.
    ResultsError
        As `judge_sides`.
    """
    arms = arms_of(baseline, candidate)
    most = max(max(len(each.baseline), len(each.candidate)) for each in arms)
    asked = LedgerLine(
        baseline=baseline.name,
        candidate=candidate.name,
        pair=Pair(
            baseline_sha256=sha256_of(["results", baseline.name]),
            candidate_sha256=sha256_of([side_sha256(baseline), side_sha256(candidate)]),
            suite_sha256=tests_sha256(arms),
            world_sha256="",
            gate_policy_sha256=policy_sha256(),
            model="",
            luck="independent",
        ),
        seed=0,
        trials=most,
    )
    history, line = begin(path, asked, load_rules().looks)
    again = line.release is not None
    if not again:
        report = judge_sides(baseline, candidate, attempt=line.attempt)
        history, line = end(path, line, report)
        again = line.report_sha256 != content_hash(report)
    return JudgedResults(kept_report(path, line), history, again)
