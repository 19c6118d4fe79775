"""The pipeline: four notebooks in order, clear refusals, and no kernel left behind."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import pytest
import yaml

from safety_lib.pipeline import (
    NOTEBOOKS,
    STAGES,
    CellEvent,
    PipelineError,
    load_plan,
    refresh_notebooks,
    run_notebooks,
)

pytestmark = pytest.mark.slow

ROOT = NOTEBOOKS.parent
PARAMETERS = 'seed: int = 7  # draws\nartifacts_dir: str = ""  # results'

Folder = Callable[..., Path]


def notebook(*codes: str, parameters: str = PARAMETERS) -> Any:
    """Return a small notebook: a title, a parameters cell and some more cells."""
    cells = [nbformat.v4.new_markdown_cell("# Title", id="title")]
    cells.append(
        nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]})
    )
    cells += [nbformat.v4.new_code_cell(code, id=f"cell-{n}") for n, code in enumerate(codes)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return what makes a folder of four notebooks, with chosen cells in chosen ones."""

    def make(default: str = "print(seed)", **codes: Any) -> Path:
        here = tmp_path / "notebooks"
        here.mkdir(exist_ok=True)
        for stage, stem in STAGES.items():
            given = codes.get(stage, default)
            made = given if not isinstance(given, str) else notebook(textwrap.dedent(given))
            nbformat.write(made, here / f"{stem}.ipynb")
        return here

    return make


@pytest.fixture(autouse=True)
def no_kernel_stays() -> Iterator[None]:
    """After every test, whatever it did: no process that it started is left."""
    before = set(psutil.Process().children(recursive=True))  # such as another test's pool
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [child.cmdline() for child in left]


def outputs(path: Path) -> list[str]:
    """Return what the code cells of an executed notebook show as text."""
    shown = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            shown.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return shown


def stop_of(folder: Path, artifacts: Path, *stages: str) -> str:
    """Run some stages, expect a stop, return its one line."""
    with pytest.raises(PipelineError) as stopped:
        run_notebooks(stages or ["stress_testing"], {}, artifacts, folder=folder)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


# --------------------------------------------------------------------------- running


def test_the_notebooks_run_in_order_with_their_parameters(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    here = folder("""
        import os
        from pathlib import Path
        log = Path(artifacts_dir) / "log.txt"
        before = log.read_text() if log.exists() else ""
        log.write_text(before + f"{seed} {Path.cwd().name} {os.environ['PYTHONHASHSEED']};")
        """)
    events: list[CellEvent] = []
    parameters = {stage: {"seed": number} for number, stage in enumerate(STAGES)}
    artifacts = tmp_path / "{new} artifacts"
    runs = run_notebooks(
        reversed(list(STAGES)), parameters, artifacts, folder=here, on_event=events.append
    )
    assert (artifacts / "log.txt").read_text() == "".join(f"{n} elsewhere 0;" for n in range(4))
    assert [run.output for run in runs] == [
        artifacts / "runs" / f"{stem}.ipynb" for stem in STAGES.values()
    ]
    assert all(run.output.is_file() and run.seconds > 0 for run in runs)
    assert [event.stage for event in events if event.kind == "finished"] == list(STAGES)
    assert all(e.cells_done == e.cells == 3 for e in events if e.kind == "finished")
    for path in here.iterdir():
        assert 'execution_count": 1' not in path.read_text(), "the sources stay as they were"


def test_a_kernel_that_was_warmed_shows_what_a_cold_one_shows(
    folder: Folder, tmp_path: Path
) -> None:
    here = folder(
        stress_testing="""
        import matplotlib.pyplot as plt
        from collections import Counter
        import sys, no_such_module_at_all
        """,
        regression="""
        import matplotlib.pyplot as plt
        print(sorted(name for name in globals() if not name.startswith("_")), plt.gca().lines[:])
        """,
    )
    message = stop_of(here, tmp_path)
    assert "In [3]: ModuleNotFoundError: No module named 'no_such_module_at_all'" in message
    [run] = run_notebooks(["regression"], {}, tmp_path, folder=here)
    seen = json.loads(run.output.read_text())["cells"][-1]["outputs"]
    assert [output["output_type"] for output in seen] == ["stream", "display_data"]
    assert "image/png" in seen[1]["data"]
    assert "['In', 'Out', 'artifacts_dir', 'exit', 'get_ipython', 'open', 'plt'" in (
        "".join(seen[0]["text"])
    )


def test_an_inherited_backend_or_kernelspec_changes_nothing(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "data" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "foreign"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    here = folder(stress_testing="import os, sys\nprint('MPLBACKEND', sys.executable)")
    [run] = run_notebooks(["stress_testing"], {}, tmp_path, folder=here)
    assert outputs(run.output) == [f"MPLBACKEND {sys.executable}\n"]


def test_nothing_is_written_to_the_terminal(folder: Folder, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder()), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n" * 4, "")


# --------------------------------------------------------------------------- stopping


def test_the_first_failing_notebook_stops_the_run(folder: Folder, tmp_path: Path) -> None:
    here = folder(regression="print('so far')\nraise ValueError('no\\nfailures ' + 'x' * 5000)")
    message = stop_of(here, tmp_path, *STAGES)
    copy = tmp_path / "runs" / "02_regression_tests.ipynb"
    assert message.startswith("02_regression_tests stopped at In [3]: ValueError: no failures xxx")
    assert message.endswith(f"...; see {copy}")
    assert "so far\n" in outputs(copy)
    assert not (tmp_path / "runs" / "03_release_gate.ipynb").exists()


def test_a_kernel_that_dies_is_named_with_its_cell(folder: Folder, tmp_path: Path) -> None:
    here = folder("import os, sys\nsys.__stderr__.write('out of luck\\n')\nos._exit(7)")
    message = stop_of(here, tmp_path)
    assert message.startswith("01_stress_testing stopped at In [3]: Kernel died")
    assert (tmp_path / "runs" / "01_stress_testing.ipynb").is_file()


def test_a_kernel_that_cannot_start_is_reported_with_its_last_words(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel_launcher.py").write_text("raise SystemExit('out of order')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    message = stop_of(folder(), tmp_path)
    assert message.startswith("01_stress_testing stopped at its start: ")
    assert "out of order; see" in message


def test_an_early_exit_is_not_success(folder: Folder, tmp_path: Path) -> None:
    here = folder(stress_testing=notebook("raise SystemExit(0)", "print('never')"))
    assert "01_stress_testing ended before its last cell; see" in stop_of(here, tmp_path)


DRIVER = """
import sys
from pathlib import Path
from safety_lib.pipeline import STAGES, run_notebooks
def show(event):
    if event.kind == "started":
        print("started", flush=True)
try:
    run_notebooks(STAGES, {}, sys.argv[2], folder=Path(sys.argv[1]), on_event=show)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_a_run_that_is_interrupted_or_killed(
    folder: Folder, tmp_path: Path, number: signal.Signals
) -> None:
    here = folder("""
        import time
        from pathlib import Path
        print("begun", flush=True)
        Path(artifacts_dir, "begun").touch()
        time.sleep(600)
        """)
    run = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(here), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert run.stdout
    assert run.stdout.readline() == "started\n"
    parent = psutil.Process(run.pid)
    until(lambda: len(parent.children(recursive=True)) >= 2)
    until((tmp_path / "begun").exists, 60)
    kernels = parent.children(recursive=True)
    time.sleep(1)  # what was printed is on its way
    run.send_signal(number)
    _, said = run.communicate(timeout=20)
    until(lambda: not any(kernel.is_running() for kernel in kernels))
    if number == signal.SIGINT:
        assert (run.returncode, said) == (1, "interrupted\n")
        assert "begun\n" in outputs(tmp_path / "runs" / "01_stress_testing.ipynb")


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition, and fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rolouts": 3}, "takes no 'rolouts': it takes seed, artifacts_dir"),
        ({"seed": "7"}, "takes seed as int, not '7'"),
        ({"seed": 7.0}, "takes seed as int, not 7.0"),
        ({"seed": True}, "takes seed as int, not True"),
        ({"seed": None}, "takes seed as int, not None"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_before_anything_runs(
    folder: Folder, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(PipelineError) as refused:
        run_notebooks(STAGES, {"release_gate": given}, tmp_path, folder=folder())
    assert str(refused.value) == f"03_release_gate.ipynb {said}"
    assert not list((tmp_path / "runs").iterdir())


def test_what_is_no_notebook_is_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="unknown stage 'stress': use stress_testing, regr"):
        run_notebooks(["stress"], {}, tmp_path)
    with pytest.raises(PipelineError, match="the notebooks belong to a checkout"):
        run_notebooks(["regression"], {}, tmp_path, folder=tmp_path)
    here = folder(stress_testing=notebook(parameters="seed: int = 7"))
    assert "takes no 'artifacts_dir': it takes seed" in stop_of(here, tmp_path)
    untagged = notebook()
    untagged.cells[1].metadata.clear()
    assert "no cell tagged 'parameters'" in stop_of(folder(stress_testing=untagged), tmp_path)
    strange = notebook()
    strange.metadata.clear()
    assert "cannot be read: No kernel name" in stop_of(folder(stress_testing=strange), tmp_path)
    (here / "01_stress_testing.ipynb").write_text('{"cells": 3')
    assert "is not a notebook" in stop_of(here, tmp_path)


def test_the_log_level_of_papermill_is_given_back(folder: Folder, tmp_path: Path) -> None:
    before = logging.getLogger("papermill").level
    stop_of(folder("1 / 0"), tmp_path)
    assert logging.getLogger("papermill").level == before


# --------------------------------------------------------------------------- the plan


def test_the_plan_is_the_file_then_the_model_then_the_overrides() -> None:
    plan = load_plan()
    assert list(plan) == list(STAGES)
    assert plan["stress_testing"]["rollouts"] == 200
    small = load_plan("local", {"release_gate": {"trials": 3}, "seed": 8, "baseline": None})
    assert small["release_gate"]["trials"] == 3
    assert 0 < small["release_gate"]["max_tests"] < 10
    assert {parameters["seed"] for parameters in small.values()} == {8}
    assert {parameters["model"] for parameters in small.values()} == {"local"}
    assert {parameters["baseline"] for parameters in small.values()} == {"v1"}
    assert load_plan("openai:gpt")["regression"] == load_plan("record:a.json:openai:gpt")[
        "regression"
    ] | {"model": "openai:gpt"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stress": {}}, "unknown key 'stress'"),
        ({"seed": ...}, "key 'seed' is missing"),
        ({"regression": ...}, "key 'regression' is missing"),
        ({"regression": 3}, "regression must be a mapping, not 3"),
        ({"models": {"local": {"rolouts": 1}}}, "no stage takes 'rolouts'; see "),
        (
            {"models": {"local": {"regression": {"trials": 1}}}},
            "stage regression takes no 'trials'",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tree = yaml.safe_load((NOTEBOOKS / "demo.yaml").read_text())
    tree = {key: value for key, value in {**tree, **change}.items() if value is not ...}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(PipelineError) as refused:
        load_plan(folder=tmp_path)
    assert said in str(refused.value)
    assert "demo.yaml" in str(refused.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "!!python/object:os.system {}"])
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "demo.yaml").write_text(text)
    with pytest.raises(PipelineError) as refused:
        load_plan(folder=tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(PipelineError, match=r"demo\.yaml is not in .*nowhere: the notebooks"):
        load_plan(folder=tmp_path / "nowhere")


def test_the_plan_says_what_the_notebooks_say() -> None:
    plan = load_plan()
    for stage, stem in STAGES.items():
        takes = papermill.inspect_notebook(str(NOTEBOOKS / f"{stem}.ipynb"))
        defaults = {name: yaml.safe_load(seen["default"]) for name, seen in takes.items()}
        assert defaults.pop("artifacts_dir") == ""
        assert plan[stage] == defaults, stem


# --------------------------------------------------------------------------- the committed copies


def test_refreshing_twice_gives_the_same_bytes(folder: Folder) -> None:
    here = folder("""
        import sys
        print({"a", "b", "c"})
        sys.stdout.flush()
        print("more")
        import matplotlib.pyplot as plt
        plt.plot([1, 2])
        plt.show()
        """)
    paths = refresh_notebooks(here)
    first = [path.read_bytes() for path in paths]
    assert first == [path.read_bytes() for path in refresh_notebooks(here)]
    made = nbformat.read(paths[0], as_version=4)
    nbformat.validate(made)
    assert set(made.metadata) == {"kernelspec", "language_info"}
    assert made.metadata.language_info == {"name": "python"}
    assert [cell.metadata for cell in made.cells] == [{}, {"tags": ["parameters"]}, {}]
    assert [cell.id for cell in made.cells] == ["title", "parameters", "cell-0"]
    assert [output.output_type for output in made.cells[2].outputs] == ["stream", "display_data"]


def test_nothing_is_refreshed_when_one_notebook_fails(folder: Folder) -> None:
    here = folder(incident_replay="1 / 0")
    before = {path: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(PipelineError, match="04_incident_replay"):
        refresh_notebooks(here)
    assert {path: path.read_bytes() for path in here.iterdir()} == before
    assert os.listdir(here) == [path.name for path in before]  # noqa: PTH208
