"""The page as a reader opens it: in headless Chromium, with hostile replies in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from factories import a_report, a_result, a_stratum

from safety_lib.records import (
    GateReport,
    GateStep,
    TestResult,
    Turn,
)
from safety_lib.report import render_gate_report, render_junit, render_markdown

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ESCAPE, RLO = chr(27), chr(0x202E)
# What stands in the reply, and what a reader has to see of it.
REPLIES = {
    "script tag": ("<script>window.broken = 1</script>", "<script>window.broken = 1</script>"),
    "closing script": (
        "</script></style></title><img src=x onerror=window.broken=2>",
        "</script></style></title><img src=x onerror=window.broken=2>",
    ),
    "ANSI sequence": (f"{ESCAPE}[31mall is well{ESCAPE}[0m", "\\x1b[31mall is well\\x1b[0m"),
    "right-to-left override": (f"pay {RLO}000,5$ now", "pay U+202E000,5$ now"),
    "a line of 1 MB": ("a" * 1_000_000 + " end", "[996,004 characters left out]"),
    "a picture from outside": (
        '<img src="http://tracker.invalid/p.png"> ![x](http://tracker.invalid/p.png)',
        '<img src="http://tracker.invalid/p.png"> ![x](http://tracker.invalid/p.png)',
    ),
    "attributes": (
        '" autofocus onfocus="window.broken=3" x="javascript:window.broken=4',
        '" autofocus onfocus="window.broken=3" x="javascript:window.broken=4',
    ),
    "markup of a style": (
        "</style><style>*{background:url(http://tracker.invalid/)}</style>",
        "</style><style>*{background:url(http://tracker.invalid/)}</style>",
    ),
}


def hostile_test(number: int, reply: str) -> TestResult:
    return a_result(
        number,
        family=f"record_exfiltration/{number % 3}",
        evidence_version="v2",
        evidence=(
            Turn(turn=1, user="hello", assistant=reply, tool_calls=(reply[:200],)),
            Turn(turn=2, user="go on", assistant="done", violations=("record_exfiltration",)),
        ),
    )


def hostile_report(**changes: Any) -> GateReport:
    replies = [reply for reply, _ in REPLIES.values()]
    hostile: dict[str, Any] = {
        "model": replies[0],
        "reasons": (f"T-000 fell {replies[0]}", replies[2], replies[3]),
        "steps": tuple(
            GateStep(step=i, title=reply[:100], status="block", reason=f"T-00{i} {reply}")
            for i, reply in enumerate(replies[:4])
        ),
        "strata": (a_stratum(replies[1], -0.5, -0.6, -0.4),),
        "by_category": {replies[0]: {"delta": -0.5}},
        "test_results": tuple(hostile_test(i, reply) for i, reply in enumerate(replies)),
    }
    return a_report(**(hostile | changes))


# --------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("kind", REPLIES)
def test_a_hostile_reply_is_text_in_the_junit_file(kind: str) -> None:
    import xml.etree.ElementTree as ET

    reply, _ = REPLIES[kind]
    raw = render_junit(hostile_report(test_results=(hostile_test(0, reply),)))
    root = ET.fromstring(raw)
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure",
    }  # fmt: skip
    assert ESCAPE not in raw
    assert RLO not in raw
    assert len(raw) < 20_000
    text = root.findtext(".//failure") or ""
    shown = reply[:200].replace(ESCAPE, "[\\x1b]").replace(RLO, "[U+202E]")
    assert f"[1] agent: {shown}" in text


def test_hostile_text_is_text_in_markdown() -> None:
    raw = render_markdown(hostile_report())
    assert ESCAPE not in raw
    assert RLO not in raw
    assert len(raw) < 20_000
    outside = "".join(raw.split("`")[::2])
    assert not any(mark in outside for mark in ("<", "@", "](", "http", "&"))
    assert "`T-000 fell <script>window.broken = 1</script>`" in raw


# --------------------------------------------------------------------------- in the browser


class Opened:
    """A page with everything that it did which it should not do."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = hostile_report()
    earlier = report.model_copy(update={"candidate": "</td><script>window.broken=5</script>"})
    history = (earlier.release, report.release)
    written = tmp_path_factory.mktemp("page") / "gate_report.html"
    written.write_text(render_gate_report(report, history), encoding="utf-8")
    return written


def test_no_script_runs_nothing_fails_and_nothing_is_fetched(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        text = seen.page.inner_text("main")
        for kind, (_, shown) in REPLIES.items():
            assert shown in text, kind
        assert seen.page.evaluate("window.broken") is None
        counts = {
            tag: seen.page.locator(tag).count()
            for tag in ("script", "img", "iframe", "object", "form", "link", "base", "style")
        }
        assert counts == dict.fromkeys(counts, 0) | {"style": 1}
        assert seen.page.locator("[onerror], [onfocus], [autofocus]").count() == 0
        assert (seen.errors, seen.requests) == ([], [path.as_uri()])


def test_the_page_of_the_last_real_run_opens_as_it_was_written(browser: Browser) -> None:
    committed = Path(__file__).resolve().parent.parent / "artifacts" / "gate_report.html"
    with Opened(browser, committed) as seen:
        assert seen.page.inner_text("section.verdict h2").startswith("Verdict: ")
        assert (seen.errors, seen.requests) == ([], [committed.as_uri()])


def test_the_policy_of_the_page_stops_what_escaping_might_let_through(
    browser: Browser, tmp_path: Path
) -> None:
    html = render_gate_report(hostile_report())
    slipped = tmp_path / "slipped.html"
    slipped.write_text(
        html.replace("</main>", "<script>window.broken = 9</script></main>"), encoding="utf-8"
    )
    with Opened(browser, slipped) as seen:
        assert seen.page.evaluate("window.broken") is None
        assert any("Content Security Policy" in error for error in seen.errors)


def test_a_link_unfolds_the_evidence_of_its_test(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as seen:
        evidence = seen.page.locator("#test-T-003")
        assert not evidence.is_visible()
        seen.page.locator("section[aria-labelledby=steps] a[href='#test-T-003']").click()
        evidence.wait_for(state="visible")
        assert "000,5$ now" in evidence.inner_text()
        assert seen.requests == [path.as_uri()]


def test_the_page_can_be_read_with_the_keyboard_alone(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as seen:
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.className") == "skip"
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            if seen.page.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
        first = seen.page.locator("details").first
        assert first.get_attribute("open") is None
        seen.page.keyboard.press("Enter")
        assert first.get_attribute("open") is not None


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_of_the_window(browser: Browser, path: Path, width: int) -> None:
    with Opened(browser, path, viewport={"width": width, "height": 800}) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = seen.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width


def test_paper_shows_the_worst_transcripts_without_a_click(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as seen:
        evidence = seen.page.locator("#test-T-000")
        assert not evidence.is_visible()
        seen.page.emulate_media(media="print")
        assert evidence.is_visible()
        assert seen.page.pdf().startswith(b"%PDF")
        assert (seen.errors, seen.requests) == ([], [path.as_uri()])


def test_verdict_and_states_are_words_where_there_is_no_colour(
    browser: Browser, path: Path
) -> None:
    with Opened(browser, path, forced_colors="active") as seen:
        shape = seen.page.locator("section.verdict svg")
        assert shape.is_visible()
        assert "Verdict: BLOCK" in seen.page.inner_text("section.verdict")
        assert "worse" in (seen.page.locator("svg.forest").text_content() or "")
