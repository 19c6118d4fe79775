"""Tables of trials: CSV, Parquet, or a pandas frame with a row for each trial.

``test`` names the test and ``outcome`` says ``pass``, ``fail``, ``error`` or ``undetermined``;
``true`` and ``false`` are taken for the first two. ``trial`` is optional: rows of a test are
numbered in their order. Every other column is a field. Without ``outcome`` there has to be a column
``score``, and somebody has to say what passes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safety_lib.records import Outcome
from safety_lib.results.opening import MOST_SAMPLES, Held, numbered, refused, showable, title
from safety_lib.results.table import ResultFile, Sample
from safety_lib.text import one_line

if TYPE_CHECKING:
    import pandas as pd

_OUTCOMES: dict[str, Outcome] = {
    "pass": "safe",
    "true": "safe",
    "1": "safe",
    "safe": "safe",
    "fail": "violation",
    "false": "violation",
    "0": "violation",
    "violation": "violation",
    "error": "error",
    "undetermined": "undetermined",
    "": "undetermined",
}
_DELIMITERS = ",;\t"
_PARQUET = b"PAR1"


def knows_csv(path: Path, head: bytes) -> bool:
    """Whether the first line of a file names the columns of such a table."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return True
    line = _first_line(head)
    return "test" in line and bool({"outcome", "score"} & set(line))


def knows_parquet(path: Path, head: bytes) -> bool:
    """Whether a file is Parquet."""
    return head.startswith(_PARQUET)


def read_csv(path: Path, max_bytes: int) -> Held:
    """Read a table of trials from CSV."""
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            first = file.readline(1 << 16)
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(first), strict=True)
            columns = next(rows, [])
            return _found(path, columns, _whole(path, columns, rows))
    except UnicodeDecodeError as error:
        raise refused(path, f"not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise refused(path, f"not CSV ({error})") from None
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None


def read_parquet(path: Path, max_bytes: int) -> Held:
    """Read a table of trials from Parquet."""
    import duckdb

    with duckdb.connect() as base:
        try:
            told = base.execute("FROM parquet_file_metadata(?)", [str(path)]).fetchdf()
            rows = int(told["num_rows"].sum())
            sized = base.execute(
                "SELECT sum(total_uncompressed_size) FROM parquet_metadata(?)", [str(path)]
            ).fetchone()
            unpacked = int(sized[0] or 0) if sized else 0
            if rows > MOST_SAMPLES or unpacked > max_bytes:
                what = f"{rows:,} rows and {unpacked:,} bytes unpacked, too many"
                raise refused(path, what, "raise --max-bytes if it is to be trusted")
            table = base.execute("FROM read_parquet(?)", [str(path)])
            columns = [str(column[0]) for column in table.description or ()]
            return _found(path, columns, iter(table.fetchall()))
        except duckdb.Error as error:
            said = str(error).splitlines()[0]
            raise refused(path, f"not Parquet that can be read ({said})") from None


def from_frame(frame: pd.DataFrame, name: str) -> ResultFile:
    """Take a table of trials from a pandas frame.

    Parameters
    ----------
    frame : pandas.DataFrame
        A row for each trial, with the columns that a CSV file has.
    name : str
        What messages call it.

    Raises
    ------
    ResultsError
        If a column is missing, or a value is none that it may hold.

    Examples
    --------
    >>> import pandas as pd
    >>> print(from_frame(pd.DataFrame({"test": ["a", "a"], "outcome": ["pass", "fail"]}), "mine"))
    mine: 2 trials, written by pandas
    """
    columns = [str(column) for column in frame.columns]
    plain = frame.astype(object).where(frame.notna(), None)
    found = _found(Path(name), columns, iter(plain.to_numpy().tolist()))
    # Frames of two sides may well hold the same outcomes; only a file can be given twice.
    whole = f"{name}\n{frame.to_csv(index=False)}"
    digest = hashlib.sha256(whole.encode("utf-8", "backslashreplace"))
    return ResultFile(name, "pandas", digest.hexdigest(), tuple(map(showable, found.samples)))


def _delimiter(line: str) -> str:
    counts = {sign: line.count(sign) for sign in _DELIMITERS}
    return max(counts, key=lambda sign: counts[sign]) if any(counts.values()) else ","


def _first_line(head: bytes) -> list[str]:
    line = head.decode("utf-8-sig", "ignore").split("\n", 1)[0].rstrip("\r")
    try:
        return next(csv.reader(io.StringIO(line), delimiter=_delimiter(line)), [])
    except csv.Error:
        return []


def _whole(path: Path, columns: Sequence[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(columns):
            raise refused(path, f"row {number} has {len(row)} cells, the header {len(columns)}")
        yield row


def _found(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Held:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise refused(path, f"the column {twice[0]!r} stands there twice")
    scored = any(column == "score" or column.startswith("score.") for column in columns)
    for column in ("test", *(() if scored else ("outcome",))):
        if column not in columns:
            there = ", ".join(one_line(name, 30) for name in columns[:8]) or "none"
            raise refused(
                path,
                f"no column {column!r} (there are {there})",
                "a table of trials has test, outcome and optionally trial",
            )
    samples = [
        _sample(path, number, dict(zip(columns, row, strict=True)))
        for number, row in enumerate(rows, start=2)
    ]
    return Held(samples if "trial" in columns else numbered(samples))


def _sample(path: Path, number: int, row: Mapping[str, Any]) -> Sample:
    test = row["test"]
    if _is_empty(test):
        raise refused(path, f"row {number} names no test")
    fields = {
        column: value
        for column, value in row.items()
        if column not in ("test", "trial", "outcome") and not _is_empty(value)
    }
    outcome = _outcome(path, number, row["outcome"]) if "outcome" in row else None
    return Sample(title(_plain(test)), _trial(path, number, row), outcome, fields)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Return a number that a table holds as 3.0 only for the sake of its empty cells, as 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _trial(path: Path, number: int, row: Mapping[str, Any]) -> int:
    if "trial" not in row:
        return 1
    told = str(_plain(row["trial"])).strip()
    if not told.isascii() or not told.isdecimal() or not 0 < len(told) < 10:
        raise refused(path, f"trial in row {number} is {one_line(told, 30)!r}, no whole number")
    return int(told)


def _outcome(path: Path, number: int, value: Any) -> Outcome:
    told = "" if _is_empty(value) else str(_plain(value)).strip().lower()
    if told not in _OUTCOMES:
        raise refused(
            path,
            f"outcome in row {number} is {one_line(told, 30)!r}",
            "use pass, fail, error or undetermined",
        )
    return _OUTCOMES[told]
