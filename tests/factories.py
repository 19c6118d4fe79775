"""Whole records for tests, of which a test says only what it cares for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from safety_lib.gate.trials import Case, CaseTrials, Trials
from safety_lib.records import (
    ArmResult,
    Batch,
    BenignTwin,
    CellFindings,
    CellResult,
    Ended,
    ErrorEvent,
    Execution,
    ExpectedCall,
    GateReport,
    Intervention,
    MessageEvent,
    Outcome,
    RegressionTest,
    Reproduction,
    StratumResult,
    Suite,
    TestResult,
    TestSource,
    Trajectory,
    Violation,
)
from safety_lib.world import load_world

NORTHWIND = load_world("northwind")

# --------------------------------------------------------------------------- conversations


def a_trajectory(
    turn: int, ended: Ended = "violation", said: Sequence[str] = (), **changes: Any
) -> Trajectory:
    """Return a conversation that ended so in this turn; ``said`` is what the user said."""
    outcome: Outcome = "safe"
    if ended in ("violation", "error"):
        outcome = "violation" if ended == "violation" else "error"
    broken = Violation(rule_id="r", severity="high", turn=turn, evidence="e")
    events: list[Any] = [
        MessageEvent(turn=n, role="user", content=text) for n, text in enumerate(said, start=1)
    ]
    if ended == "error":
        events.append(ErrorEvent(turn=turn, error="timeout", detail=""))
    fields: dict[str, Any] = {
        "trajectory_id": "t",
        "scenario_id": "g/f",
        "goal": "g",
        "attack_type": "f",
        "attacker": "adaptive",
        "version": "v1",
        "config_sha256": "",
        "model": "m",
        "seed": 1,
        "outcome": outcome,
        "ended": ended,
        "n_turns": turn - 1 if ended == "error" else turn,
        "model_calls": turn,
        "violations": (broken,) if ended == "violation" else (),
        "events": tuple(events),
    }
    return Trajectory(**(fields | changes))


# --------------------------------------------------------------------------- tests and suites


def reproduced(k: int, n: int = 10, version: str = "v2", **changes: Any) -> Reproduction:
    """Return k failures of n replays; the interval says nothing unless it is given."""
    fields: dict[str, Any] = {"version": version, "k": k, "n": n, "ci_low": 0.0, "ci_high": 1.0}
    return Reproduction(**(fields | changes))


def a_test(number: int = 1, **changes: Any) -> RegressionTest:
    """Return an active test that came back on 8 of 10 replays."""
    fields: dict[str, Any] = {
        "test_id": f"T-{number:03d}",
        "source_failure_id": "F-1",
        "name": f"mails a record {number}",
        "category": "policy_erosion",
        "family": "record_exfiltration/mail",
        "signature": "R1/send_mail",
        "rule_id": "record_exfiltration",
        "severity": "high",
        "description": "",
        "attack_turns": ("hello",),
        "expected_behavior": "refuses",
        "tags": (),
        "lifecycle": "active",
        "reproduction": reproduced(8, ci_low=0.1, ci_high=0.9),
        "benign_twin": BenignTwin(
            twin_id="B-1", turns=("hi",), expected=ExpectedCall(name="read", arguments={})
        ),
        "source": TestSource(stage="stress", version="v2", seed=7),
    }
    return RegressionTest(**(fields | changes))


def a_suite(**changes: Any) -> Suite:
    """Return a suite of one test."""
    fields: dict[str, Any] = {
        "artifact": "regression_tests",
        "schema_version": 1,
        "seed": 7,
        "model": "simulated",
        "config_sha256": {"v1": "aa", "v2": "bb"},
        "world": "northwind",
        "world_sha256": "cc",
        "baseline": "v1",
        "candidate": "v2",
        "funnel": {"found": 3, "active": 1},
        "tests": (a_test(),),
    }
    return Suite(**(fields | changes))


# --------------------------------------------------------------------------- trials of the gate


def outcomes(passed: int, failed: int, errors: int = 0, undetermined: int = 0) -> list[Outcome]:
    """Return so many outcomes of each kind, each kind spread evenly over the trials."""
    counts: dict[Outcome, int] = {
        "safe": passed,
        "violation": failed,
        "error": errors,
        "undetermined": undetermined,
    }
    placed = [((i + 0.5) / n, kind) for kind, n in counts.items() for i in range(n)]
    return [kind for _, kind in sorted(placed)]


def entry(
    name: str, base: Sequence[Outcome], cand: Sequence[Outcome], **described: Any
) -> CaseTrials:
    """Return the trials of one test; its family is what stands before the dot of its name."""
    case = Case(name, name, "candidate_found", name.split(".")[0], "x", "r", "high", len(base))
    return CaseTrials(replace(case, **described), list(base), list(cand))


def an_execution(**changes: Any) -> Execution:
    """Return the proof that a version ran."""
    fields: dict[str, Any] = {
        "version": "v",
        "config_sha256": "c",
        "conversations": 100,
        "turns": 200,
        "model_calls": 200,
        "tool_calls": 300,
        "errors": 0,
        "undetermined": 0,
        "transcript_sha256": "t",
    }
    return Execution(**(fields | changes))


def trials(
    regression: Iterable[CaseTrials],
    proof: Execution | None = None,
    refused: int = 0,
    fresh: Iterable[CaseTrials] | None = None,
) -> Trials:
    """Return trials of regression tests beside control and benign cases that change nothing.

    Of sixty trials of a benign case the candidate refuses so many. Confirmations come out as the
    tests did, unless others are given.
    """
    served = outcomes(60 - refused, refused)
    cases = list(regression)
    if fresh is None:
        fresh = [CaseTrials(e.case, 2 * e.baseline, 2 * e.candidate) for e in cases]
    cases += [entry(f"b{i}", outcomes(60, 0), served, stratum="benign") for i in range(12)]
    cases += [entry(f"c{i}", outcomes(3, 0), outcomes(3, 0), stratum="control") for i in range(8)]
    proofs = []
    for role in ("baseline", "candidate"):
        held = [outcome for case in cases for outcome in getattr(case, role)]
        changes = {kind + "s" * (kind == "error"): held.count(kind) for kind in _LOST}
        seen = an_execution(
            version=role, conversations=len(held), model_calls=len(held), transcript_sha256=role
        )
        proofs.append(proof or seen.model_copy(update=changes))
    return Trials(tuple(cases), (proofs[0], proofs[1]), tuple(fresh))


_LOST: tuple[Outcome, Outcome] = ("error", "undetermined")


# --------------------------------------------------------------------------- reports


def a_result(number: int = 1, before: int = 9, after: int = 4, **changes: Any) -> TestResult:
    """Return a test that passed so many of ten trials before and after."""
    fields: dict[str, Any] = {
        "test_id": f"T-{number:03d}",
        "name": f"record leaves by mail {number}",
        "stratum": "baseline_found",
        "family": "record_exfiltration/mail",
        "category": "policy_erosion",
        "rule_id": "record_exfiltration",
        "severity": "critical",
        "baseline": ArmResult(passed=before, failed=10 - before, errors=0),
        "candidate": ArmResult(passed=after, failed=10 - after, errors=0),
        "delta": (after - before) / 10,
    }
    return TestResult(**(fields | changes))


def a_stratum(name: str, delta: float, low: float, high: float, **changes: Any) -> StratumResult:
    """Return one stratum of a report."""
    fields: dict[str, Any] = {
        "stratum": name,
        "n_tests": 6,
        "n_families": 3,
        "baseline_pass_rate": 0.9,
        "candidate_pass_rate": 0.9 + delta,
        "delta": delta,
        "ci_low": low,
        "ci_high": high,
        "p_value": 0.01,
    }
    return StratumResult(**(fields | changes))


def a_report(**changes: Any) -> GateReport:
    """Return a report that blocks."""
    fields: dict[str, Any] = {
        "artifact": "gate_report",
        "schema_version": GateReport.VERSION,
        "seed": 7,
        "model": "simulated",
        "config_sha256": {"v1": "1" * 64, "v2": "2" * 64},
        "world": "northwind",
        "world_sha256": "3" * 64,
        "verdict": "BLOCK",
        "evidence_status": "sufficient",
        "reasons": (),
        "baseline": "v1",
        "candidate": "v2",
        "baseline_pass_rate": 0.92,
        "candidate_pass_rate": 0.68,
        "delta": -0.24,
        "ci_low": -0.371,
        "ci_high": -0.109,
        "p_value": 0.0039,
        "n_tests": 12,
        "n_families": 6,
        "trials": 60,
        "looks": 1,
        "luck": "shared",
        "visible": None,
        "suite_sha256": "4" * 64,
        "gate_policy_sha256": "5" * 64,
        "steps": (),
        "strata": (),
        "by_category": {},
        "executions": (),
        "test_results": (),
    }
    return GateReport(**(fields | changes))


# --------------------------------------------------------------------------- causes


def an_intervention(name: str, kind: Any, before: int, after: int, **changes: Any) -> Intervention:
    """Return a change after which so many of 40 replays broke, give or take ten points."""
    effect = (before - after) / 40
    fields: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "description": "",
        "factual": reproduced(before, 40),
        "counterfactual": reproduced(after, 40),
        "effect": effect,
        "ci_low": effect - 0.1,
        "ci_high": effect + 0.1,
    }
    return Intervention(**(fields | changes))


# --------------------------------------------------------------------------- batches


def a_cell(seed: int, candidate: str = "v2", **changes: Any) -> CellResult:
    """Return a run of a batch; without changes to what it found, one that stopped."""
    fields: dict[str, Any] = {
        "world_sha256": "",
        "config_sha256": {},
        "conversations": 200,
        "baseline_failures": 24,
        "candidate_failures": 102,
        "baseline_once": 2,
        "candidate_once": 1,
        "errors": 0,
        "tests": 20,
        "families": 10,
        "verdict": "BLOCK",
        "delta": -0.55,
        "ci_low": -0.69,
        "ci_high": -0.41,
        "visible": 0.04,
        "incident_k": 18,
        "incident_n": 40,
        "root_cause": "memory.pin_policy + memory.window",
        "affected": 136.0,
        "gate_after": "BLOCK",
        "fixed_version": "v3",
        "gate_of_fix": "OK",
    }
    return CellResult(
        name=f"candidate={candidate},seed={seed}",
        parameters={"candidate": candidate, "seed": seed},
        found=CellFindings(**(fields | changes)) if changes else None,
        error="" if changes else "=1+1 stopped",
    )


def a_batch(*cells: CellResult) -> Batch:
    """Return a batch of some runs; of none, one in which all that can come out does."""
    nothing = {"delta": None, "ci_low": None, "ci_high": None}
    return Batch(
        artifact="batch",
        schema_version=1,
        seed=0,
        model="",
        config_sha256={},
        world="",
        world_sha256="",
        cells=cells
        or (
            a_cell(1, verdict="BLOCK"),
            a_cell(2, verdict="WARN", delta=-0.1, ci_low=-0.2, ci_high=0.0),
            a_cell(1, "v3", verdict="OK", delta=0.02, ci_low=-0.03, ci_high=0.07),
            a_cell(2, "v3", verdict=None, **nothing),
            a_cell(3, "v3"),
        ),
    )
