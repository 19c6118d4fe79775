"""Processes of a run, as /proc shows them: who is there, who stays, how much memory they take."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

_PAUSE = 0.1  # seconds between two looks
_A_MIB = 1 << 20
_MAX_RSS = 1 if sys.platform == "darwin" else 1 << 10  # bytes that ru_maxrss counts in


def family(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        if stat := _stat(int(entry.parent.name)):
            children[int(stat[1])].append(int(entry.parent.name))
    found = [pid]
    for parent in found:
        found += children[parent]
    return found[1:]


def still_there(pids: list[int], seconds: float) -> list[int]:
    """Return which of some processes stay for so many seconds."""
    deadline = time.monotonic() + seconds
    while (pids := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return pids


def _runs(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"  # ended, and nobody asked how


def _stat(pid: int) -> list[str]:
    """Return what /proc says of a process behind its name: state, parent, and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


class MemoryWatch:
    """Looks now and then how much memory this process and all below it hold, while the block runs.

    Attributes
    ----------
    most : int
        MiB, of all of them together; what they share is counted for each.
    """

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()

    def __enter__(self) -> MemoryWatch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):  # between two looks
            alone = resource.getrusage(who).ru_maxrss * _MAX_RSS
            self.most = max(self.most, alone // _A_MIB)

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ended.wait(_PAUSE):
            held = sum(_pages(pid) for pid in [os.getpid(), *family(os.getpid())])
            self.most = max(self.most, held * page // _A_MIB)


def _pages(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[21]) if stat else 0
