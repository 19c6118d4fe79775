"""The notebooks as a reader meets them: JupyterLab in a real browser, Run All, figures drawn."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from safety_lib.pipeline import NOTEBOOKS, STAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

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
    """What `make lab` starts, over a copy of the checkout, so that nothing here is written to."""
    here = tmp_path_factory.mktemp("lab")
    for folder in ("notebooks", "artifacts", "safety_lib"):
        left_out = shutil.ignore_patterns("runs", "site", "__pycache__")
        shutil.copytree(ROOT / folder, here / folder, ignore=left_out)
    for file in ("README.md", "Makefile"):
        shutil.copy(ROOT / file, here)
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    environment |= {
        "JUPYTER_RUNTIME_DIR": str(here / "runtime"),
        "JUPYTER_CONFIG_DIR": str(here / "config"),
        "PYTHONPATH": str(here),
    }
    command = [sys.executable, "-m", "jupyter", "lab", *given_by_make()]
    command += ["--no-browser", "--allow-root", "--port=0", "--ServerApp.ip=127.0.0.1"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield address(here / "runtime"), here
    finally:
        server.terminate()
        server.wait(timeout=20)


def given_by_make() -> list[str]:
    """Return the arguments that the Makefile gives to JupyterLab."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlab:")[1].split("\n\n")[0]
    return shlex.split(recipe.split(" -m jupyter lab")[1])


def address(runtime: Path) -> str:
    """Return the address that opens by itself; the server has written it down once it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for found in runtime.glob("jpserver-*.json"):
            seen = json.loads(found.read_text() or "{}")
            if seen.get("port"):
                return f"http://127.0.0.1:{seen['port']}/?token={seen['token']}"
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


def test_it_opens_at_the_notebooks_and_what_they_link_to_is_there(lab: tuple[str, Path]) -> None:
    with urllib.request.urlopen(lab[0], timeout=20) as shown:
        assert shown.url.split("?")[0].endswith("/lab/tree/notebooks")
    first = json.loads((ROOT / "notebooks" / f"{STAGES['stress_testing']}.ipynb").read_text())
    title = "".join(first["cells"][0]["source"])
    links = [*re.findall(r"\]\((?!http)([^)#]+)", title), "../README.md"]
    assert any(link.startswith("../artifacts/") for link in links)
    base, _, token = lab[0].partition("?")
    for link in links:
        there = urljoin(f"{base}api/contents/notebooks/", link)
        with urllib.request.urlopen(f"{there}?content=0&{token}", timeout=20) as found:
            assert json.load(found)["type"] in ("notebook", "file"), link


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
