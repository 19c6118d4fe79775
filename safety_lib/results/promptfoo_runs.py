"""Results of promptfoo: ``promptfoo eval -o out.json``.

A test is called by its description, else by its variables; where a file compares several prompts
or providers, by theirs too. Repeats of a test are its trials, in their order.
"""

from __future__ import annotations

import json
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
    leaves,
    noted,
    numbered,
    parsed,
    several,
    title,
    told_apart,
)
from safety_lib.results.table import Sample

_BY_MODEL = (
    "llm-rubric",
    "model-graded",
    "g-eval",
    "factuality",
    "answer-relevance",
    "context-",
    "conversation-relevance",
    "search-rubric",
    "agent-rubric",
    "select-best",
    "promptfoo:redteam:",
)
_RESULTS = ("results", "results")
_ASSERTED, _ERROR = 1, 2  # its failureReason


class _Case(OfATool):
    description: str | None = None
    vars: Any = None
    asserts: list[Any] | None = Field(default=None, alias="assert")
    metadata: dict[str, Any] | None = None


class _Grading(OfATool):
    components: list[Any] | None = Field(default=None, alias="componentResults")


class _Labelled(OfATool):
    id: str = ""
    label: str = ""


class _Result(OfATool):
    success: bool
    score: float | None = None
    error: Any = None
    reason: int | None = Field(default=None, alias="failureReason")
    grading: _Grading | None = Field(default=None, alias="gradingResult")
    named: dict[str, Any] | None = Field(default=None, alias="namedScores")
    test: int = Field(0, alias="testIdx")
    case: _Case = Field(default_factory=_Case, alias="testCase")
    vars: Any = None
    metadata: dict[str, Any] | None = None
    provider: _Labelled | str = ""
    prompt: _Labelled | str = ""

    @property
    def of(self) -> str:
        told = self.provider
        return told if isinstance(told, str) else told.label or told.id

    @property
    def prompted(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt.label


class _Usage(OfATool):
    requests: int | None = Field(default=None, alias="numRequests")


class _Stats(OfATool):
    usage: _Usage | None = Field(default=None, alias="tokenUsage")


class _Table(OfATool):
    results: list[Any]
    stats: _Stats | None = None


class _Run(OfATool):
    results: _Table
    name: str | None = Field(default=None, alias="evalId")


def knows_promptfoo(path: Path, head: bytes) -> bool:
    """Whether a file begins as such results do."""
    seen = glimpse(head)
    table = seen.get("results") if isinstance(seen, dict) else None
    return isinstance(table, dict) and bool({"results", "prompts", "stats"} & set(table))


def read_promptfoo(path: Path, max_bytes: int) -> Held:
    """Read the results of one run, repeats included."""
    pieces = read_in_pieces(path, {_RESULTS: _Result}, "results of promptfoo")
    run = parsed(path, pieces.around, _Run, "results of promptfoo")
    results = sorted(pieces.entries[_RESULTS], key=lambda result: result.test)
    providers = list(dict.fromkeys(result.of for result in results))
    prompts = list(dict.fromkeys(result.prompted for result in results))
    names = [
        title(
            _called(result),
            *([result.prompted] if len(prompts) > 1 else []),
            *([result.of] if len(providers) > 1 else []),
        )
        for result in results
    ]
    what = [
        json.dumps([r.case.vars, r.case.asserts, r.prompted, r.of], sort_keys=True) for r in results
    ]
    untested = sum(not _asserted(result) for result in results)
    compared = (("prompts", prompts), ("providers", providers))
    return Held(
        samples=numbered(
            Sample(name, 1, _outcome(result), dict(_fields(result)))
            for name, result in zip(told_apart(names, what), results, strict=True)
        ),
        subject=several(providers),
        run=run.name or "",
        model_calls=_asked(run.results.stats),
        graded_by_model=any(_by_model(one) for r in results for one in r.case.asserts or []),
        notes=(
            *noted(untested, "result", "of tests without an assertion: undetermined"),
            *(
                f"tests of {len(held)} {kind} ({several(held)}), told apart by them"
                for kind, held in compared
                if len(held) > 1
            ),
        ),
    )


def _asked(stats: _Stats | None) -> int | None:
    return (stats.usage.requests or None) if stats and stats.usage else None


def _called(result: _Result) -> str:
    if result.case.description:
        return result.case.description
    told = result.case.vars or result.vars
    if isinstance(told, dict) and told:
        return ", ".join(f"{name}={_text(value)}" for name, value in sorted(told.items()))
    return f"test {result.test + 1}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _asserted(result: _Result) -> bool:
    return bool(result.case.asserts or (result.grading and result.grading.components))


def _outcome(result: _Result) -> Outcome:
    # Its `error` is also what an assertion that failed says, so it alone is no error.
    failed = result.reason == _ASSERTED or (result.reason is None and result.grading is not None)
    if not result.success and (result.reason == _ERROR or not failed):
        return "error"
    if not _asserted(result):
        return "undetermined"  # it passes whatever is answered
    return "safe" if result.success else "violation"


def _by_model(one: Any) -> bool:
    if not isinstance(one, dict):
        return False
    inner = one.get("assert")
    if isinstance(inner, list):
        return any(_by_model(part) for part in inner)
    return str(one.get("type", "")).removeprefix("not-").startswith(_BY_MODEL)


def _fields(result: _Result) -> Iterator[tuple[str, Any]]:
    told = {**(result.case.metadata or {}), **(result.metadata or {})}
    yield from leaves({k: v for k, v in told.items() if not k.startswith("_")}, "metadata")
    yield from leaves(result.vars or result.case.vars, "vars")
    yield from leaves(result.named, "score")
    if result.score is not None:
        yield "score", result.score
    for name, value in (("provider", result.of), ("prompt", result.prompted)):
        if value:
            yield name, value
    if result.error:
        yield "error", _text(result.error)
