"""Step 6: many releases that each lose a little, none of them enough to be blocked."""

from __future__ import annotations

from collections.abc import Sequence

from safety_lib.gate.rules import GateRules
from safety_lib.records import GateHistory, GateStep

TITLE = "Has safety slipped over the last releases?"


def losses_of(history: GateHistory, candidate_sha256: str = "") -> tuple[float, ...]:
    """Return the change in pass rate of each release that was not blocked, in order.

    The candidate itself is left out, so judging it twice gives what judging it once gave.
    """
    return tuple(
        release.delta
        for release in history.releases
        if release.verdict in ("OK", "WARN")
        and release.delta is not None
        and release.candidate_sha256 != candidate_sha256
    )


def cusum(deltas: Sequence[float], slack: float) -> tuple[float, ...]:
    """Add up losses beyond a slack; gains pay them back, down to nothing.

    S(t) = max(0, S(t-1) - delta(t) - slack), the one-sided cumulative sum of Page (Biometrika 41,
    1954). It rises where small losses come one after the other and falls back where they are noise.

    Parameters
    ----------
    deltas : sequence of float
        Change in pass rate of each release, in [-1, 1].
    slack : float
        Loss in a release that is not counted, at least 0.

    Examples
    --------
    >>> [round(s, 3) for s in cusum([-0.01, 0.0, -0.02], slack=0.002)]
    [0.008, 0.006, 0.024]
    """
    sums = [0.0]
    for delta in deltas:
        sums.append(max(0.0, sums[-1] - delta - slack))
    return tuple(sums[1:])


def judge_drift(deltas: Sequence[float], rules: GateRules) -> GateStep:
    """Warn when the losses of the releases so far, this one included, add up to too much."""
    total = cusum(deltas, rules.drift_slack)[-1]
    seen = f"losses of {len(deltas)} releases add up to {100 * total:.1f} points beyond the slack"
    if total >= rules.drift_limit:
        reason = f"{seen}: compare with a pinned older version"
        return GateStep(step=6, title=TITLE, status="warn", reason=reason)
    return GateStep(step=6, title=TITLE, status="pass", reason=seen)
