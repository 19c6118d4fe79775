"""Finds out which tool wrote a file, and reads it.

Each reader stands in a module of its own and is listed here; what none of them knows is refused
with the list of what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safety_lib.results.table import ResultFile, ResultsError
from safety_lib.text import one_line

MAX_BYTES = 1 << 30


class Reader(NamedTuple):
    """How the results of one tool are known, and read.

    Attributes
    ----------
    tool : str
        Whose results, as messages name them.
    reads : str
        What such a file is, in a few words, for the list of what is read.
    knows : callable
        ``knows(path, head)`` says whether a file is one, from its name and its first bytes (a
        folder has none); it never raises.
    read : callable
        ``read(path)`` returns what it holds, and raises `ResultsError` in one line.
    """

    tool: str
    reads: str
    knows: Callable[[Path, bytes], bool]
    read: Callable[[Path], ResultFile]


RESULT_READERS: tuple[Reader, ...] = ()


def read_one(path: Path, max_bytes: int = MAX_BYTES) -> ResultFile:
    """Read one file or folder of results, whichever tool wrote it.

    Parameters
    ----------
    path : Path
        Of the file or folder.
    max_bytes : int
        A larger file is refused.

    Returns
    -------
    ResultFile
        What it holds.

    Raises
    ------
    ResultsError
        If it is missing, too large, damaged, or of no tool that is read.
    """
    if not path.exists():
        raise ResultsError(f"{path}: there is no such file")
    head = b""
    if path.is_file():
        if path.stat().st_size > max_bytes:
            raise ResultsError(
                f"{path.name}: {path.stat().st_size:,} bytes, more than --max-bytes {max_bytes:,}"
            )
        with path.open("rb") as file:
            head = file.read(1 << 16)
    elif not path.is_dir():
        raise ResultsError(f"{path.name}: neither a file nor a folder")
    for reader in RESULT_READERS:
        if reader.knows(path, head):
            return reader.read(path)
    raise ResultsError(
        f"{one_line(path.name, 60)}: not results that are read: "
        + "; ".join(f"{reader.tool} ({reader.reads})" for reader in RESULT_READERS)
    )
