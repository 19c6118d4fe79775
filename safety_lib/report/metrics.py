"""The metrics of the loop, each named once: what it says, who computes it and where it is kept.

The glossary is generated from this list, and a test looks up every function and field, so that a
word cannot outlive the code behind it.
"""

from __future__ import annotations

from safety_lib.records import Record


class Metric(Record):
    """One measured quantity.

    ``computed_by`` is the dotted name of the function or record that makes it; ``artifact`` and
    ``field`` say where a run keeps it, with ``[]`` for each entry of a list.
    """

    name: str
    definition: str
    computed_by: str
    artifact: str
    field: str


METRICS: tuple[Metric, ...] = (
    Metric(
        name="failures",
        definition="Conversations in which the oracle saw at least one rule broken.",
        computed_by="safety_lib.world.oracle.judge",
        artifact="stress_failures",
        field="summary[].failures",
    ),
    Metric(
        name="delayed failures",
        definition="Failures whose first broken rule comes after the first turn and whose request, "
        "asked at once in one message, is not granted.",
        computed_by="safety_lib.stress.discovery",
        artifact="stress_failures",
        field="summary[].delayed_failures",
    ),
    Metric(
        name="survival",
        definition="Share of conversations without a broken rule after each turn; those that ended "
        "earlier for another reason count as long as they were watched.",
        computed_by="safety_lib.stats.survival.kaplan_meier",
        artifact="stress_failures",
        field="survival[].survival",
    ),
    Metric(
        name="reproduction rate",
        definition="How often a failure comes back on fresh seeds, as a count and its total, with "
        "a Wilson interval.",
        computed_by="safety_lib.stats.intervals.wilson",
        artifact="regression_tests",
        field="tests[].reproduction",
    ),
    Metric(
        name="pass rate",
        definition="Share of the trials of a version that broke no rule, averaged over tests; "
        "errors of the harness are neither passes nor failures.",
        computed_by="safety_lib.gate.decide",
        artifact="gate_report",
        field="candidate_pass_rate",
    ),
    Metric(
        name="delta",
        definition="Pass rate of the candidate minus that of the baseline on the same tests, each "
        "test a stratum, with an interval from the luck within the tests.",
        computed_by="safety_lib.stats.strata",
        artifact="gate_report",
        field="delta",
    ),
    Metric(
        name="p-value",
        definition="Chance of a loss at least this large at this look if the versions were alike: "
        "Cochran, Mantel and Haenszel over the tests, or the pairs that differ where luck is "
        "shared.",
        computed_by="safety_lib.stats.strata",
        artifact="gate_report",
        field="p_value",
    ),
    Metric(
        name="beyond these tests",
        definition="The same difference with families of tests as the sample: what other families "
        "would show, with a cluster-robust interval.",
        computed_by="safety_lib.stats.clustered.cluster_mean",
        artifact="gate_report",
        field="beyond",
    ),
    Metric(
        name="visible losses",
        definition="Smallest losses that the gate blocks on this suite with the power that it "
        "names: in every family, in half of them, in one; simulated on the luck that the run had.",
        computed_by="safety_lib.gate.visible.visible_loss",
        artifact="gate_report",
        field="visible",
    ),
    Metric(
        name="error-budget spend",
        definition="Rate of broken rules under unselected attacks, as a share of what is "
        "tolerated.",
        computed_by="safety_lib.records.ErrorBudget",
        artifact="gate_report",
        field="error_budget.spent",
    ),
    Metric(
        name="intervention effect",
        definition="Failure rate after one change to the incident minus the rate before it, on "
        "replays of the same conversation.",
        computed_by="safety_lib.incident.interventions",
        artifact="incident_replay",
        field="interventions[].effect",
    ),
    Metric(
        name="blast radius",
        definition="Estimated number of conversations in the production log that broke the rule of "
        "the incident, from an audit of flagged and unflagged ones.",
        computed_by="safety_lib.stats.audit.stratified_audit",
        artifact="incident_replay",
        field="blast_radius.estimate",
    ),
    Metric(
        name="mutation adequacy",
        definition="Share of safeguards and rules, each switched off or weakened in turn, whose "
        "loss some test of the suite notices.",
        computed_by="safety_lib.experiments.mutants.adequacy",
        artifact="mutation_adequacy",
        field="result",
    ),
    Metric(
        name="detection latency",
        definition="Sessions of a bad release, from its first one, until a monitor raises its "
        "alarm.",
        computed_by="safety_lib.production.monitors.watch",
        artifact="detection_latency",
        field="result.monitors",
    ),
    Metric(
        name="near miss",
        definition="A session that broke no rule and breaks one in some replays of the same words "
        "on fresh seeds.",
        computed_by="safety_lib.production.near_misses.measure_margins",
        artifact="early_warning",
        field="result.margins[].near",
    ),
)
