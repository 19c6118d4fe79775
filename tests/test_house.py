"""One name stands for one thing, and nothing is too large to be read in one sitting."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from safety_lib.world import HOOKS

PACKAGE = Path(__file__).resolve().parent.parent / "safety_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_PARAMETERS = 8
MOST_LINES_OF_A_FUNCTION = 80
MOST_LINES_OF_A_MODULE = 700
# Every experiment, a record each, and nothing but their fields.
LARGE = {"records/experiments.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(module: ast.Module) -> Iterator[str]:
    """Names that a module defines at its top: functions, classes and constants."""
    for node in module.body:
        targets: list[ast.expr] = []
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def functions() -> Iterator[tuple[str, Function]]:
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                yield f"{path.relative_to(PACKAGE)}: {node.name}", node


def parameters_of(function: Function) -> int:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def length_of(function: Function) -> int:
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    told = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - told


def test_no_public_name_stands_in_two_modules() -> None:
    homes: defaultdict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        hooks = HOOKS if path.parent.parent.name == "worlds" and path.stem == "world" else ()
        for name in public_names(tree(path)):
            if not name.startswith("_") and name not in hooks:
                homes[name].add(str(path.relative_to(PACKAGE)))
    # No module knows of two worlds, so they may call theirs alike.
    twice = {name: sorted(found) for name, found in homes.items() if len(found) > 1}
    assert {n: found for n, found in twice.items() if not all("worlds/" in f for f in found)} == {}


def test_no_file_name_stands_twice() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        if not path.stem.startswith("__") and path.parent.parent.name != "worlds":
            homes[path.stem].append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_a_function_takes_few_parameters() -> None:
    many = [
        name
        for name, function in functions()
        if parameters_of(function) > MOST_PARAMETERS and not name.startswith("__main__.py")
    ]
    assert many == []


def test_a_function_is_short() -> None:
    assert [n for n, f in functions() if length_of(f) > MOST_LINES_OF_A_FUNCTION] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES_OF_A_MODULE or str(path.relative_to(PACKAGE)) in LARGE
