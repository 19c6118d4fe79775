"""Named random streams: each component draws from its own, so that moving one moves no other.

A stream is named by a seed and a few words. Nothing is shared and nothing is consumed, so the
attacker can change without moving the agent's dice, and two versions can meet the same luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

_T = TypeVar("_T")

_SCALE = 2.0**-64
_EMPTY = blake2b(digest_size=8)


def key(seed: int, *names: str | int) -> int:
    """Return the 64-bit number that a seed and a few names stand for.

    Examples
    --------
    >>> key(7, "agent") == key(7, "agent"), key(7, "agent") == key(7, "attacker")
    (True, False)
    """
    text = str(seed)
    for name in names:
        text += f"\x1f{name!s}"
    made = _EMPTY.copy()  # cheaper than a new one
    made.update(text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(made.digest(), "big")


def uniform(seed: int, *names: str | int) -> float:
    """Return one draw in [0, 1) that depends on the seed and the names alone.

    Examples
    --------
    >>> 0 <= uniform(7, "agent", "hello") < 1
    True
    """
    return key(seed, *names) * _SCALE


def pick(items: Sequence[_T], seed: int, *names: str | int) -> _T:
    """Return one of the items, chosen by the named stream.

    Parameters
    ----------
    items : sequence
        At least one.
    seed : int
        Of the run.
    *names : str or int
        Words that name the stream.

    Examples
    --------
    >>> pick("abc", 7, "wording") in "abc"
    True
    """
    return items[key(seed, *names) % len(items)]


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the named stream, for everything that needs many draws.

    Examples
    --------
    >>> bool(generator(7, "bootstrap").integers(10) == generator(7, "bootstrap").integers(10))
    True
    """
    import numpy as np

    return np.random.default_rng(key(seed, *names))
