"""What a person who cannot see a page well, or has no mouse, meets: axe-core over each page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest

from safety_lib.artifacts import CHECKOUT
from safety_lib.pipeline.plan import STAGES
from safety_lib.pipeline.site import GUIDES
from safety_lib.report.documents import DOCUMENTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = ("index", "readme", "api", "gate_report", *STAGES.values(), *GUIDES, *DOCUMENTS)
STOPPING = ("serious", "critical")
# What is folded is not looked at, and the transcripts of a report are all made alike.
UNFOLD = "[...document.querySelectorAll('details')].slice(0, 5).forEach(d => d.open = true)"
# Each of these breaks the rule that it stands beside, and no other.
BROKEN = {
    "color-contrast": '<p style="color:#999">Grey on white.</p>',
    "image-alt": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "label": '<input type="checkbox">',
    "link-in-text-block": '<p>Read <a href="#" style="text-decoration:none">this</a> first.</p>',
    "html-has-lang": "<script>document.documentElement.removeAttribute('lang')</script>",
    "document-title": "<script>document.title = ''</script>",
    "scrollable-region-focusable": '<div style="height:2em;overflow:auto">One<p>Two<p>Three</div>',
}


class Seen(NamedTuple):
    """What a page asked for, what it complained of, and what axe-core holds against it."""

    requests: list[str]
    complaints: list[str]
    violations: list[str]
    stopping: set[str]
    passed: int


Look = Callable[..., Seen]


@pytest.fixture(scope="module")
def look(browser: Browser, screenshots: Path) -> Look:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed (it is in the dev extra)",
    ).Axe()

    page = browser.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def look(path: Path, scheme: Literal["light", "dark"] = "light") -> Seen:
        requests.clear()
        complaints.clear()
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        page.screenshot(path=screenshots / f"page_{path.stem}_{scheme}.png")
        page.evaluate(UNFOLD)
        found = axe.run(page).response
        lines = [
            f"{path.name}: {rule['id']} ({rule['impact']}) at {' '.join(map(str, node['target']))}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]
        print(*lines, sep="\n")
        stopping = {r["id"] for r in found["violations"] if r["impact"] in STOPPING}
        return Seen([*requests], [*complaints], lines, stopping, len(found["passes"]))

    return look


@pytest.fixture(scope="module", params=PAGES)
def seen(request: pytest.FixtureRequest, look: Look, site: Path) -> Iterator[tuple[Path, Seen]]:
    path = site / f"{request.param}.html"
    yield path, look(path)


@pytest.mark.slow
def test_every_page_of_the_site_is_looked_at(site: Path) -> None:
    assert {path.stem for path in site.glob("*.html")} == set(PAGES)


def test_no_page_of_the_site_shuts_anybody_out(seen: tuple[Path, Seen]) -> None:
    _, found = seen
    assert found.passed >= 15
    assert not found.stopping, "\n".join(found.violations)


def test_a_page_of_the_site_opens_from_disk_without_asking_for_anything(
    seen: tuple[Path, Seen],
) -> None:
    path, found = seen
    assert [url for url in found.requests if not url.startswith("data:")] == [path.as_uri()]
    assert found.complaints == []


def test_the_report_that_is_mailed_shuts_nobody_out_in_the_dark(look: Look) -> None:
    found = look(CHECKOUT / "artifacts" / "gate_report.html", "dark")
    assert found.passed >= 15
    assert not found.stopping, "\n".join(found.violations)


@pytest.mark.parametrize("rule", BROKEN)
def test_what_shuts_somebody_out_is_noticed(look: Look, tmp_path: Path, rule: str) -> None:
    page = tmp_path / "broken.html"
    page.write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title></head>'
        f"<body><main><h1>A page</h1>{BROKEN[rule]}</main></body></html>",
        encoding="utf-8",
    )
    assert look(page).stopping == {rule}


def test_a_request_to_elsewhere_is_noticed(look: Look, tmp_path: Path) -> None:
    page = tmp_path / "asks.html"
    page.write_text('<html><img src="http://127.0.0.1:9/p.png"></html>', encoding="utf-8")
    found = look(page)
    assert found.requests == [page.as_uri(), "http://127.0.0.1:9/p.png"]
    assert found.complaints
