"""The airline's desk behind an HTTP endpoint: the same words, the same verdict."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from safety_lib.gate.release_gate import run_gate
from safety_lib.records import GateReport, StressFailures
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.stress.discovery import discover
from safety_lib.world import World, load_world
from safety_lib.worlds.airline.agent import DeskAgent, DeskSettings

AIRLINE = load_world("airline")
CONNECT = """
def connect(version, model=""):
    from safety_lib.adapters.over_http import HttpShape, over_http
    return over_http(
        "URL",
        HttpShape(
            request={"text": "{text}", "session": "{session}", "seed": "{seed}",
                     "plants": "{plants}", "settings": version.settings},
            reply="reply", calls="calls", session="session",
        ),
        name="refund desk", effects="sandboxed", same_luck=True,
    )
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    held: dict[str, DeskAgent]
    numbers: Iterator[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["session"] or f"s{next(self.numbers)}"
        if name not in self.held:
            planted = {plant["key"]: plant["text"] for plant in body["plants"]}
            settings = DeskSettings.model_validate(body["settings"])
            self.held[name] = DeskAgent(settings, body["seed"], planted)
        reply, calls = self.held[name](body["text"])
        text = json.dumps({"reply": reply, "calls": calls, "session": name}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def over_http(tmp_path: Path) -> Iterator[World]:
    Handler.held, Handler.numbers = {}, count(1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        folder = tmp_path / "airline"
        shutil.copytree(AIRLINE.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "world.py").open("a", encoding="utf-8") as out:
            out.write(CONNECT.replace("URL", f"http://127.0.0.1:{server.server_address[1]}/"))
        yield load_world(folder)
        server.shutdown()


def judged(world: World) -> tuple[StressFailures, GateReport]:
    v1, v2 = world.version("v1"), world.version("v2")
    found = discover(v1, v2, Run(seed=7), rollouts=24).artifact()
    suite = generate_suite(found, {"v1": v1, "v2": v2}, Run(seed=7), replays=4, reference=v1)
    return found, run_gate(suite, v1, v2, Run(seed=7), trials=5)


@pytest.mark.slow
def test_the_same_agent_behind_an_endpoint_gives_the_same_verdict(over_http: World) -> None:
    (found, report), (plain, plainly) = judged(over_http), judged(AIRLINE)
    broke = [(f.rollout_id, f.rule_id, f.failure_turn) for f in found.failures]
    assert broke == [(f.rollout_id, f.rule_id, f.failure_turn) for f in plain.failures] != []
    assert (report.verdict, report.delta) == (plainly.verdict, plainly.delta)
    assert report.verdict == "BLOCK"
