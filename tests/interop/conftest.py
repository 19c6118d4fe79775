"""What the tests with real frameworks share: the airline's desk, answering as a chat model would.

They run in environments of their own (``make interop``), never in ``make test``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from safety_lib.gate.release_gate import run_gate
from safety_lib.records import GateReport, StressFailures
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Run
from safety_lib.stress.discovery import discover
from safety_lib.world import World, load_world

sys.path.insert(0, str(Path(__file__).parent))
AIRLINE = load_world("airline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", action="store_true", help="store what the tools wrote")


@pytest.fixture
def airline_by(tmp_path: Path):
    """Make the airline's world once more, with another ``connect`` at the end of its world.py."""

    def make(connect: str, *, planted: bool = True) -> World:
        folder = tmp_path / f"airline_{len(list(tmp_path.iterdir()))}"
        shutil.copytree(AIRLINE.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "world.py").open("a", encoding="utf-8") as out:
            out.write(f"\n\n{connect}\n")
        if not planted:
            goals = yaml.safe_load((folder / "goals.yaml").read_text(encoding="utf-8"))
            for goal in goals.values():
                goal.pop("injection", None)
            (folder / "goals.yaml").write_text(yaml.safe_dump(goals), encoding="utf-8")
        return load_world(folder)

    return make


def judged(
    world: World, rollouts: int, replays: int, trials: int
) -> tuple[StressFailures, GateReport]:
    """Take v1 and v2 of a world through stages 1 to 3."""
    v1, v2 = world.version("v1"), world.version("v2")
    run = Run(seed=7)
    found = discover(v1, v2, run, rollouts=rollouts).artifact()
    both = {"v1": v1, "v2": v2}
    suite = generate_suite(found, both, run, replays=replays, reference=v1)
    return found, run_gate(suite, v1, v2, run, trials=trials)


def what_broke(found: StressFailures) -> list[tuple[str, str, int]]:
    return [(f.rollout_id, f.rule_id, f.failure_turn) for f in found.failures]
