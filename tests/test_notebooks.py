"""Hygiene of the committed notebooks: what nbval cannot see.

A notebook without outputs passes nbval with nothing compared, figures are never compared at all,
and papermill forgives a misspelt parameter. Each rule here is a function of one notebook, and each
is shown to fail on a broken copy.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest

from safety_lib.report.metrics import METRICS
from safety_lib.report.words import GLOSSARY

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = ("01_stress_testing", "02_regression_tests", "03_release_gate", "04_incident_replay")
TAGS = {"parameters"}
CLOSING = ["## What we found", "## Try it", "## On Monday"]
DEEPER = "## Going deeper"
FIGURE_TESTS = "".join(
    path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_figures*.py")
)
# Enough to pass through every cell, and to be told from another seed.
SMALL = {"rollouts": 12, "replays": 4, "trials": 2, "max_tests": 4, "audit": 100}
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


def papermill_understands_every_parameter(notebook: Notebook) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, Path(folder) / "copy.ipynb")
        known = papermill.inspect_notebook(Path(folder) / "copy.ipynb")
    lines = code(notebook)[0].source.splitlines()
    common = {"seed", "model", "baseline", "candidate", "artifacts_dir"}
    return len(known) == len(lines) and common <= known.keys()


def short_cells(notebook: Notebook) -> bool:
    cells = [cell for cell in code(notebook) if cell.id != "imports"]
    lengths = sorted(len(cell.source.splitlines()) for cell in cells)
    return lengths[-1] <= 17 and lengths[len(lengths) // 2] <= 4


def plain_python(notebook: Notebook) -> bool:
    for cell in code(notebook):
        # What stands in a text is a file of the reader's.
        lines = re.sub(r'""".*?"""', '""', cell.source, flags=re.DOTALL).splitlines()
        if any(re.match(r"\s*(def |async def |class |%|!)|.*;\s*$", line) for line in lines):
            return False
        if "sys.path" in cell.source or "chdir" in cell.source:
            return False
    return True


def prose_before_code(notebook: Notebook) -> bool:
    # The imports stand right below the parameters; nothing else follows code without a word.
    bare = [
        cell.id
        for before, cell in itertools.pairwise(notebook.cells)
        if before.cell_type == cell.cell_type == "code"
    ]
    return bare == ["imports"] and notebook.cells[0].cell_type == "markdown"


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
    depths = [len(line) - len(line.lstrip("#")) for line in headings]
    levels = max(depths) <= 3 and all(b - a <= 1 for a, b in itertools.pairwise([0, *depths]))
    if headings.count(DEEPER) != 1:
        return False
    at = headings.index(DEEPER)
    parts = all(line.startswith("### ") for line in headings[at + 1 :])
    return asked and levels and parts and len(titles) == 1 and headings[at - 3 : at] == CLOSING


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
        r"\b20\d\d-\d\d-\d\d",
        r"\b\d+(\.\d+)? ?(ms|s|sec|seconds?)\b",
    )
    return not any(re.search(pattern, text) for pattern in patterns)


def figures_have_readings(notebook: Notebook) -> bool:
    for cell in code(notebook):
        for shown, below in itertools.pairwise([*cell.outputs, {}]):
            if "image/png" in shown.get("data", {}) and not below.get("text", "").strip():
                return False
    return True


def figures_are_shown_once(notebook: Notebook) -> bool:
    # A figure shows itself; the axes that it returns would stand below it as a line of their own.
    for cell in code(notebook):
        drawn = len(re.findall(r"figures\.\w+\(", cell.source))
        if drawn != len(re.findall(r"^ *ax = figures\.\w+\(", cell.source, re.MULTILINE)):
            return False
        if drawn < sum("image/png" in output.get("data", {}) for output in cell.outputs):
            return False
    return "<Axes" not in shown(notebook)


def figures_are_tested(notebook: Notebook) -> bool:
    # nbval cannot see pixels: that a figure shows what it says is asserted on its artists.
    drawn = {name for cell in code(notebook) for name in re.findall(r"figures\.(\w+)", cell.source)}
    return bool(drawn) and all(re.search(rf"\b{name}\b", FIGURE_TESTS) for name in drawn)


def a_story_not_a_script(notebook: Notebook) -> bool:
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    core = list(
        itertools.takewhile(lambda cell: not cell.source.startswith(DEEPER), notebook.cells)
    )
    return 20 <= len(core) <= 40 and len(notebook.cells) <= 66 and words >= 500


def small_file(notebook: Notebook) -> bool:
    return len(nbformat.writes(notebook).encode()) <= 700_000


RULES: tuple[Callable[[Notebook], bool], ...] = (
    executed_in_order,
    no_error_and_no_stderr,
    one_parameters_cell,
    papermill_understands_every_parameter,
    short_cells,
    plain_python,
    prose_before_code,
    same_opening_and_closing,
    links_resolve,
    minimal_metadata,
    nothing_of_this_machine,
    figures_have_readings,
    figures_are_shown_once,
    figures_are_tested,
    a_story_not_a_script,
    small_file,
)


def all_are_there(folder: Path) -> bool:
    return sorted(path.stem for path in folder.glob("*.ipynb")) == list(NAMES)


def enough_is_compared(notebooks: Sequence[Notebook]) -> bool:
    compared = sum(bool(cell.outputs) for notebook in notebooks for cell in code(notebook))
    drawn = [o for n in notebooks for o in outputs(n) if "image/png" in o.get("data", {})]
    return compared >= 40 and len(drawn) >= 8


def test_the_four_notebooks_are_there() -> None:
    assert all_are_there(FOLDER)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_notebook(name: str, rule: Callable[[Notebook], bool]) -> None:
    assert rule(load(name))


def test_enough_is_compared() -> None:
    assert enough_is_compared([load(name) for name in NAMES])


def artifacts_of(folder: Path, seed: int) -> dict[str, bytes]:
    """Run the four notebooks here, small, and return what they wrote."""
    shutil.copytree(FOLDER.parent / "artifacts", folder, ignore=shutil.ignore_patterns("runs"))
    given = SMALL | {"seed": seed, "artifacts_dir": repr(str(folder))}
    for name in NAMES:
        names: dict[str, Any] = {"display": lambda *_: None}
        for cell in code(load(name)):
            text = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                text += "".join(f"\n{key} = {value}" for key, value in given.items())
            exec(compile(text, cell.id, "exec"), names)
    written = ("stress_failures", "regression_tests", "gate_report", "incident_replay")
    return {name: (folder / f"{name}.json").read_bytes() for name in written}


@pytest.mark.slow
def test_one_seed_gives_one_set_of_artifacts_and_another_seed_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plt, "show", lambda *_, **__: plt.close("all"))
    with contextlib.redirect_stdout(io.StringIO()):
        once, again, other = (
            artifacts_of(tmp_path / str(n), seed) for n, seed in enumerate((7, 7, 8))
        )
    assert once == again
    assert not [name for name in once if once[name] == other[name]]


# --------------------------------------------------------------------------- words

# They mean in the notebooks what they mean elsewhere, or stand in a sentence before they are terms.
EVERYDAY = {"active", "BLOCK", "coverage", "enough", "learned", "minimal", "mode", "needed", "OK"}
EVERYDAY |= {"goal", "rate", "rule", "variant", "version", "WARN"}
LEADS = re.compile(r"Guess|Put your guess|Exercise|Careful|Note|That would be our|.*[.,:]$")


def prose(notebooks: Sequence[Notebook]) -> list[str]:
    """What the cells say in sentences, from the first notebook to the last, titles aside."""
    cells = [c for n in notebooks for c in n.cells if c.cell_type == "markdown" and c.id != "title"]
    return [re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$", "", c.source, flags=re.S) for c in cells]


def marked(texts: Sequence[str], stars: str) -> list[str]:
    mark = re.escape(stars)
    found = re.findall(rf"(?<!\*){mark}(?!\*)([^*\n]+)(?<!\*){mark}(?!\*)", "\n".join(texts))
    lead_in = [text for text in found if LEADS.match(text) or text.startswith("A gate may stop")]
    return [text for text in found if text not in lead_in]


def forms(word: str) -> set[str]:
    low = word.lower()
    plural = f"{low[:-1]}ies" if low.endswith("y") else f"{low}s"
    return {low, plural, f"{low}'s"}


def undefined(notebooks: Sequence[Notebook]) -> list[str]:
    """Bold words that the glossary lacks."""
    known = {form for word in (*GLOSSARY, *(m.name for m in METRICS)) for form in forms(word)}
    return [
        b for b in marked(prose(notebooks), "**") if b.lower() not in known | {"family of tests"}
    ]


def used_before(notebooks: Sequence[Notebook]) -> list[str]:
    """Words of the glossary that are used in a cell before the one that explains them."""
    texts, early = prose(notebooks), []
    for word in (word for word in GLOSSARY if word not in EVERYDAY):
        said = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, forms(word)))})(?![\w-])", re.I)
        first = next((text for text in texts if said.search(text)), "")
        explained = {b.lower() for stars in ("**", "*") for b in marked([first], stars)}
        if not any(said.fullmatch(b) or "family of tests" in b for b in explained):
            early.append(word)
    return early


def crowded(notebook: Notebook) -> bool:
    texts = prose([notebook])
    return len(marked(texts, "**")) > 4 * sum(len(text.split()) for text in texts) / 1000


def test_every_bold_word_is_in_the_glossary_and_none_is_used_before_it_is_explained() -> None:
    notebooks = [load(name) for name in NAMES]
    assert undefined(notebooks) == []
    assert used_before(notebooks) == []
    assert list(GLOSSARY) == sorted(GLOSSARY, key=str.lower)


@pytest.mark.parametrize("name", NAMES)
def test_new_words_come_at_most_four_in_a_thousand(name: str) -> None:
    assert not crowded(load(name))


def test_a_word_without_a_meaning_or_before_it_is_noticed() -> None:
    notebooks = [load(name) for name in NAMES]
    cell = next(c for c in notebooks[0].cells if c.id == "talk-md")
    cell.source += " An **ombudsman** looks at its signature."
    assert undefined(notebooks) == ["ombudsman"]
    assert used_before(notebooks) == ["signature"]
    cell.source += " **world**" * 40
    assert crowded(notebooks[0])


# --------------------------------------------------------------------------- broken copies


def stripped(notebook: Notebook) -> None:
    for cell in code(notebook):
        cell.execution_count, cell.outputs = None, []


def run_out_of_order(notebook: Notebook) -> None:
    first, second = code(notebook)[3:5]
    first.execution_count, second.execution_count = second.execution_count, first.execution_count


def shows(kind: str, **content: Any) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[3].outputs.append(nbformat.v4.new_output(kind, **content))

    return broken


def says(text: str) -> Callable[[Notebook], None]:
    return shows("stream", name="stdout", text=text)


def source(index: int, text: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[index].source = text

    return broken


def with_parameter(line: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[0].source += f"\n{line}"

    return broken


def without_parameter(notebook: Notebook) -> None:
    cell = code(notebook)[0]
    cell.source = "\n".join(x for x in cell.source.splitlines() if not x.startswith("seed"))


def untagged(notebook: Notebook) -> None:
    code(notebook)[0].metadata = {}


def long_cells(notebook: Notebook) -> None:
    for cell in code(notebook)[2:]:
        cell.source = "1\n2\n3\n4\n5"


def code_after_code(notebook: Notebook) -> None:
    below = notebook.cells.index(code(notebook)[4]) + 1
    notebook.cells.insert(below, nbformat.v4.new_code_cell("1"))


def code_first(notebook: Notebook) -> None:
    del notebook.cells[0]


def without(text: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        notebook.cells = [c for c in notebook.cells if text not in c.source]

    return broken


def swaps(text: str, other: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        cell = next(c for c in notebook.cells if c.cell_type == "markdown" and text in c.source)
        cell.source = cell.source.replace(text, other)

    return broken


def heading(line: str) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        notebook.cells[0].source += f"\n\n{line}"

    return broken


def no_way_on(notebook: Notebook) -> None:
    for cell in notebook.cells:
        cell.source = cell.source.replace(f"({NAMES[2]}.ipynb", "(#gone")


def noted(key: str, value: Any) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        notebook.metadata[key] = value

    return broken


def noted_on_a_cell(key: str, value: Any) -> Callable[[Notebook], None]:
    def broken(notebook: Notebook) -> None:
        code(notebook)[3].metadata[key] = value

    return broken


def silent_figure(notebook: Notebook) -> None:
    above = nbformat.v4.new_output("stream", name="stdout", text="A reading.")
    figure = nbformat.v4.new_output("display_data", data={"image/png": ""})
    code(notebook)[3].outputs = [above, figure]


def shown_twice(notebook: Notebook) -> None:
    cell = next(c for c in code(notebook) if "figures." in c.source)
    cell.outputs = [*cell.outputs, *cell.outputs]


def few_cells(notebook: Notebook) -> None:
    notebook.cells = notebook.cells[:15]


def few_words(notebook: Notebook) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = "One word more."


BROKEN: dict[str, tuple[Callable[[Notebook], bool], Callable[[Notebook], None]]] = {
    "no outputs": (executed_in_order, stripped),
    "cells run in another order": (executed_in_order, run_out_of_order),
    "a warning": (no_error_and_no_stderr, shows("stream", name="stderr", text="UserWarning")),
    "an error": (
        no_error_and_no_stderr,
        shows("error", ename="KeyError", evalue="x", traceback=[]),
    ),
    "a parameter without type": (one_parameters_cell, source(0, "seed = 7  # draws")),
    "a parameter of two types": (one_parameters_cell, source(0, "seed: int | None = 7  # draws")),
    "a parameter without a reason": (one_parameters_cell, source(0, "seed: int = 7")),
    "a parameters cell without its tag": (one_parameters_cell, untagged),
    "a parameter that papermill drops": (
        papermill_understands_every_parameter,
        with_parameter('url: str = "a=b"  # where'),
    ),
    "a common parameter is gone": (papermill_understands_every_parameter, without_parameter),
    "a long cell": (short_cells, source(4, "1\n" * 18)),
    "many long cells": (short_cells, long_cells),
    "a function": (plain_python, source(4, "def f():\n    return 1")),
    "a function in a block": (plain_python, source(4, "if True:\n    def f(): ...")),
    "a class": (plain_python, source(4, "class Test: ...")),
    "a magic": (plain_python, source(4, "%matplotlib inline")),
    "a shell command": (plain_python, source(4, "!pip install tqdm")),
    "a semicolon": (plain_python, source(4, "plt.plot([1]);\nplt.show()")),
    "a path is added": (plain_python, source(4, "import sys\nsys.path.append('..')")),
    "the folder is changed": (plain_python, source(4, "import os\nos.chdir('..')")),
    "code after code": (prose_before_code, code_after_code),
    "code comes first": (prose_before_code, code_first),
    "a closing heading is gone": (same_opening_and_closing, without("## Try it")),
    "closing headings in another order": (
        same_opening_and_closing,
        swaps("## Try it", "## On Monday"),
    ),
    "the opening does not say how long": (same_opening_and_closing, swaps("**Takes**", "Takes")),
    "a second title": (same_opening_and_closing, heading("# Another")),
    "a level is skipped": (same_opening_and_closing, heading("### Deep")),
    "a dead link": (links_resolve, heading("[gone](05_gone.ipynb)")),
    "no way to another notebook": (links_resolve, no_way_on),
    "times of papermill": (minimal_metadata, noted("papermill", {"start_time": "now"})),
    "widgets": (minimal_metadata, noted("widgets", {})),
    "a kernel of ones own": (
        minimal_metadata,
        noted("kernelspec", nbformat.from_dict({"name": "venv-of-mine"})),
    ),
    "a version of Python": (
        minimal_metadata,
        noted("language_info", nbformat.from_dict({"name": "python", "version": "3.11.7"})),
    ),
    "times of a cell": (minimal_metadata, noted_on_a_cell("execution", {})),
    "an unknown tag": (minimal_metadata, noted_on_a_cell("tags", ["nbval-skip"])),
    "an address in memory": (nothing_of_this_machine, says("<object at 0x7f0011223344>")),
    "a home": (nothing_of_this_machine, says("saved to /home/me/artifacts")),
    "a temporary folder": (nothing_of_this_machine, says("saved to /tmp/tmpa1b2c3/out")),
    "a home on Windows": (nothing_of_this_machine, says("saved to C:\\Users\\me")),
    "a date": (nothing_of_this_machine, says("made on 2026-01-31")),
    "a moment": (nothing_of_this_machine, says("made at 2026-01-31T10:00:00")),
    "a duration": (nothing_of_this_machine, says("took 3.2 seconds")),
    "a short duration": (nothing_of_this_machine, says("took 3.2 s")),
    "a figure without a reading below it": (figures_have_readings, silent_figure),
    "a figure whose axes are printed": (figures_are_shown_once, source(4, "figures.forest(found)")),
    "the words of axes below a figure": (figures_are_shown_once, says("<Axes: >")),
    "a figure that is shown twice": (figures_are_shown_once, shown_twice),
    "a figure that no test looks at": (figures_are_tested, source(4, "figures.pie_chart(1)")),
    "a handful of cells": (a_story_not_a_script, few_cells),
    "hardly a word": (a_story_not_a_script, few_words),
    "a large output": (small_file, says("x" * 700_000)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_notices_a_broken_notebook(name: str) -> None:
    rule, broken = BROKEN[name]
    notebook = copy.deepcopy(load(NAMES[0]))
    assert rule(notebook)
    broken(notebook)
    assert not rule(notebook)


def test_no_rule_is_left_out_above() -> None:
    assert {rule for rule, _ in BROKEN.values()} == set(RULES)


def test_a_missing_notebook_is_noticed(tmp_path: Path) -> None:
    for name in NAMES[1:]:
        shutil.copy(FOLDER / f"{name}.ipynb", tmp_path)
    assert not all_are_there(tmp_path)


@pytest.mark.parametrize("lost", ["every output", "every figure"])
def test_it_is_noticed_when_little_is_compared(lost: str) -> None:
    notebooks = [load(name) for name in NAMES]
    for cell in itertools.chain(*map(code, notebooks)):
        kept = [] if lost == "every output" else cell.outputs
        cell.outputs = [o for o in kept if "image/png" not in o.get("data", {})]
    assert not enough_is_compared(notebooks)


@pytest.mark.slow
def test_the_types_of_the_library_hold_in_the_notebooks(tmp_path: Path) -> None:
    pytest.importorskip("nbqa", reason="nbqa is not installed (it is in the dev extra)")
    done = subprocess.run(
        [sys.executable, "-m", "nbqa", "mypy", "notebooks", f"--cache-dir={tmp_path}"],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
