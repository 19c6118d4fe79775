"""The closed loop of agent safety: stress test, regression tests, release gate, incident replay.

The names that one looks for first stand here and come from their modules when they are used, so
that importing the package costs nothing::

    import safety_lib

    run = safety_lib.Run(seed=7)
    v1, v2 = map(safety_lib.load_version, ("northwind/v1", "northwind/v2"))
    found = safety_lib.discover(v1, v2, run=run)
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which the command line has not loaded yet
if TYPE_CHECKING:
    import typing

    from safety_lib import figures
    from safety_lib.artifacts import read_artifact, read_experiment, write_artifact
    from safety_lib.figures import tables
    from safety_lib.gate.release_gate import run_gate
    from safety_lib.incident.intake import take_in
    from safety_lib.incident.investigation import investigate
    from safety_lib.incident.replay import replay_incident
    from safety_lib.production.blast_radius import estimate_blast_radius
    from safety_lib.records import GateReport, IncidentReport, StressFailures, Suite
    from safety_lib.regression.generate import generate_suite
    from safety_lib.report import render_gate_report
    from safety_lib.results.judge import judge_results
    from safety_lib.rollout.campaign import Run
    from safety_lib.stress.discovery import discover
    from safety_lib.world import load_version, load_world

__version__ = "0.1.0"

__all__ = [
    "GateReport",
    "IncidentReport",
    "Run",
    "StressFailures",
    "Suite",
    "discover",
    "estimate_blast_radius",
    "figures",
    "generate_suite",
    "investigate",
    "judge_results",
    "load_version",
    "load_world",
    "read_artifact",
    "read_experiment",
    "render_gate_report",
    "replay_incident",
    "run_gate",
    "tables",
    "take_in",
    "write_artifact",
]

# Name to module, in the order of the loop.
_HOMES = {
    "Run": "rollout.campaign",
    "load_version": "world",
    "load_world": "world",
    "discover": "stress.discovery",
    "generate_suite": "regression.generate",
    "run_gate": "gate.release_gate",
    "judge_results": "results.judge",
    "render_gate_report": "report",
    "take_in": "incident.intake",
    "replay_incident": "incident.replay",
    "investigate": "incident.investigation",
    "estimate_blast_radius": "production.blast_radius",
    "StressFailures": "records",
    "Suite": "records",
    "GateReport": "records",
    "IncidentReport": "records",
    "read_artifact": "artifacts",
    "write_artifact": "artifacts",
    "read_experiment": "artifacts",
    "figures": "figures",
    "tables": "figures.tables",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"safety_lib.{_HOMES[name]}")
    return getattr(home, name, home)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
