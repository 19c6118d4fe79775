"""One list of packages: pyproject, the pins and the conda file say the same."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / ".constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", name)[0]).lower()


def test_every_dependency_is_pinned() -> None:
    pinned = {normal(name) for name in PINS}
    listed = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    assert {normal(name) for name in listed} <= pinned


def test_pins_name_nothing_twice_and_no_place() -> None:
    names = [normal(name) for name in PINS]
    assert len(names) == len(set(names))
    assert "@" not in (ROOT / ".constraints.txt").read_text(encoding="utf-8")


def test_the_conda_file_installs_this_package_with_these_pins() -> None:
    tree = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(part["pip"] for part in tree["dependencies"] if isinstance(part, dict))
    assert pip == ["-c .constraints.txt", "-e ."]
    python = next(p for p in tree["dependencies"] if str(p).startswith("python="))
    assert python.split("=")[1] in ("3.11", "3.12", "3.13")


def test_the_extras_are_those_of_the_design() -> None:
    assert set(PROJECT["optional-dependencies"]) == {
        *("openai", "local", "dask", "dev"),
        *("openai-agents", "langgraph", "mcp", "agentdojo"),
    }


def test_every_package_file_is_shipped() -> None:
    import fnmatch

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["safety_lib"]
    suffixes = {Path(p).suffix or p for p in patterns}
    for path in (ROOT / "safety_lib").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            shipped = path.suffix in suffixes or any(
                fnmatch.fnmatch(path.name, p) for p in patterns
            )
            assert shipped, path
