"""Whoever starts a notebook, from whichever folder: artifacts are found, and paths mean one thing.

Everything runs in a copy of the checkout, so that nothing here is written to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safety_lib.artifacts import CHECKOUT, read_artifact
from safety_lib.records import GateReport, IncidentReport, StressFailures, Suite

pytestmark = pytest.mark.slow

V3 = CHECKOUT / "safety_lib" / "worlds" / "northwind" / "versions" / "v3.yaml"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("checkout")
    for folder in ("notebooks", "artifacts", "safety_lib"):
        left_out = shutil.ignore_patterns("runs", "site", "__pycache__")
        shutil.copytree(CHECKOUT / folder, here / folder, ignore=left_out)
    return here


def python(checkout: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_papermill_finds_the_artifacts_from_any_folder(checkout: Path, tmp_path: Path) -> None:
    def papermill(stem: str, cwd: Path, **parameters: object) -> None:
        given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
        notebook = os.path.relpath(checkout / "notebooks" / f"{stem}.ipynb", cwd)
        out = str(tmp_path / "out.ipynb")
        done = python(checkout, cwd, "papermill", notebook, out, "--no-progress-bar", *given)
        assert done.returncode == 0, done.stderr[-2000:]

    results, seed = checkout / "artifacts", 8
    papermill("01_stress_testing", tmp_path, rollouts=6, seed=seed)
    assert {s.rollouts for s in read_artifact(results, StressFailures).summary} == {6}
    papermill("02_regression_tests", checkout / "notebooks", replays=4, seed=seed)
    assert read_artifact(results, Suite).seed == seed
    papermill("03_release_gate", checkout, trials=2, max_tests=4, seed=seed)
    assert read_artifact(results, GateReport).seed == seed
    # A path that is given counts from the folder that it is given in.
    (tmp_path / "mine").mkdir()
    shutil.copy(results / "regression_tests.json", tmp_path / "mine")
    shutil.copy(results / "incident_example.json", tmp_path / "mine.json")
    small = {"replays": 4, "trials": 1, "max_tests": 2, "audit": 100, "seed": seed}
    log = results / "production_log.parquet"
    papermill(
        "04_incident_replay", tmp_path, **small, artifacts_dir="mine", incident="mine.json", log=log
    )
    assert read_artifact(tmp_path / "mine", IncidentReport).seed == seed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.json", "out.ipynb"]


def test_the_demo_takes_paths_from_the_folder_that_it_is_called_in(
    checkout: Path, tmp_path: Path
) -> None:
    text = V3.read_text(encoding="utf-8").replace("version: v3", "version: next")
    (tmp_path / "my_release.yaml").write_text(text, encoding="utf-8")
    arguments = ["--candidate", "my_release.yaml", "--rollouts", "4", "--artifacts", "mine"]
    done = python(checkout, tmp_path, "safety_lib", "demo", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_artifact(tmp_path / "mine", GateReport).candidate == "next"
    written = [path for path in (tmp_path / "mine").rglob("*.*") if path.parent.name != "runs"]
    assert len(written) > 10
    named = [p.name for p in written if str(tmp_path) in p.read_text() or "my_rel" in p.read_text()]
    assert named == []  # what is kept and compared holds no path of a machine


def test_a_library_without_a_checkout_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(checkout / "safety_lib", installed / "safety_lib")
    demo = python(installed, tmp_path, "safety_lib", "demo")
    assert (demo.returncode, demo.stderr.count("\n")) == (3, 1)
    assert "the notebooks belong to a checkout, so clone the repository" in demo.stderr
    measured = python(installed, tmp_path, "safety_lib.experiments", "safeguard_faults")
    assert (measured.returncode, measured.stderr.count("\n")) == (3, 1)
    assert "clone the repository" in measured.stderr
    assert not (installed / "artifacts").exists()
    # The notebooks of a checkout that was never installed.
    notebook = str(checkout / "notebooks" / "02_regression_tests.ipynb")
    opened = python(installed, tmp_path, "papermill", notebook, "out.ipynb", "--no-progress-bar")
    assert opened.returncode != 0
    cells = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
    [said] = [o["evalue"] for c in cells for o in c.get("outputs", ()) if o.get("evalue")]
    assert said.startswith("this safety_lib was installed without a checkout")
