"""The versions that a stage ran on, kept beside its journals, where the next stage finds them.

An artifact holds the hash of a version and no path, so that it is the same on every machine. A
version that came from a file is therefore kept by its hash in ``runs/versions``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safety_lib.files import FileError, read_json, write_text
from safety_lib.records import StressFailures
from safety_lib.world import World, load_version, load_world
from safety_lib.world.versions import Version, WorldError


def keep_versions(folder: str | Path, versions: Iterable[Version]) -> None:
    """Keep versions in a folder of artifacts.

    Parameters
    ----------
    folder : str or Path
        Of artifacts; they go into ``runs/versions``.
    versions : iterable of Version
        Those that a stage ran on.
    """
    for version in versions:
        text = json.dumps(version.model_dump(mode="json"), indent=1, sort_keys=True)
        write_text(_place(folder, version.sha256), text + "\n")


def version_found_on(folder: str | Path, found: StressFailures, name: str, world: World) -> Version:
    """Return a version that failures were found on: of the world by its name, else as it was kept.

    Parameters
    ----------
    folder : str or Path
        Of artifacts.
    found : StressFailures
        The failures.
    name : str
        The version, as they call it.
    world : World
        Where it is looked for first.

    Raises
    ------
    WorldError
        If it is in neither place, or what was kept is another one.

    Examples
    --------
    >>> from safety_lib.artifacts import read_artifact
    >>> found = read_artifact("artifacts", StressFailures)
    >>> print(version_found_on("artifacts", found, "v2", load_world("northwind")).version)
    v2
    """
    sha256 = found.config_sha256.get(name, "")
    if found.world == world.name and name in world.releases:
        version = load_version(name, world.address)
        if version.sha256 == sha256:
            return version
    path = _place(folder, sha256)
    try:
        tree = read_json(path)
    except FileError as error:
        if name in world.releases:  # it changed since, which the stage says in its own words
            return load_version(name, world.address)
        raise WorldError(
            f"the failures were found on {name!r}, which is no version of {world.name}: name its "
            f"file with --baseline or --candidate ({error})"
        ) from error
    where = f"{path.parent.name}/{path.name}"
    if not isinstance(tree, dict):
        raise WorldError(f"{where}: is no version; name its file with --baseline or --candidate")
    home = load_world(str(tree.get("world", "")) or world.address)
    version = Version.fitting(tree, where, home.settings_of)
    if version.sha256 != sha256:
        raise WorldError(
            f"{where}: was edited; name the file of {name!r} with --baseline or --candidate"
        )
    return version


def _place(folder: str | Path, sha256: str) -> Path:
    return Path(folder) / "runs" / "versions" / f"{sha256[:16]}.json"
