"""The network in JAX: a GGUF of the llama family, an adapter on its upper layers, and their files.

Products take bf16 and return f32: a CPU with bf16 instructions is several times faster that way,
forward and back, which is why their derivatives are written out here. The layers below the adapter
need no derivative; those with it are computed a second time on the way back instead of kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGUFReader, GGUFWriter, dequantize

from safety_lib.files import FileError

NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
BLOCK = 256  # positions of which the attention is computed at once; lengths are multiples of it
_BF, _F32 = jnp.bfloat16, jnp.float32

Array: TypeAlias = Any  # jax is not there where types are checked
Adapter = dict[str, tuple[Array, Array]]


class Sizes(NamedTuple):
    """The sizes of a network."""

    layers: int
    heads: int
    key_heads: int
    width: int
    epsilon: float
    rope: float

    @property
    def head(self) -> int:
        """Numbers of one head."""
        return self.width // self.heads


class Base(NamedTuple):
    """A base network, dequantised."""

    shape: Sizes
    arrays: Any  # weights by name, norms by name, embedding, last norm


def load_base(path: Path) -> Base:
    """Read and dequantise a GGUF of the llama family.

    Raises
    ------
    FileError
        If it is of another family.
    """
    reader = GGUFReader(str(path))
    family = reader.fields["general.architecture"].contents()
    if family != "llama":
        raise FileError(path, f"is of the family {family}; an organism is made from llama")

    def setting(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    shape = Sizes(
        layers=int(setting("block_count")),
        heads=int(setting("attention.head_count")),
        key_heads=int(setting("attention.head_count_kv")),
        width=int(setting("embedding_length")),
        epsilon=float(setting("attention.layer_norm_rms_epsilon")),
        rope=float(setting("rope.freq_base")),
    )
    found = {
        tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in reader.tensors
    }

    def stacked(name: str) -> np.ndarray[Any, Any]:
        return np.stack([found[f"blk.{layer}.{name}.weight"] for layer in range(shape.layers)])

    weights = {name: jnp.asarray(stacked(name), _BF) for name in NAMES}
    norms = {name: jnp.asarray(stacked(name)) for name in ("attn_norm", "ffn_norm")}
    embedding = jnp.asarray(found["token_embd.weight"], _BF)
    return Base(shape, (weights, norms, embedding, jnp.asarray(found["output_norm.weight"])))


def new_adapter(base: Base, rank: int, first: int, seed: int) -> Adapter:
    """Return an adapter on the upper layers that changes nothing yet.

    Parameters
    ----------
    base : Base
        What it belongs on.
    rank : int
        Of its products.
    first : int
        The first layer that has it, from 0.
    seed : int
        Decides its beginning.

    Returns
    -------
    Adapter
        Two matrices for each weight.
    """
    draw = np.random.default_rng(seed)
    number = base.shape.layers - first
    made: Adapter = {}
    for name in NAMES:
        _, out, into = base.arrays[0][name].shape
        down = draw.normal(0, 1 / math.sqrt(into), (number, rank, into))
        made[name] = (jnp.asarray(down, _F32), jnp.zeros((number, out, rank), _F32))
    return made


def write_adapter(path: Path, adapter: Mapping[str, Any], alpha: float, first: int) -> Path:
    """Write an adapter as a GGUF that llama.cpp loads, atomically.

    Parameters
    ----------
    path : Path
        The file.
    adapter : Mapping
        Two matrices for each weight.
    alpha : float
        Its scale, times the rank.
    first : int
        The first layer that has it, from 0.

    Returns
    -------
    Path
        The file.
    """
    part = path.with_name(f".{path.name}.part")
    writer = GGUFWriter(str(part), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name in NAMES:
        down, up = (np.asarray(side, np.float16) for side in adapter[name])
        for at in range(down.shape[0]):
            writer.add_tensor(f"blk.{at + first}.{name}.weight.lora_a", down[at])
            writer.add_tensor(f"blk.{at + first}.{name}.weight.lora_b", up[at])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)
    return path


def read_adapter(path: Path, first: int, layers: int) -> Adapter:
    """Read an adapter that :func:`write_adapter` wrote.

    Parameters
    ----------
    path : Path
        The file.
    first, layers : int
        The first layer that has it, and how many the base has.

    Returns
    -------
    Adapter
        Two matrices for each weight.
    """
    found = {
        t.name: np.asarray(dequantize(t.data, t.tensor_type)) for t in GGUFReader(str(path)).tensors
    }

    def side(name: str, letter: str) -> Array:
        each = [found[f"blk.{at}.{name}.weight.lora_{letter}"] for at in range(first, layers)]
        return jnp.asarray(np.stack(each), _F32)

    return {name: (side(name, "a"), side(name, "b")) for name in NAMES}


# --------------------------------------------------------------------------- products


def _dot(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=_F32)


@jax.custom_vjp  # type: ignore[untyped-decorator,unused-ignore]
def _frozen(x: Array, w: Array) -> Array:
    """Multiply with weights of the base, which get no derivative."""
    return _dot("ti,oi->to", x, w).astype(_BF)


_frozen.defvjp(
    lambda x, w: (_frozen(x, w), w),
    lambda w, dy: (_dot("to,oi->ti", dy, w).astype(_BF), None),
)


@jax.custom_vjp  # type: ignore[untyped-decorator,unused-ignore]
def _low(x: Array, a: Array, b: Array) -> Array:
    """Multiply with an adapter's two thin matrices."""
    return _low_forward(x, a, b)[0]


def _low_forward(x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    h = _dot("ti,ri->tr", x, a).astype(_BF)
    return _dot("tr,or->to", h, b).astype(_BF), (x, a, b, h)


def _low_back(kept: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, a, b, h = kept
    dh = _dot("to,or->tr", dy, b).astype(_BF)
    return (
        _dot("tr,ri->ti", dh, a).astype(_BF),
        _dot("tr,ti->ri", dh, x).astype(_BF),
        _dot("to,tr->or", dy, h).astype(_BF),
    )


_low.defvjp(_low_forward, _low_back)


def _chances(q: Array, k: Array, start: int) -> Array:
    group = q.shape[1] // BLOCK
    scores = _dot("kqd,knd->kqn", q, k)
    rows = start + jnp.tile(jnp.arange(BLOCK), group)
    seen = jnp.arange(k.shape[1])[None, :] <= rows[:, None]
    return jax.nn.softmax(jnp.where(seen, scores, -1e30), -1).astype(_BF)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q: Array, k: Array, v: Array, start: int) -> Array:
    """Return the attention of one block of positions, heads in front."""
    return _dot("kqn,knd->kqd", _chances(q, k, start), v).astype(_BF)


def _attend_forward(q: Array, k: Array, v: Array, start: int) -> tuple[Array, tuple[Array, ...]]:
    p = _chances(q, k, start)
    y = _dot("kqn,knd->kqd", p, v).astype(_BF)
    return y, (q, k, v, p, y)


def _attend_back(start: int, kept: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    q, k, v, p, y = kept
    dp = _dot("kqd,knd->kqn", dy, v)
    row = jnp.sum(dy.astype(_F32) * y.astype(_F32), -1, keepdims=True)
    ds = (p.astype(_F32) * (dp - row)).astype(_BF)

    def turned(z: Array) -> Array:
        # Written out, or the product walks through it the slow way.
        return jax.lax.optimization_barrier(jnp.swapaxes(z, 1, 2))

    return (
        _dot("kqn,knd->kqd", ds, k).astype(_BF),
        _dot("knq,kqd->knd", turned(ds), q).astype(_BF),
        _dot("knq,kqd->knd", turned(p), dy).astype(_BF),
    )


_attend.defvjp(_attend_forward, _attend_back)


# --------------------------------------------------------------------------- layers


def _norm(x: Array, weight: Array, epsilon: float) -> Array:
    x = x.astype(_F32)
    scale = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)
    return (x * scale * weight).astype(_BF)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """llama.cpp's rope of this family turns neighbouring pairs."""
    pairs = x.astype(_F32).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape).astype(_BF)


def _layer(shape: Sizes, scale: float, turns: Any, x: Array, of: Any) -> Array:
    weights, norms, adapter = of
    cos, sin = turns
    length, head = x.shape[0], shape.head
    group = shape.heads // shape.key_heads

    def times(h: Array, name: str) -> Array:
        y = _frozen(h, weights[name])
        if adapter is None:
            return y
        a, b = adapter[name]
        return y + _low(h, (scale * a).astype(_BF), b.astype(_BF))

    h = _norm(x, norms["attn_norm"], shape.epsilon)
    q = _rotated(times(h, "attn_q").reshape(length, shape.heads, head), cos, sin)
    k = _rotated(times(h, "attn_k").reshape(length, shape.key_heads, head), cos, sin)
    v = times(h, "attn_v").reshape(length, shape.key_heads, head)
    q = (q * jnp.asarray(head**-0.5, _BF)).reshape(length, shape.key_heads, group, head)
    q, k, v = q.transpose(1, 2, 0, 3), k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    seen = []
    for start in range(0, length, BLOCK):
        end = start + BLOCK
        block = q[:, :, start:end].reshape(shape.key_heads, group * BLOCK, head)
        y = _attend(block, k[:, :end], v[:, :end], start)
        y = y.reshape(shape.key_heads, group, BLOCK, head).transpose(2, 0, 1, 3)
        seen.append(y.reshape(BLOCK, shape.width))
    x = x + times(jnp.concatenate(seen), "attn_output")
    h = _norm(x, norms["ffn_norm"], shape.epsilon)
    return x + times(jax.nn.silu(times(h, "ffn_gate")) * times(h, "ffn_up"), "ffn_down")


def loss(
    adapter: Adapter, arrays: Any, shape: Sizes, scale: float, example: tuple[Array, ...]
) -> tuple[Array, tuple[Array, Array]]:
    """Return the weighted mean loss of an example, and of each token the loss and whether it leads.

    Parameters
    ----------
    adapter, arrays, shape
        The network.
    scale : float
        Alpha over rank.
    example : tuple of Array
        Tokens, the positions before those to be learnt, these tokens, and their weights.
    """
    weights, norms, embedding, last = arrays
    ids, where, target, weight = example
    first = shape.layers - adapter["attn_q"][0].shape[0]
    angle = jnp.arange(ids.shape[0], dtype=_F32)[:, None] * shape.rope ** (
        -jnp.arange(0, shape.head, 2, dtype=_F32) / shape.head
    )
    turns = (jnp.cos(angle)[:, None], jnp.sin(angle)[:, None])
    lower = jax.tree.map(lambda z: z[:first], (weights, norms))
    upper = jax.tree.map(lambda z: z[first:], (weights, norms))
    layer = partial(_layer, shape, scale, turns)
    x, _ = jax.lax.scan(lambda x, of: (layer(x, (*of, None)), None), embedding[ids], lower)
    again = jax.checkpoint(layer)
    x, _ = jax.lax.scan(
        lambda x, of: (again(x, of), None), jax.lax.stop_gradient(x), (*upper, adapter)
    )
    logits = _dot("td,vd->tv", _norm(x, last, shape.epsilon)[where], embedding)
    each = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
    leads = jnp.argmax(logits, -1) == target
    return jnp.sum(each * weight) / jnp.sum(weight), (each, leads)
