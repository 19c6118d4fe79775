"""An incident of one's own: redacted before it is written, without a log, and of another world."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from safety_lib.__main__ import main
from safety_lib.artifacts import ArtifactError, read_artifact
from safety_lib.incident.intake import take_in
from safety_lib.incident.intake.redaction import Redaction
from safety_lib.incident.replay import replay_incident
from safety_lib.records import IncidentReport
from safety_lib.world import load_version, load_world

SAMPLES = Path(__file__).resolve().parent.parent / "artifacts"
WORLD = load_world("northwind")
ADDRESS = "dana.whitfield@post.example"
CARD = "4111 1111 1111 1111"


def trace(folder: Path, tool: str = "read_ticket") -> Path:
    function = {"name": tool, "arguments": json.dumps({"ticket": "T-900", "for": ADDRESS})}
    messages = [
        {"role": "user", "content": f"I am {ADDRESS}, read T-900."},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": f"Paid with {CARD} by {ADDRESS}."},
        {"role": "assistant", "content": f"Paid with {CARD}."},
    ]
    path = folder / "trace.json"
    path.write_text(json.dumps(messages), encoding="utf-8")
    return path


def test_nothing_personal_comes_through_the_door(tmp_path: Path) -> None:
    redaction = Redaction()
    taken = take_in(trace(tmp_path), WORLD, redaction=redaction)
    text = taken.incident.model_dump_json() + str(taken)
    assert "whitfield" not in text and "4111" not in text
    (turn,) = taken.incident.trajectory
    assert turn.user == "I am [email-1]@post.example, read T-900."
    assert turn.calls[0].arguments == {"ticket": "T-900", "for": "[email-1]@post.example"}
    assert turn.calls[0].result == "Paid with [card-1] by [email-1]@post.example."
    assert [(plant.key, plant.text) for plant in taken.incident.plants] == [
        ("T-900", "Paid with [card-1] by [email-1]@post.example.")
    ]
    assert redaction.found == {"email": 4, "card": 3}


def test_what_an_incident_file_claims_is_redacted_too(tmp_path: Path) -> None:
    tree: dict[str, Any] = json.loads((SAMPLES / "incident_example.json").read_text("utf-8"))
    tree["description"] = f"{tree['description']} Told by {ADDRESS}."
    tree["remediation_actions"] = [f"Write to {ADDRESS}"]
    path = tmp_path / "incident.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    plain = take_in(path, WORLD).incident
    found = take_in(path, WORLD, redaction=Redaction()).incident
    assert found.description.endswith("Told by [email-1]@post.example.")
    assert found.remediation_actions == ("Write to [email-1]@post.example",)
    for kept in ("seed", "agent_version", "affected_users", "detection_latency_hours"):
        assert getattr(found, kept) == getattr(plain, kept)


def test_labels_that_are_kept_as_claims_are_redacted_too(tmp_path: Path) -> None:
    tree = json.loads((SAMPLES / "incidents" / "erosion_over_ten_turns.json").read_text("utf-8"))
    tree["title"] = f"Seen by {ADDRESS}"
    path = tmp_path / "incident.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    claims = take_in(path, WORLD, redaction=Redaction()).incident.claims
    assert re.fullmatch(r"Seen by \[email-\d+\]@post\.example", claims["title"])
    assert "whitfield" not in json.dumps(claims)


def test_an_incident_of_another_world_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path, tool="search_web")
    incident = take_in(path, WORLD).incident  # it is read, and cannot be replayed here
    with pytest.raises(ArtifactError, match=r"northwind has none of the tools .*\(search_web\)"):
        replay_incident(incident, load_version("northwind/v2"), replays=1)
    assert main(["replay", "--incident", str(path), "--artifacts", str(SAMPLES)]) == 3
    said = capsys.readouterr().err
    assert "search_web" in said and "tools.yaml" in said and said.count("\n") == 1


@pytest.mark.slow
def test_without_a_log_the_radius_is_not_measured_and_never_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("incident_example.json", "regression_tests.json"):
        shutil.copy(SAMPLES / name, tmp_path)
    replay = ["replay", "--artifacts", str(tmp_path), "--replays", "4", "--fixed", ""]
    assert main([*replay, "--no-log", "--log", "x.parquet"]) == 3
    assert "--log or --no-log" in capsys.readouterr().err
    assert main(replay) == 3
    assert "--no-log" in capsys.readouterr().err
    rules = tmp_path / "redact.yaml"
    rules.write_text("keep: ['.']\n", encoding="utf-8")
    assert main([*replay, "--no-log", "--redact-with", str(rules)]) == 0
    said = capsys.readouterr().out
    assert "Blast radius: not measured: no log was given" in said
    assert "redacted: nothing was found" in said
    report = read_artifact(tmp_path, IncidentReport)
    assert report.rule_id  # a rule broke: it is the log that is missing
    assert (report.blast_radius, report.affected_users, report.log_given) == (None, None, False)
    assert "not measured: no log was given" in report._repr_html_()
    assert report.story is not None
    claimed = next(c for c in report.story.claims if c.claim == "affected users")
    assert (claimed.measured, claimed.agrees) == ("not measured: no log was given", None)
    written = (tmp_path / "docs" / "postmortem.md").read_text(encoding="utf-8")
    assert "Not measured: no log was given." in written
    assert "no rule broke" not in written
