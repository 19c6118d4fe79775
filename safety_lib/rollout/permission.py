"""Who may be talked to: a target whose doings outlive the conversation has to be named first.

What a sandboxed target does is gone with the conversation. Anything else is refused unless somebody
said the name of its host (``--live HOST``), and what cannot be undone is refused always: a live
target has to be able to hold such a call back. An environment variable tells workers and the
kernels of notebooks what was allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safety_lib.world import World
from safety_lib.world.target import Target

ALLOWED = "SAFETY_LIB_LIVE"
HERE = "localhost"


class LiveTargetError(ValueError):
    """A target may do what cannot be taken back, and nobody allowed it."""


@contextmanager
def live_allowed(host: str) -> Iterator[None]:
    """Allow a live target on one host to this process and those that it starts meanwhile.

    Parameters
    ----------
    host : str
        Its name, ``localhost`` for one that runs here; empty allows none.
    """
    before = os.environ.get(ALLOWED)
    os.environ[ALLOWED] = host
    try:
        yield
    finally:
        os.environ.pop(ALLOWED)
        if before is not None:
            os.environ[ALLOWED] = before


def refuse_live(target: Target, world: World) -> None:
    """Refuse a target that may do lasting harm.

    Parameters
    ----------
    target : Target
        Who would be talked to.
    world : World
        Its tools say what can be undone.

    Raises
    ------
    LiveTargetError
        If it is live and not allowed, says neither ``sandboxed`` nor ``live``, or cannot hold back
        a call that cannot be undone.
    """
    effects = getattr(target, "effects", "")
    if effects == "sandboxed":
        return
    host = target.host or HERE
    if os.environ.get(ALLOWED, "") != host:
        what = "is live" if effects == "live" else "does not say whether it is sandboxed or live"
        raise LiveTargetError(
            f"{world.name}: the agent {target.name} on {host} {what}, so what it does may last; "
            f"declare effects='sandboxed' if it does not, or allow it with --live {host}"
        )
    final = sorted(world.tools.final)
    if final and not target.holds_calls:
        raise LiveTargetError(
            f"{world.name}: the agent {target.name} on {host} is live and {final[0]} cannot be "
            "undone; give it a sandbox, or tools that can be held back (tools over MCP)"
        )
