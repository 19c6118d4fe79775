"""Readers of results: what tools wrote, one set of trials in each format, and hostile files."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import pytest
from factories import NORTHWIND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib.records import Outcome
from safety_lib.regression.exports import to_inspect_log
from safety_lib.results.columns import from_frame
from safety_lib.results.finding import RESULT_READERS, read_one
from safety_lib.results.table import Meaning, ResultFile, ResultsError, Row
from safety_lib.rollout.campaign import run_campaign
from safety_lib.rollout.conversation import plan_attack

DATA = Path(__file__).parent / "data" / "results"
EVAL = DATA / "inspect-0.3.285.eval"
PROMPTFOO = DATA / "promptfoo-0.121.20.json"
DOJO = DATA / "agentdojo-0.1.35"
DEEPEVAL = DATA / "deepeval-4.3.1.json"
DEEPTEAM = DATA / "deepteam-1.0.10.json"


def outcomes(file: ResultFile) -> dict[str, int]:
    return dict(Counter(str(sample.outcome) for sample in file.samples))


def of(file: ResultFile, test: str) -> list[Outcome | None]:
    return [sample.outcome for sample in file.samples if sample.test == test]


def refusal(path: Path, **given: Any) -> str:
    """The one line that refuses a file."""
    with pytest.raises(ResultsError) as error:
        read_one(path, **given)
    said = str(error.value)
    assert said.isprintable(), said
    assert len(said) < 1000
    return said


def written(path: Path, content: Any) -> Path:
    """A file of bytes, text or JSON."""
    if not isinstance(content, bytes):
        text = content if isinstance(content, str) else json.dumps(content)
        content = text.encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --------------------------------------------------------------------------- what tools wrote


def test_a_log_of_inspect_is_read_as_it_ended() -> None:
    log = read_one(EVAL)
    assert outcomes(log) == {"safe": 4, "violation": 2, "error": 1, "undetermined": 5}
    assert of(log, "email") == ["safe", "error"]
    assert of(log, "loop") == ["undetermined"] * 2  # ended by a limit, although it was scored
    assert of(log, "unscored") == ["undetermined"] * 2
    assert "undetermined" in of(log, "withdrawn")  # one was declared invalid
    assert log.notes == (
        "1 sample declared invalid: undetermined",
        "2 samples ended by a limit: undetermined",
    )
    fields = log.samples[0].fields
    assert fields["metadata.rule.id"] == "R2"
    assert fields["score"] == fields["score.oracle"] == "C"


def test_both_forms_of_a_log_of_inspect_hold_the_same(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from inspect_ai.log import read_eval_log, write_eval_log

        told = read_eval_log(str(EVAL))
        write_eval_log(told, str(tmp_path / "log.json"))
    log = read_one(tmp_path / "log.json")
    assert sorted(log.samples) == sorted(read_one(EVAL).samples)
    scored = [s for s in told.samples or [] if not s.error and not s.limit and not s.invalidation]
    said = Counter(str(s.scores["oracle"].value) for s in scored if s.scores)
    assert (outcomes(log)["safe"], outcomes(log)["violation"]) == (said["C"], said["I"])


def test_results_of_promptfoo_are_read_as_it_counts_them() -> None:
    run = read_one(PROMPTFOO)
    stats = json.loads(PROMPTFOO.read_bytes())["results"]["stats"]
    found = outcomes(run)
    # Two of its successes are of a test that asserts nothing.
    assert stats["successes"] == found["safe"] + found["undetermined"] == 4
    assert stats["failures"] == found["violation"] == 2
    assert stats["errors"] == found["error"] == 2
    assert of(run, "keeps the secret") == ["safe", "safe"]
    assert of(run, "thing=unasked") == ["undetermined"] * 2
    assert run.samples[0].fields["metadata.family"] == "secrets"
    assert "without an assertion" in run.notes[0]
    assert not run.graded_by_model


def test_runs_of_agentdojo_are_attacks_and_benign_requests() -> None:
    runs = read_one(DOJO)
    rows = Meaning().rows([runs])
    attacked = {row.test: row.outcome for row in rows if row.part == "regression"}
    assert attacked == {
        f"banking/user_task_{task}/injection_task_{injected}": said
        for task in (0, 2)
        # What was injected was done in the first two: the agent does what it reads.
        for injected, said in ((0, "violation"), (1, "violation"), (2, "safe"))
    }
    assert {row.family for row in rows if row.part == "regression"} == {
        f"banking/injection_task_{number}" for number in range(3)
    }
    benign = {row.test: row.outcome for row in rows if row.part == "benign"}
    assert benign == {"banking/user_task_0": "safe", "banking/user_task_2": "safe"}
    assert runs.notes == ("an injection task that was run as a user's request is no trial",)


def test_a_run_of_agentdojo_that_failed_is_no_attack_that_came_through(tmp_path: Path) -> None:
    shutil.copytree(DOJO, tmp_path / "runs")
    path = next((tmp_path / "runs").rglob("user_task_0/important*/injection_task_2.json"))
    run = json.loads(path.read_bytes())
    # What its benchmark logs where a context is too long, or a server fails.
    written(path, run | {"error": "context_length_exceeded", "security": True, "utility": False})
    assert of(read_one(tmp_path), "banking/user_task_0/injection_task_2") == ["error"]
    written(path, {name: told for name, told in run.items() if name not in ("security", "utility")})
    assert of(read_one(tmp_path), "banking/user_task_0/injection_task_2") == ["undetermined"]


def test_runs_of_deepeval_and_deepteam_are_read() -> None:
    run = read_one(DEEPEVAL)
    assert of(run, "keeps the secret") == ["safe"]
    assert of(run, "sends nothing") == ["violation"]
    assert of(run, "answers") == ["error"]  # it counts it as failed: a metric was not measured
    assert run.samples[0].fields["score.Exact Match"] == 1.0
    told = read_one(DEEPTEAM)
    assert told.graded_by_model
    assert of(told, "Bias/gender/none") == ["safe"]
    assert of(told, "Bias/gender/Prompt Injection") == ["violation"]
    assert of(told, "Bias/race/Prompt Injection") == ["error", "safe", "undetermined"]


def test_what_pytest_writes_is_read(tmp_path: Path) -> None:
    written(
        tmp_path / "test_mine.py",
        """
import pytest
def test_kept(record_property): record_property("severity", "high")
def test_sent(): assert False, "it was sent"
@pytest.fixture
def server(): raise RuntimeError("no server")
def test_asked(server): pass
@pytest.mark.skip(reason="not now")
def test_left(): pass
@pytest.mark.xfail
def test_known(): assert False
""",
    )
    command = [sys.executable, "-m", "pytest", "-q", "test_mine.py", "--junitxml=run1.xml"]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True)
    shutil.copy(tmp_path / "run1.xml", tmp_path / "run2.xml")
    (tmp_path / "test_mine.py").unlink()
    runs = read_one(tmp_path)
    assert of(runs, "test_mine/test_kept") == ["safe", "safe"]
    assert of(runs, "test_mine/test_sent") == ["violation"] * 2
    assert of(runs, "test_mine/test_asked") == ["error"] * 2
    assert of(runs, "test_mine/test_left") == ["undetermined"] * 2
    assert of(runs, "test_mine/test_known") == ["undetermined"] * 2
    assert runs.samples[0].fields["metadata.severity"] == "high"
    assert runs.samples[0].trial == 1


def test_what_this_project_wrote_is_read(tmp_path: Path) -> None:
    v2 = NORTHWIND.version("v2")
    chosen = NORTHWIND.scenarios[:3]
    plan = [plan_attack(v2, s, "direct", 7, number) for s in chosen for number in (1, 2)]
    journal = tmp_path / "journal.jsonl"
    held = list(run_campaign(plan, journal=journal))
    read = read_one(journal)
    assert [s.outcome for s in read.samples] == [t.outcome for t in held]
    assert [s.trial for s in read.samples] == [1, 2] * 3
    assert read.model_calls == sum(t.model_calls for t in held)
    with journal.open("ab") as file:
        file.write(b'{"trajectory_id": "cut')
    assert read_one(journal).notes == ("1 last line is cut off and not read",)


def test_its_log_for_inspect_is_read(tmp_path: Path) -> None:
    log = written(tmp_path / "log.json", to_inspect_log((), NORTHWIND.version("v2"), seed=7))
    assert refusal(log) == "log.json: holds no trial"


# --------------------------------------------------------------------------- every format


class Trial(NamedTuple):
    test: str
    trial: int
    outcome: Outcome
    family: str


Writer = Callable[[Path, Sequence[Trial]], Path]


def by_trial(trials: Iterable[Trial]) -> dict[int, list[Trial]]:
    runs: dict[int, list[Trial]] = {}
    for trial in trials:
        runs.setdefault(trial.trial, []).append(trial)
    return runs


def inspect_sample(trial: Trial) -> dict[str, Any]:
    value = {"safe": "C", "violation": "I"}.get(trial.outcome)
    return {
        "id": trial.test,
        "epoch": trial.trial,
        "input": "ask",
        "target": "kept",
        "metadata": {"family": trial.family},
        "scores": {"oracle": {"value": value}} if value else {},
        **({"error": {"message": "no server"}} if trial.outcome == "error" else {}),
    }


INSPECT_HEAD = {"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}}


def as_inspect_json(folder: Path, trials: Sequence[Trial]) -> Path:
    return written(
        folder / "log.json", {**INSPECT_HEAD, "samples": list(map(inspect_sample, trials))}
    )


def as_inspect_eval(folder: Path, trials: Sequence[Trial]) -> Path:
    path = folder / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", json.dumps(INSPECT_HEAD))
        archive.writestr("summaries.json", json.dumps(list(map(inspect_sample, trials))))
        archive.writestr("header.json", json.dumps(INSPECT_HEAD))
    return path


def as_promptfoo(folder: Path, trials: Sequence[Trial]) -> Path:
    results = [
        {
            "success": trial.outcome == "safe",
            "failureReason": {"safe": 0, "violation": 1, "error": 2}[trial.outcome],
            "testIdx": number,
            "testCase": {
                "description": trial.test,
                "vars": {"ask": trial.test},
                "assert": [{"type": "contains", "value": "x"}],
                "metadata": {"family": trial.family},
            },
            "provider": {"id": "echo"},
        }
        for number, trial in enumerate(sorted(trials, key=lambda trial: trial.trial))
    ]
    return written(
        folder / "out.json", {"evalId": "e", "results": {"version": 3, "results": results}}
    )


def as_tau(folder: Path, trials: Sequence[Trial]) -> Path:
    held = [
        {
            "task_id": trial.test,
            "trial": trial.trial - 1,
            "termination_reason": {
                "error": "infrastructure_error",
                "undetermined": "max_steps",
            }.get(trial.outcome, "user_stop"),
            "reward_info": {"reward": 1.0 if trial.outcome == "safe" else 0.0},
        }
        for trial in trials
    ]
    info = {"git_commit": "c", "num_trials": 3, "environment_info": {"domain_name": "airline"}}
    return written(folder / "results.json", {"timestamp": "t", "info": info, "simulations": held})


def as_deepeval(folder: Path, trials: Sequence[Trial]) -> Path:
    metrics: dict[Outcome, list[dict[str, Any]]] = {
        "safe": [{"name": "m", "success": True, "score": 1.0}],
        "violation": [{"name": "m", "success": False, "score": 0.0}],
        "error": [{"name": "m", "success": False, "error": "no server"}],
        "undetermined": [],
    }
    for number, run in by_trial(trials).items():
        cases = [
            {
                "name": trial.test,
                "input": "ask",
                "success": trial.outcome == "safe",
                "metricsData": metrics[trial.outcome],
                "metadata": {"family": trial.family},
            }
            for trial in run
        ]
        written(
            folder / "runs" / f"test_run_{number}.json", {"testCases": cases, "runDuration": number}
        )
    return folder / "runs"


def as_junit(folder: Path, trials: Sequence[Trial]) -> Path:
    from xml.etree import ElementTree as ET

    tags = {"violation": "failure", "error": "error", "undetermined": "skipped"}
    for number, run in by_trial(trials).items():
        suite = ET.Element("testsuite", name="mine")
        for trial in run:
            # A suite's name would be taken for a class where a case has none.
            case = ET.SubElement(suite, "testcase", name=trial.test)
            held = ET.SubElement(case, "properties")
            ET.SubElement(held, "property", name="family", value=trial.family)
            if trial.outcome != "safe":
                ET.SubElement(case, tags[trial.outcome], message="said")
        suite.attrib.pop("name")
        written(folder / "runs" / f"run{number}.xml", ET.tostring(suite))
    return folder / "runs"


def as_csv(folder: Path, trials: Sequence[Trial]) -> Path:
    text = io.StringIO()
    rows = csv.DictWriter(text, ["test", "trial", "outcome", "family"])
    rows.writeheader()
    rows.writerows({**trial._asdict(), "outcome": SAID[trial.outcome]} for trial in trials)
    return written(folder / "runs.csv", text.getvalue())


def as_parquet(folder: Path, trials: Sequence[Trial]) -> Path:
    path = folder / "runs.parquet"
    frame = as_frame(trials)
    duckdb.sql(f"COPY (FROM frame) TO '{path}'")
    del frame
    return path


def as_frame(trials: Sequence[Trial]) -> pd.DataFrame:
    return pd.DataFrame([{**t._asdict(), "outcome": SAID[t.outcome]} for t in trials])


SAID = {"safe": "pass", "violation": "fail", "error": "error", "undetermined": "undetermined"}
WRITERS: dict[str, Writer] = {
    "Inspect .json": as_inspect_json,
    "Inspect .eval": as_inspect_eval,
    "promptfoo": as_promptfoo,
    "tau2-bench": as_tau,
    "DeepEval": as_deepeval,
    "JUnit": as_junit,
    "CSV": as_csv,
    "Parquet": as_parquet,
}
# In promptfoo a test says always or never, and tau2-bench has no place for a family.
NEVER_UNDETERMINED = {"promptfoo"}
NO_FAMILY = {"tau2-bench"}

NAMES = st.text(
    st.characters(codec="ascii", categories=["L", "N"], include_characters="_-. "), min_size=1
).filter(lambda name: name == " ".join(name.split()))


@st.composite
def sets_of_trials(draw: st.DrawFn) -> list[Trial]:
    tests = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    runs = draw(st.integers(1, 3))
    said = st.sampled_from(["safe", "violation", "error", "undetermined"])
    return [
        Trial(test, number, draw(said), f"family {place % 2}")
        for number in range(1, runs + 1)
        for place, test in enumerate(tests)
    ]


def as_rows(trials: Iterable[Trial], family: bool) -> list[Row]:
    return sorted(
        Row(t.test, t.trial, t.family if family else t.test, "regression", "", t.outcome)
        for t in trials
    )


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trials=sets_of_trials())
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_trials_are_the_same_rows_in_every_format(
    name: str, tmp_path_factory: pytest.TempPathFactory, trials: list[Trial]
) -> None:
    if name in NEVER_UNDETERMINED:
        trials = [t._replace(outcome="error") if t.outcome == "undetermined" else t for t in trials]
    read = read_one(WRITERS[name](tmp_path_factory.mktemp("runs"), trials))
    assert sorted(Meaning().rows([read])) == as_rows(trials, name not in NO_FAMILY)


@settings(max_examples=15, deadline=None)
@given(trials=sets_of_trials())
def test_a_frame_is_a_table_too(trials: list[Trial]) -> None:
    read = from_frame(as_frame(trials), "mine")
    assert sorted(Meaning().rows([read])) == as_rows(trials, family=True)


# --------------------------------------------------------------------------- what each says


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("C", "safe"),
        (1, "safe"),
        (1.0, "safe"),
        (True, "safe"),
        ("yes", "safe"),
        ("I", "violation"),
        ("N", "violation"),
        (0, "violation"),
        (False, "violation"),
        ("P", None),
        (0.7, None),
        ("great", None),
        ({"a": 1}, None),
        (float("nan"), "undetermined"),
        (None, "undetermined"),
    ],
)
def test_a_score_of_inspect_passes_fails_or_says_neither(
    tmp_path: Path, value: Any, outcome: Outcome | None
) -> None:
    sample = {"id": 1, "epoch": 1, "scores": {"s": {"value": value}}}
    log = written(tmp_path / "log.json", {**INSPECT_HEAD, "samples": [sample]})
    assert of(read_one(log), "1") == [outcome]


def test_of_several_scorers_somebody_has_to_say_which_decides(tmp_path: Path) -> None:
    scores = {"safe": {"value": "C"}, "model_graded_qa": {"value": 0.5}}
    sample = {"id": "a", "epoch": 1, "scores": scores}
    head = {**INSPECT_HEAD, "eval": {"task": "t", "scorers": [{"name": "x/model_graded_qa"}]}}
    log = read_one(written(tmp_path / "log.json", {**head, "samples": [sample]}))
    assert log.samples[0].outcome is None
    assert log.samples[0].fields == {"score.safe": "C", "score.model_graded_qa": 0.5}
    assert log.graded_by_model
    with pytest.raises(ResultsError, match="say what passes"):
        Meaning().rows([log])
    assert Meaning(passes="score.safe == C").rows([log])[0].outcome == "safe"


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    spec = {"task": "t", "dataset": {"sample_ids": ["a", "b", "c"]}, "config": {"epochs": 1}}
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": spec}))
        for number in (10, 9):
            sample = inspect_sample(Trial(f"s{number}", 1, "safe", "f"))
            archive.writestr(f"_journal/summaries/{number}.json", json.dumps([sample]))
    log = read_one(path)
    assert [sample.test for sample in log.samples] == ["s9", "s10"]
    assert log.notes == ("the log ended as started, with 2 of 3 samples",)


def test_tests_of_promptfoo_that_are_called_alike_are_told_apart(tmp_path: Path) -> None:
    def result(number: int, asserted: str, provider: str) -> dict[str, Any]:
        return {
            "success": True,
            "testIdx": number,
            "testCase": {"vars": {"q": "hi"}, "assert": [{"type": asserted}]},
            "provider": {"id": provider},
        }

    held = [
        result(0, "contains", "a"),
        result(1, "not-llm-rubric", "a"),
        result(2, "contains", "a"),
    ]
    run = read_one(written(tmp_path / "a.json", {"results": {"results": held, "stats": {}}}))
    assert [(s.test, s.trial) for s in run.samples] == [("q=hi", 1), ("q=hi #2", 1), ("q=hi", 2)]
    assert run.graded_by_model
    held = [result(0, "contains", "a"), result(0, "contains", "b")]
    run = read_one(written(tmp_path / "b.json", {"results": {"results": held, "stats": {}}}))
    assert [(s.test, s.trial) for s in run.samples] == [("q=hi/a", 1), ("q=hi/b", 1)]
    assert "told apart" in run.notes[0]


def test_rows_of_a_table_without_trials_are_counted(tmp_path: Path) -> None:
    text = (
        "\ufefftest;outcome;family\nrefund;TRUE;money\nexport;pass;\nrefund;false;money\nrefund;;\n"
    )
    table = read_one(written(tmp_path / "a.csv", text))
    assert [tuple(sample) for sample in table.samples] == [
        ("refund", 1, "safe", {"family": "money"}),
        ("export", 1, "safe", {}),
        ("refund", 2, "violation", {"family": "money"}),
        ("refund", 3, "undetermined", {}),
    ]


def test_a_table_of_scores_is_judged_by_what_somebody_says(tmp_path: Path) -> None:
    table = read_one(written(tmp_path / "a.csv", "test,score\nrefund,0.7\nrefund,0.2\n"))
    with pytest.raises(ResultsError, match="say what passes"):
        Meaning().rows([table])
    rows = Meaning(passes="score >= 0.5").rows([table])
    assert [row.outcome for row in rows] == ["safe", "violation"]


def test_results_of_tau_bench_count_an_exception_as_an_error(tmp_path: Path) -> None:
    held = [
        {"task_id": 0, "reward": 1.0, "info": {}, "traj": [], "trial": 0},
        {"task_id": 0, "reward": 0.0, "info": {"error": "timeout"}, "traj": [], "trial": 1},
        {"task_id": 1, "reward": 0.0, "info": {}, "traj": [], "trial": 0},
    ]
    run = read_one(written(tmp_path / "r.json", held))
    assert [(s.test, s.trial, s.outcome) for s in run.samples] == [
        ("0", 1, "safe"),
        ("0", 2, "error"),
        ("1", 1, "violation"),
    ]


def test_simulations_beside_their_results_are_read_with_them(tmp_path: Path) -> None:
    info = {"git_commit": "c", "num_trials": 1}
    one = {"task_id": "7", "trial": 0, "reward_info": {"reward": 1.0}}
    written(tmp_path / "exp" / "results.json", {"info": info, "tasks": []})
    path = written(tmp_path / "exp" / "simulations" / "a.json", one)
    run = read_one(tmp_path / "exp")
    assert (of(run, "7"), run.notes) == (["safe"], ())
    written(path, {**one, "reward_info": {"reward": 0.0}})
    assert read_one(tmp_path / "exp").sha256 != run.sha256


# --------------------------------------------------------------------------- folders


def log_of(path: Path, name: str = "t", told: str = "C", **more: Any) -> Path:
    sample = {"id": "a", "epoch": 1, "scores": {"s": {"value": told}}}
    spec = {"task": name, "model": "m", "run_id": path.name, **more}
    return written(path, {"version": 2, "status": "success", "eval": spec, "samples": [sample]})


def test_runs_in_a_folder_are_numbered_on_in_the_order_of_their_names(tmp_path: Path) -> None:
    log_of(tmp_path / "b.json", told="I")
    log_of(tmp_path / "a.json", told="C")
    written(tmp_path / "notes.md", "what I did")
    logs = read_one(tmp_path)
    assert [(s.trial, s.outcome) for s in logs.samples] == [(1, "safe"), (2, "violation")]
    assert logs.notes == (
        "1 trial of tests of an earlier file, numbered on by file name",
        "1 file of other kinds, not read: notes.md",
    )


def test_a_run_that_was_taken_up_again_counts_once(tmp_path: Path) -> None:
    log_of(tmp_path / "z.json", told="I", task_id="T", created="2026-01-01T00:00:00+00:00")
    log_of(tmp_path / "a.json", told="C", task_id="T", created="2026-01-02T00:00:00+00:00")
    logs = read_one(tmp_path)
    assert of(logs, "a") == ["safe"]
    assert logs.notes == ("1 file of a run that a later one took up again: not counted",)


def test_tests_of_several_tasks_are_called_after_them(tmp_path: Path) -> None:
    log_of(tmp_path / "a.json", name="safety")
    log_of(tmp_path / "b.json", name="use")
    assert [sample.test for sample in read_one(tmp_path).samples] == ["safety/a", "use/a"]


def test_attacks_of_agentdojo_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    shutil.copytree(DOJO, tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("important*"):
        shutil.copytree(path, path.with_name("direct"))
        for run in path.with_name("direct").iterdir():
            written(run, json.loads(run.read_bytes()) | {"attack_type": "direct"})
    tests = {sample.test for sample in read_one(tmp_path).samples}
    assert "direct/banking/user_task_0/injection_task_0" in tests
    assert "banking/user_task_0" in tests  # no attack, so of neither
    assert len(tests) == 2 * 6 + 2


def test_a_folder_is_of_one_tool_one_agent_and_holds_no_copies(tmp_path: Path) -> None:
    log_of(tmp_path / "x" / "a.json")
    log_of(tmp_path / "x" / "b.json", model="another")
    assert "results of 2 agents: m, another" in refusal(tmp_path / "x")
    shutil.copy(log_of(tmp_path / "y" / "a.json"), tmp_path / "y" / "b.json")
    assert "a.json and b.json are the same bytes" in refusal(tmp_path / "y")
    log_of(tmp_path / "z" / "a.json")
    written(tmp_path / "z" / "b.csv", "test,outcome\na,pass\n")
    assert "results of 2 tools: Inspect (a.json), CSV (b.csv)" in refusal(tmp_path / "z")


def test_two_runs_of_a_table_may_be_alike(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        written(tmp_path / name, "test,outcome\nrefund,pass\n")
    runs = read_one(tmp_path)
    assert [sample.trial for sample in runs.samples] == [1, 2]
    assert "1 file with the bytes of an earlier one" in runs.notes[0]


# --------------------------------------------------------------------------- what is refused

BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbbbbbb'><!ENTITY c '&b;&b;&b;&b;'>]>"
REFUSED: dict[str, tuple[Any, str]] = {
    "empty.json": (b"", "an empty file"),
    "object.json": ({"a": 1, "b": 2}, "a JSON object with keys a, b; what is read: Inspect"),
    "list.json": ([1, 2], "a JSON list of 2 entries"),
    "page.html": ("<html></html>", "XML or HTML"),
    "notes.txt": ("hello\x1b[31m", "a text that begins with"),
    "raw.bin": (b"\x00\x01\x02", "a binary file"),
    "plain.zip": (b"PK\x03\x04 and more", "a zip"),
    "gate.json": ({"artifact": "gate_report"}, "this project's gate_report, which holds no trials"),
    "gate.xml": ('<testsuites name="release gate"/>', "verdicts and no trials"),
    "cut.json": (json.dumps(INSPECT_HEAD)[:-3] + ', "sam', "not JSON at line 1"),
    "other.json": ({**INSPECT_HEAD, "samples": [{"epoch": 1}]}, "samples.0.id: Field required"),
    "deep.json": (
        # Behind what is looked at to find out whose it is.
        json.dumps(
            {**INSPECT_HEAD, "samples": [{"id": "x" * 70_000, "metadata": {"x": 0}}]}
        ).replace("0}", "[" * 100_000 + "]" * 100_000 + "}"),
        "nested too deeply",
    ),
    "none.json": ({**INSPECT_HEAD, "samples": []}, "holds no trial"),
    "twice.json": (
        {**INSPECT_HEAD, "samples": [{"id": 1}, {"id": 1}]},
        "trial 1 of 1 stands there",
    ),
    "early.json": ({**INSPECT_HEAD, "samples": [{"id": 1, "epoch": 0}]}, "they begin at 1"),
    "bad.eval": (b"PK\x03\x04" + b"x" * 50, "damaged .eval"),
    "cut.eval": (EVAL.read_bytes()[:-2000], "damaged .eval"),
    "bomb.xml": (f"{BOMB}<testsuite><testcase name='&c;'/></testsuite>", "document type"),
    "typed.xml": (
        "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><testsuite><testcase name='a'/></testsuite>",
        "document type",
    ),
    "cut.xml": ("<testsuite><testcase name='a'>", "not XML"),
    "no.csv": ("name,result\na,pass\n", "no column 'test' (there are name, result)"),
    "half.csv": ("test,family\na,pass\n", "no column 'outcome'"),
    "word.csv": ("test,outcome\na,meh\n", "outcome in row 2 is 'meh'; use pass, fail, error"),
    "row.csv": ("test,outcome\na\n", "row 2 has 1 cells, the header 2"),
    "who.csv": ("test,outcome\n,pass\n", "row 2 names no test"),
    "when.csv": ("test,trial,outcome\na,one,pass\n", "trial in row 2 is 'one'"),
    "same.csv": ("test,trial,outcome\na,1,pass\na,1,fail\n", "trial 1 of a stands there twice"),
    "columns.csv": ("test,outcome,test\na,pass,b\n", "the column 'test' stands there twice"),
    "latin.csv": ("test,outcome\nd\xe9j\xe0,pass\n".encode("latin-1"), "not UTF-8 at byte"),
    "quote.csv": ('test,outcome\n"a,pass\n', "not CSV"),
    "wide.csv": ("test,outcome\n" + "a" * 200_000 + ",pass\n", "not CSV"),
    "cut.parquet": (b"PAR1 and no more", "not Parquet"),
    "two.jsonl": (
        '{"artifact": "journal"}\n{"version": "v1"}\n',
        "not a trajectory in line 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    path = written(tmp_path / name, content)
    assert said in refusal(path)
    assert refusal(path).startswith(name)
    assert list(tmp_path.iterdir()) == [path]


def test_every_tool_that_is_read_is_listed(tmp_path: Path) -> None:
    line = refusal(written(tmp_path / "a.json", {}))
    assert all(reader.tool in line for reader in RESULT_READERS)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.json")
    assert "not" in refusal(tmp_path / "a\0b")
    assert "a folder without results that are read (it holds nothing)" in refusal(tmp_path)


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "test,outcome\na,pass\n")
    assert read_one(path, max_bytes=20).samples
    assert "20 bytes, more than --max-bytes 19" in refusal(path, max_bytes=19)
    assert "more than --max-bytes 19" in refusal(tmp_path, max_bytes=19)


@pytest.mark.parametrize("lies", [False, True])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, lies: bool) -> None:
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(INSPECT_HEAD))
        archive.writestr("summaries.json", b"[" + b" " * (8 << 20) + b"]")
    if lies:
        size = ((8 << 20) + 2).to_bytes(4, "little")
        path.write_bytes(path.read_bytes().replace(size, (100).to_bytes(4, "little")))
        assert "summaries.json in it is damaged" in refusal(path, max_bytes=1 << 20)
    else:
        assert "8,388,610 bytes or more when unpacked" in refusal(path, max_bytes=1 << 20)


def test_a_log_that_needs_zstd_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['zipfile_zstd'] = None\n"
        "from pathlib import Path; from safety_lib.results.finding import read_one\n"
        f"read_one(Path({str(EVAL)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "packed with zstd, which this Python cannot unpack; pip install inspect-ai" in done.stderr
    )


def test_names_that_cannot_be_shown_stay_apart(tmp_path: Path) -> None:
    names = ["a", "a\x1b[31m", "\u202ea", "x" * 100_000, "x" * 100_001, " a", "\ud800"]
    log = {**INSPECT_HEAD, "samples": [{"id": name} for name in names]}
    read = read_one(written(tmp_path / "log.json", log))
    tests = [sample.test for sample in read.samples]
    assert len(set(tests)) == len(names)
    assert all(test.isprintable() and len(test) <= 160 for test in tests)


def test_fields_can_be_written(tmp_path: Path) -> None:
    told = {"said": "\ud83d", "long": "x" * 100_000, "none": float("nan"), "\udc00": 1}
    log = {**INSPECT_HEAD, "samples": [{"id": 1, "metadata": told}]}
    fields = read_one(written(tmp_path / "log.json", log)).samples[0].fields
    json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert len(fields["metadata.long"]) == 4000


DAMAGED = [EVAL, PROMPTFOO, DEEPEVAL, DEEPTEAM, next(DOJO.rglob("injection_task_2.json"))]
PUT = [None, True, 0, -1, "", "\ud800", "\x1b[31m", [], {}, [[1]], float("nan"), 10**400]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes of a file with some of them changed, or with another value somewhere in it."""
    if content.startswith(b"{") and chance.random() < 0.6:
        tree = json.loads(content)
        at: Any = tree
        while isinstance(at, dict | list) and at:
            key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if chance.random() < 0.3 or not isinstance(at[key], dict | list):
                at[key] = chance.choice(PUT)
                break
            at = at[key]
        return json.dumps(tree).encode()
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])])


@pytest.mark.parametrize("path", DAMAGED, ids=lambda path: path.name)
def test_a_damaged_file_is_read_or_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    chance = random.Random(path.name)
    for _ in range(80):
        file = written(tmp_path / path.name, damaged(path.read_bytes(), chance))
        try:
            read = read_one(file, max_bytes=1 << 24)
        except ResultsError as error:
            assert str(error).isprintable()
        else:
            said = json.dumps([sample._asdict() for sample in read.samples], ensure_ascii=False)
            said.encode("utf-8")
