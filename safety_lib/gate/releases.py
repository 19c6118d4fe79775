"""What a release comes with: the releases before it, and failures that somebody answers for.

The history is a file that the gate reads and adds a line to, and nobody edits: each line holds the
hash of the one before it. A pair that was judged is not judged again. An exception holds for a
time, and never for a critical failure.
"""

from __future__ import annotations

import fcntl
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from safety_lib.artifacts import (
    ArtifactError,
    content_hash,
    read_artifact,
    sha256_of,
    write_artifact,
)
from safety_lib.gate.decide import Shift
from safety_lib.gate.look_rules import LookRules
from safety_lib.gate.trials import REGRESSION_STRATA, Case
from safety_lib.records import (
    Attempt,
    GateException,
    GateHistory,
    GateReport,
    Release,
    first_fault,
)
from safety_lib.text import Shown, one_line

_Z95 = 1.959964
_SHORTEST = 16


@dataclass(frozen=True, repr=False)
class Standing(Shown):
    """What the gate knows of a release beside its trials.

    Attributes
    ----------
    history : GateHistory, optional
        The releases before this one, whose small losses may add up.
    exceptions : tuple of GateException
        Tests that the decision leaves out, where they may be; the report lists all of them.
    as_of : date, optional
        The day on which exceptions must not have expired. The gate looks at no clock.

    Raises
    ------
    ValueError
        If there are exceptions and no day to judge them on.
    """

    history: GateHistory | None = None
    exceptions: tuple[GateException, ...] = ()
    as_of: date | None = None

    def __post_init__(self) -> None:
        if self.exceptions and self.as_of is None:
            raise ValueError("exceptions expire: say as of which day they are judged")

    def released_before(self, baseline_sha256: str) -> tuple[Shift, ...]:
        """Return the changes of the versions that were released one after the other.

        A version was released where it is the baseline of a later verdict. The last change is the
        one that led to this baseline.

        Parameters
        ----------
        baseline_sha256 : str
            What is in production now.
        """
        chain: list[Shift] = []
        wanted = baseline_sha256
        for release in reversed(self.history.releases if self.history else ()):
            moved = release.candidate_sha256 != release.baseline_sha256
            if moved and release.candidate_sha256 == wanted and release.verdict in ("OK", "WARN"):
                if release.delta is None or release.ci_low is None or release.ci_high is None:
                    break
                error = (release.ci_high - release.ci_low) / (2 * _Z95)
                chain.append(Shift(release.delta, error))
                wanted = release.baseline_sha256
        return tuple(reversed(chain))

    def attempt(self, pair: Pair, rules: LookRules) -> Attempt | None:
        """Say which try this is, and what share of each error is left to it.

        The share of a run shrinks geometrically with the runs of this pair, and that of an OK with
        the square of the number of candidates as well: all that may ever be tried spend together
        what the policy allows (the squares' reciprocals add up to pi^2 / 6).

        Returns
        -------
        Attempt or None
            None where there is no history.
        """
        if self.history is None:
            return None
        judged = [r for r in self.history.releases if r.verdict is not None]
        runs = sum(pair_of(release) == pair for release in judged) + 1
        rivals = dict.fromkeys(
            release.candidate_sha256
            for release in judged
            if _contest(pair_of(release)) == _contest(pair)
            and release.candidate_sha256 != release.baseline_sha256
        )
        order = [*rivals, pair.candidate_sha256]
        candidate = order.index(pair.candidate_sha256) + 1
        if pair.candidate_sha256 == pair.baseline_sha256:
            candidate = 1  # the baseline against itself is no candidate
        share = rules.share_of_run(runs)
        return Attempt(
            number=runs,
            candidate=candidate,
            block_share=round(share, 9),
            ok_share=round(share * 6 / (math.pi * candidate) ** 2, 9),
            history_head=head_of(self.history),
        )

    def excuse(self, cases: Sequence[Case]) -> tuple[frozenset[str], tuple[GateException, ...]]:
        """Say which tests are excused, and list every exception with why it was refused, if it was.

        An exception counts through the day on which it expires. One whose scope holds a critical
        test is refused as a whole: it would hide the others behind it.

        Returns
        -------
        excused : frozenset of str
            Ids of tests that the decision leaves out; the report shows them all the same.
        listed : tuple of GateException
        """
        excused: set[str] = set()
        listed = []
        for one in self.exceptions:
            covered = [
                case
                for case in cases
                if case.stratum in REGRESSION_STRATA and one.scope in (case.case_id, case.family)
            ]
            refused = ""
            if self.as_of is not None and date.fromisoformat(one.expires) < self.as_of:
                refused = "expired"
            elif not covered:
                refused = "covers no test of this suite"
            elif any(case.severity == "critical" for case in covered):
                refused = "covers a critical test"
            else:
                excused |= {case.case_id for case in covered}
            listed.append(one.model_copy(update={"refused": refused}))
        return frozenset(excused), tuple(listed)


_EMPTY = GateHistory(
    artifact=GateHistory.SCHEMA,
    schema_version=GateHistory.VERSION,
    seed=0,
    model="",
    config_sha256={},
    world="",
    world_sha256="",
    releases=(),
)


class Pair(NamedTuple):
    """What makes two verdicts verdicts on the same question."""

    baseline_sha256: str
    candidate_sha256: str
    suite_sha256: str
    world_sha256: str
    gate_policy_sha256: str
    model: str
    excused: tuple[str, ...]


def pair_of(judged: Release | GateReport) -> Pair:
    """Return what a verdict was about; seed, cap and names have no say."""
    release = judged.release if isinstance(judged, GateReport) else judged
    return Pair(*(getattr(release, name) for name in Pair._fields))


def _contest(pair: Pair) -> Pair:
    return pair._replace(candidate_sha256="", excused=())


def head_of(history: GateHistory | None) -> str:
    """Return the hash of the newest line, which stands for all lines before it."""
    releases = history.releases if history else ()
    return _hash_of(releases[-1]) if releases else ""


def _hash_of(release: Release) -> str:
    return sha256_of(release.model_dump(mode="json"))


def read_history(path: str | Path) -> GateHistory:
    """Read the history; an empty one where no release was judged yet.

    Raises
    ------
    ArtifactError
        If the file was edited or damaged, or its lines do not follow one another: a history that
        can be rewritten is none.
    """
    if not Path(path).exists():
        return _EMPTY
    history = read_artifact(path, GateHistory)
    before = ""
    for number, release in enumerate(history.releases, start=1):
        if release.before != before:
            raise ArtifactError(
                f"{Path(path).name}: line {number} does not follow the one before it: lines were "
                "changed, dropped or put in; take the file from where it is backed up"
            )
        before = _hash_of(release)
    return history


def since(history: GateHistory | None, head: str) -> int | None:
    """Count the verdicts that were added since a head was noted; None if it is not among them.

    A history that was forged, cut off or chained anew does not hold a head that was noted before.

    Parameters
    ----------
    history : GateHistory, optional
        As it is read.
    head : str
        As a report or comment shows it; its first sixteen digits are enough.
    """
    releases = history.releases if history else ()
    for number, release in enumerate(reversed(releases)):
        if len(head) >= _SHORTEST and _hash_of(release).startswith(head):
            return number
    return None


def add_release(history: GateHistory | None, report: GateReport) -> GateHistory:
    """Return the history with one more release at its end.

    The same release with the same outcome is not added twice. The same release with another
    outcome is: that two runs disagree belongs on record.

    Examples
    --------
    >>> from safety_lib.artifacts import read_artifact
    >>> report = read_artifact("artifacts", GateReport)
    >>> once = add_release(None, report)
    >>> len(once.releases), add_release(once, report) == once
    (1, True)
    """
    before = history.releases if history else ()
    new = report.release.model_copy(update={"report_sha256": content_hash(report)})
    if history and any(r.model_copy(update={"before": ""}) == new for r in before):
        return history
    return GateHistory(
        artifact=GateHistory.SCHEMA,
        schema_version=GateHistory.VERSION,
        seed=report.seed,
        model=report.model,
        config_sha256=report.config_sha256,
        world=report.world,
        world_sha256=report.world_sha256,
        releases=(*before, new.model_copy(update={"before": head_of(history)})),
    )


def record(path: str | Path, report: GateReport) -> GateHistory:
    """Add a report to a history file, whoever else adds to it at the same time, and keep it.

    Parameters
    ----------
    path : str or Path
        The history; the report goes into a folder beside it.
    report : GateReport
        What was judged.

    Returns
    -------
    GateHistory
        With this release in it, after those that others added meanwhile.

    Raises
    ------
    ArtifactError
        If the history was edited or damaged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        # Released when the process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        history = add_release(read_history(path), report)
        write_artifact(_kept(path, content_hash(report)), report)
        write_artifact(path, history)
    return history


def finished(
    path: str | Path, history: GateHistory | None, pair: Pair, cap: int
) -> GateReport | None:
    """Return the report of a pair that was judged before, at this cap or a higher one.

    Parameters
    ----------
    path : str or Path
        The history's file; reports lie beside it.
    history : GateHistory, optional
        As it was read.
    pair : Pair
        What is to be judged.
    cap : int
        Most trials of each test.

    Raises
    ------
    ArtifactError
        If the report is not where it was kept, or is not the one that was judged.
    """
    for release in reversed(history.releases if history else ()):
        if release.verdict and release.trials >= cap and pair_of(release) == pair:
            report = read_artifact(_kept(Path(path), release.report_sha256), GateReport)
            if content_hash(report) != release.report_sha256:
                raise ArtifactError(
                    f"{Path(path).name}: the report of {release} is not the one that was judged; "
                    "take the folder beside it from where it is backed up"
                )
            # As it was before it was written, so that its page is the same bytes again.
            return report.model_copy(update={"content_sha256": ""})
    return None


def _kept(path: Path, sha256: str) -> Path:
    return path.with_suffix(".reports") / sha256[:_SHORTEST]


def load_exceptions(path: str | Path) -> tuple[GateException, ...]:
    """Read a file of exceptions.

    It is a YAML list; each entry has ``exception_id``, ``scope`` (a test or a family), ``reason``,
    ``approved_by`` and ``expires`` (a date).

    Raises
    ------
    ValueError
        With one line that names the file, the entry and the field.
    """
    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: is not YAML: {one_line(error)}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: must be a list of exceptions")
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, start=1))


def _entry(path: Path, number: int, entry: Any) -> GateException:
    where = f"{path}: exception {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    # What is left empty is empty, and not the word None.
    fields = {str(key): "" if value is None else str(value) for key, value in entry.items()}
    blank = next((key for key, value in fields.items() if not value.strip()), "")
    if blank:
        raise ValueError(f"{where}: field {blank}: is empty, and somebody has to answer for it")
    try:
        made = GateException.model_validate(fields)
        date.fromisoformat(made.expires)
    except ValidationError as error:
        field, reason = first_fault(error)
        raise ValueError(f"{where}: field {field}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{where}: field expires: {made.expires!r} is no date") from error
    if made.refused:
        raise ValueError(f"{where}: field refused: that is the gate's to say")
    return made
