"""Names and messages of others are shortened in one way: one line, short, nothing hidden."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety_lib.text import one_line, pieces, shorten


@given(text=st.text(), limit=st.integers(4, 40))
def test_a_line_is_one_short_and_hides_nothing(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert not any(piece.hidden for piece in pieces(line, lines=False))


@given(text=st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=60))
def test_what_fits_is_left_as_it_is(text: str) -> None:
    assert one_line(text, 60) == shorten(text, 60) == text


@pytest.mark.parametrize("dots", ["...", "…"])
def test_what_is_left_out_is_told(dots: str) -> None:
    assert one_line("a" * 9, 8, dots) == "a" * (8 - len(dots)) + dots
    assert one_line("a" + " " * 1000 + "b", 8, dots) == f"a{dots}"


def test_a_megabyte_takes_no_time() -> None:
    hostile = "\x1b[31m" * 10_000_000
    started = time.perf_counter()
    one_line(hostile)
    assert time.perf_counter() - started < 0.05
