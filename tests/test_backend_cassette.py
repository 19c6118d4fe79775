"""Cassettes: record once, replay the same, and say clearly what is not on the tape."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safety_lib.agent.backends import Backend, BackendError, ToolSchema, open_backend
from safety_lib.agent.backends.cassette import Cassette, CassetteRecorder
from safety_lib.records import Message, ToolCall

TOOL = {"type": "function", "function": {"name": "read_file", "parameters": {}}}


class Echo:
    """A model that says back what it was told, counts how often, and fails when told to."""

    def __init__(self, name: str = "openai:tiny", concurrency: int = 3) -> None:
        self.name = name
        self.concurrency = concurrency
        self.asked = 0

    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        self.asked += 1
        text = messages[-1].content
        if text == "fail":
            raise BackendError("server_error", "told to")
        calls = (ToolCall(id="c1", name="read_file", arguments={"path": "\u2028ü", "n": 0.1}),)
        answer = f"{text} {seed} ({self.asked})\n\u2028"
        return Message(role="assistant", content=answer, tool_calls=calls if tools else ())


def said(text: str) -> list[Message]:
    return [Message(role="system", content="Be brief."), Message(role="user", content=text)]


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    path = tmp_path / "tapes" / "run.jsonl"
    recorder = CassetteRecorder(path, Echo(), {})
    recorder.complete(said("Hello"), [], seed=1)
    recorder.complete(said("Hello"), [TOOL], seed=1)
    return path


def test_a_replay_gives_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorder = CassetteRecorder(path, Echo(), {})
    first = [recorder.complete(said(t), [TOOL], seed=s) for t in "abc" for s in (1, 2**40)]
    cassette = Cassette(path, {})
    again = [cassette.complete(said(t), [TOOL], seed=s) for t in "abc" for s in (1, 2**40)]
    assert again == first
    assert [m.model_dump_json() for m in again] == [m.model_dump_json() for m in first]
    assert cassette.name == recorder.name == "openai:tiny"
    assert isinstance(cassette, Backend)
    assert isinstance(recorder, Backend)


def test_names_open_cassettes(tape: Path) -> None:
    assert isinstance(open_backend(f"cassette:{tape}", {}), Cassette)


def test_the_file_is_a_header_and_one_short_line_per_answer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    CassetteRecorder(path, Echo(), {}).complete(said("word " * 500), [TOOL], seed=1)
    header, entry = (json.loads(line) for line in path.read_text(encoding="ascii").splitlines())
    assert header == {"artifact": "cassette", "schema_version": 1, "model": "openai:tiny"}
    assert sorted(entry) == ["key", "request", "response"]
    assert len(entry["request"]) == 80
    assert entry["request"].startswith("word word")
    assert "Be brief" not in path.read_text()


def test_a_request_that_is_not_on_the_tape_is_an_error_that_names_it(tape: Path) -> None:
    with pytest.raises(BackendError) as caught:
        Cassette(tape, {}).complete(said("Good morning"), [], seed=7)
    assert caught.value.kind == "not_on_tape"
    for part in (str(tape), "'Good morning'", "seed 7", f"record:{tape}:openai:tiny"):
        assert part in caught.value.detail


def test_the_error_about_a_local_model_names_what_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    CassetteRecorder(path, Echo("local:SmolLM2-135M-Instruct"), {})
    with pytest.raises(BackendError, match=r"record:.*run\.jsonl:local$"):
        Cassette(path, {}).complete(said("Hello"), [], seed=1)


@pytest.mark.parametrize(
    "same",
    [
        {"timeout_seconds": 1, "retries": 9, "concurrency": 1, "retry_seconds": 0},
        {"caution": 0.3, "style": "friendly", "backend": "simulated"},
        {"temperature": 0.7, "max_tokens": 256, "tool_protocol": "native"},
    ],
)
def test_settings_that_do_not_reach_the_model_do_not_change_the_key(
    tape: Path, same: dict[str, Any]
) -> None:
    assert Cassette(tape, same).complete(said("Hello"), [], seed=1).content.startswith("Hello 1")


@pytest.mark.parametrize(
    ("settings", "messages", "tools", "seed"),
    [
        ({"temperature": 0}, said("Hello"), [], 1),
        ({"max_tokens": 5}, said("Hello"), [], 1),
        ({"tool_protocol": "json"}, said("Hello"), [], 1),
        ({}, said("Hello!"), [], 1),
        ({}, said("Hello")[1:], [], 1),
        ({}, said("Hello"), [TOOL, TOOL], 1),
        ({}, said("Hello"), [], 2),
    ],
)
def test_all_that_reaches_the_model_is_part_of_the_key(
    tape: Path, settings: Any, messages: Any, tools: Any, seed: int
) -> None:
    with pytest.raises(BackendError, match="not_on_tape"):
        Cassette(tape, settings).complete(messages, tools, seed=seed)


# --------------------------------------------------------------------------- recording


def test_an_interrupted_recording_goes_on_where_it_stopped(tape: Path) -> None:
    gc.collect()
    echo = Echo()
    recorder = CassetteRecorder(tape, echo, {})
    assert recorder.complete(said("Hello"), [], seed=1).content.startswith("Hello 1 (1)")
    assert echo.asked == 0
    recorder.complete(said("New"), [], seed=1)
    recorder.complete(said("New"), [], seed=1)
    assert echo.asked == 1
    assert len(tape.read_text().splitlines()) == 4


def test_failures_are_not_recorded(tape: Path) -> None:
    before = tape.read_bytes()
    with pytest.raises(BackendError, match="told to"):
        CassetteRecorder(tape, Echo(), {}).complete(said("fail"), [], seed=1)
    assert tape.read_bytes() == before


def test_threads_and_two_recorders_never_write_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorders = [CassetteRecorder(path, Echo(), {}) for _ in range(2)]
    answers: dict[str, set[str]] = {str(i): set() for i in range(20)}

    def work(recorder: CassetteRecorder) -> None:
        for text, seen in answers.items():
            seen.add(recorder.complete(said(text), [], seed=1).content)

    threads = [threading.Thread(target=work, args=(recorders[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [json.loads(line).get("key") for line in path.read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == 20
    assert {len(seen) for seen in answers.values()} == {1}, "the answer on the tape is the answer"


def test_recording_belongs_in_threads_even_when_the_model_asks_for_processes(
    tmp_path: Path,
) -> None:
    assert CassetteRecorder(tmp_path / "a.jsonl", Echo(concurrency=0), {}).concurrency == 1
    assert CassetteRecorder(tmp_path / "b.jsonl", Echo(concurrency=3), {}).concurrency == 3


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_recorded_again(tape: Path, lost: int) -> None:
    gc.collect()
    whole = tape.read_bytes()
    tape.write_bytes(whole[:-lost])
    Cassette(tape, {}).complete(said("Hello"), [], seed=1)
    assert len(tape.read_bytes()) == len(whole) - lost, "a replay never writes"
    CassetteRecorder(tape, Echo(), {}).complete(said("Hello"), [TOOL], seed=1)
    assert tape.read_bytes() == whole.replace(b"(2)", b"(1)")


WRITER = """
import sys
from safety_lib.agent.backends.cassette import CassetteRecorder
from safety_lib.records import Message

class Model:
    name, concurrency = "openai:tiny", 1
    def complete(self, messages, tools, *, seed):
        return Message(role="assistant", content="x" * 500)

recorder = CassetteRecorder(sys.argv[1], Model(), {})
start, stop = int(sys.argv[2]), int(sys.argv[3])
for i in range(start, stop):
    recorder.complete([Message(role="user", content=str(i))], [], seed=1)
"""


def writer(path: Path, start: int, stop: int) -> list[str]:
    return [sys.executable, "-c", WRITER, str(path), str(start), str(stop)]


@pytest.mark.slow
def test_processes_one_after_another_share_a_tape(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for start in (0, 3, 6):
        subprocess.run(writer(path, start, start + 5), check=True)
    assert len(path.read_text().splitlines()) == 1 + 11


def test_a_killed_recording_leaves_a_tape_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    process = subprocess.Popen(writer(path, 0, 10**9))
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answer = Cassette(path, {}).complete([Message(role="user", content="0")], [], seed=1)
    assert answer.content == "x" * 500


# --------------------------------------------------------------------------- files that are not one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "first line, the header, is missing"),
        ("no newline", "first line, the header, is missing"),
        ("hello\nworld\n", 'must say "artifact": "cassette"'),
        ('{"artifact": "suite"}\n', 'must say "artifact": "cassette"'),
        (
            '{"artifact": "cassette", "schema_version": 2, "model": "m"}\n',
            "schema_version 2, expec",
        ),
        ('{"artifact": "cassette", "schema_version": 1}\n', "must name the model"),
        (
            '{"artifact": "cassette", "schema_version": 1, "model": "m"}\n{"key": "a"}\n',
            "line 2 is not a recorded answer",
        ),
        (
            '{"artifact": "cassette", "schema_version": 1, "model": "m"}\n'
            '{"key": "a", "response": {"role": "user", "content": ""}}\n',
            "line 2 is not a recorded answer",
        ),
        (
            '{"artifact": "cassette", "schema_version": 1, "model": "m"}\ngarbage\n{}\n',
            "line 2 is not a recorded answer",
        ),
        ('{"artifact": "cassette", "artifact": "cassette"}\n', "not a cassette"),
        (
            '{"artifact": "cassette", "schema_version": 1, "model": "m"}\n'
            '{"key": "a", "key": "b", "response": {"role": "assistant", "content": ""}}\n',
            "line 2 is not a recorded answer: 'key' stands there twice",
        ),
        (
            '{"artifact": "cassette", "schema_version": 1, "model": "m"}\n'
            + '{"key": "a", "response": ' + "[" * 200_000 + "]" * 200_000 + "}\n",
            "line 2 is not a recorded answer: .* deep",
        ),
    ],
)  # fmt: skip
def test_what_is_not_a_cassette_is_named_with_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Cassette(path, {})
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cassette:{}", "record:{}:simulated"])
def test_what_is_no_file_is_no_cassette_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(ValueError, match=r"is a |no such cassette|null") as caught:
            open_backend(kind.format(path), {}, {"simulated": lambda _: Echo()})
        assert "\n" not in str(caught.value)


def test_a_mark_of_byte_order_is_none_of_a_tape(tape: Path) -> None:
    tape.write_bytes(b"\xef\xbb\xbf" + tape.read_bytes())
    assert Cassette(tape, {}).name


def test_a_missing_cassette_says_how_to_record_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(ValueError, match=r"no such cassette; record one with .*record:"):
        open_backend(f"cassette:{path}", {})
    assert not path.exists()


def test_another_models_tape_is_not_continued(tape: Path) -> None:
    before = tape.read_bytes()
    with pytest.raises(ValueError, match="a recording of openai:tiny, not of openai:other"):
        CassetteRecorder(tape, Echo("openai:other"), {})
    assert tape.read_bytes() == before


def test_another_file_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list")
    with pytest.raises(ValueError, match="not a cassette"):
        CassetteRecorder(path, Echo(), {})
    assert path.read_text() == "shopping list"


def test_no_key_reaches_the_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    key = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    path = tmp_path / "run.jsonl"
    settings = {"retries": 0, "api_key": key}
    backend: Any = open_backend("openai:tiny", settings)
    monkeypatch.setattr(backend, "complete", Echo().complete)
    CassetteRecorder(path, backend, settings).complete(said("Hello"), [TOOL], seed=1)
    backend.close()
    assert key not in path.read_text()
