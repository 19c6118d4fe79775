"""Tables for the notebooks: small, rounded data frames that read well in any front end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from safety_lib.records import (
    Batch,
    Bisection,
    BlastRadius,
    ClaimCheck,
    CutPoint,
    Experiment,
    Failure,
    GateReport,
    Incident,
    Milestone,
    MitigationResult,
    RegressionTest,
    StressSummary,
    Verdict,
)
from safety_lib.records.experiments import (
    AttackersAtEqualBudget,
    FaultEffect,
    LostDefences,
    MemoryWindow,
    Peers,
    SafeguardAblation,
    SafeguardFaults,
    SentenceRemovals,
    SuiteAdequacy,
    UndiscoveredPrediction,
    VerdictShares,
)
from safety_lib.report.contrasts import families
from safety_lib.report.summary import batch_row
from safety_lib.text import marked, one_line, p_value, percent, points, span
from safety_lib.world.versions import Change

if TYPE_CHECKING:
    import pandas as pd

    from safety_lib.production.blast_radius import Opinion
    from safety_lib.regression.unit import Layer
    from safety_lib.world import World


def rules_table(world: World) -> pd.DataFrame:
    """Show the rules of a world, and which goal of an attacker would break each."""
    goals = {goal.rule: name for name, goal in reversed(world.goals.items())}
    rows = [
        {
            "rule": rule.id,
            "says": rule.text,
            "severity": world.severity_of(rule.id),
            "goal": goals.get(rule.id, "none"),
        }
        for rule in world.policy.rules
    ]
    return _table(rows, "rule")


def attacks_table(world: World) -> pd.DataFrame:
    """Show the families of attack, and with how many goals each can be combined."""
    count_of = Counter(scenario.family_id for scenario in world.scenarios)
    rows = [
        {"family": name, "how": family.description, "scenarios": count_of[name]}
        for name, family in world.families.items()
    ]
    return _table(rows, "family")


def changes_table(changes: Sequence[Change]) -> pd.DataFrame:
    """Show what one version does differently from another, a setting a row."""
    rows = [{"setting": c.key, **_before_and_after(str(c.before), str(c.after))} for c in changes]
    return _table(rows, "setting", ["setting", "before", "after"])


def stress_table(summary: Sequence[StressSummary]) -> pd.DataFrame:
    """Show the counts of discovery, a version a row."""
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
    return _table(rows, "version")


def predictions_table(experiment: Experiment[UndiscoveredPrediction]) -> pd.DataFrame:
    """Show what short searches said about the unseen beside what long ones then found.

    Numbers are means over the searches.
    """
    result = experiment.expect(UndiscoveredPrediction)
    rows = [
        {
            "order": order,
            "found": f"{seen.found:.1f}",
            "said in all": f"{seen.chao1:.1f}",
            "found in the end": f"{seen.found_later:.1f}",
            "next is new, said": f"{seen.missing:.0%}",
            "next is new, came": f"{seen.missing_later:.0%}",
            "bound held": f"{seen.bound_held} of {result.searches}",
        }
        for order, seen in (("planned", result.planned), ("shuffled", result.shuffled))
    ]
    return _table(rows, "order")


def leads_table(experiment: Experiment[AttackersAtEqualBudget], version: str) -> pd.DataFrame:
    """Show how much more one way of attacking a version found than another with the same turns."""
    budgets = experiment.expect(AttackersAtEqualBudget).budgets
    rows = [
        {
            "turns": budget,
            "who": lead.of,
            "over": lead.over,
            "found more": lead.what,
            "for 100 turns": f"{lead.gain:+.2f} [{lead.low:+.2f}, {lead.high:+.2f}]",
            "p": p_value(lead.p_value),
        }
        for budget in experiment.parameters["budgets"]
        for lead in budgets[f"{version}, {budget} turns"].leads
    ]
    return _table(rows, "turns")


def memory_table(experiment: Experiment[MemoryWindow]) -> pd.DataFrame:
    """Show failures and safe turns for memories of every length, the policy pinned or not."""
    result = experiment.expect(MemoryWindow)
    n, most = experiment.parameters["rollouts"], 100
    rows = []
    for i, window in enumerate(result.window):
        row = {"messages": str(window) if window < most else "all"}
        for pinned, seen in (("unpinned", result.unpinned[i]), ("pinned", result.pinned[i])):
            row[f"{pinned}: failed"] = f"{seen.failures} of {n}"
            row[f"{pinned}: safe turns"] = f"{seen.safe_turns:.2f}"
        rows.append(row)
    return _table(rows, "messages")


def safeguards_table(experiment: Experiment[SafeguardAblation]) -> pd.DataFrame:
    """Show what got through each combination of safeguards, on every version.

    The last two columns are of the last version.
    """
    versions = experiment.expect(SafeguardAblation).versions
    rows = []
    for combination in zip(*(seen.combinations for seen in versions.values()), strict=True):
        last = combination[-1]
        rows.append(
            {"on": " + ".join(last.on) or "none"}
            | {
                name: f"{one.broke} of {one.attacks}"
                for name, one in zip(versions, combination, strict=True)
            }
            | {
                "not served": f"{last.refused} of {last.requests}",
                "calls a turn": f"{last.calls:.2f}",
            }
        )
    return _table(rows, "on")


def safeguard_faults_table(experiment: Experiment[SafeguardFaults]) -> pd.DataFrame:
    """Show how each part of the agent fails, by the way in which it is at fault.

    ``open`` stands with how many attacks more broke a rule, ``closed`` with how many requests fewer
    were served, in points.
    """
    result = experiment.expect(SafeguardFaults)
    table = [
        {"part": part, **{fault: _failure(effect) for fault, effect in seen.faults.items()}}
        for part, seen in result.parts.items()
    ]
    return _table(table, "part")


def _failure(effect: FaultEffect) -> str:
    by = effect.harm.value if effect.fails == "open" else -effect.lost.value
    told = effect.fails == "open" or (effect.fails == "closed" and effect.lost.value > 0)
    return f"{effect.fails} {points(by)}" if told else effect.fails


def breach_table(experiment: Experiment[SafeguardAblation]) -> pd.DataFrame:
    """Show what each safeguard is worth when the model does whatever it is asked.

    Each cell is the share of the harmful recorded calls that the safeguard stops (Shapley) with its
    95% interval over goals, zero or not.
    """
    versions = experiment.expect(SafeguardAblation).versions
    rows = [
        {
            "version": name,
            **{
                hook: f"{percent(share.value)} [{percent(share.low)}, {percent(share.high)}]"
                for hook, share in seen.breached.items()
            },
            "harmful calls": seen.breach_calls,
        }
        for name, seen in versions.items()
    ]
    return _table(rows, "version")


def failures_table(failures: Sequence[Failure], rows: int = 6) -> pd.DataFrame:
    """Show the first failures, the most severe first."""
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
    return _table(table, "failure", columns)


def one_test_table(test: RegressionTest) -> pd.DataFrame:
    """Show one test: what it showed on fresh seeds, what it expects, and what its user says."""
    said = {f"turn {n}": turn for n, turn in enumerate(test.attack_turns, start=1)}
    rows = {
        "family": test.family,
        "came back": str(test.reproduction),
        "reference": str(test.reference),
        "shortened": str(test.minimised) if test.minimised else "was short",
        "expected": test.expected_behavior,
        **{f"planted in {plant.where}": plant.text for plant in test.plants},
        **said,
    }
    return _table([{"test": name, test.test_id: value} for name, value in rows.items()], "test")


def layers_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """Show what each layer of the agent did at the moment of a failure."""
    rows = [
        {
            "layer": each.layer,
            "did": "held" if each.held else "let it through",
            "because": each.detail,
        }
        for each in layers
    ]
    return _table(rows, "layer")


def turns_table(turns: Sequence[str]) -> pd.DataFrame:
    """Show what a user says, a turn a row."""
    rows = [{"turn": turn, "user": said} for turn, said in enumerate(turns, start=1)]
    return _table(rows, "turn", ["turn", "user"])


def variants_table(made: Sequence[RegressionTest]) -> pd.DataFrame:
    """Show the variants of a test by what was changed, with their last turn."""
    rows = [
        {
            "variant": variant.name.rpartition("(")[2].rstrip(")"),
            "turns": len(variant.attack_turns),
            "last turn": variant.attack_turns[-1],
        }
        for variant in made
    ]
    return _table(rows, "variant", ["variant", "turns", "last turn"])


def tests_table(tests: Sequence[RegressionTest], rows: int = 8) -> pd.DataFrame:
    """Show the first tests of a suite."""
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
    return _table(table, "test", columns)


def mutants_table(suite: SuiteAdequacy, rows: int = 30) -> pd.DataFrame:
    """Show what a suite noticed of each lost defence, the survivors first; at most so many rows."""
    ordered = sorted(suite.mutant.items(), key=lambda m: (m[1].kind == "harmless", m[1].killed))
    table = [
        {
            "lost defence": name,
            "kind": seen.kind,
            "noticed": "yes" if seen.killed else "no",
            "why": one_line(seen.why, 60),
        }
        for name, seen in ordered[:rows]
    ]
    return _table(table, "lost defence", ["lost defence", "kind", "noticed", "why"])


def lost_defences_table(
    experiment: Experiment[LostDefences], *, kinds: Sequence[str] = (), rows: int = 40
) -> pd.DataFrame:
    """Show the verdicts on each lost defence, those that were let out first.

    Parameters
    ----------
    experiment : Experiment
        ``lost_defences``.
    kinds : sequence of str
        Which kinds of mutants; all by default.
    rows : int
        At most so many.

    Returns
    -------
    DataFrame
        A mutant a row, with how often each verdict was given.
    """
    tried = experiment.expect(LostDefences).mutants
    chosen = [(name, seen) for name, seen in tried.items() if not kinds or seen.kind in kinds]
    ordered = sorted(
        chosen, key=lambda m: (m[1].kind == "harmless", set(m[1].verdicts) == {"BLOCK"})
    )
    table = [
        {
            "lost defence": one_line(name, 60),
            "kind": seen.kind,
            **{verdict: seen.verdicts.get(verdict, 0) for verdict in ("BLOCK", "WARN", "OK")},
            "why": one_line(seen.why, 60),
        }
        for name, seen in ordered[:rows]
    ]
    columns = ["lost defence", "kind", "BLOCK", "WARN", "OK", "why"]
    return _table(table, "lost defence", columns)


def peers_table(experiment: Experiment[Peers]) -> pd.DataFrame:
    """Show the gate beside others: errors with 95% bounds, then losses blocked, all in percent.

    Losses are those of the suite's mean: 5, 7 and 10 points. The calls are a share of those of 60
    trials of everything; peers try the tests alone. A star is a limit that is missed: its bounds
    exclude it.
    """
    import pandas as pd

    result = experiment.expect(Peers)
    rows = {"this gate": _peer_row("as it comes", result.ours)}
    for trials, releases in sorted(result.at_once.items()):
        rows[f"this gate, {trials} trials"] = _peer_row("finished results", releases)
    for name, peer in result.peers.items():
        for how, rule in (("as it comes", peer.as_it_comes), *(("best", r) for r in peer.best)):
            missed = "" if rule.within_limits else " *"
            row = _peer_row(f"{peer.version}: {rule.setting}", rule.releases)
            rows[f"{name}, {how}, {rule.trials} trials{missed}"] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("gate")


_PLACES = {
    "spread": "in every family",
    "in half": "in half of the families",
    "in one family": "in one family",
}


def _peer_row(setting: str, releases: Mapping[str, VerdictShares]) -> dict[str, str]:
    def bounded(release: str, verdict: Verdict) -> str:
        value, low, high = (100 * x for x in releases[release].shares[verdict])
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"

    def blocked(place: str) -> str:
        each = (releases[f"{place}, {loss}"].shares["BLOCK"].value for loss in (0.05, 0.07, 0.1))
        return " / ".join(f"{100 * share:.0f}" for share in each)

    equal, five = "in every family, 0.0", "in every family, 0.05"
    small = releases["30 points in a family of one test"].shares["BLOCK"].value
    return {
        "setting": setting,
        "equal: BLOCK": bounded(equal, "BLOCK"),
        "equal: OK": bounded(equal, "OK"),
        "5 points: OK": bounded(five, "OK"),
        **{f"BLOCK {name}": blocked(place) for name, place in _PLACES.items()},
        "BLOCK 30 points of one test": f"{100 * small:.0f}",
        "calls, equal / 10 points": " / ".join(
            f"{100 * releases[name].calls:.0f}" for name in (equal, "in every family, 0.1")
        ),
    }


def sentence_removals_table(experiment: Experiment[SentenceRemovals]) -> pd.DataFrame:
    """Show what each sentence is worth to its own family, and the verdicts on its removal.

    Losses are means over the suites that cover the rule, with the smallest and the largest.
    """
    table = []
    for rule, removals in experiment.expect(SentenceRemovals).by_rule.items():
        lost = [100 * r.own_loss for r in removals if r.own_loss is not None]
        verdicts = Counter(r.verdict for r in removals)
        table.append(
            {
                "rule left out": rule,
                "own family loses": (
                    f"{sum(lost) / len(lost):.0f} points, {min(lost):.0f} to {max(lost):.0f}"
                    if lost
                    else "not covered"
                ),
                **{verdict: verdicts[verdict] for verdict in ("BLOCK", "WARN", "OK")},
                "without a test": f"{len(removals) - len(lost)} of {len(removals)} suites",
                "named by the report": f"{sum(r.named_uncovered for r in removals)} times",
            }
        )
    return _table(table, "rule left out")


def steps_table(report: GateReport) -> pd.DataFrame:
    """Show the decision of the gate, a step a row."""
    rows = [
        {"step": step.step, "question": step.title, "answer": step.status, "because": step.reason}
        for step in report.steps
    ]
    return _table(rows, "step", ["step", "question", "answer", "because"])


def strata_table(report: GateReport) -> pd.DataFrame:
    """Show the strata of the gate apart."""
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
    return _table(table, "stratum", columns)


def families_table(report: GateReport) -> pd.DataFrame:
    """Show what each family of tests lost, on fresh trials too where it was suspected.

    Its intervals are those of :func:`~safety_lib.report.contrasts.families`, as in the forest.
    """
    drawn = {row.label: row for row in families(report)}
    table = [
        {
            "family": row.family,
            "tests": row.n_tests,
            "trials": row.trials,
            "difference": f"{points(seen.delta)} {span(seen.ci_low, seen.ci_high)}",
            "p": p_value(row.p_value),
            "fresh trials": row.fresh_trials,
            "on them": "" if row.fresh_delta is None else points(row.fresh_delta),
            "state": row.state,
        }
        for row in sorted(report.families, key=lambda row: (row.delta or 0, row.family))
        for seen in [drawn.get(row.family.replace("_", " "), row)]
    ]
    columns = ["family", "tests", "trials", "difference", "p", "fresh trials", "on them", "state"]
    return _table(table, "family", columns)


def reported_table(incident: Incident) -> pd.DataFrame:
    """Show what the file of an incident claims."""
    claims = {
        "description": incident.description,
        "version": incident.agent_version,
        "category": incident.category,
        "preliminary cause": incident.root_cause_preliminary,
        "affected users": "" if incident.affected_users is None else str(incident.affected_users),
    }
    return _table([{"claim": n, "says": said or "nothing"} for n, said in claims.items()], "claim")


def milestones_table(milestones: Sequence[Milestone], rows: int = 8) -> pd.DataFrame:
    """Show the first warning, the chances that were missed and the violation."""
    table = [
        {
            "turn": m.turn,
            "what": m.what,
            "turns ahead": "" if m.lead is None else str(m.lead),
            "detail": one_line(m.detail, 60),
        }
        for m in milestones[-rows:]
    ]
    columns = ["turn", "what", "turns ahead", "detail"]
    return _table(table, "turn", columns)


def cut_points_table(points: Sequence[CutPoint]) -> pd.DataFrame:
    """Show how often the rule breaks when all goes on afresh after each turn."""
    table = [
        {"replayed up to turn": p.turn, "breaks": f"{p.broke.k} of {p.broke.n}"} for p in points
    ]
    columns = ["replayed up to turn", "breaks"]
    return _table(table, "replayed up to turn", columns)


def claims_table(claims: Sequence[ClaimCheck]) -> pd.DataFrame:
    """Show what the file of an incident claims beside what was measured."""
    words = {True: "yes", False: "no", None: "open"}
    table = [
        {
            "claim": c.claim,
            "claimed": one_line(c.claimed, 18),
            "measured": one_line(c.measured, 30),
            "agrees": words[c.agrees],
        }
        for c in claims
    ]
    columns = ["claim", "claimed", "measured", "agrees"]
    return _table(table, "claim", columns)


def probes_table(found: Bisection, rows: int = 12) -> pd.DataFrame:
    """Show the mixtures that a bisection ran, in their order."""
    total = len(found.changes)
    table = [
        {
            "changes of the bad version": _mixture(probe.changes, total),
            "breaks": f"{probe.k} of {probe.n}",
            "counts as": "failing" if probe.fails else "holding",
        }
        for probe in found.probes[:rows]
    ]
    columns = ["changes of the bad version", "breaks", "counts as"]
    return _table(table, "changes of the bad version", columns)


def batch_table(batch: Batch) -> pd.DataFrame:
    """Show what each run of a batch came to, a run a row: what was varied, then each stage.

    *failures* are of baseline and candidate; *sees* is the smallest loss in every family that the
    suite shows eight times in ten. A run that failed has its error under *cause*.
    """
    rows = [batch_row(cell, batch.varied) for cell in batch.cells]
    for row in rows:
        if "error" in row:
            row["cause"] = row.pop("error")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return _table([{name: row.get(name, "") for name in columns} for row in rows], columns[0])


def mitigations_table(results: Sequence[MitigationResult]) -> pd.DataFrame:
    """Show what each mitigation leaves and costs; a star marks what no other one dominates."""
    table = [
        {
            "mitigation": one_line(r.name, 44),
            "incident": f"{r.incident.k} of {r.incident.n}",
            "at most": f"{r.at_most:.1%}",
            "held-out variants": f"{r.held_out.k} of {r.held_out.n}",
            "not served": f"{r.benign.k} of {r.benign.n}",
            "front": "*" if r.pareto else "",
        }
        for r in results
    ]
    columns = ["mitigation", "incident", "at most", "held-out variants", "not served", "front"]
    return _table(table, "mitigation", columns)


def opinions_table(radius: BlastRadius | None, opinions: Sequence[Opinion]) -> pd.DataFrame:
    """Show the stratified audit beside other estimators that read as many conversations."""
    table = []
    if radius is not None:
        table.append(
            {
                "estimator": "stratified audit",
                "estimate": f"{radius.estimate:,.0f}",
                "interval": f"[{radius.ci_low:,.0f}, {radius.ci_high:,.0f}]",
                "read": f"{radius.audited_n:,}",
            }
        )
    for o in opinions:
        silent = o.estimate is None or o.ci_low is None or o.ci_high is None
        table.append(
            {
                "estimator": o.estimator,
                "estimate": "cannot say" if silent else f"{o.estimate:,.0f}",
                "interval": "" if silent else f"[{o.ci_low:,.0f}, {o.ci_high:,.0f}]",
                "read": f"{o.read:,}",
            }
        )
    columns = ["estimator", "estimate", "interval", "read"]
    return _table(table, "estimator", columns)


def _mixture(keys: Sequence[str], total: int) -> str:
    if len(keys) in (0, total):
        return "none" if not keys else f"all {total}"
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    shown = ", ".join(leaves[:3])
    return shown if len(leaves) <= 3 else f"{shown} and {len(leaves) - 3} more"


def _before_and_after(before: str, after: str) -> dict[str, str]:
    # Two long texts differ somewhere in the middle: begin where they part.
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )
    start = before.rfind(" ", 0, same) + 1 if same > 20 else 0
    lead = "... " if start else ""
    return {
        "before": lead + one_line(before[start:], 40),
        "after": lead + one_line(after[start:], 40),
    }


def _table(
    rows: Iterable[Mapping[str, object] | Sequence[object]],
    index: str,
    columns: list[str] | None = None,
) -> pd.DataFrame:
    """Return rows as a table, with what others wrote in it safe to see."""
    import pandas as pd

    shown = [
        {name: _cell(value) for name, value in row.items()}
        if isinstance(row, Mapping)
        else [_cell(value) for value in row]
        for row in rows
    ]
    if not shown:  # nothing was found, which is no reason for a notebook to stop
        columns = columns or [index]
    return uncut(pd.DataFrame(shown, columns=columns).set_index(index))


def uncut(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that a notebook shows with its texts uncut."""
    return _whole_table()(table)


@lru_cache(maxsize=1)
def _whole_table() -> type[pd.DataFrame]:
    import pandas as pd

    class WholeTable(pd.DataFrame):
        """A frame that a notebook shows with its texts uncut."""

        @property
        def _constructor(self) -> type[pd.DataFrame]:
            return WholeTable

        def _repr_html_(self) -> str | None:
            with pd.option_context("display.max_colwidth", None):
                html: str | None = super()._repr_html_()  # type: ignore[misc]
            return html

    return WholeTable


def _cell(value: object) -> object:
    return marked(value) if isinstance(value, str) else value
