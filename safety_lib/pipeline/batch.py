"""The four notebooks over a grid of parameters: in parallel, a folder each, resumable.

Every cell is a process of its own, which runs the notebooks into the cell's folder and then seals
it: the seal says from what, by one hash over parameters, world, versions, inputs and code, and to
which results. A cell whose seal still holds is read and not run, so a batch that was killed goes on
with what it lacks, and a grid that grew runs only what is new. What a cell came to is read from its
artifacts in every case; so the same grid gives the same bytes, whoever ran what and when.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safety_lib.agent.backends.answers import keeping_answers
from safety_lib.agent.backends.calls import calls_left
from safety_lib.artifacts import ArtifactError, read_artifact, write_artifact
from safety_lib.files import locked, write_text
from safety_lib.pipeline.demo import agree_to_calls, plan_into
from safety_lib.pipeline.grid import GridCell, name_of_cell
from safety_lib.pipeline.plan import STAGES, PipelineError, message_line
from safety_lib.pipeline.run import CellEvent, run_notebooks
from safety_lib.pipeline.whole_run import LoopResults, read_loop
from safety_lib.pipeline.workers import belong_to_the_parent, cores
from safety_lib.records import Batch, CellFindings, CellResult, CellSeal, GridValue
from safety_lib.report.documents import write_documents

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_STAGES_OF_A_CELL = len(STAGES)
_OVER = ("stress_failures.json", "regression_tests.json", "gate_report.json")


@dataclass(frozen=True)
class _Running:
    """A process that holds one cell, and what it tells."""

    cell: GridCell
    process: SpawnProcess
    told: Connection


@dataclass
class _Outcomes:
    """What came out so far, by the name of the cell."""

    found: dict[str, CellFindings] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def plan_cell(
    folder: Path, asked: Mapping[str, GridValue], overrides: Mapping[str, Any] | None = None
) -> GridCell:
    """Return the cell of a batch that some parameters make.

    Parameters
    ----------
    folder : Path
        Of the batch.
    asked : Mapping
        Parameter to value, as they stand in the name of the cell.
    overrides : Mapping, optional
        What stands behind them, such as the absolute path of a file, where that is another value.

    Raises
    ------
    PipelineError
        As :func:`~safety_lib.pipeline.load_plan`.

    Examples
    --------
    >>> cell = plan_cell(Path("batch"), {"candidate": "v3", "seed": 2})
    >>> cell.name, cell.plan["regression"]["seed"]
    ('candidate=v3,seed=2', 2)
    """
    name = name_of_cell(asked)
    given = {**asked, **(overrides or {})}
    model = str(given.pop("model", ""))
    return GridCell(name, dict(asked), plan_into(folder / name, given, model))


def run_batch(
    cells: Sequence[GridCell],
    folder: Path,
    *,
    workers: int = 0,
    say: Callable[[str], object] = print,
    agrees: Callable[[str], bool] = lambda _: True,
) -> Batch:
    """Run the four notebooks for every cell that has no result yet, and put them all together.

    Parameters
    ----------
    cells : sequence of GridCell
        In the order of the batch.
    folder : Path
        Where ``batch.json`` and ``batch.csv`` go, and a folder for each cell.
    workers : int, optional
        Cells that run at the same time; by default, and at most, one a core.
    say : callable, optional
        Takes a line for each cell that ends.
    agrees : callable, optional
        Asked before a batch that makes many calls of a paid model; nothing is written before.

    Returns
    -------
    Batch
        As it was written. A cell that stopped has an error in place of findings.

    Raises
    ------
    PipelineError
        If the calls are not agreed to.
    """
    outcomes = _Outcomes()
    keys = {cell.name: cell.key for cell in cells}
    for cell in cells:
        if loop := _finished(folder / cell.name, keys[cell.name]):
            outcomes.found[cell.name] = loop.findings
    todo = [cell for cell in cells if cell.name not in outcomes.found]
    if done := len(cells) - len(todo):
        say(f"{done} of {len(cells)} runs are finished and are not run again")
    agree_to_calls(_but_for_the_seed(todo), say, agrees)
    with _progress(len(todo)) as bar:
        for running, outcome in _each(todo, folder, keys, min(workers or cores(), cores()), bar):
            name = running.name
            if isinstance(outcome, CellFindings):
                outcomes.found[name] = outcome
            else:
                outcomes.errors[name] = outcome
            number = len(outcomes.found) + len(outcomes.errors)
            bar.tell(say, f"[{number}/{len(cells)}] {_result(running, outcomes)}")
    batch = Batch(
        artifact=Batch.SCHEMA,
        schema_version=Batch.VERSION,
        seed=0,
        model="",
        config_sha256={},
        world="",
        world_sha256="",
        cells=tuple(_result(cell, outcomes) for cell in cells),
    )
    write_text(folder / "batch.csv", csv_of_batch(batch))
    write_artifact(folder, batch)
    return batch


def csv_of_batch(batch: Batch) -> str:
    """Return a batch as CSV: a cell a line, a column for each parameter and finding.

    Parameters
    ----------
    batch : Batch
        What was run.
    """
    names = list(dict.fromkeys(name for cell in batch.cells for name in cell.parameters))
    fields = [f for f in CellFindings.model_fields if f not in ("world_sha256", "config_sha256")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["cell", *names, *fields, "error"])
    for cell in batch.cells:
        given = [_unstarted(cell.parameters.get(name, "")) for name in names]
        found = [_unstarted(getattr(cell.found, f, None)) for f in fields]
        writer.writerow([cell.name, *given, *found, _unstarted(cell.error)])
    return out.getvalue()


def _unstarted(value: object) -> object:
    # A text that begins so is a formula where a spreadsheet opens the file.
    text = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t"))
    return f"'{value}" if text else value


def _result(cell: GridCell, outcomes: _Outcomes) -> CellResult:
    return CellResult(
        name=cell.name,
        parameters=dict(cell.parameters),
        found=outcomes.found.get(cell.name),
        error=outcomes.errors.get(cell.name, ""),
    )


def _but_for_the_seed(cells: Sequence[GridCell]) -> list[tuple[Any, int]]:
    alike: dict[tuple[tuple[str, GridValue], ...], list[GridCell]] = {}
    for cell in cells:
        rest = tuple((name, value) for name, value in cell.parameters.items() if name != "seed")
        alike.setdefault(rest, []).append(cell)
    return [(same[0].plan, len(same)) for same in alike.values()]


def _finished(folder: Path, key: str) -> LoopResults | None:
    """Return what a cell came to, if it ran to its end, from the same, and nobody changed it."""
    if not (folder / f"{CellSeal.SCHEMA}.json").exists():
        return None
    try:
        seal = read_artifact(folder, CellSeal)
        loop = read_loop(folder) if seal.key == key else None
    except ArtifactError:  # damaged: run again
        return None
    return loop if loop and loop.hashes == seal.results else None


# --------------------------------------------------------------------------- in the parent


def _each(
    todo: Sequence[GridCell], folder: Path, keys: Mapping[str, str], workers: int, bar: _Bar
) -> Iterator[tuple[GridCell, CellFindings | str]]:
    """Run cells, so many at a time, and yield each with its findings or its error."""
    waiting = list(reversed(todo))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop()
                if calls_left() == 0:
                    yield cell, "not run: as many calls were made as --max-calls allows"
                    continue
                running.append(_start(cell, folder, keys[cell.name]))
            for ready in wait([one.told for one in running]):
                one = next(one for one in running if one.told is ready)
                told = _heard(one)
                if isinstance(told, CellEvent):
                    bar.show(one.cell, told)
                    continue
                one.process.join()
                running.remove(one)
                bar.end(one.cell)
                yield one.cell, told
    finally:
        for one in running:
            one.process.kill()
            one.process.join()


def _start(cell: GridCell, folder: Path, key: str) -> _Running:
    # Not forked: a child begins with the limits that its environment says, and with no threads.
    context = get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(cell, folder, key, tell), daemon=True)
    process.start()
    tell.close()
    return _Running(cell, process, told)


def _heard(one: _Running) -> CellEvent | CellFindings | str:
    try:
        told: CellEvent | CellFindings | str = one.told.recv()
    except EOFError:
        one.process.join()
        return f"its process ended with code {one.process.exitcode}"
    return told


# --------------------------------------------------------------------------- in the child


def _hold(cell: GridCell, folder: Path, key: str, tell: Connection) -> None:
    belong_to_the_parent()
    own = folder / cell.name
    try:
        tell.send(_run_cell(cell, own, key, tell.send))
    except Exception as error:
        # Without the copy to look at, whose path is another one on another machine.
        said = str(error).partition("; see ")[0] if isinstance(error, PipelineError) else error
        tell.send(message_line(str(said).replace(str(own.resolve()), ".")) or repr(error))


def _run_cell(
    cell: GridCell, own: Path, key: str, tell: Callable[[CellEvent], None]
) -> CellFindings:
    with locked(own):
        if loop := _finished(own, key):  # another batch ran it meanwhile
            return loop.findings
        (own / f"{CellSeal.SCHEMA}.json").unlink(missing_ok=True)
        for name in _OVER:  # a stage would go on from what another plan left
            (own / name).unlink(missing_ok=True)
        with keeping_answers(own / "runs", "batch"):
            run_notebooks(STAGES, cell.plan, own, on_event=tell, folder=cell.notebooks)
            write_documents(own)
            loop = read_loop(own)
            seal = CellSeal(
                artifact=CellSeal.SCHEMA,
                schema_version=CellSeal.VERSION,
                seed=loop.found.seed,
                model=loop.found.model,
                config_sha256=loop.report.config_sha256,
                world=loop.report.world,
                world_sha256=loop.report.world_sha256,
                key=key,
                results=loop.hashes,
            )
            write_artifact(own, seal)
        return loop.findings


# --------------------------------------------------------------------------- on the terminal


class _Bar:
    """One line that moves with every cell of every notebook under way."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._at: dict[str, float] = {}

    def show(self, cell: GridCell, event: CellEvent) -> None:
        """Move on to where a run is."""
        stage = list(STAGES).index(event.stage)
        at = (stage + event.cells_done / event.cells) / _STAGES_OF_A_CELL
        self._move(cell, min(at, 0.99))
        self._bar.set_postfix_str(f"{cell.name}: {STAGES[event.stage]}", refresh=False)

    def end(self, cell: GridCell) -> None:
        """Count a run as done."""
        self._move(cell, 1.0)

    def tell(self, say: Callable[[str], object], line: str) -> None:
        """Say a line above the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            say(line)

    def _move(self, cell: GridCell, at: float) -> None:
        self._bar.update(max(0.0, at - self._at.get(cell.name, 0.0)))
        self._at[cell.name] = at


@contextmanager
def _progress(runs: int) -> Iterator[_Bar]:
    from tqdm import tqdm

    shape = "{l_bar}{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}] {postfix}"
    hidden = not runs or not sys.stderr.isatty()
    with tqdm(total=runs, leave=False, disable=hidden, bar_format=shape) as bar:
        yield _Bar(bar)
