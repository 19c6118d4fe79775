"""Artifacts: how results travel between stages, as validated JSON that is written in one go.

Two runs with the same parameters write the same bytes, so ``git diff`` shows whether a result
moved. A file is either the old one or the new one, never a mixture; what is truncated, edited by
hand or of another schema is refused with one line that says what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from safety_lib.files import MOST_BYTES, FileError, not_finite, read_json, sha256_of, write_text
from safety_lib.records import Artifact, Experiment, Incident, WholeIncident, first_fault
from safety_lib.text import one_line

CHECKOUT = Path(__file__).resolve().parents[1]

A = TypeVar("A", bound=Artifact)
M = TypeVar("M", bound=BaseModel)

_MADE_BY = {
    "stress_failures": "notebook 01_stress_testing, or `python -m safety_lib stress`",
    "regression_tests": "notebook 02_regression_tests, or `python -m safety_lib regress`",
    "gate_report": "notebook 03_release_gate, or `python -m safety_lib gate`",
    "experiment": "`make experiments`",
    "incident_replay": "notebook 04_incident_replay, or `python -m safety_lib replay`",
    "batch": "`python -m safety_lib batch`",
    "batch_cell": "`python -m safety_lib batch`",
}

_RESTORE = {
    "gate_history": "put back a copy that was kept; where there is none, move this one away, and "
    "`python -m safety_lib gate --history FILE` begins another"
}

DEFAULT_WORLD = "northwind"  # what commands and notebooks take where nothing names another
MOST_ARTIFACT_BYTES = 256 << 20  # what 100,000 conversations come to, with room to spare


class ArtifactError(ValueError):
    """A file is missing or is not what it should be; the message is one line for a person."""


def folder_of(world: str) -> Path:
    """Return where the artifacts of a world lie, from the checkout or the current folder.

    Examples
    --------
    >>> folder_of("northwind").as_posix(), folder_of("airline").as_posix()
    ('artifacts', 'artifacts/airline')
    """
    return Path("artifacts") / ("" if world in ("", DEFAULT_WORLD) else world)


def find_folder(given: str = "", world: str = "") -> Path:
    """Return the folder of artifacts that a notebook's parameter names, wherever the notebook runs.

    Parameters
    ----------
    given : str, optional
        A path, which counts from the current folder as any path does; empty for the folder of the
        world in the checkout that this library lies in.
    world : str, optional
        The world's name.

    Raises
    ------
    ArtifactError
        If it is empty and the library was installed without a checkout.

    Examples
    --------
    >>> find_folder().name, str(find_folder("mine"))
    ('artifacts', 'mine')
    """
    if given:
        return Path(given)
    if not (CHECKOUT / "notebooks").is_dir():
        raise ArtifactError(
            "this safety_lib was installed without a checkout and has no artifacts/ beside it: "
            "name a folder as artifacts_dir, or clone the repository and `pip install -e .` there"
        )
    return CHECKOUT / folder_of(world)


def write_artifact(folder: str | Path, artifact: Artifact) -> Path:
    """Write an artifact under its own name, with its hash, atomically.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there. A path that ends in ``.json`` is the file itself.
    artifact : Artifact
        Its ``content_sha256`` is computed here.

    Returns
    -------
    Path
        ``folder/<schema>.json``.

    Raises
    ------
    ArtifactError
        If the artifact carries the name or version of another schema, so that nobody could read
        it, or if a number is NaN or infinite, which JSON cannot hold.

    Examples
    --------
    >>> from safety_lib.records import Suite
    >>> suite = Suite(
    ...     artifact="regression_tests", schema_version=1, seed=7, model="simulated",
    ...     config_sha256={}, world="", world_sha256="", baseline="v1", candidate="v2",
    ...     funnel={}, tests=(),
    ... )
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = write_artifact(folder, suite)
    ...     path.name, read_artifact(folder, Suite) == sealed(suite)
    ('regression_tests.json', True)
    """
    if (artifact.artifact, artifact.schema_version) != (artifact.SCHEMA, artifact.VERSION):
        raise ArtifactError(
            f"this is {_shown(artifact.artifact)} version {artifact.schema_version}, "
            f"but its schema is {artifact.SCHEMA!r} version {artifact.VERSION}"
        )
    folder = Path(folder)
    path = folder if folder.suffix == ".json" else folder / artifact.file_name
    tree = _tree(sealed(artifact))
    text = json.dumps(tree, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def content_hash(artifact: Artifact) -> str:
    """Return the hash of everything in an artifact but the hash itself."""
    tree = _tree(artifact)
    del tree["content_sha256"]
    return sha256_of(tree)


def sealed(artifact: A) -> A:
    """Return the artifact with its hash filled in, as reading it back would."""
    return artifact.model_copy(update={"content_sha256": content_hash(artifact)})


def _tree(artifact: Artifact) -> dict[str, Any]:
    # Not mode="json": pydantic would write NaN as null and refuse half surrogates.
    tree = artifact.model_dump()
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(tree, allow_nan=False)))
    except ValueError as error:
        where, _ = next(not_finite(tree), ("", 0.0))
        raise ArtifactError(
            f"{artifact.SCHEMA}.{where} is NaN or infinite, which JSON cannot hold"
        ) from error


def read_artifact(path: str | Path, kind: type[A]) -> A:
    """Read an artifact and check that it is whole, of this schema and unedited.

    Parameters
    ----------
    path : str or Path
        The file, or the folder that holds it under its own name.
    kind : type
        What it should be.

    Raises
    ------
    ArtifactError
        With one line: the file, what is wrong, what was expected, what to do.
    """
    path = Path(path)
    # A folder that is not there yet is still a folder: a file of ours ends in .json.
    if path.is_dir() or not (path.suffix or path.is_file()):
        path /= f"{kind.SCHEMA}.json"
    made_by = _MADE_BY.get(kind.SCHEMA, "the stage that writes it")
    again = _RESTORE.get(kind.SCHEMA, f"make it again with {made_by}")
    tree = _read_object(path, again, MOST_ARTIFACT_BYTES)
    name, version = tree.get("artifact"), tree.get("schema_version")
    if name != kind.SCHEMA:
        raise _refusal(path, f"artifact is {_shown(name)}, expected {kind.SCHEMA!r}", again)
    if version != kind.VERSION:
        raise _refusal(path, f"schema_version is {_shown(version)}, expected {kind.VERSION}", again)
    artifact = _validated(tree, kind, path, again)
    written = tree.pop("content_sha256", "")
    if written != sha256_of(tree):
        raise _refusal(path, "content differs from its hash, so it was edited or damaged", again)
    if fault := artifact.fault:  # a hash can be made anew over what makes no sense
        raise _refusal(path, fault, again)
    return artifact


def read_experiment(folder: str | Path, name: str) -> Experiment[Any]:
    """Read the result of an experiment: from the folder of this run, else the one in the checkout.

    An experiment has parameters of its own, so a run into another folder shows the same one.

    Parameters
    ----------
    folder : str or Path
        Where the run's artifacts are.
    name : str
        The name of the experiment.

    Returns
    -------
    Experiment
        Its ``result`` is of the record that belongs to the experiment, one of those in
        :mod:`safety_lib.records.experiments`.

    Raises
    ------
    ArtifactError
        If it is in neither place, damaged, or not what its experiment stores.

    Examples
    --------
    >>> read_experiment("artifacts", "no such experiment")
    Traceback (most recent call last):
    ...
    safety_lib.artifacts.ArtifactError: no such experiment.json: there is no such file in \
artifacts/experiments; make it again with `make experiments`
    """
    own = Path(folder) / "experiments" / f"{name}.json"
    shipped = CHECKOUT / "artifacts" / "experiments" / own.name
    return read_artifact(shipped if shipped.exists() and not own.exists() else own, Experiment)


def read_incident(path: str | Path) -> Incident:
    """Read an incident file, which comes from outside and has no hash.

    Traces of other tools come in through :func:`safety_lib.incident.intake.take_in`.

    Raises
    ------
    ArtifactError
        With one line: the file, the field and what was expected.
    """
    advice = "give the path of an incident file, such as artifacts/incident_example.json"
    tree = _read_object(Path(path), advice, MOST_BYTES)
    return _validated(tree, WholeIncident, Path(path), "correct the file")


def _read_object(path: Path, advice: str, most: int) -> dict[str, Any]:
    try:
        tree = read_json(path, most)
    except FileError as error:
        raise _refusal(path, error.what, advice) from error
    if not isinstance(tree, dict):
        raise _refusal(path, f"holds {_shown(tree)}, expected one JSON object", advice)
    return tree


def _validated(tree: dict[str, Any], kind: type[M], path: Path, advice: str) -> M:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        field, reason = map(one_line, first_fault(error))
        more = error.error_count() - 1
        also = f" (and {more} more)" if more else ""
        where = f"field {field or 'the whole'}"
        raise _refusal(path, f"{where}: {reason}{also}", advice) from error


def _refusal(path: Path, what: str, advice: str) -> ArtifactError:
    return ArtifactError(f"{one_line(path.name)}: {what}; {advice}")


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    return one_line(repr(value)) if isinstance(value, str | int | float) else type(value).__name__
