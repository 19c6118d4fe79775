"""How often do intervals for the blast radius hold the truth? Incidents that are drawn from logs.

Sessions come from logs whose truth is known. Each simulated incident has a stretch of traffic, a
detector with faults of its own and an audit; the estimators see what an auditor would see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from safety_lib.experiments.results import ARTIFACTS, SEED, WORLD, as_experiment, proportion
from safety_lib.production.blast_radius import allocate, flag_for, opinions, total
from safety_lib.production.log import LOG_NAME, SessionLog
from safety_lib.records import Experiment
from safety_lib.records.experiments import (
    BlastRadiusCoverage,
    CoverageTable,
    Estimate,
    IntervalCoverage,
    SimulatedIncident,
)
from safety_lib.streams import generator
from safety_lib.worlds.northwind.faults import FAULTS, release_of
from safety_lib.worlds.northwind.traffic import TRUTH_NAME, write_traffic

_FAULTY_TRAFFIC = (0, 5, 11, 15)  # faults whose releases serve traffic of their own
LEAST_POSITIVES = 10
SESSIONS = (5_000, 50_000)
PREVALENCE = (0.003, 0.1)
BANDS = (0.01, 0.03)
AUDIT = (300, 1_000)
MOST_OVERLOOKED = 0.5
MOST_FALSE_ALARMS = 0.1


@dataclass(frozen=True)
class Logged:
    """All sessions of one log, for one rule: what the condition says and what is true."""

    source: str
    rule_id: str
    flagged: NDArray[np.bool_]
    positive: NDArray[np.bool_]


@dataclass(frozen=True)
class AuditedIncident:
    """One simulated incident: its truth, and each estimator's interval.

    Attributes
    ----------
    logged : Logged
        Where its sessions come from.
    sessions, truth, audit : int
        Its sessions, those in which the rule broke, and those that were read.
    said : dict
        Estimator to its interval; None where it cannot say.
    """

    logged: Logged
    sessions: int
    truth: int
    audit: int
    said: dict[str, Estimate | None]

    def covers(self, estimator: str) -> bool | None:
        """Whether the interval holds the truth; None where nothing was said."""
        said = self.said[estimator]
        return None if said is None else said.low <= self.truth <= said.high

    @property
    def row(self) -> SimulatedIncident:
        """What is kept of it."""
        said = self.said["stratified audit"]
        assert said is not None
        return SimulatedIncident(
            source=self.logged.source,
            rule=self.logged.rule_id,
            sessions=self.sessions,
            audit=self.audit,
            truth=self.truth,
            said=Estimate(*(round(value, 2) for value in said)),
        )


def logged_traffic(
    folder: Path, sample: Path, *, sessions: int, seed: int
) -> Iterator[tuple[str, Path, Path, str]]:
    """Yield logs with their hidden truths: the sample input, and traffic on faulty releases.

    Parameters
    ----------
    folder : Path
        Where the traffic is written.
    sample : Path
        The folder of the sample log.
    sessions : int
        Sessions of traffic on each faulty release.
    seed : int
        The run's seed.

    Yields
    ------
    source, log, truth, version : tuple
    """
    yield "sample log, v2", sample / LOG_NAME, sample / TRUTH_NAME, "v2"
    for number in _FAULTY_TRAFFIC:
        release = release_of(FAULTS[number], seed=seed)
        files = write_traffic(folder / str(number), release.bad, sessions, seed + number)
        yield FAULTS[number].name, *files, release.bad.version


def all_logs(sample: Path, *, sessions: int, seed: int) -> list[Logged]:
    """Look at every log of :func:`logged_traffic`, rule by rule.

    Parameters
    ----------
    sample : Path
        The folder of the sample log.
    sessions, seed : int
        As in :func:`logged_traffic`.

    Returns
    -------
    list of Logged
        One for each log and rule.
    """
    with TemporaryDirectory() as folder:
        sources = logged_traffic(Path(folder), sample, sessions=sessions, seed=seed)
        return [logged for source in sources for logged in look_at(*source)]


def look_at(source: str, log: Path, truth: Path, version: str) -> Iterator[Logged]:
    """Ask the condition and the truth about every session of a log, rule by rule.

    Parameters
    ----------
    source : str
        What to call the log.
    log, truth : Path
        The log, and what nobody who reads it knows.
    version : str
        Name of the version whose sessions they are.

    Yields
    ------
    Logged
        One for each rule.
    """
    import duckdb

    with duckdb.connect() as connection:
        broken = dict(
            connection.execute(
                "SELECT session_id, list_transform(violations, lambda v: v.rule_id) "
                "FROM read_parquet(?) ORDER BY session_id",
                [str(truth)],
            ).fetchall()
        )
    with SessionLog(log) as opened:
        for rule in WORLD.policy.rules:
            flag = flag_for(rule.id, WORLD)
            n = opened.split(version, flag)[0]
            flagged = set(opened.draw(version, flag, flagged=True, n=n, salt=""))
            yield Logged(
                source,
                rule.id,
                np.array([session in flagged for session in broken]),
                np.array([rule.id in rules for rules in broken.values()]),
            )


def simulated_incidents(
    logs: Sequence[Logged], *, incidents: int, seed: int
) -> Iterator[AuditedIncident]:
    """Draw incidents from logs with a known truth and estimate the radius of each.

    An incident is a rule, a stretch of traffic of random size in which a random share of the
    sessions broke it, a detector that overlooks a random share of what the condition of the rule
    flags and raises false alarms, and an audit of random size. Sessions are drawn with replacement
    from those of a log in which the rule broke, and from those in which it did not. The estimators
    see the sizes of the strata and the sessions that they read, and nothing else.

    Parameters
    ----------
    logs : sequence of Logged
        Where sessions come from; those in which the rule broke less than ten times are left out.
    incidents : int
        How many.
    seed : int
        The run's seed.

    Yields
    ------
    AuditedIncident
        The first ones are the same whatever ``incidents`` is.
    """
    usable = [logged for logged in logs if logged.positive.sum() >= LEAST_POSITIVES]
    for number in range(incidents):
        dice = generator(seed, "coverage", number)
        logged = usable[dice.integers(len(usable))]
        size = int(dice.integers(*SESSIONS))
        broken = int(size * PREVALENCE[0] * (PREVALENCE[1] / PREVALENCE[0]) ** dice.random())
        hit, rest = np.flatnonzero(logged.positive), np.flatnonzero(~logged.positive)
        chosen = np.concatenate([dice.choice(hit, broken), dice.choice(rest, size - broken)])
        positive = logged.positive[chosen]
        overlooked = dice.random(size) < dice.uniform(0, MOST_OVERLOOKED)
        wide = dice.random(size) < dice.uniform(0, MOST_FALSE_ALARMS)
        flagged = (logged.flagged[chosen] & ~overlooked) | (wide & ~positive)
        audit = int(dice.integers(*AUDIT))
        said = _said((positive[flagged], positive[~flagged]), audit, dice)
        yield AuditedIncident(logged, size, broken, audit, said)


def _said(
    strata: tuple[NDArray[np.bool_], NDArray[np.bool_]], audit: int, dice: np.random.Generator
) -> dict[str, Estimate | None]:
    """Read sessions of both strata and let every estimator say what it makes of them."""
    sizes = (len(strata[0]), len(strata[1]))
    planned = allocate(*sizes, audit)
    found = _read(strata, planned, dice)
    said: dict[str, Estimate | None] = {
        "stratified audit": Estimate(*total(sizes, planned, found)),
        "the same, exact bounds": Estimate(*total(sizes, planned, found, method="hypergeometric")),
        "the same, normal": Estimate(*total(sizes, planned, found, method="normal")),
    }
    n = int(dice.hypergeometric(*sizes, min(audit, sum(sizes))))
    drawn = (n, min(audit, sum(sizes)) - n)
    for opinion in opinions(sizes, drawn, _read(strata, drawn, dice)):
        bounds = (opinion.estimate, opinion.ci_low, opinion.ci_high)
        known = [value for value in bounds if value is not None]
        said[opinion.estimator] = Estimate(*known) if len(known) == len(bounds) else None
    return said


def _read(
    strata: Sequence[NDArray[np.bool_]], planned: Sequence[int], dice: np.random.Generator
) -> list[int]:
    return [
        int(stratum[dice.permutation(len(stratum))[:n]].sum())
        for stratum, n in zip(strata, planned, strict=True)
    ]


def run_blast_radius_coverage(
    *,
    incidents: int = 2_000,
    sessions: int = 1_000,
    artifacts: Path = ARTIFACTS,
    seed: int = SEED,
) -> Experiment[BlastRadiusCoverage]:
    """Count how often each interval for the blast radius holds the truth.

    Parameters
    ----------
    incidents : int
        Simulated incidents, at least 1.
    sessions : int
        Sessions of traffic on each faulty release; the sample log comes beside them.
    artifacts : Path
        Where the sample log and its truth are.
    seed : int
        The run's seed.

    Returns
    -------
    Experiment
        ``blast_radius_coverage``.
    """
    logs = all_logs(artifacts, sessions=sessions, seed=seed)
    drawn = list(simulated_incidents(logs, incidents=incidents, seed=seed))
    result = BlastRadiusCoverage(
        all=_coverage(drawn),
        by_prevalence={
            f"{low:.1%} to {high:.1%}": _coverage(
                [entry for entry in drawn if low <= entry.truth / entry.sessions < high]
            )
            for low, high in pairwise((0.0, *BANDS, 1.0))
        },
        sources=dict(Counter(entry.logged.source for entry in drawn)),
        rules=dict(Counter(entry.logged.rule_id for entry in drawn)),
        first=tuple(entry.row for entry in drawn[:20]),
    )
    parameters = {
        "incidents": incidents,
        "sessions": sessions,
        "level": 0.95,
        "least_positives": LEAST_POSITIVES,
        "sessions_of_an_incident": list(SESSIONS),
        "prevalence": list(PREVALENCE),
        "audit": list(AUDIT),
        "most_overlooked": MOST_OVERLOOKED,
        "most_false_alarms": MOST_FALSE_ALARMS,
    }
    return as_experiment(result, parameters, seed=seed)


def _coverage(drawn: Sequence[AuditedIncident]) -> CoverageTable:
    estimators = drawn[0].said if drawn else ()
    return CoverageTable(
        incidents=len(drawn),
        estimators={estimator: _coverage_of(estimator, drawn) for estimator in estimators},
    )


def _coverage_of(estimator: str, drawn: Sequence[AuditedIncident]) -> IntervalCoverage:
    held = [entry.covers(estimator) for entry in drawn]
    widths = [said.high - said.low for entry in drawn if (said := entry.said[estimator])]
    return IntervalCoverage(
        **dict(proportion(held.count(True), len(held))),
        silent=held.count(None),
        median_width=round(float(np.median(widths)), 1) if widths else None,
    )
