"""Kills of a live process: whatever ended it, nothing is torn, nobody stays, and it can go on.

Each command runs undisturbed once; then it is killed somewhere on its way and run again, and has to
come to the same bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from chaos.outcome import AS_EXPECTED, Came, Outcome

from safety_lib.artifacts import CHECKOUT, read_artifact, write_artifact
from safety_lib.records import (
    Artifact,
    GateHistory,
    GateReport,
    IncidentReport,
    StressFailures,
    Suite,
)

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
SECONDS_TO_END = 15
KINDS: tuple[type[Artifact], ...] = (StressFailures, Suite, GateReport, IncidentReport)


class Command(NamedTuple):
    """What is run, in a folder with artifacts."""

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0,)


COMMANDS = (
    Command("stress", ("stress", "--rollouts", "300", "--workers", "2")),
    Command("regress", ("regress", "--replays", "5", "--workers", "2")),
    Command("gate", ("gate", "--history", "h.json", "--trials", "20", "--workers", "2"), (0, 1, 2)),
    Command("replay", ("replay", "--no-log", "--replays", "8", "--workers", "2")),
)


def campaign(seed: int, count: int) -> Iterator[Outcome]:
    """Kill so many runs, each at a moment and by a signal of its own; then two gates at once."""
    if not count:
        return
    random = Random(f"{seed}/kills")
    with TemporaryDirectory(prefix="chaos-") as name:
        home = Path(name)
        wanted, seconds = {}, {}
        for command in COMMANDS:
            folder = _folder(home / command.name)
            started = time.monotonic()
            _start(command, folder).wait()
            seconds[command.name] = time.monotonic() - started
            wanted[command.name] = _results(folder)
        for number in range(count):
            command = COMMANDS[number % len(COMMANDS)]
            one = random.choice(SIGNALS)
            after = random.uniform(0.2, 1.0) * seconds[command.name]
            folder = _folder(home / f"{number}")
            came, said = _killed(command, folder, one, after, wanted[command.name])
            how = f"{' '.join(command.words)}: {one.name} after {after:.2f} s"
            yield Outcome(f"kill: {command.name}", came, how, said)
            shutil.rmtree(folder)
        came, said = _two_gates(_folder(home / "two"))
        yield Outcome("two at once: gate --history", came, "two gates on one history", said)


def _folder(folder: Path) -> Path:
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True)
    for name in ("incident_example.json", "stress_failures.json"):
        shutil.copy(CHECKOUT / "artifacts" / name, artifacts)
    write_artifact(artifacts, read_artifact(CHECKOUT / "artifacts", Suite).only("stress"))
    return folder


def _start(command: Command, folder: Path, *more: str) -> subprocess.Popen[str]:
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "safety_lib", *command.words, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _killed(
    command: Command, folder: Path, one: signal.Signals, after: float, wanted: dict[str, bytes]
) -> tuple[Came, str]:
    before = _results(folder)
    run = _start(command, folder)
    time.sleep(after)
    family = _family(run.pid)
    run.send_signal(one)
    try:
        _, err = run.communicate(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        run.kill()
        return "hang", "it did not end"
    if "Traceback" in err:
        return "traceback", err
    finished = run.returncode in command.codes
    if not finished and run.returncode not in (3, -one):
        return "wrongly accepted", f"it exited with {run.returncode}: {err}"
    if stay := _still_there(family):
        return "left behind", f"processes {stay}"
    torn = [name for name, data in _results(folder).items() if not _whole(folder, name)]
    if torn:
        return "something lost", f"torn: {torn}"
    lost = [name for name in before if name not in _results(folder)]
    if lost and "gate_report" not in str(lost):
        return "something lost", f"gone: {lost}"
    again = _start(command, folder)
    _, err = again.communicate(timeout=300)
    if again.returncode not in command.codes:
        return "something lost", f"it does not go on: {again.returncode}: {err}"
    left = [str(path) for path in folder.rglob("*.part")]
    if left:
        return "left behind", f"{left}"
    after_all = _results(folder)
    other = [name for name in wanted if after_all.get(name) != wanted[name]]
    # A history holds the attempt that was killed too, and that is what it is for.
    if other and command.name != "gate":
        return "something lost", f"other bytes than an undisturbed run: {other}"
    return AS_EXPECTED, ""


def _two_gates(folder: Path) -> tuple[Came, str]:
    gate = Command("gate", ("gate", "--history", "h.json", "--trials", "3"))
    runs = [_start(gate, folder, "--candidate", name, "--artifacts", name) for name in ("v2", "v3")
            if shutil.copytree(folder / "artifacts", folder / name)]  # fmt: skip
    said = [run.communicate(timeout=300)[1] for run in runs]
    history = read_artifact(folder / "h.json", GateHistory)
    verdicts = {line.candidate for line in history.lines if line.release}
    return (AS_EXPECTED, "") if verdicts == {"v2", "v3"} else ("something lost", str(said))


def _results(folder: Path) -> dict[str, bytes]:
    artifacts = folder / "artifacts"
    return {
        path.name: path.read_bytes()
        for path in artifacts.iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


def _whole(folder: Path, name: str) -> bool:
    for kind in KINDS:
        if name == f"{kind.SCHEMA}.json":
            try:
                read_artifact(folder / "artifacts", kind)
            except ValueError:
                return False
    return True


def _family(pid: int) -> list[int]:
    """The processes that a process started, and those that they did; from /proc, so on Linux."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def _still_there(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < deadline:
        pids = [pid for pid in pids if _runs(pid)]
        if not pids:
            return []
        time.sleep(0.1)
    return pids


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody asked how
