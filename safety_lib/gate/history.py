"""The history of releases: a file that the gate reads and adds a line to, and nobody edits."""

from __future__ import annotations

from pathlib import Path

from safety_lib.artifacts import read_artifact
from safety_lib.records import GateHistory, GateReport


def read_history(path: str | Path) -> GateHistory | None:
    """Read the history, or None where no release was judged yet.

    Raises
    ------
    ArtifactError
        If the file was edited or damaged: a history that can be rewritten is none.
    """
    return read_artifact(path, GateHistory) if Path(path).exists() else None


def add_release(history: GateHistory | None, report: GateReport) -> GateHistory:
    """Return the history with one more release at its end.

    The same release with the same outcome is not added twice. The same release with another
    outcome is: that two runs disagree belongs on record.

    Examples
    --------
    >>> from safety_lib.artifacts import read_artifact
    >>> report = read_artifact("artifacts", GateReport)
    >>> once = add_release(None, report)
    >>> len(once.releases), add_release(once, report) == once
    (1, True)
    """
    before = history.releases if history else ()
    if history and report.release in before:
        return history
    return GateHistory(
        artifact=GateHistory.SCHEMA,
        schema_version=GateHistory.VERSION,
        seed=report.seed,
        model=report.model,
        config_sha256=report.config_sha256,
        policy_sha256=report.policy_sha256,
        releases=(*before, report.release),
    )
