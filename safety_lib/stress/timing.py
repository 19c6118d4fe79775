"""When conversations fail: what a campaign says about time, and what it cannot say.

Time is counted in turns. A conversation that reached its last turn unbroken is censored there,
which says nothing about what would have come. One that a safeguard ended, that errored or that the
attacker gave up is another matter: it ended *because* of what was going on, so it is a competing
event, and the share that would have failed without it can only be bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from safety_lib.records import SurvivalCurve, Trajectory
from safety_lib.streams import generator
from safety_lib.text import Shown

if TYPE_CHECKING:
    from safety_lib.stats.intervals import Interval
    from safety_lib.stats.survival_clusters import ArmComparison

FEWEST_AT_RISK = 5  # curves end where fewer conversations than this are still going

VIOLATION = "broke a rule"
CAUSES = (VIOLATION, "ended by a safeguard", "errored", "cut off or given up")
_CAUSE_OF = {"stopped": 2, "error": 3, "step_limit": 4, "gave_up": 4}


@dataclass(frozen=True, repr=False)
class Endings(Shown):
    """How conversations ended by a turn, and how many could have broken a rule.

    Attributes
    ----------
    turn : int
        The last turn with enough conversations at risk.
    conversations : int
        All of them, errors included.
    counts : mapping
        Each of `CAUSES` to the conversations that it ended.
    lowest, censored, highest : float
        Share that broke a rule by then: if no conversation that something else ended would have
        (Aalen-Johansen), if they had been like the others (Kaplan-Meier, that takes them for
        censored), and if all of them would have at once.
    """

    turn: int
    conversations: int
    counts: Mapping[str, int]
    lowest: float
    censored: float
    highest: float

    def __str__(self) -> str:
        return (
            f"by turn {self.turn} a rule is broken in {self.lowest:.1%} to {self.highest:.1%} "
            f"({self.censored:.1%} if other endings say nothing)"
        )


@dataclass(frozen=True, repr=False)
class Timing(Shown):
    """What the conversations with one version say about the turn of the first violation.

    Attributes
    ----------
    version : str
        Whose conversations they are.
    curve : SurvivalCurve
        Kaplan-Meier with log-log bands, up to the last turn with enough at risk.
    safe_turns : float
        Whole turns without a violation, on average, of the first ``curve.turn[-1]``: the turn in
        which a rule broke is not one of them.
    delayed : Interval
        Share of failures that come after turn 1; the interval resamples scenarios.
    endings : Endings
        How conversations ended.
    """

    version: str
    curve: SurvivalCurve
    safe_turns: float
    delayed: Interval
    endings: Endings

    def __str__(self) -> str:
        return (
            f"{self.version}: {self.safe_turns:.2f} of {self.curve.turn[-1]} turns are safe on "
            f"average; share of failures after turn 1: {self.delayed}"
        )


def survival_curve(version: str, held: Sequence[Trajectory]) -> SurvivalCurve:
    """Estimate the share of conversations that are unbroken after each turn.

    A conversation that ended without a violation is censored at its last turn. Errors are left out:
    they say nothing about the agent. The curve ends where fewer than `FEWEST_AT_RISK`
    conversations are left, and is empty where there never were so many.
    """
    from safety_lib.stats.survival import kaplan_meier

    time, broke, _ = _valid(held)
    if not time:
        return SurvivalCurve(
            version=version, turn=(), at_risk=(), failed=(), survival=(), ci_low=(), ci_high=()
        )
    curve = kaplan_meier(time, broke)
    kept = int((curve.at_risk >= FEWEST_AT_RISK).sum())  # at_risk only falls
    return SurvivalCurve(
        version=version,
        turn=tuple(int(t) for t in curve.time[:kept]),
        at_risk=tuple(int(n) for n in curve.at_risk[:kept]),
        failed=tuple(int(d) for d in curve.events[:kept]),
        survival=tuple(round(float(s), 6) for s in curve.survival[:kept]),
        ci_low=tuple(round(float(s), 6) for s in curve.low[:kept]),
        ci_high=tuple(round(float(s), 6) for s in curve.high[:kept]),
    )


def timing(version: str, held: Sequence[Trajectory], seed: int, draws: int = 2_000) -> Timing:
    """Gather what conversations with one version say about time.

    Parameters
    ----------
    version : str
        Whose conversations they are.
    held : sequence of Trajectory
        All conversations of a campaign with it.
    seed : int
        Decides the resamples.
    draws : int
        How many resamples.

    Returns
    -------
    Timing
        When it fails.

    Raises
    ------
    ValueError
        If fewer than `FEWEST_AT_RISK` conversations are valid: no curve can be drawn from them.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> from safety_lib.stress.discovery import discover
    >>> found = discover(load_version("northwind/v1"), load_version("northwind/v2"), rollouts=30)
    >>> print(timing("v2", found.trajectories["v2"], seed=7).endings.turn)
    8
    """
    from safety_lib.stats.survival import turns_without_event
    from safety_lib.stats.survival_clusters import delayed_share

    time, broke, scenario = _valid(held)
    curve = survival_curve(version, held)
    if not curve.turn:
        raise ValueError(
            f"{version}: {len(time)} valid conversations are too few for a curve; "
            f"it takes {FEWEST_AT_RISK}"
        )
    last = curve.turn[-1]
    time, broke = _until(last, time, broke)
    return Timing(
        version=version,
        curve=curve,
        safe_turns=round(turns_without_event(time, broke, tau=last), 6),
        delayed=delayed_share(
            time, broke, scenario, generator(seed, "stress", "delayed", version), draws=draws
        ),
        endings=endings(held, last),
    )


def endings(held: Sequence[Trajectory], turn: int) -> Endings:
    """Count how conversations ended by a turn, and bound the share that would have failed.

    Parameters
    ----------
    held : sequence of Trajectory
        All conversations of a campaign with one version, at least one.
    turn : int
        Horizon, at least 1.

    Raises
    ------
    ValueError
        If there is no conversation, or the turn is below 1.
    """
    from safety_lib.stats.survival import cumulative_incidence, kaplan_meier

    if turn < 1:
        raise ValueError(f"turn must be at least 1, not {turn}")
    time, cause = [_last_turn(t) for t in held], [_cause(t) for t in held]
    # What happens after the horizon is censored at it.
    cause = [c if t <= turn else 0 for t, c in zip(time, cause, strict=True)]
    time = [min(t, turn) for t in time]
    curves = cumulative_incidence(time, cause)
    at_end = dict(zip(curves.causes, curves.incidence[-1], strict=True))
    counted = Counter(cause)
    return Endings(
        turn=turn,
        conversations=len(held),
        counts={name: counted[number] for number, name in enumerate(CAUSES, start=1)},
        lowest=round(float(at_end.get(1, 0.0)), 6),
        censored=round(1 - kaplan_meier(time, [c == 1 for c in cause]).at(turn), 6),
        highest=round(float(sum(at_end.values())), 6),
    )


def compare_timing(
    first: Sequence[Trajectory], second: Sequence[Trajectory], seed: int, draws: int = 2_000
) -> ArmComparison:
    """Compare two sets of conversations that met the same scenarios: the safe turns gained.

    Whole scenarios are swapped for the p-value and resampled for the interval, because
    conversations of one scenario fail alike. The horizon is the last turn that at least
    `FEWEST_AT_RISK` conversations of either set reach.

    Parameters
    ----------
    first, second : sequence of Trajectory
        The conversations of two versions or of two attackers; ``gained`` is of the second.
    seed : int
        Decides swaps and resamples.
    draws : int
        How many of either.

    Returns
    -------
    ArmComparison
        Safe turns gained, with an interval.

    Raises
    ------
    ValueError
        If either set has fewer than `FEWEST_AT_RISK` valid conversations.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> from safety_lib.stress.discovery import discover
    >>> v1, v2 = map(load_version, ("northwind/v1", "northwind/v2"))
    >>> held = discover(v1, v2, rollouts=30).trajectories
    >>> bool(compare_timing(held["v1"], held["v2"], seed=7).gained.estimate < 0)
    True
    """
    from safety_lib.stats.survival import last_time_at_risk
    from safety_lib.stats.survival_clusters import compare_arms

    columns = [_valid(held) for held in (first, second)]
    if any(len(time) < FEWEST_AT_RISK for time, _, _ in columns):
        sizes = " and ".join(str(len(time)) for time, _, _ in columns)
        raise ValueError(
            f"{sizes} valid conversations are too few to compare: it takes {FEWEST_AT_RISK} of each"
        )
    tau = min(last_time_at_risk(time, FEWEST_AT_RISK) for time, _, _ in columns)
    time, broke, scenario, arm = [], [], [], []
    for number, column in enumerate(columns):
        cut, event = _until(int(tau), column[0], column[1])
        time += cut
        broke += event
        scenario += column[2]
        arm += [number] * len(cut)
    compared = compare_arms(
        time, broke, arm, scenario, generator(seed, "stress", "compare"), tau=tau, draws=draws
    )
    names = (_name(first, second), _name(second, first))
    return replace(compared, arms=names, logrank=replace(compared.logrank, arms=names))


def _name(of: Sequence[Trajectory], beside: Sequence[Trajectory]) -> str:
    version, attacker = of[0].version, of[0].attacker
    return version if version != beside[0].version else f"{version} ({attacker})"


def _valid(held: Sequence[Trajectory]) -> tuple[list[int], list[bool], list[str]]:
    """Return times, whether a rule broke, and scenarios of the conversations without an error."""
    kept = [t for t in held if t.outcome != "error" and t.n_turns]
    return (
        [t.failure_turn or t.n_turns for t in kept],
        [t.outcome == "violation" for t in kept],
        [t.scenario_id for t in kept],
    )


def _until(last: int, time: list[int], broke: list[bool]) -> tuple[list[int], list[bool]]:
    """Censor at the horizon what happened after it."""
    return (
        [min(t, last) for t in time],
        [event and t <= last for t, event in zip(time, broke, strict=True)],
    )


def _last_turn(trajectory: Trajectory) -> int:
    failed = next((e.turn for e in trajectory.events if e.kind == "error"), 0)
    return trajectory.failure_turn or max(1, failed, trajectory.n_turns)


def _cause(trajectory: Trajectory) -> int:
    """Return the number of the cause that ended a conversation; 0 where it was censored."""
    if trajectory.outcome == "violation":
        return 1
    return _CAUSE_OF.get(trajectory.ended, 0)
