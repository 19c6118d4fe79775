"""What a release comes with: the releases before it, and failures that somebody answers for.

An exception holds for a time, and never for a critical failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safety_lib.files import read_yaml
from safety_lib.gate.decide import Shift
from safety_lib.gate.trials import REGRESSION_STRATA, Case
from safety_lib.records import GateException, GateHistory, LedgerLine, first_fault
from safety_lib.stats.intervals import z_value
from safety_lib.text import Shown, bare, one_line, pieces


@dataclass(frozen=True, repr=False)
class Standing(Shown):
    """What the gate knows of a release beside its trials.

    Attributes
    ----------
    history : GateHistory, optional
        The ledger so far: the losses of what was released may add up.
    exceptions : tuple of GateException
        Tests that the decision leaves out, where they may be; the report lists all of them.
    as_of : date, optional
        The day on which exceptions must not have expired. The gate looks at no clock.
    entry : LedgerLine, optional
        This attempt, as the ledger knows it; without one the whole error is left to it.

    Raises
    ------
    ValueError
        If there are exceptions and no day to judge them on.
    """

    history: GateHistory | None = None
    exceptions: tuple[GateException, ...] = ()
    as_of: date | None = None
    entry: LedgerLine | None = None

    def __post_init__(self) -> None:
        if self.exceptions and self.as_of is None:
            raise ValueError("exceptions expire: say as of which day they are judged")

    def released_before(self, baseline_sha256: str) -> tuple[Shift, ...]:
        """Return what led from one released version to the next, up to this baseline.

        A candidate was released if it is the baseline of a later verdict, whatever its own was.
        Where a version was judged more than once, the newest verdict counts.

        Parameters
        ----------
        baseline_sha256 : str
            What is in production now.
        """
        chain: list[Shift] = []
        wanted = baseline_sha256
        for line in reversed(self.history.lines if self.history else ()):
            pair, release = line.pair, line.release
            led_here = wanted == pair.candidate_sha256 != pair.baseline_sha256
            if not led_here or release is None or release.verdict is None:
                continue
            if release.delta is None or release.ci_low is None or release.ci_high is None:
                break  # blocked without a trial, and released all the same: nobody knows
            width = release.ci_high - release.ci_low
            chain.append(Shift(release.delta, width / (2 * z_value(0.95))))
            wanted = pair.baseline_sha256
        return tuple(reversed(chain))

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
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path.name}: must be a list of exceptions")
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, start=1))


def _reads(text: str) -> bool:
    """Whether a person can see a letter or a digit in a text."""
    return bool(bare("".join(piece.text for piece in pieces(text) if not piece.hidden)))


def _entry(path: Path, number: int, entry: Any) -> GateException:
    where = f"{path.name}: exception {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    fields = {key: str(value) if type(value) is int else value for key, value in entry.items()}
    for field, value in fields.items():
        # No word can be made of what is none: an empty field would sign as "None".
        if not isinstance(value, str) or not _reads(value):
            said = (
                "empty"
                if not value or isinstance(value, str)
                else f"no text but {one_line(repr(value), 40)}"
            )
            raise ValueError(
                f"{where}: field {one_line(field, 40)}: is {said}, and somebody has to "
                "answer for it"
            )
    try:
        made = GateException.model_validate(fields)
        date.fromisoformat(made.expires)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{where}: field {field}: {reason}") from error
    except ValueError as error:
        shown = one_line(repr(made.expires), 40)
        raise ValueError(f"{where}: field expires: {shown} is no date") from error
    if made.refused:
        raise ValueError(f"{where}: field refused: that is the gate's to say")
    return made
