"""Sessions of Claude Code: what was lived to the end is the conversation; the rest is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake import Intake, take_in

RECORDED = Path(__file__).parent / "data" / "sessions" / "claude-code-2.1.197.jsonl"
ASKED = {"type": "tool_use", "name": "read_ticket", "input": {"ticket": "T-900"}}


def read(folder: Path, lines: list[Any], conversation: str = "") -> Intake:
    path = folder / "session.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return take_in(path, NORTHWIND, conversation)


def said(taken: Intake) -> list[tuple[str, str]]:
    return [(turn.user, turn.assistant) for turn in taken.incident.trajectory]


def has(taken: Intake, *words: str) -> bool:
    return any(all(word in gap for word in words) for gap in taken.gaps)


def line(own: str, parent: str | None, content: Any, **more: Any) -> dict[str, Any]:
    """A line of the user, or of the agent where its name begins with ``a``."""
    kind = "assistant" if own.startswith("a") else "user"
    message = {"role": kind, "content": content, "id": more.pop("message", own)}
    told = {"uuid": own, "parentUuid": parent, "sessionId": "s", "isSidechain": False}
    return {"type": kind, "message": message, **told, **more}


def result(own: str, parent: str, call: str, text: str = "It sleeps.") -> dict[str, Any]:
    return line(own, parent, [{"type": "tool_result", "tool_use_id": call, "content": text}])


def calls(own: str, parent: str, *names: str, message: str = "") -> dict[str, Any]:
    return line(own, parent, [{**ASKED, "id": n} for n in names], message=message or own)


FIRST = [line("u1", None, "Read it."), line("a1", "u1", [{"type": "text", "text": "Read."}])]
SECOND = [line("u2", "a1", "Pay it."), line("a2", "u2", "Paid.")]


def test_a_session_that_the_tool_itself_wrote_is_what_was_lived() -> None:
    """Calls side by side, a failure, a prompt taken back, a summary and a session resumed."""
    taken = take_in(RECORDED, NORTHWIND)
    assert said(taken) == [
        ("Please read ticket T-204.", "Hello there."),
        ("And both of the others?", "I will read both.\nI could not do it."),
        ("Say hello instead.", "Hello there."),
        ("What now?", "Hello there."),
    ]
    read_both = taken.incident.trajectory[1].calls
    assert [(call.result or "")[:14] for call in read_both] == ["1\tAnother one.", "File does not "]
    assert [call.status for call in read_both] == [None, "failed"]
    assert has(taken, "line 21: a branch of 4 messages", "left out: Please delegate it.")
    assert has(taken, "summary that the tool made") and has(taken, "in the agent's place")
    assert not has(taken, "fields of messages")


@pytest.mark.parametrize(
    ("lines", "users", "branches"),
    [
        # The second prompt was taken back, once and twice; the first one; all but the first.
        ([*FIRST, *SECOND, line("u3", "a1", "Stop.")], ["Read it.", "Stop."], 1),
        ([*FIRST, *SECOND, line("u3", "a1", "Well?"), line("u4", "a1", "Stop.")],
         ["Read it.", "Stop."], 2),
        ([*FIRST, *SECOND, line("u3", None, "Stop.")], ["Stop."], 1),
        ([*FIRST, *SECOND, line("u3", "a2", "More."), line("a4", "u1", "Stop.")], ["Read it."], 1),
        # Back to the branch that had been left before.
        ([*FIRST, *SECOND, line("u3", "a1", "Well?"), line("u4", "a2", "More.")],
         ["Read it.", "Pay it.", "More."], 1),
        # Lines whose parents the file lacks, or that name none, follow what stands above them.
        ([*FIRST, line("u2", "gone", "Pay it.")], ["Read it.", "Pay it."], 0),
        ([*FIRST, {k: v for k, v in line("u2", "", "Pay it.").items() if k != "parentUuid"}],
         ["Read it.", "Pay it."], 0),
        # Nobody kept the tree.
        ([{**told, "parentUuid": None} for told in (*FIRST, *SECOND)], ["Read it.", "Pay it."], 0),
        # A summary goes on where the conversation stood, whether it says so or not.
        ([*FIRST, line("u2", None, "Sum.", isCompactSummary=True), line("u3", "u2", "Go on.")],
         ["Read it.", "Go on."], 0),
        ([*FIRST, {"type": "system", "subtype": "compact_boundary", "uuid": "c", "sessionId": "s",
                   "parentUuid": None, "logicalParentUuid": "a1"},
          line("u2", "c", "Sum.", isCompactSummary=True), line("u3", "u2", "Go on.")],
         ["Read it.", "Go on."], 0),
        # What is said while the agent works stands in an attachment.
        ([*FIRST, {"type": "attachment", "uuid": "q", "parentUuid": "a1", "sessionId": "s",
                   "attachment": {"type": "queued_command", "commandMode": "prompt",
                                  "prompt": [{"type": "text", "text": "Hurry."}]}},
          line("a2", "q", "Yes.")], ["Read it.", "Hurry."], 0),
    ],
)  # fmt: skip
def test_only_the_branch_that_was_lived_to_the_end_is_read(
    tmp_path: Path, lines: list[Any], users: list[str], branches: int
) -> None:
    taken = read(tmp_path, lines)
    assert [turn.user for turn in taken.incident.trajectory] == users
    assert sum("taken back is left out" in gap for gap in taken.gaps) == branches


@pytest.mark.parametrize(
    "lines",
    [
        # One line for both calls; a line for each; the first result is the last that came.
        [calls("a1", "u1", "x", "y"), result("r1", "a1", "x"), result("r2", "a1", "y", "It eats.")],
        [calls("a1", "u1", "x", message="m"), calls("a2", "a1", "y", message="m"),
         result("r1", "a1", "x"), result("r2", "a2", "y", "It eats.")],
        [calls("a1", "u1", "x", message="m"), calls("a2", "a1", "y", message="m"),
         result("r1", "a2", "y", "It eats."), result("r2", "a1", "x")],
    ],
)  # fmt: skip
def test_calls_side_by_side_are_no_branches(tmp_path: Path, lines: list[Any]) -> None:
    lines = [line("u1", None, "Read both."), *lines, line("a9", "r2", "Read.")]
    taken = read(tmp_path, lines)
    assert said(taken) == [("Read both.", "Read.")]
    found = taken.incident.trajectory[0].calls
    assert [call.result for call in found] == ["It sleeps.", "It eats."]
    assert not has(taken, "taken back")


def test_two_sessions_of_one_file_are_asked_about(tmp_path: Path) -> None:
    other = [{**told, "sessionId": "t"} for told in SECOND]
    lines = [{"type": "summary", "summary": "A talk"}, *FIRST, *other]
    with pytest.raises(ArtifactError, match=r"holds 2 conversations \(s, t\)"):
        read(tmp_path, lines)
    taken = read(tmp_path, lines, "t")
    assert said(taken) == [("Pay it.", "Paid.")]
    assert has(taken, "line 1", "type summary")


def test_the_talk_of_a_sub_agent_says_whose_it_is(tmp_path: Path) -> None:
    inner = [{**told, "isSidechain": True} for told in (*FIRST, *SECOND)]
    taken = read(tmp_path, inner)
    assert said(taken) == [("Read it.", "Read."), ("Pay it.", "Paid.")]
    assert has(taken, "its user is another agent")
    assert has(read(tmp_path, [*FIRST, inner[2]]), "line 3", "a message of a sub-agent is left out")
