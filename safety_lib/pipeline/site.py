"""Notebooks, gate report, documents and API reference as one linked site without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from safety_lib.artifacts import CHECKOUT
from safety_lib.files import write_text
from safety_lib.pipeline.api import render_api
from safety_lib.pipeline.plan import NOTEBOOKS, STAGES, notebook_of
from safety_lib.report.documents import read_evidence, render_documents

_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE)
_STYLE = (
    "body{max-width:50rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 sans-serif;color:#222}"
    "a{color:#0550ae}table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.2rem .6rem}code{overflow-wrap:anywhere}"
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
    # With embed_images each piece of HTML is closed by itself, and a folded solution stands open.
    exporter = HTMLExporter()  # type: ignore[no-untyped-call]
    for source in sources:
        notebook = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
        notebook.metadata["title"] = _title(notebook.cells[0].source)
        body, _ = exporter.from_notebook_node(notebook)
        write_text(site / f"{source.stem}.html", _readable(_linked(body), notebook))
    report = artifacts / "gate_report.html"
    if report.exists():
        # Only this copy has other pages beside it.
        page = report.read_text(encoding="utf-8").replace("<header>", f"{_INDEX}\n<header>", 1)
        write_text(site / "gate_report.html", page)
    documents = render_documents(read_evidence(artifacts))
    for document in documents:
        page = f"{_INDEX}{_html_of(document.text)}"
        write_text(site / f"{document.name}.html", _page(_title(document.text), page))
    write_text(site / "api.html", render_api(_html_of, _STYLE))
    groups = {
        "Notebooks": [(p.stem, p.stem.replace("_", " ")) for p in sources],
        "Reports": [("gate_report", "Gate report")] if report.exists() else [],
        "Documents": [(d.name, _title(d.text)) for d in documents],
        "Library": [("api", "API reference")],
    }
    return write_text(site / "index.html", _page("The closed loop of agent safety", _index(groups)))


def _title(markdown: str) -> str:
    return markdown.splitlines()[0].lstrip("# ")


def _index(groups: dict[str, list[tuple[str, str]]]) -> str:
    parts = ["<h1>The closed loop of agent safety</h1>"]
    for heading, links in groups.items():
        items = "".join(f'<li><a href="{n}.html">{escape(title)}</a></li>' for n, title in links)
        parts.append(f"<h2>{heading}</h2><ul>{items}</ul>" if items else "")
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
    # Notebooks link to each other and to artifacts as they lie in the checkout.
    html = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', html)
    html = html.replace('href="../artifacts/gate_report.html', 'href="gate_report.html')
    html = re.sub(r'href="\.\./artifacts/docs/(\w+)\.md', r'href="\1.html', html)
    return html.replace("<main>", f"<main>{_INDEX}", 1)


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
