"""How records show themselves in a notebook: as a small table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MOST_ROWS = 20


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook, of the first rows and with how many more there are.

    Parameters
    ----------
    caption : str
        Stands above it; escaped, as all that it shows.
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
    cells = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in listed[:MOST_ROWS]]
    if len(listed) > MOST_ROWS:
        cells.append(f'<td colspan="{len(columns)}">and {len(listed) - MOST_ROWS} more</td>')
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{row}</tr>" for row in [head, *cells])
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"
