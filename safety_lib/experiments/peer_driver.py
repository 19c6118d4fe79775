"""Asks another gate for its verdicts, in the environment where that gate is installed.

A script for a Python that knows nothing of this package: ``python peer_driver.py TOOL`` reads one
JSON object, ``{"settings": [...], "gates": [...]}``, and writes a verdict for each gate under each
setting with the share of the tests that it took. A gate has the passes of each test on both sides,
trial by trial, and the family of each test. Each tool is used as its documentation says.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

Passes = list[list[int]]  # of each test, trial by trial
Gate = dict[str, Any]
Setting = dict[str, Any]
Answer = tuple[str, float]
Asked = Callable[[Setting], Answer]


def statgate(gate: Gate) -> Asked:
    """Ask statgate: a test is a case, its trials are runs of it, which it averages."""
    from statgate import GateSettings, evaluate_gate
    from statgate.config import SequentialSettings
    from statgate.records import EvalRecord
    from statgate.sequential_runner import run_replay

    def records(passes: Passes) -> list[Any]:
        return [
            EvalRecord(case_id=f"t{test:02}", run_index=run, passed=bool(passed))
            for test, trials in enumerate(passes)
            for run, passed in enumerate(trials)
        ]

    sides = records(gate["baseline"]), records(gate["candidate"])
    words = {"SHIP": "OK", "BLOCK": "BLOCK", "INCONCLUSIVE": "WARN"}

    def ask(setting: Setting) -> Answer:
        rules = {key: value for key, value in setting.items() if key != "mode"}
        # The p-value of its permutations is shown beside the verdict and does not enter it.
        settings = GateSettings(metric="pass_rate", seed=42, permutations=100, **rules)
        if setting["mode"] == "compare":
            return words[evaluate_gate(*sides, settings).verdict], 1.0
        outcome = run_replay(*sides, settings, SequentialSettings(batch_size=1))
        return words[outcome.verdict], outcome.pairs_used / outcome.pairs_available

    return ask


def toolkit_eval_harness(gate: Gate) -> Asked:
    """Ask toolkit-eval-harness: a case scores the mean of its trials, as its importers reduce."""
    from toolkit_eval_harness.compare import CompareBudget, compare_reports
    from toolkit_eval_harness.report import EvalReport

    def report(passes: Passes) -> Any:
        scores = [sum(trials) / len(trials) for trials in passes]
        cases = [
            {"id": f"t{test}", "score": score, "passed": score >= 1, "tags": [family]}
            for test, (score, family) in enumerate(zip(scores, gate["families"], strict=True))
        ]
        whole = {"score": sum(scores) / len(scores)}
        return EvalReport(suite={"sha256": "same"}, summary=whole, cases=cases)

    baseline, candidate = report(gate["baseline"]), report(gate["candidate"])

    def ask(setting: Setting) -> Answer:
        budget = CompareBudget(iterations=2000, **setting)
        said = compare_reports(baseline=baseline, candidate=candidate, budget=budget)
        return ("OK" if said["passed"] else "BLOCK"), 1.0

    return ask


def evalsig(gate: Gate) -> Asked:
    """Ask EvalSig: it reads one epoch of an item, so each trial is an item, its test the cluster.

    It lets out gains. Asked whether the baseline gains on the candidate, it lets out a loss.
    """
    from evalsig.compare import gate as judge
    from evalsig.types import ItemResult, RunFrame

    def frame(name: str, passes: Passes) -> Any:
        items = [
            ItemResult(item_id=f"t{test:02}/{trial}", score=float(passed), cluster_id=f"t{test:02}")
            for test, trials in enumerate(passes)
            for trial, passed in enumerate(trials)
        ]
        return RunFrame(name, name, "suite", "passes", items)

    old, new = frame("baseline", gate["baseline"]), frame("candidate", gate["candidate"])

    def ask(setting: Setting) -> Answer:
        rules = {key: value for key, value in setting.items() if key != "asks"}
        if setting["asks"] == "does it gain":
            said = judge(old, new, n_resamples=1000, **rules).verdict.value
            return {"ALLOW": "OK", "REJECT": "BLOCK", "INCONCLUSIVE": "WARN"}[said], 1.0
        said = judge(new, old, n_resamples=1000, **rules).verdict.value
        return {"ALLOW": "BLOCK", "REJECT": "OK", "INCONCLUSIVE": "WARN"}[said], 1.0

    return ask


def regression_substrate(gate: Gate) -> Asked:
    """Ask regression-substrate: a test is an input, its trials replicates, its family a cluster.

    The outcomes are not judged by a model, so there is no error of a judge to carry.
    """
    import numpy as np
    from regression_substrate import gate as judge

    old, new = (np.array(gate[side], dtype=float) for side in ("baseline", "candidate"))
    codes = {family: code for code, family in enumerate(sorted(set(gate["families"])))}
    clusters = np.array([codes[family] for family in gate["families"]])
    words = {"SHIP": "OK", "SHIP_WITH_FLAGS": "OK", "REGRESSION": "BLOCK", "HOLD": "WARN"}

    def ask(setting: Setting) -> Answer:
        said = judge(old, new, clusters, rng=np.random.default_rng(0), **setting).verdict
        return words[said], 1.0

    return ask


ASKED: dict[str, Callable[[Gate], Asked]] = {
    "statgate": statgate,
    "toolkit-eval-harness": toolkit_eval_harness,
    "evalsig": evalsig,
    "regression-substrate": regression_substrate,
}


def answers(tool: str, gates: list[Gate], settings: list[Setting]) -> list[list[Answer]]:
    """Ask a tool about every gate under every setting.

    Parameters
    ----------
    tool : str
        Its name.
    gates : list
        Each the outcomes of a baseline and of a candidate.
    settings : list
        Each the options of one call.

    Returns
    -------
    list of list
        For each gate a verdict under each setting, OK, WARN or BLOCK, and the share of the tests
        that it took.
    """
    asked = (ASKED[tool](gate) for gate in gates)
    return [[ask(setting) for setting in settings] for ask in asked]


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(answers(sys.argv[1], given["gates"], given["settings"]), sys.stdout)
