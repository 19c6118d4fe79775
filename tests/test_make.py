"""What is given to make is data; an environment that does not work is made anew or explained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUB = """#!{python}
import json, pathlib, sys
if sys.argv[1] == "-c":
    sys.exit(0)
with pathlib.Path("asked.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment notes what it is asked to run."""
    folder = tmp_path / "check out"
    shutil.copytree(ROOT / ".lock", folder / ".lock")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB.format(python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    for stamp in ("made", "core"):
        (folder / ".venv" / stamp).touch()
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, list[list[str]]]:
    """Run make and return its exit code, what it said, and what its Python was asked to run."""
    asked = folder / "asked.jsonl"
    asked.unlink(missing_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = asked.read_text(encoding="utf-8").splitlines() if asked.exists() else []
    return done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines]


def demo(folder: Path, *given: str, **environment: str) -> list[str]:
    code, said, asked = make(folder, "demo", *given, **environment)
    assert code == 0, said
    assert asked[-1][:3] == ["-m", "safety_lib", "demo"]
    return asked[-1][3:]


@pytest.mark.parametrize(
    "value",
    [
        "my dir",
        "x; touch owned #",
        "$(shell touch owned)",
        "$$HOME ${HOME} `touch owned`",
        "it's 'quoted' \\\\ \"and\" *",
        "--yes",
        "a\nb",
    ],
)
def test_a_variable_is_data(checkout: Path, value: str) -> None:
    given = demo(checkout, f"ARTIFACTS={value}", f"MODEL={value}")
    assert given == [f"--model={value}", f"--artifacts={value}"]
    assert not (checkout / "owned").exists()


def test_every_variable_is_handed_on(checkout: Path) -> None:
    names = ("WORLD", "ROLLOUTS", "BASELINE", "CANDIDATE", "MODEL", "SEED", "ARTIFACTS")
    given = demo(checkout, *(f"{name}=1" for name in (*names, "MAX_CALLS", "LIVE")))
    assert given == [f"--{name.lower()}=1" for name in names] + ["--max-calls=1", "--live=1"]


def test_what_was_exported_for_another_program_does_not_count(checkout: Path) -> None:
    assert demo(checkout, SEED="3", MODEL="openai:x", YES="1", ARTIFACTS="elsewhere") == []


@pytest.mark.parametrize("yes", ["1", "y", "Yes", "TRUE"])
def test_yes_is_yes(checkout: Path, yes: str) -> None:
    assert demo(checkout, f"YES={yes}") == ["--yes"]


@pytest.mark.parametrize("no", ["no", "0", "false", "n", "", "yes please"])
def test_anything_else_is_not(checkout: Path, no: str) -> None:
    assert demo(checkout, f"YES={no}") == []


@pytest.mark.parametrize(
    ("model", "installs"),
    [
        ("openai:localhost-model", ["openai"]),
        ("local", ["local"]),
        ("record:tape.jsonl:local", ["local"]),
        ("record:openai:x.jsonl:simulated", []),
        ("cassette:local.jsonl", []),
        ("simulated", []),
    ],
)
def test_a_model_installs_what_it_needs_and_nothing_else(
    checkout: Path, model: str, installs: list[str]
) -> None:
    code, said, asked = make(checkout, "demo", f"MODEL={model}")
    assert code == 0, said
    locks = [given[-1] for given in asked if "--require-hashes" in given]
    assert locks == [f".lock/{name}.txt" for name in installs]


def test_an_environment_that_was_left_half_made_is_made_anew(checkout: Path) -> None:
    broken = checkout / ".venv" / "bin" / "python"
    broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    code, said, _ = make(checkout, ".venv/made", f"PYTHON={sys.executable}")
    assert (code, "does not work and is made anew" in said) == (0, True)
    code, said, _ = make(checkout, ".venv/made", "PYTHON=/nowhere/python")
    assert (code, "made anew" in said) == (0, False)


def test_a_python_without_pip_is_explained_however_often_it_is_tried(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    bare = checkout / "a python"
    bare.write_text(
        "#!/bin/sh\nmkdir -p .venv/bin\nprintf '#!/bin/sh\\nexit 1' > .venv/bin/python\n"
        "chmod +x .venv/bin/python\nexit 1\n",
        encoding="utf-8",
    )
    bare.chmod(0o755)
    for _ in range(2):
        code, said, _asked = make(checkout, "demo", "PYTHON=./a python")
        assert code == 2
        assert "error: ./a python cannot make an environment with pip in it" in said
        assert "apt install python3-venv" in said
