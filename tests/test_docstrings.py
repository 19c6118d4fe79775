"""What takes three parameters or more says what they are, what comes back and what is raised."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "safety_lib"
FEWEST_PARAMETERS = 3


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Public functions of a module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, Function) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node


def parameters(function: Function, *, bound: bool) -> list[str]:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    names = names[1:] if bound and not static else names
    return names + [a.arg for a in (given.vararg, *given.kwonlyargs, given.kwarg) if a is not None]


def sections(text: str) -> dict[str, str]:
    """Body of each numpydoc section by its heading; the empty heading is what stands above them."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}$", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(section: str) -> list[str]:
    """Names that a section describes: `a, b : int` names two."""
    entries = [line for line in section.splitlines() if line and not line[0].isspace()]
    return [name.strip(" *`") for entry in entries for name in entry.split(" : ")[0].split(",")]


def raised(function: Function) -> set[str]:
    """Names of the exceptions that the body itself raises; functions inside it do not count."""
    found: set[str] = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(made).split(".")[-1])
        todo.extend(ast.iter_child_nodes(node))
    return {name for name in found if name[0].isupper()}


def missing(name: str, function: Function) -> list[str]:
    """What the docstring of one public function does not say."""
    if any(".command" in ast.unparse(d) for d in function.decorator_list):
        return []  # its docstring is the help on the command line
    names = parameters(function, bound="." in name)
    if len(names) < FEWEST_PARAMETERS:
        return []
    found = sections(ast.get_docstring(function) or "")
    told = described(found.get("Parameters", ""))
    lacks = [f"{name} does not describe {given}" for given in names if given not in told]
    lacks += [f"{name} does not take {given}" for given in told if given not in names]
    returns = ast.unparse(function.returns) if function.returns else "None"
    silent = returns in ("None", "NoReturn") or re.match(r"(Return|Yield)", found[""])
    if not silent and not {"Returns", "Yields"} & found.keys():
        lacks.append(f"{name} does not say what it returns")
    errors = described(found.get("Raises", ""))
    untold = sorted(raised(function) - set(errors))
    return lacks + [f"{name} raises {error} and does not say so" for error in untold]


def home(path: Path) -> str:
    """Folder of the library that a module is in, or the module itself where it is in none."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def lacks_by_home() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(PACKAGE.parent)}:{function.lineno}"
            found.setdefault(home(path), []).extend(
                f"{place}: {lack}" for lack in missing(name, function)
            )
    return found


LACKS = lacks_by_home()


@pytest.mark.parametrize("place", sorted(LACKS))
def test_every_parameter_result_and_error_is_described(place: str) -> None:
    assert LACKS[place] == []


# --------------------------------------------------------------------------- the rule itself

COMPLETE = '''
def find(self_named, low: int, high: int, *rest: str, key=None) -> int:
    """Find one.

    Parameters
    ----------
    self_named
        It.
    low, high : int
        Limits, at least 0.
    *rest : str
        More.
    key
        By what.

    Returns
    -------
    int
        In [low, high].

    Raises
    ------
    ValueError
        If there is none.
    """
    def inner():
        raise KeyError("not its own")
    if low > high:
        raise ValueError(f"{low}, {high}")
    return low
'''


def lacks_of(source: str) -> list[str]:
    (found,) = public_functions(ast.parse(source))
    return missing(*found)


def test_a_complete_docstring_lacks_nothing() -> None:
    assert lacks_of(COMPLETE) == []


@pytest.mark.parametrize(
    ("old", "new", "lack"),
    [
        ("low, high : int\n", "low : int\n", "find does not describe high"),
        ("    *rest : str\n        More.\n", "", "find does not describe rest"),
        ("    key\n", "    keys\n", "find does not describe key"),
        ("    key\n", "    key, order\n", "find does not take order"),
        ("    Returns\n    -------\n", "", "find does not say what it returns"),
        ("    ValueError\n", "    TypeError\n", "find raises ValueError and does not say so"),
        ('"""Find one.', '"""Find one.\n    """\n    """', "find does not describe self_named"),
    ],
)
def test_what_is_left_out_is_noticed(old: str, new: str, lack: str) -> None:
    assert old in COMPLETE
    assert lack in lacks_of(COMPLETE.replace(old, new, 1))


def test_a_summary_may_say_what_is_returned() -> None:
    shorter = COMPLETE.replace("    Returns\n    -------\n    int\n        In [low, high].\n", "")
    assert lacks_of(shorter) == ["find does not say what it returns"]
    assert lacks_of(shorter.replace("Find one", "Return one")) == []
    assert lacks_of(shorter.replace("-> int", "-> None")) == []


def test_methods_are_held_to_it_without_self() -> None:
    source = "class Box:\n    def put(self, a, b, c) -> None: ...\n    def _put(self, a, b, c): ..."
    assert lacks_of(source) == [f"Box.put does not describe {name}" for name in "abc"]
    assert lacks_of(source.replace("a, b, c) ->", "a, b) ->")) == []
    assert list(public_functions(ast.parse(source.replace("Box", "_Box")))) == []
