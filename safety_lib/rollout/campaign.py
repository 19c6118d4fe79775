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
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

import safety_lib
from safety_lib.files import expect_writable
from safety_lib.records import Message, Trajectory
from safety_lib.rollout.conversation import Rollout, concurrency_of, name_of_model, run_rollout
from safety_lib.text import one_line
from safety_lib.world import World, WorldError, world_of

CHUNK = 16
LONG_CHUNK = 64
_SHORT = 64  # so many small chunks come first: they keep the workers of a short campaign busy alike
JOURNAL_VERSION = 3
_LONGEST_HEADER = 1 << 20


class JournalError(ValueError):
    """A journal cannot be resumed; the message names the file, the line and what to do."""


Known = dict[tuple[str, str, int, str], Trajectory]
"""Conversations that were held already: rollout, version, seed and model to the trajectory."""


@dataclass(frozen=True)
class Run:
    """How the conversations of a stage are held; every stage takes one and hands it on.

    No result depends on ``executor``, ``workers`` or ``progress``.

    Attributes
    ----------
    seed : int
        Decides every draw.
    model : str
        The model to use in place of those that the versions name.
    executor : concurrent.futures.Executor, optional
        Where to hold the conversations: a process pool, or what ``distributed.Client`` returns from
        ``get_executor()``. Without one they run here; a model behind a network gets threads.
    workers : int
        How many workers the executor has; it bounds the chunks in flight.
    progress : callable, optional
        Told of each trajectory as it comes, such as a progress bar.
    known : dict, optional
        Conversations that are not held again; what is held is added.
    """

    seed: int = 7
    model: str = ""
    executor: Executor | None = None
    workers: int = 1
    progress: Callable[[Trajectory], None] | None = None
    known: Known | None = None

    def tell(self, trajectory: Trajectory) -> None:
        """Report a trajectory to whoever watches."""
        if self.progress is not None:
            self.progress(trajectory)


def run_campaign(
    rollouts: Iterable[Rollout],
    run: Run = Run(),
    *,
    journal: Path | None = None,
    one_by_one: bool = False,
) -> Iterator[Trajectory]:
    """Hold many conversations and yield their trajectories in the order of the rollouts.

    Parameters
    ----------
    rollouts : iterable of Rollout
        May be a generator; it is consumed as it is needed, so memory stays bounded.
    run : Run, optional
        How they are held. Its seed has no say here: each rollout brings its own.
    journal : Path, optional
        JSON Lines file, a finished rollout a line. A part of this campaign that it holds already
        is read, not run again.
    one_by_one : bool
        Ask for a rollout only after the trajectory of the one before it was told of: for rollouts
        that are chosen by what was seen. They run here, whatever the executor.

    Yields
    ------
    Trajectory

    Raises
    ------
    JournalError
        If the journal belongs to another campaign, model or world, or is damaged before its last
        line. The file is then left as it is.

    Examples
    --------
    >>> from safety_lib.rollout.conversation import plan_attack
    >>> from safety_lib.world import load_world
    >>> world = load_world("northwind")
    >>> v1 = world.version("v1")
    >>> rollouts = [plan_attack(v1, s, "direct", 7, 1) for s in world.scenarios[:3]]
    >>> [t.trajectory_id == j.rollout_id for t, j in zip(run_campaign(rollouts), rollouts)]
    [True, True, True]
    """
    for trajectory in _told(rollouts, run, journal, one_by_one):
        run.tell(trajectory)
        yield trajectory


def _told(
    rollouts: Iterable[Rollout], run: Run, journal: Path | None, one_by_one: bool
) -> Iterator[Trajectory]:
    if run.known is not None:
        yield from _held_once(list(rollouts), run, run.known)
        return
    remaining = iter(rollouts)
    held = _held(remaining, run, one_by_one)
    if journal is None:
        for trajectory, _ in held:
            yield trajectory
        return
    first = next(remaining, None)
    if first is None:
        return
    remaining = chain([first], remaining)
    held = _held(remaining, run, one_by_one)
    with _opened(journal, world_of(first.version)) as lines:
        yield from _resumed(lines, remaining, run.model, journal)
        for trajectory, line in held:
            lines.write((line or trajectory.model_dump_json()).encode() + b"\n")
            lines.flush()
            yield trajectory


def _held_once(rollouts: Sequence[Rollout], run: Run, known: Known) -> Iterator[Trajectory]:
    keys = [(r.rollout_id, r.version.sha256, r.seed, run.model) for r in rollouts]
    missing = {key: r for key, r in zip(keys, rollouts, strict=True) if key not in known}
    fresh = _held(iter(missing.values()), run, one_by_one=False)
    for key in keys:
        if key not in known:
            known[key], _ = next(fresh)
        yield known[key]
    next(fresh, None)  # let the campaign end by itself


def _held(
    rollouts: Iterator[Rollout], run: Run, one_by_one: bool
) -> Iterator[tuple[Trajectory, str]]:
    first = list(islice(rollouts, 1))
    if not first:
        return
    threads = concurrency_of(first[0].version, run.model)
    rest = chain(first, rollouts)
    if one_by_one or (run.executor is None and threads <= 1):
        yield from ((run_rollout(rollout, run.model), "") for rollout in rest)
    elif run.executor is None:
        with ThreadPoolExecutor(threads) as pool:
            yield from _mapped(pool, rest, run.model, chunks=repeat(1), window=2 * threads)
    else:
        chunks = chain(repeat(CHUNK, _SHORT), repeat(LONG_CHUNK))
        window = 4 * max(1, run.workers)
        yield from _mapped(run.executor, rest, run.model, chunks=chunks, window=window)


def _mapped(
    executor: Executor,
    rollouts: Iterator[Rollout],
    model: str,
    *,
    chunks: Iterator[int],
    window: int,
) -> Iterator[tuple[Trajectory, str]]:
    first = next(rollouts, None)
    if first is None:
        return
    rollouts = chain([first], rollouts)
    work = partial(_run_chunk, model=model, world=world_of(first.version).sha256)
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


def _run_chunk(batch: Sequence[Rollout], model: str, world: str) -> list[str]:
    here = world_of(batch[0].version)
    if here.sha256 != world:
        raise WorldError(
            f"the world {here.name} is another one where conversations are held than where they "
            "were planned; give all workers the same files"
        )
    return [run_rollout(rollout, model).model_dump_json() for rollout in batch]


def _opened(journal: Path, world: World) -> BinaryIO:
    about = {
        "artifact": "journal",
        "schema_version": JOURNAL_VERSION,
        "package": safety_lib.__version__,
        "world": world.name,
        "files": world.files,
    }
    header = json.dumps(about).encode() + b"\n"
    journal.parent.mkdir(parents=True, exist_ok=True)
    expect_writable([journal])
    journal.touch()
    lines = journal.open("r+b")
    found = lines.readline(_LONGEST_HEADER)
    if found == header:
        _drop_torn_line(lines)
        lines.seek(len(header))
    elif header.startswith(found):  # new, or killed while it wrote its header
        lines.seek(0)
        lines.write(header)
    else:
        lines.close()
        raise JournalError(
            f"{journal.name}: line 1 {_differs(found, world)}; delete the file or name another one"
        )
    return lines


def _differs(header: bytes, world: World) -> str:
    try:
        told = json.loads(header)
        name, files, package = told["world"], dict(told["files"]), told.get("package", "before")
    except (ValueError, KeyError, TypeError, RecursionError):
        return "is not the header of a journal"
    if name != world.name:
        return f"is of the world {one_line(name)}, not of {world.name}"
    every = sorted({*files, *world.files})
    changed = [file for file in every if files.get(file) != world.files.get(file)]
    if not changed and package != safety_lib.__version__:
        return f"is of safety_lib {one_line(package)}, and this is {safety_lib.__version__}"
    if not changed:
        return "is of another edition of journals"
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"was written before {one_line(changed[0])} of the world {name} changed{more}"


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
