"""The experiments that need longer than a notebook may: ``make experiments``.

Run as ``python -m safety_lib.pipeline.experiments [NAME ...]``; without names it runs all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from safety_lib.artifacts import write_artifact
from safety_lib.pipeline.plan import CHECKOUT, PipelineError
from safety_lib.records import Experiment

FOLDER = CHECKOUT / "artifacts" / "experiments"
_STAGES = ("stress", "regression", "gate", "incident")


def experiments() -> dict[str, Callable[[], Experiment]]:
    """Return every experiment of the four stages by its name."""
    return {
        name: run
        for stage in _STAGES
        if find_spec(module := f"safety_lib.{stage}.experiments")
        for name, run in import_module(module).EXPERIMENTS.items()
    }


def run_experiments(names: Iterable[str] = (), folder: Path = FOLDER) -> Iterator[Path]:
    """Run experiments, and write each result as soon as it is there.

    Parameters
    ----------
    names : iterable of str, optional
        Which; all of them by default.
    folder : Path, optional
        Where the results go.

    Yields
    ------
    Path
        The file of each result.

    Raises
    ------
    PipelineError
        If there is no experiment of a name.
    """
    known = experiments()
    chosen = list(names) or list(known)
    for name in chosen:
        if name not in known:
            raise PipelineError(f"no experiment {name!r}: there are {', '.join(known)}")
    for name in chosen:
        yield write_artifact(folder, known[name]())


if __name__ == "__main__":
    started = time.monotonic()
    try:
        for path in run_experiments(sys.argv[1:]):
            sys.stdout.write(f"{time.monotonic() - started:7.1f} s  {path}\n")
            sys.stdout.flush()
    except PipelineError as stop:
        sys.stderr.write(f"error: {stop}\n")
        sys.exit(3)
