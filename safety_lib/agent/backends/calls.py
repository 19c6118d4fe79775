"""How often a run asks its models: counted over all its processes, and stopped at a limit.

A run is several processes: this one, its workers, the kernels of the notebooks. An environment
variable tells them all where to count: every call adds a line of fixed length to one file *before*
the model is asked. The length of the file is the number of calls, and whoever writes past the limit
stops the run. What an endpoint is asked again, because it failed to answer, is the same call.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, cast

from safety_lib.records import Message

VARIABLE = "SAFETY_LIB_CALLS"
CHARACTERS_PER_TOKEN = 4  # of English, by the rule of thumb

_LINE = 12
_counter = os.environ.get(VARIABLE, "")  # "" counts nothing; of a child, that of its parent

_P = ParamSpec("_P")


class CallsSpent(RuntimeError):
    """The run has made as many calls of a model as it may make."""


@dataclass(frozen=True)
class Calls:
    """What a run has asked of its models.

    Attributes
    ----------
    number : int
        Calls that were made.
    tokens_in, tokens_out : int
        Tokens of the requests and of the answers, roughly: four characters count as one.
    """

    number: int
    tokens_in: int
    tokens_out: int


@contextmanager
def counting_calls(most: int = 0) -> Iterator[Callable[[], Calls]]:
    """Count the calls of every model that this process and those it starts ask meanwhile.

    Parameters
    ----------
    most : int, optional
        So many calls are made; the next one raises :class:`CallsSpent`. 0 sets no limit.

    Yields
    ------
    callable
        Returns the calls so far, as long as they are counted.

    Examples
    --------
    >>> from safety_lib.agent.loop import Agent
    >>> with counting_calls() as so_far:
    ...     reply = Agent.load("northwind/v1").begin(seed=7).send("Good morning.")
    ...     so_far().number
    1
    """
    before = _counter
    with tempfile.TemporaryDirectory(prefix="calls-") as folder:
        for name in ("asked", "answered"):
            Path(folder, name).touch()
        _count_at(f"{most}:{folder}")
        try:
            yield partial(_calls_in, Path(folder), most)
        finally:
            _count_at(before)


def _count_at(counter: str) -> None:
    global _counter
    _counter = os.environ[VARIABLE] = counter


def most_calls() -> int:
    """Return how many calls this run may make of its models; 0 for as many as it likes."""
    return int(_counter.partition(":")[0] or 0)


def calls_left() -> int | None:
    """Return how many calls this run may still make of its models; None where there is no limit.

    Examples
    --------
    >>> with counting_calls(most=10):
    ...     calls_left()
    10
    """
    most, folder = most_calls(), _counter.partition(":")[2]
    if not most:
        return None
    return max(0, most - Path(folder, "asked").stat().st_size // _LINE)


def count_request(characters: int) -> None:
    """Count a request to an agent that asks its model by itself, where calls are counted.

    Raises
    ------
    CallsSpent
        If it is one more than the run may make.
    """
    if not _counter:
        return
    _count(characters)


def counted(complete: Callable[_P, Message]) -> Callable[_P, Message]:
    """Mark the method of a backend that asks a model: each of its calls counts, where calls do."""

    @wraps(complete)
    def asked(*args: _P.args, **options: _P.kwargs) -> Message:
        if not _counter:
            return complete(*args, **options)
        _, messages, tools = cast("tuple[object, Sequence[Message], Sequence[object]]", args)
        folder = _count(_length(messages) + len(str(tools)))
        answer = complete(*args, **options)
        _add(folder / "answered", _length([answer]))
        return answer

    return asked


def _count(characters: int) -> Path:
    most, folder = most_calls(), Path(_counter.partition(":")[2])
    if _add(folder / "asked", characters) > most > 0:
        raise CallsSpent(
            f"stopped after {most:,} calls of a model, as many as --max-calls allows; "
            "what the journal holds is kept"
        )
    return folder


def _add(path: Path, characters: int) -> int:
    """Add a line with one write, whoever else writes, and return its number from 1."""
    with path.open("ab", buffering=0) as file:
        file.write(b"%*d\n" % (_LINE - 1, characters))
        return file.tell() // _LINE


def _length(messages: Sequence[Message]) -> int:
    return sum(len(m.content) + sum(len(str(c)) for c in m.tool_calls) for m in messages)


def _calls_in(folder: Path, most: int) -> Calls:
    asked, answered = (
        [int(line) for line in (folder / name).read_bytes().split()]
        for name in ("asked", "answered")
    )
    made = asked[:most] if most else asked
    return Calls(len(made), *(sum(n) // CHARACTERS_PER_TOKEN for n in (made, answered)))
