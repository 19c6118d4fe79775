"""The exercises: each solution that a notebook shows is right, and only then."""

import ast
import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

from safety_lib.exercises import NOT_TRIED, RIGHT, Exercise, check
from safety_lib.pipeline import NOTEBOOKS, STAGES

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>.*?```python\n(.*?)```", re.DOTALL)


def with_exercises() -> list[str]:
    return [
        stem
        for stem in STAGES.values()
        if "exercise-1" in (NOTEBOOKS / f"{stem}.ipynb").read_text()
    ]


@pytest.fixture(scope="module", params=with_exercises())
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run a notebook here, and return its cells with what each exercise says, and its names."""
    here = tmp_path_factory.mktemp("run")
    shutil.copytree(ARTIFACTS, here / "artifacts", ignore=shutil.ignore_patterns("runs", "site"))
    (here / "notebooks").mkdir()
    cells = nbformat.read(NOTEBOOKS / f"{request.param}.ipynb", as_version=4).cells
    names: dict[str, Any] = {"display": lambda *_: None}
    before = Path.cwd()
    os.chdir(here / "notebooks")
    shown = plt.show
    plt.show = lambda *_, **__: plt.close("all")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            said = {
                cell.id: value_of(cell.source, names) for cell in cells if cell.cell_type == "code"
            }
        yield cells, said, names
    finally:
        plt.show = shown
        os.chdir(before)


def value_of(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of its last line is what it shows."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None


def test_each_exercise_can_be_solved_as_its_solution_says(told: Any) -> None:
    cells, said, names = told
    exercises = [n for n, cell in enumerate(cells) if cell.id.startswith("exercise-")]
    exercises = [n for n in exercises if cells[n].cell_type == "code"]
    assert len(exercises) == 3
    for n in exercises:
        cell = cells[n]
        assert cell.source.count("answer = ...") == 1, cell.id
        assert said[cell.id] == NOT_TRIED, cell.id
        found = SOLUTION.search(cells[n + 1].source)
        assert found, f"{cell.id}: the solution stands in the cell below it"
        solved = cell.source.replace("answer = ...", found[1].strip())
        assert value_of(solved, dict(names)) == RIGHT, cell.id
        for wrong in ("answer = -12345", "answer = 'nonsense'", "answer = None", "answer = []"):
            reply = value_of(cell.source.replace("answer = ...", wrong), dict(names))
            assert reply.startswith("Not yet. "), (cell.id, wrong)


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (3, 3.0, 4),
        (0.25, 0.25, 0.26),
        ("memory.window", " Memory.Window ", "memory"),
        (True, True, 1),
        ({"a", "b"}, ["b", "a"], ["a"]),
        ((1, 2), [1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 1}, {"a": 2}),
        (None, None, 0),
    ],
)
def test_an_answer_is_compared_as_a_reader_would(expected: Any, right: Any, wrong: Any) -> None:
    exercise = Exercise(lambda: expected, "Look again.")
    assert check(exercise, right) == RIGHT
    assert check(exercise, wrong).startswith("Not yet.")
    assert check(exercise, ...) == NOT_TRIED


def test_numbers_may_be_rounded_as_far_as_the_exercise_says() -> None:
    exercise = Exercise(lambda: 0.123, "", within=0.005)
    assert [check(exercise, x) == RIGHT for x in (0.12, 0.128, 0.13)] == [True, True, False]


def test_an_exercise_never_raises() -> None:
    exercise = Exercise(lambda found: found.missing, "Run the cells above.")
    assert check(exercise, 1, object()) == (
        "Not yet. This could not be compared (AttributeError). Run the cells above."
    )
    assert check(Exercise(lambda: 1, "A number."), object()).endswith("A number.")
