"""Writes a report and everything that shows it, so that no page stands beside another report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safety_lib.artifacts import write_artifact
from safety_lib.files import locked, write_text
from safety_lib.records import GateReport, RegressionTest, Release
from safety_lib.report.junit import render_junit
from safety_lib.report.markdown import render_markdown
from safety_lib.report.page import render_gate_report


def write_gate_report(
    folder: Path,
    report: GateReport,
    history: Sequence[Release] = (),
    head: str = "",
    *,
    markdown: str = "",
    junit: str = "",
    tests: Sequence[RegressionTest] = (),
) -> None:
    """Write ``gate_report.json`` and its page, with a comment and JUnit XML where they are asked.

    Parameters
    ----------
    folder : Path
        Of artifacts.
    report : GateReport
        What was judged.
    history : sequence of Release
        What was judged before, for the page.
    head : str
        Hash of the ledger up to this verdict.
    markdown, junit : str
        Files for them; empty where they are not wanted.
    tests : sequence of RegressionTest
        Those of the suite, for JUnit.
    """
    pages = {folder / "gate_report.html": render_gate_report(report, history, head)}
    if markdown:
        pages[Path(markdown)] = render_markdown(report, head)
    if junit:
        pages[Path(junit)] = render_junit(report, tests)
    with locked(folder / "runs"):
        for path in pages:
            path.unlink(missing_ok=True)
        write_artifact(folder, report)
        for path, page in pages.items():
            write_text(path, page)
