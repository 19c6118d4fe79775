"""The exercises: each solution that a notebook shows is right, and only then."""

import ast
import contextlib
import copy
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

from safety_lib.exercises import NOT_TRIED, RIGHT, Exercise, check
from safety_lib.pipeline import NOTEBOOKS, STAGES

ARTIFACTS = NOTEBOOKS.parent / "artifacts"
WRONG = "```python\nanswer = -12345\n```"
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


def faults(cells: list[Any], said: dict[str, Any], names: dict[str, Any]) -> list[str]:
    """Return what is wrong with the exercises of a notebook that was run."""
    places = [n for n, cell in enumerate(cells) if cell.id.startswith("exercise-")]
    places = [n for n in places if cells[n].cell_type == "code"]
    found = [] if len(places) == 3 else [f"{len(places)} exercises"]
    for n in places:
        cell = cells[n]
        if cell.source.count("answer = ...") != 1 or said[cell.id] != NOT_TRIED:
            found.append(f"{cell.id} is not open")
        solution = SOLUTION.search(cells[n + 1].source)
        if solution is None:
            found.append(f"{cell.id} has no solution in the cell below it")
            continue
        solved = cell.source.replace("answer = ...", solution[1].strip())
        if (reply := value_of(solved, dict(names))) != RIGHT:
            found.append(f"{cell.id}, its solution: {reply}")
        for wrong in ("answer = -12345", "answer = 'nonsense'", "answer = None", "answer = []"):
            reply = value_of(cell.source.replace("answer = ...", wrong), dict(names))
            if not reply.startswith("Not yet. "):
                found.append(f"{cell.id}, {wrong}: {reply}")
    return found


@pytest.mark.slow
def test_each_exercise_can_be_solved_as_its_solution_says(told: Any) -> None:
    assert faults(*told) == []


@pytest.mark.slow
def test_a_broken_exercise_is_noticed(told: Any) -> None:
    cells, said, names = told
    ids = [cell.id for cell in cells]

    def broken(place: int, change: Callable[[str], str]) -> list[str]:
        changed = copy.deepcopy(cells)
        changed[place].source = change(changed[place].source)
        return faults(changed, said, names)

    for name in ("exercise-1", "exercise-2", "exercise-3"):
        n = ids.index(name)
        wrong = broken(n + 1, lambda text: re.sub("```python\n.*?```", WRONG, text, flags=re.S))
        assert len(wrong) == 1
        assert wrong[0].startswith(f"{name}, its solution: Not yet. ")
        gone = broken(n + 1, lambda text: text.replace("<details>", ""))
        assert gone == [f"{name} has no solution in the cell below it"]
        given = broken(n, lambda text: text.replace("answer = ...", "answer = 1"))
        assert f"{name} is not open" in given
        lenient = broken(n, lambda text: re.sub(r"(?m)^check\(.*", "'Right.'", text))
        assert f"{name}, answer = None: Right." in lenient
    assert "2 exercises" in faults([c for c in cells if c.id != "exercise-2"], said, names)


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
