"""The whole loop, told stage by stage."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from safety_lib.agent.versions import load_version
from safety_lib.artifacts import CHECKOUT, read_artifact
from safety_lib.pipeline.plan import STAGES, PipelineError, Plan, load_plan
from safety_lib.pipeline.run import Event, StageRun, run_notebooks
from safety_lib.records import GateReport, IncidentReport, StressFailures, Suite
from safety_lib.report.documents import write_documents
from safety_lib.report.summary import (
    TITLES,
    gate_lines,
    incident_lines,
    loop_lines,
    stress_lines,
    suite_lines,
)

REAL = ("local", "openai:", "record:")  # models that take seconds, or money, a call
_PAID = re.compile(r"(record:.*:)?openai:")

_SAMPLES = CHECKOUT / "artifacts"


def run_demo(
    *,
    rollouts: int | None = None,
    baseline: str | None = None,
    candidate: str | None = None,
    artifacts: Path = _SAMPLES,
    seed: int | None = None,
    model: str = "",
    say: Callable[[str], object] = print,
    agrees: Callable[[str], bool] = lambda _: True,
) -> list[StageRun]:
    """Run the four notebooks and say, stage by stage, what came out.

    Parameters
    ----------
    rollouts, baseline, candidate, seed : optional
        In place of what ``demo.yaml`` says.
    artifacts : Path, optional
        Where results go. A sample input that is not there is taken from the checkout.
    model : str, optional
        In place of the model that each version names.
    say : callable, optional
        Takes each line of the summary.
    agrees : callable, optional
        Asked before a run that makes many calls of a paid model; nothing is written before.

    Returns
    -------
    list of StageRun

    Raises
    ------
    PipelineError
        As :func:`~safety_lib.pipeline.run_notebooks`, and if the cost is not agreed to.
    """
    from tqdm import tqdm

    overrides = {
        "rollouts": rollouts,
        "baseline": baseline,
        "candidate": candidate,
        "seed": seed,
    }
    tape = artifacts / "runs" / "local.jsonl"
    # The local model has one answer to a request and the gates of stages 3 and 4 share an arm: what
    # was asked once in this run is not asked again.
    asked = f"record:{tape}:local" if model == "local" else model
    plan = load_plan(asked, overrides)
    models = _models(plan, asked)
    if any(name.startswith(REAL) for name in models):
        from safety_lib.pipeline.cost import CONFIRM_ABOVE, cost_of

        cost = cost_of(plan)
        say(f"{cost}\n")
        paid = any(_PAID.match(name) for name in models)
        if paid and cost.about > CONFIRM_ABOVE and not agrees(f"Make about {cost.about:,} calls?"):
            raise PipelineError("nothing was run; a smaller plan has fewer rollouts or trials")
    if model == "local":
        tape.unlink(missing_ok=True)
    for name in ("incident", "log"):
        sample = _SAMPLES / plan["incident_replay"][name]
        if sample.is_file() and not (artifacts / sample.name).exists():
            plan["incident_replay"][name] = str(sample)
    with tqdm(unit=" cells", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(event: Event) -> None:
            if event.kind == "cell":
                bar.update()
                return
            with tqdm.external_write_mode():
                if event.kind == "started":
                    say(f"=== {TITLES[STAGES[event.stage]]} ===")
                else:
                    for line in [*_summary(event.stage, artifacts), ""]:
                        say(line)
            if event.kind == "started":
                bar.reset(event.cells)

        runs = run_notebooks(STAGES, plan, artifacts, on_event=show)
    write_documents(artifacts)
    for line in loop_lines(
        read_artifact(artifacts, StressFailures),
        read_artifact(artifacts, Suite),
        read_artifact(artifacts, GateReport),
        read_artifact(artifacts, IncidentReport),
    ):
        say(line)
    return runs


def _summary(stage: str, artifacts: Path) -> list[str]:
    folder = str(artifacts)
    if stage == "stress_testing":
        return stress_lines(read_artifact(artifacts, StressFailures), folder)
    if stage == "regression":
        return suite_lines(read_artifact(artifacts, Suite), folder)
    if stage == "release_gate":
        return gate_lines(read_artifact(artifacts, GateReport), folder)
    return incident_lines(read_artifact(artifacts, IncidentReport))


def _models(plan: Plan, model: str) -> list[str]:
    stage = plan["release_gate"]
    return [model or load_version(stage[side]).model.backend for side in ("baseline", "candidate")]
