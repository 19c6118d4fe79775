"""Artifacts: how results travel between stages, as validated JSON that is written in one go.

Two runs with the same parameters write the same bytes, so ``git diff`` shows whether a result moved.
A file is either the old one or the new one, never a mixture; what is truncated, edited by hand or of
another schema is refused with one line that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from safety_lib.records import Artifact, Incident

A = TypeVar("A", bound=Artifact)
M = TypeVar("M", bound=BaseModel)

_MADE_BY = {
    "stress_failures": "notebook 01_stress_testing, or `python -m safety_lib stress`",
    "regression_tests": "notebook 02_regression_tests, or `python -m safety_lib regress`",
    "gate_report": "notebook 03_release_gate, or `python -m safety_lib gate`",
    "incident_replay": "notebook 04_incident_replay, or `python -m safety_lib replay`",
}


class ArtifactError(ValueError):
    """A file is missing or is not what it should be; the message is one line for a person."""


def sha256_of(value: Any) -> str:
    """Return the hash of the canonical JSON of a value.

    Examples
    --------
    >>> sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_artifact(folder: str | Path, artifact: Artifact) -> Path:
    """Write an artifact under its own name, with its hash, atomically.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there.
    artifact : Artifact
        Its ``content_sha256`` is computed here.

    Returns
    -------
    Path
        ``folder/<schema>.json``.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, which JSON cannot hold.
    """
    tree = artifact.model_dump(mode="json")
    tree["content_sha256"] = content_hash(artifact)
    text = json.dumps(tree, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_text(Path(folder) / f"{artifact.SCHEMA}.json", text + "\n")


def content_hash(artifact: Artifact) -> str:
    """Return the hash of everything in an artifact but the hash itself."""
    return sha256_of(artifact.model_dump(mode="json", exclude={"content_sha256"}))


def sealed(artifact: A) -> A:
    """Return the artifact with its hash filled in, as reading it back would."""
    return artifact.model_copy(update={"content_sha256": content_hash(artifact)})


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically: whoever reads sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


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
    path = path / f"{kind.SCHEMA}.json" if path.is_dir() else path
    again = f"make it again with {_MADE_BY[kind.SCHEMA]}" if kind.SCHEMA in _MADE_BY else ""
    tree = _read_json(path, again)
    found = tree.get("artifact")
    if found != kind.SCHEMA:
        raise ArtifactError(f"{path.name}: holds {found!r}, expected {kind.SCHEMA!r}; {again}")
    version = tree.get("schema_version")
    if version != kind.VERSION:
        raise ArtifactError(
            f"{path.name}: schema version {version!r}, expected {kind.VERSION}; {again}"
        )
    artifact = _validated(tree, kind, path)
    if artifact.content_sha256 != content_hash(artifact):
        raise ArtifactError(
            f"{path.name}: its content does not match its hash, so it was edited or damaged; {again}"
        )
    return artifact


def read_incident(path: str | Path) -> Incident:
    """Read an incident file, which comes from outside and has no hash.

    Raises
    ------
    ArtifactError
        With one line: the file, the field and what was expected.
    """
    path = Path(path)
    return _validated(_read_json(path, "give the path of an incident file"), Incident, path)


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path.name}: there is no such file in {path.parent}; {advice}"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read ({error.strerror}); {advice}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path.name}: not UTF-8 at byte {error.start}; {advice}") from error
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path.name}: not JSON at line {error.lineno}, truncated or damaged; {advice}"
        ) from error
    except RecursionError as error:
        raise ArtifactError(f"{path.name}: nested too deeply; {advice}") from error
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path.name}: expected one JSON object; {advice}")
    return tree


def _validated(tree: dict[str, Any], kind: type[M], path: Path) -> M:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first, more = (
            error.errors(include_input=False, include_url=False)[0],
            error.error_count() - 1,
        )
        field = _plain(".".join(str(part) for part in first["loc"]))
        also = f" (and {more} more)" if more else ""
        raise ArtifactError(f"{path.name}: field {field}: {_plain(first['msg'])}{also}") from error


def _plain(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= 160 else shown[:157] + "..."
