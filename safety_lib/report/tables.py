"""Tables for the notebooks: small, rounded data frames that read well in any front end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from safety_lib.agent.versions import Change
from safety_lib.records import (
    Failure,
    GateReport,
    GateStep,
    Intervention,
    RegressionTest,
    StressSummary,
    TimelineEntry,
)

if TYPE_CHECKING:
    import pandas as pd


def changes_table(changes: Sequence[Change]) -> pd.DataFrame:
    """Show what one version does differently from another, a setting a row."""
    import pandas as pd

    rows = [{"setting": c.key, **_before_and_after(str(c.before), str(c.after))} for c in changes]
    return pd.DataFrame(rows, columns=["setting", "before", "after"]).set_index("setting")


def stress_table(summary: Sequence[StressSummary]) -> pd.DataFrame:
    """Show the counts of discovery, a version a row."""
    import pandas as pd

    rows = [
        {
            "version": s.version,
            "conversations": s.rollouts,
            "failures": s.failures,
            "delayed": s.delayed_failures,
            "errors": s.errors,
            "asked once": f"{s.single_shot_violations} of {s.single_shot_n}",
        }
        for s in summary
    ]
    return pd.DataFrame(rows).set_index("version")


def failures_table(failures: Sequence[Failure], rows: int = 6) -> pd.DataFrame:
    """Show the first failures, the most severe first."""
    import pandas as pd

    ordered = sorted(failures, key=lambda f: (-f.harm_level, f.failure_id))
    table = [
        {
            "failure": f.failure_id,
            "version": f.version,
            "rule": f.rule_id,
            "attack": f.attack_type,
            "turn": f.failure_turn,
            "severity": f.severity,
        }
        for f in ordered[:rows]
    ]
    columns = ["failure", "version", "rule", "attack", "turn", "severity"]
    return pd.DataFrame(table, columns=columns).set_index("failure")


def tests_table(tests: Sequence[RegressionTest], rows: int = 8) -> pd.DataFrame:
    """Show the first tests of a suite."""
    import pandas as pd

    table = [
        {
            "test": t.test_id,
            "family": t.family,
            "turns": len(t.attack_turns),
            "came back": f"{t.reproduction.k} of {t.reproduction.n}",
            "stands for": 1 + t.duplicates,
            "state": t.lifecycle,
        }
        for t in tests[:rows]
    ]
    columns = ["test", "family", "turns", "came back", "stands for", "state"]
    return pd.DataFrame(table, columns=columns).set_index("test")


def strata_table(report: GateReport) -> pd.DataFrame:
    """Show the strata of the gate apart."""
    import pandas as pd

    table = [
        {
            "stratum": s.stratum,
            "tests": s.n_tests,
            report.baseline: f"{s.baseline_pass_rate:.1%}",
            f"{report.candidate} (candidate)": f"{s.candidate_pass_rate:.1%}",
            "difference": f"{100 * s.delta:+.1f} [{100 * s.ci_low:+.1f}, {100 * s.ci_high:+.1f}]",
        }
        for s in report.strata
    ]
    columns = ["stratum", "tests", report.baseline, f"{report.candidate} (candidate)", "difference"]
    return pd.DataFrame(table, columns=columns).set_index("stratum")


def steps_table(steps: Sequence[GateStep]) -> pd.DataFrame:
    """Show the steps of a decision."""
    import pandas as pd

    table = [{"step": s.step, "question": s.title, "answer": s.status} for s in steps]
    return pd.DataFrame(table).set_index("step")


def timeline_table(entries: Sequence[TimelineEntry], rows: int = 8) -> pd.DataFrame:
    """Show the last moments before and at the violation."""
    import pandas as pd

    shown = entries[-rows:]
    table = [{"turn": e.turn, "what": e.what, "detail": _short(e.detail, 70)} for e in shown]
    return pd.DataFrame(table, columns=["turn", "what", "detail"]).set_index("turn")


def interventions_table(interventions: Sequence[Intervention], rows: int = 8) -> pd.DataFrame:
    """Show the interventions with the largest effects."""
    import pandas as pd

    ordered = sorted(interventions, key=lambda i: (-i.effect, i.name))[:rows]
    table = [
        {
            "intervention": i.name,
            "kind": i.kind,
            "still breaks": f"{i.counterfactual.k} of {i.counterfactual.n}",
            "effect": f"{i.effect:+.2f} [{i.ci_low:+.2f}, {i.ci_high:+.2f}]",
        }
        for i in ordered
    ]
    columns = ["intervention", "kind", "still breaks", "effect"]
    return pd.DataFrame(table, columns=columns).set_index("intervention")


def _before_and_after(before: str, after: str) -> dict[str, str]:
    # Two long texts differ somewhere in the middle: begin where they part.
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )
    start = before.rfind(" ", 0, same) + 1 if same > 20 else 0
    lead = "... " if start else ""
    return {
        "before": lead + _short(before[start:], 40),
        "after": lead + _short(after[start:], 40),
    }


def _short(value: object, width: int) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
