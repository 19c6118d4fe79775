"""Calls of a model: each is counted once, whoever makes it, and none goes beyond the limit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from factories import NORTHWIND

from safety_lib.__main__ import main
from safety_lib.agent.backends import open_backend
from safety_lib.agent.backends.calls import CallsSpent, counted, counting_calls, most_calls
from safety_lib.artifacts import CHECKOUT, read_artifact
from safety_lib.gate.release_gate import run_gate
from safety_lib.records import Message, StressFailures, Suite
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import plan_attack
from safety_lib.world import load_version
from safety_lib.worlds.northwind.simulated import SimulatedModel

HELLO = [Message(role="user", content="Good morning.")]
SAMPLES = CHECKOUT / "artifacts"

OWN = {"simulated": SimulatedModel}


class Canned:
    """Says the same, and remembers how often it was asked."""

    name = "canned"
    concurrency = 8

    def __init__(self) -> None:
        self.asked: list[int] = []

    @counted
    def complete(
        self, messages: Sequence[Message], tools: Sequence[object], *, seed: int
    ) -> Message:
        self.asked.append(seed)
        return Message(role="assistant", content="x" * 40)


def rollouts(attacker: str = "adaptive") -> list[object]:
    return [
        plan_attack(load_version("northwind/v1"), s, attacker, 7, 4)
        for s in NORTHWIND.scenarios[:20]
    ]


def test_what_every_process_asks_is_counted_and_changes_nothing() -> None:
    plain = list(run_campaign(rollouts()))
    asked = sum(trajectory.model_calls for trajectory in plain)
    with counting_calls() as so_far:
        assert list(run_campaign(rollouts())) == plain
        assert so_far().number == asked
        with ProcessPoolExecutor(2) as pool:
            assert list(run_campaign(rollouts(), Run(executor=pool, workers=2))) == plain
        assert so_far().number == 2 * asked
    list(run_campaign(rollouts()))
    assert most_calls() == 0


def test_the_tokens_are_those_of_what_was_said_and_heard() -> None:
    tools = [{"name": "look_up", "description": "y" * 400}]
    with counting_calls() as so_far:
        Canned().complete([*HELLO, Message(role="system", content="x" * 400)], tools, seed=1)
        assert so_far().number == 1
        assert 200 <= so_far().tokens_in <= 230
        assert so_far().tokens_out == 10


def test_as_many_calls_are_made_as_are_allowed_and_no_more() -> None:
    model = Canned()

    def ask(seed: int) -> bool:
        try:
            return bool(model.complete(HELLO, (), seed=seed))
        except CallsSpent as spent:
            assert "\n" not in str(spent) and "100 calls" in str(spent)
            return False

    with counting_calls(100) as so_far, ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(ask, range(300)))
        assert (sum(answered), len(model.asked), so_far().number) == (100, 100, 100)


def test_what_is_counted_inside_is_not_counted_outside() -> None:
    model = Canned()
    with counting_calls(2) as outer:
        model.complete(HELLO, (), seed=1)
        with counting_calls() as inner:
            for seed in range(5):
                model.complete(HELLO, (), seed=seed)
            assert (inner().number, most_calls()) == (5, 0)
        assert (outer().number, most_calls()) == (1, 2)
        model.complete(HELLO, (), seed=6)
        with pytest.raises(CallsSpent):
            model.complete(HELLO, (), seed=7)


def test_an_answer_on_tape_is_no_call(tmp_path: Path) -> None:
    settings = load_version("northwind/v1").settings["model"]
    recorded = open_backend(f"record:{tmp_path / 'tape.jsonl'}:simulated", settings, OWN)
    with counting_calls() as so_far:
        assert recorded.complete(HELLO, (), seed=1) == recorded.complete(HELLO, (), seed=1)
        assert so_far().number == 1


def test_an_attacking_model_counts_too() -> None:
    with counting_calls() as so_far:
        held = list(run_campaign(rollouts("model:simulated")))
        assert so_far().number > sum(trajectory.model_calls for trajectory in held) > 0


# --------------------------------------------------------------------------- on the command line


def test_a_stress_test_that_was_stopped_goes_on_from_its_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stress(folder: str, *more: str) -> int:
        return main(["stress", "--rollouts", "8", "--artifacts", str(tmp_path / folder), *more])

    with counting_calls() as so_far:
        assert stress("whole") == 0
        needed = so_far().number
    capsys.readouterr()
    assert stress("stopped", "--max-calls", str(needed - 1)) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: stopped after \d+ calls of a model, .*\n", said.err)
    assert len(list((tmp_path / "stopped" / "runs").glob("*.jsonl"))) == 1
    with counting_calls() as so_far:
        assert stress("stopped") == 0
        assert 0 < so_far().number < needed
    whole, stopped = (tmp_path / name / "stress_failures.json" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["stress", "--workers", "2"],
        ["regress"],
        ["gate"],
        ["replay"],
        ["export", "inspect-log", "log.json"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_stops_with_one_line_and_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    for path in SAMPLES.glob("*.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*command, "--max-calls", "30", "--artifacts", "."]) == 3
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("error: stopped after 30 calls of a model")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(("most", "trials"), [(4_000, range(1, 6)), (9_000, range(5, 60))])
def test_a_limit_on_calls_sets_the_last_look_before_the_first(most: int, trials: range) -> None:
    suite = read_artifact(SAMPLES, Suite).only("stress")
    version = load_version("northwind/v1")
    with counting_calls(most) as so_far:
        report = run_gate(suite, version, version, Run(seed=7))
        assert so_far().number <= most
    assert report.trials in trials
    assert max(test.baseline.valid for test in report.test_results) <= report.trials


def test_a_limit_that_pays_for_no_trial_is_told_with_what_one_takes() -> None:
    suite = read_artifact(SAMPLES, Suite).only("stress")
    version = load_version("northwind/v1")
    with (
        counting_calls(1_500),
        pytest.raises(ValueError, match=r"no verdict: \d+ calls are left.*raise --max-calls"),
    ):
        run_gate(suite, version, version, Run(seed=7))


def test_a_cluster_is_not_counted_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "--dask", "tcp://127.0.0.1:1", "--max-calls", "9"]) == 3
    assert "--max-calls counts on one machine" in capsys.readouterr().err


@pytest.mark.slow
def test_one_limit_holds_for_the_four_notebooks_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safety_lib", "demo", "--rollouts", "4", "--max-calls", "1500"]
    command += ["--model", "simulated"]  # a model of one's own is not asked for what goes deeper
    done = subprocess.run(
        [*command, "--artifacts", "mine"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert re.match(r"error: 0[2-4]_\w+ stopped at In \[\d+\]: CallsSpent: stopped", done.stderr)
    assert {s.rollouts for s in read_artifact(tmp_path / "mine", StressFailures).summary} == {4}
