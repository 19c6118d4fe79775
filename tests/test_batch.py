"""The loop over a grid: what is run, what is not run again, and what is said where a run stops."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import a_batch, a_cell

from safety_lib.__main__ import main
from safety_lib.artifacts import CHECKOUT, ArtifactError, read_artifact, write_artifact
from safety_lib.experiments.claims import CLAIMS, ToldRun, run_typical_claims
from safety_lib.figures import tables
from safety_lib.pipeline.batch import csv_of_batch, plan_cell, run_batch
from safety_lib.pipeline.grid import (
    AXES,
    GridCell,
    GridError,
    combinations,
    grid_values,
    name_of_cell,
)
from safety_lib.pipeline.plan import COMMON, STAGES, load_plan
from safety_lib.pipeline.whole_run import read_loop
from safety_lib.records import Batch
from safety_lib.report.summary import batch_lines

SAMPLES = CHECKOUT / "artifacts"
FILES = {
    "stress_testing": "StressFailures",
    "regression": "Suite",
    "release_gate": "GateReport",
    "incident_replay": "IncidentReport",
}


def quick_notebooks(folder: Path) -> Path:
    """Four notebooks that take seconds: each leaves the sample artifact of its stage."""
    folder.mkdir()
    for stage, parameters in load_plan().items():
        given = {**parameters, "artifacts_dir": ""}
        lines = [f"{name} = {value!r}" for name, value in given.items()]
        work = [
            "from pathlib import Path",
            "from safety_lib import records",
            "from safety_lib.artifacts import read_artifact, write_artifact",
            f"found = read_artifact({str(SAMPLES)!r}, records.{FILES[stage]})",
            "if seed == 3: raise ValueError('no luck in ' + artifacts_dir)",
            "write_artifact(artifacts_dir, found.model_copy(update={'seed': seed}))",
            "with Path(artifacts_dir, 'ran.txt').open('a') as log: log.write('x')",
        ]
        cells = [
            code("\n".join(lines), tags=["parameters"]),
            code("\n".join(work), tags=[]),
        ]
        name = f"{STAGES[stage]}.ipynb"
        shape = {"metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5, "cells": cells}
        (folder / name).write_text(json.dumps(shape), encoding="utf-8")
    return folder


KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def code(source: str, tags: Sequence[str]) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": "a" + str(len(tags)),
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_notebooks(tmp_path_factory.mktemp("quick") / "notebooks")


def cells_of(folder: Path, notebooks: Path, grid: Mapping[str, Sequence[Any]]) -> list[GridCell]:
    return [replace(plan_cell(folder, asked), notebooks=notebooks) for asked in combinations(grid)]


def runs_of(folder: Path) -> dict[str, int]:
    """How often the notebooks of each cell ran."""
    return {path.parent.name: len(path.read_text()) // 4 for path in folder.glob("*/ran.txt")}


# --------------------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("text", "whole", "values"),
    [
        ("7", True, (7,)),
        ("1..4", True, (1, 2, 3, 4)),
        ("-2..1, 9", True, (-2, -1, 0, 1, 9)),
        ("v2,mine/v4.yaml", False, ("v2", "mine/v4.yaml")),
        ("1..3", False, ("1..3",)),
    ],
)
def test_a_word_names_values(text: str, whole: bool, values: tuple[Any, ...]) -> None:
    assert grid_values(text, whole=whole) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a value is missing"),
        ("1,,2", "a value is missing"),
        ("20..1", "write 1..20"),
        ("1..3,2", "2 stands there twice"),
        ("1.5", "no whole number"),
        ("1...3", "no whole number"),
        ("٣x", "no whole number"),
        ("1..99999999999999999", "more than 10,000"),
        ("9" * 5000, "no whole number"),
    ],
)
def test_a_bad_word_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(GridError, match=said) as refused:
        grid_values(text, whole=True)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_every_combination_is_a_cell_and_the_seed_changes_fastest() -> None:
    cells = list(combinations({"seed": [1, 2], "candidate": ["v2", "v3"]}))
    assert [(c["candidate"], c["seed"]) for c in cells] == [
        ("v2", 1),
        ("v2", 2),
        ("v3", 1),
        ("v3", 2),
    ]


@pytest.mark.parametrize(
    "grid", [{"sead": [1]}, {"seed": []}, {"seed": range(200), "log": "a" * 51}]
)
def test_what_is_no_grid_is_refused(grid: Any) -> None:
    with pytest.raises(GridError):
        list(combinations(grid))


def test_every_parameter_of_the_plan_can_be_varied() -> None:
    plan = load_plan()
    assert set(AXES) == {*COMMON, *(name for stage in plan.values() for name in stage)}


def test_names_are_safe_and_differ_where_values_do() -> None:
    values = ["v2", "a/v2", "../v2", "v2,seed=1", "é", "x" * 300, ".", "a/b/", "A=B", "-"]
    names = [name_of_cell({"candidate": value}) for value in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name and len(name) < 60 and name.isascii()
        assert name.count(",") == 0 and name.count("=") == 1


def test_a_key_tells_what_a_result_depends_on_and_not_where_it_lies(
    notebooks: Path, tmp_path: Path
) -> None:
    (here,) = cells_of(tmp_path, notebooks, {"seed": [1]})
    (there,) = cells_of(tmp_path / "x", notebooks, {"seed": [1]})
    assert here.key == there.key
    others = [
        cells_of(tmp_path, notebooks, grid)[0].key
        for grid in ({"seed": [2]}, {"seed": [1], "rollouts": [5]}, {"seed": [1], "fixed": ["v2"]})
    ]
    assert len({here.key, replace(here, notebooks=CHECKOUT / "notebooks").key, *others}) == 5


def test_a_file_counts_by_what_it_holds(notebooks: Path, tmp_path: Path) -> None:
    incident = tmp_path / "mine.json"
    incident.write_text("{}")
    (before,) = cells_of(tmp_path, notebooks, {"incident": [str(incident)]})
    key = before.key
    incident.write_text("[]")
    (after,) = cells_of(tmp_path, notebooks, {"incident": [str(incident)]})
    assert after.key != key


# --------------------------------------------------------------------------- the batch


GO = """
import sys
from dataclasses import replace
from pathlib import Path
from safety_lib.pipeline.batch import plan_cell, run_batch
from safety_lib.pipeline.grid import combinations

if __name__ == "__main__":
    folder, notebooks = Path("out"), Path(sys.argv[1])
    cells = [plan_cell(folder, asked) for asked in combinations({"seed": [1, 3]})]
    cells = [replace(cell, notebooks=notebooks) for cell in cells]
    run_batch(cells, folder, workers=1, say=lambda line: print(line, flush=True))
"""


def test_a_batch_goes_on_where_it_was_killed(notebooks: Path, tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(GO, encoding="utf-8")
    command = [sys.executable, "go.py", str(notebooks)]
    out = tmp_path / "out"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("[1/2] seed=1: BLOCK")
        running.send_signal(signal.SIGKILL)
    assert not (out / "batch.json").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 of 2 runs are finished and are not run again")
    assert runs_of(out) == {"seed=1": 1}
    # A run that stops is named with its cell and its error, and the others are not lost.
    first = read_artifact(out, Batch)
    assert [cell.verdict for cell in first.cells] == ["BLOCK", "failed"]
    assert first.cells[1].error == "01_stress_testing stopped at In [3]: ValueError: no luck in ."
    assert "[2/2] seed=3: failed, 01_stress_testing stopped at In [3]" in done.stdout
    # What somebody changed meanwhile is run again; the bytes are those of any number of workers.
    written = (out / "batch.json").read_bytes()
    report = out / "seed=1" / "gate_report.json"
    report.write_text(report.read_text().replace("BLOCK", "OK"))
    run_batch(cells_of(out, notebooks, {"seed": [1, 3]}), out, workers=2, say=lambda _: None)
    assert runs_of(out) == {"seed=1": 2}
    assert (out / "batch.json").read_bytes() == written


# --------------------------------------------------------------------------- what it tells


def test_the_table_has_a_line_for_each_run() -> None:
    lines = batch_lines(a_batch())
    assert lines[0].split()[:3] == ["candidate", "seed", "verdict"]
    assert [line.split()[2] for line in lines[1:]] == ["BLOCK", "WARN", "OK", "none", "failed"]
    assert lines[-1].endswith("=1+1 stopped")
    assert "memory.pin_policy + memory.window" in lines[1]
    shown = tables.batch_table(a_batch())
    assert list(shown["verdict"]) == ["BLOCK", "WARN", "OK", "none", "failed"]
    assert shown["cause"].iloc[-1] == "=1+1 stopped"


def test_a_spreadsheet_reads_no_formula() -> None:
    rows = list(csv.DictReader(csv_of_batch(a_batch()).splitlines()))
    assert [row["verdict"] for row in rows] == ["BLOCK", "WARN", "OK", "", ""]
    assert rows[-1]["error"] == "'=1+1 stopped"
    assert float(rows[1]["delta"]) == -0.1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"incident_k": 41}, "incident_k is 41 of 40"),
        ({"ci_low": None}, "a difference without its interval"),
        ({"ci_low": 0.5, "ci_high": 0.1}, "the interval is 0.5 to 0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_artifact(tmp_path, a_batch(a_cell(1, **changed)))
    with pytest.raises(ArtifactError, match=said):
        read_artifact(tmp_path, Batch)


def test_a_cell_stands_there_once(tmp_path: Path) -> None:
    write_artifact(tmp_path, a_batch(a_cell(1), a_cell(1)))
    with pytest.raises(ArtifactError, match="stands there twice"):
        read_artifact(tmp_path, Batch)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "5..1"], "runs backwards: write 1..5"),
        (["--rollouts", "0"], "0 is not in the range"),
        (["--candidate", "v2,v9"], "no version 'v9'"),
        (["--world", "northwind,mars"], "no world 'mars'"),
        (["--attacker", "shouting"], "unknown attacker 'shouting'"),
        (["--incident", "nowhere.json"], "there is no file nowhere.json"),
        (["--fixed", "v8"], "no version 'v8'"),
        (["--seed", "1..10000", "--candidate", "v2,v3"], "20,000 runs"),
        (["--artifacts", "pyproject.toml"], "takes a folder"),
    ],
)
def test_a_bad_grid_is_one_line_and_no_verdict(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [] if "--artifacts" in arguments else ["--artifacts", str(tmp_path / "out")]
    assert main(["batch", *where, *arguments]) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- the claims


def test_the_claims_hold_on_the_committed_run() -> None:
    run = ToldRun(read_loop(SAMPLES), CHECKOUT / "notebooks")
    assert [claim.sentence for claim in CLAIMS if not claim.holds(run)] == []


@pytest.mark.slow
def test_the_claims_hold_on_fresh_seeds(tmp_path: Path) -> None:
    counted = run_typical_claims((101, 102), tmp_path).result
    never = [claim.sentence for claim in counted.claims if len(claim.missed) == 2]
    assert never == []
