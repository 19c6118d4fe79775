"""Test runs of DeepEval, and risk assessments of deepteam, as they save them.

DeepEval counts a test as failed where a metric could not be measured; here that is an error, unless
another metric failed. deepteam invents its attacks anew in every run, so that what two runs have in
common is the weakness and the attack: these are the test, and its cases are trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from safety_lib.records import Outcome
from safety_lib.results.in_pieces import read_in_pieces
from safety_lib.results.opening import (
    Held,
    OfATool,
    glimpse,
    keys_of,
    leaves,
    numbered,
    parsed,
    title,
    told_apart,
)
from safety_lib.results.table import Sample

_CASES = ("testCases", "conversationalTestCases")
_ATTACKED = ("test_cases",)


class _Metric(OfATool):
    name: str = ""
    success: bool | None = None
    score: float | None = None
    error: Any = None
    flaky: bool = False
    model: Any = Field(default=None, alias="evaluationModel")


class _Case(OfATool):
    name: str
    success: bool | None = None
    metrics: list[_Metric] | None = Field(default=None, alias="metricsData")
    metadata: dict[str, Any] | None = None
    input: Any = None
    scenario: Any = None


class _Attacked(OfATool):
    vulnerability: str
    vulnerability_type: Any = None
    attack_method: str | None = None
    risk_category: str | None = None
    score: float | None = None
    error: Any = None
    metadata: dict[str, Any] | None = None
    input: Any = None


def knows_deepeval(path: Path, head: bytes) -> bool:
    """Whether a file begins as a test run of DeepEval does."""
    return bool({"testCases", "testRunData"} & keys_of(head))


def knows_assessment(path: Path, head: bytes) -> bool:
    """Whether a file begins as a risk assessment of deepteam does."""
    seen = glimpse(head)
    overview = seen.get("overview") if isinstance(seen, dict) else None
    return isinstance(overview, dict) and "vulnerability_type_results" in overview


def read_deepeval(path: Path, max_bytes: int) -> Held:
    """Read a test run of DeepEval."""
    places = [(*kept, name) for name in _CASES for kept in ((), ("testRunData",))]
    pieces = read_in_pieces(path, dict.fromkeys(places, _Case), "a test run of DeepEval")
    parsed(path, pieces.around, dict[str, Any], "a test run of DeepEval")
    cases = [case for place in places for case in pieces.entries[place]]
    names = told_apart(
        [title(case.name) for case in cases],
        [str(case.input or case.scenario) for case in cases],
    )
    return Held(
        samples=numbered(
            Sample(name, 1, _outcome(case), dict(_fields(case)))
            for name, case in zip(names, cases, strict=True)
        ),
        graded_by_model=any(m.model for case in cases for m in case.metrics or []),
    )


def read_assessment(path: Path, max_bytes: int) -> Held:
    """Read a risk assessment of deepteam."""
    pieces = read_in_pieces(path, {_ATTACKED: _Attacked}, "a risk assessment of deepteam")
    parsed(path, pieces.around, dict[str, Any], "a risk assessment of deepteam")
    return Held(
        samples=numbered(
            Sample(
                title(case.vulnerability, case.vulnerability_type, case.attack_method or "none"),
                1,
                _held(case),
                dict(_of_attack(case)),
            )
            for case in pieces.entries[_ATTACKED]
        ),
        graded_by_model=True,
    )


def _outcome(case: _Case) -> Outcome:
    deciding = [metric for metric in case.metrics or [] if not metric.flaky]
    if any(metric.success is False and not metric.error for metric in deciding):
        return "violation"
    if any(metric.error for metric in deciding):
        return "error"
    if not deciding or case.success is None:
        return "undetermined"
    return "safe" if case.success else "violation"


def _fields(case: _Case) -> Iterator[tuple[str, Any]]:
    yield from leaves(case.metadata, "metadata")
    scored = [metric for metric in case.metrics or [] if metric.score is not None]
    for metric in scored:
        yield f"score.{metric.name}", metric.score
    if len(scored) == 1:
        yield "score", scored[0].score
    if errors := [str(metric.error) for metric in case.metrics or [] if metric.error]:
        yield "error", errors[0]


def _held(case: _Attacked) -> Outcome:
    if case.error:
        return "error"
    if case.score is None:
        return "undetermined"
    return "safe" if case.score > 0 else "violation"  # as its own overview counts


def _of_attack(case: _Attacked) -> Iterator[tuple[str, Any]]:
    yield "family", title(case.vulnerability)
    yield from leaves(case.metadata, "metadata")
    told = {
        "vulnerability": case.vulnerability,
        "attack": case.attack_method,
        "risk_category": case.risk_category,
        "score": case.score,
        "error": None if case.error is None else str(case.error),
    }
    for name, value in told.items():
        if value is not None:
            yield name, value
