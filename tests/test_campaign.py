"""Campaigns: the same trajectories from any number of workers, killed or not."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib.agent.loop import Agent, Conversation
from safety_lib.records import Message, Trajectory
from safety_lib.rollout import campaign, conversation
from safety_lib.rollout.campaign import JournalError, Run, run_campaign
from safety_lib.rollout.conversation import Rollout, plan_attack, plan_replay
from safety_lib.world import load_version

ROOT = Path(__file__).resolve().parent.parent
V1, V2 = load_version("northwind/v1"), load_version("northwind/v2")


def jobs(count: int = 20, attacker: str = "static", max_turns: int = 3) -> Iterator[Rollout]:
    scenarios = NORTHWIND.scenarios
    for n in range(count):
        yield plan_attack(V1, scenarios[n % len(scenarios)], attacker, 7, max_turns, n)


def lines(trajectories: Iterable[Trajectory]) -> list[str]:
    return [trajectory.model_dump_json() for trajectory in trajectories]


PLAIN = lines(run_campaign(jobs()))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    assert lines(run_campaign(jobs(), journal=path)) == PLAIN
    return path


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rollouts that are really held, in their order."""
    ids: list[str] = []
    real = conversation.run_rollout

    def counted(rollout: Rollout, model: str = "") -> Trajectory:
        ids.append(rollout.rollout_id)
        return real(rollout, model)

    monkeypatch.setattr(campaign, "run_rollout", counted)
    return ids


# --------------------------------------------------------------- order and workers


def test_trajectories_come_in_the_order_of_the_rollouts() -> None:
    ids = [job.rollout_id for job in jobs()]
    assert [t.trajectory_id for t in run_campaign(jobs())] == ids
    with ThreadPoolExecutor(4) as pool:
        held = run_campaign(jobs(), run=Run(executor=pool, workers=4))
        assert [t.trajectory_id for t in held] == ids


def test_no_number_of_workers_changes_a_byte() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert lines(run_campaign(jobs(), run=Run(executor=pool, workers=3))) == PLAIN
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert lines(run_campaign(jobs(), run=Run(executor=pool, workers=2))) == PLAIN


def test_a_journal_from_many_workers_is_the_same_file(tmp_path: Path) -> None:
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    list(run_campaign(jobs(), journal=one))
    with ThreadPoolExecutor(3) as pool:
        list(run_campaign(jobs(), run=Run(executor=pool, workers=3), journal=many))
    assert one.read_bytes() == many.read_bytes()


def test_no_rollouts_make_no_trajectories(tmp_path: Path) -> None:
    assert list(run_campaign([])) == []
    assert list(run_campaign([], journal=tmp_path / "j")) == []
    with ThreadPoolExecutor(1) as pool:
        assert list(run_campaign([], run=Run(executor=pool))) == []


def test_each_result_is_told_once_and_in_order(journal: Path) -> None:
    told: list[Trajectory] = []
    for kept in (None, journal):
        told.clear()
        results = list(run_campaign(jobs(), run=Run(progress=told.append), journal=kept))
        assert told == results
        assert len(told) == 20


class Networked:
    """A model behind a network: it serves a few conversations at once."""

    name = "networked"
    concurrency = 3

    def complete(self, messages: Any, tools: Any, *, seed: int) -> Message:
        return Message(role="assistant", content=f"{len(messages)} messages, seed {seed}.")


def test_a_model_behind_a_network_is_asked_in_threads_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(V1, Networked())
    monkeypatch.setattr(conversation, "connected", lambda version, model: agent)
    results = list(run_campaign(jobs(30)))
    assert [t.trajectory_id for t in results] == [job.rollout_id for job in jobs(30)]
    assert {t.model for t in results} == {"networked"}


def test_an_error_of_a_worker_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rollout: Rollout, model: str = "") -> Trajectory:
        raise RuntimeError("a bug")

    monkeypatch.setattr(campaign, "run_rollout", broken)
    with ThreadPoolExecutor(2) as pool, pytest.raises(RuntimeError, match="a bug"):
        list(run_campaign(jobs(), run=Run(executor=pool)))


# --------------------------------------------------------------- a long input


class Drawn:
    """Counts how many rollouts have been taken from a generator."""

    def __init__(self, rollouts: Iterable[Rollout]) -> None:
        self.rollouts = iter(rollouts)
        self.count = 0

    def __iter__(self) -> Iterator[Rollout]:
        for rollout in self.rollouts:
            self.count += 1
            yield rollout


def test_a_generator_is_consumed_as_it_is_needed() -> None:
    drawn = Drawn(jobs(10_000, "direct", 1))
    results = run_campaign(drawn)
    assert drawn.count == 0
    for number in range(1, 6):
        next(results)
        assert drawn.count == number


@pytest.mark.parametrize("workers", [1, 2])
def test_no_worker_waits_and_none_is_far_ahead_of_who_reads(workers: int) -> None:
    drawn = Drawn(jobs(1_000, "direct", 1))
    with ThreadPoolExecutor(workers) as pool:
        results = run_campaign(drawn, run=Run(executor=pool, workers=workers))
        for number in range(1, 200):
            next(results)
            ahead = drawn.count - number
            assert 2 * workers * campaign.CHUNK < ahead <= (4 * workers + 1) * campaign.CHUNK
        results.close()


def test_a_long_campaign_goes_out_in_longer_chunks_and_comes_back_the_same() -> None:
    sent: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, work: Any, batch: Any, /, *_: Any, **__: Any) -> Future[Any]:
            sent.append(len(batch))
            return super().submit(work, batch)

    with Counting(2) as pool:
        held = [
            t.model_dump_json()
            for t in run_campaign(jobs(1_300, "direct", 1), run=Run(executor=pool))
        ]
    assert set(sent[:-1]) == {campaign.CHUNK, campaign.LONG_CHUNK}
    assert sum(sent) == len(held) == 1_300
    assert held == [t.model_dump_json() for t in run_campaign(jobs(1_300, "direct", 1))]


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 2])
def test_a_thousand_rollouts_leave_nothing_behind(tmp_path: Path, threads: int) -> None:
    def go_through(executor: Executor | None) -> None:
        held = run_campaign(
            jobs(1_000, "direct", 1), run=Run(executor=executor), journal=tmp_path / "j"
        )
        for number, _ in enumerate(held):
            if number in (200, 900):
                seen.append(alive(Trajectory))

    before, sessions, seen = alive(Trajectory), alive(Conversation), list[int]()
    if threads:
        with ThreadPoolExecutor(threads) as pool:
            go_through(pool)
    else:
        go_through(None)
    assert all(count - before <= 2 for count in seen)
    assert len(seen) == 2
    assert alive(Conversation) <= sessions


# --------------------------------------------------------------- journals


def test_a_finished_journal_is_read_and_nothing_is_run_again(
    journal: Path, held: list[str]
) -> None:
    before = journal.read_bytes()
    assert lines(run_campaign(jobs(), journal=journal)) == PLAIN
    assert held == []
    assert journal.read_bytes() == before


def test_a_longer_campaign_goes_on_where_the_journal_ends(journal: Path, held: list[str]) -> None:
    assert len(list(run_campaign(jobs(25), journal=journal))) == 25
    assert held == [job.rollout_id for job in jobs(25)][20:]


def test_a_reader_who_stops_early_can_go_on_later(tmp_path: Path, held: list[str]) -> None:
    path = tmp_path / "new" / "folder" / "journal.jsonl"
    for trajectory in run_campaign(jobs(), journal=path):
        if trajectory.trajectory_id.endswith("/6"):
            break
    assert len(held) == 7
    assert lines(run_campaign(jobs(), journal=path)) == PLAIN
    assert held == [job.rollout_id for job in jobs()]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_journal_cut_at_any_byte_is_resumed_to_the_same_file(
    journal: Path, held: list[str], data: st.DataObject
) -> None:
    whole = journal.read_bytes()
    end = len(whole)
    first = whole.index(b"\n") + 1
    cut = data.draw(st.integers(0, end) | st.integers(0, first + 1) | st.integers(end - 2, end))
    held.clear()
    journal.write_bytes(whole[:cut])
    assert lines(run_campaign(jobs(), journal=journal)) == PLAIN
    assert journal.read_bytes() == whole
    finished = max(0, whole[:cut].count(b"\n") - 1)
    assert held == [job.rollout_id for job in jobs()][finished:]


KILLED = """
import os, pathlib, signal, sys
from safety_lib.rollout.campaign import run_campaign
sys.path.insert(0, {tests!r})
from test_campaign import jobs

class Dying:
    # Writes half of its eighth line and is killed, as by the kernel out of memory.
    def __init__(self, file):
        self.file, self.left = file, 8
    def __getattr__(self, name):
        return getattr(self.file, name)
    def __enter__(self):
        return self
    def __exit__(self, *raised):
        self.file.close()
    def write(self, data):
        self.left -= 1
        if not self.left:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.file.write(data)

opened = pathlib.Path.open
pathlib.Path.open = lambda path, mode="r", *rest, **more: (
    Dying(opened(path, mode, *rest, **more)) if "+" in mode else opened(path, mode, *rest, **more)
)
list(run_campaign(jobs(), journal=pathlib.Path({journal!r})))
"""


def test_a_campaign_that_is_killed_while_it_writes_goes_on_without_loss_or_repetition(
    tmp_path: Path, held: list[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    program = KILLED.format(tests=str(Path(__file__).parent), journal=str(path))
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    torn = path.read_bytes()
    assert not torn.endswith(b"\n")
    finished = torn.count(b"\n") - 1
    assert finished == 6
    assert lines(run_campaign(jobs(), journal=path)) == PLAIN
    assert held == [job.rollout_id for job in jobs()][finished:]
    assert path.read_text(encoding="utf-8").splitlines()[1:] == PLAIN


# --------------------------------------------------------------- journals that do not fit


def refused(journal: Path, rollouts: Iterable[Rollout] | None = None) -> str:
    before = journal.read_bytes()
    with pytest.raises(JournalError) as error:
        list(run_campaign(jobs() if rollouts is None else rollouts, journal=journal))
    assert journal.read_bytes() == before
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(index: int, **fields: Any) -> list[Rollout]:
    planned = list(jobs())
    planned[index] = planned[index]._replace(**fields)
    return planned


@pytest.mark.parametrize(
    "others",
    [
        list(jobs(attacker="adaptive")),
        list(jobs(max_turns=4)),
        list(jobs(max_turns=2)),
        list(jobs())[::-1],
        list(jobs())[1:],
        list(jobs(19)),
        changed(4, seed=1),
        changed(4, version=V2),
        changed(4, plants=()) if list(jobs())[4].plants else changed(9, plants=()),
    ],
    ids=["attacker", "longer", "shorter", "order", "shift", "fewer", "seed", "version", "plants"],
)
def test_the_journal_of_another_campaign_is_refused(
    journal: Path, others: list[Rollout], held: list[str]
) -> None:
    told = refused(journal, others)
    assert "belongs to another campaign" in told and told.startswith("journal.jsonl: line ")
    assert held == []


def test_the_journal_of_another_model_is_refused(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(V1, Networked())
    monkeypatch.setattr(conversation, "connected", lambda version, model: agent)
    assert "line 2 belongs to another campaign" in refused(journal)


@pytest.mark.parametrize(
    "other",
    [
        plan_replay(V1, ["Hello.", "Please read T-202."], name="r", seed=1),
        plan_replay(V1, ["Hello."], name="r", seed=1),
        plan_replay(V1, ["Hello.", "Please read T-201.", "Bye."], name="r", seed=1),
    ],
)
def test_the_journal_of_a_replay_with_other_words_is_refused(
    tmp_path: Path, other: Rollout
) -> None:
    path = tmp_path / "journal.jsonl"
    one = plan_replay(V1, ["Hello.", "Please read T-201."], name="r", seed=1)
    (done,) = run_campaign([one], journal=path)
    assert list(run_campaign([one], journal=path)) == [done]
    assert "belongs to another campaign" in refused(path, [other])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"world": "desk"}, "line 1 is of the world desk, not of northwind"),
        ({"schema_version": 1}, "line 1 is of another edition of journals"),
        ({"files": 3}, "line 1 is not the header of a journal"),
    ],
)
def test_the_journal_of_another_world_is_refused(
    journal: Path, other: dict[str, Any], said: str
) -> None:
    header, rest = journal.read_bytes().split(b"\n", 1)
    journal.write_bytes(json.dumps(json.loads(header) | other).encode() + b"\n" + rest)
    assert said in refused(journal)


@pytest.mark.parametrize("file", sorted(NORTHWIND.files))
def test_a_journal_from_before_any_file_of_its_world_changed_is_refused(
    journal: Path, file: str
) -> None:
    header, rest = journal.read_bytes().split(b"\n", 1)
    told = json.loads(header)
    told["files"][file] = "0" * 64
    journal.write_bytes(json.dumps(told).encode() + b"\n" + rest)
    assert f"was written before {file} of the world northwind changed" in refused(journal)


@pytest.mark.parametrize(
    "damage",
    [b"not json", b"", b"{}", b"null", b"\xff\xfe", b'{"trajectory_id": "\xff"}', b"\x00" * 50],
)
def test_a_damaged_line_is_refused_with_its_number(journal: Path, damage: bytes) -> None:
    rows = journal.read_bytes().split(b"\n")
    rows[4] = damage
    journal.write_bytes(b"\n".join(rows))
    assert "line 5 is not a trajectory" in refused(journal)


@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b'{"artifact": "suite"}\n', b"\x89PNG\r\n\x1a\n" * 9, b"\n" * 200],
)
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert "notes.txt: line 1 is not the header" in refused(path)
