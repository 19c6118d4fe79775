"""Faults of an endpoint: whatever it does, it costs its conversation, in time, and nothing more."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import category

from chaos.faulty_endpoint import KEY, KINDS, FaultyEndpoint
from chaos.outcome import AS_EXPECTED, Came, Outcome

from safety_lib.adapters.over_http import HttpShape, over_http
from safety_lib.agent.backends.answers import keeping_answers
from safety_lib.agent.backends.openai import OpenAIChat, chat_client
from safety_lib.agent.loop import Agent
from safety_lib.records import Trajectory
from safety_lib.rollout.conversation import Script, hold, plan_replay
from safety_lib.world import load_version
from safety_lib.world.target import Target

SECONDS = 0.4  # that an answer may take
SPARE = 5.0  # seconds beside them, on a busy machine
MEMORY = 400 << 20  # bytes that one may take; a bomb of 200 MB may make nothing of it
ANSWERED = {"half a surrogate", "key in JSON escapes", "key in an argument"}
SAID = "Please read ticket T-203."


def campaign(seed: int, count: int) -> Iterator[Outcome]:
    """Meet so many faults, each kind in turn, as a chat endpoint and as an agent of its own."""
    for number in range(count):
        kind = list(KINDS)[number // len(PROTOCOLS) % len(KINDS)]
        protocol = list(PROTOCOLS)[number % len(PROTOCOLS)]
        yield meet(kind, protocol, seed + number)


def meet(kind: str, protocol: str, seed: int) -> Outcome:
    """Hold a conversation with an endpoint at fault."""
    version = load_version("northwind/v1")
    how = f"{kind}, {protocol}, seed {seed}"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FaultyEndpoint(kind, seed) as endpoint, TemporaryDirectory() as folder:
        target = PROTOCOLS[protocol](endpoint.url)
        started = time.monotonic()
        try:
            with keeping_answers(Path(folder), "run"):
                rollout = plan_replay(version, [SAID], name=kind, seed=1)
                held = hold(target, Script([SAID]), rollout)
                kept = [path.read_text("utf-8") for path in Path(folder).iterdir()]
        except Exception as error:  # it ended more than its conversation
            return Outcome(f"endpoint: {kind}", "traceback", how, repr(error))
        steps = max(1, endpoint.asked)  # what was answered goes on
        late = time.monotonic() - started > (SECONDS + SPARE) * steps
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        came = _came(held, "".join(kept), kind, followed=endpoint.followed)
    if late:
        came = "hang"
    elif grown > MEMORY:
        came = "memory"
    return Outcome(f"endpoint: {kind}", came, how, held.error)


def _came(held: Trajectory, journal: str, kind: str, *, followed: int) -> Came:
    line = held.model_dump_json()
    if followed or (held.outcome != "error" and kind not in ANSWERED):
        return "wrongly accepted"
    if Trajectory.model_validate_json(line) != held:
        return "something lost"
    # What is unassigned in the first planes depends on the Python; the others hold nothing at all.
    strange = (one for one in held.error if not one.isprintable())
    if any(category(one) != "Cn" or one >= "\U00040000" for one in strange):
        return "unclear message"
    if any(KEY in text for one in (line, *journal.splitlines()) for text in _texts(one)):
        return "left behind"  # a key, where it is read or decoded
    return AS_EXPECTED


def _texts(tree: Any) -> Iterator[str]:
    """Every text in a tree of JSON, and in the JSON that stands in its texts."""
    if isinstance(tree, dict):
        for pair in tree.items():
            yield from _texts(list(pair))
    elif isinstance(tree, list):
        for part in tree:
            yield from _texts(part)
    elif isinstance(tree, str):
        yield tree
        try:
            inner = json.loads(tree)
        except (ValueError, RecursionError):
            return
        yield from _texts(inner)


def _chat(url: str) -> Target:
    settings = {"timeout_seconds": SECONDS, "retries": 0}
    client = chat_client(base_url=url, api_key=KEY)
    return Agent(load_version("northwind/v1"), OpenAIChat("tiny", settings, client=client))


def _of_its_own(url: str) -> Target:
    os.environ["FAULTY_KEY"] = KEY
    shape = HttpShape(
        request={"q": "{text}"},
        reply="choices.0.message.content",
        calls="choices.0.message.tool_calls",
        headers={"Authorization": "Bearer ${FAULTY_KEY}"},
    )
    return over_http(url, shape, name="desk", effects="sandboxed", timeout=SECONDS, retries=0)


PROTOCOLS: dict[str, Callable[[str], Target]] = {"openai": _chat, "http": _of_its_own}
