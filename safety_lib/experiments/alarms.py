"""How soon monitors see a bad release, what they miss, and what warns before a rule breaks."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from safety_lib.experiments.results import ARTIFACTS, SEED, WORLD, as_experiment, proportion
from safety_lib.production.log import LOG_NAME, SessionLog
from safety_lib.production.monitors import (
    APART,
    FACTOR,
    Alarm,
    Monitor,
    audit_of_warnings,
    canary,
    expected_rates,
    objections,
    random_audit,
    watch,
)
from safety_lib.production.near_misses import (
    FIRST_REFUSAL,
    MOST_FALSE,
    MarginStratum,
    WarningScore,
    follow,
    learn_rule,
    measure_margins,
    score_rule,
)
from safety_lib.records import Experiment
from safety_lib.records.experiments import (
    DetectionLatency,
    EarlyWarning,
    ExpectedHits,
    MarginShares,
    MonitorLatency,
    WarningAccuracy,
)
from safety_lib.rollout.campaign import Run
from safety_lib.stats.intervals import clopper_pearson_upper
from safety_lib.streams import key
from safety_lib.world.versions import Version
from safety_lib.worlds.northwind.traffic import write_traffic


def run_early_warning(
    *,
    log: str | Path = ARTIFACTS / LOG_NAME,
    version: str = "v2",
    per_stratum: int = 200,
    replays: int = 20,
    seed: int = SEED,
) -> Experiment[EarlyWarning]:
    """Learn what warns of a violation on the first half of a log, and score it on the second.

    Beside it: how near sessions that broke nothing came to it, by how they went.

    Parameters
    ----------
    log : str or Path
        The log of production.
    version : str
        The version whose sessions are followed.
    per_stratum, replays : int
        Sessions of each stratum that are held again, and how often; at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    Experiment
        ``early_warning``.
    """
    with SessionLog(log) as opened:
        seen = follow(opened, version, WORLD)
        strata = measure_margins(
            opened, WORLD.version(version), Run(seed=seed), per_stratum=per_stratum, replays=replays
        )
    first, later = seen.part(0, len(seen) // 2), seen.part(len(seen) // 2, len(seen))
    rule = learn_rule(first, most_false=MOST_FALSE)
    result = EarlyWarning(
        rule=str(rule),
        clauses=rule.clauses,
        learned_on=_accuracy_of(score_rule(rule, first)),
        scored_on=_accuracy_of(score_rule(rule, later)),
        first_refusal=_accuracy_of(score_rule(FIRST_REFUSAL, later)),
        margins=tuple(_shares_of(stratum) for stratum in strata),
    )
    parameters = {
        "log": Path(log).name,
        "version": version,
        "per_stratum": per_stratum,
        "replays": replays,
        "most_false": MOST_FALSE,
    }
    return as_experiment(result, parameters, seed=seed)


@dataclass(frozen=True)
class Watched:
    """One release in made-up traffic: the alarms, and the sessions in which a rule broke."""

    alarms: tuple[Alarm, ...]
    broken: tuple[str, ...]


def run_detection_latency(
    *,
    incidents: int = 10,
    sessions: int = 4_000,
    reference: int = 20_000,
    baseline: str = "v1",
    candidate: str = "v2",
    workers: int = 2,
    seed: int = SEED,
) -> Experiment[DetectionLatency]:
    """Release a bad version into made-up traffic, again and again, and see which monitor sees it.

    What a monitor expects, and the rule of the one that follows warnings, come from traffic of the
    good version alone. On the same days the good version is watched too: alarms there are false,
    but for the canary's, each of which is a rule that broke.

    Parameters
    ----------
    incidents : int
        Stretches of traffic, at least 1, each held on the bad version and on the good one.
    sessions : int
        Length of each: what is not seen in it was missed.
    reference : int
        Sessions of the good version that come first.
    baseline, candidate : str
        The good and the bad version.
    workers : int
        Processes that hold the traffic, at least 1; the result does not depend on it.
    seed : int
        The run's seed.

    Returns
    -------
    Experiment
        ``detection_latency``.
    """
    good, bad = WORLD.version(baseline), WORLD.version(candidate)
    with tempfile.TemporaryDirectory() as folder:
        log, _ = write_traffic(folder, good, reference, days(seed, "reference"), workers=workers)
        with SessionLog(log) as before:
            seen = follow(before, baseline, WORLD)
            rule = learn_rule(seen)
            share = float((rule.first_warnings(seen) > 0).mean())
            monitors = [
                canary(WORLD),
                objections(),
                random_audit(share, seed, WORLD),
                audit_of_warnings(rule, WORLD),
            ]
            counted = expected_rates(before, baseline, monitors)
        expected = {name: clopper_pearson_upper(hits, n) for name, (hits, _, n) in counted.items()}

        def watched(version: Version, number: int) -> Watched:
            traffic, truth = write_traffic(
                folder, version, sessions, days(seed, number), workers=workers
            )
            with SessionLog(traffic) as after:
                alarms = watch(after, version.version, monitors, expected)
            return Watched(alarms, _broken(truth))

        on_good = [watched(good, number) for number in range(incidents)]
        on_bad = [watched(bad, number) for number in range(incidents)]
    result = DetectionLatency(
        rule=str(rule),
        clauses=rule.clauses,
        share_judged=round(share, 4),
        expected={
            name: ExpectedHits(hits=hits, judged=judged, sessions=n)
            for name, (hits, judged, n) in counted.items()
        },
        violations=sum(len(entry.broken) for entry in on_bad),
        monitors={monitor.name: _latency_of(monitor, on_bad, on_good) for monitor in monitors},
    )
    parameters = {
        "incidents": incidents,
        "sessions": sessions,
        "reference": reference,
        "baseline": baseline,
        "candidate": candidate,
        "factor": FACTOR,
        "apart": APART,
    }
    return as_experiment(result, parameters, seed=seed)


def days(seed: int, name: str | int) -> int:
    """Return the seed of a stretch of traffic, the same for each version that is held on it."""
    return key(seed, "days", name) & 0x7FFFFFFF


def _broken(truth: Path) -> tuple[str, ...]:
    import duckdb

    rows = duckdb.execute(
        "SELECT session_id FROM read_parquet($path) WHERE outcome = 'violation' ORDER BY ALL",
        {"path": str(truth)},
    ).fetchall()
    return tuple(session_id for (session_id,) in rows)


def _latency_of(
    monitor: Monitor, on_bad: Sequence[Watched], on_good: Sequence[Watched]
) -> MonitorLatency:
    found = [
        (alarm, sum(session_id <= alarm.session_id for session_id in entry.broken))
        for entry in on_bad
        for alarm in entry.alarms
        if alarm.monitor == monitor.name
    ]
    raised = sum(alarm.monitor == monitor.name for entry in on_good for alarm in entry.alarms)
    return MonitorLatency(
        detected=proportion(len(found), len(on_bad)),
        sessions=tuple(sorted(alarm.sessions for alarm, _ in found)),
        median_sessions=median(a.sessions for a, _ in found) if found else None,
        median_hours=round(median(a.minute for a, _ in found) / 60, 1) if found else None,
        median_judged=median(a.judged for a, _ in found) if found else None,
        median_violations=median(n for _, n in found) if found else None,
        on_good=proportion(raised, len(on_good)),
    )


def _accuracy_of(score: WarningScore) -> WarningAccuracy:
    return WarningAccuracy(
        recall=proportion(score.recall.k, score.recall.n),
        precision=proportion(score.precision.k, score.precision.n) if score.precision else None,
        false_alarms=proportion(score.false_alarms.k, score.false_alarms.n),
        leads=dict(Counter(score.leads)),
        median_lead=median(score.leads) if score.leads else None,
    )


def _shares_of(stratum: MarginStratum) -> MarginShares:
    return MarginShares(
        name=stratum.name,
        sessions=stratum.sessions,
        drawn=stratum.drawn,
        broke=stratum.broke,
        near=proportion(stratum.near.k, stratum.near.n) if stratum.near else None,
        shares={f"{share:g}": n for share, n in Counter(stratum.shares).items()},
    )
