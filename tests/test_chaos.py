"""A slice of the campaign that ``make chaos`` runs: bad inputs, each with what has to follow."""

from __future__ import annotations

import pytest
from chaos.bad_inputs import BadInput, Desktop, inputs, try_one
from chaos.outcome import AS_EXPECTED

SEED, COUNT = 20_260, 120


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Desktop:
    return Desktop(tmp_path_factory.mktemp("desktop"))


def test_what_is_bad_is_refused_in_one_line_and_what_is_not_is_taken(desktop: Desktop) -> None:
    outcomes = [try_one(bad, desktop) for bad in inputs(SEED, COUNT, desktop)]
    assert [outcome for outcome in outcomes if outcome.came != AS_EXPECTED] == []


def test_an_input_comes_from_the_seed_and_its_number(desktop: Desktop) -> None:
    few, more = (list(inputs(7, count, desktop)) for count in (5, 9))
    assert [bad.how for bad in few] == [bad.how for bad in more[:5]]


@pytest.mark.parametrize(
    ("prepared", "refused", "names", "came"),
    [
        (["history", "history.json"], True, (), "wrongly accepted"),
        (["history", "nowhere.json"], False, (), "wrongly refused"),
        (["history", "nowhere.json"], True, ("line 7",), "unclear message"),
    ],
)
def test_what_comes_otherwise_is_told(
    desktop: Desktop, prepared: list[str], refused: bool, names: tuple[str, ...], came: str
) -> None:
    bad = BadInput("x", "x", lambda folder: prepared, refused, names)
    assert try_one(bad, desktop).came == came
