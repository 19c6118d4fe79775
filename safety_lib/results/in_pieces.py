"""Reads long JSON a piece at a time, so that a file need not fit into memory.

What is long in the results of a tool is one list: of samples, of results, of simulations. The file
is cut at the brackets of that list. Each of its entries is parsed by itself, and what stands around
the list is parsed with the list left empty. Only brackets are looked for, so that whatever the
parser puts up with elsewhere (NaN, half a surrogate pair) is put up with here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from safety_lib.results.opening import parsed, refused

Place = tuple[str, ...]
_STEP = 1 << 20
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+[{}\[\]]', re.DOTALL)
_KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*[\[{]\Z', re.DOTALL)
_LONGEST_KEY = 1000
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")


class CutFile(NamedTuple):
    """A document without its long lists, and their entries.

    Attributes
    ----------
    around : bytes
        The document, each list that was taken out left empty.
    entries : dict
        Place to what stands there, in its order; a place that is not in the file has none.
    """

    around: bytes
    entries: dict[Place, list[Any]]


def read_in_pieces(path: Path, lists: Mapping[Place, type[Any]], what: str) -> CutFile:
    r"""Read a JSON file whose long lists are parsed entry by entry.

    Parameters
    ----------
    path : Path
        UTF-8, of any size.
    lists : mapping
        Place to the shape of an entry; a place is the keys on the way to a list, none for a file
        that is a list.
    what : str
        What the file should be, such as ``an Inspect log``.

    Returns
    -------
    CutFile
        What was read; what stands around the lists is not parsed yet.

    Raises
    ------
    ResultsError
        If it cannot be read, an entry is not of its shape, or a list stands there twice.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "log.json")
    ...     _ = path.write_text('{"n": 2, "rows": [{"a": 1}, {"a": 2}], "m": []}')
    ...     read_in_pieces(path, {("rows",): dict[str, int]}, "a row")
    CutFile(around=b'{"n": 2, "rows": [], "m": []}', entries={('rows',): [{'a': 1}, {'a': 2}]})
    """
    around = bytearray()
    entries: dict[Place, list[Any]] = {}
    above: list[str | None] = []  # the key of each open bracket; the top and entries have none
    deepest = max(map(len, lists))
    try:
        pieces = _to_brackets(path)
        for text in pieces:
            around += text
            if text.endswith(_CLOSING):
                del above[-1:]
            elif text.endswith(_OPENING):
                above.append(_key(text) if len(above) <= deepest else None)
                place = cast(Place, tuple(above[1:]))
                if text.endswith(b"[") and place in lists:
                    if place in entries:
                        raise refused(path, f"{'.'.join(place)} stands there twice")
                    entries[place] = [
                        parsed(path, entry, lists[place], what, ".".join((*place, str(n))))
                        for n, entry in enumerate(_entries(pieces))
                    ]
                    around += b"]"
                    above.pop()
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    except EOFError:
        where = ".".join(place) or "its list"
        raise refused(path, f"not JSON: it is cut off in {where}") from None
    return CutFile(bytes(around), {place: entries.get(place, []) for place in lists})


def _entries(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the entries of a list up to its end, which is taken too."""
    depth = 0
    first = True
    entry = bytearray()
    for text in pieces:
        entry += text
        depth += text.endswith(_OPENING) - text.endswith(_CLOSING)
        if depth <= 0:
            whole = bytes(entry if depth == 0 else entry[:-1]).strip()
            if whole:
                yield whole if first else _after_a_comma(whole)
            first = False
            entry.clear()
        if depth < 0:
            return
    raise EOFError


def _after_a_comma(entry: bytes) -> bytes:
    """Return an entry without its comma; the parser refuses one too many, or none."""
    if not entry.startswith(b","):
        return b"," + entry
    return entry[1:] or entry


def _key(text: bytes) -> str | None:
    found = _KEY.search(text[-_LONGEST_KEY:])
    return found[1].decode("utf-8", "replace") if found else None


def _to_brackets(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces that end with a bracket outside of a string; the last one may not."""
    rest = b""
    step = _STEP
    with path.open("rb") as file:
        while more := file.read(step):
            rest += more
            at = 0
            while found := _TO_BRACKET.match(rest, at):
                yield found[0]
                at = found.end()
            # What is longer than all that is held is looked at again with twice as much.
            step = _STEP if at else 2 * len(rest)
            rest = rest[at:]
    if rest:
        yield rest
