"""The command line as scripts and CI meet it: exit codes, one-line errors, files kept intact."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from safety_lib.__main__ import cli, main
from safety_lib.artifacts import read_artifact, write_artifact
from safety_lib.gate import release_gate
from safety_lib.gate.release_gate import run_gate
from safety_lib.records import GateReport, Suite

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "artifacts"
POSTMORTEM = Path("docs") / "postmortem.md"


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safety_lib", *arguments],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Artifacts as they are after stages 1 and 2."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("incident_example.json", "production_log.parquet", "stress_failures.json"):
        shutil.copy(SAMPLES / name, folder)
    write_artifact(folder, read_artifact(SAMPLES, Suite).only("stress"))
    return folder


def test_the_commands_write_what_is_committed(loop: Path) -> None:
    alone = [path for path in SAMPLES.glob("*.json") if path.name != "batch.json"]
    for path in (*alone, SAMPLES / "gate_report.html", SAMPLES / POSTMORTEM):
        assert (loop / path.relative_to(SAMPLES)).read_bytes() == path.read_bytes(), path.name


def test_the_gate_says_its_verdict_and_writes_all_of_it(loop: Path) -> None:
    report = json.loads((loop / "gate_report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "BLOCK"
    assert "Release verdict: BLOCK" in (loop / "gate.txt").read_text(encoding="utf-8")
    fields = {
        "verdict", "baseline", "candidate", "baseline_pass_rate", "candidate_pass_rate", "delta",
        "ci_low", "ci_high", "p_value", "n_tests", "n_families", "trials", "test_results",
        "schema_version", "seed", "config_sha256",
    }  # fmt: skip
    assert fields <= report.keys()
    page = (loop / "gate_report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("given", "verdict", "code"),
    [
        (["--candidate", "v1"], "OK", 0),
        (["--candidate", "v2", "--trials", "3"], "BLOCK", 2),
        (["--candidate", "reference"], "OK", 0),
        (["--candidate", "v2", "--trials", "1"], "WARN", 1),
    ],
)
def test_the_exit_code_of_the_gate_is_its_verdict(
    copy: Path,
    given: list[str],
    verdict: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = read_artifact(copy, Suite)
    if verdict == "WARN":  # four families cannot tell a loss from chance
        few = {test.family: test for test in suite.active}
        suite = suite.model_copy(update={"tests": tuple(few.values())[:4]})
        write_artifact(copy, suite)
    assert main(["gate", *given, "--artifacts", str(copy)]) == code
    assert f"Release verdict: {verdict}" in capsys.readouterr().out
    assert read_artifact(copy, GateReport).verdict == verdict


def test_a_suite_too_small_to_decide_is_told_before_its_trials(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = read_artifact(copy, Suite)
    write_artifact(copy, suite.model_copy(update={"tests": suite.active[:1]}))
    told: list[str] = []

    def judge(*_: Any, **__: Any) -> GateReport:
        told.append(capsys.readouterr().err)
        return run_gate(*_, **__)

    monkeypatch.setattr(release_gate, "run_gate", judge)
    assert main(["gate", "--trials", "1", "--artifacts", str(copy)]) == 3
    said = "the suite has too few active tests (1) or families (1): at least 2 and 2 are needed"
    assert told == [f"There will be no verdict: {said}.\n"]
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_as_many_processes_as_pay_change_nothing(tmp_path: Path) -> None:
    arguments = ["stress", "--rollouts", "200", "--max-turns", "4", "--artifacts"]
    assert main([*arguments, str(tmp_path / "many")]) == 0
    assert main([*arguments, str(tmp_path / "one"), "--workers", "1"]) == 0
    many, one = (tmp_path / name / "stress_failures.json" for name in ("many", "one"))
    assert many.read_bytes() == one.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["gate", "--bogus"],
        ["gate", "--trials", "0"],
        ["gate", "--trials", "many"],
        ["gate", "--candidate", "v9"],
        ["gate", "--model", "telepathy"],
        ["stress", "--rollouts", "0"],
        ["stress", "--attacker", "psychic"],
        ["regress", "--input", "nowhere.json"],
        ["replay", "--incident", "nowhere.json"],
        ["nonsense"],
    ],
)
def test_everything_that_is_not_a_verdict_is_three(
    copy: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    known = arguments[0] != "nonsense"
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert main([*arguments, *(["--artifacts", str(copy)] if known else [])]) == 3
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    assert before == {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}


def test_usage_errors_of_the_real_process_are_three(copy: Path) -> None:
    assert command("gate", "--bogus").returncode == 3
    assert command("gate", "--suite", str(copy / "absent.json")).returncode == 3


CRASHES = (KeyError, AttributeError, AssertionError, RecursionError, MemoryError, StopIteration)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_a_crash_in_any_command_is_three_and_never_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["x" for given in cli.commands[name].params if isinstance(given, click.Argument)]
    for kind in CRASHES:

        def crash(*_: Any, kind: type[Exception] = kind, **__: Any) -> None:
            raise kind("out of the blue")

        monkeypatch.setattr(cli.commands[name], "callback", crash)
        assert main([name, *asked]) == 3
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


CRASH = """
import runpy, sys
from safety_lib import artifacts
def crash(*_, **__):
    raise KeyError("out of the blue")
artifacts.read_artifact = crash
runpy.run_module("safety_lib", run_name="__main__", alter_sys=True)
"""


def test_a_process_that_crashes_in_the_middle_of_the_gate_exits_with_three(copy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, "gate", "--artifacts", str(copy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "Traceback" in done.stderr  # a bug is worth one
    assert done.stderr.splitlines()[-1].startswith("error: this is a bug: KeyError")
    assert not list(copy.glob("gate_report.*"))


def test_help_is_no_error() -> None:
    assert main(["gate", "--help"]) == 0


def test_the_bare_call_shows_the_loop_in_its_order() -> None:
    bare, asked = command(), command("--help")
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == asked.stdout
    listed = re.findall(r"^  ([a-z]+) +\S", bare.stdout.split("Commands:")[1], re.MULTILINE)
    assert listed == [
        "demo",
        "batch",
        "stress",
        "regress",
        "gate",
        "history",
        "replay",
        "log",
        "export",
    ]
    assert "..." not in bare.stdout.split("Commands:")[1]  # a line that was cut says nothing


def test_the_version_is_that_of_the_package() -> None:
    done = command("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"safety_lib, version {project['version']}\n"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_help_of_each_subcommand_shows_an_example_of_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    assert f"Example: python -m safety_lib {name}" in " ".join(capsys.readouterr().out.split())


def test_what_is_no_terminal_gets_plain_lines(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "safety_lib", "stress", "--rollouts", "2"]
    arguments += ["--max-turns", "2", "--artifacts", str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    lines = done.stdout.replace(b"\r\n", b"\n")  # a line ends so on Windows
    assert lines.endswith(b"\n")
    assert b"\r" not in lines and b"\x1b" not in lines


def edited(path: Path) -> str:
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["tests"] = tree["tests"][1:]
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.read_text(encoding="utf-8")[:500], "not JSON"),
        (lambda path: "[]", "expected one JSON object"),
        (edited, "hash"),
        (
            lambda path: path.read_text(encoding="utf-8").replace(
                '"schema_version": 1', '"schema_version": 99'
            ),
            "schema_version is 99",
        ),
    ],
)
def test_a_damaged_suite_gives_one_line_and_stays(
    copy: Path, damage: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "regression_tests.json"
    path.write_text(damage(path), encoding="utf-8")
    before = path.read_bytes()
    for arguments in (["gate"], ["regress"], ["replay"]):
        assert main([*arguments, "--artifacts", str(copy)]) == 3
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"affected_users": "many"}, "affected_users"),
        ({"trajectory": []}, "trajectory"),
        ({"detection_latency_hours": None}, "detection_latency_hours"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_incident_names_file_and_field(
    copy: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "incident_example.json"
    tree = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert main(["replay", "--incident", str(path), "--artifacts", str(copy)]) == 3
    error = capsys.readouterr().err
    assert "incident_example.json" in error and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("field", ["incident_id", "trajectory", "affected_users"])
def test_a_missing_field_of_an_incident_is_named(
    copy: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "incident_example.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree[field]
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert main(["replay", "--incident", str(path), "--artifacts", str(copy)]) == 3
    assert field in capsys.readouterr().err


def test_the_incident_replays_and_the_suite_grows(loop: Path) -> None:
    before, after = (
        json.loads((loop / name).read_text(encoding="utf-8"))["tests"]
        for name in ("before.json", "regression_tests.json")
    )
    report = json.loads((loop / "incident_replay.json").read_text(encoding="utf-8"))
    assert {"incident_id", "root_cause", "blast_radius", "new_tests"} <= report.keys()
    radius = {"estimate", "ci_low", "ci_high", "population_n", "audited_n", "method"}
    assert radius <= report["blast_radius"].keys()
    assert len(after) >= len(before) + 2
    assert [test for test in after if test["source"]["stage"] == "stress"] == before


@pytest.mark.parametrize("attacker", ["adaptive", "static", "direct", "search"])
def test_each_attacker_can_be_chosen(tmp_path: Path, attacker: str) -> None:
    arguments = ["stress", "--rollouts", "4", "--attacker", attacker]
    assert main([*arguments, "--artifacts", str(tmp_path)]) == 0
    tree = json.loads((tmp_path / "stress_failures.json").read_text(encoding="utf-8"))
    assert tree["attacker"] == attacker
    assert {"failures", "summary", "schema_version", "seed", "config_sha256"} <= tree.keys()


def test_a_version_of_ones_own_is_a_file(copy: Path, tmp_path: Path) -> None:
    source = (ROOT / "safety_lib/worlds/northwind/versions/v3.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(source.replace("version: v3", "version: mine"), encoding="utf-8")
    assert main(["gate", "--candidate", str(mine), "--trials", "1", "--artifacts", str(copy)]) < 2
    report = json.loads((copy / "gate_report.json").read_text(encoding="utf-8"))
    assert report["candidate"] == "mine"


def test_the_failures_of_a_version_from_a_file_become_tests_without_naming_it_again(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (ROOT / "safety_lib/worlds/northwind/versions/v2.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(source.replace("version: v2", "version: mine"), encoding="utf-8")
    given = ["--artifacts", str(copy), "--workers", "1"]
    assert main(["stress", *given, "--candidate", str(mine), "--rollouts", "12"]) == 0
    mine.unlink()
    assert main(["regress", *given, "--replays", "2"]) == 0
    assert read_artifact(copy, Suite).candidate == "mine"
    kept = sorted((copy / "runs" / "versions").iterdir())
    assert str(tmp_path) not in (copy / "stress_failures.json").read_text(encoding="utf-8")
    for path in kept:  # what was edited is another version
        path.write_text(path.read_text(encoding="utf-8").replace("brief", "long"), encoding="utf-8")
    capsys.readouterr()
    assert main(["regress", *given, "--replays", "2"]) == 3
    assert "was edited; name the file of 'mine' with" in capsys.readouterr().err
    shutil.rmtree(copy / "runs" / "versions")
    assert main(["regress", *given, "--replays", "2"]) == 3
    assert "the failures were found on 'mine', which is no version" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_takes_a_release_by_the_path_from_here(tmp_path: Path) -> None:
    source = (ROOT / "safety_lib/worlds/northwind/versions/v3.yaml").read_text(encoding="utf-8")
    mine = tmp_path / "my_release.yaml"
    mine.write_text(source.replace("version: v3", "version: mine"), encoding="utf-8")
    arguments = ["demo", "--candidate", "my_release.yaml", "--rollouts", "6", "--artifacts", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "safety_lib", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "v1 -> mine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gate", "--junit", "{copy}/regression_tests.json"], "regression_tests.json: is read"),
        (["gate", "--markdown", "{copy}/stress_failures.json"], "stress_failures.json: is read"),
        (["gate", "--junit", "{copy}/gate_report.html"], "gate_report.html: is read"),
        (["gate", "--markdown", "{copy}"], "artifacts: is a folder"),
        (["gate", "--history", "{copy}/regression_tests.json"], "regression_tests.json: is read"),
        (["gate", "--junit", "/dev/null"], "null: is a device"),
        (["gate", "--junit", "{copy}/a.xml", "--markdown", "{copy}/a.xml"], "a.xml: is read"),
        (["export", "openai", "{copy}/incident_example.json"], "incident_example.json: is read"),
        (["stress", "--artifacts", "{copy}/stress_failures.json/x"], "(Not a directory)"),
        (["stress", "--artifacts", "{copy}/stress_failures.json"], "takes a folder, not the file"),
        (["replay", "--incident", "{copy}/incident_replay.json"], "incident_replay.json: is read"),
        (["stress", "--rollouts", "1000000000000"], "is not in the range 1<=x<=1000000"),
        (["gate", "--trials", "1000000000000"], "is not in the range"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    copy: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it had begun")

    monkeypatch.setattr("safety_lib.__main__._run", never)  # where every stage begins
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    given = [word.format(copy=copy) for word in arguments]
    where = [] if "--artifacts" in given else ["--artifacts", str(copy)]
    assert main([*given, *where]) == 3
    assert said in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


def test_a_page_never_stands_beside_another_report(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ["gate", "--trials", "1", "--artifacts", str(copy), "--junit", str(copy / "g.xml")]
    main(gate)
    before = (copy / "gate_report.json").read_bytes()
    places = []
    replace = os.replace

    def seen(part: Any, target: Any) -> None:
        pages = [(copy / name).exists() for name in ("gate_report.html", "g.xml")]
        places.append(((copy / "gate_report.json").read_bytes() == before, any(pages)))
        replace(part, target)

    monkeypatch.setattr(os, "replace", seen)
    main([*gate, "--candidate", "v3"])
    assert places[0] == (True, False)
    assert all(not old for old, _ in places[1:])


def test_a_suite_that_another_run_wrote_meanwhile_is_not_written_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safety_lib.incident import investigation

    investigate = investigation.investigate

    def meanwhile(*given: Any, **more: Any) -> Any:
        closed = investigate(*given, **more)
        suite = read_artifact(copy, Suite)
        write_artifact(copy, suite.model_copy(update={"seed": 8}))
        return closed

    monkeypatch.setattr(investigation, "investigate", meanwhile)
    given = ["replay", "--no-log", "--replays", "2", "--artifacts", str(copy)]
    assert main(given) == 3
    assert "another run wrote it meanwhile" in capsys.readouterr().err
    assert read_artifact(copy, Suite).seed == 8


def test_the_gate_writes_a_comment_and_junit_and_adds_to_the_history_once(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comment, junit, history = copy / "gate.md", copy / "gate.xml", copy / "gate_history.json"
    arguments = ["gate", "--trials", "1", "--artifacts", str(copy), "--history", str(history)]
    main([*arguments, "--candidate", "v3"])
    code = main([*arguments, "--markdown", str(comment), "--junit", str(junit)])
    verdict = {0: "OK", 1: "WARN", 2: "BLOCK"}[code]
    assert comment.read_text(encoding="utf-8").startswith(f"## Release gate: {verdict}\n")
    assert f'<property name="verdict" value="{verdict}" />' in junit.read_text(encoding="utf-8")
    kept = history.read_bytes()
    assert [line["candidate"] for line in json.loads(kept)["lines"] if line["release"]] == [
        "v3",
        "v2",
    ]
    page = (copy / "gate_report.html").read_bytes()
    assert b"2 releases, the oldest first" in page
    assert main(arguments) == code
    assert (history.read_bytes(), (copy / "gate_report.html").read_bytes()) == (kept, page)
    # A history that somebody rewrote is none, and what the gate did before stays as it is.
    history.write_bytes(kept.replace(b'"trials": 1', b'"trials": 2'))
    capsys.readouterr()
    assert main(arguments) == 3
    assert "gate_history.json: content differs" in capsys.readouterr().err
    assert (copy / "gate_report.html").read_bytes() == page


@pytest.mark.slow
def test_a_terminal_gets_progress_with_failures_and_no_colour(tmp_path: Path) -> None:
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    started = subprocess.Popen(
        [sys.executable, "-m", "safety_lib", "stress", "--rollouts", "60", "--artifacts", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(parent, 65536):
            shown += part
    os.close(parent)
    assert started.wait(timeout=60) == 0
    assert re.search(rb"\d+ conversations .*[/s].*\d+ failures", shown)
    assert b"Discovered" in shown
    assert not re.search(rb"\x1b\[[0-9;]*m", shown)


def test_the_recording_shows_what_the_readme_says() -> None:
    head, *events = (ROOT / ".github" / "demo.cast").read_text(encoding="utf-8").splitlines()
    assert json.loads(head)["version"] == 2
    times, kinds, texts = zip(*map(json.loads, events), strict=True)
    assert list(times) == sorted(times)
    assert set(kinds) == {"o"}
    shown = "".join(texts)
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```\n=== Step 1")[1]
    wanted = [line for line in block.split("```")[0].splitlines()[1:] if "Total time" not in line]
    assert [line for line in wanted if line not in shown] == []
    assert str(ROOT) not in shown
