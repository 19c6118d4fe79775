"""The ledger: every attempt of the gate in the order in which they began, and what each came to.

Nobody edits it. Each line holds the hash of the one before, so the newest hash, the head, stands
for all of them: who noted a head can tell later whether the file was forged, cut off or chained
anew. An attempt is entered before its first trial, under a lock, so that gates that run at the same
time count one another, and a run that was given up counts as well. Reports lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from safety_lib.artifacts import (
    ArtifactError,
    content_hash,
    read_artifact,
    write_artifact,
)
from safety_lib.files import locked, sha256_of
from safety_lib.gate.look_rules import LookRules
from safety_lib.records import GateHistory, GateReport, LedgerLine

_SHORTEST = 16


def hash_of(line: LedgerLine) -> str:
    """Return the hash of a line, over all its fields."""
    return sha256_of(line.model_dump(mode="json"))


def head_of(history: GateHistory | None) -> str:
    """Return the hash of the newest line, which stands for all before it; empty where none is."""
    return hash_of(history.lines[-1]) if history and history.lines else ""


def read_ledger(path: str | Path) -> GateHistory:
    """Read a ledger; an empty one where no attempt was made yet.

    Raises
    ------
    ArtifactError
        If it was edited or damaged, its lines do not follow one another, or it is from before lines
        were chained.
    """
    path = Path(path)
    if not path.exists():
        return _history(())
    history = read_artifact(path, GateHistory)
    before = ""
    for number, line in enumerate(history.lines, start=1):
        if line.before != before:
            raise ArtifactError(
                f"{path.name}: line {number} does not follow the one before it, so lines were "
                "changed, dropped or put in; put back a copy that was kept"
            )
        before = hash_of(line)
    return history


def lines_since(history: GateHistory, head: str) -> int | None:
    """Count the lines that were added since a head was noted; None where it is not among them.

    Parameters
    ----------
    history : GateHistory
        As it is read.
    head : str
        As a page or comment shows it, or its first digits, sixteen at least.

    Examples
    --------
    >>> lines_since(read_ledger("no such file.json"), "0" * 64) is None
    True
    """
    if len(head) >= _SHORTEST:
        for number, line in enumerate(reversed(history.lines)):
            if hash_of(line).startswith(head):
                return number
    return None


def begin(path: str | Path, asked: LedgerLine, rules: LookRules) -> tuple[GateHistory, LedgerLine]:
    """Enter an attempt before its first trial, unless it is on record already.

    Parameters
    ----------
    path : str or Path
        The ledger's file.
    asked : LedgerLine
        What is to be judged, with its seed and cap.
    rules : LookRules
        How the error is shared out among attempts.

    Returns
    -------
    history : GateHistory
        Up to this attempt, and without what others add after it.
    line : LedgerLine
        The verdict that the pair has; else the attempt, which goes on where one with this seed and
        cap began and came to no end.

    Raises
    ------
    ArtifactError
        If the ledger was edited or damaged.
    """
    path = Path(path)
    with locked(_reports(path)):
        history = read_ledger(path)
        line = _finished(history, asked) or _going_on(history, asked)
        if line is None:
            attempt = rules.attempt(*_place(history, asked))
            line = asked.model_copy(update={"attempt": attempt, "before": head_of(history)})
            history = _history((*history.lines, line))
            write_artifact(path, history)
    return _until(history, line), line


def end(path: str | Path, begun: LedgerLine, report: GateReport) -> tuple[GateHistory, LedgerLine]:
    """Enter what an attempt came to, and keep its report.

    Parameters
    ----------
    path : str or Path
        The ledger's file; the report goes into a folder beside it.
    begun : LedgerLine
        The attempt, as it was entered.
    report : GateReport
        What was judged.

    Returns
    -------
    history : GateHistory
        Up to this verdict, with what others added meanwhile.
    line : LedgerLine
        The verdict; that of another run where it judged the same pair in the meantime.

    Raises
    ------
    ArtifactError
        If the ledger was edited or damaged.
    """
    path = Path(path)
    with locked(_reports(path)):
        history = read_ledger(path)
        line = _finished(history, begun)
        if line is None:
            sha256 = content_hash(report)
            write_artifact(_kept(path, sha256), report)
            line = begun.model_copy(
                update={
                    "before": head_of(history),
                    "trials": report.trials,
                    "begun": hash_of(begun),
                    "release": report.release,
                    "report_sha256": sha256,
                }
            )
            history = _history((*history.lines, line))
            write_artifact(path, history)
    return _until(history, line), line


def kept_report(path: str | Path, line: LedgerLine) -> GateReport:
    """Return the report of a verdict, byte for byte what it was.

    Raises
    ------
    ArtifactError
        If it is not where it was kept, was edited, or is not what the line says.
    """
    path = Path(path)
    file = _kept(path, line.report_sha256)
    try:
        report = read_artifact(file, GateReport)
        if content_hash(report) == line.report_sha256 and report.release == line.release:
            return report
        fault = "is not the one that was judged"
    except ArtifactError:
        fault = "is missing or was edited" if file.exists() else "is missing"
    raise ArtifactError(
        f"{path.name}: {line.baseline} -> {line.candidate} was judged before and is not judged "
        f"again, but its report {fault}: put back {file}"
    )


def _reports(path: Path) -> Path:
    return path.with_suffix(".reports")


def _kept(path: Path, sha256: str) -> Path:
    return _reports(path) / f"{sha256}.json"


def _history(lines: tuple[LedgerLine, ...]) -> GateHistory:
    return GateHistory(
        artifact=GateHistory.SCHEMA,
        schema_version=GateHistory.VERSION,
        seed=0,
        model="",
        config_sha256={},
        world="",
        world_sha256="",
        lines=lines,
    )


def _until(history: GateHistory, line: LedgerLine) -> GateHistory:
    return _history(history.lines[: history.lines.index(line) + 1])


def _finished(history: GateHistory, asked: LedgerLine) -> LedgerLine | None:
    """Return the verdict that stands: OK and BLOCK at any cap, WARN until a higher one is asked."""
    for line in reversed(history.lines):
        if line.release and line.release.verdict and line.pair == asked.pair:
            final = line.release.verdict != "WARN" or line.trials >= asked.trials
            return line if final else None
    return None


def _going_on(history: GateHistory, asked: LedgerLine) -> LedgerLine | None:
    ended = {line.begun for line in history.lines if line.release}
    for line in reversed(history.lines):
        same = (line.pair, line.seed, line.trials) == (asked.pair, asked.seed, asked.trials)
        if same and not line.release and hash_of(line) not in ended:
            return line
    return None


def _place(history: GateHistory, asked: LedgerLine) -> tuple[int, int]:
    """Which run of its pair an attempt is, and which candidate against its baseline and suite.

    What ended without a verdict does not count: nothing was spent. The baseline against itself is
    no candidate.
    """
    void: dict[str, bool] = {}
    for line in history.lines:
        if line.release:
            void[line.begun] = void.get(line.begun, True) and line.release.verdict is None
    spent = [
        line for line in history.lines if not line.release and not void.get(hash_of(line), False)
    ]
    number = 1 + sum(line.pair == asked.pair for line in spent)
    rivals = [
        line
        for line in spent
        if line.pair.contest == asked.pair.contest
        and line.pair.candidate_sha256 != line.pair.baseline_sha256
    ]
    mine = [line.attempt.candidate for line in rivals if line.pair == asked.pair]
    alone = asked.pair.candidate_sha256 == asked.pair.baseline_sha256
    candidate = 1 if alone else mine[0] if mine else 1 + len({line.pair for line in rivals})
    return number, candidate
