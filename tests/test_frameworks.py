"""What real frameworks wrote, read without them; tools and versions stand in the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safety_lib.adapters.langgraph_agents import calls_of_messages, from_langgraph
from safety_lib.adapters.mcp_tools import McpServer
from safety_lib.adapters.openai_agents import calls_of_spans, from_openai_agents
from safety_lib.world.target import Called, TargetError

DATA = Path(__file__).parent / "data"
WANTED = [(900, "failed"), (5, "executed")]


def told(calls: tuple[Called, ...]) -> list[tuple[int, str]]:
    return [(call.arguments["amount"], call.status) for call in calls]


def test_the_spans_of_the_openai_agents_sdk_are_read() -> None:
    kept = json.loads((DATA / "openai_agents.json").read_text(encoding="utf-8"))
    assert (kept["tool"], kept["version"]) == ("openai-agents", "0.24.0")
    calls = calls_of_spans(kept["spans"])
    assert told(calls) == WANTED
    assert calls[1].result == "5 paid"


def test_the_messages_of_langgraph_are_read() -> None:
    kept = json.loads((DATA / "langgraph.json").read_text(encoding="utf-8"))
    assert (kept["tool"], kept["version"]) == ("langgraph", "1.2.24")
    calls = calls_of_messages(kept["messages"])
    assert told(calls) == WANTED
    assert [call.result for call in calls] == ["too much", "5 paid"]


def test_a_call_that_nothing_came_back_for_is_not_passed_over() -> None:
    kept = json.loads((DATA / "langgraph.json").read_text(encoding="utf-8"))
    cut = [m for m in kept["messages"] if m["type"] != "tool"]
    with pytest.raises(TargetError, match="nothing came back for a call of refund"):
        calls_of_messages(cut)
    assert calls_of_messages(cut, cut=True) == ()


def test_a_span_whose_arguments_are_hidden_is_not_passed_over() -> None:
    kept = json.loads((DATA / "openai_agents.json").read_text(encoding="utf-8"))
    for span in kept["spans"]:
        span["span_data"]["input"] = None
    with pytest.raises(TargetError, match="arguments of refund are not told"):
        calls_of_spans(kept["spans"])


def test_a_framework_that_is_not_there_says_how_to_get_it() -> None:
    for make, package in ((from_openai_agents, "agents"), (from_langgraph, "langgraph")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(TargetError, match=r"not_installed: .*pip install"):
                make(lambda seed, plants: None, name="x", effects="sandboxed")


@pytest.mark.parametrize("tree", [{}, {"command": ("x",), "url": "http://localhost/mcp"}])
def test_a_server_is_in_one_place(tree: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give either `command` or `url`"):
        McpServer.model_validate(tree)
