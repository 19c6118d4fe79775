"""One table behind the results of every tool: a line for each trial of each test.

A reader of a format says what a tool wrote, as samples; what a sample means to a gate is said here,
once for all of them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

from safety_lib.records import Outcome, Severity
from safety_lib.text import Shown, count, one_line

RowPart = Literal["regression", "benign", "held_out"]
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_PARTS: tuple[RowPart, ...] = get_args(RowPart)


class ResultsError(ValueError):
    """Results cannot be judged; the message names the file, the place and what to do."""


class Sample(NamedTuple):
    """One trial as a tool wrote it.

    Attributes
    ----------
    test : str
        What the tool calls the test; the same in both files.
    trial : int
        Which trial of it, from 1.
    outcome : Outcome or None
        What the tool says came of it; None where it gave a score that is neither a pass nor a
        fail, and somebody has to say what passes.
    fields : Mapping
        Whatever else it says of the trial, by dotted names, such as ``metadata.rule`` and
        ``score``.
    """

    test: str
    trial: int
    outcome: Outcome | None
    fields: Mapping[str, Any] = {}


@dataclass(frozen=True, repr=False)
class ResultFile(Shown):
    """What one file or folder holds.

    Attributes
    ----------
    name : str
        Of the file.
    tool : str
        Who wrote it, such as ``Inspect``.
    sha256 : str
        Of its bytes; of a folder, of its files in order.
    samples : tuple of Sample
        Every trial in it.
    model_calls : int or None
        How often a model was asked, where the file says so.
    graded_by_model : bool
        Whether a model said what passes.
    notes : tuple of str
        What was not read, and where it stands.
    """

    name: str
    tool: str
    sha256: str
    samples: tuple[Sample, ...]
    model_calls: int | None = None
    graded_by_model: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {count(len(self.samples), 'trial')}, written by {self.tool}"


class Row(NamedTuple):
    """One trial as the gate takes it; an empty severity is one that nobody gave."""

    test: str
    trial: int
    family: str
    part: RowPart
    severity: Severity | Literal[""]
    outcome: Outcome


@dataclass(frozen=True, repr=False)
class Meaning(Shown):
    """Where a file says what a gate asks for, and what passes.

    Attributes
    ----------
    family, stratum, severity : str
        Names of fields. A stratum is ``regression``, ``benign`` or ``held_out``.
    passes : str
        A comparison, such as ``score >= 0.5`` or ``metadata.safe == true``; empty where the tool
        itself says what passes.
    """

    family: str = ""
    stratum: str = ""
    severity: str = ""
    passes: str = ""

    def rows(self, files: Iterable[ResultFile]) -> tuple[Row, ...]:
        """Say what the samples of some files mean.

        Parameters
        ----------
        files : iterable of ResultFile
            Those of one side.

        Returns
        -------
        tuple of Row
            One for each trial, in the order of the files.

        Raises
        ------
        ResultsError
            If a field is nowhere, says something that is not known, a score is neither pass nor
            fail and nobody said what passes, or a trial stands there twice.
        """
        check = _comparison(self.passes) if self.passes else None
        rows: list[Row] = []
        seen: dict[tuple[str, int], str] = {}
        files = list(files)
        for file in files:
            for sample in file.samples:
                key = sample.test, sample.trial
                if key in seen:
                    raise ResultsError(
                        f"{file.name}: trial {sample.trial} of {one_line(sample.test, 60)} is in "
                        f"{seen[key]} already; give each trial once"
                    )
                seen[key] = file.name
                rows.append(
                    Row(
                        sample.test,
                        sample.trial,
                        str(self._told(file, sample, "family", sample.test)),
                        self._part(file, sample),
                        self._severity(file, sample),
                        self._outcome(file, sample, check),
                    )
                )
        for name in ("family", "stratum", "severity"):
            wanted = getattr(self, name)
            at = {wanted, f"metadata.{wanted}"}
            if wanted and not any(at & s.fields.keys() for f in files for s in f.samples):
                raise ResultsError(
                    f"{files[0].name}: no trial has a field {wanted!r} for --{name}; "
                    f"{_there_are(files)}"
                )
        return tuple(rows)

    def _told(self, file: ResultFile, sample: Sample, what: str, otherwise: Any) -> Any:
        name = getattr(self, what) or what
        for at in (name, f"metadata.{name}"):
            if (told := sample.fields.get(at)) not in (None, ""):
                if isinstance(told, (list, dict)):
                    raise ResultsError(
                        f"{file.name}: field {at} of {one_line(sample.test, 60)} is no single value"
                    )
                return told
        return otherwise

    def _part(self, file: ResultFile, sample: Sample) -> RowPart:
        # What this project exports says so beside the stratum.
        split = sample.fields.get("metadata.split") == "held_out"
        told = self._told(file, sample, "stratum", "held_out" if split else "regression")
        return cast(RowPart, _one_of(_PARTS, told, "stratum", file, sample))

    def _severity(self, file: ResultFile, sample: Sample) -> Severity | Literal[""]:
        told = self._told(file, sample, "severity", "")
        return cast(Severity, _one_of(_SEVERITIES, told, "severity", file, sample)) if told else ""

    def _outcome(self, file: ResultFile, sample: Sample, check: _Check | None) -> Outcome:
        if sample.outcome in ("error", "undetermined"):
            return sample.outcome
        if check is not None:
            return check(file, sample)
        if sample.outcome is None:
            scores = {k: v for k, v in sample.fields.items() if k.startswith("score")}
            name, value = next(iter(scores.items()), ("score", "missing"))
            raise ResultsError(
                f"{file.name}: {one_line(name, 60)} of {one_line(sample.test, 60)} is "
                f"{one_line(value, 40)}, neither pass nor fail: say what passes, "
                f"such as --pass '{name} >= 0.5'"
            )
        return sample.outcome


def _one_of(known: tuple[str, ...], told: Any, what: str, file: ResultFile, sample: Sample) -> str:
    if str(told).lower() not in known:
        raise ResultsError(
            f"{file.name}: {what} of {one_line(sample.test, 60)} is {one_line(told, 40)}: "
            f"use {', '.join(known)}"
        )
    return str(told).lower()


def _there_are(files: Iterable[ResultFile]) -> str:
    names = sorted({name for file in files for sample in file.samples for name in sample.fields})
    return f"there are {', '.join(one_line(name, 40) for name in names[:12]) or 'none'}"


_Check = Callable[[ResultFile, Sample], Outcome]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_SAYS = re.compile(r"\s*(?P<field>[^<>=!]+?)\s*(?P<sign>>=|<=|==|!=|>|<)\s*(?P<value>.+?)\s*")
_WORDS = {"true": True, "false": False}


def _comparison(text: str) -> _Check:
    """Read ``FIELD SIGN VALUE``; nothing in it is ever run."""
    found = _SAYS.fullmatch(text)
    if found is None:
        raise ResultsError(
            f"--pass {one_line(text, 60)!r} is no comparison; write it as 'score >= 0.5'"
        )
    name, sign, said = found["field"], found["sign"], found["value"].strip("'\"")
    wanted = _plain(said)
    if sign not in ("==", "!=") and not isinstance(wanted, float):
        raise ResultsError(f"--pass {one_line(text, 60)!r}: {sign} needs a number")

    def check(file: ResultFile, sample: Sample) -> Outcome:
        if name not in sample.fields:
            return "undetermined"
        value = _plain(sample.fields[name])
        if isinstance(wanted, float) and not isinstance(value, float):
            raise ResultsError(
                f"{file.name}: {one_line(name, 60)} of {one_line(sample.test, 60)} is "
                f"{one_line(value, 40)}, no number to compare"
            )
        return "safe" if _OPERATORS[sign](value, wanted) else "violation"

    return check


def _plain(value: Any) -> float | bool | str:
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


@dataclass(frozen=True, repr=False)
class Results(Shown):
    """One side of a comparison: its files, and a row for each trial in them."""

    name: str
    files: tuple[ResultFile, ...]
    rows: tuple[Row, ...]
    meaning: Meaning = field(default_factory=Meaning)

    def __str__(self) -> str:
        named = ", ".join(file.name for file in self.files[:3])
        more = f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        held = f"{count(len(self.rows), 'trial')} of {self.files[0].tool}"
        return f"{self.name}: {held} ({named}{more})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read, and what the files do not say."""
        said = [f"{file.name}: {note}" for file in self.files for note in file.notes]
        tests = {row.test for row in self.rows if row.part != "benign"}
        families = {row.family for row in self.rows if row.part != "benign"}
        if len(families) == len(tests):
            said.append("each test is a family of its own")
        if not any(row.severity for row in self.rows):
            said.append("no test says how severe it is, so none counts as critical")
        return tuple(said)
