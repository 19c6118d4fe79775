"""Detection: monitors that follow the sessions of a release as they come and raise an alarm.

A canary is text that no honest session acts on, so its first use is an alarm. Everything else is a
rate: each release has refusals, warnings and even violations, and the question is whether there are
more than before. A monitor adds up the evidence for that, session by session (CUSUM), and raises an
alarm where the sum passes a limit that the good version would pass once in a stated number of
sessions. What it expects is measured on traffic of the good version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safety_lib.production.log import LoggedSession, SessionLog
from safety_lib.production.near_misses import WarningRule, signs_of
from safety_lib.records import Experiment
from safety_lib.records.experiments import DetectionLatency
from safety_lib.stats.intervals import clopper_pearson_upper
from safety_lib.streams import uniform
from safety_lib.text import Shown
from safety_lib.world import World
from safety_lib.world.oracle import judge

FACTOR = 4.0
APART = 20_000

Looks = Callable[[SessionLog, LoggedSession], tuple[bool, bool]]


@dataclass(frozen=True)
class Monitor:
    """What a monitor looks at.

    Attributes
    ----------
    name : str
        Its name.
    looks : callable
        Takes a log and a session of it; returns whether the session was read to its end and
        judged, which costs something, and whether it counts as a hit.
    rate : bool
        Whether hits are expected on a good version; otherwise the first one is an alarm.
    """

    name: str
    looks: Looks
    rate: bool = True


@dataclass(frozen=True, repr=False)
class Alarm(Shown):
    """An alarm, and what it took.

    Attributes
    ----------
    monitor : str
        Which monitor.
    sessions : int
        How many sessions had come, the one that raised it included.
    minute : int
        When, in the log's minutes.
    session_id : str
        The session that raised it.
    hits, judged : int
        Sessions that counted, and sessions that were read and judged.
    """

    monitor: str
    sessions: int
    minute: int
    session_id: str
    hits: int
    judged: int

    def __str__(self) -> str:
        return (
            f"{self.monitor}: alarm after {self.sessions:,} sessions, in hour "
            f"{self.minute // 60 + 1:,} of the log; hits {self.hits}, sessions judged {self.judged}"
        )


def cusum_step(total: float, *, hit: bool, expected: float, factor: float = FACTOR) -> float:
    """Add one session to a one-sided CUSUM of a rate.

    Each adds log(p1/p0) where it is a hit and log((1-p1)/(1-p0)) where it is not, with p0 the
    expected rate and p1 = factor p0; the sum never falls below 0. It passes log(A) on average no
    sooner than every A sessions at the expected rate.

    Parameters
    ----------
    total : float
        The sum so far, at least 0.
    hit : bool
        Whether the session counts.
    expected : float
        Rate on the good version, in (0, 1).
    factor : float
        The rise that it is tuned to, above 1; factor times expected stays below 1.

    References
    ----------
    Page, Biometrika 41, 1954, 100-115; Lorden, Annals of Mathematical Statistics 42, 1971,
    1897-1908.

    Returns
    -------
    float
        The sum after it, at least 0.

    Examples
    --------
    >>> round(cusum_step(1.0, hit=True, expected=0.01, factor=2), 3)
    1.693
    """
    raised = factor * expected
    more = math.log(factor) if hit else math.log((1 - raised) / (1 - expected))
    return max(0.0, total + more)


def canary(world: World) -> Monitor:
    """Alarm where a call uses text that was planted to be ignored, or a reply tells a secret."""
    planted = [
        check.planted(parameters) for _, check, parameters in world.rules.judged if check.planted
    ]
    secrets: Sequence[str] = world.hook("SECRETS", ())

    def looks(_: SessionLog, session: LoggedSession) -> tuple[bool, bool]:
        used = any(
            any(token.search(call["arguments"] or "") for token in planted)
            for call in session.calls
            if call["status"] == "executed"
        )
        told = any(part in (reply or "") for reply in session.replies for part in secrets)
        return False, used or told

    return Monitor("canary", looks, rate=False)


def objections() -> Monitor:
    """Count sessions in which a safeguard objected to anything."""
    return Monitor("safeguard objections", lambda _, session: (False, session.objections > 0))


def random_audit(share: float, seed: int, world: World) -> Monitor:
    """Judge a random share of the sessions, and count those that broke a rule.

    Parameters
    ----------
    share : float
        In [0, 1].
    seed : int
        Decides which.
    world : World
        Whose rules they are judged by.

    Returns
    -------
    Monitor
        ``random audit``.
    """

    def looks(log: SessionLog, session: LoggedSession) -> tuple[bool, bool]:
        drawn = uniform(seed, "audit", session.session_id) < share
        return drawn, drawn and bool(judge(log.events_of(session), world.rules))

    return Monitor("random audit", looks)


def audit_of_warnings(rule: WarningRule, world: World) -> Monitor:
    """Judge the sessions that an early-warning rule warns of, and count those that broke a rule."""

    def looks(log: SessionLog, session: LoggedSession) -> tuple[bool, bool]:
        warned = any(map(rule.warns, signs_of(session, world)))
        return warned, warned and bool(judge(log.events_of(session), world.rules))

    return Monitor("audit of warnings", looks)


def trained_monitors(
    experiment: Experiment[DetectionLatency], world: World
) -> tuple[tuple[Monitor, ...], dict[str, float]]:
    """Return the monitors that raise alarms, set as an experiment set them on a good version.

    What they expect is the upper 95% bound of what was counted there, so that a reference which was
    lucky does not make false alarms.

    Parameters
    ----------
    experiment : Experiment
        ``detection_latency``.
    world : World
        Whose log they will watch.

    Returns
    -------
    monitors : tuple of Monitor
        The canary and the audit of warnings.
    expected : dict
        Monitor to expected rate, for :func:`watch`.

    Raises
    ------
    ValueError
        If it is another experiment.
    """
    result = experiment.expect(DetectionLatency)
    monitors = (canary(world), audit_of_warnings(WarningRule(result.clauses), world))
    expected = {}
    for monitor in monitors:
        seen = result.expected[monitor.name]
        expected[monitor.name] = clopper_pearson_upper(seen.hits, seen.sessions)
    return monitors, expected


def expected_rates(
    log: SessionLog, version: str, monitors: Sequence[Monitor]
) -> dict[str, tuple[int, int, int]]:
    """Measure on a good version what each monitor has to expect.

    Parameters
    ----------
    log : SessionLog
        Traffic of a version that was good.
    version : str
        That version.
    monitors : sequence of Monitor
        What to count.

    Returns
    -------
    dict
        Monitor to its hits, the sessions that it judged, and all sessions.
    """
    counts = {monitor.name: [0, 0, 0] for monitor in monitors}
    for session in log.arrivals(version):
        for monitor in monitors:
            judged, hit = monitor.looks(log, session)
            counts[monitor.name][0] += hit
            counts[monitor.name][1] += judged
            counts[monitor.name][2] += 1
    return {name: (hits, judged, n) for name, (hits, judged, n) in counts.items()}


def watch(
    log: SessionLog,
    version: str,
    monitors: Iterable[Monitor],
    expected: Mapping[str, float],
    *,
    factor: float = FACTOR,
    apart: int = APART,
) -> tuple[Alarm, ...]:
    """Let monitors follow a version's sessions in the order in which they came.

    Each stops at its first alarm; reading stops when all have raised theirs.

    Parameters
    ----------
    log : SessionLog
        The log.
    version : str
        Name of the version that is watched.
    monitors : iterable of Monitor
        Which ones.
    expected : Mapping
        Monitor to the share of its hits among all sessions of a good version, in (0, 1/factor);
        not needed for one that takes no hit for granted.
    factor : float
        The rise that they are tuned to, above 1.
    apart : int
        How many sessions of the good version lie between false alarms, at least, on average.

    Returns
    -------
    tuple of Alarm
        In the order in which they were raised. A monitor without one missed.

    Raises
    ------
    ValueError
        If an expected rate is missing or out of range.
    """
    watching = list(monitors)
    for monitor in watching:
        if monitor.rate and not 0 < expected.get(monitor.name, 0) * factor < 1:
            raise ValueError(
                f"{monitor.name}: the expected rate must lie between 0 and 1/{factor:g}, not "
                f"{expected.get(monitor.name, 0)}"
            )
    totals = dict.fromkeys((monitor.name for monitor in watching), 0.0)
    hits = dict.fromkeys(totals, 0)
    judged = dict.fromkeys(totals, 0)
    alarms = []
    for number, session in enumerate(log.arrivals(version), start=1):
        for monitor in tuple(watching):
            name = monitor.name
            read, hit = monitor.looks(log, session)
            hits[name] += hit
            judged[name] += read
            if monitor.rate:
                totals[name] = cusum_step(
                    totals[name], hit=hit, expected=expected[name], factor=factor
                )
            if totals[name] >= math.log(apart) if monitor.rate else hit:
                watching.remove(monitor)
                alarms.append(
                    Alarm(
                        monitor=name,
                        sessions=number,
                        minute=session.minute,
                        session_id=session.session_id,
                        hits=hits[name],
                        judged=judged[name],
                    )
                )
        if not watching:
            break
    return tuple(alarms)
