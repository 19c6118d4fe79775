"""Hygiene of the committed notebooks: what nbval cannot see.

A notebook without outputs passes nbval with nothing compared, figures are never compared at all,
and papermill forgives a misspelt parameter. Each rule here is a function of one notebook, and each
is shown to fail on a broken copy.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = ("01_stress_testing", "02_regression_tests", "03_release_gate", "04_incident_replay")
TAGS = {"parameters"}
CLOSING = ["## What we found", "## Try it", "## Next"]
Notebook = Any


def load(name: str) -> Notebook:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook: Notebook) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Notebook) -> list[Any]:
    return [output for cell in code(notebook) for output in cell.outputs]


def shown(notebook: Notebook) -> str:
    texts = []
    for output in outputs(notebook):
        texts.append(output.get("text", ""))
        data = output.get("data", {})
        texts += [data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(texts)


def executed_in_order(notebook: Notebook) -> bool:
    counts = [cell.execution_count for cell in code(notebook)]
    return counts == list(range(1, len(counts) + 1))


def no_error_and_no_stderr(notebook: Notebook) -> bool:
    return not any(
        output.output_type == "error" or output.get("name") == "stderr"
        for output in outputs(notebook)
    )


def one_parameters_cell(notebook: Notebook) -> bool:
    tagged = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0] is not code(notebook)[0]:
        return False
    line = re.compile(r"^\w+: (int|float|str|bool) = [^#]+  # \S.*$")
    return all(line.match(text) for text in tagged[0].source.splitlines())


def short_cells(notebook: Notebook) -> bool:
    lengths = sorted(len(cell.source.splitlines()) for cell in code(notebook))
    return lengths[-1] <= 17 and lengths[len(lengths) // 2] <= 5


def plain_python(notebook: Notebook) -> bool:
    for cell in code(notebook):
        lines = cell.source.splitlines()
        if any(re.match(r"\s*(def |class |%|!)", line) for line in lines):
            return False
        if "sys.path" in cell.source or "chdir" in cell.source or lines[-1].endswith(";"):
            return False
    return True


def prose_before_code(notebook: Notebook) -> bool:
    cells, run = notebook.cells, 0
    for before, cell in itertools.pairwise(cells):
        run = run + 1 if before.cell_type == cell.cell_type == "code" else 0
        if run > 2:
            return False
    return bool(cells[0].cell_type == "markdown")


def same_opening_and_closing(notebook: Notebook) -> bool:
    opening = notebook.cells[0].source
    asked = all(f"**{w}**" in opening for w in ("You will", "You will learn", "You need", "Takes"))
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    titles = [line for line in headings if line.startswith("# ")]
    levels = all(line.startswith(("# ", "## ", "### ")) for line in headings)
    return asked and levels and len(titles) == 1 and headings[-3:] == CLOSING


def links_resolve(notebook: Notebook) -> bool:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#]+)", text)
    local = [target for target in targets if not target.startswith("http")]
    others = {f"{name}.ipynb" for name in NAMES}
    return len(others & set(local)) >= 3 and all((FOLDER / target).exists() for target in local)


def minimal_metadata(notebook: Notebook) -> bool:
    known = set(notebook.metadata) <= {"kernelspec", "language_info"}
    kernel = notebook.metadata.kernelspec.name == "python3"
    language = set(notebook.metadata.language_info) == {"name"}
    cells = all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    return known and kernel and language and cells and tags <= TAGS


def nothing_of_this_machine(notebook: Notebook) -> bool:
    # Made-up paths of the sandbox such as /tmp/export-old.csv are part of the story.
    text = re.sub(r"/(tmp|shared|audit|vault|legal-hold)/[\w.-]+\.\w+", "", shown(notebook))
    patterns = (
        r"0x[0-9a-f]{6,}",
        r"(?<!\w)/(home|root|Users|work|usr|opt|tmp|var)/",
        r"\b[A-Z]:\\",
        r"\b20\d\d-\d\d-\d\dT",
        r"\b\d+(\.\d+)? ?(ms|seconds)\b",
    )
    return not any(re.search(pattern, text) for pattern in patterns)


def figures_have_readings(notebook: Notebook) -> bool:
    for cell in code(notebook):
        kinds = [[*list(o.get("data", {})), o.output_type] for o in cell.outputs]
        drawn = any("image/png" in kind for kind in kinds)
        if drawn and not any("stream" in kind for kind in kinds):
            return False
    return True


def a_story_not_a_script(notebook: Notebook) -> bool:
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    return 20 <= len(notebook.cells) <= 60 and 8 <= len(code(notebook)) <= 30 and words >= 500


RULES: tuple[Callable[[Notebook], bool], ...] = (
    executed_in_order,
    no_error_and_no_stderr,
    one_parameters_cell,
    short_cells,
    plain_python,
    prose_before_code,
    same_opening_and_closing,
    links_resolve,
    minimal_metadata,
    nothing_of_this_machine,
    figures_have_readings,
    a_story_not_a_script,
)


def test_the_four_notebooks_are_there() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_notebook(name: str, rule: Callable[[Notebook], bool]) -> None:
    assert rule(load(name))


@pytest.mark.parametrize("name", NAMES)
def test_papermill_understands_every_parameter(name: str) -> None:
    known = papermill.inspect_notebook(FOLDER / f"{name}.ipynb")
    assert len(known) == len(code(load(name))[0].source.splitlines())
    assert {"seed", "model", "baseline", "candidate", "artifacts_dir"} <= known.keys()


@pytest.mark.parametrize("name", NAMES)
def test_files_stay_small(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= 600_000


def test_enough_is_compared() -> None:
    compared = sum(bool(cell.outputs) for name in NAMES for cell in code(load(name)))
    assert compared >= 40
    drawn = [o for name in NAMES for o in outputs(load(name)) if "image/png" in o.get("data", {})]
    assert len(drawn) >= 8


def stripped(notebook: Notebook) -> None:
    for cell in code(notebook):
        cell.execution_count, cell.outputs = None, []


def noisy(notebook: Notebook) -> None:
    code(notebook)[3].outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="UserWarning")
    )


def says(text: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[3].outputs.append(nbformat.v4.new_output("stream", name="stdout", text=text))

    return broken


def source(index: int, text: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[index].source = text

    return broken


def silent_figure(notebook: Notebook) -> None:
    data = {"image/png": "", "text/plain": "<Figure size 1x1 with 1 Axes>"}
    code(notebook)[3].outputs = [nbformat.v4.new_output("display_data", data=data)]


def code_run(notebook: Notebook) -> None:
    notebook.cells[3:3] = [nbformat.v4.new_code_cell("1") for _ in range(4)]


def no_closing(notebook: Notebook) -> None:
    notebook.cells = [c for c in notebook.cells if "## Try it" not in c.source]


def dead_link(notebook: Notebook) -> None:
    notebook.cells[0].source += "\n[gone](05_gone.ipynb)"


def timestamps(notebook: Notebook) -> None:
    notebook.metadata["papermill"] = {"start_time": "now"}


def one_cell(notebook: Notebook) -> None:
    notebook.cells = notebook.cells[:3]


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (executed_in_order, stripped),
        (no_error_and_no_stderr, noisy),
        (one_parameters_cell, source(0, "seed = 7")),
        (one_parameters_cell, source(0, "seed: int | None = 7  # bad type")),
        (short_cells, source(4, "1\n" * 40)),
        (plain_python, source(4, "def f():\n    return 1")),
        (plain_python, source(4, "%matplotlib inline")),
        (plain_python, source(4, "plt.plot([1]);")),
        (prose_before_code, code_run),
        (same_opening_and_closing, no_closing),
        (links_resolve, dead_link),
        (minimal_metadata, timestamps),
        (nothing_of_this_machine, says("<object at 0x7f0011223344>")),
        (nothing_of_this_machine, says("saved to /home/me/artifacts")),
        (nothing_of_this_machine, says("took 3.2 seconds")),
        (figures_have_readings, silent_figure),
        (a_story_not_a_script, one_cell),
    ],
)
def test_each_rule_fails_on_a_broken_copy(
    rule: Callable[[Notebook], bool], broken: Callable[[Notebook], None]
) -> None:
    notebook = copy.deepcopy(load(NAMES[0]))
    assert rule(notebook)
    broken(notebook)
    assert not rule(notebook)
