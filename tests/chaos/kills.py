"""Kills of a live process: whatever ended it, nothing is torn, nobody stays, and it can go on.

Each command runs undisturbed once. Then it is killed, goes on, and is killed again, up to six
times; the last one goes on to its end and has to come to the same bytes. Half of the commands ask a
model on loopback, which counts: no answer that stood in the journal is asked for again, and what
was under way, no more than is asked at a time, at most once more for each kill.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from chaos.counting_endpoint import CONCURRENCY, Counting
from chaos.outcome import AS_EXPECTED, Came, Outcome
from chaos.processes import family, still_there

from safety_lib.artifacts import CHECKOUT, read_artifact, write_artifact
from safety_lib.records import (
    Artifact,
    GateHistory,
    GateReport,
    IncidentReport,
    StressFailures,
    Suite,
)

SECONDS_TO_END = 15
SECONDS_TO_FINISH = 300
KINDS: tuple[type[Artifact], ...] = (StressFailures, Suite, GateReport, IncidentReport)
MODEL = ("--model", "openai:sim")
KILLS_OF_ONE = 6

Results = dict[str, bytes]


class Command(NamedTuple):
    """What is run, in a folder with artifacts.

    One that would take minutes has a limit on its calls, is killed well before, and never ends.
    """

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    same: bool = True  # a history holds the attempts that were killed too, which is what it is for

    @property
    def ends(self) -> bool:
        return "--max-calls" not in self.words


PAIR = ("--workers", "2")
GATE = (0, 1, 2)
COMMANDS = (
    Command("stress", ("stress", "--rollouts", "200", *PAIR)),
    Command("stress, asking", ("stress", "--rollouts", "8", *MODEL)),
    Command("regress", ("regress", "--replays", "5", *PAIR)),
    Command("regress, asking", ("regress", "--replays", "2", *MODEL)),
    Command("gate", ("gate", "--trials", "12", *PAIR), GATE),
    Command("gate, asking", ("gate", "--trials", "2", *MODEL), GATE),
    Command("replay", ("replay", "--no-log", "--replays", "4", *PAIR)),
    Command("gate --history", ("gate", "--history", "h.json", "--trials", "5", *PAIR), GATE,
            same=False),
    Command("stress, asking, search",
            ("stress", "--rollouts", "4", "--attacker", "search", *MODEL)),
    Command("stress, asking", ("stress", "--rollouts", "8", *MODEL)),
    Command("gate --history, asking",
            ("gate", "--history", "h.json", "--trials", "2", *MODEL), GATE, same=False),
    Command("replay, asking",
            ("replay", "--no-log", "--replays", "2", *MODEL, "--max-calls", "900"), (3,)),
)  # fmt: skip
DEMO = Command(
    "demo, asking", ("demo", "--rollouts", "2", "--yes", *MODEL, "--max-calls", "1500"), (3,)
)
"""Takes half a minute before its first call, so it is killed in one chain of a long campaign."""
LONG = 100


def campaign(seed: int, count: int) -> Iterator[Outcome]:
    """Kill so many runs, each at a moment and in a way of its own; then two gates at once."""
    if not count:
        return
    random = Random(f"{seed}/kills")
    with TemporaryDirectory(prefix="chaos-") as name, Counting() as endpoint:
        home = _Home(Path(name), endpoint)
        tried = 0
        commands = chain([DEMO] if count >= LONG else [], cycle(COMMANDS))
        while tried < count:
            command = next(commands)
            kills = min(KILLS_OF_ONE, count - tried)
            tried += kills
            yield from home.kill(command, kills, random)
        came, said = home.two_gates()
        yield Outcome("two at once: gate --history", came, "two gates on one history", said)
        print(f"calls: {home.under_way:,} under way when a run was killed, {home.repeated:,} made "
              f"twice; {home.kept:,} answers in the journals then", flush=True)  # fmt: skip


def write_few(artifacts: Path) -> None:
    """Write an incident, few failures and few tests, so that the end of a run is near."""
    artifacts.mkdir(parents=True)
    shutil.copy(CHECKOUT / "artifacts" / "incident_example.json", artifacts)
    found = read_artifact(CHECKOUT / "artifacts", StressFailures)
    few = tuple(f for f in found.failures if f.version == "v2")[:8]
    write_artifact(artifacts, found.model_copy(update={"failures": few}))
    suite = read_artifact(CHECKOUT / "artifacts", Suite).only("stress")
    write_artifact(artifacts, suite.model_copy(update={"tests": suite.active[:6]}))


class Undisturbed(NamedTuple):
    """What a command comes to, how long it takes and what it asks."""

    results: Results
    seconds: float
    asked: Counter[bytes]


class Trouble(Exception):
    """What did not come as expected."""

    def __init__(self, came: Came, said: str) -> None:
        super().__init__(said)
        self.came: Came = came


class _Home:
    """A folder for the runs, each in a folder of its own, and the model that they ask."""

    def __init__(self, folder: Path, endpoint: Counting) -> None:
        self._folder, self._endpoint = folder, endpoint
        self._number = 0
        self._known: dict[str, Undisturbed] = {}
        self.under_way = self.repeated = self.kept = 0

    def kill(self, command: Command, kills: int, random: Random) -> Iterator[Outcome]:
        """Kill a command so many times, and let it go on to its end after the last one."""
        wanted = self._undisturbed(command)
        folder = self._new()
        self._endpoint.asked.clear()
        open_calls = 0
        for number in range(1, kills + 1):
            way = _Way(random, wanted, command)
            how = f"{' '.join(command.words)}: {way}, {number} of {kills}"
            before = _results(folder)
            try:
                ended = self._killed(command, folder, way, wanted)
                _expect_whole(folder, command, before, wanted.results)
                answered, unanswered = _journaled(folder)
                self.kept += answered
                self.under_way += unanswered
                open_calls += unanswered
                if unanswered > CONCURRENCY:
                    raise Trouble("something lost", f"{unanswered} calls were under way")
                if ended or _is_done(folder, wanted.results):
                    folder, open_calls = self._new(), 0
                    self._endpoint.asked.clear()
                elif number == kills:
                    if command.ends:
                        self._goes_on(command, folder, wanted, answered)
                    self._expect_few_again(wanted, open_calls)
            except Trouble as trouble:
                yield Outcome(f"kill: {command.name}", trouble.came, how, str(trouble))
                return
            yield Outcome(f"kill: {command.name}", AS_EXPECTED, how)
        shutil.rmtree(folder)

    def two_gates(self) -> tuple[Came, str]:
        folder = self._new()
        gate = Command("gate", ("gate", "--history", "h.json", "--trials", "3"))
        for name in ("v2", "v3"):
            shutil.copytree(folder / "artifacts", folder / name)
        more = [("--candidate", name, "--artifacts", name) for name in ("v2", "v3")]
        said = [run.communicate()[1] for run in [self._start(gate, folder, *m) for m in more]]
        history = read_artifact(folder / "h.json", GateHistory)
        verdicts = {line.candidate for line in history.lines if line.release}
        return (AS_EXPECTED, "") if verdicts == {"v2", "v3"} else ("something lost", str(said))

    def _undisturbed(self, command: Command) -> Undisturbed:
        if command.name not in self._known:
            folder = self._new()
            self._endpoint.asked.clear()
            started = time.monotonic()
            run = self._start(command, folder)
            _, said = run.communicate(timeout=SECONDS_TO_FINISH)
            if run.returncode not in command.codes:
                raise RuntimeError(f"{command.name} does not run at all: {said}")
            seconds = time.monotonic() - started
            asked = self._endpoint.asked.copy()
            self._known[command.name] = Undisturbed(_results(folder), seconds, asked)
        return self._known[command.name]

    def _new(self) -> Path:
        self._number += 1
        folder = self._folder / f"{self._number}"
        write_few(folder / "artifacts")
        return folder

    def _start(self, command: Command, folder: Path, *more: str) -> subprocess.Popen[str]:
        paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "safety_lib", *command.words, *more],
            cwd=folder,
            env={**os.environ, **own, **self._endpoint.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_listening,
        )

    def _killed(self, command: Command, folder: Path, way: _Way, wanted: Undisturbed) -> bool:
        """Kill a run in a way and say whether it came to its end all the same."""
        run = self._start(command, folder)
        if way.calls:
            self._endpoint.wait_for(self._endpoint.asked.total() + way.calls, run)
        else:
            time.sleep(way.seconds)
        alive = family(run.pid)
        way.strike(run, alive)
        try:
            _, said = run.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            run.kill()
            raise Trouble("hang", "it did not end") from None
        if "Traceback" in said or "this is a bug" in said:
            raise Trouble("traceback", said)
        finished = run.returncode in command.codes
        if not finished and run.returncode not in (3, -way.signal):
            raise Trouble("wrongly accepted", f"it exited with {run.returncode}: {said}")
        if stay := still_there(alive, SECONDS_TO_END):
            raise Trouble("left behind", f"processes {stay}")
        # One that asks a limited number of calls may come to the limit in spite of the kill.
        limit = not command.ends and self._endpoint.asked.total() >= wanted.asked.total()
        return finished and (command.ends or limit)

    def _goes_on(self, command: Command, folder: Path, wanted: Undisturbed, answered: int) -> None:
        before = self._endpoint.asked.total()
        run = self._start(command, folder)
        try:
            _, said = run.communicate(timeout=SECONDS_TO_FINISH)
        except subprocess.TimeoutExpired:
            run.kill()
            raise Trouble("hang", "it goes on and does not end") from None
        if run.returncode not in command.codes:
            raise Trouble("something lost", f"it does not go on: {run.returncode}: {said}")
        if left := [str(path) for path in folder.rglob("*.part")]:
            raise Trouble("left behind", f"{left}")
        after = _results(folder)
        other = [name for name, data in wanted.results.items() if after.get(name) != data]
        if other and command.same:
            raise Trouble("something lost", f"other bytes than an undisturbed run: {other}")
        asked = self._endpoint.asked.total() - before
        if command.same and asked > wanted.asked.total() - answered:
            raise Trouble("something lost", f"{asked} calls with {answered} answers kept of "
                          f"{wanted.asked.total()}")  # fmt: skip

    def _expect_few_again(self, wanted: Undisturbed, open_calls: int) -> None:
        repeated = (self._endpoint.asked - wanted.asked).total()
        self.repeated += repeated
        if repeated > open_calls:
            raise Trouble("something lost", f"{repeated} calls again, {open_calls} under way")


class _Way:
    """When a run is killed and how: after some time or some calls, all of it or a worker alone."""

    def __init__(self, random: Random, wanted: Undisturbed, command: Command) -> None:
        # The beginning is Python that loads; what matters is behind it.
        part = random.choice([random.uniform(0.2, 1.0), random.uniform(0.6, 1.05)])
        self.seconds = part * wanted.seconds
        self.calls = int(random.uniform(0.02, 1.0) * wanted.asked.total())
        if not command.ends:  # all kills of it come before its limit
            self.calls = 1 + self.calls * 2 // (3 * KILLS_OF_ONE)
        elif self.calls and random.random() < 0.2:
            self.calls = 0
        self.signal = random.choice(
            [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGHUP]
        )
        self._whom = "it"
        if self.signal == signal.SIGINT and random.random() < 0.5:
            self._whom = "all of them"  # as Ctrl-C in a terminal
        elif self.signal == signal.SIGKILL and random.random() < 0.3:
            self._whom = "a worker"  # as a system that is out of memory

    def __str__(self) -> str:
        when = f"{self.calls} calls" if self.calls else f"{self.seconds:.2f} s"
        return f"{self.signal.name} to {self._whom} after {when}"

    def strike(self, run: subprocess.Popen[str], below: list[int]) -> None:
        try:
            if self._whom == "all of them":
                os.killpg(run.pid, self.signal)
            elif self._whom == "a worker" and below:
                os.kill(below[-1], self.signal)
            else:
                run.send_signal(self.signal)
        except ProcessLookupError:  # it ended just now
            pass


def _listening() -> None:
    """Take back what a background job of a shell ignores, and nohup, and both hand on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _results(folder: Path) -> Results:
    artifacts = folder / "artifacts"
    return {
        str(path.relative_to(artifacts)): path.read_bytes()
        for path in artifacts.rglob("*")
        if path.is_file() and not path.name.startswith(".") and "runs" not in path.parts
    }


def _is_done(folder: Path, wanted: Results) -> bool:
    """Whether all that a run had to write is there: it was killed on its way out."""
    journals = list((folder / "artifacts" / "runs").glob("*.answers.jsonl"))
    return not journals and _results(folder) == wanted


def _expect_whole(folder: Path, command: Command, before: Results, wanted: Results) -> None:
    """Expect each file to be the old or the new one, and a page to be of the report beside it."""
    found = _results(folder)
    for name in found:
        for kind in KINDS:
            if name == f"{kind.SCHEMA}.json":
                try:
                    read_artifact(folder / "artifacts", kind)
                except ValueError as error:
                    raise Trouble("something lost", f"torn: {error}") from error
    lost = [name for name in before if name not in found and "gate_report" not in name]
    if lost:
        raise Trouble("something lost", f"gone: {lost}")
    if not (command.same and command.ends):
        return
    strange = [
        name for name, data in found.items() if data not in (before.get(name), wanted.get(name))
    ]
    if strange:
        raise Trouble("something lost", f"neither old nor new: {strange}")
    page, report = (found.get(f"gate_report.{ending}") for ending in ("html", "json"))
    if (
        page
        and report
        and (page == before.get("gate_report.html")) != (report == before.get("gate_report.json"))
    ):
        raise Trouble("something lost", "a page beside the report of another run")


def _journaled(folder: Path) -> tuple[int, int]:
    """Count the answers that are kept, and the calls that were under way in the last run."""
    answered, unanswered = 0, Counter[str]()
    for path in (folder / "artifacts" / "runs").glob("*.answers.jsonl"):
        for line in path.read_bytes().splitlines():
            told = _told(line)
            if told.get("went") == "on":
                unanswered.clear()
            answered += "answered" in told
            unanswered[str(told.get("asked"))] += "asked" in told
            unanswered[str(told.get("answered", told.get("failed")))] -= "asked" not in told
    return answered, sum(number for number in unanswered.values() if number > 0)


def _told(line: bytes) -> Mapping[str, object]:
    try:
        told = json.loads(line)
    except ValueError:  # torn
        return {}
    return told if isinstance(told, dict) else {}
