"""Memory: which part of the conversation the model still sees."""

from __future__ import annotations

from collections.abc import Sequence

from safety_lib.agent.settings import MemorySettings
from safety_lib.records import Message


def visible(system: Message, history: Sequence[Message], settings: MemorySettings) -> list[Message]:
    """Return what the model sees of a conversation: the truncation is real.

    Parameters
    ----------
    system : Message
        The system prompt, which holds the policy.
    history : sequence of Message
        Everything after it, oldest first.
    settings : MemorySettings
        Window in messages, and whether the system prompt is pinned.

    Returns
    -------
    list of Message
        A tool result whose call has left the window is left out too, since a chat endpoint rejects
        a result without its call. Newest calls whose results fill the window alone stay in sight
        with them: the model must see what it has just asked for.

    Examples
    --------
    >>> chat = [Message(role="user", content=str(i)) for i in range(5)]
    >>> unpinned = MemorySettings(window=2, pin_policy=False)
    >>> [m.content for m in visible(Message(role="system", content="policy"), chat, unpinned)]
    ['3', '4']
    """
    window = settings.window
    start = max(0, len(history) - window)
    in_sight = len(history) < window or settings.pin_policy
    while start < len(history) and history[start].role == "tool":
        start += 1
    if history and start == len(history):
        start = max((i for i, m in enumerate(history) if m.role != "tool"), default=0)
    return [system, *history[start:]] if in_sight else list(history[start:])
