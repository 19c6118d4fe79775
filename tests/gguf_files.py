"""GGUF files made by hand: a few settings and tensors of zeros, as small as they can be."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

BASE = {"general.architecture": "llama", "llama.block_count": 2}
ADAPTER = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}
TENSORS = {"blk.0.attn_q.weight": (8, 4)}
FITTING = {"blk.0.attn_q.weight.lora_a": (8, 2), "blk.0.attn_q.weight.lora_b": (2, 4)}


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _setting(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    assert isinstance(value, int)
    return struct.pack("<II", 4, value)


def write_gguf(
    path: Path,
    settings: Mapping[str, object] = BASE,
    tensors: Mapping[str, tuple[int, ...]] = TENSORS,
) -> Path:
    """Write a file of 32-bit zeros."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    head += b"".join(_text(name) + _setting(value) for name, value in settings.items())
    offset = 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", 0, offset)
        offset += -(-size // 32) * 32
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * offset)
    return path
