"""Where a command finds its world, and what it may write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
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


def reserve(
    folder: Path,
    world: World,
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
    world : World
        Nothing is written into its folder.
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
        If a file is named in the folder of the world.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> reserve(Path("artifacts"), load_world("northwind"), named=["artifacts/gate_report.json"])
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: gate_report.json: is read or kept by this run, and would be \
overwritten; name another file
    """
    from safety_lib.files import expect_writable

    named = [name for name in named if name]
    for name in named:
        if Path(name).resolve().is_relative_to(world.folder):
            raise click.UsageError(
                f"{name} lies in the folder of the world {world.name}, and would make another "
                "world of it; name another file"
            )
    kept = [folder / name for name in (*STAGE_FILES, *_SAMPLES) if name not in own]
    expect_writable([*(folder / name for name in own), *named], [*kept, *filter(None, inputs)])
