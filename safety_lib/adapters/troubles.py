"""What goes wrong between an agent and its model, told apart from what goes wrong in the agent.

A framework passes on what its client raised, as it is or as the cause of something of its own. It
is known by its name, since the client need not be installed here.
"""

from __future__ import annotations

from safety_lib.text import one_line, without_keys
from safety_lib.world.target import TargetError

_KINDS = {
    "APITimeoutError": "timeout",
    "ModelTimeoutError": "timeout",
    "APIConnectionError": "connection",
    "RateLimitError": "rate_limit",
    "InternalServerError": "server_error",
    "AuthenticationError": "refused",
    "PermissionDeniedError": "refused",
}


def trouble_of(error: BaseException) -> TargetError | None:
    """Return the model's trouble that an exception stands for, or None if it is of the agent.

    Examples
    --------
    >>> class RateLimitError(Exception): ...
    >>> print(trouble_of(RateLimitError("slow down")), trouble_of(KeyError("x")))
    rate_limit: the agent's model: RateLimitError: slow down None
    """
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        kind = next((_KINDS[k.__name__] for k in type(at).__mro__ if k.__name__ in _KINDS), "")
        if kind:
            said = one_line(without_keys(f"{type(at).__name__}: {str(at)[:2000]}"), 200)
            return TargetError(kind, f"the agent's model: {said}")
        at = at.__cause__
    return None


def missing(package: str, extra: str) -> TargetError:
    """Return the error that a framework's package is not installed.

    Examples
    --------
    >>> print(missing("langgraph", "langgraph"))
    not_installed: langgraph is not installed; pip install 'agentic-safety-notebooks[langgraph]'
    """
    return TargetError(
        "not_installed",
        f"{package} is not installed; pip install 'agentic-safety-notebooks[{extra}]'",
    )
