"""The committed notebooks: executed in place, kept with outputs, the same bytes every time."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

from safety_lib.artifacts import CHECKOUT
from safety_lib.files import write_bytes, write_text
from safety_lib.pipeline.kernels import kernels
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, PipelineError, message_line, notebook_of
from safety_lib.pipeline.run import CLIENT, import_papermill

PICTURE = CHECKOUT / "artifacts" / "docs" / "survival.png"
"""The picture of a result that the README shows."""

_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """Execute the four notebooks with the defaults that stand in them and keep their outputs.

    Nothing is written before all four ran. What depends on the moment or the machine is not kept:
    timings, widget state, the version of Python.

    Parameters
    ----------
    folder : Path, optional
        Where the notebooks are.

    Returns
    -------
    list of Path
        The notebooks.

    Raises
    ------
    PipelineError
        At the first notebook that stops.
    """
    import_papermill()
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    sources = [notebook_of(stage, folder) for stage in STAGES]
    refreshed = {}
    with kernels(sources, warm=False) as take:  # a reader's kernel is not warm either
        for source in sources:
            notebook: Any = nbformat.reads(source.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
            kernel = take()
            client = NotebookClient(notebook, kernel.manager, record_timing=False, **CLIENT)
            try:
                with kernel.running(client):
                    client.execute()
            except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError) as error:
                said = message_line(str(error).strip().rpartition("\n")[2])
                raise PipelineError(f"{source.name} stopped, nothing is written: {said}") from error
            _strip(notebook)
            refreshed[source] = nbformat.writes(notebook) + "\n"  # type: ignore[no-untyped-call]
    return [write_text(source, text) for source, text in refreshed.items()]


def write_picture(folder: Path = NOTEBOOKS, target: Path = PICTURE) -> Path:
    """Write the figure that the README shows: the survival curves as notebook 1 drew them.

    Parameters
    ----------
    folder : Path, optional
        Where the executed notebooks are.
    target : Path, optional
        The picture.

    Returns
    -------
    Path
        The picture.
    """
    import nbformat

    notebook: Any = nbformat.read(notebook_of("stress_testing", folder), as_version=4)  # type: ignore[no-untyped-call]
    (cell,) = (cell for cell in notebook.cells if cell.id == "survival")
    drawn = next(of.data["image/png"] for of in cell.outputs if "image/png" in of.get("data", {}))
    return write_bytes(target, b64decode(drawn))


def _strip(notebook: Any) -> None:
    notebook.metadata.clear()
    notebook.metadata.update(_METADATA)
    for cell in notebook.cells:
        kept = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        cell.metadata.clear()
        cell.metadata.update(kept)
