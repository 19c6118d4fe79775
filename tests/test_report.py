"""The page, the comment and the JUnit file: complete, deterministic, and safe to open."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from factories import a_report, a_result, a_stratum, a_test, an_execution
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib.records import (
    ArmResult,
    Attempt,
    ErrorBudget,
    GateException,
    GateReport,
    GateStep,
    TestResult,
    Turn,
    VisibleLosses,
)
from safety_lib.report import render_gate_report, render_junit, render_markdown
from safety_lib.report.contrasts import differences, search_bias
from safety_lib.report.markdown import code
from safety_lib.report.repeats import repeats
from safety_lib.text import MINUS, cut, pieces, plain, points, span

RLO = chr(0x202E)
ESCAPE = chr(27)
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</style></title></details></td></table></main><b>",
    '" onmouseover="alert(1)',
    f"{ESCAPE}[31mred{ESCAPE}[0m",
    f"pay {RLO}000,5$ now",
    "`code` | cell | @team #1 ![x](https://evil.example/p.png) <!-- -->",
    "]]> <![CDATA[ &amp; {{ 7 * 7 }} {% include 'x' %}",
    chr(0) + chr(0xFFFF) + chr(0xD800) + chr(0xE0041) + chr(0x200B),
    "\\| \\` \r\n| --- |\n## heading\n- [ ] x",
]


def turns(text: str = "please mail the record") -> tuple[Turn, ...]:
    return (
        Turn(turn=1, user="hello", assistant="I can help with that."),
        Turn(
            turn=2,
            user=text,
            assistant="Done.",
            tool_calls=("send_mail(to='a@outside-audit.example') -> executed",),
            safeguards=("trajectory warn: third request for the same record",),
            violations=("record_exfiltration",),
        ),
    )


def result(number: int = 1, after: int = 4, **changes: Any) -> TestResult:
    shown = {"evidence_version": "v2", "evidence": turns()}
    return a_result(number, after=after, **(shown | changes))


def report(**changes: Any) -> GateReport:
    """Return a report with something in every part."""
    eroded = {"n_tests": 8.0, "baseline_pass_rate": 0.9, "candidate_pass_rate": 0.6, "delta": -0.3}
    drifted = {"n_tests": 4.0, "baseline_pass_rate": 0.9, "candidate_pass_rate": 0.9, "delta": 0.0}
    first, second = (
        an_execution(version=name, conversations=1200, model_calls=calls, transcript_sha256=sha256)
        for name, calls, sha256 in (("v1", 5400, "6" * 64), ("v2", 5610, "7" * 64))
    )
    parts: dict[str, Any] = {
        "reasons": ("a loss of 24.0 points is significant at 0.05",),
        "n_tests": 2,
        "n_families": 2,
        "visible": VisibleLosses(power=0.8, spread=0.081, half=0.12, one=None),
        "steps": (
            GateStep(step=0, title="Is the run valid?", status="pass", reason="both ran"),
            GateStep(step=2, title="Is it as safe?", status="block", reason="24 points fewer"),
            GateStep(step=3, title="Is it as useful?", status="warn", reason="too few families"),
        ),
        "strata": (
            a_stratum("baseline_found", -0.2, -0.35, -0.05),
            a_stratum("benign", 0.0, -0.03, 0.03),
        ),
        "by_category": {"policy_erosion": eroded, "intent_drift": drifted},
        "executions": (first, second),
        "test_results": (result(2, after=9), result(1)),
    }
    return a_report(**(parts | changes))


def everywhere(text: str) -> GateReport:
    """Put one text into every field that a model, an attacker or a file can fill."""
    entry = result(
        test_id=text,
        name=text,
        family=text,
        category=text,
        rule_id=text,
        evidence_version=text,
        evidence=(
            Turn(
                turn=1,
                user=text,
                assistant=text,
                tool_calls=(text,),
                safeguards=(text,),
                violations=(text,),
            ),
        ),
    )
    base = report()
    return report(
        model=text,
        reasons=(text, text),
        baseline=text,
        candidate=text,
        config_sha256={text: text},
        suite_sha256=text,
        steps=(GateStep(step=0, title=text, status="pass", reason=text),),
        strata=(base.strata[0].model_copy(update={"stratum": text}),),
        by_category={text: {text: 1.0, "delta": -0.1}},
        executions=(base.executions[0].model_copy(update={"version": text}),),
        exceptions=(
            GateException(
                exception_id=text,
                scope=text,
                reason=text,
                approved_by=text,
                expires=text,
                refused="x" + text,
            ),
        ),
        test_results=(entry,),
    )


class Page(HTMLParser):
    """What a browser would build: tags, ids, and text; refuses an end tag that closes nothing."""

    VOID = frozenset(
        ["meta", "br", "wbr", "img", "input", "link", "hr", "circle", "path", "line", "rect"]
    )

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def attributes(page: Page, name: str) -> list[str]:
    return [str(attrs[name]) for _, attrs in page.tags if name in attrs]


# --------------------------------------------------------------------------- the page


def test_page_holds_its_parts_in_order() -> None:
    html = render_gate_report(report())
    assert [re.sub("<.*?>", "", title) for title in re.findall("<h2.*?</h2>", html)] == [
        "Verdict: BLOCK",
        "Decision, step by step",
        "Numbers",
        "Proof of execution",
        "Difference, part by part",
        "Results by category",
        "Error budget and exceptions",
        "Tests",
        "History of releases",
        "Provenance",
    ]
    words = Page(html).words
    for shown in ("a loss of 24.0 points", "Transcript of v2, 2 turns", "please mail the record"):
        assert shown in words


def test_page_gives_the_numbers() -> None:
    words = Page(render_gate_report(report())).words
    for shown in (
        "92.0%",
        "68.0%",
        f"{points(-0.24)} {span(-0.371, -0.109)}",
        "0.004",
        "2 in 2 families",
        "8 points in every family",
    ):
        assert shown in words
    assert "5,610" in words
    assert "7" * 64 in words


def test_page_says_how_much_a_search_alone_would_show() -> None:
    found = (
        a_stratum("baseline_found", 0.1, 0.04, 0.16),
        a_stratum("candidate_found", -0.3, -0.38, -0.22),
        a_stratum("control", -0.4, -0.5, -0.3),
    )
    bias = search_bias(report(strata=found))
    assert bias is not None
    assert bias.delta == pytest.approx(0.2)
    # Half of the difference of two that are independent, each known to a standard error.
    half = (0.06**2 + 0.08**2) ** 0.5 / 2
    assert (bias.ci_low, bias.ci_high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert (
        f"+20.0 {span(0.15, 0.25)} points" in Page(render_gate_report(report(strata=found))).words
    )
    assert search_bias(report(strata=found[1:])) is None
    assert "search makes" not in Page(render_gate_report(report(strata=found[1:]))).words


def test_page_says_how_often_all_trials_of_a_test_pass_and_how_often_any_does() -> None:
    def tried(passed: int, failed: int) -> ArmResult:
        return ArmResult(passed=passed, failed=failed, errors=1, undetermined=0)

    one = a_result().model_copy(update={"family": "f", "stratum": "baseline_found"})
    results = (
        one.model_copy(update={"baseline": tried(4, 0), "candidate": tried(2, 2)}),
        one.model_copy(update={"baseline": tried(3, 0), "candidate": tried(0, 5)}),
        one.model_copy(update={"candidate": tried(0, 0)}),
        one.model_copy(update={"family": "requests", "stratum": "benign"}),
    )
    judged = report(test_results=results)
    [family] = repeats(judged)
    # Of k = 3: all of them, from 4 passed of 4, 3 of 3, 2 of 4 and 0 of 5; at least one likewise.
    assert (family.family, family.k) == ("f", 3)
    assert family.every == (1.0, 0.0)
    assert family.some == (1.0, pytest.approx((1 + 0) / 2))
    assert repeats(judged, most=2)[0].every == (1.0, pytest.approx((1 / 6 + 0) / 2))
    words = Page(render_gate_report(judged)).words
    assert "All pass" in words and "At least one passes" in words
    assert "All pass" not in Page(render_gate_report(report(test_results=()))).words


@pytest.mark.parametrize(
    ("verdict", "shown"), [("OK", "OK"), ("WARN", "WARN"), ("BLOCK", "BLOCK"), (None, "NO VERDICT")]
)
def test_verdict_is_a_word_with_its_own_shape(verdict: str | None, shown: str) -> None:
    html = render_gate_report(report(verdict=verdict))
    assert f"Verdict: {shown}" in Page(html).words
    banner = re.search(r'<section class="verdict.*?</svg>', html, re.S)
    assert banner is not None
    others = {
        re.sub(r'class="[^"]*"', "", found.group())
        for other in ("OK", "WARN", "BLOCK", None)
        if other != verdict
        and (
            found := re.search(
                r'<section class="verdict.*?</svg>',
                render_gate_report(report(verdict=other)),
                re.S,
            )
        )
    }
    assert len(others) == 3
    assert re.sub(r'class="[^"]*"', "", banner.group()) not in others


def test_page_can_be_walked_without_sight() -> None:
    page = Page(render_gate_report(report()))
    assert page.count("h1") == 1
    assert [page.count(tag) for tag in ("header", "main", "footer")] == [1, 1, 1]
    assert page.count("table") == page.count("caption")
    assert all(
        attrs.get("scope") in ("col", "row", "colgroup") for tag, attrs in page.tags if tag == "th"
    )
    assert dict(page.tags)["html"]["lang"] == "en"
    ids = attributes(page, "id")
    assert len(ids) == len(set(ids))
    for label in attributes(page, "aria-labelledby"):
        assert set(label.split()) <= set(ids)


def test_page_needs_nothing_but_itself() -> None:
    page = Page(render_gate_report(report()))
    assert not {"script", "link", "img", "iframe", "object", "form"} & {t for t, _ in page.tags}
    assert attributes(page, "src") == []
    assert all(href.startswith("#") for href in attributes(page, "href"))
    assert "default-src 'none'" in attributes(page, "content")[-1]
    assert "url(" not in render_gate_report(report())


def test_worst_test_comes_first_and_each_has_a_transcript() -> None:
    page = Page(render_gate_report(report()))
    assert page.count("details") == 2
    assert page.words.index("leaves by mail 1") < page.words.index("leaves by mail 2")


def test_transcripts_unfold_on_paper() -> None:
    many = tuple(result(n) for n in range(30))
    html = render_gate_report(report(test_results=many))
    assert ".printed details::details-content { content-visibility: visible;" in html
    assert html.count('<tbody class="printed">') == 10
    assert "On paper 10 transcripts of the largest losses" in Page(html).words


def test_budget_and_exceptions_stand_in_the_page_and_the_comment() -> None:
    spent = ErrorBudget(
        violations=3,
        sessions=2500,
        per_1000=1.2,
        upper_per_1000=3.1,
        budget_per_1000=1.0,
        spent=1.2,
        frozen=True,
    )
    asked = [
        GateException(
            exception_id=f"E-{number}",
            scope="T-001",
            reason="fixed in the next release",
            approved_by="on call",
            expires="v4",
            refused=refused,
        )
        for number, refused in enumerate(("", "it covers a critical rule"))
    ]
    full = report(error_budget=spent, exceptions=tuple(asked))
    page = Page(render_gate_report(full))
    for shown in ("1.2 at most 3.1", "3 in 2,500 sessions", "120.0%", "FROZEN", "2 exceptions"):
        assert shown in page.words
    assert "no: it covers a critical rule" in page.words
    assert "#test-T-001" in attributes(page, "href")
    comment = render_markdown(full)
    assert "120.0% of the error budget, releases are FROZEN" in comment
    assert "| `E-1` | `T-001` | `on call` | `v4` | no: `it covers a critical rule` |" in comment
    words = Page(render_gate_report(report())).words
    assert "No error budget was counted" in words
    assert "No exception was asked for" in words


def test_the_plot_has_the_margin_of_the_rules() -> None:
    assert f"OK above {MINUS}3" in render_gate_report(report(margin=0.03))


def test_a_test_that_a_reason_names_leads_to_its_evidence() -> None:
    step = GateStep(step=1, title="Did one fall?", status="block", reason="T-001 fell, T-0012 not")
    html = render_gate_report(report(steps=(step,)))
    page = Page(html)
    assert '<a href="#test-T-001"><code>T-001</code></a> fell, T-0012 not' in html
    inside = re.search(r'<details>(?:(?!</details>).)*id="test-T-001"', html, re.S)
    assert inside is not None
    ids = attributes(page, "id")
    assert all(href.removeprefix("#") in ids for href in attributes(page, "href"))


def test_tests_of_one_name_have_places_of_their_own() -> None:
    same = tuple(result(1, test_id=name) for name in ("a/b", "a b", "a/b"))
    page = Page(render_gate_report(report(test_results=same)))
    ids = attributes(page, "id")
    assert len(ids) == len(set(ids))
    assert all(href.removeprefix("#") in ids for href in attributes(page, "href"))


def test_history_stands_in_the_order_of_the_file_and_grows_once() -> None:
    earlier = report(candidate="v3", config_sha256={"v1": "1" * 64, "v3": "8" * 64}, verdict="OK")
    history = earlier.release, report().release
    words = Page(render_gate_report(report(), history)).words
    assert words == Page(render_gate_report(report(), history[:1])).words
    assert "2 releases, the oldest first" in words
    assert words.index("v3 88888888") < words.index("v2 (this report) 22222222")
    alone = Page(render_gate_report(report())).words
    assert "No other release is on record" in alone
    tried = {"attempt": Attempt(number=2, candidate=3, block_share=0.16, ok_share=0.0108)}
    page = Page(render_gate_report(report(begun="b" * 64, **tried), history, "c" * 64)).words
    assert "run 2 of this pair, candidate 3 against this baseline and suite: 16.0%" in page
    assert "b" * 64 in page
    assert "c" * 64 in page


def test_a_test_without_a_transcript_says_so() -> None:
    page = Page(render_gate_report(report(test_results=(result(evidence=()),))))
    assert page.count("details") == 0
    assert "No transcript was kept; rule record_exfiltration" in page.words
    assert "no transcript was kept" in render_junit(report(test_results=(result(evidence=()),)))


def test_empty_report_says_so() -> None:
    empty = report(
        verdict=None,
        evidence_status="invalid",
        reasons=(),
        baseline_pass_rate=None,
        candidate_pass_rate=None,
        delta=None,
        ci_low=None,
        ci_high=None,
        p_value=None,
        n_tests=0,
        n_families=0,
        visible=None,
        steps=(),
        strata=(),
        by_category={},
        executions=(),
        test_results=(),
    )
    page = Page(render_gate_report(empty))
    for shown in ("NO VERDICT", "No reason was recorded", "Nothing ran", "No test was run", "n/a"):
        assert shown in page.words
    assert "Forest plot" not in attributes(page, "aria-label")
    assert "NO VERDICT" in render_markdown(empty)
    junit = ET.fromstring(render_junit(empty))
    assert (junit.get("tests"), junit.get("errors"), junit.get("failures")) == ("1", "1", "0")
    assert "no verdict" in str(junit.find(".//error").get("message"))  # type: ignore[union-attr]


def test_numbers_that_are_none_are_not_zero() -> None:
    nothing = ArmResult(passed=0, failed=0, errors=10)
    odd = report(
        strata=(
            report()
            .strata[0]
            .model_copy(update={"ci_low": float("-inf"), "p_value": float("nan")}),
        ),
        test_results=(result(candidate=nothing, delta=None),),
    )
    words = Page(render_gate_report(odd)).words
    assert "no interval" in words
    assert not re.search(r"\b(nan|inf)\b", words)


# --------------------------------------------------------------------------- hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_on_the_page(text: str) -> None:
    harmless = {tag for tag, _ in Page(render_gate_report(everywhere("x"))).tags}
    page = Page(render_gate_report(everywhere(text)))
    assert {tag for tag, _ in page.tags} <= harmless | {"span", "wbr"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    shown = "".join("".join(piece.text for piece in pieces(text)).split())
    assert shown in "".join(page.words.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_stands_where_it_would_be_read_as_text_or_end_the_drawing(text: str) -> None:
    html = render_gate_report(everywhere(text))
    for raw in re.findall(r"<title>.*?</title>|<svg class=.forest.*?</svg>", html, re.S):
        assert "<span" not in raw
        assert "<wbr" not in raw


def test_hidden_characters_are_named() -> None:
    html = render_gate_report(everywhere(f"{ESCAPE}[2J {RLO}"))
    assert ESCAPE not in html
    assert RLO not in html
    assert '<span class="esc">\\x1b</span>' in html
    assert '<span class="esc">U+202E</span>' in html


def test_a_megabyte_is_cut_and_says_so() -> None:
    long = "a" * 1_000_000
    html = render_gate_report(report(test_results=(result(evidence=turns(long)),)))
    assert len(html) < 60_000
    assert "[996,000 characters left out]" in html
    assert len(render_markdown(everywhere(long))) < 20_000
    junit = render_junit(report(test_results=(result(evidence=turns(long)),)))
    assert "[996,000 characters left out]" in junit


def test_many_lines_are_cut_too() -> None:
    kept, missing = cut("\n" * 500)
    assert len(kept) + missing == 500
    assert len(kept) < 100


any_text = st.text(st.characters(), max_size=60) | st.sampled_from(HOSTILE)
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@slow
@given(any_text)
def test_no_text_breaks_the_page(text: str) -> None:
    html = render_gate_report(everywhere(text))
    html.encode()
    page = Page(html)
    assert page.count("section") == 10
    assert page.count("details") == 1


@slow
@given(any_text)
def test_no_text_breaks_the_junit_file(text: str) -> None:
    root = ET.fromstring(render_junit(everywhere(text)).encode())
    assert [case.get("name") for case in root.iter("testcase")] == [plain(text)]
    assert root.find("testsuite/testcase/failure") is not None


@slow
@given(any_text)
def test_no_text_leaves_its_code_span_in_the_comment(text: str) -> None:
    def outside(markdown: str) -> str:
        return re.sub(r"`[^`\n]+`|\(empty\)", "span", markdown)

    # Whatever the text is, what stands around the spans is what the report wrote.
    assert outside(render_markdown(everywhere(text))) == outside(render_markdown(everywhere("x")))


def test_code_spans_hold_everything() -> None:
    assert code("a\nb") == "`a[\\x0a]b`"
    assert code("   ") == "(empty)"
    assert code("```") == "`\\x60\\x60\\x60`"


@given(st.text(st.characters()))
def test_hidden_characters_never_pass(text: str) -> None:
    shown = plain(text, limit=10_000)
    shown.encode()
    assert not any(ord(c) < 32 or c in (RLO, chr(0x2066), chr(0xFEFF)) for c in shown)


# --------------------------------------------------------------------------- JUnit and Markdown


def test_junit_keeps_failures_of_the_agent_apart_from_the_harness() -> None:
    root = ET.fromstring(
        render_junit(
            report(
                test_results=(
                    result(1),
                    result(2, candidate=ArmResult(passed=0, failed=0, errors=10), delta=None),
                    result(3, candidate=ArmResult(passed=10, failed=0, errors=0), delta=0.1),
                    result(4, candidate=ArmResult(passed=0, failed=0, errors=0, undetermined=9)),
                    result(5, candidate=ArmResult(passed=5, failed=1, errors=4)),
                )
            )
        )
    )
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "2", "2")
    kinds = [[(child.tag, child.get("type")) for child in case] for case in suite.iter("testcase")]
    assert kinds == [
        [("failure", "oracle")],
        [("error", "harness")],
        [],
        [("error", "harness")],
        [("failure", "oracle")],
    ]
    case = next(suite.iter("testcase"))
    assert (case.get("classname"), case.get("name")) == ("record_exfiltration/mail", "T-001")
    assert "[2] BROKEN RULE: record_exfiltration" in (case[0].text or "")
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["verdict"] == "BLOCK"


def test_a_quarantined_test_is_skipped_with_its_reason() -> None:
    why = "came back 1 of 10 <b>"
    quarantined = a_test(test_id="T-quarantined", lifecycle="quarantined", lifecycle_reason=why)
    tests = [quarantined, a_test(test_id="T-active")]
    root = ET.fromstring(render_junit(report(), tests))
    assert [root.get(n) for n in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "2"]
    skipped = root.find(".//testcase[@name='T-quarantined']/skipped")
    assert skipped is not None
    assert skipped.get("message") == "quarantined: came back 1 of 10 <b>"


def test_markdown_fits_a_comment() -> None:
    many = report(test_results=tuple(result(n) for n in range(500)))
    text = render_markdown(many)
    assert len(text) < 65_536
    assert "490 more and all transcripts are in the full report" in text
    assert text.startswith("## Release gate: BLOCK\n")
    assert f"| Difference | {MINUS}24.0 points {span(-0.371, -0.109)} |" in text


def test_same_report_same_bytes_and_nothing_local() -> None:
    for render in (render_gate_report, render_markdown, render_junit):
        assert render(report()) == render(report())
        assert not re.search(
            r"/(home|tmp|work|usr|root)/|20\d\d-\d\d-\d\d|localhost", render(report())
        )


def test_category_order_does_not_depend_on_the_order_of_the_report() -> None:
    turned = dict(reversed(report().by_category.items()))
    assert render_gate_report(report(by_category=turned)) == render_gate_report(report())
    assert str(differences(report(by_category=turned))) == str(differences(report()))


# --------------------------------------------------------------------------- looks and imports


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast_in_light_dark_and_print() -> None:
    blocks = re.findall(r":root \{([^}]*)\}", render_gate_report(report()))
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for ground in ("paper", "tint"):
            for ink in ("ink", "soft", "good", "bad", "care", "none"):
                pair = sorted((luminance(colours[ground]), luminance(colours[ink])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ink, ground, block)


def test_import_stays_light() -> None:
    script = (
        "import sys, safety_lib.report, safety_lib.figures\n"
        "print(sorted({'matplotlib', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
