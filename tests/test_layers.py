"""Layers import downward only, and importing the package stays cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "safety_lib"
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"text"}),
    frozenset({"files", "plain_yaml"}),
    frozenset({"records"}),
    frozenset({"stats", "artifacts", "streams"}),
    frozenset({"world"}),
    frozenset({"agent"}),
    frozenset({"adapters"}),
    frozenset({"attack"}),
    frozenset({"rollout"}),
    frozenset({"stress", "regression", "gate", "production"}),
    frozenset({"incident", "results"}),
    frozenset({"figures", "report", "exercises"}),
    frozenset({"pipeline"}),
    frozenset({"__main__", "batching", "commands", "options", "places", "start", "terminal"}),
    frozenset({"worlds"}),  # found by name: nobody below imports one
    frozenset({"organism"}),
    frozenset({"experiments"}),
)
SIBLINGS = frozenset({"stress", "regression", "gate", "production"})
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(source: str) -> set[str]:
    """Top-level parts of safety_lib that a module imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "safety_lib":
                names = [f"safety_lib.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found.update(n.split(".")[1] for n in names if n.startswith("safety_lib."))
    return found


def upward(part: str, source: str) -> set[str]:
    """What a module of a part imports although it stands above it, or beside it as a stage.

    A world is used by whoever runs the loop, and runs nothing itself.
    """
    beside = SIBLINGS - {part} if part in SIBLINGS else frozenset()
    own = RANK["pipeline"] - 1 if part == "worlds" else RANK[part]
    return {
        name for name in imported(source) if name in beside or (RANK[name] > own and name != part)
    }


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_before_it(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert upward(part, path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    ["from safety_lib.gate.decide import decide", "def f():\n    import safety_lib.figures\n"],
)
def test_an_import_upward_is_seen(source: str) -> None:
    assert upward("agent", source)


def test_a_stage_that_imports_another_is_seen() -> None:
    assert upward("gate", "from safety_lib.stress.discovery import discover") == {"stress"}


@pytest.mark.parametrize("part", sorted(RANK.keys() - {"worlds", "organism", "experiments"}))
def test_a_part_that_imports_a_world_is_seen(part: str) -> None:
    assert upward(part, "from safety_lib.worlds.northwind.sandbox import Sandbox") == {"worlds"}


@pytest.mark.parametrize("part", ["pipeline", "__main__", "experiments"])
def test_a_world_that_imports_who_runs_it_is_seen(part: str) -> None:
    assert upward("worlds", f"import safety_lib.{part}") == {part}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("worlds/*/*.py")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_a_world_knows_no_other(path: Path) -> None:
    found = re.findall(r"safety_lib\.worlds\.(\w+)", path.read_text(encoding="utf-8"))
    assert set(found) <= {path.parent.name}


@pytest.mark.parametrize(
    "module", ["records", "agent.loop", "rollout.campaign", "report", "figures", "__main__"]
)
def test_heavy_modules_are_imported_where_they_are_used(module: str) -> None:
    code = f"import sys, safety_lib.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"scipy.stats", "pandas", "matplotlib.pyplot", "duckdb", "openai", "papermill"}
    heavy |= {"jax", "gguf", "xllamacpp"}
    assert heavy.isdisjoint(done.stdout.split())
