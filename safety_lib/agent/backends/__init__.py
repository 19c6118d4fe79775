"""Model backends: whatever turns messages and tool schemas into the next assistant message.

A backend sees what a chat model sees and nothing else: no attack's name, no goal, no turn number.
Its name is one string, so that it can travel through a command line, a notebook parameter and an
artifact alike:

``simulated``
    the offline default;
``openai:MODEL``
    any OpenAI-compatible endpoint (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``);
``local``
    a real small model on this machine's CPU;
``cassette:FILE``
    what a recorded run answered, and nothing else;
``record:FILE:NAME``
    the backend NAME, every answer written to the cassette FILE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from safety_lib.records import Message

ToolSchema = Mapping[str, Any]


class BackendError(RuntimeError):
    """A backend could not answer; the trajectory becomes an error, never a verdict.

    Parameters
    ----------
    kind : str
        Short stable name of the trouble, such as ``rate_limit``, ``server_error``, ``timeout``,
        ``connection``, ``bad_response`` or ``not_on_tape``; reports count errors by it.
    detail : str
        One line for a person: what happened and what to do next.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[type[BackendError], tuple[str, str]]:
        return type(self), (self.kind, self.detail)


@runtime_checkable
class Backend(Protocol):
    """One small protocol: messages and tools in, one assistant message out.

    Attributes
    ----------
    name : str
        What artifacts call this model.
    concurrency : int
        How many conversations it serves at once over a network; 0 means that it computes in this
        process and belongs in a process pool.
    """

    name: str
    concurrency: int

    def complete(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, seed: int
    ) -> Message:
        """Return the next assistant message.

        Parameters
        ----------
        messages : sequence of Message
            The conversation as the model sees it, the system prompt first.
        tools : sequence of Mapping
            The tools on offer, in the OpenAI tools format.
        seed : int
            Decides the draws of a model that takes one: the same seed, the same answer.

        Raises
        ------
        BackendError
            If there is no answer; it says of which kind the failure is.
        """
        ...


def open_backend(name: str, settings: Mapping[str, Any]) -> Backend:
    """Open the backend that a name stands for.

    Parameters
    ----------
    name : str
        One of the forms in the module's docstring.
    settings : Mapping
        The ``model`` section of a version file; each backend takes the keys that concern it.

    Raises
    ------
    ValueError
        If the name has none of the known forms.

    Examples
    --------
    >>> open_backend("telepathy", {})
    Traceback (most recent call last):
    ...
    ValueError: unknown model 'telepathy': use simulated, local, openai:MODEL, cassette:FILE or \
record:FILE:NAME
    """
    kind, _, rest = name.partition(":")
    if name == "simulated":
        from safety_lib.agent.backends.simulated import SimulatedModel

        return SimulatedModel(settings)
    if name == "local":
        from safety_lib.agent.backends.local import open_local

        return open_local(settings)
    if kind == "openai" and rest:
        from safety_lib.agent.backends.openai import OpenAIChat

        return OpenAIChat(rest, settings)
    if kind == "cassette" and rest:
        from safety_lib.agent.backends.cassette import Cassette

        return Cassette(rest, settings)
    if kind == "record" and ":" in rest:
        from safety_lib.agent.backends.cassette import Recorder

        path, _, inner = rest.partition(":")
        return Recorder(path, open_backend(inner, settings), settings)
    raise ValueError(
        f"unknown model {name!r}: use simulated, local, openai:MODEL, cassette:FILE or "
        "record:FILE:NAME"
    )
