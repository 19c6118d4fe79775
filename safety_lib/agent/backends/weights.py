"""Model files on this machine: what a version names, checked before anything is served.

A GGUF begins with a list of its settings and one of its tensors. Both are read here, so that a
wrong file, another one than was named, or an adapter that was made for another base is one line
and never a fault deep inside the server.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from safety_lib.artifacts import CHECKOUT
from safety_lib.files import FileError, open_file

_MAGIC = b"GGUF"
_MOST_ENTRIES = 1 << 20
_MOST_TEXT = 1 << 24  # bytes; a chat template is the longest text there is
_NUMBER = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9
_DEPTH = 4


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of a GGUF.

    Attributes
    ----------
    settings : Mapping
        By name; of a list only its length is kept.
    tensors : Mapping
        The shape of each tensor by its name, the fastest dimension first.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    def number(self, name: str) -> int:
        """Return a setting of the architecture such as ``block_count``; 0 if it has none."""
        value = self.settings.get(f"{self.settings.get('general.architecture')}.{name}", 0)
        return int(value) if isinstance(value, int | float) else 0


@dataclass(frozen=True)
class Weights:
    """A base model's file and, where there is one, the adapter on it.

    Attributes
    ----------
    name : str
        What artifacts call it: the same words, the same bytes.
    base, base_sha256 : Path, str
        The file, and the hash of its bytes.
    adapter, adapter_sha256 : Path or None, str
        The same of the adapter.
    header : Header
        Of the base.
    """

    name: str
    base: Path
    base_sha256: str
    adapter: Path | None = None
    adapter_sha256: str = ""
    header: Header = field(default_factory=lambda: Header({}, {}), compare=False, repr=False)


def named_weights(settings: Mapping[str, Any], packaged: tuple[str, Path] | None) -> Weights:
    """Find and check the files that the ``model`` section of a version names.

    Parameters
    ----------
    settings : Mapping
        ``gguf`` and ``sha256`` name the base, ``adapter`` and ``adapter_sha256`` the LoRA adapter
        on it. Paths are relative to the working directory, and to the checkout where they lead
        nowhere.
    packaged : tuple of str and Path, or None
        Name and file of the base where ``gguf`` is not given.

    Returns
    -------
    Weights
        Files that are what the version says, and belong together.

    Raises
    ------
    FileError
        If a file is missing, is no GGUF, or has another hash; if the adapter is none or was made
        for another base. One line names the file and the remedy.
    ValueError
        If a path comes without its hash, or a hash without its path.

    Examples
    --------
    >>> named_weights({"gguf": "my-model.gguf"}, None)
    Traceback (most recent call last):
    ...
    ValueError: model setting sha256: missing for gguf my-model.gguf: `sha256sum` prints it
    """
    base = _of(settings, "gguf", "sha256")
    adapter = _of(settings, "adapter", "adapter_sha256")
    if base is None and packaged is None:
        raise ValueError("model setting gguf: names no file")
    if base is None:
        assert packaged is not None
        name, path = packaged
        digest = file_sha256(path)
    else:
        path, digest = base
        name = f"{path.stem}@{digest[:12]}"
    header = read_header(path)
    if header.settings.get("general.type") == "adapter":
        raise FileError(path, "is an adapter, not a model; name it as adapter beside its base")
    if adapter is None:
        return Weights(name, path, digest, header=header)
    _expect_fitting(adapter[0], read_header(adapter[0]), path, header)
    name += f"+{adapter[0].stem}@{adapter[1][:12]}"
    return Weights(name, path, digest, *adapter, header=header)


def read_header(path: str | Path) -> Header:
    """Read what stands at the beginning of a GGUF.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Header
        Its settings and the shapes of its tensors.

    Raises
    ------
    FileError
        If there is no such file, or it is no GGUF, or ends before its tensors do.
    """
    with open_file(path, None) as file:
        try:
            return _Reader(file).header()
        except (_NoGguf, struct.error, UnicodeDecodeError, OverflowError) as error:
            why = str(error) if isinstance(error, _NoGguf) else "its beginning cannot be read"
    raise FileError(path, f"is no GGUF: {why}")


def _of(settings: Mapping[str, Any], path: str, digest: str) -> tuple[Path, str] | None:
    name, wanted = str(settings.get(path) or ""), str(settings.get(digest) or "").lower()
    if not name and not wanted:
        return None
    if not name:
        raise ValueError(f"model setting {path}: missing for {digest}")
    if not wanted:
        raise ValueError(
            f"model setting {digest}: missing for {path} {name}: `sha256sum` prints it"
        )
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise ValueError(f"model setting {digest}: is not 64 hexadecimal digits")
    file = Path(name)
    if not file.exists() and (CHECKOUT / name).exists():
        file = CHECKOUT / name
    found = file_sha256(file)
    if found != wanted:
        problem = f"has the sha256 {found}, {digest} names {wanted}: another file than was meant"
        raise FileError(name, problem)
    return file, found


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes.

    Raises
    ------
    FileError
        If there is no such file.
    """
    with open_file(path, None) as file:  # a missing file and a folder are told in one line
        file.seek(0)
    about = path.stat()
    return _hashed(str(path.resolve()), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=32)
def _hashed(path: str, size: int, modified: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expect_fitting(adapter: Path, made: Header, path: Path, base: Header) -> None:
    """Raise where an adapter does not belong on a base."""
    kind = made.settings.get("adapter.type")
    if made.settings.get("general.type") != "adapter" or kind != "lora":
        raise FileError(adapter, "is a GGUF, but no LoRA adapter")
    for_other = f"was made for another base than {path.name}"
    of, on = (h.settings.get("general.architecture") for h in (made, base))
    if of != on:
        raise FileError(adapter, f"{for_other}: its architecture is {of}, that of the base {on}")
    if not made.tensors:
        raise FileError(adapter, "has no tensors")
    for name, shape in made.tensors.items():
        on_tensor, _, part = name.rpartition(".lora_")
        there = base.tensors.get(on_tensor)
        if part not in ("a", "b") or there is None:
            raise FileError(adapter, f"{for_other}: that has no tensor for {name}")
        at = 0 if part == "a" else 1
        if len(shape) < 2 or len(there) < 2 or shape[at] != there[at]:
            raise FileError(adapter, f"{for_other}: {name} has another size")


class _NoGguf(Exception):
    """Why a file is none."""


class _Reader:
    """Reads the beginning of a GGUF from a file, and never more than it can hold."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)

    def header(self) -> Header:
        if self._bytes(4) != _MAGIC:
            raise _NoGguf("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise _NoGguf(f"its version is {version}, not 2 or 3")
        tensors, entries = self._count(), self._count()
        settings = {self._text(): self._value(self._number("I")) for _ in range(entries)}
        shapes: dict[str, tuple[int, ...]] = {}
        last = 0
        for _ in range(tensors):
            name = self._text()
            dimensions = self._number("I")
            if dimensions > 8:
                raise _NoGguf(f"a tensor of {dimensions} dimensions")
            shapes[name] = tuple(self._number("Q") for _ in range(dimensions))
            self._number("I")
            last = max(last, self._number("Q"))
        if tensors and self._file.tell() + last >= self._size:
            raise _NoGguf("it ends before its tensors do; fetch it again")
        return Header(settings, shapes)

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            if depth == _DEPTH:
                raise _NoGguf("lists within lists")
            inner, length = self._number("I"), self._number("Q")
            if inner in _NUMBER:
                self._skip(length * struct.calcsize("<" + _NUMBER[inner]))
            else:
                if length > _MOST_ENTRIES:
                    raise _NoGguf(f"a list of {length} entries")
                for _ in range(length):
                    self._value(inner, depth + 1)
            return length
        if kind not in _NUMBER:
            raise _NoGguf(f"a setting of the unknown type {kind}")
        return self._number(_NUMBER[kind])

    def _count(self) -> int:
        count = int(self._number("Q"))
        if count > _MOST_ENTRIES:
            raise _NoGguf(f"{count} entries")
        return count

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MOST_TEXT:
            raise _NoGguf(f"a text of {length} bytes")
        return self._bytes(length).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))[0]

    def _skip(self, length: int) -> None:
        if self._file.tell() + length > self._size:
            raise _NoGguf("it ends too early; fetch it again")
        self._file.seek(length, 1)

    def _bytes(self, length: int) -> bytes:
        found = self._file.read(length)
        if len(found) < length:
            raise _NoGguf("it ends too early; fetch it again")
        return found
