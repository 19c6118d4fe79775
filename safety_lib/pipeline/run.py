"""Notebooks in order through papermill; what papermill forgives is refused."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from safety_lib.pipeline.kernels import Kernel, code_cells, kernels
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, PipelineError, message_line, notebook_of

EventKind = Literal["started", "cell", "finished"]

CELL_TIMEOUT = 3600
CLIENT: Mapping[str, Any] = {
    "kernel_name": "python3",
    "timeout": CELL_TIMEOUT,
    "startup_timeout": 120,
    "coalesce_streams": True,  # else the pieces depend on when the kernel flushed
}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (float, int),
    "str": str,
    "bool": bool,
}


@dataclass(frozen=True)
class StageRun:
    """One notebook that ran to its end."""

    stage: str
    notebook: Path
    output: Path
    seconds: float


@dataclass(frozen=True)
class CellEvent:
    """Something to show while the notebooks run: a stage began, a cell is done, a stage is done."""

    kind: EventKind
    stage: str
    cells_done: int
    cells: int


def run_notebooks(
    stages: Iterable[str],
    parameters: Mapping[str, Mapping[str, Any]],
    artifacts: str | Path,
    *,
    on_event: Callable[[CellEvent], None] | None = None,
    folder: Path = NOTEBOOKS,
) -> list[StageRun]:
    """Execute the notebooks of some stages, in the order of the loop.

    Parameters
    ----------
    stages : iterable of str
        Keys of ``STAGES``.
    parameters : Mapping
        For each stage its parameters, as :func:`~safety_lib.pipeline.load_plan` returns them.
    artifacts : str or Path
        Where the notebooks read and write; the executed copies go to ``runs`` below it.
    on_event : callable, optional
        Told of each stage and cell.
    folder : Path, optional
        Where the notebooks are.

    Returns
    -------
    list of StageRun

    Raises
    ------
    PipelineError
        Before anything runs, if a notebook, a parameter or a type is wrong. Later, at the first
        notebook that stops, with its cell, its error and the path of the executed copy.
    """
    chosen = set(stages)
    if unknown := chosen - STAGES.keys():
        raise PipelineError(f"unknown stage {min(unknown)!r}: use {', '.join(STAGES)}")
    todo = {stage: notebook_of(stage, folder) for stage in STAGES if stage in chosen}
    artifacts = Path(artifacts).resolve()
    (artifacts / "runs").mkdir(parents=True, exist_ok=True)
    done = []
    # The first kernels start before papermill is imported: both take seconds.
    with kernels(list(todo.values())) as take, _quiet():
        given = {
            stage: {**parameters.get(stage, {}), "artifacts_dir": str(artifacts)} for stage in todo
        }
        for stage, notebook in todo.items():
            _check(notebook, given[stage])
        for stage, notebook in todo.items():
            started = time.monotonic()
            output = artifacts / "runs" / notebook.name
            tell = _teller(stage, notebook, on_event)
            tell("started")
            _execute(notebook, output, given[stage], take(), tell)
            tell("finished")
            done.append(StageRun(stage, notebook, output, time.monotonic() - started))
    return done


def _check(notebook: Path, given: Mapping[str, Any]) -> None:
    try:
        takes = import_papermill().inspect_notebook(_literal(notebook))
    except Exception as error:  # nbformat and papermill raise a dozen kinds
        raise PipelineError(f"{notebook}: cannot be read: {message_line(error)}") from error
    if not takes:
        raise PipelineError(f"{notebook.name} has no cell tagged 'parameters' that can be read")
    for name, value in given.items():
        if name not in takes:
            raise PipelineError(f"{notebook.name} takes no {name!r}: it takes {', '.join(takes)}")
        wanted = takes[name]["inferred_type_name"]
        fits = isinstance(value, _TYPES.get(wanted, object))
        if not fits or (isinstance(value, bool) and wanted in ("int", "float")):
            shown = message_line(repr(value))
            raise PipelineError(f"{notebook.name} takes {name} as {wanted}, not {shown}")


def _teller(
    stage: str, notebook: Path, on_event: Callable[[CellEvent], None] | None
) -> Callable[[EventKind], None]:
    cells = len(code_cells(notebook)) + 1  # and the one that papermill adds
    done = 0

    def tell(kind: EventKind) -> None:
        nonlocal done
        done += kind == "cell"
        if on_event:
            on_event(CellEvent(kind, stage, done, cells))

    return tell


def _execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    kernel: Kernel,
    tell: Callable[[EventKind], None],
) -> None:
    papermill = import_papermill()
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    at, see = f"{notebook.stem} stopped at", f"; see {output}"
    try:
        executed = papermill.execute_notebook(
            _literal(notebook),
            _literal(output),
            parameters=dict(parameters),
            engine_name=_engine(),
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,  # saving after each cell costs more than the cell
            kernel=kernel,
            save_to=output,
            on_cell_executed=lambda **_: tell("cell"),
        )
    except PapermillExecutionError as error:
        said = f"{error.ename}: {message_line(error.evalue)}"
        raise PipelineError(f"{at} In [{error.exec_count}]: {said}{see}") from error
    except CellTimeoutError as error:
        said = f"no end after {CELL_TIMEOUT} seconds"
        raise PipelineError(f"{at} {_last_cell(output)}: {said}{see}") from error
    except (DeadKernelError, RuntimeError) as error:
        said = message_line(f"{error} {kernel.last_words()}")
        raise PipelineError(f"{at} {_last_cell(output)}: {said}{see}") from error
    # papermill takes sys.exit(0) for success and leaves out the rest of the notebook.
    for cell in executed.cells:
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise PipelineError(f"{notebook.stem} ended before its last cell{see}")


def _last_cell(output: Path) -> str:
    """Name the cell that papermill was at, in the copy that was saved on an error."""
    try:
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return "its start"
    # A kernel that dies at once has not even said which number it gave the cell.
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    began = [cell["metadata"].get("papermill", {}).get("start_time") for cell in code]
    last = sum(time is not None for time in began)
    return f"In [{last}]" if last else "its start"


@cache
def _engine() -> str:
    """Register the engine that runs a notebook on a kernel that was started before."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.iorw import write_ipynb

    class Engine(NBClientEngine):  # type: ignore[misc]
        @classmethod
        def execute_managed_notebook(
            cls,
            nb_man: Any,
            kernel_name: str,
            *,
            kernel: Kernel,
            save_to: Path,
            on_cell_executed: Callable[..., None],
            **_: Any,
        ) -> None:
            hooks = {"on_cell_executed": on_cell_executed, "log": logging.getLogger("papermill")}
            client = PapermillNotebookClient(nb_man, kernel.manager, **CLIENT, **hooks)
            try:
                with kernel.running(client):
                    client.execute()
            except BaseException:
                # papermill saves after a failed cell, but not after Ctrl-C or a dead kernel.
                write_ipynb(nb_man.nb, str(save_to))
                raise

    papermill_engines.register("ahead", Engine)
    return "ahead"


@cache
def import_papermill() -> Any:
    """Import papermill without the grammar of international addresses, which takes a second."""
    modules = cast("dict[str, Any]", sys.modules)
    unused = "rfc3987_syntax"  # jsonschema does without it when it cannot be imported
    if absent := unused not in modules:
        modules[unused] = None
    try:
        import papermill
    finally:
        if absent:
            del modules[unused]
    return papermill


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep papermill's log away from the terminal: what it has to say is in the exception."""
    log = logging.getLogger("papermill")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _literal(path: Path) -> str:
    """Return a path that papermill, which formats paths, leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")
