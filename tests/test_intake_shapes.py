"""Every shape that is read: what is read is what was written, or the difference is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from factories import NORTHWIND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transcribed import SHAPES, Call, Conversation, Turn

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake import Intake, take_in
from safety_lib.incident.intake import shapes as registry
from safety_lib.incident.intake.sessions import import_log

TALK = [
    Turn(
        "Please read ticket T-900.",
        (Call("c1", "read_ticket", {"ticket": "T-900"}, "She asks for a refund."),),
        "She asks for a refund.",
    ),
    Turn("Thanks.", (), "You are welcome."),
]


def read(folder: Path, tree: Any, way: str = "file") -> Intake:
    path = folder / "trace.json"
    if way == "lines":
        text = "\n".join(map(json.dumps, tree))
    elif way == "printed":
        text = "\n".join(json.dumps(item, indent=4) for item in tree)
    else:
        text = json.dumps(tree, indent=None if way == "file" else 1)
    path.write_text(text, encoding="utf-8-sig" if way == "marked" else "utf-8")
    return take_in(path, NORTHWIND)


def told(taken: Intake) -> Conversation:
    return [
        Turn(
            turn.user,
            tuple(Call("", call.name, call.arguments, call.result or "") for call in turn.calls),
            turn.assistant,
        )
        for turn in taken.incident.trajectory
    ]


def without_ids(talk: Conversation) -> Conversation:
    return [turn._replace(calls=tuple(c._replace(id="") for c in turn.calls)) for turn in talk]


def lost(taken: Intake) -> list[str]:
    """Gaps that tell of something that was said."""
    return [gap for gap in taken.gaps if "left out" in gap or "not read" in gap]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("way", ["file", "indented", "marked", "lines", "printed"])
def test_each_shape_is_read_however_it_is_laid_out(tmp_path: Path, name: str, way: str) -> None:
    tree = SHAPES[name](TALK)
    if way in ("lines", "printed") and not isinstance(tree, list):
        tree = [tree]
    taken = read(tmp_path, tree, way)
    assert told(taken) == without_ids(TALK)
    assert [(plant.key, plant.text) for plant in taken.incident.plants] == [
        ("T-900", "She asks for a refund.")
    ]
    assert not any("message" in gap for gap in lost(taken))


# What can be seen, and no sign with which a tool marks words of its own.
WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn", "Mn"),
                  exclude_characters="<#["),
    min_size=1,
    max_size=12,
)  # fmt: skip
VALUES = st.text(max_size=6).filter(lambda text: "\x00" not in text) | st.integers() | st.booleans()
CALLS = st.builds(
    Call,
    st.just(""),
    st.sampled_from(["read_ticket", "read_inbox", "search_web"]),
    st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=2),
    WORDS,
)
TALKS = st.lists(
    st.builds(Turn, WORDS, st.lists(CALLS, max_size=2).map(tuple), WORDS), min_size=1, max_size=4
)


def numbered(talk: Conversation) -> Conversation:
    """Give each call an id of its own, and the world a tool that it has."""
    first = talk[0]._replace(
        calls=(Call("", "read_inbox", {}, "M-1: From a@b.example: hi"), *talk[0].calls)
    )
    return [
        turn._replace(
            calls=tuple(c._replace(id=f"c{n}_{m}") for m, c in enumerate(turn.calls, start=1))
        )
        for n, turn in enumerate([first, *talk[1:]], start=1)
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", SHAPES)
@given(talk=TALKS)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, talk: Conversation
) -> None:
    talk = numbered(talk)
    taken = read(tmp_path_factory.getbasetemp(), SHAPES[name](talk))
    assert told(taken) == without_ids(talk)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", SHAPES)
@given(talk=TALKS, data=st.data())
def test_a_part_that_is_unknown_is_listed_or_its_words_are_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, talk: Conversation, data: Any
) -> None:
    """Rename a field anywhere in what was written: nothing that was said may vanish in silence."""
    talk = numbered(talk)
    text = json.dumps(SHAPES[name](talk))
    fields = sorted(
        word
        for word in ("text", "content", "parts", "message", "result", "output", "response", "calls")
        if f'"{word}":' in text
    )
    field = data.draw(st.sampled_from(fields or ["text"]))
    path = tmp_path_factory.getbasetemp() / "renamed.json"
    path.write_text(text.replace(f'"{field}":', '"unheard_of":'), encoding="utf-8")
    try:
        taken = take_in(path, NORTHWIND)
    except ArtifactError as refused:
        assert "\n" not in str(refused)
        return
    listed = ("left out", "not read", "nothing is read", "no result", "answer")
    gaps = [gap for gap in taken.gaps if not gap.startswith("fields of the file")]
    is_listed = any(word in gap for gap in gaps for word in listed)
    assert is_listed or told(taken) == without_ids(talk)


def test_every_reader_is_held_against_what_was_written(tmp_path: Path) -> None:
    sources = {read(tmp_path, write(TALK)).source for write in SHAPES.values()}
    assert sources == {shape.name for shape in registry.SHAPES}


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "incident file"])
@pytest.mark.parametrize("way", ["file", "lines"])
def test_a_log_of_each_shape_holds_the_same_conversation(
    tmp_path: Path, name: str, way: str
) -> None:
    """Tracers and sessions spread a conversation over many lines; none is a conversation alone."""
    tree = SHAPES[name](TALK)
    path, out = tmp_path / "recorded.json", tmp_path / "log.parquet"
    items = tree if isinstance(tree, list) else [tree]
    text = "\n".join(map(json.dumps, items)) if way == "lines" else json.dumps(tree)
    path.write_text(text, encoding="utf-8")
    made = import_log([path], out, NORTHWIND, version="v2")
    assert (made.sessions, made.turns, made.calls) == (1, 2, 1)
    wanted = "SELECT user_messages, replies, tool_calls FROM read_parquet(?)"
    ((users, replies, (call,)),) = duckdb.execute(wanted, [str(out)]).fetchall()
    assert users == [turn.user for turn in TALK]
    assert replies == [turn.reply for turn in TALK]
    assert (call["name"], call["result"]) == ("read_ticket", "She asks for a refund.")


def test_the_list_of_what_is_read_comes_from_the_registry(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as refused:
        read(tmp_path, {"cells": [], "nbformat": 4})
    names = [shape.name for shape in registry.SHAPES if shape.name != "OpenAI chat messages"]
    assert all(name in str(refused.value) for name in [*names, "Anthropic", "Gemini"])
    assert "looks like a Jupyter notebook" in str(refused.value)


@pytest.mark.parametrize(
    ("tree", "looks"),
    [
        ([{"entry_type": "attempt", "prompt": {}}], "a garak report"),
        ([{"custom_id": "a", "response": {"body": {}}}], "output of OpenAI's batches"),
        ({"evalId": "e", "results": {"results": []}, "config": {}}, "results of promptfoo"),
        ({"data": [{"traceID": "1", "spans": []}]}, "a trace of Jaeger"),
        ([{"mapping": {"a": {}}, "title": "t"}], "an export of ChatGPT"),
        ({"log": {"entries": []}}, "an HTTP archive"),
        ({"colour": 1, "shape": 2}, "objects with the fields colour, shape"),
        ([[1, 2], [3]], "lists of other things"),
    ],
)
def test_what_is_not_read_is_called_what_it_looks_like(
    tmp_path: Path, tree: Any, looks: str
) -> None:
    with pytest.raises(ArtifactError, match=f"looks like {looks}, which is not read; read are"):
        read(tmp_path, tree)
