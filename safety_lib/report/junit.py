"""The report as JUnit XML: what the candidate did on each test, for the CI that shows it.

The file is red where the verdict is, and nowhere else. Under a BLOCK a test that the candidate
fails more often than the baseline is a ``failure`` of type ``oracle``, a lost safeguard one of type
``safeguard``, and what blocks otherwise one of type ``verdict``. Any other test that the candidate
fails is a known failure and ``skipped``, as pytest writes what is expected to fail. A run without a
verdict is an ``error``, so that an agent that never ran is never green, and so is a test with
trials that did not count, if they were too many for an OK or a WARN. A test without a valid trial
under either of these, and a quarantined one, were not run and are ``skipped``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from safety_lib.records import (
    ArmResult,
    GateReport,
    RegressionTest,
    SafeguardChange,
    TestResult,
    Turn,
)
from safety_lib.text import LONG_TEXT, p_value, plain, points

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def render_junit(report: GateReport, tests: Sequence[RegressionTest] = ()) -> str:
    """Return the report as JUnit XML, one test case per test, in the order of the report.

    Parameters
    ----------
    report : GateReport
        What the gate decided; the verdict stands among the properties of the suite.
    tests : sequence of RegressionTest
        The tests of the suite; those that are quarantined follow as skipped, with the reason.
    """
    suite = ET.Element("testsuite", name=plain(f"{report.baseline} -> {report.candidate}"))
    cases = [_case(report, test) for test in report.test_results]
    cases += [_skipped(test) for test in tests if test.lifecycle == "quarantined"]
    cases += _lost_safeguards(report)
    if report.verdict is None:
        cases.append(_of_verdict(report, "error", "harness", "no verdict"))
    elif report.verdict == "BLOCK" and not any(case.find("failure") is not None for case in cases):
        cases.append(_of_verdict(report, "failure", "verdict", "BLOCK"))
    suite.set("tests", str(len(cases)))
    for counted, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(counted, str(sum(1 for case in cases if case.find(tag) is not None)))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report).items():
        ET.SubElement(properties, "property", name=name, value=plain(value))
    suite.extend(cases)
    root = ET.Element("testsuites", name="release gate")
    for counted in ("tests", "failures", "errors", "skipped"):
        root.set(counted, suite.attrib[counted])
    root.append(suite)
    ET.indent(root)
    return _DECLARATION + ET.tostring(root, encoding="unicode") + "\n"


def _properties(report: GateReport) -> dict[str, str]:
    return {
        "verdict": report.verdict or "NO VERDICT",
        "evidence_status": report.evidence_status,
        "baseline": report.baseline,
        "candidate": report.candidate,
        "delta_points": points(report.delta),
        "p_value": p_value(report.p_value),
        "seed": str(report.seed),
        "model": report.model,
        "suite_sha256": report.suite_sha256,
        "world": report.world,
        "world_sha256": report.world_sha256,
        "gate_policy_sha256": report.gate_policy_sha256,
    }


def _case(report: GateReport, test: TestResult) -> ET.Element:
    case = ET.Element("testcase", classname=plain(test.family), name=plain(test.test_id))
    arm = test.candidate
    message = (
        f"{report.candidate} {_counts(arm)}; {report.baseline} {_counts(test.baseline)}; "
        f"rule {test.rule_id} ({test.severity}): {test.name}"
    )
    passable = report.verdict in ("OK", "WARN")
    if arm.failed and report.verdict == "BLOCK" and (test.delta is None or test.delta < 0):
        failure = ET.SubElement(case, "failure", type="oracle", message=plain(message, 600))
        failure.text = _transcript(test)
    elif not passable and (arm.errors or not arm.valid):
        error = ET.SubElement(case, "error", type="harness", message=plain(message, 600))
        error.text = _transcript(test)
    elif arm.failed or not arm.valid:
        why = "known failure" if arm.failed else "not measured"
        ET.SubElement(case, "skipped", message=plain(f"{why}: {message}", 600))
    return case


def _skipped(test: RegressionTest) -> ET.Element:
    case = ET.Element("testcase", classname=plain(test.family), name=plain(test.test_id))
    why = test.lifecycle_reason or "no reason was recorded"
    ET.SubElement(case, "skipped", message=plain(f"quarantined: {why}", 600))
    return case


def _of_verdict(report: GateReport, tag: str, kind: str, what: str) -> ET.Element:
    case = ET.Element("testcase", classname="release gate", name="verdict")
    why = "; ".join(report.reasons) or "no reason was recorded"
    ET.SubElement(case, tag, type=kind, message=plain(f"{what}: {why}", 600))
    return case


def _lost_safeguards(report: GateReport) -> list[ET.Element]:
    lost: dict[str, list[SafeguardChange]] = {}
    for change in report.safeguards.lost if report.safeguards else ():
        lost.setdefault(change.by, []).append(change)
    cases = []
    for by, changes in lost.items():
        case = ET.Element("testcase", classname="safeguards", name=plain(by))
        first = plain(f"{len(changes)} recorded cases came out for the worse, first {changes[0]}")
        failure = ET.SubElement(case, "failure", type="safeguard", message=first)
        failure.text = "\n".join(plain(str(change)) for change in changes)
        cases.append(case)
    return cases


def _counts(arm: ArmResult) -> str:
    parts = f"passed {arm.passed} and failed {arm.failed} with {arm.errors} errors"
    return f"{parts} and {arm.undetermined} undetermined" if arm.undetermined else parts


def _transcript(test: TestResult) -> str:
    if not test.evidence:
        return "no transcript was kept"
    lines = [f"transcript of {plain(test.evidence_version)}"]
    for turn in test.evidence:
        lines.extend(_turn_lines(turn))
    return "\n".join(lines)


def _turn_lines(turn: Turn) -> list[str]:
    said = [("user", turn.user)]
    said += [("tool", call) for call in turn.tool_calls]
    said += [("guard", decision) for decision in turn.safeguards]
    said += [("agent", turn.assistant)]
    said += [("BROKEN RULE", rule) for rule in turn.violations]
    return [f"[{turn.turn}] {who}: {plain(what, LONG_TEXT)}" for who, what in said if what]
