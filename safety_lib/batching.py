"""The command ``batch``: the whole loop over a grid of parameters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safety_lib.options import takes_grid, takes_limits, takes_workers
from safety_lib.places import names_a_file, world_for
from safety_lib.terminal import confirmed, say_lines
from safety_lib.text import one_line

if TYPE_CHECKING:
    from safety_lib.pipeline.grid import GridCell
    from safety_lib.records import GridValue


@click.command()
@takes_grid
@takes_workers
@click.option("--yes", is_flag=True, help="Do not ask before many calls of a paid model.")
@click.option("--artifacts", default="artifacts/batch", show_default=True, metavar="DIR")
@takes_limits
def batch(workers: int | None, yes: bool, artifacts: str, **axes: tuple[GridValue, ...]) -> None:
    """Run the four notebooks over a grid of parameters, a folder each.

    GRID is one value or several: v2,v3 or 1..20 or 1..5,9. Every combination is run. What is
    finished is not run again, so a batch that was stopped goes on, and a grid may grow. Writes
    batch.json, batch.csv and batch.svg. Exits 3 if a run has no result.

    Example: python -m safety_lib batch --seed 1..20 --candidate v2,v3 --world northwind,airline
    """
    from safety_lib.figures.moved import save_moved
    from safety_lib.pipeline.batch import run_batch
    from safety_lib.pipeline.plan import PipelineError
    from safety_lib.report.summary import batch_lines

    started = time.monotonic()
    folder = Path(artifacts)
    if folder.suffix or (folder.exists() and not folder.is_dir()):
        raise click.UsageError(f"--artifacts takes a folder, not the file {folder}")
    cells = _cells(folder, {name: values for name, values in axes.items() if values})
    done = run_batch(
        cells,
        folder,
        workers=workers or 0,
        say=lambda line: say_lines(line.splitlines() or [""]),
        agrees=lambda question: yes or confirmed(question),
    )
    say_lines([*batch_lines(done), *save_moved(done, folder / "batch.svg")])
    say_lines([f"Saved to {folder}/batch.json, batch.csv and batch.svg"])
    click.echo(f"Total time: {time.monotonic() - started:.0f} seconds")
    if done.failed:
        first, more = done.failed[0], len(done.failed) - 1
        also = f"; and {more} more" if more else ""
        raise PipelineError(
            f"{len(done.failed)} of {len(done.cells)} runs have no result: "
            f"{first.name}: {first.error}{also}; the others are kept, run it again for these"
        )


def _cells(folder: Path, grid: dict[str, tuple[GridValue, ...]]) -> list[GridCell]:
    """Return the cells of a grid, once every world and version in it was found."""
    from safety_lib.attack.attackers import make_attacker
    from safety_lib.pipeline.batch import plan_cell
    from safety_lib.pipeline.grid import combinations
    from safety_lib.world import load_version

    cells = []
    for asked in combinations(grid):
        sides = [str(asked["baseline"]), str(asked["candidate"])]
        home = world_for(str(asked.get("world", "")), *sides)
        behind: dict[str, Any] = {"world": home.address}
        for role, name in zip(("baseline", "candidate"), sides, strict=True):
            # A notebook runs elsewhere, where a path from here would lead to something else.
            behind[role] = str(Path(name).resolve()) if names_a_file(name) else name
            load_version(behind[role], home.address)
        if asked.get("fixed"):
            load_version(str(asked["fixed"]), home.address)
        if (attacker := str(asked.get("attacker", "search"))) != "search":
            make_attacker(attacker, home.scenarios[0], seed=0)
        shown = {"world": asked.get("world") or home.name, **asked}
        if home.folder.resolve() in (folder / "x").resolve().parents:
            raise click.UsageError(f"artifacts may not lie in the folder of the world {home.name}")
        cells.append(plan_cell(folder, shown, behind))
        for name in ("incident", "log"):
            if name in asked and not Path(cells[-1].plan["incident_replay"][name]).is_file():
                raise click.UsageError(f"--{name}: there is no file {one_line(asked[name])}")
    return cells
