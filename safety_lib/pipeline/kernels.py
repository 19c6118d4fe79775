"""Kernels that start before their notebook does, and never outlive the run."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from safety_lib.artifacts import CHECKOUT
from safety_lib.pipeline.plan import PipelineError

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

_AHEAD = 2
_LATE = ("pandas", "matplotlib.pyplot")  # what tables and figures import
_ARGUMENTS = (
    "--IPKernelApp.log_level=40",  # else every start warns that loopback is not encrypted
    "--HistoryManager.hist_file=:memory:",
)


@dataclass(frozen=True)
class Kernel:
    """A kernel process of this interpreter, whatever kernels the machine has under that name."""

    manager: AsyncKernelManager
    stderr: IO[bytes]

    @classmethod
    def start(cls, notebook: Path, *, warm: bool) -> Kernel:
        """Start a kernel in the current folder and return at once.

        Parameters
        ----------
        notebook : Path
            What it will run.
        warm : bool
            Import what the notebook imports, before it is asked to, and what the library would
            import under way. An import that fails is left for the cell to report.
        """
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        specs = KernelSpecManager(kernel_dirs=[])
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        arguments = list(_ARGUMENTS)
        if warm:
            suppressed = "with __import__('contextlib').suppress(Exception): "
            imports = f"[__import__(name) for name in {[*_imports(notebook), *_LATE]}]"
            arguments.append(f"--IPKernelApp.exec_lines={suppressed}{imports}")
        kernel = cls(manager, tempfile.TemporaryFile())  # noqa: SIM115 - kernels() closes it
        try:
            run_sync(manager.start_kernel)(
                extra_arguments=arguments,
                env=_environment(),
                stderr=kernel.stderr,
            )
        except BaseException:
            kernel.stderr.close()
            raise
        return kernel

    @contextmanager
    def running(self, client: NotebookClient) -> Iterator[None]:
        """End the kernel, and whatever its client still waits for, when the block is left."""
        from jupyter_core.utils import run_sync

        try:
            yield
        finally:
            run_sync(_cancel_tasks)()
            if client.kc is not None:
                client.kc.stop_channels()
            self.stop()

    def last_words(self) -> str:
        """Return the last line that the process wrote, such as why it could not start."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode("utf-8", "replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """End the process, and every process that it started, if it still runs."""
        from jupyter_core.utils import run_sync

        if self.manager.has_kernel:
            run_sync(self.manager.shutdown_kernel)(now=True)


async def _cancel_tasks() -> None:
    # Ctrl-C leaves the client's tasks behind, and asyncio would complain about them at exit.
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def kernels(notebooks: Sequence[Path], *, warm: bool = True) -> Iterator[Callable[[], Kernel]]:
    """Start kernels ahead of their notebooks, hand them out in order, end them all.

    Parameters
    ----------
    notebooks : sequence of Path
        What will run, in order.
    warm : bool, optional
        Whether a kernel imports what its notebook imports while it waits.

    Yields
    ------
    callable
        Returns the kernel of the next notebook; the one after that starts then.
    """
    waiting = iter(notebooks)
    started: list[Kernel] = []
    taken = iter(started)

    def start_next() -> None:
        started.extend(Kernel.start(notebook, warm=warm) for notebook in islice(waiting, 1))

    def take() -> Kernel:
        kernel = next(taken)
        start_next()
        return kernel

    try:
        for _ in range(_AHEAD):
            start_next()
        yield take
    finally:
        for kernel in started:
            kernel.stop()
            kernel.stderr.close()


def code_cells(notebook: Path) -> list[str]:
    """Return the code cells that are not empty, without the second that importing nbformat takes.

    Raises
    ------
    PipelineError
        If the file is not a notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{notebook} is not a notebook of format 4") from error
    return [code for code in codes if code.strip()]


def _imports(notebook: Path) -> list[str]:
    names: dict[str, None] = {}
    for code in code_cells(notebook):
        try:
            body = ast.parse(code).body
        except SyntaxError:  # the cell itself will say so
            continue
        for node in body:
            if isinstance(node, ast.Import):
                names.update((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names[node.module] = None
    return list(names)


def _environment() -> dict[str, str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    environment.pop("MPLBACKEND", None)  # an inherited "agg" would take away every figure
    # The notebooks use the library that runs them, installed or not.
    paths = [str(CHECKOUT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
