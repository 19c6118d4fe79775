"""Campaigns on real workers: the same bytes from two of them, killed and interrupted or not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from factories import NORTHWIND

from safety_lib.__main__ import main
from safety_lib.rollout import campaign
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import Rollout, plan_attack
from safety_lib.world import load_version

ROOT = Path(__file__).resolve().parent.parent
V1, V2 = load_version("northwind/v1"), load_version("northwind/v2")


def jobs(count: int) -> Iterator[Rollout]:
    scenarios = NORTHWIND.scenarios
    for n in range(count):
        yield plan_attack((V1, V2)[n % 2], scenarios[n % len(scenarios)], "adaptive", 7, 8, n)


def journal_of_one(path: Path, count: int) -> bytes:
    for _ in run_campaign(jobs(count), journal=path):
        pass
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_dask_workers_write_the_bytes_of_one(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
    expected = journal_of_one(tmp_path / "one.jsonl", 150)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert len(set(client.run(os.getpid).values()) - {os.getpid()}) == 2
        executor = client.get_executor()
        path = tmp_path / "two.jsonl"
        held = run_campaign(jobs(150), run=Run(executor=executor, workers=2), journal=path)
        assert [t.trajectory_id for t in held] == [job.rollout_id for job in jobs(150)]
        for folder, arguments in (("a", ["--dask", cluster.scheduler_address]), ("b", [])):
            where = ["--artifacts", str(tmp_path / folder), "--rollouts", "40"]
            assert main(["stress", *where, *arguments]) == 0
    assert path.read_bytes() == expected
    made = [(tmp_path / folder / "stress_failures.json").read_bytes() for folder in "ab"]
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_what_it_had_not_given_back(tmp_path: Path) -> None:
    expected = journal_of_one(tmp_path / "one.jsonl", 200)
    path = tmp_path / "journal.jsonl"
    with ProcessPoolExecutor(2) as pool:
        victim = pool.submit(os.getpid).result()
        held = run_campaign(jobs(200), run=Run(executor=pool, workers=2), journal=path)
        for _ in range(20):
            next(held)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            list(held)
    kept = path.read_bytes()
    assert expected.startswith(kept)
    assert 21 <= kept.count(b"\n") < 200
    with ProcessPoolExecutor(2) as pool:
        assert (
            len(list(run_campaign(jobs(200), run=Run(executor=pool, workers=2), journal=path)))
            == 200
        )
    assert path.read_bytes() == expected


class Started:
    """``python -m safety_lib stress`` in a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path, workers: int, rollouts: int = 240) -> None:
        arguments = ["--rollouts", str(rollouts), "--workers", str(workers)]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safety_lib", "stress", *arguments, "--artifacts", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finished(self) -> int:
        """Conversations in the journals so far."""
        journals = (self.folder / "runs").glob("*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in journals)

    def signalled(self, number: signal.Signals, after: int) -> tuple[int, str]:
        """Wait until some conversations are in the journal, then hit every process of the group."""
        for _ in range(6_000):
            if self.finished() > after or self.process.poll() is not None:
                break
            time.sleep(0.005)
        os.killpg(self.process.pid, number)
        _, told = self.process.communicate(timeout=60)
        return self.process.returncode, told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The artifact of a campaign that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    _, told = Started(folder, workers=1).process.communicate(timeout=120)
    assert told == ""
    return (folder / "stress_failures.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGKILL, 2)])
def test_a_campaign_that_is_stopped_goes_on_to_the_same_artifact(
    tmp_path: Path, whole: bytes, number: signal.Signals, workers: int
) -> None:
    code, told = Started(tmp_path, workers).signalled(number, after=60)
    assert not (tmp_path / "stress_failures.json").exists()
    if number == signal.SIGINT:
        assert code == 3
        assert told.strip() == "error: interrupted; nothing was half written, run it again"
    else:
        assert code == -signal.SIGKILL
    again = Started(tmp_path, 1)
    kept = again.finished()
    assert kept > 60
    _, told = again.process.communicate(timeout=120)
    assert told == ""
    assert (tmp_path / "stress_failures.json").read_bytes() == whole
    assert again.finished() == 0  # journals of a finished campaign are removed


def test_without_dask_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["stress", "--dask", "tcp://127.0.0.1:1", "--artifacts", str(tmp_path)]) == 3
    assert "pip install 'agentic-safety-notebooks[dask]'" in capsys.readouterr().err


def test_what_the_journal_holds_is_not_held_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    with ProcessPoolExecutor(2) as pool:
        held = run_campaign(jobs(120), run=Run(executor=pool, workers=2), journal=path)
        for _ in range(70):
            next(held)
        held.close()
    ids: list[str] = []
    real = campaign.run_rollout

    def counted(rollout: Rollout, model: str = "") -> object:
        ids.append(rollout.rollout_id)
        return real(rollout, model)

    monkeypatch.setattr(campaign, "run_rollout", counted)
    assert len(list(run_campaign(jobs(120), journal=path))) == 120
    assert ids == [job.rollout_id for job in jobs(120)][70:]


@pytest.mark.slow
def test_the_bar_counts_conversations_and_failures_so_far(tmp_path: Path) -> None:
    """On a terminal; into a pipe nothing is drawn (see the campaigns above)."""
    pty = pytest.importorskip("pty", reason="this system has no terminals of that kind")
    termios = pytest.importorskip("termios")
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    arguments = ["--rollouts", "60", "--artifacts", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-m", "safety_lib", "stress", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    drawn = b""
    try:
        while part := os.read(reader, 65536):
            drawn += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(reader)
    said, _ = child.communicate(timeout=60)
    counts = [int(n) for n in re.findall(rb"(\d+) failures", drawn)]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert re.search(rb"\d+ conversations", drawn)
    assert "failures in 60 conversations" in said
