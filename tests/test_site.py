"""The site: whole, linked and without a word to the network."""

from __future__ import annotations

import ast
import importlib
import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

import safety_lib
from safety_lib.artifacts import CHECKOUT as ROOT
from safety_lib.commands import PAGE, commands_page
from safety_lib.pipeline.api import render_api, signature_of
from safety_lib.pipeline.plan import NOTEBOOKS
from safety_lib.pipeline.refresh import PICTURE, write_picture
from safety_lib.pipeline.site import _STYLE, GUIDES, _html_of, build_site
from safety_lib.report.documents import DOCUMENTS

pytestmark = pytest.mark.slow  # the site takes seconds to build


def test_each_notebook_report_and_document_is_linked_from_the_index(site: Path) -> None:
    linked = set(re.findall(r'href="(\w+)\.html"', (site / "index.html").read_text("utf-8")))
    assert linked == {p.stem for p in site.glob("*.html")} - {"index"}
    assert linked >= {*DOCUMENTS, *GUIDES, "gate_report", "readme"}
    assert len([name for name in linked if name[0] == "0"]) == 4


def test_the_index_shows_each_page_with_a_picture_and_a_sentence(site: Path) -> None:
    items = re.findall("<li>(.*?)</li>", (site / "index.html").read_text("utf-8"), re.DOTALL)
    assert len(items) == len(list(site.glob("*.html"))) - 1
    for item in items:
        assert re.search(r'<img alt="[^"]{9,}" src="data:|<svg [^>]*aria-label="[^"]{9,}"', item)
        _, about = re.findall("<p>(.*?)</p>", item)
        assert about.rstrip("`").endswith((".", "BLOCK")) and len(about) > 30, item[-300:]
        assert "<rect" in item or "<img" in item


def test_the_index_of_an_empty_folder_names_what_there_is(tmp_path: Path) -> None:
    index = build_site(tmp_path).read_text("utf-8")
    assert "gate_report.html" not in index and "<h2>Reports</h2>" not in index
    assert "postmortem.html" in index and "What is known of the last incident" in index


def test_sources_stand_small_under_their_section(site: Path) -> None:
    text = (site / "postmortem.html").read_text("utf-8")
    assert text.count('<p class="source"><em>Source: ') == text.count("Source: ") > 3
    assert "footnote" not in text


def test_no_page_loads_anything(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text("utf-8")
        sources = re.findall(r'<(?:img|script|iframe|link)\b[^>]*?(?:src|href)="([^"]*)"', text)
        assert [s[:60] for s in sources if not s.startswith("data:")] == [], page.name
        assert re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", text) == [], page.name


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        for target in re.findall(
            r'<a\b[^>]*href="([\w.]+\.(?:html|ipynb))', page.read_text("utf-8")
        ):
            assert (site / target).exists(), (page.name, target)


def test_each_figure_is_told_in_the_words_that_are_printed_below_it(site: Path) -> None:
    for page in site.glob("0*.html"):
        told = re.findall(r'<img alt="([^"]*)"', page.read_text("utf-8"))
        assert len(told) >= 2, page.name
        notebook = nbformat.read(NOTEBOOKS / f"{page.stem}.ipynb", as_version=4)
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        drawn = [n for n, o in enumerate(outputs) if "image/png" in o.get("data", {})]
        printed = [" ".join(outputs[n + 1]["text"].split()) for n in drawn]
        assert [unescape(text) for text in told] == printed


def test_a_page_of_a_notebook_is_named_as_its_heading(site: Path) -> None:
    for page in site.glob("0*.html"):
        text = page.read_text("utf-8")
        title = re.search("<title>(.*?)</title>", text)
        assert title
        assert title[1] in re.sub("<[^>]+>", "", text.split("<h1", 1)[1][:500])
        assert '<html lang="en">' in text


def test_a_solution_is_folded_away(site: Path) -> None:
    for page in site.glob("0*.html"):
        notebook = (NOTEBOOKS / f"{page.stem}.ipynb").read_text("utf-8")
        folded = re.findall("<details>(.*?)</details>", page.read_text("utf-8"), re.DOTALL)
        assert len(folded) == notebook.count("<details>") >= 3, page.name
        assert all('class="highlight"' in solution for solution in folded), page.name


def test_a_box_says_aloud_whether_it_is_ticked(site: Path) -> None:
    text = (site / "launch_checklist.html").read_text("utf-8")
    checklist = (ROOT / "artifacts" / "docs" / "launch_checklist.md").read_text("utf-8")
    assert text.count('aria-label="done">☑') == checklist.count("- [x]") > 0
    assert text.count('aria-label="open">☐') == checklist.count("- [ ]") > 0
    assert "<input" not in text


def test_only_the_report_of_the_site_leads_back_to_the_index(site: Path) -> None:
    link = '<nav><a href="index.html">Index</a></nav>\n'
    mailed = (ROOT / "artifacts" / "gate_report.html").read_text("utf-8")
    assert link not in mailed
    copy = (site / "gate_report.html").read_text("utf-8")
    assert copy.count(link) == 1
    assert copy.replace(link, "") == mailed


def test_the_reference_tells_of_every_public_name(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    told = set(re.findall(r'<section class="entry" id="([^"]+)"', text))
    listed = re.search(r'<h2 id="front-door">.*?</table>', text, re.DOTALL)
    assert listed
    assert re.findall(r"<code>(\w+)</code></a></th>", listed[0]) == list(safety_lib._HOMES)
    names = set()
    for module in (
        "stats.paired",
        "gate.release_gate",
        "figures.stress",
        "world",
        "world.versions",
    ):
        found = importlib.import_module(f"safety_lib.{module}")
        for name, at in vars(found).items():
            if getattr(at, "__module__", "") == found.__name__ and name[0] != "_":
                names.add(f"safety_lib.{module}.{name}")
    assert len(names) > 15
    assert names <= told


def test_the_reference_shows_signatures_and_sections(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    entry = text.split('id="safety_lib.stats.differences.newcombe_difference">')[1]
    entry = entry.split("</section>")[0]
    plain = unescape(re.sub("<[^>]+>", "", entry))
    assert "newcombe_difference(\n    k1: int,\n    n1: int," in plain
    assert '-&gt; <a href="#safety_lib.stats.intervals.Interval">Interval</a>' in entry
    assert re.findall('<p class="section">(.*?)</p>', entry) == [
        "Parameters",
        "Returns",
        "Raises",
        "References",
        "Examples",
    ]
    assert "<dt><code>k1, n1, k2, n2</code></dt>" in entry
    assert "\n0.200 [0.052, 0.334]</code></pre>" in entry


def test_links_inside_the_reference_lead_somewhere(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    places = re.findall(r'id="([^"]+)"', text)
    assert len(places) == len(set(places)) > 700
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(places)
    assert not re.findall(r":(?:func|class|mod|meth):", text)


def test_the_reference_is_the_same_twice(site: Path) -> None:
    again = render_api(_html_of, _STYLE)
    assert again == (site / "api.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(a, /, b: int = 2, *c: int, d, e: str = 'x', **g) -> int: ...",
         "f(a, /, b: int = 2, *c: int, d, e: str = 'x', **g) -> int"),
        ("def f(*, a=1): ...", "f(*, a=1)"),
        ("@property\ndef f(self) -> int: ...", "f: int"),
        ("@classmethod\ndef f(cls, a: int) -> None: ...", "f(a: int) -> None"),
        ("async def f(): ...", "f()"),
    ],
)  # fmt: skip
def test_a_signature_is_written_as_it_is_called(source: str, shown: str) -> None:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert signature_of(node) == shown


def test_the_front_page_is_short_and_what_it_links_to_is_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 1200
    pages = [ROOT / "README.md", *(ROOT / "artifacts" / "docs" / f"{name}.md" for name in GUIDES)]
    for page in pages:
        links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text("utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name
    assert {f"artifacts/docs/{name}.md" for name in GUIDES} <= set(re.findall(r"\(([^)]+)\)", text))


def test_the_picture_of_the_front_page_is_the_figure_of_notebook_1(tmp_path: Path) -> None:
    assert write_picture(target=tmp_path / "now.png").read_bytes() == PICTURE.read_bytes()
    assert f"]({PICTURE.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text("utf-8")


def test_a_guide_stands_in_the_site_and_leads_to_pages_of_it(site: Path) -> None:
    for name in GUIDES:
        text = (site / f"{name}.html").read_text("utf-8")
        assert [at for at in re.findall(r'href="([^"]+)"', text) if ".md" in at] == [], name
    assert 'href="your_agent.html"' in (site / "your_model.html").read_text("utf-8")


def test_the_page_of_commands_is_what_help_says(site: Path) -> None:
    assert PAGE.read_text("utf-8") == commands_page()
    assert "--max-calls" in (site / "commands.html").read_text("utf-8")


def test_the_front_page_stands_first_and_leads_to_the_guides(site: Path) -> None:
    index, front = ((site / f"{name}.html").read_text("utf-8") for name in ("index", "readme"))
    assert index.index("readme.html") < index.index("01_stress_testing.html")
    assert {f"{name}.html" for name in GUIDES} <= set(re.findall(r'href="([^"]+)"', front))
