"""Files: one reader for all that a user names, one writer, one lock.

Whoever names a file may name a pipe that never ends, a folder, a bomb of 500 bytes or a key that
stands there twice. All of them are refused with one line that says which file and where in it, and
what is read is plain data: mappings of texts, lists, texts, finite numbers, booleans and nothing.

What is written is the old file or the new one, never a mixture, and never lies over something that
the same run reads. A kill between two writes leaves a ``.part`` behind, which the next write into
that folder takes away.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

from safety_lib.plain_yaml import MOST_DEPTH, PlainYamlError, load_plain, too_deep
from safety_lib.text import one_line

if sys.platform != "win32":
    import fcntl

MOST_BYTES = 64 << 20
MOST_YAML_BYTES = 1 << 20
MOST_PARTS = 4_000_000
_LONGEST_NUMBER = re.compile(r"[0-9]{4301,}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LEFT_BEHIND = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class FileError(ValueError):
    """A file that cannot be read or written as asked; the message is one line for a person.

    Attributes
    ----------
    what : str
        Why, without the name of the file: for a message that names it in another way.
    absent : bool
        Whether there is no such file.
    """

    def __init__(self, path: str | Path, what: str, *, absent: bool = False) -> None:
        self.what = one_line(what, 300)
        self.absent = absent
        super().__init__(f"{one_line(Path(path).name or path)}: {self.what}")


# --------------------------------------------------------------------------- reading


def open_file(path: str | Path, most: int | None = MOST_BYTES) -> BufferedReader:
    """Open a file for reading, if it is one: a pipe or a device is refused and not waited for.

    Parameters
    ----------
    path : str or Path
        As a user named it.
    most : int, optional
        Bytes that it may have; None where it is read piece by piece.

    Raises
    ------
    FileError
        If it is not there, cannot be read, is no regular file or is too large.

    Examples
    --------
    >>> open_file("/dev/zero")
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: zero: is a device, not a file
    """
    path = Path(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        where = one_line(path.parent)
        raise FileError(path, f"there is no such file in {where}", absent=True) from None
    except (OSError, ValueError) as error:  # a path with a null byte, or of thousands of signs
        said = getattr(error, "strerror", None) or error
        raise FileError(path, f"cannot be read ({said})") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise FileError(path, f"is {kind}, not a file")
        if most is not None and found.st_size > most:
            raise FileError(path, f"has more than {most >> 20} MB, which is the most that is read")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return what a file holds.

    Raises
    ------
    FileError
        As :func:`open_file`, and if the file changes while it is read.
    """
    with open_file(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror})") from error
    if len(data) != size:  # written to meanwhile; or made up as it is read, as in /proc
        raise FileError(path, "changes while it is read")
    return data


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file in UTF-8; a mark of byte order at its start is none of it.

    Raises
    ------
    FileError
        As :func:`read_bytes`, and if it is not UTF-8.
    """
    return as_text_of(path, read_bytes(path, most))


def as_text_of(path: str | Path, data: bytes) -> str:
    """Decode what was read from a file.

    Parameters
    ----------
    path : str or Path
        The file, for the message.
    data : bytes
        What was read from it.

    Raises
    ------
    FileError
        If it is not UTF-8.

    Examples
    --------
    >>> as_text_of("a.json", "dé".encode("utf-16"))
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: a.json: not UTF-8 at byte 0 (it looks like UTF-16)
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        other = " (it looks like UTF-16)" if data.startswith(_UTF_16) else ""
        raise FileError(path, f"not UTF-8 at byte {error.start}{other}") from error


def read_json(path: str | Path, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    FileError
        As :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(path, read_text(path, most))


def parse_json(path: str | Path, text: str) -> Any:
    """Return the value that a JSON text stands for.

    Parameters
    ----------
    path : str or Path
        The file, for the message.
    text : str
        What was read from it.

    Raises
    ------
    FileError
        If it is not JSON, names something twice, is nested more than 100 deep, or holds a number
        that is none or has more than 4,300 digits.

    Examples
    --------
    >>> parse_json("suite.json", '{"seed": 7, "seed": 8}')
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: suite.json: 'seed' stands there twice
    """
    parts = text.count("[") + text.count("{")
    if parts > MOST_PARTS:  # a byte or two, and a hundred in memory
        raise FileError(path, f"holds more than {MOST_PARTS:,} lists and mappings")
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise FileError(path, f"not JSON at {where}, so truncated or damaged") from error
    except RecursionError:
        raise FileError(path, too_deep(MOST_DEPTH)) from None
    except ValueError as error:
        raise FileError(path, _of_a_number(text) or str(error)) from error
    if parts > MOST_DEPTH:
        expect_shallow(path, value)
    return value


def expect_shallow(path: str | Path, value: Any, most: int = MOST_DEPTH) -> None:
    """Refuse a value that is nested so deep that what walks it would not come back.

    Parameters
    ----------
    path : str or Path
        The file, for the message.
    value : Any
        A tree of JSON.
    most : int
        Levels of lists and mappings.

    Raises
    ------
    FileError
        With the way down to it.
    """
    level = _containers([value])
    for _ in range(most):
        if not level:
            return
        level = _containers(chain.from_iterable(map(_inside, level)))
    if level:
        raise FileError(path, f"field {_way_down(value)}: {too_deep(most)}")


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _way_down(value: Any) -> str:
    """Name the first steps to the deepest part of a value."""
    way: list[str] = []
    paths: list[tuple[Any, list[str]]] = [(value, [])]
    while paths:
        value, way = paths[0]
        paths = [
            (inner, [*before, str(key)][:4])
            for outer, before in paths
            for key, inner in (outer.items() if isinstance(outer, dict) else enumerate(outer))
            if isinstance(inner, dict | list)
        ]
    return ".".join(way) or "the whole"


def _of_a_number(text: str) -> str:
    found = _LONGEST_NUMBER.search(text)
    if found is None:
        return ""
    line = text.count("\n", 0, found.start()) + 1
    return f"line {line}: a number of {found.end() - found.start():,} digits"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{one_line(repr(twice), 60)} stands there twice")
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{one_line(text, 40)} is larger than a number can be")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number)
"""Reads JSON, and refuses what is ambiguous or no number by a ValueError."""


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds: plain data, names as they are written.

    Raises
    ------
    FileError
        As :func:`read_text` and :func:`parse_yaml`; a file has at most 1 MB.
    """
    return parse_yaml(path, read_text(path, MOST_YAML_BYTES))


def parse_yaml(path: str | Path, text: str) -> Any:
    """Return the value that a YAML text stands for.

    A date is the text that stands there, and so is the name of an entry, whatever it looks like.

    Parameters
    ----------
    path : str or Path
        The file, for the message.
    text : str
        What was read from it.

    Raises
    ------
    FileError
        If it is not YAML, names something twice, is nested more than 100 deep, comes to more than
        50,000 entries with each use of an alias counted, or holds what its tag cannot mean.

    Examples
    --------
    >>> parse_yaml("v4.yaml", "since: 2024-13-01")
    {'since': '2024-13-01'}
    >>> parse_yaml("v4.yaml", "settings:" + chr(10) + "  careful: !!bool maybe")
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: v4.yaml: line 2: 'maybe' is no bool
    """
    try:
        value = load_plain(text)
    except PlainYamlError as error:
        raise FileError(path, str(error)) from error
    for field, number in not_finite(value):
        raise FileError(path, f"field {field or 'the whole'}: JSON cannot hold {number}")
    return value


def not_finite(value: Any, field: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a tree that are NaN or infinite, each with its dotted name.

    Parameters
    ----------
    value : Any
        Mappings, lists and values.
    field : str
        The name of what it stands in.

    Examples
    --------
    >>> list(not_finite({"a": [1.0, float("inf")]}))
    [('a.1', inf)]
    """
    if isinstance(value, float) and not math.isfinite(value):
        yield field, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from not_finite(inner, f"{field}.{key}" if field else str(key))


# --------------------------------------------------------------------------- hashing


def sha256_of(value: Any) -> str:
    """Return the hash of the canonical JSON of a value.

    Examples
    --------
    >>> sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --------------------------------------------------------------------------- writing


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically: whoever reads sees the old file or the new one.

    Parameters
    ----------
    path : str or Path
        Its folder is made if it is not there; a link stays one.
    text : str
        Half a surrogate pair, which a model can send and UTF-8 cannot hold, is escaped as in
        JSON.

    Raises
    ------
    FileError
        If something else than a file stands there.
    """
    return write_bytes(
        path, _LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()
    )


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file atomically, as :func:`write_text` does.

    Parameters
    ----------
    path : str or Path
        Its folder is made if it is not there; a link stays one.
    data : bytes
        What it will hold.

    Raises
    ------
    FileError
        If something else than a file stands there.
    """
    target = _expect_file(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        part, held = _new_part(target)
        try:
            with os.fdopen(held, "wb") as out:  # holds it until it is in its place
                out.write(data)
                out.flush()
                os.fsync(held)
                os.replace(part, target)  # noqa: PTH105 - tests stop the write exactly here
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileError(path, f"cannot be written ({error.strerror or error})") from error
    return Path(path)


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in another one; it is gone afterwards, or after the next write there.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    scratch = folder / f".scratch.{secrets.token_hex(4)}.part"
    scratch.mkdir()
    held = os.open(scratch, os.O_RDONLY)
    _hold(held)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def sweep(folder: Path) -> None:
    """Take away what killed runs left behind in a folder: what nobody alive holds any more."""
    for left in folder.glob(".*.part"):
        if not _LEFT_BEHIND.fullmatch(left.name):
            continue
        with suppress(OSError):
            held = os.open(left, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                if _hold(held, wait=False):
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                    else:
                        left.unlink(missing_ok=True)
            finally:
                os.close(held)


def _new_part(target: Path) -> tuple[Path, int]:
    name = target.name[:200]  # a name of 255 bytes leaves no room for ours
    while True:
        part = target.with_name(f".{name}.{secrets.token_hex(4)}.part")
        held = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _hold(held)
        if os.fstat(held).st_nlink:
            return part, held
        os.close(held)  # swept before it was held


def _hold(handle: int, wait: bool = True) -> bool:
    """Lock an open file as its process does until it ends; say whether it is ours."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # taken, or a file system without locks
        return False
    return True


def expect_writable(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse, before the work, what could not be written after it or would lie over an input.

    Parameters
    ----------
    outputs : iterable of str or Path
        The files that will be written.
    inputs : iterable of str or Path
        What is read, or must stay for another reason; names of no file are passed over.

    Raises
    ------
    FileError
        If an output is no file, cannot be made, is one of the inputs or stands there twice.

    Examples
    --------
    >>> expect_writable(["pyproject.toml"], ["./pyproject.toml"])
    Traceback (most recent call last):
    ...
    safety_lib.files.FileError: pyproject.toml: is read or kept by this run, and would be \
overwritten; name another file
    """
    kept = {_identity(path) for path in inputs}
    for path in outputs:
        target = _expect_file(path)
        here = _identity(target)
        if here in kept:
            raise FileError(
                path, "is read or kept by this run, and would be overwritten; name another file"
            )
        kept.add(here)
        _expect_room(path, target.parent)


def _expect_file(path: str | Path) -> Path:
    """Return what is written in the end: a link stays one, and leads to it."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.name or str(path).endswith(("/", os.sep)):
            raise FileError(path, "is no name of a file") from None
        return target
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise FileError(path, f"cannot be written ({said})") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise FileError(path, f"is {kind}, and nothing can be written over it")
    return target


def _expect_room(path: str | Path, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise FileError(path, f"cannot be written: {one_line(folder)} is no folder")
    try:
        # Nameless, so that nothing stays even if the run is killed here.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        said = f"cannot be written: {one_line(folder)}: {error.strerror}"
        raise FileError(path, said) from error


def _identity(path: str | Path) -> tuple[int, int] | str:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return str(path) if "\0" in str(path) else os.path.realpath(path)
    return found.st_dev, found.st_ino


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder while the block runs; the lock ends with the process.

    Parameters
    ----------
    folder : Path
        Made if it is not there; the lock is the file ``.lock`` in it.

    Raises
    ------
    FileError
        If something else stands there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _expect_file(folder / ".lock").open("a") as lock:
        _hold(lock.fileno())
        yield
