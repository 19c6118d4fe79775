"""The airline's desk as a chat model: it proposes its calls one by one and then replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safety_lib.worlds.airline.agent import DeskAgent, DeskSettings
from safety_lib.worlds.airline.desk import Desk, DeskError


class DeskModel:
    """Decides what the desk's agent would; whoever asks runs the tools."""

    def __init__(self, settings: Any, seed: int, planted: Mapping[str, str]) -> None:
        self._agent = DeskAgent(DeskSettings.model_validate(settings), seed, planted)
        self._turns = 0
        self._reply = ""
        self._left: list[dict[str, Any]] = []

    def step(self, said: list[str]) -> tuple[str, dict[str, Any] | None]:
        """Return the reply, or a call that comes before it; ``said`` is all that the user said."""
        if len(said) > self._turns:
            self._turns = len(said)
            self._reply, calls = self._agent(said[-1])
            self._left = list(calls)
        return ("", self._left.pop(0)) if self._left else (self._reply, None)


def desk_of(settings: Any, planted: Mapping[str, str]) -> Desk:
    """Return the tools of one conversation."""
    limits = DeskSettings.model_validate(settings).limits
    return Desk(planted, refund_cap=limits.refund_cap, mails=limits.mails)


__all__ = ["DeskError", "DeskModel", "desk_of"]
