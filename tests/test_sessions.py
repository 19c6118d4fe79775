"""Runs and sessions as their own tools wrote them down: AgentDojo, Harbor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.incident.intake import Intake, take_in

RECORDED = Path(__file__).parent / "data" / "sessions"


def said(taken: Intake) -> list[tuple[str, str]]:
    return [(turn.user, turn.assistant) for turn in taken.incident.trajectory]


def has(taken: Intake, *words: str) -> bool:
    return any(all(word in gap for word in words) for gap in taken.gaps)


def test_a_run_of_agentdojo_tells_what_its_tools_returned() -> None:
    taken = take_in(RECORDED / "agentdojo-0.1.35.json", NORTHWIND)
    ((asked, replied),) = said(taken)
    assert asked.startswith("Who else is invited") and replied.startswith("I have it: ValueError")
    day, found, failed = taken.incident.trajectory[0].calls
    assert (day.name, day.arguments, day.result) == ("get_current_day", {}, "2024-05-15")
    assert found.result is not None and "Catch up over lunch" in found.result
    # What was injected stands in no calendar that it looked at; what failed says why.
    assert failed.status == "failed" and (failed.result or "").startswith("ValueError: time data")
    assert has(taken, "not read", "injections", "security")


def test_a_trajectory_that_harbor_wrote_tells_what_the_user_said() -> None:
    """Harbor keeps neither what was taken back nor what Claude Code asked by itself apart."""
    taken = take_in(RECORDED / "atif-harbor-0.26.0.json", NORTHWIND)
    assert [turn.user for turn in taken.incident.trajectory] == [
        "Please read ticket T-204.",
        "And both of the others?",
        "Please delegate it.",
        "Say hello instead.",
        "Continue from where you left off.",
        "What now?",
    ]
    one, other = taken.incident.trajectory[1].calls
    assert one.result == "1\tAnother one.\n2\t" and one.status is None
    assert (other.result or "").startswith("File does not exist.") and other.status == "failed"
    assert "reported failure" not in (other.result or "")
    assert has(taken, "step 8, step 9", "a message of a sub-agent")
    assert has(taken, "in the user's place")


def atif(folder: Path, *steps: dict[str, Any]) -> Intake:
    path = folder / "trajectory.json"
    numbered = [{"step_id": n, **step} for n, step in enumerate(steps, start=1)]
    path.write_text(json.dumps({"schema_version": "ATIF-v1.7", "steps": numbered}), "utf-8")
    return take_in(path, NORTHWIND)


ASKING = {"tool_call_id": "a", "function_name": "read_ticket", "arguments": {"ticket": "T-900"}}


@pytest.mark.parametrize(
    "extra",
    [
        {"is_error": True},
        {"status": "error"},
        {"tool_result_metadata": {"is_error": True}},
        {"tool_result_metadata": {"raw_tool_result": {"content": "Not now.", "is_error": True},
                                  "is_error": True}},
    ],
)  # fmt: skip
def test_a_result_of_a_trajectory_that_failed_has_failed(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    result = {"source_call_id": "a", "content": "Not now.", "extra": extra}
    taken = atif(
        tmp_path,
        {"source": "user", "message": "Read it."},
        {"source": "agent", "message": "", "tool_calls": [ASKING],
         "observation": {"results": [result]}},
        {"source": "agent", "message": "Later."},
    )  # fmt: skip
    (call,) = taken.incident.trajectory[0].calls
    assert (call.status, call.result) == ("failed", "Not now.")
    assert taken.incident.plants == ()


def test_a_trajectory_of_a_sub_agent_says_whose_it_is(tmp_path: Path) -> None:
    inner = {"extra": {"is_sidechain": True}}
    asked = {"source": "user", "message": "Look.", **inner}
    taken = atif(tmp_path, asked, {"source": "agent", "message": "Seen.", **inner})
    assert said(taken) == [("Look.", "Seen.")]
    assert has(taken, "its user is another agent")
