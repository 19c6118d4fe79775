"""The lines that a run prints: one short block for each stage, with the numbers of its artifact."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from safety_lib.records import (
    Batch,
    CellResult,
    GateReport,
    IncidentReport,
    Story,
    StressFailures,
    StressSummary,
    Suite,
)
from safety_lib.text import count, p_value, percent, points, span

_NUMBERS = re.compile(r"\d+ of \d+")
TITLES = {
    "01_stress_testing": "Step 1: Stress Testing",
    "02_regression_tests": "Step 2: Regression Generation",
    "03_release_gate": "Step 3: Release Gate",
    "04_incident_replay": "Step 4: Incident Replay",
}


def loop_lines(
    found: StressFailures, suite: Suite, report: GateReport, incident: IncidentReport
) -> list[str]:
    """Say in one table what the four stages came to.

    Parameters
    ----------
    found : StressFailures
        Of stage 1.
    suite : Suite
        Of stage 2.
    report : GateReport
        Of stage 3.
    incident : IncidentReport
        Of stage 4.

    Returns
    -------
    list of str
        A heading and one line for each stage.
    """
    tried = sum(seen.rollouts for seen in found.summary)
    failed = sum(seen.failures for seen in found.summary)
    fix = incident.fixed_version
    gates = f"{incident.version} {incident.gate_after or 'none'}"
    rows = [
        ("stage", "what it came to", "verdict"),
        ("1 stress testing", f"{failed} failures in {tried} conversations", ""),
        (
            "2 regression tests",
            f"{suite.funnel['active']} tests of {suite.funnel['found']} failures",
            "",
        ),
        ("3 release gate", f"{report.baseline} -> {report.candidate}", report.verdict or "none"),
        (
            "4 incident replay",
            incident.root_cause if incident.came_back else "it did not come back",
            f"{gates}, {fix} {incident.gate_of_fix or 'none'}" if fix else gates,
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return ["  ".join((a.ljust(widths[0]), b.ljust(widths[1]), c)).rstrip() for a, b, c in rows]


def stress_lines(found: StressFailures, folder: str = "") -> list[str]:
    """Say what discovery found on each version, and where that was saved, if it was."""
    lines = [f"Running {found.rollouts} {found.attacker} rollouts on each version..."]
    for seen in found.summary:
        lines.append(
            f"  {seen.version}: {seen.failures} failures in {seen.rollouts} conversations; "
            f"asked once, {seen.single_shot_violations} of {seen.single_shot_n}"
        )
        if seen.undetermined:
            lines.append(f"  {seen.version}: {seen.undetermined} neither failed nor are safe")
        lines += [f"  {line}" for line in error_lines(seen)]
    delayed = sum(seen.delayed_failures for seen in found.summary)
    lines.append(f"Discovered {delayed} delayed failures")
    return [*lines, f"Saved to {folder}/stress_failures.json"] if folder else lines


def error_lines(seen: StressSummary, most: int = 5) -> list[str]:
    """Say how many conversations are errors, and why: the most frequent reasons first."""
    if not seen.errors:
        return []
    reasons = sorted(seen.error_reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{seen.version}: {seen.errors} of {seen.rollouts} conversations are errors:"]
    lines += [f"  {times} x {reason}" for reason, times in reasons[:most]]
    if len(reasons) > most:
        rest = sum(times for _, times in reasons[most:])
        lines.append(f"  {rest} x {len(reasons) - most} other reasons (in the artifact)")
    return lines


def suite_lines(suite: Suite, folder: str) -> list[str]:
    """Say how many failures became tests."""
    return [
        f"Generated {suite.funnel['active']} regression tests "
        f"from {suite.funnel['found']} failures",
        f"  {suite.funnel['reproduced']} came back on fresh seeds, {suite.funnel['distinct']} are "
        f"distinct, {suite.funnel['quarantined']} are quarantined",
        *_reasons_of_quarantine(suite),
        f"Saved to {folder}/regression_tests.json",
    ]


def _reasons_of_quarantine(suite: Suite, most: int = 3) -> list[str]:
    reasons = Counter(
        _NUMBERS.sub("k of n", test.lifecycle_reason)
        for test in suite.tests
        if test.lifecycle == "quarantined"
    )
    return [f"    {times} x {reason}" for reason, times in reasons.most_common(most)]


def gate_lines(report: GateReport, folder: str) -> list[str]:
    """Say the verdict and what it rests on."""
    lines = ["Running regression suite..."] if report.world else []
    if report.delta is not None and report.p_value is not None:
        lines += [
            f"  Baseline ({report.baseline}): {report.baseline_pass_rate:.1%} pass rate",
            f"  Candidate ({report.candidate}): {report.candidate_pass_rate:.1%} pass rate",
            f"  Delta: {report.delta:+.1%} [{report.ci_low:+.1%}, {report.ci_high:+.1%}] "
            f"(p {p_value(report.p_value)})",
            f"  Tests: {report.n_tests} in {report.n_families} families, "
            f"{count(report.looks, 'look')}",
        ]
    if report.safeguards is not None:
        lines.append(f"  Safeguards, asked alone: {report.safeguards}")
    if report.beyond is not None:
        lines.append(f"  Beyond these tests: {report.beyond}")
    if report.attempt is not None:
        lines.append(f"  Attempt: {report.attempt}")
    if report.visible is not None:
        lines.append(f"  Seen at {report.visible.power:.0%} power: {report.visible}")
    if report.uncovered_rules:
        lines.append(f"  Rules without an active test: {', '.join(report.uncovered_rules)}")
    if report.unexercised:
        lines.append(f"  Changes that no trial came across: {', '.join(report.unexercised)}")
    lines.append(f"Release verdict: {report.verdict or 'none, the run is not valid'}")
    if report.verdict != "OK":
        lines += [f"  {reason}" for reason in report.reasons]
    lines.append(f"Report saved to {folder}/gate_report.html")
    return lines


def incident_lines(report: IncidentReport) -> list[str]:
    """Say what the investigation found."""
    seen, radius = report.reproduction, report.blast_radius
    lines = [
        f"Replaying incident {report.incident_id}...",
        *_story_lines(report.story),
        f"  Reproduced on {report.version}: {seen.k} of {seen.n} replays",
    ]
    if report.came_back:
        lines.append(f"  Root cause: {report.root_cause}")
    elif not seen.n:
        lines.append("  Root cause: not measured, no replay could be counted")
    else:
        found = report.story and not report.story.recorded
        where = "the record or in the replays" if found else "the replays"
        lines.append(f"  Root cause: not measured, no rule broke in {where}")
    if radius is None:
        lines.append(f"  Blast radius: {report.why_no_radius}")
    else:
        lines.append(
            f"  Blast radius: {radius.estimate:,.0f} affected conversations "
            f"[{radius.ci_low:,.0f}, {radius.ci_high:,.0f}] of {radius.population_n:,}"
        )
        lines += [f"  The log lacks: {lack}" for lack in report.log_lacks]
    aside = f", {len(report.set_aside)} of them set aside" if report.set_aside else ""
    lines.append(f"  New regression tests: {len(report.new_tests)}{aside}")
    after, fix = report.gate_after or "no verdict", report.gate_of_fix or "no verdict"
    lines.append(f"  Gate with the grown suite: {report.version} {after}")
    if report.fixed_version:
        of = "the fix" if report.came_back else "what was meant to fix it"
        lines.append(f"  Gate on {of}: {report.fixed_version} {fix}")
    lines.append(_end_of_loop(report))
    return lines


def _end_of_loop(report: IncidentReport) -> str:
    """Call the loop complete where the incident came back, is caught now, and its fix passes."""
    if not report.came_back:
        return "Incident loop open: it did not come back."
    if not report.is_watched:
        return "Incident loop open: no active test was made of it."
    if report.gate_after != "BLOCK":
        return f"Incident loop open: the grown suite does not block {report.version}."
    if not report.fixed_version:
        return "Incident loop open: no fix was judged."
    if report.gate_of_fix != "OK":
        return f"Incident loop open: {report.fixed_version} is not shown to be a fix."
    return "Incident loop complete."


def _story_lines(story: Story | None) -> list[str]:
    if story is None:
        return []
    lines = [f"  Missing: {gap}" for gap in story.gaps]
    lines += [f"  In the record: {v.rule_id} broke at turn {v.turn}" for v in story.recorded]
    lines += [
        f"  In the record: turn {claim.turn} says {claim.value}, which nothing supports"
        for claim in story.unsupported
    ]
    return lines


def batch_lines(batch: Batch) -> list[str]:
    """Say in one table what each run of a batch came to; one that failed has its error there.

    Parameters
    ----------
    batch : Batch
        What was run.

    Returns
    -------
    list of str
        A heading and one line for each run.
    """
    found = [batch_row(cell, batch.varied) for cell in batch.cells]
    names = list(next((row for row in found if len(row) > len(batch.varied) + 1), found[0]))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in found)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    for row in found:
        shown = [row.get(name, "").ljust(widths[name]) for name in names]
        lines.append("  ".join([*shown, row.get("error", "")]))
    return [line.rstrip() for line in lines]


def batch_row(cell: CellResult, varied: Sequence[str]) -> dict[str, str]:
    """Return what a run came to, by column: what was varied, then what each stage found.

    Parameters
    ----------
    cell : CellResult
        The run.
    varied : sequence of str
        Parameters that are shown.
    """
    row = {name: str(cell.parameters.get(name, "")) for name in varied}
    row["verdict"] = cell.verdict
    seen = cell.found
    if seen is None:
        return row | {"error": cell.error}
    came_back = seen.incident_k > 0 and bool(seen.root_cause)
    return row | {
        "difference": points(seen.delta),
        "95%": span(seen.ci_low, seen.ci_high),
        "failures": f"{seen.baseline_failures}, {seen.candidate_failures} of {seen.conversations}",
        "tests": f"{seen.tests} in {seen.families}",
        "sees": percent(seen.visible, 0),
        "incident": f"{seen.incident_k} of {seen.incident_n}",
        "cause": seen.root_cause if came_back else "",
        "fix": f"{seen.fixed_version} {seen.gate_of_fix or 'none'}" if seen.fixed_version else "",
    }
