"""A batch: the four notebooks over a grid of parameters, and what each cell of it found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from safety_lib.records.base import Artifact, Record, Verdict
from safety_lib.records.display import html_table
from safety_lib.text import one_line, points

GridValue = int | str


class CellFindings(Record):
    """What the four stages found in one cell, with the denominators.

    Attributes
    ----------
    world_sha256, config_sha256 : str, dict
        What was judged.
    conversations : int
        Attacked, with each version; ``baseline_failures`` and ``candidate_failures`` broke a rule.
    baseline_once, candidate_once : int
        Of as many requests that were asked once, in a conversation of their own.
    errors : int
        Conversations of both versions that are neither.
    tests, families : int
        Active tests, and what they come to.
    verdict : str or None
        Of the gate; None where it gave none.
    delta, ci_low, ci_high : float or None
        Difference in pass rate, candidate less baseline, in [-1, 1], with its 95% interval.
    visible : float or None
        Smallest loss in every family that is blocked eight times in ten, in [0, 1].
    incident_k, incident_n : int
        Replays in which the incident came back, and all.
    root_cause : str
        Empty where the incident did not come back.
    affected : float or None
        Conversations of the log, estimated; None where nobody measured it.
    gate_after, gate_of_fix : str or None
        Verdicts of the grown suite on the version of the incident, and on ``fixed_version``.
    """

    world_sha256: str
    config_sha256: dict[str, str]
    conversations: int
    baseline_failures: int
    candidate_failures: int
    baseline_once: int
    candidate_once: int
    errors: int
    tests: int
    families: int
    verdict: Verdict | None
    delta: float | None
    ci_low: float | None
    ci_high: float | None
    visible: float | None
    incident_k: int
    incident_n: int
    root_cause: str
    affected: float | None
    gate_after: Verdict | None
    fixed_version: str
    gate_of_fix: Verdict | None

    def __str__(self) -> str:
        failed = f"{self.baseline_failures} and {self.candidate_failures} failures"
        lost = "" if self.delta is None else f", {points(self.delta)} points"
        return f"{failed} of {self.conversations}, {self.verdict or 'no verdict'}{lost}"

    @property
    def fault(self) -> str:
        """The first count or interval that is none."""
        counts = {
            "baseline_failures": (self.baseline_failures, self.conversations),
            "candidate_failures": (self.candidate_failures, self.conversations),
            "incident_k": (self.incident_k, self.incident_n),
            "families": (self.families, self.tests),
        }
        for name, (k, n) in counts.items():
            if not 0 <= k <= n:
                return f"{name} is {k} of {n}"
        limits = (self.delta, self.ci_low, self.ci_high)
        given = [limit for limit in limits if limit is not None]
        if len(given) not in (0, 3):
            return "a difference without its interval"
        if given and not -1 <= self.ci_low <= self.ci_high <= 1:  # type: ignore[operator]
            return f"the interval is {self.ci_low} to {self.ci_high}"
        return ""


class CellResult(Record):
    """One cell of the grid: its parameters as they were asked for, and what was found or why not.

    ``name`` is that of its folder. ``error`` is empty where the four notebooks ran to their end.
    """

    name: str
    parameters: dict[str, GridValue]
    found: CellFindings | None = None
    error: str = ""

    @property
    def verdict(self) -> str:
        """Verdict of the gate; ``none`` where it gave none, ``failed`` where the run stopped."""
        return (self.found.verdict or "none") if self.found else "failed"

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name}: failed, {self.error}"
        lost = "" if self.found.delta is None else f", {points(self.found.delta)} points"
        return f"{self.name}: {self.verdict}{lost}"


class Batch(Artifact):
    """``batch.json``: a grid of runs, in its own order, whichever ended first.

    The fields that all artifacts have are empty: each cell has its own.
    """

    SCHEMA: ClassVar[str] = "batch"

    cells: tuple[CellResult, ...]

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that are not the same in all cells, in the order of the grid."""
        names = dict.fromkeys(name for cell in self.cells for name in cell.parameters)
        return tuple(
            name for name in names if len({cell.parameters.get(name) for cell in self.cells}) > 1
        )

    @property
    def groups(self) -> dict[str, tuple[CellResult, ...]]:
        """Cells that differ in their seed alone, by what they share of what was varied."""
        shared = [name for name in self.varied if name != "seed"] or ["candidate"]
        found: dict[str, tuple[CellResult, ...]] = {}
        for cell in self.cells:
            label = ", ".join(str(cell.parameters.get(name, "")) for name in shared)
            found[label] = (*found.get(label, ()), cell)
        return found

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """The cells without a result."""
        return tuple(cell for cell in self.cells if cell.found is None)

    @property
    def fault(self) -> str:
        """The first thing in it that makes no sense, with the cell named."""
        return next(self._faults(), "")

    def _faults(self) -> Iterator[str]:
        seen: set[str] = set()
        for number, cell in enumerate(self.cells, start=1):
            name = f"cell {number} ({one_line(cell.name, 60)})"
            if cell.name in seen:
                yield f"{name} stands there twice"
            if (cell.found is None) == (cell.error == ""):
                yield f"{name} needs a result or an error, and one of them alone"
            if cell.found and (fault := cell.found.fault):
                yield f"{name}: {fault}"
            seen.add(cell.name)

    def __str__(self) -> str:
        verdicts = [cell.verdict for cell in self.cells]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        return f"{len(self.cells)} runs over {', '.join(self.varied) or 'one cell'}: {counts}"

    def _repr_html_(self) -> str:
        rows = [(cell.name, cell.verdict) for cell in self.cells]
        return html_table(str(self), ("cell", "verdict"), rows)


class CellSeal(Artifact):
    """``batch_cell.json``: that a cell ran to its end, from what, and to which results.

    ``key`` is the hash of all that the results depend on; ``results`` are the hashes of the
    artifacts that the stages wrote.
    """

    SCHEMA: ClassVar[str] = "batch_cell"

    key: str
    results: dict[str, str]
