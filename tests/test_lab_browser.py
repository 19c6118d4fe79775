"""The notebooks as a reader meets them: JupyterLab in a real browser, Run All, figures drawn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from safety_lib.pipeline import NOTEBOOKS, STAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = NOTEBOOKS.parent
OPEN = """async path => {
    await window.jupyterapp.restored;
    const panel = await window.jupyterapp.commands.execute(
        'docmanager:open', {path, factory: 'Notebook'});
    await panel.context.ready;
    await panel.sessionContext.ready;
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "() => window.jupyterapp.shell.currentWidget.context.model.toJSON().cells"
PAINTED = """() => [...document.querySelectorAll('.jp-OutputArea img')]
    .map(image => image.complete && image.naturalWidth > 0)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """JupyterLab on the loopback interface over a copy, so that nothing here is written to."""
    here = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", here / "notebooks")
    shutil.copytree(
        ROOT / "artifacts", here / "artifacts", ignore=shutil.ignore_patterns("runs", "site")
    )
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment |= {
        "JUPYTER_RUNTIME_DIR": str(here / "runtime"),
        "JUPYTER_CONFIG_DIR": str(here / "config"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={here}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield address(here / "runtime"), here
    finally:
        server.terminate()
        server.wait(timeout=20)


def address(runtime: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for found in runtime.glob("jpserver-*.json"):
            seen = json.loads(found.read_text() or "{}")
            if seen.get("port"):
                return f"http://127.0.0.1:{seen['port']}/lab?token={seen['token']}"
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start within a minute")


@pytest.fixture(scope="module")
def page(browser: Browser, lab: tuple[str, Path]) -> Page:
    shown = browser.new_page(viewport={"width": 1200, "height": 900})
    shown.goto(lab[0])
    shown.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
    return shown


def finished(page: Page) -> list[dict[str, Any]]:
    """Wait until every code cell has been run, and return the cells."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        cells: list[dict[str, Any]] = page.evaluate(CELLS)
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        failed = any(o["output_type"] == "error" for c in code for o in c["outputs"])
        if failed or all(cell["execution_count"] for cell in code):
            return code
        page.wait_for_timeout(200)
    raise AssertionError("the notebook did not come to its end within two minutes")


@pytest.mark.parametrize("stem", STAGES.values())
def test_run_all_ends_without_an_error_and_with_figures(
    page: Page, screenshots: Path, stem: str
) -> None:
    page.evaluate(OPEN, f"notebooks/{stem}.ipynb")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert not any(cell.get("execution_count") for cell in page.evaluate(CELLS))
    page.evaluate(RUN_ALL)
    cells = finished(page)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o.get("evalue") for o in outputs if o["output_type"] == "error"]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]
    figures = sum("image/png" in o.get("data", {}) for o in outputs)
    assert figures >= 2
    page.wait_for_function(f"() => ({PAINTED})().filter(Boolean).length >= 1", timeout=20_000)
    assert all(page.evaluate(PAINTED))
    page.screenshot(path=screenshots / f"{stem}.png")
