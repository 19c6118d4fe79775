"""Notebooks, gate report, documents and API reference as one linked site without a network."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

from safety_lib.artifacts import CHECKOUT
from safety_lib.files import write_text
from safety_lib.pipeline.api import render_api
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, notebook_of
from safety_lib.pipeline.refresh import PICTURE
from safety_lib.report.documents import ABOUT, read_evidence, render_documents

GUIDES = (
    "your_agent",
    "your_model",
    "gate_in_ci",
    "other_tools",
    "commands",
    "architecture",
    "editions",
)
"""What a person wrote beside the documents, in the order of reading."""

_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE)
_STYLE = (
    "body{max-width:50rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 sans-serif;color:#222}"
    "a{color:#0550ae}table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.2rem .6rem}code{overflow-wrap:anywhere}"
    "td:first-child code{white-space:nowrap}pre{white-space:pre-wrap}"
    ".source{font-size:.85rem;color:#555}"
    ".pages{list-style:none;padding:0;display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fill,minmax(14rem,1fr))}"
    ".pages li{border:1px solid #bbb;padding:.6rem}.pages p{margin:.4rem 0 0}"
    ".pages img,.pages svg{width:100%;height:8rem;object-fit:contain;background:#fff}"
)
# Colours of the notebook theme that are too pale to read, and links that only a colour marks.
_DARKER = (
    "<style>:root{--jp-cell-prompt-not-active-font-color:#5c5c5c;"
    "--jp-cell-prompt-not-active-opacity:1;--jp-mirror-editor-comment-color:#2f6b6b;"
    "--jp-mirror-editor-keyword-color:#006b00;--jp-mirror-editor-number-color:#006b00;"
    "--jp-mirror-editor-operator-color:#8a10d0}"
    ".jp-RenderedHTMLCommon a:link,.jp-RenderedHTMLCommon a:visited{text-decoration:underline}"
    "</style></head>"
)
_NO_TEXT = 'alt="No description has been provided for this image"'
_INDEX = '<nav><a href="index.html">Index</a></nav>'
_BOXES = {
    True: '<span role="img" aria-label="done">☑</span> ',
    False: '<span role="img" aria-label="open">☐</span> ',
}


def build_site(artifacts: Path = CHECKOUT / "artifacts", notebooks: Path = NOTEBOOKS) -> Path:
    """Write the site from the executed notebooks and what is in the folder of artifacts.

    No page runs a script or loads anything: figures and styles stand in the pages themselves.

    Parameters
    ----------
    artifacts : Path, optional
        Where the gate report and the results are; the site goes into its ``site/``.
    notebooks : Path, optional
        Where the executed notebooks are.

    Returns
    -------
    Path
        The index page.
    """
    import nbformat
    from nbconvert import HTMLExporter

    site = artifacts / "site"
    sources = [notebook_of(stage, notebooks) for stage in STAGES]
    pages: dict[str, list[_Entry]] = {"Start here": [_front_page(site)], "Notebooks": []}
    pages |= {"Guides": [], "Reports": [], "Documents": []}
    # With embed_images each piece of HTML is closed by itself, and a folded solution stands open.
    exporter = HTMLExporter()  # type: ignore[no-untyped-call]
    for source in sources:
        notebook = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
        notebook.metadata["title"] = _title(notebook.cells[0].source)
        body, _ = exporter.from_notebook_node(notebook)
        shown = _linked(body).replace("<main>", f"<main>{_INDEX}", 1)
        write_text(
            site / f"{source.stem}.html",
            _readable(shown, notebook),
        )
        pages["Notebooks"].append(_of_notebook(source.stem, notebook))
    for name in GUIDES:
        text = PICTURE.with_name(f"{name}.md").read_text(encoding="utf-8")
        title = _title(text)
        shown = _linked(_html_of(text))
        write_text(site / f"{name}.html", _page(title, f"{_INDEX}{shown}"))
        pages["Guides"].append(_Entry(name, title, _first_sentence(text), _small(text)))
    report = artifacts / "gate_report.html"
    if report.exists():
        # Only this copy has other pages beside it.
        page = report.read_text(encoding="utf-8").replace("<header>", f"{_INDEX}\n<header>", 1)
        write_text(site / "gate_report.html", page)
        words = unescape(re.sub(r"<(style|svg)\b.*?</\1>|<[^>]+>", "", page, flags=re.DOTALL))
        said = next((line for line in words.splitlines() if line.startswith("Verdict: ")), "")
        about = f"The verdict and all that it rests on. {said}".strip()
        pages["Reports"].append(_Entry("gate_report", "Gate report", about, _small(words)))
    for document in render_documents(read_evidence(artifacts)):
        title, shown = _title(document.text), _html_of(document.text)
        shown = shown.replace("<p><em>Source:", '<p class="source"><em>Source:')
        write_text(site / f"{document.name}.html", _page(title, f"{_INDEX}{shown}"))
        entry = _Entry(document.name, title, ABOUT[document.name], _small(document.body))
        pages["Documents"].append(entry)
    reference = render_api(_html_of, _STYLE)
    write_text(site / "api.html", reference)
    words = unescape(re.sub(r"<(style|pre)\b.*?</\1>|<[^>]+>", "", reference, flags=re.DOTALL))
    about = "Every public name with its parameters, what it returns and an example that runs."
    pages["Library"] = [_Entry("api", "API reference", about, _small(words))]
    return write_text(site / "index.html", _page("The closed loop of agent safety", _index(pages)))


def _front_page(site: Path) -> _Entry:
    """Write the README as a page: its picture stands in it, its links lead to pages."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"```mermaid\n.*?```\n", "", text, flags=re.DOTALL)  # drawn by a script only
    html = _html_of(re.sub(r"\[([^\]]*)\]\(LICENSE\)", r"\1", text))
    html = _linked(html)
    picture = b64encode(PICTURE.read_bytes()).decode()
    html = html.replace(
        'src="artifacts/docs/survival.png"', f'src="data:image/png;base64,{picture}"'
    )
    title = _title(text)
    write_text(site / "readme.html", _page(title, f"{_INDEX}{html}"))
    return _Entry(
        "readme", title, "What this is, how it is run, and which guide you need.", _small(text)
    )


class _Entry(NamedTuple):
    """A page as the index shows it: ``picture`` is markup."""

    name: str
    title: str
    about: str
    picture: str


def _of_notebook(name: str, notebook: Any) -> _Entry:
    first = notebook.cells[0].source
    told = re.sub(r"[*`]", "", first.split("\n\n")[1]) if "\n\n" in first else ""
    drawn = next(
        (
            output["data"]["image/png"]
            for cell in notebook.cells
            for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})
        ),
        "",
    )
    if not drawn:  # a notebook that was not run
        return _Entry(name, _title(first), told, _small(first))
    alt = escape(next(_readings(notebook), "A figure."))
    picture = f'<img alt="{alt}" src="data:image/png;base64,{"".join(drawn.split())}">'
    return _Entry(name, _title(first), told, picture)


def _small(text: str, most: int = 12) -> str:
    """Draw the first lines of a page in small: headings, sentences, rows and boxes."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("|--")]
    marks = []
    for y, line in enumerate(lines[:most]):
        heading, row = line.startswith("#"), line.startswith("|")
        fill = "#222" if heading else "#777"
        for x in range(0, 160, 54) if row else (0,):
            width = 46 if row else max(8, min(160, 2 * len(line)))
            place = f'x="{8 + x}" y="{6 + 9 * y}" width="{width}" height="{5 if heading else 3}"'
            marks.append(f'<rect {place} fill="{fill}"/>')
    drawn = "".join(marks)
    label = "The first lines of the page, in small"
    return f'<svg viewBox="0 0 176 116" role="img" aria-label="{label}">{drawn}</svg>'


def _title(markdown: str) -> str:
    return markdown.splitlines()[0].lstrip("# ")


def _index(pages: dict[str, list[_Entry]]) -> str:
    parts = ["<h1>The closed loop of agent safety</h1>"]
    for heading, entries in pages.items():
        items = "".join(
            f'<li>{one.picture}<p><a href="{one.name}.html">{escape(one.title)}</a></p>'
            f"<p>{escape(one.about)}</p></li>"
            for one in entries
        )
        parts.append(f'<h2>{heading}</h2><ul class="pages">{items}</ul>' if items else "")
    return "".join(parts)


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _html_of(markdown: str) -> str:
    import mistune  # comes with nbconvert

    plugins = ["table", "footnotes", "task_lists"]
    html = str(mistune.create_markdown(escape=True, plugins=plugins)(markdown))
    # A check box is a control and needs a label; these only say what the evidence showed.
    return re.sub(r"<input [^>]*checkbox[^>]*>", lambda box: _BOXES["checked" in box[0]], html)


def _linked(html: str) -> str:
    # In the checkout notebooks, documents and the report lie in folders; here side by side.
    folders = r"(?:\.\./)*(?:notebooks/|artifacts/(?:docs/)?)?"
    return re.sub(rf'href="{folders}(\w+)\.(?:ipynb|md|html)', r'href="\1.html', html)


def _first_sentence(markdown: str) -> str:
    plain = re.sub(r"[*`]|\]\([^)]*\)|\[", "", markdown.split("\n\n")[1])
    return " ".join(plain.split()).partition(". ")[0].rstrip(".:") + "."


def _readable(html: str, notebook: Any) -> str:
    readings = _readings(notebook)
    html = re.sub(
        _NO_TEXT, lambda _: f'alt="{escape(next(readings, "A figure."))}"', _SCRIPT.sub("", html)
    )
    # The corner of a table of pandas heads nothing.
    return html.replace("<th></th>", "<td></td>").replace("</head>", _DARKER, 1)


def _readings(notebook: Any) -> Iterator[str]:
    """Yield what is printed below each figure, on one line."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        for n, output in enumerate(outputs):
            if "image/png" in output.get("data", {}):
                below = next((o["text"] for o in outputs[n:] if "text" in o), "A figure.")
                yield " ".join(below.split())
