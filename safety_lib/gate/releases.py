"""What a release comes with: the releases before it, and failures that somebody answers for.

The history is a file that the gate reads and adds a line to, and nobody edits. An exception holds
for a time, and never for a critical failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from safety_lib.artifacts import read_artifact
from safety_lib.gate.trials import REGRESSION_STRATA, Case
from safety_lib.records import GateException, GateHistory, GateReport, first_fault
from safety_lib.text import Shown, one_line


@dataclass(frozen=True, repr=False)
class Standing(Shown):
    """What the gate knows of a release beside its trials.

    Attributes
    ----------
    history : GateHistory, optional
        The releases before this one, whose small losses may add up.
    exceptions : tuple of GateException
        Tests that the decision leaves out, where they may be; the report lists all of them.
    as_of : date, optional
        The day on which exceptions must not have expired. The gate looks at no clock.

    Raises
    ------
    ValueError
        If there are exceptions and no day to judge them on.
    """

    history: GateHistory | None = None
    exceptions: tuple[GateException, ...] = ()
    as_of: date | None = None

    def __post_init__(self) -> None:
        if self.exceptions and self.as_of is None:
            raise ValueError("exceptions expire: say as of which day they are judged")

    def losses_before(self, candidate_sha256: str = "") -> tuple[float, ...]:
        """Return the change in pass rate of each release that was not blocked, in order.

        The candidate itself is left out, so judging it twice gives what judging it once gave.
        """
        return tuple(
            release.delta
            for release in (self.history.releases if self.history else ())
            if release.verdict in ("OK", "WARN")
            and release.delta is not None
            and release.candidate_sha256 != candidate_sha256
        )

    def excuse(self, cases: Sequence[Case]) -> tuple[frozenset[str], tuple[GateException, ...]]:
        """Say which tests are excused, and list every exception with why it was refused, if it was.

        An exception counts through the day on which it expires. One whose scope holds a critical
        test is refused as a whole: it would hide the others behind it.

        Returns
        -------
        excused : frozenset of str
            Ids of tests that the decision leaves out; the report shows them all the same.
        listed : tuple of GateException
        """
        excused: set[str] = set()
        listed = []
        for one in self.exceptions:
            covered = [
                case
                for case in cases
                if case.stratum in REGRESSION_STRATA and one.scope in (case.case_id, case.family)
            ]
            refused = ""
            if self.as_of is not None and date.fromisoformat(one.expires) < self.as_of:
                refused = "expired"
            elif not covered:
                refused = "covers no test of this suite"
            elif any(case.severity == "critical" for case in covered):
                refused = "covers a critical test"
            else:
                excused |= {case.case_id for case in covered}
            listed.append(one.model_copy(update={"refused": refused}))
        return frozenset(excused), tuple(listed)


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
        world=report.world,
        world_sha256=report.world_sha256,
        releases=(*before, report.release),
    )


def load_exceptions(path: str | Path) -> tuple[GateException, ...]:
    """Read a file of exceptions.

    It is a YAML list; each entry has ``exception_id``, ``scope`` (a test or a family), ``reason``,
    ``approved_by`` and ``expires`` (a date).

    Raises
    ------
    ValueError
        With one line that names the file, the entry and the field.
    """
    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: is not YAML: {one_line(error)}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: must be a list of exceptions")
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, start=1))


def _entry(path: Path, number: int, entry: Any) -> GateException:
    where = f"{path}: exception {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    fields = {str(key): str(value) for key, value in entry.items()}
    try:
        made = GateException.model_validate(fields)
        date.fromisoformat(made.expires)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{where}: field {field}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{where}: field expires: {made.expires!r} is no date") from error
    if made.refused or not made.approved_by.strip():
        raise ValueError(f"{where}: field approved_by: somebody has to answer for it")
    return made
