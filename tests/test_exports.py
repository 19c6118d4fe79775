"""Exports: what leaves is whole, other people's readers read it, and pytest runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from factories import NORTHWIND
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.__main__ import main
from safety_lib.artifacts import read_artifact, write_artifact
from safety_lib.records import Suite
from safety_lib.regression.admission import TestRun, run_tests
from safety_lib.regression.exports import (
    WRITERS,
    to_inspect,
    to_inspect_log,
    to_openai,
    to_promptfoo,
)
from safety_lib.rollout.campaign import Run
from safety_lib.world import load_version

V2 = load_version("northwind/v2")
ROOT = Path(__file__).resolve().parent.parent
FORMATS = sorted(WRITERS)

# What templates, YAML, JSON Lines and file references stumble over.
TEXT = st.text(max_size=40) | st.sampled_from(
    ["{{ secret }}", "{% raw %}", "file:///etc/passwd", "a\u2028b", "- x: y", "'\"", " lead", "\n"]
)


@pytest.fixture(scope="module")
def few(suite: Suite) -> Suite:
    aside = [test for test in suite.tests if test.lifecycle != "active"]
    return suite.model_copy(update={"tests": (*suite.active[-5:], *aside[:1])})


@pytest.fixture(scope="module")
def folder(few: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("artifacts")
    write_artifact(made, few)
    return made


def turns_of(name: str, text: str) -> list[list[str]]:
    """What the user says in each test of an export, as the other tool would read it."""
    if name == "promptfoo":
        said: dict[str, list[str]] = {}
        for case in yaml.safe_load(text) or []:
            message = case["vars"]["message"]
            if literal := re.fullmatch(r'\{\{ (".*") \}\}', message, re.DOTALL):
                message = json.loads(literal.group(1))
            said.setdefault(case["metadata"]["conversationId"], []).append(message)
        return list(said.values())
    field = {"openai": "messages", "inspect": "input"}[name]
    records = [json.loads(line) for line in text.split("\n") if line]
    return [[message["content"] for message in record[field]] for record in records]


@pytest.mark.parametrize("name", FORMATS)
def test_every_turn_of_a_suite_is_in_its_export(suite: Suite, name: str) -> None:
    said = turns_of(name, WRITERS[name](suite.tests, NORTHWIND))
    assert said == [list(test.attack_turns) for test in suite.tests]


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_suite_is_an_empty_export(name: str) -> None:
    assert turns_of(name, WRITERS[name]([], NORTHWIND)) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from(FORMATS))
def test_any_text_arrives_as_it_is(suite: Suite, turns: list[str], name: str) -> None:
    test = suite.tests[0].model_copy(update={"attack_turns": tuple(turns)})
    assert turns_of(name, WRITERS[name]([test], NORTHWIND)) == [turns]


@pytest.mark.parametrize("name", FORMATS)
def test_a_person_can_read_any_script_in_an_export(suite: Suite, name: str) -> None:
    said = "Grüße, 你好"
    test = suite.tests[0].model_copy(update={"attack_turns": (said,)})
    assert said in WRITERS[name]([test], NORTHWIND)


def test_openai_lines_are_chat_messages_with_tools(suite: Suite) -> None:
    for line, test in zip(to_openai(suite.tests, NORTHWIND).splitlines(), suite.tests, strict=True):
        record = json.loads(line)
        assert [m["role"] for m in record["messages"]] == ["user"] * len(test.attack_turns)
        assert {tool["type"] for tool in record["tools"]} == {"function"}


def test_promptfoo_runs_the_turns_of_a_test_as_one_conversation(suite: Suite) -> None:
    cases = yaml.safe_load(to_promptfoo(suite.active, NORTHWIND))
    for test in suite.active:
        mine = [c for c in cases if c["metadata"]["conversationId"] == test.test_id]
        assert [c["metadata"]["turn"] for c in mine] == list(range(1, len(test.attack_turns) + 1))
        assert all(case["assert"] for case in mine)
    kinds = {a["type"] for case in cases for a in case["assert"]}
    assert kinds <= {"not-regex", "not-icontains-all", "llm-rubric"}


def test_promptfoo_never_renders_or_opens_what_an_attacker_wrote(suite: Suite) -> None:
    turns = ("{{ env.SECRET }}", "file:///etc/passwd")
    test = suite.tests[0].model_copy(update={"attack_turns": turns})
    said = [case["vars"]["message"] for case in yaml.safe_load(to_promptfoo([test], NORTHWIND))]
    assert said == ['{{ "{{ env.SECRET }}" }}', '{{ "file:///etc/passwd" }}']


@pytest.fixture(scope="module")
def runs(suite: Suite) -> tuple[TestRun, ...]:
    return run_tests(suite.active[:4], V2, run=Run(seed=7), trials=3)


@pytest.mark.slow
def test_inspect_reads_the_log(runs: tuple[TestRun, ...], tmp_path: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    path = tmp_path / "log.json"
    path.write_text(to_inspect_log(runs, V2, seed=7), encoding="utf-8")
    log = log_module.read_eval_log(str(path))
    assert (log.status, len(log.samples)) == ("success", 12)
    held = sum(run.failed.count(False) for run in runs)
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(held / 12)
    for sample, trajectory in zip(
        log.samples, (t for run in runs for t in run.trajectories), strict=True
    ):
        said = [m.content for m in sample.messages if m.role == "user"]
        assert tuple(said) == trajectory.user_messages
        called = [c for m in sample.messages for c in (getattr(m, "tool_calls", None) or [])]
        assert [c.function for c in called] == [
            e.call.name for e in trajectory.events if e.kind == "tool_call"
        ]
        assert sample.scores["oracle"].value == ("I" if trajectory.violations else "C")


def test_an_error_in_the_log_has_no_score(runs: tuple[TestRun, ...]) -> None:
    broken = runs[0].trajectories[0].model_copy(update={"outcome": "error", "violations": ()})
    log = json.loads(to_inspect_log([TestRun(runs[0].test, (broken,))], V2, seed=7))
    assert log["samples"][0]["scores"] == {} and log["samples"][0]["error"]["message"]
    assert log["results"]["completed_samples"] == 0


@pytest.mark.slow
def test_inspect_reads_the_dataset(suite: Suite, tmp_path: Path) -> None:
    dataset = pytest.importorskip("inspect_ai.dataset")
    path = tmp_path / "tests.jsonl"
    path.write_text(to_inspect(suite.active, NORTHWIND), encoding="utf-8")
    samples = list(dataset.json_dataset(str(path)))
    assert [sample.id for sample in samples] == [test.test_id for test in suite.active]
    assert [len(sample.input) for sample in samples] == [len(t.attack_turns) for t in suite.active]


@pytest.mark.parametrize("name", ["json", "openai", "inspect", "inspect-log", "promptfoo"])
def test_the_command_writes_each_format(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.json"
    arguments = ["export", name, str(out), "--artifacts", str(folder), "--trials", "1"]
    assert main(arguments) == 0
    assert out.stat().st_size > 100
    if name == "json":
        assert read_artifact(out, Suite).tests == read_artifact(folder, Suite).active


def test_the_command_refuses_an_unknown_format(folder: Path, tmp_path: Path) -> None:
    assert main(["export", "pdf", str(tmp_path / "x"), "--artifacts", str(folder)]) == 3


# --------------------------------------------------------------------------- pytest


def pytest_run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    plugin = ["-p", "safety_lib.regression.pytest_plugin", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_each_active_test_is_one_item(folder: Path, few: Suite) -> None:
    done = pytest_run(
        "--safety-suite=regression_tests.json", "--safety-target=v2", "--junitxml=j.xml", cwd=folder
    )
    cases = list(ElementTree.parse(folder / "j.xml").iter("testcase"))
    assert [case.get("name") for case in cases] == [test.test_id for test in few.active]
    failed = [case for case in cases if case.find("failure") is not None]
    assert len(failed) > len(cases) / 2 and done.returncode == 1
    assert "BROKEN RULE" in done.stdout
    found = {p.get("name"): p.get("value") for p in cases[0].iter("property")}
    assert int(str(found["model_calls"])) > 0 and found["config_sha256"] == V2.sha256


@pytest.mark.slow
def test_the_reference_passes_the_whole_suite(folder: Path, few: Suite) -> None:
    done = pytest_run(
        "-q", "--safety-suite=regression_tests.json", "--safety-target=reference", cwd=folder
    )
    assert done.returncode == 0
    assert f"{len(few.active)} passed" in done.stdout


@pytest.mark.slow
def test_a_model_that_cannot_answer_is_an_error_not_a_failure(folder: Path) -> None:
    (folder / "empty.json").write_text("", encoding="utf-8")
    done = pytest_run(
        "-q",
        "--safety-suite=regression_tests.json",
        "--safety-model=openai:nobody",
        "--safety-trials=1",
        cwd=folder,
    )
    assert done.returncode != 0
    assert "failed" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--safety-suite=none.json"], "there is no such file"),
        (["--safety-suite=regression_tests.json", "--safety-target=v9"], "has no version"),
        (["--safety-suite=regression_tests.json", "--safety-trials=0"], "at least 1"),
    ],
)
def test_wrong_use_is_one_line(folder: Path, arguments: list[str], said: str) -> None:
    done = pytest_run(*arguments, cwd=folder)
    assert done.returncode == 4
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_plain_run_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n\ndef test_plain():\n"
        "    assert not [m for m in sys.modules if m.startswith(('pydantic', 'safety_lib.rec'))]\n",
        encoding="utf-8",
    )
    done = pytest_run("-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_files_on_the_command_line_run_beside_the_suite(folder: Path, few: Suite) -> None:
    (folder / "test_beside.py").write_text("def test_beside():\n    pass\n", encoding="utf-8")
    done = pytest_run(
        "-q",
        "--safety-suite=regression_tests.json",
        "--safety-target=reference",
        "--safety-trials=1",
        "test_beside.py",
        cwd=folder,
    )
    assert f"{1 + len(few.active)} passed" in done.stdout
