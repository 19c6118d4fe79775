"""The whole loop, told stage by stage."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_lib.agent.backends.answers import keeping_answers
from safety_lib.agent.backends.calls import Calls, most_calls
from safety_lib.artifacts import CHECKOUT, folder_of, read_artifact
from safety_lib.pipeline.dry_run import dry_run
from safety_lib.pipeline.plan import STAGES, PipelineError, Plan, load_plan
from safety_lib.pipeline.run import CellEvent, StageRun, run_notebooks
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
from safety_lib.world import load_version, load_world

CONFIRM_ABOVE = 1_000  # calls, of a model that somebody is paid for
_PAID = re.compile(r"(record:.*:)?openai:")

_TAPE = "local.jsonl"
_SAMPLES = CHECKOUT / "artifacts"


def run_demo(
    *,
    overrides: Mapping[str, Any] | None = None,
    artifacts: Path = _SAMPLES,
    model: str = "",
    say: Callable[[str], object] = print,
    agrees: Callable[[str], bool] = lambda _: True,
) -> list[StageRun]:
    """Run the four notebooks and say, stage by stage, what came out.

    :func:`~safety_lib.agent.backends.calls.counting_calls` around it limits the calls of all four.

    Parameters
    ----------
    overrides : Mapping, optional
        Parameters in place of what ``demo.yaml`` says, as
        :func:`~safety_lib.pipeline.load_plan` takes them.
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
        As :func:`~safety_lib.pipeline.run_notebooks`, and if the calls are not agreed to.
    """
    from tqdm import tqdm

    plan = plan_into(artifacts, overrides or {}, model)
    agree_to_calls([(plan, 1)], say, agrees)
    if model == "local":
        (artifacts / "runs" / _TAPE).unlink(missing_ok=True)
    with tqdm(unit=" cells", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(event: CellEvent) -> None:
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

        with keeping_answers(artifacts / "runs", "demo", say):
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


def plan_into(artifacts: Path, overrides: Mapping[str, Any], model: str = "") -> Plan:
    """Return the plan of the four notebooks for a folder, with the inputs that it will find.

    Parameters
    ----------
    artifacts : Path
        Where results will go. A sample input that is not there is taken from the checkout.
    overrides : Mapping
        As :func:`~safety_lib.pipeline.load_plan` takes them.
    model : str, optional
        In place of the model that each version names.

    Raises
    ------
    PipelineError
        As :func:`~safety_lib.pipeline.load_plan`.
    """
    plan = load_plan(_asked(model, artifacts), overrides)
    home = load_world(plan["release_gate"]["world"])
    for name in ("incident", "log"):
        plan["incident_replay"][name] = _input(plan["incident_replay"][name], artifacts, home.name)
    return plan


def _asked(model: str, artifacts: Path) -> str:
    # The local model has one answer to a request and the gates of stages 3 and 4 share an arm: what
    # was asked once in this run is not asked again.
    return f"record:{artifacts / 'runs' / _TAPE}:local" if model == "local" else model


def agree_to_calls(
    plans: Sequence[tuple[Plan, int]], say: Callable[[str], object], agrees: Callable[[str], bool]
) -> None:
    """Say what plans will ask of a paid model, and go on only if that is agreed to.

    Parameters
    ----------
    plans : sequence of (Plan, int)
        What will be run, and how often on other seeds.
    say : callable
        Takes each line of what is announced.
    agrees : callable
        Asked before many calls.

    Raises
    ------
    PipelineError
        If the calls are not agreed to, or if a plan stops on the simulated model.
    """
    paid = [(plan, n) for plan, n in plans if any(_PAID.match(name) for name in _models(plan))]
    if not paid:
        return
    say("Counting on the simulated model what this will ask...")
    each = [(dry_run(plan), n) for plan, n in paid]
    counted = Calls(
        number=sum(n * calls.number for calls, n in each),
        tokens_in=sum(n * calls.tokens_in for calls, n in each),
        tokens_out=sum(n * calls.tokens_out for calls, n in each),
    )
    say(f"{_announced(counted)}\n")
    expected = min(counted.number, most_calls() or counted.number)
    question = f"Make about {_rough(expected)} calls?"
    if expected > CONFIRM_ABOVE and not agrees(question):
        raise PipelineError("nothing was run; a smaller plan has fewer rollouts or trials")


def _summary(stage: str, artifacts: Path) -> list[str]:
    folder = str(artifacts)
    if stage == "stress_testing":
        return stress_lines(read_artifact(artifacts, StressFailures), folder)
    if stage == "regression":
        return suite_lines(read_artifact(artifacts, Suite), folder)
    if stage == "release_gate":
        return gate_lines(read_artifact(artifacts, GateReport), folder)
    return incident_lines(read_artifact(artifacts, IncidentReport))


def _models(plan: Plan) -> list[str]:
    model = str(plan["release_gate"]["model"])
    world = str(plan["release_gate"]["world"])
    versions = (plan["release_gate"][side] for side in ("baseline", "candidate"))
    attacker = plan["stress_testing"]["attacker"].removeprefix("model:")
    return [
        *(
            model or str(load_version(version, world).flat.get("model.backend", ""))
            for version in versions
        ),
        attacker,
    ]


def _input(name: str, artifacts: Path, world: str) -> str:
    """Return the path of an input file: among the artifacts, as it is, or the checkout's sample."""
    own = CHECKOUT / folder_of(world) / name
    for path in (artifacts / name, Path(name), own):
        if path.exists():
            return str(path.resolve())
    return name


def _announced(counted: Calls) -> str:
    calls, *tokens = map(_rough, (counted.number, counted.tokens_in, counted.tokens_out))
    said = (
        f"If it fails as often as the simulated one, the model is asked about {calls} times,\n"
        f"{tokens[0]} tokens in and {tokens[1]} out; the less it fails, the less often. "
    )
    if not (most := most_calls()):
        return f"{said}--max-calls N sets a limit."
    return f"{said}It stops after {most:,}{', before its end' if most < counted.number else ''}."


def _rough(n: int) -> str:
    two_digits = round(n, 2 - len(str(n)))
    return f"{two_digits / 1e6:g} million" if n >= 1e6 else f"{two_digits:,}"
