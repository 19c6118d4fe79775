"""What several test modules share: one search, one suite, one incident; a browser and a site."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from safety_lib.__main__ import main
from safety_lib.artifacts import CHECKOUT, read_incident
from safety_lib.incident.interventions import intervene, plan_interventions, replacements
from safety_lib.incident.replay import Replay, replay_incident
from safety_lib.records import Incident, Intervention, StressFailures, Suite
from safety_lib.regression.generate import generate_suite
from safety_lib.rollout.campaign import Known, Run
from safety_lib.stress.discovery import Discovery, discover
from safety_lib.world import load_version

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell's background job ignores Ctrl-C and hands that on to every process it starts; some tests
# press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


collect_ignore = ["interop", "chaos"]  # real frameworks, by `make interop`; faults, by `make chaos`


def pytest_collection_finish() -> None:
    """Keep what collecting brought in from being looked through again and again for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever opens a browser is slow."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


BOTH = {name: load_version(name, "northwind") for name in ("v1", "v2")}


@pytest.fixture(scope="session")
def discovery() -> Discovery:
    """Return v1 and v2 as they were attacked, in fifty conversations each."""
    return discover(*BOTH.values(), run=Run(seed=100), rollouts=50)


@pytest.fixture(scope="session")
def stressed(discovery: Discovery) -> StressFailures:
    """Return what stage 1 writes of it."""
    return discovery.artifact()


@pytest.fixture(scope="session")
def suite(stressed: StressFailures) -> Suite:
    """Return the suite that stage 2 makes of it."""
    return generate_suite(stressed, BOTH, run=Run(seed=stressed.seed))


@pytest.fixture(scope="session")
def known() -> Known:
    """Return the conversations that gates have held so far, so that no gate holds them again."""
    return {}


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all that the four commands write by default, and what they say."""
    folder = tmp_path_factory.mktemp("loop")
    for name in ("incident_example.json", "production_log.parquet"):
        shutil.copy(CHECKOUT / "artifacts" / name, folder)
    for name, code in {"stress": 0, "regress": 0, "gate": 2, "replay": 0}.items():
        said, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            assert main([name, "--artifacts", str(folder)]) == code
        assert complained.getvalue() == ""
        (folder / f"{name}.txt").write_text(said.getvalue(), encoding="utf-8")
        if name == "gate":
            shutil.copy(folder / "regression_tests.json", folder / "before.json")
    return folder


@pytest.fixture(scope="session")
def incident() -> Incident:
    """Return the incident of the sample inputs."""
    return read_incident(CHECKOUT / "artifacts" / "incident_example.json")


@pytest.fixture(scope="session")
def incident_replay(incident: Incident) -> Replay:
    """Return it as it came back on v2, forty times."""
    return replay_incident(incident, BOTH["v2"], run=Run(seed=7), replays=40)


@pytest.fixture(scope="session")
def effects(incident_replay: Replay) -> dict[str, Intervention]:
    """Return what each intervention on it did, by name."""
    planned = plan_interventions(incident_replay, BOTH["v1"]), replacements(incident_replay)
    held = intervene(incident_replay, [*planned[0], *planned[1]])
    return {effect.name: effect for effect in held}


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
