"""An attacker that is itself a chat model, through any backend that answers in words.

It is asked for the user's next message with the conversation in reversed roles: what the agent said
comes from its user. What the model cannot answer becomes an ``error`` of the trajectory, as with
the agent's own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from safety_lib.agent.backends import Backend, BackendError, Models, open_backend
from safety_lib.records import Message
from safety_lib.streams import key, pick
from safety_lib.world.scenarios import Scenario

PROMPT_FILE = Path(__file__).with_name("model_attacker.yaml")


class ModelAttacker:
    """Lets a model write what the user says.

    Parameters
    ----------
    scenario : Scenario
        Goal and family, which enter the prompt.
    seed : int
        Decides the clause that is wanted, and goes to the model with every request.
    backend : Backend
        The model.
    """

    def __init__(self, scenario: Scenario, seed: int, backend: Backend) -> None:
        clause = pick(scenario.clauses(scenario.wanted), seed, "attacker", "goal")
        prompt = _prompt()
        system = prompt["system"].replace("{goal}", clause)
        self._opening = [
            Message(role="system", content=system.replace("{family}", scenario.family.description)),
            Message(role="user", content=prompt["first"]),
        ]
        self._most = int(prompt["most_characters"])
        self._seed = seed
        self._backend = backend
        self._said: list[str] = []

    def next_message(self, replies: Sequence[str]) -> str | None:
        """Return what the model would say next; None where it has nothing to say.

        Raises
        ------
        BackendError
            If the model cannot be asked, or calls a tool instead of answering.
        """
        messages = list(self._opening)
        for said, heard in zip(self._said, replies, strict=True):
            messages.append(Message(role="assistant", content=said))
            messages.append(Message(role="user", content=heard))
        own = key(self._seed, "attacker", len(replies)) & 0x7FFFFFFF
        answer = self._backend.complete(messages, (), seed=own)
        if answer.tool_calls:
            raise BackendError("bad_response", "the attacking model called a tool")
        said = answer.content.strip().strip('"').strip()[: self._most]
        self._said.append(said)
        return said or None


def attacking_model(name: str, own: Models | None = None) -> Backend:
    """Open the model of that name once; its settings are the defaults of its backend."""
    if name not in _opened:
        _opened[name] = open_backend(name, {}, own)
    return _opened[name]


_opened: dict[str, Backend] = {}


@cache
def _prompt() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(PROMPT_FILE.read_text(encoding="utf-8"))
    return read
