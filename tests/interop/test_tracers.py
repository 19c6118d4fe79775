"""What tracing tools record of one conversation on loopback is read as the conversation it was.

The tool runs in an environment of its own, which holds nothing else; this test runs beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from loopback import ASKED, REPLIES, TICKETS

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake import Intake, take_in
from safety_lib.world import load_world

HERE = Path(__file__).resolve().parent
STORED = HERE.parent / "data" / "traces"
TRACER = os.environ.get("TRACER", "")
PYTHON = os.environ.get("TRACER_PYTHON", "")
VARIANTS: dict[str, list[dict[str, str]]] = {
    "pydantic-ai-1": [{"INSTRUMENTATION_VERSION": number} for number in "123"],
    "pydantic-ai-2": [{"INSTRUMENTATION_VERSION": number} for number in "26"],
    "openai-agents-traces": [{"AGENTS_API": "chat"}],
}
pytestmark = pytest.mark.skipif(not PYTHON, reason="no environment of a tracing tool is named")


def recorded(**more: str) -> dict[str, Any]:
    name = TRACER if TRACER == "langfuse-2" else re.sub(r"-(\d|traces)$", "", TRACER)
    command = [PYTHON, str(HERE / "recording.py"), name]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **more}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def taken(folder: Path, spans: list[Any]) -> Intake:
    path = folder / "spans.jsonl"
    path.write_text("\n".join(map(json.dumps, spans)), encoding="utf-8")
    return take_in(path, load_world("northwind"))


@pytest.mark.parametrize("number", range(3))
def test_what_the_tool_recorded_is_what_was_said(
    number: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    variants = VARIANTS.get(TRACER, [{}])
    if number >= len(variants):
        pytest.skip("the tool has no more ways to record it")
    told = recorded(**variants[number])
    found = taken(tmp_path, told["spans"])
    turns = found.incident.trajectory
    assert tuple(turn.user for turn in turns) == ASKED
    assert tuple(turn.assistant for turn in turns) == REPLIES
    (first,), (second,) = (turn.calls for turn in turns)
    assert (first.name, first.arguments) == ("read_ticket", {"ticket": "T-204"})
    assert first.result == TICKETS["T-204"] and first.status in (None, "executed")
    assert (second.name, second.arguments) == ("read_ticket", {"ticket": "T-999"})
    assert second.status == "failed"
    assert [plant.key for plant in found.incident.plants] == ["T-204"]
    assert not any("left out" in gap or "not read" in gap for gap in found.gaps)
    if request.config.getoption("--store", default=False):
        name = "_".join([TRACER, *variants[number].values()])
        STORED.mkdir(exist_ok=True)
        (STORED / f"{name}.json").write_text(json.dumps(plain(told)) + "\n", encoding="utf-8")


def plain(told: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded without what tells of this machine."""
    text = json.dumps(told)
    ids = re.findall(r'"(?:trace_id|span_id|parent_id|id)": "((?:0x|trace_|span_)\w+)"', text)
    for number, name in enumerate(dict.fromkeys(ids), start=1):
        text = text.replace(name, f"0x{number:x}")
    tree = json.loads(text)
    for span in tree["spans"]:
        for name in ("resource", "serialized"):  # what tells of the machine
            span.pop(name, None)
        for name in span.get("extra", {}).keys() - {"metadata"}:
            span["extra"].pop(name)
        span.get("extra", {}).get("metadata", {}).pop("revision_id", None)
        if span.get("error"):
            span["error"] = span["error"].partition("Traceback")[0]
        for event in span.get("events", []):
            event.get("attributes", {}).pop("exception.stacktrace", None)
    return tree


@pytest.mark.skipif(TRACER != "openai-agents-traces", reason="of the OpenAI Agents SDK alone")
def test_a_trace_of_responses_holds_no_words_and_says_so(tmp_path: Path) -> None:
    told = recorded(AGENTS_API="responses")
    with pytest.raises(ArtifactError, match="responses by their ids and holds none of their words"):
        taken(tmp_path, told["spans"])
