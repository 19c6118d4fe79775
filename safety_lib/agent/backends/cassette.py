"""Cassettes: what a real model answered, recorded once and replayed without it.

A cassette is a JSON Lines file. Its first line says what it is and which model was recorded; every
other line holds one answer under the key of its request:

``{"key": "<sha256>", "request": "<last message, cut>", "response": {...}}``

The key covers all that the model was given (messages, tools, seed) and the settings that influence
it, and none of those that do not (timeouts, retries, concurrency). The request itself is not kept:
the file stays small, and no setting, header or key of an endpoint can get into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from safety_lib.agent.backends import Backend, BackendError, ToolSchema
from safety_lib.agent.backends.openai import read_settings
from safety_lib.files import (
    FileError,
    as_text_of,
    expect_writable,
    open_file,
    parse_json,
    read_bytes,
)
from safety_lib.records import Message
from safety_lib.text import one_line

ARTIFACT = "cassette"
SCHEMA_VERSION = 1
SHOWN = 80
_LONGEST_TAPE = 1 << 30
_LONGEST_LINE = 1 << 16  # of the header


class Cassette:
    """Answers from a tape, and nothing else.

    Parameters
    ----------
    path : str or Path
        The tape.
    settings : Mapping
        The ``model`` section of a version file; those of a chat model are part of the key.

    Attributes
    ----------
    name : str
        The name of the model that was recorded, so that a replay writes the same artifacts.
    concurrency : int
        1: looking an answer up takes microseconds, and one tape per process is enough.

    Raises
    ------
    ValueError
        If the file is missing or is not a cassette of this version; one line says why.

    Examples
    --------
    >>> Cassette("missing.jsonl", {})
    Traceback (most recent call last):
    ...
    ValueError: missing.jsonl: no such cassette; record one with the model record:missing.jsonl:NAME
    """

    concurrency = 1
    keeps_answers = True

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        if not Path(path).exists():
            raise ValueError(
                f"{path}: no such cassette; record one with the model record:{path}:NAME"
            )
        self._of_model = read_settings(settings).of_model
        self._tape = _open_tape(Path(path))
        self.name = self._tape.model

    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        """Return the recorded answer.

        Parameters
        ----------
        messages : sequence of Message
            The conversation as the model sees it.
        tools : sequence of Mapping
            The tools on offer, in the OpenAI tools format.
        seed : int
            That of the recorded request.

        Raises
        ------
        BackendError
            ``not_on_tape`` if this was never asked; it names the tape and the request.
        """
        answer = self._tape.answers.get(request_key(self._of_model, messages, tools, seed))
        if answer is not None:
            return answer
        model = "local" if self.name.startswith("local:") else self.name
        raise BackendError(
            "not_on_tape",
            f"{self._tape.path} has no answer to {_shown(messages)!r} (seed {seed}); record it "
            f"with the model record:{self._tape.path}:{model}",
        )


class CassetteRecorder:
    """A backend whose every answer is written to a tape.

    A request that is on the tape already is answered from it, so an interrupted recording goes on
    where it stopped and several runs, one after the other, can share a tape. Failures are not
    recorded.

    Parameters
    ----------
    path : str or Path
        The tape; it is made when missing.
    inner : Backend
        The model to record.
    settings : Mapping
        The ``model`` section of a version file.

    Raises
    ------
    ValueError
        If the file is something else, or a recording of another model.
    """

    keeps_answers = True

    def __init__(self, path: str | Path, inner: Backend, settings: Mapping[str, Any]) -> None:
        self._of_model = read_settings(settings).of_model
        self._inner = inner
        self._tape = _open_tape(Path(path), inner.name)
        self.name = inner.name
        # Threads share the tape safely. A backend that asks for processes (0) is recorded in one.
        self.concurrency = max(1, inner.concurrency)

    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        """Return the answer on the tape, or ask the model and record what it says.

        Parameters
        ----------
        messages : sequence of Message
            The conversation as the model sees it.
        tools : sequence of Mapping
            The tools on offer, in the OpenAI tools format.
        seed : int
            Passed on to the model; another seed is another request.

        Raises
        ------
        BackendError
            Whatever the recorded backend raises; the tape stays as it was.
        """
        key = request_key(self._of_model, messages, tools, seed)
        answer = self._tape.answers.get(key)
        if answer is not None:
            return answer
        asked = self._inner.complete(messages, tools, seed=seed)
        return self._tape.add(key, _shown(messages), asked)


def recorded_model(path: str | Path) -> str:
    """Return the name of the model that a cassette was recorded with.

    Raises
    ------
    ValueError
        If the file is missing or is not a cassette of this version; one line says why.
    """
    with open_file(path, _LONGEST_TAPE) as file:
        return _header(Path(path), file.readline(_LONGEST_LINE))


def request_key(
    of_model: Mapping[str, Any],
    messages: Sequence[Message],
    tools: Sequence[ToolSchema],
    seed: int,
) -> str:
    """Return the key of a request: a hash of all that the model is given.

    Parameters
    ----------
    of_model : Mapping
        The settings that influence an answer.
    messages : sequence of Message
        The conversation as the model sees it.
    tools : sequence of Mapping
        The tools on offer.
    seed : int
        The seed of the request.

    Examples
    --------
    >>> hello = [Message(role="user", content="Hello")]
    >>> request_key({}, hello, [], 1) == request_key({}, hello, [], 2)
    False
    """
    said = [message.model_dump(mode="json") for message in messages]
    request = [dict(of_model), said, [dict(tool) for tool in tools], seed]
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(messages: Sequence[Message]) -> str:
    """Return what a person recognises a request by: its last message, cut."""
    return one_line(messages[-1].content, SHOWN) if messages else ""


# --------------------------------------------------------------------------- the file


class _Tape:
    """The answers of one file; all recorders of a process that write it share this object."""

    def __init__(self, path: Path, model: str, answers: dict[str, Message], size: int) -> None:
        self.path = path
        self.model = model
        self.answers = answers
        self.size = size
        self._lock = threading.Lock()

    def add(self, key: str, request: str, answer: Message) -> Message:
        """Write an answer, unless another thread was first: then that one counts."""
        with self._lock:
            if key not in self.answers:
                response = answer.model_dump(mode="json", exclude_defaults=True)
                line = {"key": key, "request": request, "response": response}
                self.size += _append(self.path, line)
                self.answers[key] = answer
            return self.answers[key]


_open_lock = threading.Lock()
_tapes: WeakValueDictionary[tuple[str, int], _Tape] = WeakValueDictionary()


def _open_tape(path: Path, recorded: str = "") -> _Tape:
    """Load a tape, or return the one that is loaded already: two versions record on the same.

    With ``recorded``, the name of a model, the tape is made when missing and mended when its last
    line is torn.
    """
    with _open_lock:
        if recorded and (not path.exists() or path.stat().st_size == 0):
            expect_writable([path])
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(
                path,
                {"artifact": ARTIFACT, "schema_version": SCHEMA_VERSION, "model": recorded},
            )
        identity = (str(path.resolve()), os.getpid())
        tape = _tapes.get(identity)
        if tape is None or tape.size != path.stat().st_size:  # another process wrote to it
            tape = _tapes[identity] = _load(path, mend=bool(recorded))
        if recorded and tape.model != recorded:
            what = f"a recording of {one_line(tape.model)}, not of {recorded}"
            raise FileError(path, what)
        return tape


def _append(path: Path, line: Mapping[str, Any]) -> int:
    """Add one line with a single write at the end of the file: a kill tears the last one at most.

    Plain ASCII, so that no character of an answer can be taken for the end of a line.
    """
    data = (json.dumps(line, separators=(",", ":")) + "\n").encode("ascii")
    with path.open("ab", buffering=0) as file:
        file.write(data)
    return len(data)


def _load(path: Path, *, mend: bool) -> _Tape:
    raw = read_bytes(path, _LONGEST_TAPE)
    *lines, torn = raw.split(b"\n")
    if not lines:
        raise FileError(path, "not a cassette: its first line, the header, is missing")
    model = _header(path, lines[0])
    answers: dict[str, Message] = {}
    for number, line in enumerate(lines[1:], start=2):
        key, answer = _entry(path, number, line)
        answers.setdefault(key, answer)
    if torn and mend:
        # Its answer is lost and is asked for again; the next line must not be glued to the rest.
        os.truncate(path, len(raw) - len(torn))
    return _Tape(path, model, answers, len(raw) - (len(torn) if mend else 0))


def _header(path: Path, line: bytes) -> str:
    try:
        header = parse_json(path, as_text_of(path, line))
    except FileError:
        header = None
    if not isinstance(header, dict) or header.get("artifact") != ARTIFACT:
        raise FileError(path, 'not a cassette: its first line must say "artifact": "cassette"')
    version, model = header.get("schema_version"), header.get("model")
    if version != SCHEMA_VERSION:
        raise FileError(path, f"schema_version {version!r}, expected {SCHEMA_VERSION}")
    if not isinstance(model, str) or not model:
        raise FileError(path, "the header must name the model that was recorded")
    return model


def _entry(path: Path, number: int, line: bytes) -> tuple[str, Message]:
    try:
        entry = parse_json(path, as_text_of(path, line))
        key, answer = entry["key"], Message.model_validate(entry["response"])
    except FileError as error:
        raise FileError(path, f"line {number} is not a recorded answer: {error.what}") from error
    except (ValueError, LookupError, TypeError):
        key = answer = None
    if not isinstance(key, str) or answer is None or answer.role != "assistant":
        raise FileError(path, f"line {number} is not a recorded answer (key, request, response)")
    return key, answer
