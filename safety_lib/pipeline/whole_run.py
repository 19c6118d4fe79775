"""What the four notebooks left in a folder, read together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safety_lib.artifacts import ArtifactError, content_hash, read_artifact
from safety_lib.records import (
    CellFindings,
    GateReport,
    IncidentReport,
    StressFailures,
    Suite,
)
from safety_lib.report.summary import loop_lines


@dataclass(frozen=True)
class LoopResults:
    """The four artifacts of one run of the loop.

    Attributes
    ----------
    found, suite, report, incident
        Of stages 1 to 4; the suite is as stage 4 left it, grown by the incident.
    """

    found: StressFailures
    suite: Suite
    report: GateReport
    incident: IncidentReport

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each artifact's content, by its name."""
        parts = (self.found, self.suite, self.report, self.incident)
        return {part.SCHEMA: content_hash(part) for part in parts}

    @property
    def lines(self) -> list[str]:
        """What the stages came to, as a table for a terminal."""
        return loop_lines(self.found, self.suite, self.report, self.incident)

    @property
    def findings(self) -> CellFindings:
        """What a batch tells of it."""
        before, after = (
            next(seen for seen in self.found.summary if seen.version == name)
            for name in (self.found.baseline, self.found.candidate)
        )
        report, incident = self.report, self.incident
        radius = incident.blast_radius
        return CellFindings(
            world_sha256=report.world_sha256,
            config_sha256=report.config_sha256,
            conversations=self.found.rollouts,
            baseline_failures=before.failures,
            candidate_failures=after.failures,
            baseline_once=before.single_shot_violations,
            candidate_once=after.single_shot_violations,
            errors=sum(seen.errors for seen in self.found.summary),
            tests=report.n_tests,
            families=report.n_families,
            verdict=report.verdict,
            delta=report.delta,
            ci_low=report.ci_low,
            ci_high=report.ci_high,
            visible=report.visible.spread if report.visible else None,
            incident_k=incident.reproduction.k,
            incident_n=incident.reproduction.n,
            root_cause=incident.root_cause if incident.came_back else "",
            affected=radius.estimate if radius else None,
            gate_after=incident.gate_after,
            fixed_version=incident.fixed_version,
            gate_of_fix=incident.gate_of_fix,
        )


def read_loop(folder: str | Path) -> LoopResults:
    """Read the four artifacts of a run.

    Parameters
    ----------
    folder : str or Path
        That was given to it as its artifacts.

    Raises
    ------
    ArtifactError
        If one is not there, damaged, or of another run than the others.

    Examples
    --------
    >>> read_loop("artifacts").report.verdict
    'BLOCK'
    """
    loop = LoopResults(
        read_artifact(folder, StressFailures),
        read_artifact(folder, Suite),
        read_artifact(folder, GateReport),
        read_artifact(folder, IncidentReport),
    )
    pair = loop.found.baseline, loop.found.candidate
    for part in (loop.suite, loop.report):
        if (part.baseline, part.candidate) != pair:
            raise ArtifactError(
                f"{part.file_name}: compares {part.baseline} with {part.candidate}, and "
                f"stress_failures.json {pair[0]} with {pair[1]}; run all four notebooks again"
            )
    return loop
