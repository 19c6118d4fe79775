"""Run the four notebooks in order, from one plan, through papermill.

What papermill forgives is refused here: a parameter that no notebook takes, a value of another
type, a cell that ended the run early. The kernel of the next notebook starts, and imports what that
notebook imports, while the current one computes; whatever happens, no kernel outlives the run.
"""

from safety_lib.pipeline.demo import run_demo
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, PipelineError, Plan, load_plan
from safety_lib.pipeline.refresh import refresh_notebooks
from safety_lib.pipeline.run import CellEvent, StageRun, run_notebooks

__all__ = [
    "NOTEBOOKS",
    "STAGES",
    "CellEvent",
    "PipelineError",
    "Plan",
    "StageRun",
    "load_plan",
    "refresh_notebooks",
    "run_demo",
    "run_notebooks",
]
