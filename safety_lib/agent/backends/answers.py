"""Answers that were paid for: each stands in a journal before it is used, and is not asked again.

Every stage asks its models through a few doors: a chat endpoint, an agent over HTTP, an agent of
somebody's own that asks by itself. Each door looks here first. An answer is known by the
conversation that it belongs to (package, world, version, name, seed) and by all that was asked, so
an edited world, another endpoint or another plan meets no answer of the old one. What is asked
twice in the same conversation is answered twice, in the order in which it was.

A run is several processes; an environment variable tells them all where the journal is, and how
much of it is of before. A line is written with one call: a kill tears the last one at most, and
what cannot be read is asked again. Before a request a line says so; so it is known how many were
under way when a run was killed. What failed is kept as failed and asked again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, cast

import safety_lib
from safety_lib.agent.backends import BackendError
from safety_lib.files import expect_writable, sha256_of
from safety_lib.records import Message
from safety_lib.text import count

if sys.platform != "win32":
    import fcntl

ANSWERS_VARIABLE = "SAFETY_LIB_ANSWERS"
_HEADER = b'{"artifact": "answers", "schema_version": 1}\n'
_AGAIN = {"went": "on"}  # what was under way before it is so no more
_MOST_RUNS = 100  # at the same time into one folder

_place = os.environ.get(ANSWERS_VARIABLE, "")  # "" keeps nothing; of a child, that of its parent
_conversation: ContextVar[str] = ContextVar("conversation", default="")
_opened: dict[tuple[int, str], _Journal] = {}
_opening = threading.Lock()

_P = ParamSpec("_P")


class AnswerError(BackendError):
    """The model answered, but nothing that can be used.

    To ask until an answer can be used would select among its answers, so this one is kept.
    """


# --------------------------------------------------------------------------- a run


@contextmanager
def keeping_answers(
    folder: Path, name: str, say: Callable[[str], object] = lambda _: None
) -> Iterator[None]:
    """Keep what this process, and those that it starts, are answered; use what was kept before.

    The journal is gone once the block ends well: what is run then is another run, and whoever it
    asks may be mended since.

    Parameters
    ----------
    folder : Path
        Where the journal lies; made if it is not there.
    name : str
        What is run. Another run of the same name beside this one has a journal of its own.
    say : callable, optional
        Told in one line what was found.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If something else stands where the journal would.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with keeping_answers(Path(folder), "example"):
    ...         kept("2 + 2?", lambda: 4)
    4
    """
    before = _place
    path, handle = _claimed(folder, name)
    try:
        if (size := path.stat().st_size) > len(_HEADER):
            found = _Journal(path, size)
            say(found.summary)
            found.add(_AGAIN)
            found.close()
        _keep_at(f"{size}:{path.resolve()}")
        try:
            yield
        finally:
            _keep_at(before)
        path.unlink(missing_ok=True)
    finally:
        if path.exists() and path.stat().st_size <= len(_HEADER):
            path.unlink()
        os.close(handle)


def _claimed(folder: Path, name: str) -> tuple[Path, int]:
    """Open the first journal of that name that no other run holds, and hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, _MOST_RUNS):
        path = folder / f"{name}{f'-{number}' if number > 1 else ''}.answers.jsonl"
        while True:
            expect_writable([path])
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            if not _locked(handle):
                os.close(handle)
                break
            if os.fstat(handle).st_nlink:  # else its run ended just now
                _mend(path, handle)
                return path, handle
            os.close(handle)
    raise OSError(f"{folder}: {_MOST_RUNS} runs are under way here")


def _locked(handle: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


def _mend(path: Path, handle: int) -> None:
    size = os.fstat(handle).st_size
    if _HEADER.startswith(start := os.pread(handle, len(_HEADER), 0)):
        os.write(handle, _HEADER[len(start) :])
        if size and os.pread(handle, 1, size - 1) != b"\n" and size > len(_HEADER):
            os.write(handle, b"\n")  # what was torn stands alone
        return
    os.close(handle)
    raise ValueError(f"{path}: line 1 is not the header of a journal of answers; move it away")


def _keep_at(place: str) -> None:
    global _place
    _place = os.environ[ANSWERS_VARIABLE] = place


def answers_are_kept() -> bool:
    """Say whether this run keeps its answers."""
    return bool(_place)


@contextmanager
def in_conversation(*names: str | int) -> Iterator[None]:
    """Let what is asked meanwhile, in this thread, belong to a conversation.

    Parameters
    ----------
    *names : str or int
        World, version, name and seed of it.

    Yields
    ------
    None
    """
    token = _conversation.set(sha256_of([safety_lib.__version__, *names]) if _place else "")
    try:
        yield
    finally:
        _conversation.reset(token)


# --------------------------------------------------------------------------- an answer


def kept(asked: Any, ask: Callable[[], Any], counts: Callable[[Any], bool] = lambda _: True) -> Any:
    """Return the answer that was kept for what is asked, else ask and keep what comes.

    Parameters
    ----------
    asked : Any
        All that decides the answer, as JSON has it.
    ask : callable
        Returns the answer, as JSON has it. What it raises is no answer, but for
        :class:`AnswerError`, which is one that cannot be used.
    counts : callable, optional
        Whether an answer is one; otherwise it is asked for again next time.

    Returns
    -------
    Any
        The answer.

    Raises
    ------
    AnswerError
        If the answer that was kept could not be used.
    """
    if not _place:
        return ask()
    journal = _journal()
    key = sha256_of([_conversation.get(), asked])
    found = journal.take(key)
    if found is None:
        journal.add({"asked": key})
        try:
            answer = ask()
            found = {"answered": key, "answer": answer} if counts(answer) else {"failed": key}
            journal.add(found)
            return answer
        except AnswerError as error:
            journal.add({"answered": key, "error": [error.kind, error.detail]})
            raise
        except Exception:
            journal.add({"failed": key})
            raise
    if "error" in found:
        raise AnswerError(*found["error"])
    return found["answer"]


def keeps(
    identity: Callable[[Any], Any],
) -> Callable[[Callable[_P, Message]], Callable[_P, Message]]:
    """Mark the method of a backend that asks a model over a network: its answers are kept.

    Parameters
    ----------
    identity : callable
        Takes the backend and returns what decides its answers besides the request.

    Returns
    -------
    callable
        The decorator.
    """

    def decorated(complete: Callable[_P, Message]) -> Callable[_P, Message]:
        @wraps(complete)
        def asked(*args: _P.args, **options: _P.kwargs) -> Message:
            if not _place:
                return complete(*args, **options)
            backend, messages, tools = cast("tuple[Any, Sequence[Message], Sequence[Any]]", args)
            said = [message.model_dump(mode="json") for message in messages]
            request = [identity(backend), said, [dict(tool) for tool in tools], options]

            def answer() -> Any:
                return complete(*args, **options).model_dump(mode="json", exclude_defaults=True)

            return Message.model_validate(kept(request, answer))

        return asked

    return decorated


# --------------------------------------------------------------------------- the file


class _Journal:
    """The file as one process sees it: the answers of before, and the end that it adds to."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        self._lock = threading.Lock()
        self._answers: defaultdict[str, deque[tuple[int, int]]] = defaultdict(deque)
        self._open: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._unread = 0
        position = 0
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for line in lines:
                if position >= size:
                    break
                self._read(line, position)
                position += len(line)

    def _read(self, line: bytes, position: int) -> None:
        try:
            told = json.loads(line)
            if told == _AGAIN:
                self._open.clear()
                return
            ((what, key),) = ((n, told[n]) for n in ("asked", "answered", "failed") if n in told)
            if what == "answered" and not ("answer" in told or len(told["error"]) == 2):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            self._unread += position > 0 and line != b"\n"
            return
        self._open[key] += 1 if what == "asked" else -1
        if what == "answered":
            self._answers[key].append((position, len(line)))
            self._failed.discard(key)
        elif what == "failed":
            self._failed.add(key)

    @property
    def summary(self) -> str:
        number = sum(map(len, self._answers.values()))
        under_way = sum(max(0, n) for n in self._open.values())
        parts = [f"{count(number, 'answer')} of a run before kept"]
        if under_way:
            parts.append(f"{count(under_way, 'call')} under way then, which may be asked twice")
        if self._failed:
            parts.append(f"{count(len(self._failed), 'call')} failed, to be asked again")
        if self._unread:
            parts.append(f"{count(self._unread, 'line')} that nobody can read")
        return f"Going on: {'; '.join(parts)}."

    def take(self, key: str) -> dict[str, Any] | None:
        """Return the next answer that was kept under a key, each once."""
        with self._lock:
            places = self._answers.get(key)
            if not places:
                return None
            position, length = places.popleft()
        found: dict[str, Any] = json.loads(os.pread(self._file, length, position))
        return found

    def add(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            written = os.write(self._file, data)
        if written < len(data):
            raise OSError("the journal of answers cannot be written: is the disk full?")

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._file)


def _journal() -> _Journal:
    known = (os.getpid(), _place)
    with _opening:
        if known not in _opened:
            size, _, path = _place.partition(":")
            _opened.clear()
            _opened[known] = _Journal(Path(path), int(size))
        return _opened[known]
