"""Twenty seeds of the whole way, from the search to the trials of the gate, kept as trials.

Reading them costs nothing, so every run of the tests judges all sixty releases; that they are what
the code makes is shown on some of the seeds. ``python tests/bank.py`` writes them again, which
takes a minute and a half.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from factories import NORTHWIND

from safety_lib.gate.decide import suspected
from safety_lib.gate.rules import load_rules
from safety_lib.gate.trials import Case, CaseTrials, Trials, cases_of, run_trials
from safety_lib.records import Execution, Outcome, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Known, Run
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version

BANK = Path(__file__).with_name("bank.jsonl")
SEEDS = tuple(range(100, 120))
VERSIONS = {name: load_version(name, "northwind") for name in ("v1", "v2", "v3")}
LETTERS: dict[Outcome, str] = {"safe": ".", "violation": "x", "error": "e", "undetermined": "u"}
WORDS = {letter: outcome for outcome, letter in LETTERS.items()}
FIELDS = ("case_id", "stratum", "family", "severity", "split")
Line = dict[str, Any]


def suite_of(seed: int) -> Suite:
    """Search v1 and v2 and make the suite, as the first two notebooks do."""
    both = VERSIONS["v1"], VERSIONS["v2"]
    found = discover(*both, run=Run(seed=seed), rollouts=50).artifact()
    return generate_suite(found, {v.version: v for v in both}, run=Run(seed=seed))


def line_of(suite: Suite, seed: int, known: Known) -> Line:
    """Run the gate's trials of each version after v1, and return them as the bank holds them."""
    ran = {name: _trials(suite, seed, name, known) for name in VERSIONS}
    cases = zip(*(trials.cases for trials in ran.values()), strict=True)
    fresh = {name: trials.confirmations for name, trials in ran.items()}
    return {
        "seed": seed,
        "cases": [_text(of[0], *(entry.candidate for entry in of)) for of in cases],
        "confirmed": {
            name: [_text(entry, entry.baseline, entry.candidate) for entry in entries]
            for name, entries in fresh.items()
        },
    }


def release(line: Line, candidate: str) -> Trials:
    """Return the trials of one version after v1 from a line of the bank."""
    arms = 0, list(VERSIONS).index(candidate)
    cases = tuple(_entry(text, arms) for text in line["cases"])
    fresh = tuple(_entry(text, (0, 1)) for text in line["confirmed"][candidate])
    sides = [entry.baseline for entry in cases], [entry.candidate for entry in cases]
    first, second = (_proof([o for outcomes in side for o in outcomes]) for side in sides)
    return Trials(cases, (first, second), fresh)


def lines() -> dict[int, Line]:
    """Return the lines of the bank by their seeds."""
    read = map(json.loads, BANK.read_text(encoding="utf-8").splitlines())
    return {line["seed"]: line for line in read}


def _trials(suite: Suite, seed: int, candidate: str, known: Known) -> Trials:
    rules = load_rules()
    both = VERSIONS["v1"], VERSIONS[candidate]
    cases = cases_of(suite, NORTHWIND, 10, rules.control_trials)
    ran = run_trials(cases, *both, run=Run(seed=seed, known=known))
    fresh = suspected(ran.cases, rules)
    again = run_trials(fresh, *both, run=Run(seed=seed, known=known), stream="confirm")
    return replace(ran, confirmations=again.cases)


def _text(entry: CaseTrials, *arms: list[Outcome]) -> str:
    described = (getattr(entry.case, name) for name in FIELDS)
    return " ".join((*described, *("".join(LETTERS[o] for o in arm) for arm in arms)))


def _entry(text: str, arms: tuple[int, int]) -> CaseTrials:
    parts = text.split(" ")
    named: dict[str, Any] = dict(zip(FIELDS, parts, strict=False))
    base, cand = ([WORDS[letter] for letter in parts[len(FIELDS) + arm]] for arm in arms)
    case = Case(name="", category="", rule_id="", trials=len(base), **named)
    return CaseTrials(case, base, cand)


def _proof(outcomes: list[Outcome]) -> Execution:
    return Execution(
        version="",
        config_sha256="",
        conversations=len(outcomes),
        model_calls=len(outcomes),
        errors=outcomes.count("error"),
        transcript_sha256="",
    )


if __name__ == "__main__":
    with BANK.open("w", encoding="utf-8") as bank:
        for number in SEEDS:
            bank.write(json.dumps(line_of(suite_of(number), number, {})) + "\n")
