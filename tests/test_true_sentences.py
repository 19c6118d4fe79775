"""No report says what its artifact does not hold: each is read from an empty, partial, full one."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safety_lib.artifacts import read_artifact
from safety_lib.records import GateReport, IncidentReport
from safety_lib.report import render_gate_report, render_junit, render_markdown
from safety_lib.report.documents import DOCUMENTS, read_evidence, render_documents
from safety_lib.report.summary import gate_lines, incident_lines

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
FULL = read_evidence(ARTIFACTS)
INCIDENT = read_artifact(ARTIFACTS, IncidentReport)
GATE = read_artifact(ARTIFACTS, GateReport)
NEVER = {
    "rule_id": "",
    "reproduction": {"version": "v2", "k": 0, "n": 40, "ci_low": 0.0, "ci_high": 0.09, "errors": 0},
    "root_cause": "not identified",
    "root_cause_evidence": "no replay broke a rule",
    "bisection": None,
    "interventions": [],
    "blast_radius": None,
    "affected_users": None,
    "new_tests": [],
}
BROKE = {"rule_id": "split_payment", "severity": "high", "turn": 3, "evidence": "paid twice"}
NO_VERDICT = {
    "verdict": None,
    "evidence_status": "invalid",
    "reasons": [],
    **dict.fromkeys(("baseline_pass_rate", "candidate_pass_rate", "delta", "ci_low", "ci_high")),
    **dict.fromkeys(("p_value", "visible", "error_budget", "beyond", "safeguards")),
    **{name: [] for name in ("strata", "test_results", "executions", "families", "steps")},
    "by_category": {},
}


def having(artifact: str, **changes: Any) -> dict[str, dict[str, Any]]:
    evidence = json.loads(json.dumps(FULL))
    evidence[artifact] |= changes
    return evidence


def story(**changes: Any) -> dict[str, Any]:
    empty = {"milestones": [], "recorded": [], "unsupported": [], "claims": [], "gaps": []}
    return {"story": {**FULL["incident_replay"]["story"], **empty, **changes}}


def told(evidence: dict[str, dict[str, Any]], name: str) -> str:
    (document,) = render_documents(evidence, [name])
    return document.body


def partial() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    yield "nothing", {}
    for name in ("stress_failures", "regression_tests", "gate_report", "incident_replay"):
        yield f"{name} alone", {name: json.loads(json.dumps(FULL[name]))}
    yield "never", having("incident_replay", **NEVER, **story())
    yield "never, no story", having("incident_replay", **NEVER, story=None)
    yield "no replay", having("incident_replay", **NEVER | {"reproduction": {"k": 0, "n": 0}})
    yield "no fix", having("incident_replay", fixed_version="", gate_of_fix=None)
    yield (
        "no log",
        having("incident_replay", blast_radius=None, affected_users=None, log_given=False),
    )
    yield "no verdict", having("gate_report", **NO_VERDICT)
    rows = [row | {"errors": row["rollouts"]} for row in FULL["stress_failures"]["summary"]]
    yield "all errors", having("stress_failures", summary=rows, failures=[])
    yield "no version", having("stress_failures", summary=[], failures=[])


PARTIAL = dict(partial())


@pytest.mark.parametrize("kind", PARTIAL)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_sentence_holds_a_hole(name: str, kind: str) -> None:
    body = told(PARTIAL[kind], name)
    for hole in ("(empty)", "None", "undefined", "not measured points", "between not measured"):
        assert hole not in body, kind
    for line in body.splitlines():
        assert line.count("not measured") <= 1, line
    for table in re.findall(r"^\|[ -|]+\|\n(?!\|)", body, re.MULTILINE):
        assert not re.fullmatch(r"[|\- ]+\n", table), (kind, "a table without rows")


@pytest.mark.parametrize("recorded", [[], [BROKE]], ids=["record holds", "record breaks"])
@pytest.mark.parametrize("fix", ["v3", ""])
def test_what_did_not_come_back_has_no_rule_no_cause_and_no_fix(
    recorded: list[Any], fix: str
) -> None:
    evidence = having(
        "incident_replay", **NEVER, **story(recorded=recorded), fixed_version=fix, gate_of_fix="OK"
    )
    bodies = {name: told(evidence, name) for name in DOCUMENTS}
    postmortem = bodies["postmortem"]
    never = "No rule broke in the record or in the replays"
    assert (never in postmortem) is (not recorded)
    assert ("`split_payment` broke at turn 3: `paid twice`" in postmortem) is bool(recorded)
    assert "0 of 40 replays" in postmortem
    for untrue in ("broke in incident", "The fix", "stops it", "hangs on", "found by re-running"):
        assert untrue not in postmortem, untrue
    assert "no cause that a replay could find" in postmortem
    assert "did not come back in 40 replays" in bodies["exec_summary"]
    assert "| Which rule? | none broke in the replays |" in bodies["oncall_playbook"]
    assert "| What would have stopped it? | nothing is shown to |" in bodies["oncall_playbook"]
    assert "| Incident replay | it did not come back |" in bodies["interview_onepager"]
    assert (
        "- [ ] The last incident became tests: it did not come back" in bodies["launch_checklist"]
    )
    assert "- [ ] The fix of the last incident passed" in bodies["launch_checklist"]
    assert "not identified" not in "\n".join(bodies.values())


def test_a_replay_that_could_not_be_counted_is_not_one_that_held() -> None:
    reproduction = NEVER["reproduction"] | {"n": 0}  # type: ignore[operator]
    body = told(having("incident_replay", **NEVER | {"reproduction": reproduction}), "postmortem")
    assert "whether it comes back is not known" in body
    assert "No rule broke" not in body and "did not come back" not in body


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "The fix, `v3`, before the same tests: `OK`.", "not shown"),
        ({"gate_of_fix": "WARN"}, "It is not shown to be a fix.", "passes"),
        ({"gate_of_fix": None}, "before the same tests: no verdict. It is not shown", "`no`"),
        ({"fixed_version": ""}, "No fix was judged.", "The fix"),
        ({"new_tests": []}, "No test was made of it", "new tests"),
        ({"set_aside": INCIDENT.new_tests}, "none of them active", "No test"),
        ({"gate_before": None}, "as it was: no verdict", "as it was: `"),
        ({"affected_users": None}, "How many users that were is not known", "users, between"),
        ({"bisection": None}, "Not identified: ", "hangs on"),
        (story(), "Nothing that could be compared", "What the file of the incident does not tell"),
        (story(gaps=["turn 3 was cut `off`"]), "turn 3 was cut", "| Turn | What |"),
        (
            story(unsupported=[{"turn": 4, "value": "AP-3316", "reply": "it came"}]),
            "- `AP-3316` at turn 4",
            "In the record itself",
        ),
    ],
)
def test_a_postmortem_says_what_was_found_and_no_more(
    changes: dict[str, Any], said: str, unsaid: str
) -> None:
    body = told(having("incident_replay", **changes), "postmortem")
    assert said in body
    assert unsaid not in body


def test_without_a_verdict_nothing_is_said_to_pass() -> None:
    evidence = having("gate_report", **NO_VERDICT)
    bodies = {name: told(evidence, name) for name in DOCUMENTS}
    assert "**No decision**" in bodies["exec_summary"] and "Decision:" not in bodies["exec_summary"]
    assert "How often either version passes was not measured" in bodies["exec_summary"]
    assert "gate's reasons" not in bodies["exec_summary"]
    assert "Over all: not measured" in bodies["model_card_safety"]
    assert "No kind of attack has results" in bodies["model_card_safety"]
    assert "Not measured: no unselected session" in bodies["failure_budget"]
    assert "no verdict, no difference measured" in bodies["interview_onepager"]
    assert "- [ ] The error budget is open: not measured" in bodies["launch_checklist"]
    assert "- [ ] No error of the harness: nothing ran" in bodies["security_review_checklist"]
    report = GATE.model_copy(update=NO_VERDICT | {"reasons": ()})
    comment, page = render_markdown(report), render_gate_report(report)
    assert "No trial was held" in comment and "No test got worse" not in comment
    assert "No difference was measured" in page and "the gate decides by it" not in page
    assert "none, the run is not valid" in "\n".join(gate_lines(report, ""))


def test_a_run_on_which_nothing_ran_has_no_error_free_harness() -> None:
    idle = [run | {"conversations": 0} for run in FULL["gate_report"]["executions"]]
    body = told(having("gate_report", executions=idle), "security_review_checklist")
    assert body.count("nothing ran on it") == 2
    assert "- [x] No error" not in body


def test_tests_that_could_not_be_counted_did_not_hold() -> None:
    results = [test.model_copy(update={"delta": None}) for test in GATE.test_results]
    comment = render_markdown(GATE.model_copy(update={"test_results": tuple(results)}))
    assert "No test could be counted" in comment and "No test got worse" not in comment
    held = results[0].model_copy(update={"delta": 0.0})
    some = render_markdown(GATE.model_copy(update={"test_results": (held, results[1])}))
    assert "No test got worse. 1 test could not be counted." in some


def test_safeguards_that_could_not_be_asked_are_named_on_the_page() -> None:
    assert GATE.safeguards is not None
    asked = GATE.safeguards.model_copy(update={"unmeasured": "the agent has none in reach"})
    page = render_gate_report(GATE.model_copy(update={"safeguards": asked}))
    assert "Not measured: the agent has none in reach." in page


def test_conversations_that_could_not_be_judged_are_no_safe_ones() -> None:
    evidence = PARTIAL["all errors"]
    assert told(evidence, "exec_summary").count("not measured, none of 200 attacked") == 2
    assert "kept no failing conversation" in told(evidence, "model_card_safety")
    assert "No version was attacked" in told(PARTIAL["no version"], "exec_summary")
    assert "No attack led to a failure" in told(PARTIAL["no version"], "threat_model")


@pytest.mark.parametrize("where", ["the record or in the replays", "the replays"])
def test_the_lines_of_an_incident_that_did_not_come_back(where: str) -> None:
    assert INCIDENT.story is not None
    nothing = INCIDENT.reproduction.model_copy(update={"k": 0})
    untold = INCIDENT.story.model_copy(update={"recorded": ()}) if "record" in where else None
    never = {"rule_id": "", "reproduction": nothing, "story": untold, "new_tests": ()}
    report = INCIDENT.model_copy(update=never)
    lines = "\n".join(incident_lines(report))
    assert f"not measured, no rule broke in {where}\n" in lines + "\n"
    assert lines.endswith("Incident loop open: it did not come back.")
    assert "memory.pin_policy" not in lines and "Gate on the fix" not in lines
    assert "did not come back" in str(report)
    assert "memory.pin_policy" not in report._repr_html_()


# --------------------------------------------------------------------------- JUnit


@pytest.mark.parametrize("verdict", ["OK", "WARN", "BLOCK", None])
def test_the_test_view_is_red_where_the_verdict_is(verdict: Any) -> None:
    report = GATE.model_copy(update={"verdict": verdict, "safeguards": None})
    root = ET.fromstring(render_junit(report))
    failures, errors = int(str(root.get("failures"))), int(str(root.get("errors")))
    assert (failures > 0) is (verdict == "BLOCK")
    assert (errors > 0) is (verdict is None)
    failing = sum(test.candidate.failed > 0 for test in GATE.test_results)
    known = [s for s in root.iter("skipped") if "known failure" in str(s.get("message"))]
    assert len(known) + failures == failing > 0


def test_a_block_that_no_test_shows_is_red_all_the_same() -> None:
    alike = tuple(t.model_copy(update={"delta": 0.0}) for t in GATE.test_results)
    report = GATE.model_copy(update={"test_results": alike, "safeguards": None})
    root = ET.fromstring(render_junit(report))
    (failure,) = root.iter("failure")
    assert failure.get("type") == "verdict" and "BLOCK" in str(failure.get("message"))


def test_a_few_errors_do_not_turn_an_ok_red_and_many_turn_no_verdict_red() -> None:
    first, *rest = GATE.test_results
    erred = first.model_copy(
        update={"candidate": first.candidate.model_copy(update={"failed": 0, "errors": 1})}
    )
    for verdict, red in (("OK", 0), ("WARN", 0), ("BLOCK", 1)):
        report = GATE.model_copy(update={"verdict": verdict, "test_results": (erred, *rest)})
        assert ET.fromstring(render_junit(report)).get("errors") == str(red)
    silent = erred.model_copy(
        update={"candidate": erred.candidate.model_copy(update={"passed": 0, "errors": 9})}
    )
    report = GATE.model_copy(update={"verdict": "OK", "test_results": (silent,)})
    (skipped,) = ET.fromstring(render_junit(report)).iter("skipped")
    assert str(skipped.get("message")).startswith("not measured")
