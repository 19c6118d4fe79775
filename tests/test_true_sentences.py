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
    assert "Not estimated: no rule broke in the replays" in postmortem
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


# --------------------------------------------------------------------------- each branch


GATE_TREE, REPLAYED, FOUND = (
    FULL[name] for name in ("gate_report", "incident_replay", "stress_failures")
)
HIDDEN = {**GATE_TREE["visible"], "one": None}
CLAIMED_NOTHING = {**REPLAYED["blast_radius"], "claimed": None}
NO_RADIUS = {"blast_radius": None, "affected_users": None}
THAWED = {**GATE_TREE["error_budget"], "frozen": False}
SOME_ERRORS = [row | {"errors": 3} for row in FOUND["summary"]]
ASIDE = {"set_aside": REPLAYED["new_tests"]}
NO_MILESTONES = {"story": {**REPLAYED["story"], "milestones": []}}
ONE_CHANGE = {"bisection": {**REPLAYED["bisection"], "enough": ["memory.window"]}}
NO_EFFECT = [one | {"ci_low": -0.1} for one in REPLAYED["interventions"]]

SAID: tuple[tuple[str, str, dict[str, Any], str, str], ...] = (
    ("exec_summary", "gate_report", {}, "**Decision: `BLOCK`**", "No decision"),
    ("exec_summary", "gate_report", {}, "points, between 68.9 and 41.1, over 20 tests", "n/a"),
    ("exec_summary", "gate_report", {"ci_low": None}, "55.0 points, over 20 tests", "between"),
    ("exec_summary", "gate_report", {}, "The gate's reasons:", "not measured"),
    ("exec_summary", "gate_report", {}, "a loss of 18.4% in one alone", "total loss"),
    (
        "exec_summary",
        "gate_report",
        {"visible": HIDDEN},
        "Not even a total loss in one",
        "% in one alone",
    ),
    ("exec_summary", "gate_report", {"visible": None}, "What this does not say", "Eight times"),
    ("exec_summary", "gate_report", {}, "No active test covers", "No version"),
    ("exec_summary", "gate_report", {"uncovered_rules": []}, "does not say", "No active test"),
    (
        "exec_summary",
        "stress_failures",
        {},
        "24 of 200 attacked conversations",
        "ended in an error",
    ),
    ("exec_summary", "stress_failures", {}, "22 of them delayed", "none of 2"),
    (
        "exec_summary",
        "stress_failures",
        {"summary": SOME_ERRORS},
        "3 ended in an error",
        "none of 2",
    ),
    ("exec_summary", "incident_replay", {}, "goes back to `memory.pin_policy", "did not come"),
    ("exec_summary", "incident_replay", {}, "It added 2 tests to the suite.", "of them active"),
    ("exec_summary", "incident_replay", ASIDE, "2 tests to the suite, none of them", "no test to"),
    ("exec_summary", "incident_replay", {"bisection": None}, "was not identified", "goes back"),
    ("exec_summary", "incident_replay", {"new_tests": []}, "added no test to the", "It added 0"),
    ("failure_budget", "gate_report", {}, "13 broken rules in 30 unselected", "Not measured"),
    ("failure_budget", "gate_report", {}, "The budget is frozen", "asked for: "),
    (
        "failure_budget",
        "gate_report",
        {"error_budget": THAWED},
        "of the budget.",
        "The budget is frozen",
    ),
    ("failure_budget", "gate_report", {}, "Nobody asked for an exception", "asked for:"),
    ("failure_budget", "gate_report", {"exceptions": [{}]}, "asked for: 1.", "Nobody asked"),
    ("interview_onepager", "stress_failures", {}, "| Stress test | 126 failures |", "not run"),
    ("interview_onepager", "regression_tests", {}, "| 20 active tests from 126", "not run"),
    ("interview_onepager", "gate_report", {}, "`BLOCK`, difference 55.0", "no difference"),
    ("interview_onepager", "incident_replay", {}, "| Incident replay | `memory.pin", "not come"),
    ("launch_checklist", "incident_replay", {}, "- [x] The last incident became tests: 2", "none"),
    ("launch_checklist", "incident_replay", {}, "- [x] The fix of the last incident", "judged"),
    ("launch_checklist", "incident_replay", ASIDE, "none of its tests is active", "[x] The last"),
    (
        "launch_checklist",
        "incident_replay",
        {"fixed_version": ""},
        "no fix was judged",
        "[x] The f",
    ),
    ("launch_checklist", "gate_report", {}, "frozen: yes", "open: not measured"),
    ("model_card_safety", "gate_report", {}, "| `decomposition` | 1 | 100.0% | 33.3% |", "No kind"),
    ("model_card_safety", "gate_report", {}, "Over all the difference is 55.0", "not measured."),
    ("model_card_safety", "gate_report", {}, "with a p-value of < 0.001", "No kind"),
    ("model_card_safety", "gate_report", {"p_value": None}, "is 55.0 points.", "p-value"),
    ("model_card_safety", "stress_failures", {}, "126 failing conversations", "kept no failing"),
    ("oncall_playbook", "incident_replay", {}, "| Which rule? | `record_exf", "none broke"),
    ("oncall_playbook", "incident_replay", {}, "| Why? | `memory.pin_policy", "not measured"),
    ("oncall_playbook", "incident_replay", {}, "conversations? | 136, between", "not measured"),
    ("oncall_playbook", "incident_replay", {}, "did the report claim? | 1,247", "not measured"),
    (
        "oncall_playbook",
        "incident_replay",
        {"blast_radius": CLAIMED_NOTHING},
        "| How many conversations? | 136",
        "claim?",
    ),
    ("oncall_playbook", "incident_replay", NO_RADIUS, "conversations? | not measured |", "no log"),
    (
        "oncall_playbook",
        "incident_replay",
        NO_RADIUS | {"log_given": False},
        "not measured: no log was given",
        "from an audit",
    ),
    ("oncall_playbook", "incident_replay", {}, "| What would have stopped it? | `v3`", "is shown"),
    ("oncall_playbook", "incident_replay", {"gate_after": "OK"}, "nothing is shown to", "`v3`"),
    ("oncall_playbook", "incident_replay", {"fixed_version": ""}, "nothing is shown to", "it? | `"),
    ("oncall_playbook", "incident_replay", {"gate_of_fix": "WARN"}, "nothing is shown", "`v3`"),
    ("postmortem", "incident_replay", {}, "This says what happened, why, how", "watched"),
    ("postmortem", "incident_replay", {}, "broke in incident `INC-2024-001`", "did not come back"),
    ("postmortem", "incident_replay", {}, "| 7 | violation | `record_exf", "In the record itself"),
    ("postmortem", "incident_replay", NO_MILESTONES, "18 of 40 replays", "| Turn | What |"),
    ("postmortem", "incident_replay", {"story": None}, "18 of 40 replays", "| Turn | What |"),
    ("postmortem", "incident_replay", {}, "hangs on `memory.pin_policy` and `memory.w", "Not id"),
    (
        "postmortem",
        "incident_replay",
        {},
        "these changes brought the failure there, in 22",
        "this ch",
    ),
    ("postmortem", "incident_replay", ONE_CHANGE, "It hangs on `memory.window`.", "these changes"),
    ("postmortem", "incident_replay", {}, "Undoing `memory.pin_policy` alone left 0 of 40", "n/a"),
    ("postmortem", "incident_replay", {}, "| `without turn 6` | 4 of 20 |", "Not measured"),
    (
        "postmortem",
        "incident_replay",
        {"interventions": NO_EFFECT},
        "hangs on",
        "took it away, and",
    ),
    ("postmortem", "incident_replay", {}, "About 136 of 20,000 conversations", "Not measured"),
    ("postmortem", "incident_replay", {}, "About 147 users, between 72", "is not known"),
    ("postmortem", "incident_replay", NO_RADIUS, "the log cannot tell", "from an audit"),
    (
        "postmortem",
        "incident_replay",
        NO_RADIUS | {"log_lacks": ["no `user`"]},
        "- `no \\x60user\\x60`",
        "from an audit",
    ),
    (
        "postmortem",
        "incident_replay",
        {"log_lacks": ["half of it"]},
        "- `half of it`",
        "cannot tell",
    ),
    (
        "postmortem",
        "incident_replay",
        NO_RADIUS | {"log_given": False},
        "no log was given",
        "cannot tell",
    ),
    (
        "postmortem",
        "incident_replay",
        {},
        "| severity | `critical` | `critical` | yes |",
        "Nothing",
    ),
    ("postmortem", "incident_replay", {}, "In made-up traffic an audit", "No evidence yet"),
    ("postmortem", "incident_replay", {}, "## What stops it now", "What is watched"),
    ("postmortem", "incident_replay", {}, "- 2 new tests stand in the suite.", "No test"),
    ("postmortem", "incident_replay", {}, "`BLOCK`. With the new tests: `BLOCK`", "no verdict"),
    ("postmortem", "incident_replay", {"gate_after": None}, "new tests: no verdict", "measured"),
    (
        "security_review_checklist",
        "gate_report",
        {},
        "[x] No error of the harness on",
        "nothing ran",
    ),
    ("threat_model", "stress_failures", {}, "| `v1` | `decomposition` | 1 |", "No attack led"),
)


@pytest.mark.parametrize(("name", "artifact", "changes", "said", "unsaid"), SAID)
def test_a_document_says_what_its_artifact_holds(
    name: str, artifact: str, changes: dict[str, Any], said: str, unsaid: str
) -> None:
    body = told(having(artifact, **changes), name)
    # Numbers move with the artifacts; that each is the one of its field is tested elsewhere.
    number = r"[+\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?"
    words = re.split(rf"(?<![\w`]){number}(?!\w)", said)
    assert re.search(number.join(map(re.escape, words)), body)
    assert unsaid not in body


@pytest.mark.parametrize(
    ("artifact", "row"),
    [
        ("stress_failures", "| Stress test | not run yet |"),
        ("regression_tests", "| Regression tests | not run yet |"),
        ("gate_report", "| Release gate | not run yet |"),
        ("incident_replay", "| Incident replay | not run yet |"),
    ],
)
def test_a_step_that_was_not_run_is_named_as_such(artifact: str, row: str) -> None:
    without = {name: tree for name, tree in FULL.items() if name != artifact}
    assert row in told(without, "interview_onepager")
    boxes = told(without, "launch_checklist")
    assert f"`{artifact}.json` is made by" in boxes
    if artifact == "incident_replay":
        assert "- [ ] The last incident became tests. No evidence yet" in boxes
        assert "- [ ] The fix of the last incident passed the gate. No evidence" in boxes


def test_what_took_nothing_away_is_not_listed_with_what_did() -> None:
    tried = [{**REPLAYED["interventions"][0], "name": "paint it blue", "ci_low": -0.1}]
    body = told(
        having("incident_replay", interventions=REPLAYED["interventions"] + tried), "postmortem"
    )
    assert "What took it away" in body and "paint it blue" not in body


def test_without_the_experiment_nothing_is_said_of_monitors() -> None:
    without = {name: tree for name, tree in FULL.items() if name != "detection_latency"}
    body = told(without, "postmortem")
    assert "`make experiments` measures it" in body and "made-up traffic" not in body
