"""The front door: the names that one looks for first, and nothing loaded before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import safety_lib


def python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_loads_nothing_but_python_itself() -> None:
    loaded = python("import sys; bare = set(sys.modules); import safety_lib; "
                    "print(*sorted(set(sys.modules) - bare))")  # fmt: skip
    assert "safety_lib" in loaded
    outside = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert outside == {"safety_lib"}
    assert [name for name in loaded if name.startswith("safety_lib.")] == []


def test_dir_lists_the_front_door() -> None:
    assert dir(safety_lib) == sorted([*safety_lib.__all__, "__version__"])
    assert python("import safety_lib; safety_lib.run_gate; print(*dir(safety_lib))") == dir(
        safety_lib
    )
    assert 15 <= len(safety_lib.__all__) <= 21


@pytest.mark.parametrize("name", safety_lib.__all__)
def test_a_name_gives_what_stands_in_its_module(name: str) -> None:
    found = getattr(safety_lib, name)
    if name in ("figures", "tables"):
        assert found.__name__ in ("safety_lib.figures", "safety_lib.figures.tables")
    else:
        assert getattr(sys.modules[found.__module__], name) is found
        assert found.__module__.startswith("safety_lib.")
    assert found.__doc__


def test_what_is_drawn_is_loaded_when_something_is_drawn() -> None:
    heavy = python(
        "import sys; from safety_lib import Run, discover, figures, load_version, run_gate, tables;"
        "print(*sys.modules)"
    )
    assert {"matplotlib.pyplot", "pandas", "scipy.stats", "duckdb"}.isdisjoint(heavy)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'safety_lib' has no attribute 'run_gat'"):
        _ = safety_lib.run_gat


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(safety_lib.__file__).read_text("utf-8"))
    (seen,) = (n for n in tree.body if isinstance(n, ast.If))
    imports = [n for n in seen.body if isinstance(n, ast.ImportFrom)]
    homes = {alias.name: (n.module or "") for n in imports for alias in n.names}
    assert sorted(homes) == sorted(safety_lib.__all__)
    told = {name: f"safety_lib.{home}" for name, home in safety_lib._HOMES.items()}
    assert told == homes | {"figures": "safety_lib.figures", "tables": "safety_lib.figures.tables"}
