"""Documents: no number without a field, no tick without evidence, no document without a source."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from safety_lib.report.documents import (
    DOCUMENTS,
    Document,
    read_evidence,
    render_documents,
    value_at,
    write_documents,
    written,
)
from safety_lib.report.metrics import METRICS, Metric

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
TEMPLATES = ARTIFACTS.parent / "safety_lib" / "report" / "templates" / "documents"
EVIDENCE = read_evidence(ARTIFACTS)
RENDERED = render_documents(EVIDENCE)


def unexplained(document: Document, evidence: dict[str, dict[str, Any]]) -> list[str]:
    """Every digit of the body that no quoted field accounts for."""
    rest, at = [], 0
    for quote in document.quotes:
        value = value_at(evidence[quote.artifact], quote.path)
        found = document.body.find(quote.text, at)
        if written(value, quote.form) == quote.text and found >= 0:
            rest.append(document.body[at:found])
            at = found + len(quote.text)
    rest.append(document.body[at:])
    return re.findall(r"\S*\d\S*", "".join(rest))


@pytest.mark.parametrize("document", RENDERED, ids=lambda d: d.name)
def test_every_number_is_that_of_a_named_field(document: Document) -> None:
    assert unexplained(document, EVIDENCE) == []


def test_a_number_that_no_artifact_holds_is_noticed() -> None:
    document = next(d for d in RENDERED if d.name == "exec_summary")
    (first, *rest) = document.sections
    added = first.model_copy(update={"body": first.body + "\nAbout 99% are safe.\n"})
    sections = (added, *rest)
    assert unexplained(document.model_copy(update={"sections": sections}), EVIDENCE) == ["99%"]
    changed = json.loads(json.dumps(EVIDENCE))
    changed["gate_report"]["candidate_pass_rate"] = 0.1234
    assert unexplained(document, changed) != []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_template_holds_no_number(name: str) -> None:
    text = (TEMPLATES / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"\d", re.sub(r"{{.*?}}|{%.*?%}", "", text)) == []


def test_under_each_section_stand_the_fields_of_its_values() -> None:
    for section in (section for document in RENDERED for section in document.sections):
        *_, last = section.text.splitlines()
        assert last.startswith("*Source: ") == bool(section.quotes)
        for quote in section.quotes:
            assert f"`{quote.path[0]}" in last
        assert "[^" not in section.text  # no mark stands in the sentences


def test_without_evidence_nothing_is_ticked_and_each_step_is_named() -> None:
    text = {document.name: document for document in render_documents({})}
    for document in text.values():
        assert document.quotes == ()
        assert "[x]" not in document.body
        assert unexplained(document, {}) == []
    assert "made by `python -m safety_lib gate`" in text["exec_summary"].body
    assert "`python -m safety_lib stress`" in text["threat_model"].body
    assert "made by `python -m safety_lib replay`" in text["oncall_playbook"].body


def boxes(evidence: dict[str, dict[str, Any]]) -> dict[str, bool]:
    body = next(d for d in render_documents(evidence) if d.name == "launch_checklist").body
    return {m[2]: m[1] == "x" for m in re.finditer(r"^- \[(.)\] ([^:.(]+)", body, re.MULTILINE)}


@pytest.mark.parametrize(("verdict", "ticked"), [("OK", True), ("WARN", False), ("BLOCK", False)])
def test_only_the_verdict_ticks_the_box_of_the_verdict(verdict: str, ticked: bool) -> None:
    evidence = json.loads(json.dumps(EVIDENCE))
    evidence["gate_report"]["verdict"] = verdict
    assert boxes(evidence)["The verdict of the gate is OK"] is ticked


def test_an_empty_suite_ticks_nothing_and_people_are_never_ticked() -> None:
    evidence = json.loads(json.dumps(EVIDENCE))
    evidence["regression_tests"]["funnel"]["active"] = 0
    evidence["incident_replay"]["new_tests"] = []
    found = boxes(evidence)
    assert not found["Regression suite has active tests"]
    assert not found["The last incident became tests"]
    assert not found["The residual risk is accepted "]


def test_text_from_outside_stays_in_a_code_span() -> None:
    evidence = json.loads(json.dumps(EVIDENCE))
    hostile = "x` ![a](http://evil.example) | <b>"
    evidence["incident_replay"]["root_cause"] = hostile
    evidence["incident_replay"]["bisection"]["enough"] = [hostile]
    evidence["gate_report"]["by_category"][hostile] = {
        "n_tests": 1, "baseline_pass_rate": 1.0, "candidate_pass_rate": 1.0
    }  # fmt: skip
    evidence["stress_failures"]["summary"][0]["by_attack_type"][hostile] = 3
    text = "\n".join(document.text for document in render_documents(evidence))
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert "evil.example" in text
    assert "evil.example" not in outside


def test_the_same_artifacts_give_the_same_files(tmp_path: Path) -> None:
    for name in ("stress_failures", "regression_tests", "gate_report", "incident_replay"):
        shutil.copy(ARTIFACTS / f"{name}.json", tmp_path)
    paths = write_documents(tmp_path)
    assert [path.stem for path in paths] == list(DOCUMENTS)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_documents(tmp_path)] == first


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_a_metric_names_code_and_a_field_that_exist(metric: Metric) -> None:
    try:
        importlib.import_module(metric.computed_by)
    except ModuleNotFoundError:
        module, _, name = metric.computed_by.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    tree: Any = EVIDENCE[metric.artifact]
    for part in metric.field.split("."):
        if tree is None:
            break  # a field that this run left empty
        tree = tree[part.removesuffix("[]")]
        tree = tree[0] if part.endswith("[]") else tree


def test_the_glossary_has_every_metric_once() -> None:
    body = next(d for d in RENDERED if d.name == "metrics_glossary").body
    assert re.findall(r"^## (.+)$", body, re.MULTILINE) == [m.name for m in METRICS]
