"""What a run will ask of its model, counted by running it on the simulated one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from safety_lib.agent.backends.calls import Calls, counting_calls
from safety_lib.pipeline.plan import STAGES, PipelineError, Plan
from safety_lib.pipeline.run import run_notebooks


def dry_run(plan: Plan) -> Calls:
    """Run the notebooks of a plan on the simulated model, keep nothing, and count its calls.

    A request that a recording would answer is counted once, as the model behind it is asked once.

    Parameters
    ----------
    plan : Mapping
        Stage to parameters, as :func:`~safety_lib.pipeline.load_plan` returns them; what its
        notebooks read beside each other's results is given by paths.

    Returns
    -------
    Calls

    Raises
    ------
    PipelineError
        As :func:`~safety_lib.pipeline.run_notebooks`.
    """
    with TemporaryDirectory(prefix="dry-") as folder, counting_calls() as so_far:

        def simulated(name: str, value: object) -> object:
            given = str(value)
            if name == "model":
                recorded = f"record:{Path(folder) / 'tape.jsonl'}:simulated"
                return recorded if given.startswith("record:") else "simulated"
            return "model:simulated" if given.startswith("model:") else value

        dry = {
            stage: {name: simulated(name, value) for name, value in parameters.items()}
            for stage, parameters in plan.items()
        }
        try:
            run_notebooks(STAGES, dry, folder)
        except PipelineError as error:  # without the copy to look at, which is gone
            said = str(error).partition("; see ")[0]
            raise PipelineError(f"on the simulated model, {said}") from error
        return so_far()
