"""How records show themselves in a notebook: as a small table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from safety_lib.text import marked

MOST_ROWS = 20


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook, of the first rows and with how many more there are.

    Parameters
    ----------
    caption : str
        Stands above it; escaped, as all that it shows, and hidden characters are named.
    columns : sequence of str
        The head of each column.
    rows : iterable of sequences
        Of one value a column.

    Returns
    -------
    str
        HTML of at most 20 rows.

    Examples
    --------
    >>> html_table("<b>", ["n"], [[1]])
    '<table><caption>&lt;b&gt;</caption><tr><th>n</th></tr><tr><td>1</td></tr></table>'
    """
    listed = list(rows)
    cells = ["".join(f"<td>{_shown(cell)}</td>" for cell in row) for row in listed[:MOST_ROWS]]
    if len(listed) > MOST_ROWS:
        cells.append(f'<td colspan="{len(columns)}">and {len(listed) - MOST_ROWS} more</td>')
    head = "".join(f"<th>{_shown(column)}</th>" for column in columns)
    body = "".join(f"<tr>{row}</tr>" for row in [head, *cells])
    return f"<table><caption>{_shown(caption)}</caption>{body}</table>"


def _shown(value: object) -> str:
    return escape(marked(str(value)))
