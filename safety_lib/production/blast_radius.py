"""Blast radius: how many conversations broke the rule of an incident, from an audit of a sample.

Nobody can read a whole log. A cheap SQL condition, taken from the rule, splits it into flagged and
unflagged sessions; a random sample of each is read in full and decided by the oracle; the counts
are scaled up. The condition need not be right: what it flags by mistake and what it misses both
show in the audit, and the interval says how much a sample of this size can have missed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safety_lib.production.log import LogError, NotMeasuredError, SessionLog
from safety_lib.records import BlastRadius
from safety_lib.stats.audit import stratified_audit
from safety_lib.stats.intervals import share
from safety_lib.stats.missing_mass import chao1
from safety_lib.streams import generator, key
from safety_lib.text import Shown, count, one_line
from safety_lib.world import World
from safety_lib.world.checks import Flag
from safety_lib.world.oracle import judge

_THING = re.compile(r"\b[A-Z]+-\w[\w-]*|/[\w./-]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def estimate_blast_radius(
    log: str | Path | SessionLog,
    *,
    world: World,
    rule_id: str,
    version: str,
    audit: int,
    seed: int,
    level: float = 0.95,
    claimed: int | None = None,
) -> BlastRadius:
    """Estimate how many sessions of a version broke a rule, from a stratified audit of its log.

    The estimate is the sum over both strata of N x / n: N sessions, n of them audited, x found to
    have broken the rule. The interval combines a hypergeometric bound of each stratum (mid-p,
    mover; see :func:`safety_lib.stats.audit.stratified_audit`), which says something even where
    nothing was found; a stratum that was audited in full is exact. Over many incidents it covers
    the truth about as often as it says. How the audit is divided is told in :func:`allocate`.

    Parameters
    ----------
    log : str, Path or SessionLog
        Log of production, or a glob of them; or one that is open already, and stays so.
    world : World
        Whose rules the sessions are judged by.
    rule_id : str
        The rule that the incident broke; a session counts if it broke this one, whatever else it
        broke.
    version : str
        The version of the incident; sessions of other versions are not counted.
    audit : int
        Sessions to read, at least 1, and 2 where there are flagged and unflagged ones. With as many
        as the version has, the answer is exact.
    seed : int
        The run's seed; it decides which sessions are audited.
    level : float
        Two-sided confidence level in (0, 1).
    claimed : int, optional
        What the incident's file says, to stand beside the estimate.

    Returns
    -------
    BlastRadius

    Raises
    ------
    LogError
        If the log cannot be read or holds no session of the version; a
        :class:`safety_lib.production.log.NotMeasuredError` if it could not show the rule broken.
    ValueError
        If the policy has no such rule, the audit is too small or the level not in (0, 1).
    """
    share("level", level)
    flag = flag_for(rule_id, world)
    with nullcontext(log) if isinstance(log, SessionLog) else SessionLog(log) as sessions:
        _refuse_blind(sessions, rule_id, version, world)
        sizes = sessions.split(version, flag)
        sha256 = sessions.sha256
        planned = allocate(*sizes, audit, level)
        positive = []
        for flagged, n in zip((True, False), planned, strict=True):
            salt = f"{key(seed, 'audit', rule_id):016x}"
            ids = sessions.draw(version, flag, flagged=flagged, n=n, salt=salt)
            positive.append(_count(sessions, ids, rule_id, world))
    estimate, low, high = total(sizes, planned, positive, level)
    how = "in full" if sum(planned) == sum(sizes) else "hypergeometric mid-p bounds, mover"
    return BlastRadius(
        estimate=estimate,
        ci_low=low,
        ci_high=high,
        population_n=sum(sizes),
        flagged_n=sizes[0],
        audited_n=sum(planned),
        audited_flagged=planned[0],
        audited_unflagged=planned[1],
        method=f"stratified audit, {how}; flagged: {flag.description}",
        claimed=claimed,
        log_sha256=sha256,
    )


@dataclass(frozen=True, repr=False)
class Affected(Shown):
    """Whom and what an incident's rule touched, from an audit of users.

    Attributes
    ----------
    users : BlastRadius
        How many users had a session in which the rule broke.
    touched : mapping
        What was affected in the sessions that were read (a record, a file, an account), and in how
        many of them: what is known for certain.
    at_least : float
        Lower bound on how many things were touched in all, those that nobody has read about
        included (Chao1).
    """

    users: BlastRadius
    touched: Mapping[str, int]
    at_least: float

    def __str__(self) -> str:
        return (
            f"{self.users}; {len(self.touched):,} touched for certain, about "
            f"{self.at_least:,.0f} or more in all"
        )


def estimate_affected(
    log: str | Path | SessionLog,
    *,
    world: World,
    rule_id: str,
    version: str,
    audit: int,
    seed: int,
    level: float = 0.95,
    claimed: int | None = None,
) -> Affected:
    """Estimate how many users were affected, and list what the audit saw touched.

    Users are the units: a user is flagged if one of the user's sessions is, and whoever is drawn is
    read in full. An estimate of sessions cannot be turned into one of users, as some come often.

    Parameters
    ----------
    log, world, rule_id, version, seed, level
        As in :func:`estimate_blast_radius`.
    audit : int
        Sessions to read, about: as many users are drawn as have so many on average.
    claimed : int, optional
        How many users the incident's file says were affected.

    Returns
    -------
    Affected
        Users with an interval, and what was touched.

    Raises
    ------
    LogError, ValueError
        As in :func:`estimate_blast_radius`.
    NotMeasuredError
        If no session of the version says whose it was.
    """
    share("level", level)
    flag = flag_for(rule_id, world)
    with nullcontext(log) if isinstance(log, SessionLog) else SessionLog(log) as sessions:
        _refuse_blind(sessions, rule_id, version, world)
        if not sessions.named_users(version)[0]:
            where = f"{sessions.name}: column user_id is empty in every session of {version!r}"
            raise NotMeasuredError(f"{where}, so nobody knows how many users there were")
        sizes = sessions.split_users(version, flag)
        sha256 = sessions.sha256
        strata = sum(size > 0 for size in sizes)
        users_to_read = round(audit * sum(sizes) / sessions.versions()[version])
        planned = allocate(*sizes, max(strata, users_to_read), level)
        positive, read = [], 0
        touched: Counter[str] = Counter()
        for flagged, n in zip((True, False), planned, strict=True):
            salt = f"{key(seed, 'users', rule_id):016x}"
            drawn = sessions.draw_users(version, flag, flagged=flagged, n=n, salt=salt)
            owner = {session: user for user, held in drawn.items() for session in held}
            hit = set()
            for session, events in sessions.transcripts(list(owner)):
                broken = [v for v in judge(events, world.rules) if v.rule_id == rule_id]
                touched.update({_thing(violation.evidence) for violation in broken})
                hit.update([owner[session]] if broken else [])
            positive.append(len(hit))
            read += len(owner)
    estimate, low, high = total(sizes, planned, positive, level)
    users = BlastRadius(
        estimate=estimate,
        ci_low=low,
        ci_high=high,
        population_n=sum(sizes),
        flagged_n=sizes[0],
        audited_n=sum(planned),
        audited_flagged=planned[0],
        audited_unflagged=planned[1],
        method=f"stratified audit of users, hypergeometric mid-p bounds; flagged: "
        f"{flag.description}",
        claimed=claimed,
        unit="users",
        sessions_read=read,
        log_sha256=sha256,
    )
    seen = list(touched.values())
    return Affected(users, dict(touched.most_common()), chao1(seen) if seen else 0.0)


def _thing(evidence: str) -> str:
    """Return what was touched: an id, a path, an address; else what the oracle said."""
    found = _THING.search(evidence)
    return found.group() if found else evidence


def allocate(flagged: int, unflagged: int, audit: int, level: float = 0.95) -> tuple[int, int]:
    """Divide an audit between flagged and unflagged sessions for a short interval.

    Nothing is known before the audit, so it is planned for the case that it is bought for: about
    the flagged nothing is known (half of them, the widest case), and among the unflagged nothing
    will be found. The flagged interval then shrinks with 1/sqrt(n), the bound on the unflagged with
    1/n but from a far larger number; the division with the shortest sum of both is taken. It is
    fixed before the first session is read, so that it cannot bend the result.

    Parameters
    ----------
    flagged, unflagged : int
        Sessions in each stratum.
    audit : int
        Sessions to read.
    level : float
        Two-sided confidence level in (0, 1).

    Returns
    -------
    tuple of int
        How many of the flagged and of the unflagged to audit, at least one of each that there are.

    Raises
    ------
    ValueError
        If the audit is too small to read one session of each stratum.

    Examples
    --------
    >>> allocate(flagged=1_500, unflagged=18_500, audit=600)
    (220, 380)
    >>> allocate(flagged=0, unflagged=18_500, audit=600), allocate(30, 40, 600)
    ((0, 600), (30, 40))
    """
    import numpy as np

    strata = (flagged > 0) + (unflagged > 0)
    if audit < max(1, strata):
        raise ValueError(f"audit must be at least {max(1, strata)}, one session a stratum: {audit}")
    if audit >= flagged + unflagged or strata < 2:
        return min(flagged, audit), min(unflagged, audit)
    first = np.arange(max(1, audit - unflagged), min(flagged, audit - 1) + 1)
    second = audit - first
    # Bonferroni: each stratum that stays uncertain gets its share of the error.
    uncertain = (first < flagged).astype(int) + (second < unflagged)
    tail = (1 - level) / (2 * np.maximum(1, uncertain))
    spread = np.sqrt((flagged - first) / max(1, flagged - 1) / (4 * first))
    width = 2 * _z(1 - tail) * flagged * spread
    width += (unflagged - second) * (1 - tail ** (1 / second))
    best = int(first[np.argmin(width)])
    return best, audit - best


UNFLAGGED = Flag("nothing, so sessions are drawn at random", "false", whole=True)


def flag_for(rule_id: str, world: World) -> Flag:
    """Return the cheap condition for a rule: the kind of call that decides it.

    Parameters
    ----------
    rule_id : str
        A rule of the policy.
    world : World
        Whose policy. Where it has no condition for the rule nothing is flagged: the audit is then
        drawn at random, with the wider interval.

    Raises
    ------
    ValueError
        If the policy has no such rule.

    Examples
    --------
    >>> from safety_lib.world import load_world
    >>> flag_for("record_exfiltration", load_world("northwind")).description
    'send_mail to an address outside northwind.example'
    """
    try:
        _, check, parameters = world.rules.one(rule_id)
    except KeyError:
        known = ", ".join(rule.id for rule in world.policy.rules)
        raise ValueError(f"the policy has no rule {rule_id!r}; it has {known}") from None
    return check.flag(parameters) if check.flag else UNFLAGGED


@dataclass(frozen=True, repr=False)
class Opinion(Shown):
    """What one estimator says about the same log, from the same number of sessions read.

    Attributes
    ----------
    estimator : str
        How it was estimated.
    estimate, ci_low, ci_high : float or None
        Sessions; None where the estimator cannot say anything.
    read : int
        Sessions that were read for it.
    """

    estimator: str
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    read: int

    def covers(self, truth: float) -> bool:
        """Say whether the interval holds the truth; what says nothing does not."""
        return (
            self.ci_low is not None
            and self.ci_high is not None
            and self.ci_low <= truth <= self.ci_high
        )

    def __str__(self) -> str:
        if self.estimate is None or self.ci_low is None or self.ci_high is None:
            return f"{self.estimator}: cannot say, from {self.read:,} read"
        return (
            f"{self.estimator}: {self.estimate:,.0f} [{self.ci_low:,.0f}, {self.ci_high:,.0f}], "
            f"from {self.read:,} read"
        )


def second_opinions(
    log: str | Path | SessionLog,
    *,
    world: World,
    rule_id: str,
    version: str,
    audit: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Opinion, ...]:
    """Estimate the same from a simple random sample of the same size, in three other ways.

    The detector is the condition that flags sessions. Rogan-Gladen takes its error rates, as they
    show in the sample, for known; Lang-Reiczigel carries their uncertainty; prediction-powered
    inference corrects the share that is flagged by the mean error in the sample. None of them knows
    where to look, which is what the strata of :func:`estimate_blast_radius` are for.

    Parameters
    ----------
    log : str, Path or SessionLog
        The log of production.
    world : World
        Whose rules are judged by.
    rule_id : str
        The rule of the incident.
    version : str
        The version that the incident happened on.
    audit : int
        Conversations to read, at least 2.
    seed : int
        Decides which.
    level : float
        Two-sided confidence level in (0, 1).

    Returns
    -------
    tuple of Opinion
        One for each estimator.

    Raises
    ------
    LogError
        If the log has fewer than two conversations of the version.
    """
    share("level", level)
    flag = flag_for(rule_id, world)
    with nullcontext(log) if isinstance(log, SessionLog) else SessionLog(log) as sessions:
        sizes = sessions.split(version, flag)
        n = min(audit, sum(sizes))
        if n < 2:
            raise LogError(f"{sessions.name}: {_holds(sessions)}, too few of version {version!r}")
        # A simple random sample falls into the strata by a hypergeometric draw.
        dice = generator(seed, "second opinion", rule_id)
        flagged = int(dice.hypergeometric(sizes[0], sizes[1], n))
        positive = []
        for stratum, drawn in zip((True, False), (flagged, n - flagged), strict=True):
            salt = f"{key(seed, 'second opinion', rule_id):016x}"
            ids = sessions.draw(version, flag, flagged=stratum, n=drawn, salt=salt)
            positive.append(_count(sessions, ids, rule_id, world))
    return opinions(sizes, (flagged, n - flagged), positive, level)


def opinions(
    sizes: Sequence[int], sampled: Sequence[int], positive: Sequence[int], level: float = 0.95
) -> tuple[Opinion, ...]:
    """Estimate positives from a simple random sample with a detector, in three ways.

    Parameters
    ----------
    sizes, sampled, positive : sequence of int
        Of the flagged and of the unflagged: all, those in the sample, and the positives in it.
    level : float
        Two-sided confidence level in (0, 1).

    Returns
    -------
    tuple of Opinion
        One for each estimator.

    Examples
    --------
    >>> for opinion in opinions((2_000, 18_000), (60, 540), (6, 0)):
    ...     print(opinion)
    Rogan-Gladen: 200 [110, 293], from 600 read
    Lang-Reiczigel: 200 [0, 799], from 600 read
    prediction-powered: 200 [0, 666], from 600 read
    """
    import numpy as np

    from safety_lib.stats.intervals import Interval
    from safety_lib.stats.prevalence import lang_reiczigel, ppi_mean, rogan_gladen

    everything, read = sum(sizes), sum(sampled)
    positives = sum(positive)
    cleared = sampled[1] - positive[1]
    negatives = read - positives

    def said(estimator: str, made: Callable[[], Interval]) -> Opinion:
        try:
            share_of = made()
        except ValueError:  # no positive to learn from, or a detector no better than chance
            return Opinion(estimator, None, None, None, read)
        return Opinion(
            estimator,
            everything * share_of.estimate,
            everything * share_of.low,
            everything * share_of.high,
            read,
        )

    def known() -> Interval:
        if not positives or not negatives:
            raise ValueError("the sample shows no error rate")
        return rogan_gladen(
            sizes[0], everything, positive[0] / positives, cleared / negatives, level
        )

    scores = np.repeat([1.0, 0.0], sizes)
    labels = np.repeat(
        [1.0, 0.0, 1.0, 0.0],
        [positive[0], sampled[0] - positive[0], positive[1], cleared],
    )
    return (
        said("Rogan-Gladen", known),
        said(
            "Lang-Reiczigel",
            lambda: lang_reiczigel(
                sizes[0], everything, positive[0], positives, cleared, negatives, level
            ),
        ),
        said(
            "prediction-powered",
            lambda: ppi_mean(scores, np.repeat([1.0, 0.0], sampled), labels, level),
        ),
    )


def check_against_truth(radius: BlastRadius, truth_file: str | Path, rule_id: str) -> int:
    """Return how many sessions really broke a rule; only made-up traffic has such a file.

    Parameters
    ----------
    radius : BlastRadius
        The estimate that is to be checked.
    truth_file : str or Path
        The truth of the same traffic, from :mod:`safety_lib.worlds.northwind.traffic`.
    rule_id : str
        The rule.

    Raises
    ------
    LogError
        If the file is missing, is not a truth file, or is about another number of sessions than the
        estimate.
    """
    import duckdb

    path = Path(truth_file)
    if not path.is_file():
        raise LogError(f"{path.name}: there is no such file; only made-up traffic has a truth")
    try:
        with duckdb.connect() as connection:
            ((everything, broken),) = connection.execute(
                "SELECT count(*), count(*) FILTER (len(list_filter(violations, "
                "lambda broken: broken.rule_id = $rule_id)) > 0) FROM read_parquet($path)",
                {"rule_id": rule_id, "path": str(path)},
            ).fetchall()
    except duckdb.Error as error:
        said = one_line(error)
        raise LogError(f"{path.name}: not a truth file with column violations: {said}") from error
    if everything != radius.population_n:
        raise LogError(
            f"{path.name}: has {everything:,} sessions, but the estimate is about "
            f"{radius.population_n:,}"
        )
    return int(broken)


def _count(sessions: SessionLog, ids: list[str], rule_id: str, world: World) -> int:
    return sum(
        any(violation.rule_id == rule_id for violation in judge(events, world.rules))
        for _, events in sessions.transcripts(ids)
    )


def total(
    sizes: Sequence[int],
    audited: Sequence[int],
    positive: Sequence[int],
    level: float = 0.95,
    method: Literal["hypergeometric", "mover", "normal"] = "mover",
) -> tuple[float, float, float]:
    """Return the estimated number of positives in all strata, with its interval.

    Parameters
    ----------
    sizes, audited, positive : sequence of int
        Of each stratum: how many there are, were read, and were found positive.
    level : float
        Two-sided confidence level in (0, 1).
    method : str
        As in :func:`safety_lib.stats.audit.stratified_audit`.

    Examples
    --------
    >>> total((100, 900), (100, 300), (7, 0))
    (7.0, 7.0, 14.0)
    """
    # What was read in full is known; the error goes to the strata that are not, alone.
    uncertain = [h for h in range(len(sizes)) if audited[h] < sizes[h]]
    known = float(sum(x for h, x in enumerate(positive) if h not in uncertain))
    if not uncertain:
        return known, known, known
    rest = stratified_audit(
        [sizes[h] for h in uncertain],
        [audited[h] for h in uncertain],
        [positive[h] for h in uncertain],
        level,
        method,
    )
    return known + rest.total, known + rest.low, known + rest.high


def _z(probability: Any) -> Any:
    from scipy.special import ndtri

    return ndtri(probability)


def refuse_other_log(log: str | Path, version: str) -> None:
    """Refuse a log that cannot be read, or has no session of a version, before anything is spent.

    Parameters
    ----------
    log : str or Path
        The log of production.
    version : str
        Whose sessions will be asked for.

    Raises
    ------
    LogError
        With one line that names the file and what is wrong.
    """
    with SessionLog(log) as sessions:
        _refuse_version(sessions, version)


def what_log_lacks(log: str | Path, *, rule_id: str, version: str, world: World) -> tuple[str, ...]:
    """Say what a log cannot tell of a rule, one line each; empty where nothing is missing.

    Parameters
    ----------
    log : str or Path
        The log of production.
    rule_id : str
        The rule that broke.
    version : str
        Whose sessions.
    world : World
        Where it happened: its tools say which calls are known.

    Returns
    -------
    tuple of str
        Tools that the world does not know, sessions without a user, and what that leaves open.

    Raises
    ------
    LogError
        If the log cannot be read or holds no session of the version.
    """
    return tuple(_lacks(log, rule_id, version, world))


def _lacks(log: str | Path, rule_id: str, version: str, world: World) -> Iterator[str]:
    with SessionLog(log) as sessions:
        try:
            _refuse_blind(sessions, rule_id, version, world)
        except NotMeasuredError as error:
            yield str(error)
        else:
            unknown = _unknown(sessions.tools(version), world)
            if unknown:
                calls = sum(unknown.values())
                yield (
                    f"{sessions.name}: column tool_calls: {count(calls, 'call')} of tools that "
                    f"{world.name} does not know ({_named(unknown)}) are not judged"
                )
        named, unnamed = sessions.named_users(version)
        if unnamed:
            every = "every one" if not named else f"{unnamed:,} of {named + unnamed:,}"
            counted = "nobody knows how many users there were" if not named else "only others count"
            yield f"{sessions.name}: column user_id is empty in {every} of the sessions; {counted}"


def _refuse_blind(sessions: SessionLog, rule_id: str, version: str, world: World) -> None:
    """Refuse a log in which the rule could not be seen: that it was not seen says nothing there."""
    _refuse_version(sessions, version)
    called = sessions.tools(version)
    check = world.rules.one(rule_id).check
    asked = frozenset() if check.in_reply else check.tools
    unknown = _unknown(called, world)
    if asked and not called:
        raise NotMeasuredError(
            f"{sessions.name}: column tool_calls: not measured, no session of {version!r} holds a "
            f"call, and {rule_id} is broken by calls"
        )
    if unknown and asked and not asked & called.keys():
        raise NotMeasuredError(
            f"{sessions.name}: column tool_calls: not measured, no session of {version!r} calls a "
            f"tool that {rule_id} looks at ({_named(dict.fromkeys(sorted(asked), 0))}), and they "
            f"call what {world.name} does not know ({_named(unknown)}); name the world of this log"
        )


def _refuse_version(sessions: SessionLog, version: str) -> None:
    if version not in sessions.versions():
        raise LogError(f"{sessions.name}: {_holds(sessions)}, none of version {version!r}")


def _unknown(called: Mapping[str, int], world: World) -> dict[str, int]:
    return {name: calls for name, calls in called.items() if name not in world.tools}


def _named(tools: Mapping[str, int], most: int = 5) -> str:
    shown = [one_line(name, 60) for name in list(tools)[:most]]
    return ", ".join([*shown, *(["..."] if len(tools) > most else [])])


def _holds(sessions: SessionLog) -> str:
    found = [f"{count:,} sessions of {name!r}" for name, count in sessions.versions().items()]
    return ", ".join(["holds " + (found[0] if found else "no sessions"), *found[1:]])
