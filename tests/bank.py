"""Forty seeds of the whole way, from the search to the trials of the gate, kept as trials.

Each line is a suite made on a fresh seed at the default parameters, and what the gate held of
every version after v1 until its answer was in. Reading them costs nothing, so every run of the
tests judges all of them; that they are what the code makes is shown on some of the seeds.
``python tests/bank.py`` writes them again, which takes five minutes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from factories import NORTHWIND

from safety_lib.gate.decide import Judgement, decide
from safety_lib.gate.looks import MOST_TRIALS, LookPlan
from safety_lib.gate.release_gate import run_trials
from safety_lib.gate.rules import load_rules
from safety_lib.gate.trials import Case, CaseTrials, Sampler, Trials, cases_of
from safety_lib.records import Execution, Outcome, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Known, Run
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version

BANK = Path(__file__).with_name("bank.jsonl")
SEEDS = tuple(range(100, 140))
VERSIONS = {name: load_version(name, "northwind") for name in ("v1", "v2", "v3")}
RULES = load_rules()
PLAN = LookPlan(MOST_TRIALS, "shared", RULES.looks)  # the simulated model is one of shared luck
LETTERS: dict[Outcome, str] = {"safe": ".", "violation": "x", "error": "e", "undetermined": "u"}
WORDS = {letter: outcome for outcome, letter in LETTERS.items()}
FIELDS = ("case_id", "stratum", "family", "severity", "split")
Line = dict[str, Any]


def suite_of(seed: int) -> Suite:
    """Search v1 and v2 and make the suite, as the first two notebooks do."""
    both = VERSIONS["v1"], VERSIONS["v2"]
    found = discover(*both, run=Run(seed=seed)).artifact()
    return generate_suite(found, {v.version: v for v in both}, run=Run(seed=seed))


def line_of(suite: Suite, seed: int, known: Known) -> Line:
    """Run the gate's trials of each version after v1, and return them as the bank holds them."""
    cases = cases_of(suite, NORTHWIND, PLAN.cap, RULES.control_trials)
    releases = {}
    for name, version in VERSIONS.items():
        sampler = Sampler(cases, VERSIONS["v1"], version, Run(seed=seed, known=known))
        ran = run_trials(cases, (), PLAN, sampler, RULES)
        releases[name] = {
            "calls": [[proof.model_calls, proof.tool_calls] for proof in ran.executions],
            "differs": len({proof.transcript_sha256 for proof in ran.executions}) == 2,
            "trials": list(map(_letters, ran.cases)),
            "fresh": {entry.case.case_id: _letters(entry) for entry in ran.confirmations},
        }
    described = [" ".join(getattr(case, name) for name in FIELDS) for case in cases]
    return {"seed": seed, "cases": described, "releases": releases}


def release(line: Line, candidate: str) -> Trials:
    """Return the trials of one version after v1 from a line of the bank."""
    held = line["releases"][candidate]
    cases = [_case(text) for text in line["cases"]]
    by_id = {case.case_id: case for case in cases}
    tried = tuple(_entry(case, arms) for case, arms in zip(cases, held["trials"], strict=True))
    fresh = tuple(_entry(by_id[name], arms) for name, arms in held["fresh"].items())
    executions = []
    for version, role in (("v1", "baseline"), (candidate, "candidate")):
        outcomes = [outcome for entry in (*tried, *fresh) for outcome in getattr(entry, role)]
        model_calls, tool_calls = held["calls"][len(executions)]
        executions.append(
            Execution(
                version=version,
                config_sha256=VERSIONS[version].sha256,
                conversations=len(outcomes),
                turns=len(outcomes),
                model_calls=model_calls,
                tool_calls=tool_calls,
                errors=outcomes.count("error"),
                undetermined=outcomes.count("undetermined"),
                transcript_sha256=role if held["differs"] else "",
            )
        )
    return Trials(tried, (executions[0], executions[1]), fresh)


def judged(line: Line, candidate: str) -> Judgement:
    """Judge one version after v1 by what the bank holds."""
    changes = VERSIONS["v1"].changes_to(VERSIONS[candidate])
    changed = tuple(change.key for change in changes)
    return decide(release(line, candidate), RULES, PLAN, line["seed"], changed=changed)


def lines() -> dict[int, Line]:
    """Return the lines of the bank by their seeds."""
    read = map(json.loads, BANK.read_text(encoding="utf-8").splitlines())
    return {line["seed"]: line for line in read}


def _letters(entry: CaseTrials) -> str:
    arms = (
        "".join(LETTERS[outcome] for outcome in arm) for arm in (entry.baseline, entry.candidate)
    )
    return "/".join(arms)


def _case(text: str) -> Case:
    described = cast(Any, dict(zip(FIELDS, text.split(" "), strict=True)))
    return Case(name="", category="", rule_id="", trials=PLAN.cap, **described)


def _entry(case: Case, letters: str) -> CaseTrials:
    base, cand = ([WORDS[letter] for letter in arm] for arm in letters.split("/"))
    return CaseTrials(case, base, cand)


if __name__ == "__main__":
    with BANK.open("w", encoding="utf-8") as bank:
        for number in SEEDS:
            bank.write(json.dumps(line_of(suite_of(number), number, {})) + "\n")
