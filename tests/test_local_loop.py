"""The whole loop on a real model's words, from a tape: nothing is simulated, nothing is asked.

The tape was recorded with

    make demo MODEL=record:tests/cassettes/smollm2.jsonl:local ROLLOUTS=6 ARTIFACTS=/tmp/recorded

A change of a prompt, a tool or an attack asks the model something new; then delete the tape and
record it again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from safety_lib.artifacts import read_artifact
from safety_lib.pipeline import PipelineError, load_plan, run_demo
from safety_lib.records import GateReport, IncidentReport, StressFailures, Suite
from safety_lib.rollout.campaign import Run
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version

TAPE = Path(__file__).parent / "cassettes" / "smollm2.jsonl"
MODEL = f"cassette:{TAPE}"
NAME = "local:SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    folder, said = tmp_path_factory.mktemp("artifacts"), list[str]()
    run_demo(overrides={"rollouts": 6}, model=MODEL, artifacts=folder, say=said.append)
    yield folder, said


def answers() -> list[dict[str, object]]:
    return [json.loads(line)["response"] for line in TAPE.read_text().splitlines()[1:]]


@pytest.mark.slow
def test_the_loop_runs_to_its_end_on_a_real_models_words(loop: tuple[Path, list[str]]) -> None:
    folder, said = loop
    (told,) = (line for line in said if line.startswith("Incident loop"))
    end = said.index(told)
    assert said[end + 1] == ""
    assert [line.split()[0] for line in said[end + 2 :]] == ["stage", "1", "2", "3", "4"]
    found, report = read_artifact(folder, StressFailures), read_artifact(folder, GateReport)
    others = read_artifact(folder, Suite), read_artifact(folder, IncidentReport)
    assert {artifact.model for artifact in (found, report, *others)} == {NAME}
    assert [seen.rollouts for seen in found.summary] == [6, 6]
    assert all(arm.conversations > 0 and arm.model_calls > 0 for arm in report.executions)
    not_on_tape = json.dumps([f.read_text() for f in folder.glob("*.json")]).count("not_on_tape")
    assert not_on_tape == 0, f"record the tape again: {__doc__}"


@pytest.mark.slow
def test_the_artifacts_hold_what_the_model_said(loop: tuple[Path, list[str]]) -> None:
    folder, _ = loop
    spoken = {answer.get("content") for answer in answers()}
    failures = read_artifact(folder, StressFailures).failures
    replies = [reply for failure in failures for reply in failure.model_responses]
    assert any(reply in spoken for reply in replies)


def test_the_tape_is_small_enough_to_keep() -> None:
    assert TAPE.stat().st_size < 2_000_000


def test_another_plan_asks_what_is_not_on_the_tape() -> None:
    v1, v2 = load_version("northwind/v1"), load_version("northwind/v2")
    found = discover(v1, v2, run=Run(seed=8, model=MODEL), rollouts=2, max_turns=3)
    reasons = [reason for seen in found.summary for reason in seen.error_reasons]
    assert any("not_on_tape" in reason and str(TAPE) in reason for reason in reasons)
    assert all(seen.errors + seen.failures <= seen.rollouts for seen in found.summary)


def test_a_tape_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tape.jsonl").write_text("{}\n")
    with pytest.raises(PipelineError, match="not a cassette"):
        load_plan(f"cassette:{tmp_path / 'tape.jsonl'}")
    with pytest.raises(PipelineError, match="there is no such file"):
        load_plan("cassette:nowhere.jsonl")
