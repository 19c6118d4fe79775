"""Where a run holds its conversations: here, in processes of this machine, or on a cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import wait

from safety_lib.agent.backends.calls import most_calls
from safety_lib.rollout.conversation import concurrency_of
from safety_lib.world.versions import Version

_PAUSE = 0.5  # seconds between two looks at the workers


def processes_for(conversations: int, version: Version, model: str) -> int:
    """Return one process for each hundred conversations, up to one a core.

    Parameters
    ----------
    conversations : int
        How many there will be, about.
    version : Version
        Who is talked to.
    model : str
        The model in place of the version's own; one behind a network makes its callers wait, and
        processes would not help.
    """
    if concurrency_of(version, model):
        return 1
    return max(1, min(cores(), conversations // 100))


@contextmanager
def workers_for(processes: int, dask: str = "") -> Iterator[tuple[Executor | None, int]]:
    """Open where conversations are held.

    Parameters
    ----------
    processes : int
        How many, at most one a core; one needs no pool.
    dask : str, optional
        Address of a cluster's scheduler, which then holds them all.

    Yields
    ------
    executor : concurrent.futures.Executor or None
    workers : int

    Raises
    ------
    ValueError
        If calls are to be counted on a cluster, or its client is not installed.
    RuntimeError
        If one of the processes was killed.
    """
    if dask:
        if most_calls():
            raise ValueError("--max-calls counts on one machine, so not with --dask")
        try:
            from distributed import Client
        except ImportError:
            raise ValueError(
                "--dask needs distributed: pip install 'agentic-safety-notebooks[dask]'"
            ) from None
        with Client(dask) as client:  # type: ignore[no-untyped-call]
            yield client.get_executor(), sum(client.nthreads().values())
    elif (here := min(processes, cores())) > 1:
        with ProcessPoolExecutor(here, initializer=belong_to_the_parent) as pool:
            ended = threading.Event()
            threading.Thread(target=_break_if_one_dies, args=(pool, ended), daemon=True).start()
            try:
                yield pool, here
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a worker was killed from outside, as by a system that is out of memory; "
                    "run it again, with fewer --workers"
                ) from error
            finally:
                ended.set()
    else:
        yield None, 1


def cores() -> int:
    """Count the cores that this process may use, which a container may have fewer of."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _break_if_one_dies(pool: ProcessPoolExecutor, ended: threading.Event) -> None:
    # A worker that is killed while it hands a result over leaves Python's pool waiting for the rest
    # of it, for ever: whoever else could write to that pipe has to let go of it, the pool included.
    while not ended.wait(_PAUSE):
        workers = list((pool._processes or {}).values())
        if wait([worker.sentinel for worker in workers], 0) and not ended.is_set():
            for worker in workers:
                worker.kill()
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
            return


def belong_to_the_parent() -> None:
    """Leave Ctrl-C to the parent of this process, and end when that ends."""
    # Ctrl-C reaches every process of the terminal; one of them has to tell what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # However it ended: a process that was killed cannot tell its workers to stop.
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
