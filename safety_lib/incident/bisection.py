"""Bisection over the config changes: which of them the failure hangs on, found by re-execution.

A release differs from the last good one by a handful of changes. Between the two every mixture can
be built and replayed, so the culprit is searched for as a bug is searched for in a program: delta
debugging (Zeller and Hildebrandt, IEEE TSE 28, 2002). Two minimal sets are found, because changes
interact. What is *enough*: put into the good version, alone, these changes bring the failure there.
What is *needed*: taken out of the bad version, these changes take the failure away. Two layers that
hold the same thing must both go before it breaks: both are enough together, and putting either back
is a rescue. Two changes that each break it alone show the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from safety_lib.incident.replay import Replay, plan_incident, turns_of
from safety_lib.records import Bisection, ConfigProbe, Contribution, Trajectory
from safety_lib.regression.minimise import ddmin, drive
from safety_lib.rollout.campaign import Run, run_campaign
from safety_lib.rollout.conversation import Rollout
from safety_lib.rollout.judging import broke
from safety_lib.streams import generator
from safety_lib.text import count
from safety_lib.world.versions import Change, Version

FAILS_SHARE = 0.5  # of the factual rate that a mixture must reach to count as failing
MOST_ATTRIBUTED = 4  # 2^4 mixtures are run to share the failure out among so many changes
_DRAWS = 500

MakeRollout = Callable[[Version, int], Rollout]


def bisect(replay: Replay, good: Version, run: Run = Run()) -> Bisection:
    """Search for the changes that an incident hangs on, on the seeds of its replay.

    Parameters
    ----------
    replay : Replay
        The factual runs on the version of the incident.
    good : Version
        The last version that was good.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    Bisection
        Its ``name`` is ``not identified`` where the incident did not come back, or where the good
        version breaks as well: then no change is to blame.

    Examples
    --------
    >>> from safety_lib.world import load_version
    >>> from safety_lib.records import Incident
    >>> said = ("Please switch the audit log off.",)
    >>> told = [{"turn": 1, "user": said[0], "assistant": "", "compliant": False}]
    >>> incident = Incident(
    ...     incident_id="I", timestamp="", severity="high", category="", description="",
    ...     trajectory=told, affected_users=0, detected_by="", detection_latency_hours=0,
    ...     remediation_actions=(), root_cause_preliminary="",
    ... )
    >>> good = load_version("northwind/v1")
    >>> bad = good.having({"model.caution": -6.0, "model.style": "friendly"}, name="bad")
    >>> from safety_lib.incident.replay import replay_incident
    >>> bisect(replay_incident(incident, bad, replays=8), good).name
    'model.caution'
    """
    turns = turns_of(replay.incident)
    return bisect_changes(
        lambda version, seed: plan_incident(replay.incident, version, turns, seed),
        good,
        replay.version,
        rule_id=replay.rule_id,
        seeds=[t.seed for t in replay.trajectories],
        factual=replay.trajectories,
        run=run,
    )


def bisect_changes(
    plan: MakeRollout,
    good: Version,
    bad: Version,
    *,
    rule_id: str,
    seeds: Sequence[int],
    factual: Sequence[Trajectory] = (),
    run: Run = Run(),
) -> Bisection:
    """Search for the changes between two versions that a failure hangs on.

    Parameters
    ----------
    plan : callable
        Makes the conversation that failed out of a version and a seed.
    good, bad : Version
        The last good version, and the one that fails.
    rule_id : str
        The rule that broke.
    seeds : sequence of int
        Every mixture of the two versions meets the same ones.
    factual : sequence of Trajectory
        The runs on the bad version, where they are there already.
    run : Run, optional
        Seed, model and where the conversations are held.

    Returns
    -------
    Bisection
        What is enough and what is needed, or why nothing is named.
    """
    mixtures = _Mixtures(plan, good, bad, rule_id, tuple(seeds), run)
    everything = frozenset(change.key for change in mixtures.changes)
    if factual:
        mixtures.known[everything] = [broke(t, rule_id) for t in factual]
    rate = mixtures.rate(everything) if rule_id else 0.0
    if rate == 0:
        tried = mixtures.known.get(everything, [])
        mute = bool(tried) and tried.count(None) == len(tried)
        return mixtures.result(
            "every replay was an error" if mute else "the failure did not come back"
        )
    mixtures.needed = FAILS_SHARE * rate
    if mixtures.fails(frozenset()):
        return mixtures.result(f"{good.version} breaks as well, so no change is to blame")
    keys = [change.key for change in mixtures.changes]
    enough = drive(ddmin(keys), lambda some: mixtures.fails(frozenset(some)))
    needed = drive(ddmin(keys), lambda some: not mixtures.fails(everything - set(some)))
    if mixtures.unclear:
        many = count(len(mixtures.unclear), "mixture")
        return mixtures.result(f"most replays of {many} were errors, so no cause can be told")
    ranked = _attributed(mixtures, dict.fromkeys((*enough, *needed)))
    return mixtures.result("", enough, needed, ranked)


@dataclass
class _Mixtures:
    """Every mixture of two versions that was run, by the changes that it has of the bad one."""

    plan: MakeRollout
    good: Version
    bad: Version
    rule_id: str
    seeds: tuple[int, ...]
    run: Run
    needed: float = 1.0
    known: dict[frozenset[str], list[bool | None]] = field(default_factory=dict)
    asked: dict[frozenset[str], bool] = field(default_factory=dict)
    unclear: list[frozenset[str]] = field(default_factory=list)
    replays: int = 0

    def __post_init__(self) -> None:
        self.changes: tuple[Change, ...] = self.good.changes_to(self.bad)

    def outcomes(self, keys: frozenset[str], until: int) -> list[bool | None]:
        """Return whether the rule broke, for at least the first so many seeds."""
        seen = self.known.setdefault(keys, [])
        missing = self.seeds[len(seen) : until]
        if missing:
            version = self._mixed(keys)
            held = run_campaign((self.plan(version, s) for s in missing), self.run)
            seen.extend(broke(t, self.rule_id) for t in held)
            self.replays += len(missing)
        return seen

    def rate(self, keys: frozenset[str]) -> float:
        valid = [b for b in self.outcomes(keys, len(self.seeds)) if b is not None]
        return sum(valid) / len(valid) if valid else 0.0

    def fails(self, keys: frozenset[str]) -> bool:
        """Say whether a mixture reaches its share of the factual rate; stop when it is settled.

        The share is one of the replays that came to an outcome: an error is neither. Where more
        than half of them are errors the mixture is unclear, and no cause can be named.
        """
        if keys not in self.asked:
            n = left = len(self.seeds)
            step = max(1, n // 5)
            k = valid = 0

            def reached(breaks: int, of: int) -> bool:
                return breaks >= max(1, math.ceil(self.needed * of))

            while left and not reached(k, valid + left) and reached(k + left, valid + left):
                left = max(0, left - step)
                seen = self.outcomes(keys, n - left)[: n - left]
                k, valid = seen.count(True), n - left - seen.count(None)
            self.asked[keys] = reached(k, valid)
            if 2 * valid < n - left:
                self.unclear.append(keys)
        return self.asked[keys]

    def _mixed(self, keys: frozenset[str]) -> Version:
        settings = {c.key: c.after for c in self.changes if c.key in keys}
        return self.good.having(settings, name=self.bad.version if settings else self.good.version)

    def result(
        self,
        why_not: str,
        enough: Iterable[str] = (),
        needed: Iterable[str] = (),
        contributions: Sequence[Contribution] = (),
    ) -> Bisection:
        order = {c.key: i for i, c in enumerate(contributions)}
        return Bisection(
            good=self.good.version,
            bad=self.bad.version,
            changes=tuple(str(change) for change in self.changes),
            enough=tuple(sorted(enough, key=lambda key: order.get(key, len(order)))),
            needed=tuple(sorted(needed, key=lambda key: order.get(key, len(order)))),
            contributions=tuple(contributions),
            why_not=why_not,
            probes=tuple(
                ConfigProbe(
                    changes=tuple(c.key for c in self.changes if c.key in keys),
                    k=seen.count(True),
                    n=len(seen) - seen.count(None),
                    fails=self.asked.get(keys, bool(seen) and len(keys) == len(self.changes)),
                )
                for keys, seen in self.known.items()
            ),
            replays=self.replays,
        )


def _attributed(mixtures: _Mixtures, keys: Iterable[str]) -> list[Contribution]:
    """Share the failure out among the changes that matter, the largest share first."""
    import numpy as np

    from safety_lib.stats.attribution import shapley_intervals

    chosen = list(keys)[:MOST_ATTRIBUTED]
    n = len(mixtures.seeds)
    columns = []
    for mask in range(2 ** len(chosen)):
        on = frozenset(key for i, key in enumerate(chosen) if mask >> i & 1)
        columns.append([bool(outcome) for outcome in mixtures.outcomes(on, n)])
    table = np.array(columns, dtype=float).T
    rng = generator(0, "bisection", *chosen)
    shares = shapley_intervals(table, rng, draws=_DRAWS)
    made = [
        Contribution(
            key=key,
            alone=round(float(table[:, 1 << i].mean() - table[:, 0].mean()), 6),
            estimate=round(share.estimate, 6),
            ci_low=round(share.low, 6),
            ci_high=round(share.high, 6),
        )
        for i, (key, share) in enumerate(zip(chosen, shares, strict=True))
    ]
    return sorted(made, key=lambda c: (-c.estimate, c.key))


def interactions(found: Bisection) -> dict[tuple[str, str], float]:
    """Return how much more (or less) two changes do together than one by one, in failure rate.

    Read from the mixtures that were run anyway: rate(both) - rate(first) - rate(second) +
    rate(neither). Positive where each layer alone would have held; negative where either change is
    enough.
    """
    rates = {probe.changes: probe.k / probe.n for probe in found.probes if probe.n}
    keys = {c.key for c in found.contributions}
    order = [name for name in (text.split(":")[0] for text in found.changes) if name in keys]
    table = {}
    for first, second in combinations(order, 2):
        if {(), (first,), (second,), (first, second)} <= rates.keys():
            together = rates[first, second] - rates[first,] - rates[second,] + rates[()]
            table[first, second] = round(together, 6)
    return table
