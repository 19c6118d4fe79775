"""How records show themselves: one line where Python names one, a small table in a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from html import escape
from typing import Any

from safety_lib.text import one_line

LONGEST_LINE = 200
LONGEST_VALUE = 48
MOST_ROWS = 20


class Shown:
    """What shows itself in one line: ``repr`` is the class and the first line of ``str``.

    A class that has more to say than its first fields says it in a ``__str__`` of its own, which
    may have any length and number of lines.

    Examples
    --------
    >>> from safety_lib.records import CutPoint, Reproduction
    >>> broke = Reproduction(version="v2", k=9, n=20, ci_low=0.258, ci_high=0.658)
    >>> CutPoint(turn=3, broke=broke)
    <CutPoint: turn=3, broke=9 of 20 [0.26, 0.66] on v2>
    """

    __slots__ = ()

    def __str__(self) -> str:
        shown = (f"{name}={_value(getattr(self, name))}" for name in _fields(self))
        return ", ".join(shown)

    def __repr__(self) -> str:
        return f"<{one_line(f'{type(self).__name__}: {_first_line(self)}', LONGEST_LINE)}>"


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


def _fields(shown: Any) -> Iterable[str]:
    fields = getattr(type(shown), "model_fields", None)
    return fields if fields is not None else [field.name for field in dataclasses.fields(shown)]


def _first_line(shown: object) -> str:
    return next(iter(str(shown).splitlines()), "")


def _value(value: object) -> str:
    if isinstance(value, Shown):
        own = type(value).__str__ is not Shown.__str__
        return one_line(_first_line(value), LONGEST_VALUE) if own else type(value).__name__
    if isinstance(value, str):
        return repr(one_line(value, LONGEST_VALUE))
    if isinstance(value, list | tuple | Mapping | Set) and len(value) > 0:
        return f"[{len(value)} items]" if len(value) > 1 else "[1 item]"
    return repr(value)
