"""Where a command finds its world, and what it may write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from safety_lib.records import Suite
    from safety_lib.world import World

STAGE_FILES = (
    "stress_failures.json",
    "regression_tests.json",
    "gate_report.json",
    "gate_report.html",
    "incident_replay.json",
)
"""What the stages write into a folder of artifacts."""
_SAMPLES = ("incident_example.json", "production_log.parquet", "production_truth.parquet")


def world_for(given: str, *versions: str) -> World:
    """Find the world that a command speaks of: the one it names, else that of a version's file.

    Parameters
    ----------
    given : str
        What ``--world`` says, or nothing.
    *versions : str
        The versions of the command, names and files.

    Raises
    ------
    WorldError
        If there is no such world or file.

    Examples
    --------
    >>> world_for("", "v1", "airline/v2").name
    'airline'
    """
    from safety_lib.world import DEFAULT_WORLD, load_version, load_world

    if given:
        return load_world(given)
    for name in versions:
        if names_a_file(name) or "/" in name:
            return load_world(load_version(name, DEFAULT_WORLD).world)
    return load_world(DEFAULT_WORLD)


def names_a_file(version: str) -> bool:
    """Whether a version is given by the path of a file.

    Examples
    --------
    >>> names_a_file("v2"), names_a_file("my_release.yaml")
    (False, True)
    """
    from safety_lib.world.versions import FILE_ENDINGS

    return version.endswith(FILE_ENDINGS)


def folder_for(given: str, world: World) -> Path:
    """Return the folder of artifacts: the one that is named, else that of the world.

    Parameters
    ----------
    given : str
        What ``--artifacts`` says, or nothing.
    world : World
        Whose artifacts they are.

    Raises
    ------
    UsageError
        If it is a file, or lies in the folder of the world.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> folder_for("", load_world("airline")).as_posix()
    'artifacts/airline'
    """
    from safety_lib.artifacts import folder_of

    folder = Path(given or folder_of(world.name))
    if folder.resolve().is_relative_to(world.folder):  # each file there would make it another world
        raise click.UsageError(
            f"artifacts may not lie in the folder of the world {world.name}; "
            "give --artifacts another one"
        )
    if folder.suffix == ".json" or (folder.exists() and not folder.is_dir()):
        raise click.UsageError(f"--artifacts takes a folder, not the file {folder}")
    return folder


def suite_at(source: str | Path, world: World) -> Suite:
    """Read a suite whose tests are all of rules that the world has.

    Parameters
    ----------
    source : str or Path
        The file, or the folder that holds it.
    world : World
        Where it will be run. A suite of another one is for the stage to refuse.

    Raises
    ------
    ArtifactError
        As :func:`~safety_lib.artifacts.read_artifact`, and if a test is of no rule.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> suite_at("artifacts", load_world("northwind")).world
    'northwind'
    """
    from safety_lib.artifacts import ArtifactError, read_artifact
    from safety_lib.records import Suite
    from safety_lib.world import WorldError

    suite = read_artifact(source, Suite)
    if suite.world == world.name:
        try:
            world.expect_rules(suite.tests)
        except WorldError as error:
            file = suite.file_name if Path(source).is_dir() else Path(source).name
            raise ArtifactError(f"{file}: {error}") from error
    return suite


def reserve(
    folder: Path,
    *,
    own: Sequence[str] = (),
    named: Sequence[str] = (),
    inputs: Sequence[str] = (),
) -> None:
    """Refuse, before the work, what cannot be written or would lie over what has to stay.

    Parameters
    ----------
    folder : Path
        Of artifacts.
    own : sequence of str
        The artifacts that the command writes.
    named : sequence of str
        Files that its user named for it to write; empty ones are passed over.
    inputs : sequence of str
        What it reads; names of no file are passed over.

    Raises
    ------
    FileError
        As :func:`~safety_lib.files.expect_writable`.
    UsageError
        If a file is named in the folder of a world.

    Examples
    --------
    >>> reserve(Path("artifacts"), named=["artifacts/gate_report.json"])
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: gate_report.json: is read or kept by this run, and would be \
overwritten; name another file
    """
    from safety_lib.files import expect_writable

    named = [name for name in named if name]
    for name in named:
        if inside := next(filter(_is_world, Path(os.path.realpath(name)).parents), None):
            raise click.UsageError(
                f"{name} lies in the folder of the world {inside.name}, and would make another "
                "world of it; name another file"
            )
    kept = [folder / name for name in (*STAGE_FILES, *_SAMPLES) if name not in own]
    expect_writable([*(folder / name for name in own), *named], [*kept, *filter(None, inputs)])


def _is_world(folder: Path) -> bool:
    return (folder / "world.py").is_file() and (folder / "policy.yaml").is_file()
