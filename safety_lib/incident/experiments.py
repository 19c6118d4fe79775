"""Experiments of the incident stage: what needs more runs than a notebook has time for.

Is the cause that is named the cause that was put in? Do the intervals of the blast radius cover
the truth as often as they say? What does closing the loop buy, round after round?
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from safety_lib.agent.versions import load_version
from safety_lib.artifacts import read_incident
from safety_lib.attack.scenarios import all_scenarios
from safety_lib.gate.report import run_gate
from safety_lib.incident.accuracy import (
    LOOK_REPLAYS,
    REPLAYABLE,
    Case,
    decisive_turns,
    pair_cases,
    searched,
    single_cases,
)
from safety_lib.incident.bisection import bisect
from safety_lib.incident.closure import (
    held_out,
    mitigations,
    sibling_tests,
    single_turn_suite,
    suite_of,
    try_mitigations,
)
from safety_lib.incident.coverage import (
    AUDIT,
    BANDS,
    LEAST_POSITIVES,
    MOST_FALSE_ALARMS,
    MOST_OVERLOOKED,
    PREVALENCE,
    SESSIONS,
    Covered,
    all_logs,
    covered_row,
    simulated_incidents,
)
from safety_lib.incident.detection_experiments import detection_latency, early_warning, made, of
from safety_lib.incident.faults import (
    FAULTS,
    Fault,
    pairs_of,
)
from safety_lib.incident.investigate import new_tests
from safety_lib.incident.replay import replay_incident
from safety_lib.incident.rounds import (
    SLIPS,
    TRIALS,
    Round,
    propose_releases,
    run_rounds,
    without_budget,
)
from safety_lib.records import Experiment
from safety_lib.regression.generate import merge
from safety_lib.stats.intervals import clopper_pearson_upper

COMMAND = "make experiments"
ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"

# --------------------------------------------------------------------------- root cause


def root_cause_accuracy(
    faults: Sequence[Fault] = FAULTS,
    *,
    per_fault: int = 6,
    per_pair: int = 1,
    replays: int = 24,
    fewer: Sequence[int] = (3, 6, 12),
    seed: int = 7,
) -> Experiment:
    """Inject faults, alone and in pairs, and count how often the search names one of them first.

    The population is fixed before any search: incidents that come back in at least 30% of fresh
    replays, and at least twice as often on the faulty release as on the good one before it. Beside
    the search stand undoing each change alone, the layer that the incident's label points to, and
    the best table from labels to settings that anybody could write, fitted to these very incidents.

    Parameters
    ----------
    faults : sequence of Fault
        What to inject; of the pairs those in which both are of them.
    per_fault, per_pair : int
        Incidents of the population for each fault, and incidents for each pair.
    replays : int
        Seeds of each search.
    fewer : sequence of int
        Smaller numbers of seeds, to see what accuracy costs.
    seed : int
        The run's seed.
    """
    single = list(single_cases(faults, per_fault=per_fault, replays=replays, seed=seed))
    pairs = list(pair_cases(pairs_of(tuple(faults)), per_pair=per_pair, replays=replays, seed=seed))
    found = [case for case in single if case.in_population]
    curve = [
        {"replays": n, **_accuracy([searched(case, n, seed) for case in found])} for n in fewer
    ]
    curve.append({"replays": replays, **_accuracy(found)})
    idle = [case for case in single if case.rate >= REPLAYABLE and not case.in_population]
    by_fault = [_of_fault(fault, single) for fault in faults]
    met = [row for row in by_fault if row["population"]]
    result = {
        "single": _accuracy(found),
        "single_by_fault": by_fault,
        # Incidents of one fault resemble each other: the cautious count is one of faults.
        "faults_always_named": of(sum(row["named"] == row["population"] for row in met), len(met))
        if met
        else None,
        "nothing_to_find": {
            "incidents": len(idle),
            "not_identified": sum(not case.told for case in idle),
        },
        "by_replays": curve,
        "pairs": _accuracy([case for case in pairs if case.in_population]),
        "incidents": {"single": len(single), "pairs": len(pairs)},
        "misses": [_miss(case) for case in (*single, *pairs) if _missed(case)],
        "cases": [_row(case) for case in found],
    }
    return made(
        "root_cause_accuracy",
        seed,
        {
            "faults": [fault.name for fault in faults],
            "per_fault": per_fault,
            "per_pair": per_pair,
            "replays": replays,
            "fewer": list(fewer),
            "replayable": REPLAYABLE,
            "look_replays": LOOK_REPLAYS,
        },
        result,
    )


def _accuracy(cases: Sequence[Case]) -> dict[str, Any]:
    """Count what each way of naming a cause gets right on the same incidents."""
    n = len(cases)
    if not n:
        return {"n": 0}
    changes = [len(case.found.changes) for case in cases if case.found]
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        table[case.injected.label].update(case.keys)
    best = sum(
        max(sum(key in case.keys for case in cases if case.injected.label == label) for key in keys)
        for label, keys in table.items()
    )
    return {
        "n": n,
        "search": of(sum(case.named for case in cases), n),
        "one_by_one": of(sum(case.one_by_one in case.keys for case in cases), n),
        "label": of(sum(case.label_says for case in cases), n),
        "best_label_table": of(best, n),
        "guess": round(sum(len(c.keys) for c in cases) / sum(changes), 4),
        "only_faults_named": sum(bool(c.told) and c.everything <= c.keys for c in cases),
        "replays_search": round(sum(c.found.replays for c in cases if c.found) / n, 1),
        "replays_one_by_one": round(sum(c.one_by_one_replays for c in cases) / n, 1),
    }


def _of_fault(fault: Fault, cases: Sequence[Case]) -> dict[str, Any]:
    mine = [case for case in cases if case.faults == (fault.name,)]
    found = [case for case in mine if case.in_population]
    return {
        "fault": fault.name,
        "component": fault.component,
        "setting": fault.key,
        "incidents": len(mine),
        "come_back_too_rarely": sum(case.rate < REPLAYABLE for case in mine),
        "good_breaks_too": sum(case.rate >= REPLAYABLE and not case.in_population for case in mine),
        "population": len(found),
        "named": sum(case.named for case in found),
        "label": sum(case.label_says for case in found),
    }


def _missed(case: Case) -> bool:
    return case.in_population and not case.named


def _miss(case: Case) -> dict[str, Any]:
    assert case.found is not None
    return {
        "faults": list(case.faults),
        "rule": case.injected.rule_id,
        "rate": round(case.rate, 4),
        "rate_good": round(case.rate_good, 4),
        "said": str(case.found).split(" (")[0],
    }


def _row(case: Case) -> dict[str, Any]:
    return {
        "fault": case.faults[0],
        "rule": case.injected.rule_id,
        "label": case.injected.label,
        "rate": round(case.rate, 4),
        "told": case.told,
        "one_by_one": case.one_by_one,
    }


# --------------------------------------------------------------------------- decisive turn


def decisive_turn_accuracy(
    *, per_scenario: int = 6, replays: int = 40, truth_replays: int = 100, seed: int = 7
) -> Experiment:
    """Count how often the decisive turn is found, beside pointing at the turn that broke the rule.

    Parameters
    ----------
    per_scenario, replays, truth_replays, seed : int
        As in :func:`decisive_turns`.
    """
    found = list(
        decisive_turns(
            per_scenario=per_scenario, replays=replays, truth_replays=truth_replays, seed=seed
        )
    )
    before = [entry for entry in found if entry.truth != entry.broke_at]
    return made(
        "decisive_turn_accuracy",
        seed,
        {"per_scenario": per_scenario, "replays": replays, "truth_replays": truth_replays},
        {
            "incidents": len(found),
            "search": of(sum(e.told == e.truth for e in found), len(found)),
            "turn_that_broke": of(sum(e.broke_at == e.truth for e in found), len(found)),
            "not_the_turn_that_broke": of(sum(e.told == e.truth for e in before), len(before)),
            "no_decisive_turn": sum(entry.truth is None for entry in found),
            "cases": [asdict(entry) for entry in found],
        },
    )


# --------------------------------------------------------------------------- blast radius


def blast_radius_coverage(
    *,
    incidents: int = 2_000,
    sessions: int = 1_000,
    artifacts: Path = ARTIFACTS,
    seed: int = 7,
) -> Experiment:
    """Count how often each interval for the blast radius holds the truth.

    Parameters
    ----------
    incidents : int
        Simulated incidents.
    sessions : int
        Sessions of traffic on each faulty release; the sample log comes beside them.
    artifacts : Path
        Where the sample log and its truth are.
    seed : int
        The run's seed.
    """
    logs = all_logs(artifacts, sessions=sessions, seed=seed)
    cases = list(simulated_incidents(logs, incidents=incidents, seed=seed))
    return made(
        "blast_radius_coverage",
        seed,
        {
            "incidents": incidents,
            "sessions": sessions,
            "level": 0.95,
            "least_positives": LEAST_POSITIVES,
            "sessions_of_an_incident": list(SESSIONS),
            "prevalence": list(PREVALENCE),
            "audit": list(AUDIT),
            "most_overlooked": MOST_OVERLOOKED,
            "most_false_alarms": MOST_FALSE_ALARMS,
        },
        {
            "all": _coverage(cases),
            "by_prevalence": {
                f"{low:.1%} to {high:.1%}": _coverage(
                    [case for case in cases if low <= case.truth / case.sessions < high]
                )
                for low, high in pairwise((0.0, *BANDS, 1.0))
            },
            "sources": dict(sorted(Counter(case.logged.source for case in cases).items())),
            "rules": dict(sorted(Counter(case.logged.rule_id for case in cases).items())),
            "first": [covered_row(case) for case in cases[:20]],
        },
    )


def _coverage(cases: Sequence[Covered]) -> dict[str, Any]:
    table: dict[str, Any] = {"incidents": len(cases)}
    for estimator in cases[0].said if cases else ():
        held = [case.covers(estimator) for case in cases]
        widths = [said[2] - said[1] for case in cases if (said := case.said[estimator]) is not None]
        table[estimator] = {
            **of(held.count(True), len(held)),
            "silent": held.count(None),
            "median_width": round(float(np.median(widths)), 1) if widths else None,
        }
    return table


# --------------------------------------------------------------------------- closing the loop


def loop_against_no_loop(*, runs: int = 6, rounds: int = 12, seed: int = 7) -> Experiment:
    """Take the same releases through the gate with and without learning from incidents.

    Parameters
    ----------
    runs : int
        Independent sequences of releases.
    rounds : int
        Releases of each.
    seed : int
        The first run's seed; the others follow it.
    """
    arms: dict[str, list[list[Round]]] = {"no loop": [], "loop": []}
    for number in range(runs):
        proposed = propose_releases(rounds, seed + number)
        for arm, held in arms.items():
            held.append(list(run_rounds(proposed, learn=arm == "loop", seed=seed + number)))
    fewer = [
        sum(r.escaped for r in without) - sum(r.escaped for r in loop)
        for without, loop in zip(arms["no loop"], arms["loop"], strict=True)
    ]
    return made(
        "loop_against_no_loop",
        seed,
        {"runs": runs, "rounds": rounds, "trials": TRIALS, "slips": list(SLIPS)},
        {
            **{arm: _of_arm(held) for arm, held in arms.items()},
            "fewer_escaped_a_run": _mean_and_interval(fewer),
            "by_round": {arm: _by_round(held) for arm, held in arms.items()},
            "first_run": {arm: [_round_row(r) for r in held[0]] for arm, held in arms.items()},
        },
    )


def _of_arm(held: Sequence[Sequence[Round]]) -> dict[str, Any]:
    rows = [entry for run in held for entry in run]
    slips = [entry for entry in rows if entry.slip]
    clean = [entry for entry in rows if not entry.slip]
    again = [
        entry
        for run in held
        for number, entry in enumerate(run)
        if entry.slip and any(e.slip == entry.slip and e.escaped for e in run[:number])
    ]
    return {
        "releases": len(rows),
        "slips_shipped": of(sum(entry.shipped for entry in slips), len(slips)),
        "clean_held_back": of(sum(not entry.shipped for entry in clean), len(clean)),
        "escaped_incidents": sum(entry.escaped for entry in rows),
        "recurrence": of(sum(e.recurred for e in again), len(again)) if again else None,
        "recurrence_at_most": (
            round(clopper_pearson_upper(sum(e.recurred for e in again), len(again)), 4)
            if again
            else None
        ),
        "held_out_violations": of(
            sum(entry.held_out for entry in rows), len(rows) * len(all_scenarios())
        ),
        "final_suite": round(sum(run[-1].suite for run in held) / len(held), 1),
        "conversations_a_round": round(sum(e.conversations for e in rows) / len(rows), 1),
    }


def _mean_and_interval(values: Sequence[int]) -> dict[str, Any]:
    """Return a mean over runs with its 95% t interval."""
    from scipy.special import stdtrit

    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return {"mean": round(mean, 2), "runs": n}
    half = stdtrit(n - 1, 0.975) * float(np.std(values, ddof=1)) / n**0.5
    return {
        "mean": round(mean, 2),
        "ci_low": round(mean - half, 2),
        "ci_high": round(mean + half, 2),
        "runs": n,
        "fewer_in": sum(value > 0 for value in values),
    }


def _by_round(held: Sequence[Sequence[Round]]) -> dict[str, list[float]]:
    columns = list(zip(*held, strict=True))
    return {
        "escaped": [round(sum(e.escaped for e in column) / len(held), 3) for column in columns],
        "suite": [round(sum(e.suite for e in column) / len(held), 3) for column in columns],
    }


def _round_row(entry: Round) -> dict[str, Any]:
    return asdict(entry)


def closing_the_loop(
    *, replays: int = 100, per_variant: int = 10, sessions: int = 100, seed: int = 7
) -> Experiment:
    """Close the sample incident: mitigations, the gate as it was, the gate with what was learnt.

    Parameters
    ----------
    replays, per_variant, sessions : int
        As in :func:`safety_lib.incident.closure.try_mitigations`.
    seed : int
        The run's seed.
    """
    good, bad, fixed = (load_version(name) for name in ("v1", "v2", "v3"))
    incident = read_incident(ARTIFACTS / "incident_example.json")
    seen = replay_incident(incident, bad, replays=40, seed=seed)
    tests = (*new_tests(seen, seed=seed), *sibling_tests(seen, seed=seed))
    kept_out = held_out(seen, tests)
    tried = try_mitigations(
        seen,
        mitigations(seen, good, fixed, bisect(seen, good)),
        kept_out,
        replays=replays,
        per_variant=per_variant,
        sessions=sessions,
        seed=seed,
    )
    before = single_turn_suite(good, bad, seed)
    grown = suite_of(merge(before.tests, tests), good, bad, seed)
    gates = [
        (name, run_gate(suite, good, version, trials=10, seed=seed, rules=without_budget()))
        for name, suite, version in (
            ("as it was", before, bad),
            ("grown", grown, bad),
            ("grown", grown, fixed),
        )
    ]
    return made(
        "closing_the_loop",
        seed,
        {"replays": replays, "per_variant": per_variant, "sessions": sessions},
        {
            "mitigations": [result.model_dump(mode="json") for result in tried],
            "held_out": len(kept_out),
            "tests": [
                {"family": t.family, "turns": len(t.attack_turns), "state": t.lifecycle}
                for t in tests
            ],
            "gates": [
                {
                    "suite": name,
                    "tests": gate.n_tests,
                    "families": gate.n_families,
                    "candidate": gate.candidate,
                    "verdict": gate.verdict,
                    "delta": gate.delta,
                    "ci_low": gate.ci_low,
                    "ci_high": gate.ci_high,
                    "p_value": gate.p_value,
                }
                for name, gate in gates
            ],
        },
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "root_cause_accuracy": root_cause_accuracy,
    "blast_radius_coverage": blast_radius_coverage,
    "closing_the_loop": closing_the_loop,
    "decisive_turn_accuracy": decisive_turn_accuracy,
    "loop_against_no_loop": loop_against_no_loop,
    "early_warning": early_warning,
    "detection_latency": detection_latency,
}
