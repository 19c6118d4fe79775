"""Model backends: whatever turns messages and tool schemas into the next assistant message.

A backend sees what a chat model sees and nothing else: no attack's name, no goal, no turn number.
Its name is one string, so that it can travel through a command line, a notebook parameter and an
artifact alike:

``simulated``
    the offline default, where the world brings a simulated model;
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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from safety_lib.records import Message
from safety_lib.world.target import TargetError
from safety_lib.world.tools import ToolSchema

__all__ = ["Backend", "BackendError", "Models", "ToolSchema", "open_backend"]


class BackendError(TargetError):
    """A model could not answer; the conversation becomes an error, never a verdict.

    Its kind is such as ``rate_limit``, ``server_error``, ``timeout``, ``connection``,
    ``bad_response`` or ``not_on_tape``.
    """


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


Models = Mapping[str, Callable[[Mapping[str, Any]], Backend]]


def open_backend(name: str, settings: Mapping[str, Any], own: Models | None = None) -> Backend:
    """Open the backend that a name stands for.

    Parameters
    ----------
    name : str
        One of the forms in the module's docstring.
    settings : Mapping
        The ``model`` section of a version file; each backend takes the keys that concern it.
    own : Mapping, optional
        Models that the world brings, by name.

    Returns
    -------
    Backend
        To be asked from now on.

    Raises
    ------
    ValueError
        If the name has none of the known forms.

    Examples
    --------
    >>> open_backend("telepathy", {})
    Traceback (most recent call last):
    ...
    ValueError: unknown model 'telepathy': use local, openai:MODEL, cassette:FILE or \
record:FILE:NAME
    """
    kind, _, rest = name.partition(":")
    own = own or {}
    if name in own:
        return own[name](settings)
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
        from safety_lib.agent.backends.cassette import CassetteRecorder

        path, _, inner = rest.partition(":")
        return CassetteRecorder(path, open_backend(inner, settings, own), settings)
    known = ", ".join([*own, "local", "openai:MODEL", "cassette:FILE"])
    raise ValueError(f"unknown model {name!r}: use {known} or record:FILE:NAME")
