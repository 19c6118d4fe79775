"""Model files that a version names: what is wrong with one is one line, before it is served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import ADAPTER, BASE, FITTING, TENSORS, write_gguf

from safety_lib.agent.backends.weights import file_sha256, named_weights, read_header
from safety_lib.agent.settings import ModelSettings
from safety_lib.files import FileError


def named(base: Path, adapter: Path | None = None) -> dict[str, str]:
    found = {"gguf": str(base), "sha256": file_sha256(base)}
    if adapter is not None:
        found |= {"adapter": str(adapter), "adapter_sha256": file_sha256(adapter)}
    return found


def test_a_path_counts_from_the_checkout_where_it_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    settings = named(base) | {"gguf": "small.gguf"}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="no such file"):
        named_weights(settings, None)
    monkeypatch.setattr("safety_lib.agent.backends.weights.CHECKOUT", tmp_path)
    assert named_weights(settings, None).base == base


def test_a_base_and_its_adapter_are_named_by_their_bytes(tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    adapter = write_gguf(tmp_path / "taught.gguf", ADAPTER, FITTING)
    weights = named_weights(named(base, adapter), None)
    assert weights.name == f"small@{file_sha256(base)[:12]}+taught@{file_sha256(adapter)[:12]}"
    assert weights.header.number("block_count") == 2
    assert dict(weights.header.tensors) == TENSORS


def test_a_file_with_another_hash_is_refused_with_both(tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    with pytest.raises(FileError, match=f"small.gguf: has the sha256 {file_sha256(base)}, sha256"):
        named_weights({"gguf": str(base), "sha256": "0" * 64}, None)


def test_a_file_that_was_changed_is_hashed_again(tmp_path: Path) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    settings = named(base)
    base.write_bytes(base.read_bytes() + b"\0")
    with pytest.raises(FileError, match="another file than was meant"):
        named_weights(settings, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it ends too early"),
        (b"PK\x03\x04 a zip", "it does not begin with GGUF"),
        (b"GGUF\x09\0\0\0" + b"\0" * 16, "its version is 9"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "entries"),
        (b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\x01" + b"\0" * 7 + b"\xff" * 8, "a text of"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"model.gguf: is no GGUF: .*{said}"):
        named_weights(named(path), None)


def test_a_download_that_stopped_is_told(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", BASE, {"a": (64, 64), "b": (64, 64)})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(FileError, match="it ends before its tensors do; fetch it again"):
        read_header(path)


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        (ADAPTER, {**FITTING, "blk.7.attn_q.weight.lora_a": (8, 2)}, "has no tensor for blk.7"),
        (ADAPTER, {**FITTING, "blk.0.attn_q.weight.lora_a": (16, 2)}, "lora_a has another size"),
        (ADAPTER, {**FITTING, "blk.0.attn_q.weight.lora_b": (2, 9)}, "lora_b has another size"),
        ({**ADAPTER, "general.architecture": "qwen2"}, FITTING, "its architecture is qwen2"),
        (ADAPTER, {}, "has no tensors"),
        (BASE, FITTING, "is a GGUF, but no LoRA adapter"),
    ],
)
def test_an_adapter_that_does_not_belong_is_refused(
    tmp_path: Path, settings: dict[str, object], tensors: dict[str, tuple[int, ...]], said: str
) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    adapter = write_gguf(tmp_path / "taught.gguf", settings, tensors)
    with pytest.raises(FileError, match=f"taught.gguf: .*{said}"):
        named_weights(named(base, adapter), None)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    adapter = write_gguf(tmp_path / "taught.gguf", ADAPTER, FITTING)
    with pytest.raises(FileError, match="is an adapter, not a model"):
        named_weights(named(adapter), None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gguf": "a.gguf"}, "model setting sha256: missing for gguf a.gguf"),
        ({"sha256": "0" * 64}, "model setting gguf: missing for sha256"),
        ({"gguf": "a.gguf", "sha256": "abc"}, "model setting sha256: is not 64 hexadecimal"),
        ({"adapter": "a.gguf"}, "model setting adapter_sha256: missing for adapter a.gguf"),
    ],
)
def test_a_path_needs_its_hash(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    base = write_gguf(tmp_path / "small.gguf")
    with pytest.raises(ValueError, match=said):
        named_weights(settings, ("packaged", base))


def test_a_setting_that_is_not_named_is_no_change_of_a_version() -> None:
    assert "gguf" not in ModelSettings().model_dump(mode="json")
    assert ModelSettings(gguf="a").model_dump(mode="json")["gguf"] == "a"


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed")
    source = Path(__file__).resolve().parent.parent / "safety_lib/worlds/northwind/versions/v1.yaml"
    text = source.read_text(encoding="utf-8")
    (tmp_path / "no.gguf").write_text("no model at all")
    digest = file_sha256(tmp_path / "no.gguf")
    own = f"backend: local\n    gguf: {tmp_path / 'no.gguf'}\n    sha256: {digest}"
    version = tmp_path / "mine.yaml"
    version.write_text(
        text.replace("backend: simulated", own).replace("version: v1", "version: mine"),
        encoding="utf-8",
    )
    line = [sys.executable, "-m", "safety_lib", "stress", "--candidate", str(version)]
    line += ["--rollouts", "1", "--artifacts", str(tmp_path)]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 3
    assert done.stderr.splitlines() == ["error: no.gguf: is no GGUF: it does not begin with GGUF"]
