"""What came of one fault: its line in the table, and how to bring it about again."""

from __future__ import annotations

from typing import Literal, NamedTuple

AS_EXPECTED = "as expected"

Came = Literal[
    "as expected",
    "traceback",
    "hang",
    "died",
    "memory",
    "wrongly accepted",
    "wrongly refused",
    "unclear message",
    "something lost",
    "left behind",
]


class Outcome(NamedTuple):
    """One fault that was tried.

    ``how`` says what it was, so that a person can try it again; ``said`` is what the program said.
    """

    kind: str
    came: Came
    how: str
    said: str = ""
