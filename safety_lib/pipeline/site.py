"""The notebooks, the gate report and the documents as one linked site that needs no network."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from safety_lib.artifacts import write_text
from safety_lib.pipeline.plan import CHECKOUT, NOTEBOOKS, STAGES, notebook_of
from safety_lib.report.documents import read_evidence, render_documents

_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL | re.IGNORECASE)
_STYLE = (
    "body{max-width:50rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 sans-serif;color:#222}"
    "a{color:#0550ae}table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.2rem .6rem}code{overflow-wrap:anywhere}"
)


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
    from nbconvert import HTMLExporter

    site = artifacts / "site"
    sources = [notebook_of(stage, notebooks) for stage in STAGES]
    exporter = HTMLExporter(embed_images=True)  # type: ignore[no-untyped-call]
    for source in sources:
        body, _ = exporter.from_filename(str(source))
        write_text(site / f"{source.stem}.html", _linked(_SCRIPT.sub("", body)))
    report = artifacts / "gate_report.html"
    if report.exists():
        write_text(site / "gate_report.html", report.read_text(encoding="utf-8"))
    documents = render_documents(read_evidence(artifacts))
    for document in documents:
        page = f'<nav><a href="index.html">Index</a></nav>{_html_of(document.text)}'
        title = document.text.splitlines()[0].lstrip("# ")
        write_text(site / f"{document.name}.html", _page(title, page))
    groups = {
        "Notebooks": [(p.stem, p.stem.replace("_", " ")) for p in sources],
        "Reports": [("gate_report", "Gate report")] if report.exists() else [],
        "Documents": [(d.name, d.text.splitlines()[0].lstrip("# ")) for d in documents],
    }
    return write_text(site / "index.html", _page("The closed loop of agent safety", _index(groups)))


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
    return str(mistune.create_markdown(escape=True, plugins=plugins)(markdown))


def _linked(html: str) -> str:
    # Notebooks link to each other and to artifacts as they lie in the checkout.
    html = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', html)
    html = html.replace('href="../artifacts/gate_report.html', 'href="gate_report.html')
    return html.replace("<main>", '<main><nav><a href="index.html">Index</a></nav>', 1)
