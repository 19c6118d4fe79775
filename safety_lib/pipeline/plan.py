"""The plan of a run: which notebooks, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_lib.artifacts import CHECKOUT
from safety_lib.files import FileError, read_yaml
from safety_lib.text import one_line

NOTEBOOKS = CHECKOUT / "notebooks"
STAGES: Mapping[str, str] = {
    "stress_testing": "01_stress_testing",
    "regression": "02_regression_tests",
    "release_gate": "03_release_gate",
    "incident_replay": "04_incident_replay",
}
COMMON = ("seed", "model", "world", "baseline", "candidate")

Plan = dict[str, dict[str, Any]]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class PipelineError(RuntimeError):
    """The notebooks cannot run, or one of them stopped; the message is one line for a person."""


def load_plan(
    model: str = "", overrides: Mapping[str, Any] | None = None, *, folder: Path = NOTEBOOKS
) -> Plan:
    """Return the parameters of each stage: ``demo.yaml``, the model's smaller plan, the overrides.

    Parameters
    ----------
    model : str, optional
        A model as the command line names it; its kind picks a section under ``models``.
    overrides : Mapping, optional
        Either a parameter, which every stage that has it takes, or a stage with a mapping of its
        parameters. None means "as in the file".
    folder : Path, optional
        Where ``demo.yaml`` is.

    Returns
    -------
    dict
        Stage to parameters.

    Raises
    ------
    PipelineError
        If the file cannot be read or a key is unknown, with the key and the file.

    Examples
    --------
    >>> load_plan(overrides={"rollouts": 12})["stress_testing"]["rollouts"]
    12
    >>> load_plan(overrides={"rolouts": 12})
    Traceback (most recent call last):
    ...
    safety_lib.pipeline.plan.PipelineError: no stage takes 'rolouts'; demo.yaml lists what they take
    """
    path = folder / "demo.yaml"
    sections = _read(path)
    missing = [key for key in (*COMMON, *STAGES) if key not in sections]
    unknown = [key for key in sections if key not in (*COMMON, *STAGES, "models")]
    if missing or unknown:
        what = f"unknown key {unknown[0]!r}" if unknown else f"key {missing[0]!r} is missing"
        raise PipelineError(f"{path}: {what}")
    common = {key: sections[key] for key in COMMON}
    plan = {stage: {**common, **_section(sections, stage, path)} for stage in STAGES}
    smaller = _section(sections, "models", path)
    for kind in smaller:  # a mistake in a section is one, whichever model runs
        changed = _changed(plan, _section(smaller, kind, path), f"; see {path}, models, {kind}")
        plan = changed if kind == _kind(model) else plan
    if model:
        plan = _changed(plan, {"model": model}, "")
    return _changed(plan, overrides or {}, f"; {path.name} lists what they take")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        tree = read_yaml(path)
    except FileError as error:
        raise _absent(path) if error.absent else PipelineError(str(error)) from error
    return _section({"file": tree}, "file", path)


def _section(tree: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = tree.get(key) or {}
    if not isinstance(section, dict):
        raise PipelineError(f"{path}: {key} must be a mapping, not {one_line(repr(section))}")
    return section


def _changed(plan: Plan, changes: Mapping[str, Any], where: str) -> Plan:
    changed = {stage: dict(parameters) for stage, parameters in plan.items()}
    for key, value in changes.items():
        takers = [key] if key in plan else [s for s in plan if key in plan[s]]
        values = value if key in plan else {key: value}
        if not takers:
            raise PipelineError(f"no stage takes {key!r}{where}")
        for stage in takers:
            for name, new in values.items():
                if name not in plan[stage]:
                    raise PipelineError(f"stage {stage} takes no {name!r}{where}")
                if new is not None:
                    changed[stage][name] = new
    return changed


def _kind(model: str) -> str:
    kind, _, rest = model.partition(":")
    if kind == "record":
        return _kind(rest.partition(":")[2])
    if kind == "cassette" and rest:
        # A tape holds the answers to the plan that it was recorded with.
        from safety_lib.agent.backends.cassette import recorded_model

        try:
            return _kind(recorded_model(rest))
        except ValueError as error:
            raise PipelineError(str(error)) from error
    return kind


def notebook_of(stage: str, folder: Path) -> Path:
    """Return the notebook of a stage.

    Raises
    ------
    PipelineError
        If it is not there.
    """
    path = folder / f"{STAGES[stage]}.ipynb"
    if not path.is_file():
        raise _absent(path)
    return path


def _absent(path: Path) -> PipelineError:
    return PipelineError(
        f"{path.name} is not in {path.parent}: the notebooks belong to a checkout, "
        "so clone the repository and `pip install -e .` there"
    )


def message_line(text: object) -> str:
    """Return what a notebook or its kernel said on one line, without colour codes.

    Examples
    --------
    >>> message_line("several   words" + chr(10) + "on two lines")
    'several words on two lines'
    """
    return one_line(_ANSI.sub("", str(text)), 300)
