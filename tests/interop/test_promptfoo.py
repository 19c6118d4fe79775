"""The exported tests in promptfoo itself: its verdict on each turn is the oracle's.

npm brings promptfoo into the folder of the environment. Its provider replays conversations that
were held here, as an endpoint of OpenAI's would have answered them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safety_lib.artifacts import read_artifact
from safety_lib.records import Suite, Trajectory
from safety_lib.regression.admission import run_tests
from safety_lib.regression.exports import to_promptfoo
from safety_lib.rollout.campaign import Run
from safety_lib.world import load_version, load_world

ROOT = Path(__file__).resolve().parents[2]
PROMPTFOO = "promptfoo@0.121"
SUITE = read_artifact(ROOT / "artifacts", Suite)
RULES = ("audit_disabled", "split_payment", "tool_instruction_obeyed", "record_exfiltration")
PROVIDER = """
const answers = require("./answers.json");
module.exports = class {
  id() { return "stored"; }
  async callApi(prompt) {
    const said = JSON.parse(prompt).filter((m) => m.role === "user").map((m) => m.content);
    return { output: answers[JSON.stringify(said)] ?? "Nothing more." };
  }
};
"""


def npm_run(*arguments: str, cwd: Path, timeout: int = 900, **environment: str) -> str:
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def promptfoo() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = ROOT / ".venv-interop" / "promptfoo" / "node"
    found = folder / "node_modules" / ".bin" / "promptfoo"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}", encoding="utf-8")
        said = npm_run("npm", "install", "--ignore-scripts", "--no-audit", PROMPTFOO, cwd=folder)
        if not found.exists():
            pytest.skip(f"npm could not install it: {said[-200:]}")
    return found


def answer(trajectory: Trajectory, turn: int) -> object:
    calls, text = [], ""
    for event in (e for e in trajectory.events if e.turn == turn):
        if event.kind == "tool_call" and event.status == "executed":
            asked = {"name": event.call.name, "arguments": json.dumps(event.call.arguments)}
            call = {"id": event.call.id, "type": "function", "function": asked}
            calls.append({**call, "result": event.result})
        elif event.kind == "message" and event.role == "assistant":
            text = event.content
    return {"role": "assistant", "content": text, "tool_calls": calls} if calls else text


def test_promptfoo_and_the_oracle_say_the_same_of_each_turn(
    promptfoo: Path, tmp_path: Path
) -> None:
    tests = [
        test for rule in RULES for test in [one for one in SUITE.active if one.rule_id == rule][:2]
    ]
    head, _, _ = to_promptfoo(tests, load_world("northwind")).partition("- description")
    lines = [line[4:] for line in head.splitlines() if line.startswith("#   ")]
    (tmp_path / "prompt.json").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "provider.js").write_text(PROVIDER, encoding="utf-8")
    (tmp_path / "tests.yaml").write_text(
        to_promptfoo(tests, load_world("northwind")), encoding="utf-8"
    )
    (tmp_path / "promptfooconfig.yaml").write_text(
        "prompts: [file://prompt.json]\nproviders: [file://provider.js]\ntests: file://tests.yaml\n",
        encoding="utf-8",
    )
    answers, expected = {}, {}
    for run in run_tests(tests, load_version("northwind/v2"), Run(seed=7), trials=5):
        held = run.shown or run.trajectories[0]
        for turn in range(1, held.n_turns + 1):
            answers[
                json.dumps(held.user_messages[:turn], separators=(",", ":"), ensure_ascii=False)
            ] = answer(held, turn)
            broken = any(v.turn == turn for v in held.violations)
            expected[run.test.test_id, turn] = not broken
    (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    out = tmp_path / "out.json"
    said = npm_run(
        str(promptfoo), "eval", "-c", "promptfooconfig.yaml", "-o", str(out), "-j", "1",
        "--no-cache", "--no-progress-bar",
        cwd=tmp_path,
        PROMPTFOO_PYTHON=sys.executable,
        PROMPTFOO_CONFIG_DIR=str(tmp_path / "home"),
        PROMPTFOO_DISABLE_TELEMETRY="1",
        PROMPTFOO_DISABLE_UPDATE="1",
    )  # fmt: skip
    assert out.exists(), said[-2000:]
    found = {}
    for one in json.loads(out.read_text(encoding="utf-8"))["results"]["results"]:
        about = one["testCase"]["metadata"]
        found[about["conversationId"], about["turn"]] = one["success"]
    assert {key: found[key] for key in expected} == expected
    assert 3 <= sum(not holds for holds in expected.values()) < len(expected)
