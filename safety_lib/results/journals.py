"""Journals of this project: a trajectory a line, as campaigns write them.

The test is the scenario and who attacked, and every trajectory of them is a trial.
"""

from __future__ import annotations

from pathlib import Path

from safety_lib.records import Outcome
from safety_lib.results.opening import (
    Held,
    OfATool,
    noted,
    numbered,
    parsed,
    refused,
    several,
    title,
)
from safety_lib.results.table import Sample

_LONGEST_LINE = 64 << 20


class _Trajectory(OfATool):
    scenario_id: str
    goal: str
    attacker: str
    version: str
    model: str
    outcome: Outcome
    ended: str
    model_calls: int


def knows_journal(path: Path, head: bytes) -> bool:
    """Whether the first line of a file is the header of a journal."""
    return b'"artifact": "journal"' in head.split(b"\n", 1)[0]


def read_journal(path: Path, max_bytes: int) -> Held:
    """Read the trajectories of one version."""
    held: list[_Trajectory] = []
    torn = 0
    with path.open("rb") as lines:
        lines.readline(_LONGEST_LINE)
        while line := lines.readline(_LONGEST_LINE):
            if not line.endswith(b"\n"):
                torn = 1  # a campaign was killed while it wrote it
                break
            held.append(parsed(path, line, _Trajectory, f"a trajectory in line {len(held) + 2}"))
    versions = list(dict.fromkeys(one.version for one in held))
    if len(versions) > 1:
        what = f"holds trajectories of {len(versions)} versions ({several(versions)})"
        raise refused(path, what, "give a journal of one")
    return Held(
        samples=numbered(
            Sample(
                title(one.scenario_id, one.attacker),
                1,
                one.outcome,
                {"family": one.goal, "attacker": one.attacker},
            )
            for one in held
        ),
        subject=" ".join([*versions, *{one.model: "" for one in held}]),
        model_calls=sum(one.model_calls for one in held),
        notes=noted(torn, "last line", "is cut off and not read"),
    )
