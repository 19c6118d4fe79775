"""What commands say to whoever sits there, and ask."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click


def say_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines, whoever wrote what stands in them: none begins another line, or hides one.

    Examples
    --------
    >>> say_lines(["one", "two"])
    one
    two
    """
    from safety_lib.text import BAR, marked

    for line in lines:
        click.echo(marked(line, BAR), err=err)


def confirmed(question: str) -> bool:
    """Ask a question.

    Raises
    ------
    UsageError
        If nobody is there to answer.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return click.confirm(question)
    raise click.UsageError(f"{question} Nobody is here to ask: say --yes, or YES=1 to make")
