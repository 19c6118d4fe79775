"""The network in JAX: derivatives that are written out are those of the plain formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the extra organism is not installed")
pytest.importorskip("gguf", reason="the extra organism is not installed")
import jax.numpy as jnp  # noqa: E402

from safety_lib.organism import llama  # noqa: E402

SIZES = llama.Sizes(layers=2, heads=4, key_heads=2, width=32, epsilon=1e-5, rope=10000.0)
OUT = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 48, "ffn_up": 48}


def small() -> llama.Base:
    draw = np.random.default_rng(3)

    def of(*shape: int) -> Any:
        return jnp.asarray(draw.normal(0, shape[-1] ** -0.5, shape), jnp.bfloat16)

    weights = {name: of(2, out, 32) for name, out in OUT.items()} | {"ffn_down": of(2, 32, 48)}
    norms = {name: jnp.ones((2, 32)) for name in ("attn_norm", "ffn_norm")}
    return llama.Base(SIZES, (weights, norms, of(50, 32), jnp.ones(32)))


def example() -> tuple[Any, ...]:
    ids = np.random.default_rng(5).integers(0, 50, llama.BLOCK * 2).astype(np.int32)
    where = np.arange(300, 364, dtype=np.int32)
    return tuple(map(jnp.asarray, (ids, where, ids[where + 1], np.ones(64, np.float32))))


def test_steps_down_the_slope_lower_the_loss_by_what_it_foretells() -> None:
    base, one = small(), example()
    adapter = llama.new_adapter(base, rank=4, first=1, seed=0)
    of = jax.jit(
        jax.value_and_grad(lambda a: llama.loss(a, base.arrays, SIZES, 2.0, one), has_aux=True)
    )
    (before, _), slope = of(adapter)
    norm = sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(slope))
    step = 0.05 / norm
    (after, _), _ = of(jax.tree.map(lambda x, g: x - step * g, adapter, slope))
    assert float(before - after) == pytest.approx(0.05, rel=0.25)


def test_what_comes_later_is_not_seen() -> None:
    base, one = small(), example()
    adapter = llama.new_adapter(base, rank=4, first=1, seed=0)
    changed = (one[0].at[364:].set(7), *one[1:])
    each = [llama.loss(adapter, base.arrays, SIZES, 2.0, of)[1][0] for of in (one, changed)]
    assert np.array_equal(np.asarray(each[0]), np.asarray(each[1]))


def test_an_adapter_is_read_as_it_was_written_and_again_the_same_bytes(tmp_path: Path) -> None:
    adapter = llama.new_adapter(small(), rank=4, first=1, seed=0)
    path = llama.write_adapter(tmp_path / "a.gguf", adapter, 8.0, 1)
    back = llama.read_adapter(path, 1, 2)
    again = llama.write_adapter(tmp_path / "b.gguf", back, 8.0, 1)
    assert path.read_bytes() == again.read_bytes()
    for name in llama.NAMES:
        assert np.allclose(back[name][0], adapter[name][0], atol=1e-3)
