"""What several test modules share: a browser, and the site that it opens."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from safety_lib.pipeline.plan import CHECKOUT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell's background job ignores Ctrl-C and hands that on to every process it starts; some tests
# press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Not for the session: as long as playwright's driver runs, asyncio.run() is refused everywhere in
# this process, and the modules in between run notebooks with it.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as the machine has it; playwright's own cannot be fetched everywhere."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (it is in the dev extra)")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser here, none of {', '.join(names)}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Root may not start Chromium's own sandbox, and CI is often root.
        opened = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the HTML edition of what is committed."""
    from safety_lib.pipeline.site import build_site

    folder = tmp_path_factory.mktemp("artifacts")
    for path in (CHECKOUT / "artifacts").glob("*.*"):
        shutil.copy(path, folder)
    return build_site(folder).parent


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Return the folder for pictures of what was opened; git does not see it."""
    folder = CHECKOUT / "artifacts" / "runs"
    folder.mkdir(exist_ok=True)
    return folder
