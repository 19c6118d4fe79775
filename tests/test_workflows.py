"""The workflows of CI: what a person types cannot run, and exit codes become the right result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
ACTION = ROOT / ".github" / "actions" / "safety-gate" / "action.yml"
OF_AN_AGENT = {
    "SUITE": "artifacts/regression_tests.json",
    "EXCEPTIONS": "artifacts/gate_exceptions.yaml",
    "HISTORY": "artifacts/gate_history.json",
    "PROPOSED": "proposed",
    **dict.fromkeys(("RESULTS_BASELINE", "RESULTS_CANDIDATE"), ""),
    **dict.fromkeys(("FAMILY", "STRATUM", "SEVERITY", "PASSES"), ""),
}
RELEASED = {
    "actions/checkout": ("de0fac2e4500dabe0009e67214ff5f5447ce83dd", "v6.0.2"),
    "actions/setup-python": ("e797f83bcb11b83ae66e0230d6156d7c80228e7c", "v6.0.0"),
    "actions/upload-artifact": ("b7c566a772e6b6bfb58ed0dc250532a479d7789f", "v6.0.0"),
}
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]  # as the runner starts it


def load(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in tree.items()}


def steps_of(path: Path) -> list[dict[str, Any]]:
    tree = load(path)
    if path == ACTION:
        return list(tree["runs"]["steps"])
    return [step for job in tree["jobs"].values() for step in job["steps"]]


def script(name: str) -> str:
    return str(next(step["run"] for step in steps_of(ACTION) if step.get("name") == name))


def test_both_workflows_are_there() -> None:
    assert [path.name for path in FILES] == ["safety-gate.yml", "test.yml"]


@pytest.mark.parametrize("path", [*FILES, ACTION], ids=lambda path: path.name)
def test_no_script_holds_an_expression(path: Path) -> None:
    scripts = [step["run"] for step in steps_of(path) if "run" in step]
    assert scripts or path.name == "safety-gate.yml"
    assert not [text for text in scripts if "${{" in text]
    # Not even on the way to one: a name that a stranger chooses is in the event.
    assert "github.event" not in path.read_text(encoding="utf-8")
    assert "github.head_ref" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_do_as_little_as_it_needs(path: Path) -> None:
    tree = load(path)
    assert tree["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in tree["jobs"].values())
    assert "pull_request" in tree["on"]
    # This one would run a stranger's code with the repository's own rights.
    assert "pull_request_target" not in tree["on"]
    assert tree["concurrency"]["cancel-in-progress"] is True
    assert all(job["timeout-minutes"] <= 60 for job in tree["jobs"].values())
    assert "secrets." not in path.read_text(encoding="utf-8")
    for step in steps_of(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", [*FILES, ACTION], ids=lambda path: path.name)
def test_actions_are_pinned_to_the_commits_of_releases(path: Path) -> None:
    used = re.findall(r"uses: (\S+)@(\S+) # (\S+)", path.read_text(encoding="utf-8"))
    others = [step["uses"] for step in steps_of(path) if "uses" in step]
    assert len(used) == sum(not name.startswith("./") for name in others)
    for name, commit, tag in used:
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert RELEASED[name] == (commit, tag)


def test_who_is_judged_does_not_choose_the_judge() -> None:
    judges, proposed = (
        step["with"]
        for step in steps_of(FOLDER / "safety-gate.yml")
        if step.get("uses", "").startswith("actions/checkout@")
    )
    assert judges["ref"] == "${{ github.base_ref || github.ref }}"
    assert "path" not in judges
    assert (proposed["path"], "ref" in proposed) == ("proposed", False)
    (own,) = [s for s in steps_of(FOLDER / "safety-gate.yml") if s["uses"].startswith("./")]
    assert own["uses"] == "./.github/actions/safety-gate"  # the base branch's
    assert script("Install").startswith('cd -- "$GITHUB_ACTION_PATH/../../.."')
    assert script("Judge").count("$PROPOSED/") == 2


def test_the_action_gives_its_scripts_every_input_and_takes_its_own_files() -> None:
    tree = load(ACTION)
    assert tree["runs"]["using"] == "composite"
    text = ACTION.read_text(encoding="utf-8")
    for name in tree["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in text, name
    used = {step["with"][name] for step in [own_step()] for name in step["with"]}
    assert all(value.startswith("${{") for value in used)
    assert own_step()["with"].keys() <= tree["inputs"].keys()
    folder = ACTION.parent / ".." / ".." / ".."
    assert folder.resolve() == ROOT and (folder / ".lock" / "core.txt").is_file()


def own_step() -> dict[str, Any]:
    steps = steps_of(FOLDER / "safety-gate.yml")
    return next(step for step in steps if step["uses"].startswith("./"))


def test_tests_run_on_every_python_that_the_project_promises() -> None:
    import tomllib

    job = load(FOLDER / "test.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [
        "make test PYTHON=python",
        "make lint PYTHON=python",
    ]
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["requires-python"] == ">=3.11,<3.14"


# --------------------------------------------------------------------------- what the scripts do


def run(name: str, folder: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    fixed = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OUT": str(folder / "gate"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
    }
    return subprocess.run(
        [*BASH, script(name)],
        env=fixed | OF_AN_AGENT | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def stub(folder: Path, body: str) -> None:
    """Put a command named python before the real one."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "python"
    command.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    command.chmod(0o755)


def code_of(folder: Path) -> str:
    return (folder / "output").read_text(encoding="utf-8").strip().removeprefix("code=")


REPORT = 'mkdir -p "$OUT"; echo "{}" > "$OUT/gate_report.json"; echo "## gate" > "$OUT/gate.md"'


@pytest.mark.parametrize(
    ("exits", "written", "result", "said"),
    [
        (0, REPORT, 0, "::notice title=Safety gate::OK"),
        (1, REPORT, 1, "::error title=Safety gate::WARN"),
        (2, REPORT, 2, "::error title=Safety gate::BLOCK"),
        (3, REPORT, 3, "::error title=Safety gate::no verdict"),
        (139, REPORT, 3, "::error title=Safety gate::no verdict"),
        # A crash of Python itself is 1 and must not pass for a WARN; nor silence for an OK.
        (1, ":", 3, "::error title=Safety gate::no verdict"),
        (0, ":", 3, "::error title=Safety gate::no verdict"),
        (2, ":", 3, "::error title=Safety gate::no verdict"),
    ],
)
def test_exit_codes_become_results(
    tmp_path: Path, exits: int, written: str, result: int, said: str
) -> None:
    stub(tmp_path, f"{written}; exit {exits}")
    judged = run("Judge", tmp_path, tmp_path, BASELINE="v1", CANDIDATE="v2", TRIALS="10")
    assert judged.returncode == 0, judged.stderr
    assert run("Summary", tmp_path, tmp_path).returncode == 0
    summary = (tmp_path / "summary").read_text(encoding="utf-8")
    assert summary.startswith("## gate" if written == REPORT else "## Release gate: NO VERDICT")
    done = run("Verdict", tmp_path, tmp_path, CODE=code_of(tmp_path))
    assert (done.returncode, said in done.stdout) == (result, True)


def test_a_warning_passes_where_the_repository_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for allowed, code in (("true", 0), ("", 1), ("false", 1)):
        done = run("Verdict", tmp_path, tmp_path, CODE="1", WARN_PASSES=allowed)
        assert done.returncode == code
        assert "Safety gate::WARN" in done.stdout


def test_the_candidate_comes_from_the_pull_request_and_exceptions_from_the_base(
    tmp_path: Path,
) -> None:
    stub(tmp_path, f'{REPORT}; printf "%s\\n" "$@" > "$OUT/arguments"')
    (tmp_path / "proposed" / "artifacts").mkdir(parents=True)
    (tmp_path / "proposed" / "next.yaml").write_text("", encoding="utf-8")
    theirs = tmp_path / "proposed" / "artifacts" / "gate_exceptions.yaml"
    theirs.write_text("", encoding="utf-8")
    for ours in (False, True):
        if ours:
            (tmp_path / "artifacts").mkdir()
            (tmp_path / "artifacts" / theirs.name).write_text("", encoding="utf-8")
        run("Judge", tmp_path, tmp_path, BASELINE="v1", CANDIDATE="next.yaml", TRIALS="60")
        given = (tmp_path / "gate" / "arguments").read_text(encoding="utf-8").splitlines()
        assert "--candidate=proposed/next.yaml" in given
        assert ("--exceptions=artifacts/gate_exceptions.yaml" in given) is ours


def test_a_report_that_was_there_before_is_no_verdict(tmp_path: Path) -> None:
    stub(tmp_path, "exit 0")
    (tmp_path / "gate").mkdir()
    for name in ("gate_report.json", "gate.md"):
        (tmp_path / "gate" / name).write_text("left by somebody", encoding="utf-8")
    run("Judge", tmp_path, tmp_path, BASELINE="v1", CANDIDATE="v2", TRIALS="10")
    assert code_of(tmp_path) == "3"


def test_a_gate_that_never_started_is_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert run("Verdict", tmp_path, tmp_path, CODE="").returncode == 3


@pytest.mark.parametrize(
    "typed",
    [
        "$(touch pwned)",
        "`touch pwned`",
        '"; touch pwned; "',
        "x' ; touch pwned ; '",
        "--help",
        "a b *",
        "v2\ntouch pwned",
    ],
)
def test_what_a_person_types_stays_one_argument(tmp_path: Path, typed: str) -> None:
    stub(tmp_path, f'printf "%s\\0" "$@" > "$OUT/arguments"; {REPORT}')
    run("Judge", tmp_path, tmp_path, BASELINE=typed, CANDIDATE=typed, TRIALS=typed)
    arguments = (tmp_path / "gate" / "arguments").read_text(encoding="utf-8").split("\0")
    for option in ("--baseline", "--candidate", "--trials"):
        assert arguments.count(f"{option}={typed}") == 1
    assert not list(tmp_path.rglob("pwned"))


def test_a_line_of_the_gate_is_no_command_for_the_runner(tmp_path: Path) -> None:
    stub(tmp_path, f"echo '::error::all is lost'; {REPORT}")
    done = run("Judge", tmp_path, tmp_path, BASELINE="v1", CANDIDATE="v2", TRIALS="10")
    first, *between, last = done.stdout.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert between == ["::error::all is lost"]
    assert last == f"::{token}::"


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "code"), [("v2", "2"), ("--help", "3"), ("v9", "3")])
def test_the_real_gate_takes_what_the_workflow_gives_it(
    tmp_path: Path, candidate: str, code: str
) -> None:
    stub(tmp_path, f'exec "{sys.executable}" "$@"')
    run("Judge", tmp_path, ROOT, BASELINE="v1", CANDIDATE=candidate, TRIALS="2")
    assert code_of(tmp_path) == code
    assert (tmp_path / "gate" / "gate_report.html").exists() == (code == "2")
    assert (tmp_path / "gate" / "gate.xml").exists() == (code == "2")


def test_results_go_to_the_gate_as_they_were_typed(tmp_path: Path) -> None:
    stub(tmp_path, f'printf "%s\\0" "$@" > "$OUT/arguments"; {REPORT}')
    given = {
        "RESULTS_BASELINE": "$(touch pwned) old.eval",
        "RESULTS_CANDIDATE": "new; touch pwned",
        "PASSES": "score >= 0.5",
        "FAMILY": "metadata.rule",
        "CANDIDATE": "pull 7",
    }
    run("Judge", tmp_path, tmp_path, BASELINE="", TRIALS="60", **given)
    arguments = (tmp_path / "gate" / "arguments").read_text(encoding="utf-8").split("\0")
    at = arguments.index("--results")
    assert arguments[at + 1 : at + 3] == list(given.values())[:2]
    assert "--pass=score >= 0.5" in arguments and "--candidate=pull 7" in arguments
    assert not any(each.startswith(("--suite", "--baseline", "--trials")) for each in arguments)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_the_real_gate_takes_results_from_the_action(tmp_path: Path) -> None:
    stub(tmp_path, f'exec "{sys.executable}" "$@"')
    for name, bad in (("old", 1), ("new", 9)):
        rows = [
            f"t{t},{'fail' if k < bad else 'pass'},f{t % 4}" for t in range(8) for k in range(30)
        ]
        text = "\n".join(["test,outcome,family", *rows])
        (tmp_path / f"{name}.csv").write_text(text + "\n", encoding="utf-8")
    files = [str(tmp_path / f"{name}.csv") for name in ("old", "new")]
    sides = {"RESULTS_BASELINE": files[0], "RESULTS_CANDIDATE": files[1]}
    run("Judge", tmp_path, ROOT, BASELINE="", CANDIDATE="", TRIALS="60", **sides)
    assert code_of(tmp_path) == "2"
    assert (tmp_path / "gate" / "gate_report.html").exists()
