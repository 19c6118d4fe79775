"""A file of any length, one JSON value at a time: JSON Lines, arrays, and objects in a row.

Exporters write all three: a collector a line for each batch, a dump one large array, a console
exporter indented objects one after the other. No more than one value is held, and none of more than
64 MB.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safety_lib.artifacts import ArtifactError
from safety_lib.files import DECODER, MOST_BYTES, FileError, expect_shallow, open_file
from safety_lib.text import one_line

_ADVICE = "give chats or spans as JSON or JSON Lines in UTF-8"
_CHUNK = 1 << 20
# How far before the end of what was read an error still says that there is more to come.
_MARGIN = 16
_MAGIC = {
    b"PAR1": "is Parquet already; a log needs no import",
    b"\x1f\x8b": "is compressed; unpack it first",
    b"PK": "is an archive or a binary Inspect log; convert it to JSON first",
}


def elements(
    path: str | Path, note: Callable[[str, str], None] = lambda what, at: None
) -> Iterator[tuple[str, Any]]:
    """Yield the objects and arrays of a file with the place of each.

    Parameters
    ----------
    path : str or Path
        JSON Lines; or one array, whose entries are yielded; or objects in a row.
    note : callable, optional
        Told what was left out, and where: a last line that is cut off.

    Yields
    ------
    place : str
        Such as ``line 3`` or ``entry 3``.
    value : dict or list

    Raises
    ------
    ArtifactError
        With one line, if the file cannot be read or is damaged before its end.
    """
    path = Path(path)
    try:
        with open_file(path, most=None) as file:
            for place, value in _Reader(path, file, note).values():
                expect_shallow(path, value)
                yield place, value
    except FileError as error:
        raise _refusal(path, error.what) from error
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, note: Callable[[str, str], None]) -> None:
        self.path = path
        self.file = file
        self.note = note

    def values(self) -> Iterator[tuple[str, Any]]:
        start = self.file.read(4)
        for magic, what in _MAGIC.items():
            if start.startswith(magic):
                raise ArtifactError(f"{one_line(self.path.name)}: {what}")
        self.file.seek(0)
        if self._is_lines():
            yield from self._lines()
        else:
            yield from self._in_a_row()

    def _is_lines(self) -> bool:
        """Whether the first line is a value of its own; an array alone is a file of entries."""
        first = b"\n"
        while first and not first.strip(b"\xef\xbb\xbf \t\r\n"):
            first = self.file.readline(MOST_BYTES + 1)
        try:
            value = json.loads(first.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            value = None
        more = isinstance(value, list) and any(iter(lambda: self._line().strip(), b""))
        self.file.seek(0)
        return isinstance(value, dict) or more

    def _lines(self) -> Iterator[tuple[str, Any]]:
        number, offset = 0, 0
        while raw := self._line():
            number += 1
            offset += len(raw)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                where = offset - len(raw) + error.start
                raise _refusal(self.path, f"not UTF-8 at byte {where}") from error
            if not text:
                continue
            at = f"line {number}"
            try:
                value = self._decoded(text, at)
            except json.JSONDecodeError as error:
                if any(line.strip() for line in iter(self._line, b"")):
                    raise _refusal(self.path, f"{at} is not JSON", "correct the file") from error
                self.note("a last line is cut off and not read", at)
                return
            if not isinstance(value, dict | list):
                raise _refusal(self.path, f"{at} holds no JSON object")
            yield at, value
        if not number:
            raise _refusal(self.path, "is empty")

    def _line(self) -> bytes:
        raw = self.file.readline(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise _refusal(self.path, "a line of more than 64 MB", "give a conversation a line")
        return raw

    def _decoded(self, text: str, at: str) -> Any:
        try:
            return DECODER.decode(text)
        except RecursionError as error:
            raise _refusal(self.path, f"{at} is nested too deeply") from error
        except (json.JSONDecodeError, ArtifactError):
            raise
        except ValueError as error:  # a number of thousands of digits
            raise _refusal(self.path, f"{at}: {error}") from error

    def _in_a_row(self) -> Iterator[tuple[str, Any]]:
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.bytes = codecs.getincrementaldecoder("utf-8")()
        self.offset = 0
        number, within = 0, False
        while sign := self._sign():
            if sign == "[" and not within:
                within, self.at = True, self.at + 1
            elif sign in ",]" and within and number:
                within, self.at = sign == ",", self.at + 1
            elif sign == "]" and within:
                raise _refusal(self.path, "is an empty list")
            elif sign in "{[":
                number += 1
                yield f"entry {number}", self._value()
            else:
                raise self._damaged(self.at)
        if within:
            raise self._damaged(self.at)
        if not number:
            raise _refusal(self.path, "is empty")

    def _sign(self) -> str:
        """Return the next sign that is no blank, without taking it; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace() and self.text[self.at] != "\ufeff":
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _MARGIN
                if len(self.text) - self.at > MOST_BYTES:
                    what = f"an entry of more than 64 MB at line {self._line_of(self.at)}"
                    raise _refusal(self.path, what, "give JSON Lines") from error
                if not cut or not self._more():
                    raise self._damaged(error.pos) from error
            except RecursionError as error:
                raise _refusal(self.path, "nested too deeply") from error
            except ArtifactError:
                raise
            except ValueError as error:
                raise _refusal(self.path, str(error)) from error

    def _more(self) -> bool:
        """Read on, and let go of what was taken."""
        if self.ended:
            return False
        self.line = self._line_of(self.at)
        self.text, self.at = self.text[self.at :], 0
        raw = self.file.read(max(_CHUNK, len(self.text)))
        self.ended = not raw
        try:
            self.text += self.bytes.decode(raw, self.ended)
        except UnicodeDecodeError as error:
            raise _refusal(self.path, f"not UTF-8 at byte {self.offset + error.start}") from error
        self.offset += len(raw)
        return not self.ended

    def _line_of(self, place: int) -> int:
        return self.line + self.text.count("\n", 0, place)

    def _damaged(self, place: int) -> ArtifactError:
        what = f"not JSON at line {self._line_of(place)}, so truncated or damaged"
        return _refusal(self.path, what)


def _refusal(path: Path, what: str, advice: str = _ADVICE) -> ArtifactError:
    return ArtifactError(f"{one_line(path.name)}: {one_line(what)}; {advice}")
