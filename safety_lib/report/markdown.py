"""The report as a comment on a pull request or the summary of a CI job, short enough for both.

Text from outside stands in code spans and nowhere else: there a link, an image, an at-sign, an
issue number or a tag is only text. The three characters that could end a span or a table cell are
shown by their codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safety_lib.records import GateReport, TestResult
from safety_lib.text import (
    count,
    p_value,
    per_1000,
    percent,
    plain,
    points,
    span,
)

_MOST_TESTS = 10
_SIGNS = {
    "pass": "pass",
    "warn": "warn",
    "block": "BLOCK",
    "invalid": "INVALID",
    "open": "open",
    "unmeasured": "not measured",
}


def render_markdown(report: GateReport, head: str = "") -> str:
    """Return the report as GitHub-flavoured Markdown without any HTML.

    Parameters
    ----------
    report : GateReport
        What the gate decided. At most ten of the tests that got worse are listed.
    head : str, optional
        Hash of the ledger up to this verdict, for who wants to check it later.
    """
    candidate, baseline = code(report.candidate), code(report.baseline)
    blocks = [
        f"## Release gate: {report.verdict or 'NO VERDICT'}",
        f"{candidate} against {baseline}. {_reason(report)}",
        _table(
            ("Step", "Question", "Answer", "Reason"),
            (
                (str(s.step), code(s.title), _SIGNS[s.status], code(s.reason, 400))
                for s in report.steps
            ),
        ),
        _headline(report),
        _table(
            ("Stratum", "Tests", baseline, candidate, "Difference", "95% interval"),
            (
                (
                    code(s.stratum),
                    str(s.n_tests),
                    percent(s.baseline_pass_rate),
                    percent(s.candidate_pass_rate),
                    points(s.delta),
                    span(s.ci_low, s.ci_high),
                )
                for s in report.strata
            ),
        ),
        *_safeguards(report),
        *_exceptions(report),
        *_worse(report),
        _provenance(report),
        f"History {code(head)}." if head else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def code(text: str, limit: int = 200) -> str:
    r"""Return a text from outside as one code span that nothing in it can leave.

    Examples
    --------
    >>> code("a `b` | c")
    '`a \\x60b\\x60 \\x7c c`'
    >>> code("")
    '(empty)'
    """
    shown = plain(text, limit).strip()
    # A backslash before a pipe would escape it only for some readers; a code is safe for all.
    for character in "`|":
        shown = shown.replace(character, f"\\x{ord(character):02x}")
    return f"`{shown}`" if shown else "(empty)"


def _reason(report: GateReport) -> str:
    return code(report.reasons[0], 600) if report.reasons else "No reason was recorded."


def _headline(report: GateReport) -> str:
    sure = p_value(report.p_value)
    rows = [
        (
            "Pass rate",
            f"{percent(report.baseline_pass_rate)} to {percent(report.candidate_pass_rate)}",
        ),
        ("Difference", f"{points(report.delta)} points {span(report.ci_low, report.ci_high)}"),
        ("p, one-sided", sure),
        (
            "Evidence",
            f"{count(report.n_tests, 'test')} in "
            f"{count(report.n_families, 'family', 'families')}, "
            f"{count(report.looks, 'look')}, {report.evidence_status}",
        ),
    ]
    if report.beyond is not None:
        rows.append(("Beyond these tests", str(report.beyond)))
    if report.attempt is not None:
        rows.append(("Attempt", code(str(report.attempt))))
    if report.visible is not None:
        rows.append(("Smallest losses that are blocked, 80% power", str(report.visible)))
    if report.uncovered_rules:
        rows.append(("Rules without an active test", ", ".join(map(code, report.uncovered_rules))))
    if report.unexercised:
        rows.append(("Changes that no trial came across", ", ".join(map(code, report.unexercised))))
    if report.safeguards is not None:
        rows.append(("Safeguards, asked alone", code(str(report.safeguards))))
    if report.error_budget is not None:
        spent = report.error_budget
        rows.append(
            (
                "Violations per 1,000 sessions",
                f"{per_1000(spent.per_1000)}, at most {per_1000(spent.upper_per_1000)}; "
                f"{percent(spent.spent)} of the error budget"
                + (", releases are FROZEN" if spent.frozen else ""),
            )
        )
    return _table(("Measure", "Value"), rows)


def _safeguards(report: GateReport) -> list[str]:
    changes = report.safeguards.changes if report.safeguards else ()
    if not changes:
        return []
    table = _table(
        ("Case", "Call or reply", "Breaks", "Stopped on", "By", "Blocks"),
        (
            (
                code(change.case, 120),
                code(change.what, 120),
                code(change.breaks, 60) if change.breaks else "nothing, benign",
                change.stopped_on,
                code(change.by, 60),
                "yes" if change.blocks else "no",
            )
            for change in changes[:_MOST_TESTS]
        ),
    )
    rest = len(changes) - _MOST_TESTS
    return [table, f"{rest} more changes are in the full report." if rest > 0 else ""]


def _exceptions(report: GateReport) -> list[str]:
    if not report.exceptions:
        return []
    table = _table(
        ("Exception", "Covers", "Answers for it", "Expires", "Honoured"),
        (
            (
                code(e.exception_id, 60),
                code(e.scope, 120),
                code(e.approved_by, 60),
                code(e.expires, 60),
                f"no: {code(e.refused)}" if e.refused else "yes",
            )
            for e in report.exceptions[:_MOST_TESTS]
        ),
    )
    rest = len(report.exceptions) - _MOST_TESTS
    return [table, f"{rest} more exceptions are in the full report." if rest > 0 else ""]


def _worse(report: GateReport) -> list[str]:
    worse = sorted(
        (t for t in report.test_results if t.delta is not None and t.delta < 0),
        key=lambda t: (t.delta, t.test_id),
    )
    uncounted = sum(t.delta is None for t in report.test_results)
    missing = f" {count(uncounted, 'test')} could not be counted." if uncounted else ""
    if not report.test_results:
        return ["No trial was held."]
    if uncounted == len(report.test_results):
        return ["No test could be counted, so none is known to be as good as it was."]
    if not worse:
        return [f"No test got worse.{missing}"]
    rest = len(worse) - _MOST_TESTS
    return [
        f"### {count(len(worse), 'test')} got worse",
        missing.strip(),
        _table(
            ("Test", "What", "Severity", "Baseline", "Candidate", "Difference"),
            (_test_row(test) for test in worse[:_MOST_TESTS]),
        ),
        f"{rest} more and all transcripts are in the full report."
        if rest > 0
        else "The transcripts are in the full report.",
    ]


def _test_row(test: TestResult) -> tuple[str, ...]:
    arms = (test.baseline, test.candidate)
    return (
        code(test.test_id, 60),
        code(test.name, 120),
        test.severity,
        *(f"{arm.passed} of {arm.valid} passed" for arm in arms),
        points(test.delta),
    )


def _provenance(report: GateReport) -> str:
    hashes = {"suite": report.suite_sha256}
    if report.world:
        hashes["world"] = f"{report.world} {report.world_sha256}"
    hashes["gate policy"] = report.gate_policy_sha256
    made = ", ".join(f"{name} {code(digest[:12])}" for name, digest in hashes.items())
    return f"Seed {report.seed}, model {code(report.model)}, {made}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *lines])
