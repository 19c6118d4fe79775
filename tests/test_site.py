"""The site: whole, linked and without a word to the network."""

from __future__ import annotations

import re
from pathlib import Path

from safety_lib.report.documents import DOCUMENTS


def test_each_notebook_report_and_document_is_linked_from_the_index(site: Path) -> None:
    linked = set(re.findall(r'href="(\w+)\.html"', (site / "index.html").read_text("utf-8")))
    assert linked == {p.stem for p in site.glob("*.html")} - {"index"}
    assert linked >= {*DOCUMENTS, "gate_report"}
    assert len([name for name in linked if name[0] == "0"]) == 4


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
