"""Campaigns: many rollouts, in order, on one process or many, resumable where a journal is kept.

Trajectories come back in the order of the rollouts, whoever held them, so results do not depend on
the number of workers. A journal takes each finished rollout as one line; a killed campaign goes on
after the last complete line.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from safety_lib.policy import load_policy
from safety_lib.records import Message, Trajectory
from safety_lib.rollout.conversation import Rollout, concurrency_of, name_of_model, run

CHUNK = 16
LONG_CHUNK = 64
_SHORT = 64  # so many small chunks come first: they keep the workers of a short campaign busy alike
JOURNAL_VERSION = 1


class JournalError(ValueError):
    """A journal cannot be resumed; the message names the file, the line and what to do."""


def run_campaign(
    rollouts: Iterable[Rollout],
    *,
    model: str = "",
    journal: Path | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    on_result: Callable[[Trajectory], None] | None = None,
    one_by_one: bool = False,
) -> Iterator[Trajectory]:
    """Hold many conversations and yield their trajectories in the order of the rollouts.

    Parameters
    ----------
    rollouts : iterable of Rollout
        May be a generator; it is consumed as it is needed, so memory stays bounded.
    model : str, optional
        The model to use in place of those that the versions name.
    journal : Path, optional
        JSON Lines file, a finished rollout a line. A part of this campaign that it holds already
        is read, not run again.
    executor : concurrent.futures.Executor, optional
        Where to hold the conversations: a process pool, or what ``distributed.Client`` returns from
        ``get_executor()``. Without one they run here; a model behind a network gets threads.
    workers : int
        How many workers the executor has; it bounds the chunks in flight.
    on_result : callable, optional
        Told of each trajectory as it is yielded, such as a progress bar.
    one_by_one : bool
        Ask for a rollout only after the trajectory of the one before it was told of: for rollouts
        that are chosen by what was seen. They run here, whatever the executor.

    Yields
    ------
    Trajectory

    Raises
    ------
    JournalError
        If the journal belongs to another campaign, model or policy, or is damaged before its last
        line. The file is then left as it is.

    Examples
    --------
    >>> from safety_lib.agent.versions import load_version
    >>> from safety_lib.attack.scenarios import all_scenarios
    >>> from safety_lib.rollout.conversation import attack
    >>> jobs = [attack(load_version("v1"), s, "direct", 7, 1) for s in all_scenarios()[:3]]
    >>> [t.trajectory_id == j.rollout_id for t, j in zip(run_campaign(jobs), jobs)]
    [True, True, True]
    """
    remaining = iter(rollouts)
    held = _held(remaining, model, executor, workers, one_by_one)
    if journal is None:
        for trajectory, _ in held:
            if on_result is not None:
                on_result(trajectory)
            yield trajectory
        return
    with _opened(journal) as lines:
        for trajectory in _resumed(lines, remaining, model, journal):
            if on_result is not None:
                on_result(trajectory)
            yield trajectory
        for trajectory, line in held:
            lines.write((line or trajectory.model_dump_json()).encode() + b"\n")
            lines.flush()
            if on_result is not None:
                on_result(trajectory)
            yield trajectory


def _held(
    rollouts: Iterator[Rollout],
    model: str,
    executor: Executor | None,
    workers: int,
    one_by_one: bool,
) -> Iterator[tuple[Trajectory, str]]:
    first = list(islice(rollouts, 1))
    if not first:
        return
    threads = concurrency_of(first[0].version, model)
    rest = chain(first, rollouts)
    if one_by_one or (executor is None and threads <= 1):
        yield from ((run(rollout, model), "") for rollout in rest)
    elif executor is None:
        with ThreadPoolExecutor(threads) as pool:
            yield from _mapped(pool, rest, model, chunks=repeat(1), window=2 * threads)
    else:
        chunks = chain(repeat(CHUNK, _SHORT), repeat(LONG_CHUNK))
        yield from _mapped(executor, rest, model, chunks=chunks, window=4 * max(1, workers))


def _mapped(
    executor: Executor,
    rollouts: Iterator[Rollout],
    model: str,
    *,
    chunks: Iterator[int],
    window: int,
) -> Iterator[tuple[Trajectory, str]]:
    work = partial(_run_chunk, model=model)
    pending: deque[Future[list[str]]] = deque()
    try:
        while True:
            while len(pending) < window and (batch := list(islice(rollouts, next(chunks)))):
                pending.append(executor.submit(work, batch))
            if not pending:
                return
            for line in pending.popleft().result():
                yield Trajectory.model_validate_json(line), line
    finally:
        for future in pending:
            future.cancel()


def _run_chunk(batch: Sequence[Rollout], model: str) -> list[str]:
    return [run(rollout, model).model_dump_json() for rollout in batch]


def _opened(journal: Path) -> BinaryIO:
    about = {"artifact": "journal", "schema_version": JOURNAL_VERSION}
    about["policy_sha256"] = load_policy().sha256
    header = json.dumps(about).encode() + b"\n"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.touch()
    lines = journal.open("r+b")
    found = lines.read(len(header))
    if found == header:
        _drop_torn_line(lines)
        lines.seek(len(header))
    elif header.startswith(found):  # new, or killed while it wrote its header
        lines.seek(0)
        lines.write(header)
    else:
        lines.close()
        raise JournalError(
            f"{journal.name}: line 1 is not the header of a journal under this policy; "
            "delete the file or name another one"
        )
    return lines


def _drop_torn_line(lines: BinaryIO) -> None:
    end = lines.seek(0, os.SEEK_END)
    step = 1 << 16
    newline = -1
    while newline < 0:  # the header ends with one
        start = max(0, end - step)
        lines.seek(start)
        newline, end = lines.read(end - start).rfind(b"\n"), start
    lines.truncate(start + newline + 1)


def _resumed(
    lines: BinaryIO, rollouts: Iterator[Rollout], model: str, journal: Path
) -> Iterator[Trajectory]:
    for number, line in enumerate(iter(lines.readline, b""), start=2):
        try:
            done = Trajectory.model_validate_json(line)
        except ValidationError as error:
            raise JournalError(
                f"{journal.name}: line {number} is not a trajectory; delete the file to start again"
            ) from error
        expected = next(rollouts, None)
        if expected is None or not _is_of(done, expected, model):
            raise JournalError(
                f"{journal.name}: line {number} belongs to another campaign "
                f"({done.trajectory_id}); delete the file or name another one"
            )
        yield done


def _is_of(done: Trajectory, expected: Rollout, model: str) -> bool:
    said = [Message(role="user", content=turn).content for turn in expected.turns[: done.n_turns]]
    stopped = bool(done.violations) and expected.stop_at_violation
    return (
        done.trajectory_id == expected.rollout_id
        and done.config_sha256 == expected.version.sha256
        and done.seed == expected.seed
        and done.model == name_of_model(expected.version, model)
        and done.plants == expected.plants
        and done.n_turns <= expected.max_turns
        and (done.n_turns == expected.max_turns or done.ended != "completed")
        and (done.ended == "violation") == stopped
        and (not expected.turns or list(done.user_messages) == said)
    )
