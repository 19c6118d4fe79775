"""Paid answers: each is kept before it is used, and a run that was killed asks for none of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chaos.counting_endpoint import CONCURRENCY, Counting
from chaos.kills import write_few
from test_over_http import FILES, desk
from test_over_http import Endpoint as DeskEndpoint
from test_worlds import write_desk

import safety_lib
from safety_lib.__main__ import main
from safety_lib.agent.backends import BackendError
from safety_lib.agent.backends.answers import AnswerError, in_conversation, keeping_answers, kept
from safety_lib.agent.backends.calls import counting_calls
from safety_lib.artifacts import CHECKOUT
from safety_lib.rollout import conversation
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import plan_replay
from safety_lib.world import PACKAGED, load_world

pytest.importorskip("openai", reason="the openai client is not installed")


# --------------------------------------------------------------------------- the journal


class Killed(BaseException):
    pass


def killed(folder: Path, *asked: str, answer: Any = "yes") -> None:
    """Ask a few things in a run that does not come to its end."""
    with pytest.raises(Killed), keeping_answers(folder, "run"):
        for one in asked:
            kept(one, lambda: answer)
        raise Killed


def never() -> Any:
    raise AssertionError("asked again")


def test_what_was_answered_is_not_asked_again_and_is_gone_after_the_end(tmp_path: Path) -> None:
    killed(tmp_path, "a", "b")
    said: list[str] = []
    with keeping_answers(tmp_path, "run", said.append):
        assert [kept(one, never) for one in "ab"] == ["yes", "yes"]
        assert kept("c", lambda: "no") == "no"
    assert said == ["Going on: 2 answers of a run before kept."]
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_twice_is_answered_twice_in_its_order(tmp_path: Path) -> None:
    killed(tmp_path, "a", answer=1)
    left = iter([2, 3])
    with pytest.raises(Killed), keeping_answers(tmp_path, "run"):
        assert [kept("a", lambda: next(left)) for _ in range(3)] == [1, 2, 3]
        raise Killed
    with keeping_answers(tmp_path, "run"):
        assert [kept("a", never) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("change", ["world", "version", "name", "seed", "package", "asked"])
def test_another_plan_meets_no_answer_of_the_old_one(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"world": "w", "version": "v", "name": "v/x/1", "seed": 1, "asked": "a"}
    with pytest.raises(Killed), keeping_answers(tmp_path, "run"):
        with in_conversation(*list(plan.values())[:4]):
            kept(plan["asked"], lambda: "old")
        raise Killed
    if change == "package":
        monkeypatch.setattr(safety_lib, "__version__", "0.0.0")
    else:
        plan[change] = f"another {change}"
    with keeping_answers(tmp_path, "run"), in_conversation(*list(plan.values())[:4]):
        assert kept(plan["asked"], lambda: "new") == "new"


def test_an_outage_is_asked_again_and_an_unusable_answer_is_not(tmp_path: Path) -> None:
    def out() -> Any:
        raise BackendError("server_error", "HTTP 500")

    def unusable() -> Any:
        raise AnswerError("unknown_tool", "the model called 'x'")

    with pytest.raises(Killed), keeping_answers(tmp_path, "run"):
        with pytest.raises(BackendError):
            kept("a", out)
        with pytest.raises(AnswerError):
            kept("b", unusable)
        raise Killed
    said: list[str] = []
    with keeping_answers(tmp_path, "run", said.append):
        assert kept("a", lambda: "yes") == "yes"
        with pytest.raises(AnswerError, match="called 'x'"):
            kept("b", never)
    assert said == ["Going on: 1 answer of a run before kept; 1 call failed, to be asked again."]
    assert list(tmp_path.iterdir()) == []


class Asking:
    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, one: str) -> str:
        self.told.append(one)
        return "yes"


def test_a_torn_line_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    killed(tmp_path, "a", "b")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        asked = Asking()
        with pytest.raises(Killed), keeping_answers(tmp_path, "run"):
            for one in "ab":
                assert kept(one, partial(asked, one)) == "yes"
            raise Killed
        assert asked.told in (["a", "b"], ["b"], [])
        with keeping_answers(tmp_path, "run"):
            assert [kept(one, never) for one in "ab"] == ["yes", "yes"]


def test_two_runs_at_once_have_a_journal_each(tmp_path: Path) -> None:
    with keeping_answers(tmp_path, "run"):
        kept("a", lambda: 1)
        with keeping_answers(tmp_path, "run"):
            assert kept("a", lambda: 2) == 2
            assert len(list(tmp_path.iterdir())) == 2
        assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.answers.jsonl"
    path.write_text("mine\n", encoding="utf-8")
    with (
        pytest.raises(ValueError, match=r"run\.answers\.jsonl: line 1 .*; move it away"),
        keeping_answers(tmp_path, "run"),
    ):
        raise AssertionError
    assert path.read_text(encoding="utf-8") == "mine\n"


def test_a_kept_answer_counts_against_no_limit(tmp_path: Path) -> None:
    server, folder = DeskEndpoint(), tmp_path / "desk"
    server.answer = desk
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world = (
        "from safety_lib.adapters.over_http import HttpShape, over_http\n"
        f"def connect(version, model):\n    return over_http({server.url!r}, HttpShape("
        "request={'q': '{text}', 'soft': False}, reply='say', calls='did'),"
        " name='desk', effects='sandboxed', retries=0)\n"
    )
    for name, text in {**FILES, "world.py": world}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    rollouts = [
        plan_replay(load_world(folder).version("v1"), ["one", "two"], name="x", seed=1)
        for _ in "ab"
    ]
    with pytest.raises(Killed), keeping_answers(tmp_path, "run"):
        first = list(run_campaign(rollouts))
        raise Killed
    assert len(server.heard) == 4
    with keeping_answers(tmp_path, "run"), counting_calls(1) as so_far:
        assert list(run_campaign(rollouts)) == first
        assert so_far().number == 0
    assert len(server.heard) == 4
    server.shutdown()
    server.server_close()


# --------------------------------------------------------------------------- whole commands


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    monkeypatch.setattr(conversation, "_targets", {})  # those of another test know its endpoint
    with Counting() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "safety_lib", *words, "--model", "openai:sim", "--artifacts", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(folder: Path, *words: str) -> tuple[int, str]:
    run = started(folder, *words)
    _, said = run.communicate(timeout=600)
    return run.returncode, said


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


STRESS = ("stress", "--rollouts", "3", "--max-turns", "4")


def test_a_stress_test_that_was_killed_asks_for_no_answer_again(
    endpoint: Counting, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert finished(whole, *STRESS) == (0, "")
    needed = endpoint.asked.copy()
    endpoint.asked.clear()
    for part in (0.3, 0.9):  # in its attacks, then in what comes after them
        run = started(cut, *STRESS)
        endpoint.wait_for(int(part * needed.total()), run)
        run.kill()
        run.communicate()
    code, said = finished(cut, *STRESS)
    assert code == 0
    assert said.startswith("Going on: ")
    assert (endpoint.asked - needed).total() <= 2 * CONCURRENCY
    assert needed - endpoint.asked == Counter()
    assert results(cut) == results(whole)
    assert not list((cut / "runs").glob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("stress", "--rollouts", "3", "--attacker", "model:openai:sim"),
        ("stress", "--rollouts", "4", "--attacker", "search"),
        ("regress", "--replays", "2"),
        ("gate", "--trials", "2"),
    ],
    ids=" ".join,
)
def test_no_stage_that_was_killed_asks_for_an_answer_again(
    endpoint: Counting, tmp_path: Path, words: tuple[str, ...]
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    write_few(cut)
    write_few(whole)
    code, _ = finished(whole, *words)
    assert code in (0, 1, 2)
    needed = endpoint.asked.copy()
    endpoint.asked.clear()
    run = started(cut, *words)
    endpoint.wait_for(needed.total() * 2 // 3, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert finished(cut, *words)[0] == code
    assert (endpoint.asked - needed).total() <= CONCURRENCY
    assert needed - endpoint.asked == Counter()
    assert results(cut) == results(whole)


@pytest.mark.slow
def test_a_replay_that_was_killed_again_and_again_asks_for_no_answer_again(
    endpoint: Counting, tmp_path: Path
) -> None:
    # It asks thousands of times; that much of it is enough to see.
    words = ("replay", "--no-log", "--replays", "2")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    write_few(cut)
    write_few(whole)
    assert finished(whole, *words, "--max-calls", "900")[0] == 3
    needed = endpoint.asked.copy()
    endpoint.asked.clear()
    for calls in (200, 400, 600):
        run = started(cut, *words)
        endpoint.wait_for(calls, run)
        run.kill()
        run.communicate()
    assert endpoint.asked.total() >= 600
    assert (endpoint.asked - needed).total() <= 3 * CONCURRENCY


def test_an_endpoint_that_refuses_everything_is_3_and_leaves_what_was_there(
    endpoint: Counting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "stress_failures.json"
    old.write_text("{}", encoding="utf-8")
    endpoint.status = 401
    words = [*STRESS, "--model", "openai:sim", "--artifacts", str(tmp_path)]
    assert main(words) == 3
    said = capsys.readouterr()
    assert "every conversation of v1 and v2 is an error; nothing was written" in said.err
    assert "Saved" not in said.out
    assert old.read_text(encoding="utf-8") == "{}"
    endpoint.status = 200
    assert main(words) == 0  # what failed is asked again
    assert "failed, to be asked again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("simulated.yaml", "\n", "\n# more careful\n"),
        ("goals.yaml", "\n", "\n# others\n"),
        ("versions/v2.yaml", "window: 10", "window: 9"),
    ],
)
def test_no_result_mixes_two_worlds(tmp_path: Path, file: str, old: str, new: str) -> None:
    company = tmp_path / "northwind"
    shutil.copytree(PACKAGED / "northwind", company)
    for path in (company / "versions").glob("*.yaml"):
        told = path.read_text("utf-8")
        path.write_text(told.replace("world: northwind\n", ""), encoding="utf-8")
    words = ["stress", "--world", str(company), "--artifacts", str(tmp_path / "a"), "--rollouts"]
    assert main([*words, "4", "--max-calls", "60"]) == 3
    text = (company / file).read_text("utf-8")
    assert old in text
    (company / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    again = subprocess.run(  # a process reads a world once
        [sys.executable, "-m", "safety_lib", *words, "4"],
        capture_output=True, text=True, check=False, cwd=CHECKOUT,
    )  # fmt: skip
    assert again.returncode == 3
    assert f"was written before {file} of the world northwind changed" in again.stderr


def test_an_agent_that_asks_by_itself_keeps_its_conversations(tmp_path: Path) -> None:
    home = write_desk(tmp_path / "desk")
    asked = tmp_path / "asked"
    asked.mkdir()
    (home / "world.py").write_text(
        (home / "world.py").read_text("utf-8")
        + f"""

from pathlib import Path
from safety_lib.adapters.callables import from_callable


def connect(version, model=""):
    def start(seed, plants):
        def answer(text):
            number = len(list(Path({str(asked)!r}).iterdir()))
            (Path({str(asked)!r}) / str(number)).touch()
            if number == 3:
                raise OSError("out")
            return f"Answer {{number}}."
        return answer
    return from_callable(start, name="own", effects="sandboxed", sees_calls=True, concurrency=1)
""",
        encoding="utf-8",
    )
    version = load_world(home).version("v1")
    rollouts = [plan_replay(version, ["Hello"], name=f"r{i}", seed=i) for i in range(6)]
    with pytest.raises(Killed), keeping_answers(tmp_path / "runs", "run"):
        first = list(run_campaign(rollouts))
        raise Killed
    assert [t.outcome for t in first].count("error") == 1
    with keeping_answers(tmp_path / "runs", "run"):
        again = list(run_campaign(rollouts))
    assert len(list(asked.iterdir())) == 7  # that which failed, once more
    kept = [(a, b) for a, b in zip(first, again, strict=True) if a.outcome != "error"]
    assert all(a == b for a, b in kept)
    assert not [t for t in again if t.outcome == "error"]
