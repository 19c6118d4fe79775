"""One's own model: its cost is said first, its key goes nowhere, and the guide's way works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chaos.counting_endpoint import Endpoint, completion

from safety_lib.__main__ import main
from safety_lib.agent.backends.calls import Calls, counting_calls
from safety_lib.artifacts import read_artifact
from safety_lib.pipeline import (
    STAGES,
    PipelineError,
    Plan,
    demo,
    load_plan,
    run_demo,
    run_notebooks,
)
from safety_lib.pipeline.dry_run import dry_run
from safety_lib.records import GateReport

pytest.importorskip("openai", reason="the openai client is not installed")

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-planted-4f1b9c0d7e2a"


class Leaky(Endpoint):
    """Now and then it repeats the key that it was given."""

    key = KEY

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()
        self.lengths: list[int] = []

    def reply(self, raw: bytes, authorization: str) -> tuple[int, Any]:
        with self.lock:
            self.keys.add(authorization)
            self.lengths.append(len(raw))
            number = len(self.lengths)
        if number % 61 == 0:
            return 400, {"error": {"message": f"cannot take {authorization}"}}
        if number % 13 == 0:
            said = {"role": "assistant", "content": f"You sent {authorization}."}
            return 200, completion(said)
        return super().reply(raw, authorization)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Leaky]:
    with Leaky() as server:
        yield server


# --------------------------------------------------------------------------- what it costs


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what puts a number in place of the dry run, which takes as long as a run."""

    def put(number: int) -> None:
        counted = Calls(number, tokens_in=1_044 * number, tokens_out=16 * number)
        monkeypatch.setattr(demo, "dry_run", lambda plan: counted)

    return put


def test_nothing_is_written_before_the_calls_are_agreed_to(
    tmp_path: Path, counts: Callable[[int], None]
) -> None:
    counts(14_391)
    said: list[str] = []
    asked: list[str] = []
    with pytest.raises(PipelineError, match="nothing was run"):
        run_demo(
            model=f"record:{tmp_path / 'tape.jsonl'}:openai:tiny",
            artifacts=tmp_path / "new",
            say=said.append,
            agrees=lambda question: bool(asked.append(question)),
        )
    assert list(tmp_path.iterdir()) == []
    assert said[1] == (
        "If it fails as often as the simulated one, the model is asked about 14,000 times,\n"
        "15 million tokens in and 230,000 out; the less it fails, the less often. "
        "--max-calls N sets a limit.\n"
    )
    assert asked == ["Make about 14,000 calls?"]


@pytest.mark.parametrize(
    ("model", "number", "most", "asks"),
    [
        ("openai:tiny", 1_001, 0, True),
        ("openai:tiny", 1_000, 0, False),
        ("openai:tiny", 9_000, 1_000, False),
        ("openai:tiny", 9_000, 1_001, True),
        ("local", 9_000, 0, False),
        ("", 9_000, 0, False),
    ],
)
def test_a_model_is_asked_about_that_costs_money_and_much_of_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: Callable[[int], None],
    model: str,
    number: int,
    most: int,
    asks: bool,
) -> None:
    # The table at the end wants a run to tell of, and the run itself is not what is tried here.
    for artifact in (ROOT / "artifacts").glob("*.json"):
        shutil.copy(artifact, tmp_path)
    monkeypatch.setattr(demo, "run_notebooks", lambda *_, **__: [])
    counts(number)
    asked: list[str] = []
    said: list[str] = []
    with counting_calls(most):
        run_demo(
            model=model,
            artifacts=tmp_path,
            say=said.append,
            agrees=lambda question: asked.append(question) or True,
        )
    assert bool(asked) == asks
    limits = [line.split("less often. ")[1] for line in said if "less often. " in line]
    limit = f"It stops after {most:,}, before its end." if most else "--max-calls N sets a limit."
    assert limits == ([f"{limit}\n"] if model == "openai:tiny" else [])


def test_where_nobody_can_be_asked_it_takes_a_yes(
    tmp_path: Path, counts: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    counts(14_391)
    assert main(["demo", "--model", "openai:tiny", "--artifacts", str(tmp_path / "new")]) == 3
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "--yes" in said.err
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------- the whole way


class OwnRun(NamedTuple):
    """A run on a model of one's own: where it is, what it said, its plan and what was asked."""

    folder: Path
    printed: str
    plan: Plan
    asked: int


@pytest.fixture(scope="module")
def own_run(endpoint: Leaky, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRun]:
    """Run the four notebooks on a model of one's own, a small plan, recorded."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_address[1]}/v1")
        model = f"record:{folder / 'tape.jsonl'}:openai:tiny"
        sizes = {
            "stress_testing": {"rollouts": 4, "max_turns": 5},
            "regression": {"replays": 2},
            "release_gate": {"trials": 1, "max_tests": 3},
            "incident_replay": {"replays": 2, "audit": 100, "trials": 1, "max_tests": 2},
        }
        plan = load_plan(model, sizes)
        for name in ("incident", "log"):
            plan["incident_replay"][name] = str(ROOT / "artifacts" / plan["incident_replay"][name])
        before = len(endpoint.lengths)
        run_notebooks(STAGES, plan, folder / "artifacts")
        asked = len(endpoint.lengths) - before
        command = [sys.executable, "-m", "safety_lib", "stress", "--rollouts", "3"]
        command += ["--model", model]
        done = subprocess.run(
            [*command, "--artifacts", str(folder / "again")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    yield OwnRun(folder, done.stdout + done.stderr, plan, asked)


@pytest.mark.slow
def test_a_planted_key_is_found_nowhere(endpoint: Leaky, own_run: OwnRun) -> None:
    folder, printed, _, _ = own_run
    assert endpoint.keys == {f"Bearer {KEY}"}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".jsonl", ".ipynb", ".html"}
    assert [path.name for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in printed
    assert "cannot take ***" in printed or any(b"cannot take ***" in p.read_bytes() for p in files)
    repeated = [path for path in files if b"You sent Bearer ***" in path.read_bytes()]
    assert {path.suffix for path in repeated} >= {".jsonl"}  # what repeated it was kept without it


@pytest.mark.slow
def test_a_run_on_ones_own_model_ends_in_a_verdict_or_says_why_not(own_run: OwnRun) -> None:
    report = read_artifact(own_run.folder / "artifacts", GateReport)
    assert report.model == "openai:tiny"
    assert report.verdict or report.reasons


@pytest.mark.slow
def test_an_endpoint_is_asked_no_more_often_than_it_may_be(endpoint: Leaky, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1"
    before = len(endpoint.lengths)
    done = subprocess.run(
        [sys.executable, "-m", "safety_lib", "stress", "--model", "openai:my", "--max-calls", "25"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: stopped after 25 calls of a model")
    assert len(endpoint.lengths) - before == 25


@pytest.mark.slow
def test_the_dry_run_counts_what_the_notebooks_ask(endpoint: Leaky, own_run: OwnRun) -> None:
    counted = dry_run(own_run.plan)
    # One call in eleven goes wrong here, and which one is a matter of threads: where few failures
    # come back little is asked of them, and what was cut short is asked again.
    assert counted.number / 20 < own_run.asked < 3 * counted.number
    sent = sum(endpoint.lengths) / len(endpoint.lengths) / 4
    assert counted.tokens_in / 2 < sent * counted.number < 2 * counted.tokens_in


@pytest.mark.slow
def test_a_dry_run_that_stops_says_so_without_a_copy_to_look_at(own_run: OwnRun) -> None:
    plan = {**own_run.plan, "stress_testing": {"attacker": "psychic"}}
    with pytest.raises(PipelineError) as stopped:
        dry_run(plan)
    assert str(stopped.value).startswith("on the simulated model, 01_stress_testing stopped at In")
    assert "see " not in str(stopped.value)


@pytest.mark.slow
def test_the_steps_of_the_guide_lead_to_a_verdict(endpoint: Leaky, tmp_path: Path) -> None:
    guide = (ROOT / "artifacts" / "docs" / "your_model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", guide, re.DOTALL | re.M)
    script = "\n".join(textwrap.dedent(block) for block in blocks[:5])
    script = re.sub(r"--rollouts \d+", "--rollouts 4", script)  # the same steps, fewer calls
    script = re.sub(r"--replays \d+", "--replays 1", script)
    script = script.replace(" gate $both $mine", " gate $both $mine --trials 1")
    url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1"
    script = script.replace("http://localhost:8000/v1", url)
    (tmp_path / "safety_lib").symlink_to(ROOT / "safety_lib")
    done = subprocess.run(
        ["sh", "-c", f"alias python={sys.executable}\n{script}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Discovered" in done.stdout
    assert "regression tests" in done.stdout
    assert "Release verdict: " in done.stdout
    assert int(done.stdout.split()[-1]) in (0, 1, 2, 3)
    assert (tmp_path / "mine" / "gate_report.html").exists()
