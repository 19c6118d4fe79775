"""Three safeguard hooks around the tools: before a call, along the conversation, before a reply.

Each hook runs a few checks; every check may find something, and the most severe finding decides.
A check sees the call or the text and what happened before it, never an attack's name. A check that
crashes blocks: a safeguard that fails does not open the door. Which checks there are is for the
world to say: it subclasses :class:`Safeguards`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from safety_lib.agent.settings import Settings
from safety_lib.records import Decision, ToolCall, whole


class TrajectorySettings(Settings):
    """A running risk score over the conversation: it warns, then ends the session."""

    enabled: bool
    warn_at: float
    stop_at: float
    decay: float = Field(ge=0)


class Finding(NamedTuple):
    """What one check found."""

    decision: Decision
    check: str
    reason: str


NOTHING = Finding(Decision.ALLOW, "", "")
UNWATCHED = TrajectorySettings(enabled=False, warn_at=0, stop_at=0, decay=0)
REFUSED_CALL = 1.5


def most_severe(findings: Iterable[Finding]) -> Finding:
    """Return the finding with the most severe decision, the first among equals.

    Examples
    --------
    >>> most_severe([Finding(Decision.BLOCK, "a", ""), Finding(Decision.WARN, "b", "")]).check
    'a'
    """
    return max(findings, key=lambda finding: finding.decision, default=NOTHING)


class Safeguards:
    """The hooks of one conversation; the trajectory monitor remembers, the other two do not.

    By itself it finds nothing. A world overrides ``call_findings``, ``reply_findings``,
    ``call_risk`` and ``result_risk``.

    Parameters
    ----------
    checks_calls, checks_replies : bool
        Whether the hooks before a call and before a reply are on.
    trajectory : TrajectorySettings
        Of the monitor.
    """

    def __init__(
        self,
        *,
        checks_calls: bool = False,
        checks_replies: bool = False,
        trajectory: TrajectorySettings = UNWATCHED,
    ) -> None:
        self._before = checks_calls
        self._after = checks_replies
        self._along = trajectory
        self.risk = 0.0

    def call_findings(self, call: ToolCall) -> Iterable[Finding]:
        """Yield what the checks find in a proposed call."""
        return ()

    def reply_findings(self, reply: str) -> Iterable[Finding]:
        """Yield what the checks find in a reply."""
        return ()

    def call_risk(self, call: ToolCall) -> float:
        """Return what a call that ran adds to the running risk."""
        return 0.0

    def result_risk(self, result: str) -> float:
        """Return what a tool result adds to the running risk."""
        return 0.0

    def pre_action(self, call: ToolCall) -> Finding:
        """Decide on a proposed call before it runs."""
        if not self._before:
            return NOTHING
        try:
            return most_severe(self.call_findings(call))
        except Exception as error:  # a broken check must not open the door
            return Finding(Decision.BLOCK, "check_failed", whole(f"a check failed: {error}"))

    def after_call(self, call: ToolCall, ran: bool, result: str) -> Finding:
        """Add what a call did to the running risk and decide on the session.

        Parameters
        ----------
        call : ToolCall
            The call that was proposed.
        ran : bool
            Whether it ran; one that was refused adds less.
        result : str
            What the tool answered.

        Returns
        -------
        Finding
            To go on, to warn or to stop the session.
        """
        if not self._along.enabled:
            return NOTHING
        self.risk += self.call_risk(call) if ran else REFUSED_CALL
        self.risk += self.result_risk(result)
        return self._risk_finding()

    def new_turn(self) -> None:
        """Let the running risk decay: an hour-old mail is less alarming than a fresh one."""
        self.risk = max(0.0, self.risk - self._along.decay)

    def post_action(self, reply: str) -> Finding:
        """Decide on a reply before the user sees it."""
        return most_severe(self.reply_findings(reply)) if self._after else NOTHING

    def _risk_finding(self) -> Finding:
        along = self._along
        if self.risk >= along.stop_at:
            return Finding(Decision.STOP, "risk", f"risk {self.risk:.1f}, the session ends")
        if self.risk >= along.warn_at:
            return Finding(Decision.WARN, "risk", f"risk {self.risk:.1f}")
        return NOTHING
