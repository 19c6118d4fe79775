"""The one reader, the one writer and the one lock; what a user names may be anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safety_lib.agent.backends.answers import keeping_answers
from safety_lib.artifacts import CHECKOUT
from safety_lib.files import (
    FileError,
    expect_writable,
    locked,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_yaml,
    scratch_in,
    sweep,
    write_text,
)
from safety_lib.pipeline.workers import workers_for
from safety_lib.plain_yaml import MOST_DEPTH

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")


def refused(read: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(FileError) as error:
        read(*given)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# --------------------------------------------------------------------------- reading


@pytest.mark.parametrize("read", [read_json, read_yaml, read_bytes])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "x: there is no such file in "),
        (lambda path: path.mkdir(), "x: is a folder, not a file"),
        (os.mkfifo, "x: is a pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "x: is a device, not a file"),
        (lambda path: path.symlink_to(path), "x: cannot be read ("),
    ],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, read: Callable[..., Any], make: Callable[[Path], Any], said: str
) -> None:
    path = tmp_path / "x"
    make(path)
    assert refused(read, path).startswith(said)


@pytest.mark.parametrize("name", ["a\0b", "n" * 5_000])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert "cannot be read (" in refused(read_json, name)


@needs_proc
def test_what_is_made_up_as_it_is_read_is_refused() -> None:
    assert refused(read_bytes, "/proc/self/status") == "status: changes while it is read"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.touch()
    os.truncate(path, 5 << 30)
    assert refused(read_json, path) == (
        "suite.json: has more than 64 MB, which is the most that is read"
    )


def test_a_mark_of_byte_order_is_none_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(path) == read_yaml(path) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "x: 'c' stands there twice"),
        ('{\n"a": 1' + "0" * 4_300 + "}", "x: line 2: a number of 4,301 digits"),
        ('{"a": 1e999}', "x: 1e999 is larger than a number can be"),
        ('{"a": -Infinity}', "x: -Infinity is not a JSON number"),
        ("[" * 100_000, "x: nested too deeply, more than 100 levels"),
        ('{"a": {"b": ' + "[" * 500 + "]" * 500 + "}}", "x: field a.b.0.0: nested too deeply"),
        ("[" + "[]," * 5_000_000, "x: holds more than 4,000,000 lists and mappings"),
        ('{"a": 1', "x: not JSON at line 1, column 8, so truncated or damaged"),
    ],
)
def test_json_that_nobody_can_mean_is_refused(text: str, said: str) -> None:
    assert refused(parse_json, "x", text).startswith(said)


def test_what_is_as_deep_as_it_may_be_is_read() -> None:
    for parse in (parse_json, parse_yaml):
        parse("x", "[" * MOST_DEPTH + "]" * MOST_DEPTH)
        assert "nested too deeply" in refused(parse, "x", "[" * 101 + "]" * 101)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "x: line "),
        ("a: &a [*a]", "x: line 1: an alias that stands inside what it is an alias of"),
        ("a: 1\nb: 2\na: 3", "x: line 3: 'a' stands there twice"),
        ("a:\n  b: !!bool maybe", "x: line 2: 'maybe' is no bool"),
        ('a: !!int ""', "x: line 1: '' is no int"),
        ("a: !!float", "x: line 1: '' is no float"),
        ("a: 1" + "0" * 5_000, "x: line 1: '1000"),
        ("a: {[1]: 2}", "x: line 1: the name of an entry is no text"),
        ("a: !!timestamp 2024-13-01", "x: line 1: could not determine a constructor"),
        ("a: !!python/name:os.system", "x: line 1: could not determine a constructor"),
        ("a: {b: [.inf]}", "x: field a.b.0: JSON cannot hold inf"),
        ("a: [", "x: line 1: not YAML: "),
        ("a: 1\n---\nb: 2", "x: line 2: not YAML: "),
        ("\0", "x: not YAML: "),
        ("- x\n" * 60_000, "x: line 50001: more than 50,000 entries"),
    ],
)
def test_yaml_that_nobody_can_mean_is_refused(text: str, said: str) -> None:
    assert refused(parse_yaml, "x", text).startswith(said)


def test_yaml_is_plain_data_and_names_are_as_they_are_written() -> None:
    text = "{on: yes, 1: 1, null: ~, since: 2024-13-01, at: 12:30:00, list: &l [1.5], same: *l}"
    assert parse_yaml("x", text) == {
        "on": True, "1": 1, "null": None, "since": "2024-13-01", "at": "12:30:00",
        "list": [1.5], "same": [1.5],
    }  # fmt: skip
    assert parse_yaml("x", "base: &b {a: 1}\nc: {<<: *b, d: 2}")["c"] == {"a": 1, "d": 2}


# --------------------------------------------------------------------------- writing


def test_the_mask_of_the_user_counts(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = write_text(tmp_path / "private.json", "{}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_one(tmp_path: Path) -> None:
    link, target = tmp_path / "latest.json", tmp_path / "there" / "one.json"
    target.parent.mkdir()
    link.symlink_to(target)
    write_text(link, "{}")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full", "folder", "file/below", "", "new/"])
def test_nothing_is_written_over_what_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for write in (lambda: expect_writable([name]), lambda: write_text(name, "x")):
        refused(write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "name", ["in.json", "./in.json", "sub/../in.json", "link.json", "hard.json"]
)
def test_an_output_over_an_input_is_refused_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    kept = write_text(tmp_path / "in.json", "{}")
    (tmp_path / "link.json").symlink_to(kept)
    os.link(kept, tmp_path / "hard.json")
    assert "would be overwritten" in refused(expect_writable, [name], [kept])
    assert "would be overwritten" in refused(expect_writable, ["new.json", "./new.json"])
    expect_writable(["new.json", "sub/deep/er.json"], [kept])
    assert not (tmp_path / "sub" / "deep").exists()


ENDLESS = """
import os, signal, sys
from pathlib import Path
from safety_lib import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{what}
"""


@pytest.mark.parametrize(
    "what",
    [
        "files.write_text(sys.argv[1] + '/a.json', 'x')",
        "with files.scratch_in(Path(sys.argv[1])) as f: (f / 'rows').touch(); os.replace()",
    ],
)
def test_what_a_kill_leaves_behind_the_next_write_takes_away(tmp_path: Path, what: str) -> None:
    command = [sys.executable, "-c", ENDLESS.format(what=what), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    assert subprocess.run(command, check=False, env=environment).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    write_text(tmp_path / "b.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_what_somebody_still_writes_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / ".other.part"
    own.touch()  # of another program
    with scratch_in(tmp_path) as scratch:
        (scratch / "rows").touch()
        sweep(tmp_path)
        assert (scratch / "rows").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".other.part"]


def test_what_is_left_behind_is_not_for_git() -> None:
    done = subprocess.run(
        [
            "git",
            "check-ignore",
            "artifacts/.gate_report.json.0a1b2c3d.part",
            "artifacts/runs/.lock",
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("no repository")
    assert len(done.stdout.splitlines()) == 2


COUNTING = """
import json, sys, time
from pathlib import Path
from safety_lib.files import locked, read_json, write_text
path = Path(sys.argv[1])
for _ in range(20):
    with locked(path.parent):
        number = read_json(path)
        time.sleep(0.001)
        write_text(path, json.dumps(number + 1))
"""


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    path = write_text(tmp_path / "n.json", "0")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", COUNTING, str(path)]
    runs = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert json.loads(path.read_text(encoding="utf-8")) == 60
    with locked(tmp_path):  # and nobody holds it any more
        pass


@pytest.mark.parametrize("name", [".lock", "gate.answers.jsonl"])
def test_a_pipe_in_the_place_of_a_lock_or_a_journal_is_not_waited_for(
    tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    with (
        pytest.raises(FileError, match=f"^{name}: is a pipe"),
        keeping_answers(tmp_path, "gate"),
        locked(tmp_path),
    ):
        pass


# --------------------------------------------------------------------------- the command line

SAY = [sys.executable, "-m", "safety_lib"]


def shell(line: str, folder: Path, **more: str) -> tuple[int, str]:
    """Run a line of shell in which $SAY is the command line; return its exit code and errors."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **more, "SAY": " ".join(SAY)}
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "$SAY gate --nope 2>/dev/full",
        "$SAY gate --suite nope.json 2>&-",
        "$SAY gate --suite nope.json >&- 2>&- <&-",
        "$SAY log schema >/dev/full",
        "$SAY --help >/dev/full 2>/dev/full",
        "$SAY gate",
    ],
)
def test_whatever_is_closed_or_full_no_verdict_is_three(tmp_path: Path, line: str) -> None:
    assert shell(line, tmp_path)[0] == 3


def test_a_stream_that_is_closed_takes_no_verdict_away(tmp_path: Path) -> None:
    line = "$SAY stress --rollouts 2 --max-turns 2 --workers 1 --artifacts out"
    assert shell(f"{line} >&- 2>&- <&-", tmp_path)[0] == 0
    assert (tmp_path / "out" / "stress_failures.json").exists()


@pytest.mark.parametrize("name", ["click", "yaml", "pydantic", "contextlib", "typing"])
@pytest.mark.parametrize("says", ["raise ImportError('none')", "raise SystemExit(0)", "1 / 0", "("])
def test_a_package_that_cannot_be_imported_is_three(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / f"{name}.py").write_text(says, encoding="utf-8")
    code, said = shell("$SAY gate", tmp_path)
    assert code == 3
    if name not in ("contextlib", "typing"):  # Python's own, of which it says more before we can
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert name in said or "SystemExit" in said


def killed_while_it_hands_over(number: int) -> int:
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    results = frame.f_locals["result_queue"]
    if number == 0:
        results._wlock.acquire()
        os.write(results._writer.fileno(), b"\0\0\x10\0half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="its workers are forked")
def test_a_worker_that_is_killed_in_the_middle_of_a_result_ends_the_run() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no workers")
    with pytest.raises(RuntimeError, match="a worker was killed"), workers_for(2) as (pool, _):
        assert pool is not None
        list(pool.map(killed_while_it_hands_over, range(20)))


ON_ITS_WAY_OUT = """
import atexit, os, signal, sys
import safety_lib.__main__ as command_line, safety_lib.start
command_line.main = lambda: 2
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.exit(safety_lib.start.run())
"""


def test_a_verdict_that_was_said_is_not_interrupted_any_more() -> None:
    command = [sys.executable, "-c", ON_ITS_WAY_OUT]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="children are read from /proc")
@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, one: signal.Signals) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no workers")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.Popen(
        [*SAY, "stress", "--rollouts", "100000", "--workers", "64", "--artifacts", str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while len(workers := children.read_text(encoding="utf-8").split()) < 2:
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(children.read_text(encoding="utf-8").split()) <= len(os.sched_getaffinity(0))
    run.send_signal(one)
    assert run.wait(30) in (3, -one)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(runs, workers)):
        time.sleep(0.05)
    assert [pid for pid in workers if runs(pid)] == []


def runs(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
