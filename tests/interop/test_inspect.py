"""The exported log in Inspect itself: its list of logs and its data frames find all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from inspect_ai.analysis import evals_df, messages_df, samples_df
from inspect_ai.dataset import json_dataset
from inspect_ai.log import list_eval_logs, read_eval_log

from safety_lib.artifacts import read_artifact
from safety_lib.records import Suite
from safety_lib.regression.admission import TestRun, run_tests
from safety_lib.regression.exports import inspect_path, to_inspect, to_inspect_log
from safety_lib.rollout.campaign import Run
from safety_lib.world import load_version, load_world

SUITE = read_artifact(Path(__file__).resolve().parents[2] / "artifacts", Suite)
V2 = load_version("northwind/v2")


@pytest.fixture(scope="module")
def runs() -> Sequence[TestRun]:
    return run_tests(SUITE.active[:6], V2, Run(seed=7), trials=2)


@pytest.fixture(scope="module")
def logs(runs: Sequence[TestRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    path = inspect_path(folder / "suite_inspect-log.json")
    path.write_text(to_inspect_log(runs, V2, seed=7), encoding="utf-8")
    return folder


def test_the_log_is_listed_and_read(logs: Path) -> None:
    (listed,) = list_eval_logs(str(logs))
    log = read_eval_log(listed.name)
    assert (listed.task, listed.task_id) == (log.eval.task, log.eval.task_id)
    assert log.status == "success" and len(log.samples or ()) == 12


def test_the_data_frames_hold_every_sample_and_message(logs: Path, runs: Sequence[TestRun]) -> None:
    assert len(evals_df(str(logs))) == 1
    samples, messages = samples_df(str(logs)), messages_df(str(logs))
    assert len(samples) == 12
    assert set(samples["score_oracle"]) <= {"C", "I"}
    said = [m for run in runs for t in run.trajectories for m in t.user_messages]
    assert sorted(messages[messages["role"] == "user"]["content"]) == sorted(said)
    (listed,) = list_eval_logs(str(logs))
    assert len(messages) == sum(len(s.messages) for s in read_eval_log(listed.name).samples or ())


def test_the_dataset_is_read_with_its_note(tmp_path: Path) -> None:
    path = tmp_path / "tests.jsonl"
    path.write_text(to_inspect(SUITE.active, load_world("northwind")), encoding="utf-8")
    samples = list(json_dataset(str(path)))
    assert [sample.id for sample in samples] == [test.test_id for test in SUITE.active]
