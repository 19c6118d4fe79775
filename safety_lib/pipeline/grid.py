"""A grid of parameters, and the cells that it comes to: each a plan with a folder of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import safety_lib
from safety_lib.artifacts import CHECKOUT
from safety_lib.files import open_file, sha256_of
from safety_lib.pipeline.kernels import code_cells
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, PipelineError, Plan, notebook_of
from safety_lib.records.batches import GridValue
from safety_lib.text import one_line
from safety_lib.world import WorldError, load_version, load_world

AXES = (
    "world",
    "baseline",
    "candidate",
    "fixed",
    "model",
    "attacker",
    "rollouts",
    "max_turns",
    "replays",
    "trials",
    "max_tests",
    "audit",
    "incident",
    "log",
    "seed",
)
"""What can be varied, in the order in which a grid is run: the seed changes fastest."""
MOST_CELLS = 10_000

Grid = Mapping[str, Sequence[GridValue]]

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_NUMBER = re.compile(r"-?\d+")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,39}")


class GridError(PipelineError):
    """A grid that cannot be run; the message is one line for a person."""


@dataclass(frozen=True)
class GridCell:
    """One combination of a grid.

    Attributes
    ----------
    name : str
        Of its folder.
    parameters : Mapping
        As they were asked for.
    plan : Mapping
        Stage to parameters, all of them.
    notebooks : Path
        Where the notebooks are.
    """

    name: str
    parameters: Mapping[str, GridValue]
    plan: Plan
    notebooks: Path = NOTEBOOKS

    @property
    def key(self) -> str:
        """Hash of all that the results depend on, wherever it lies."""
        world = str(self.plan["release_gate"]["world"])
        depends = {
            stage: {name: _content(name, value, world) for name, value in parameters.items()}
            for stage, parameters in self.plan.items()
        }
        return sha256_of({"plan": depends, "code": _code(self.notebooks)})


def grid_values(text: str, *, whole: bool) -> tuple[GridValue, ...]:
    """Return the values that a word of the command line names.

    Parameters
    ----------
    text : str
        Values with commas between them; among whole numbers ``1..20`` stands for all of them.
    whole : bool
        Whether they are whole numbers.

    Raises
    ------
    GridError
        If a value is missing, is no whole number, stands there twice, or if they are too many.

    Examples
    --------
    >>> grid_values("1..3,7", whole=True)
    (1, 2, 3, 7)
    >>> grid_values("v2,v3", whole=False)
    ('v2', 'v3')
    >>> grid_values("20..1", whole=True)
    Traceback (most recent call last):
    ...
    safety_lib.pipeline.grid.GridError: 20..1 runs backwards: write 1..20
    """
    values: list[GridValue] = []
    for part in map(str.strip, text.split(",")):
        if not part:
            shown = one_line(repr(text), 60)
            raise GridError(f"a value is missing in {shown}: write 1..20 or v2,v3")
        values.extend(_numbers(part) if whole else [part])
        if len(values) > MOST_CELLS:
            raise GridError(f"{one_line(text, 60)} is more than {MOST_CELLS:,} values")
    for value in values:
        if values.count(value) > 1:
            raise GridError(f"{one_line(value, 60)} stands there twice")
    return tuple(values)


def _numbers(part: str) -> Sequence[int]:
    if len(part) > 50 or not (_NUMBER.fullmatch(part) or _RANGE.fullmatch(part)):
        raise GridError(f"{one_line(repr(part), 60)} is no whole number and no range such as 1..20")
    if ends := _RANGE.fullmatch(part):
        first, last = map(int, ends.groups())
        if last < first:
            raise GridError(f"{part} runs backwards: write {last}..{first}")
        if last - first >= MOST_CELLS:
            raise GridError(f"{part} is more than {MOST_CELLS:,} values")
        return range(first, last + 1)
    return [int(part)]


def combinations(grid: Grid) -> Iterator[dict[str, GridValue]]:
    """Yield every combination of the values of a grid; the seed changes fastest.

    Parameters
    ----------
    grid : Mapping
        Parameter to values.

    Raises
    ------
    GridError
        If there is no such parameter, or there are too many combinations.

    Examples
    --------
    >>> list(combinations({"seed": [1, 2], "candidate": ["v2"]}))
    [{'candidate': 'v2', 'seed': 1}, {'candidate': 'v2', 'seed': 2}]
    """
    if unknown := [name for name in grid if name not in AXES]:
        raise GridError(f"no parameter {one_line(repr(unknown[0]), 60)}: use {', '.join(AXES)}")
    names = [name for name in AXES if name in grid]
    cells = 1
    for name in names:
        cells *= len(grid[name])
    if not 0 < cells <= MOST_CELLS:
        raise GridError(f"the grid comes to {cells:,} runs, and a batch has 1 to {MOST_CELLS:,}")
    for values in product(*(grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def name_of_cell(parameters: Mapping[str, GridValue]) -> str:
    """Return the name of a cell's folder: its parameters, in the order of the grid.

    What is no plain name, such as a path, is cut to its last part and told apart by a hash.

    Examples
    --------
    >>> name_of_cell({"world": "northwind", "candidate": "v2", "seed": 1})
    'world=northwind,candidate=v2,seed=1'
    >>> name_of_cell({"candidate": "mine/v4.yaml"}).rpartition("~")[0]
    'candidate=v4.yaml'
    """
    return ",".join(f"{name}={_plain_name(value)}" for name, value in parameters.items())


def _plain_name(value: GridValue) -> str:
    text = str(value)
    if _SAFE_NAME.fullmatch(text) or isinstance(value, int):
        return text
    last = re.sub(r"[^A-Za-z0-9._+-]", "-", text.rstrip("/").rpartition("/")[2]).strip(".-")
    return f"{last[:30]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _content(name: str, value: object, world: str) -> object:
    """Return what stands behind a parameter: the hash of a world, a version, a file."""
    if name == "world":
        return load_world(world).sha256
    if name in ("baseline", "candidate", "fixed") and value:
        with suppress(WorldError):  # the fix of another world; the notebook says so
            return load_version(str(value), world).sha256
    path = Path(str(value).removeprefix("cassette:"))
    if name in ("incident", "log", "model") and path.is_file():
        with open_file(path, most=None) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value


@cache
def _code(folder: Path) -> str:
    """Hash what computes: this library, of which a checkout has many under one version."""
    library = CHECKOUT / "safety_lib"
    sources = {
        str(path.relative_to(library)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(library.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    notebooks = {stage: code_cells(notebook_of(stage, folder)) for stage in STAGES}
    return sha256_of([safety_lib.__version__, sources, notebooks])
