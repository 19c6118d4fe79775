"""The commands with their options, as a page: what ``--help`` says, for those who read first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from safety_lib.__main__ import cli
from safety_lib.artifacts import CHECKOUT
from safety_lib.files import write_text

PAGE = CHECKOUT / "artifacts" / "docs" / "commands.md"
_WIDTH = 96


def commands_page() -> str:
    """Return the help of every command in Markdown, in the order of the loop.

    Examples
    --------
    >>> "## `python -m safety_lib gate`" in commands_page()
    True
    """
    parts = [
        "# Commands\n\nEvery command with its options, as `--help` prints them. Exit codes: 0 done "
        "or OK, 1 WARN, 2 BLOCK, 3 whatever is no verdict.\n"
    ]
    for words, command in _all(("python -m safety_lib",), cli):
        own = {**cli.context_settings, "info_name": " ".join(words)}  # as below the group itself
        context = click.Context(command, **own)
        context.terminal_width = context.max_content_width = _WIDTH
        parts.append(f"## `{' '.join(words)}`\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _all(
    words: tuple[str, ...], command: click.Command
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, below in command.commands.items():
        yield from _all((*words, name), below)


def write_commands(path: Path = PAGE) -> Path:
    """Write the page.

    Parameters
    ----------
    path : Path, optional
        Where.

    Returns
    -------
    Path
        The page.
    """
    return write_text(path, commands_page())
