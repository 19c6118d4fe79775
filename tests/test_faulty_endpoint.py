"""Endpoints that are at fault in every way: each costs its conversation, in time, and no more."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_endpoint import KEY, KINDS, FaultyEndpoint

from safety_lib.adapters.over_http import HttpShape, over_http
from safety_lib.agent.backends.answers import keeping_answers
from safety_lib.agent.backends.openai import OpenAIChat, chat_client
from safety_lib.agent.loop import Agent
from safety_lib.attack.attackers import Attacker
from safety_lib.records import Trajectory
from safety_lib.rollout.conversation import Script, hold, plan_replay
from safety_lib.world import load_version
from safety_lib.world.target import Target

pytest.importorskip("openai", reason="the openai client is not installed")

V1 = load_version("northwind/v1")
SECONDS = 0.4
SPARE = 5.0  # seconds beside the deadline, on a busy machine
MEMORY = 400 << 20  # bytes, of which a bomb of 200 MB may not make a thing
ANSWERED = {"half a surrogate", "key in JSON escapes", "key in an argument"}


def chat(url: str) -> Target:
    settings = {"timeout_seconds": SECONDS, "retries": 0, "retry_max_seconds": 0.01}
    client = chat_client(base_url=url, api_key=KEY)
    return Agent(V1, OpenAIChat("tiny", settings, client=client))


def of_its_own(url: str) -> Target:
    shape = HttpShape(
        request={"q": "{text}", "k": "x"},
        reply="choices.0.message.content",
        calls="choices.0.message.tool_calls",
        headers={"Authorization": "Bearer ${FAULTY_KEY}"},
    )
    return over_http(url, shape, name="desk", effects="sandboxed", timeout=SECONDS, retries=0)


@pytest.mark.parametrize("make", [chat, of_its_own], ids=["openai", "http"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_of_an_endpoint_is_an_error_of_its_conversation(
    kind: str,
    make: Callable[[str], Target],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAULTY_KEY", KEY)
    attacker: Attacker = Script(["Please read ticket T-203."])
    rollout = plan_replay(V1, ["Please read ticket T-203."], name=kind, seed=1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FaultyEndpoint(kind, seed=7) as endpoint:
        target = make(endpoint.url)
        started = time.monotonic()
        with keeping_answers(tmp_path, "run"):
            held = hold(target, attacker, rollout)
            journal = "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
        steps = max(1, endpoint.asked)  # what was answered goes on
        assert time.monotonic() - started < (SECONDS + SPARE) * steps
    assert endpoint.followed == 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY
    if kind not in ANSWERED:
        assert held.outcome == "error", held
        assert "\n" not in held.error
        assert held.error.isprintable()
    line = held.model_dump_json()
    assert Trajectory.model_validate_json(line) == held
    assert KEY not in "".join(texts_in(json.loads(line)))
    for written in journal.splitlines():
        assert KEY not in "".join(texts_in(json.loads(written)))


def texts_in(tree: Any) -> list[str]:
    """Every text in a tree of JSON, and in the JSON that stands in its texts."""
    if isinstance(tree, dict):
        return [text for pair in tree.items() for part in pair for text in texts_in(part)]
    if isinstance(tree, list):
        return [text for part in tree for text in texts_in(part)]
    if not isinstance(tree, str):
        return []
    try:
        inner = json.loads(tree)
    except (ValueError, RecursionError):
        return [tree]
    return [tree, *(texts_in(inner) if not isinstance(inner, str) else [inner])]
