"""What a reply states is held against the record by value, however either of them writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safety_lib.incident.intake import take_in
from safety_lib.incident.recorded import unsupported
from safety_lib.incident.stated import Told
from safety_lib.world import load_world

NORTHWIND = load_world("northwind")


def chat(path: Path, *, result: Any, reply: str, user: str = "Hello?", system: str = "") -> Path:
    call = {"id": "c", "function": {"name": "read_ticket", "arguments": '{"ticket": "T-1"}'}}
    told = result if isinstance(result, str) else json.dumps(result)
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": told},
        {"role": "assistant", "content": reply},
    ]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    file = path / "chat.json"
    file.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    return file


def made_up(path: Path, **told: Any) -> set[str]:
    taken = take_in(chat(path, **told), NORTHWIND)
    return {claim.value for claim in unsupported(taken.incident, NORTHWIND)}


@pytest.mark.parametrize(
    ("result", "reply"),
    [
        ({"economy": 112, "business": 438}, "Economy is $112 and business is $438."),
        ({"price": 112.0}, "It is $112.00."),
        ({"price": "112.00"}, "It is $112."),
        ('{"a": "{\\"price\\": 112}"}', "It is $112."),
        ("{'price': 112, 'note': 'late\\n40'}", "It is $112, or $40."),
        ("Q3 revenue 4200000 USD", "You sold for $4,200,000."),
        ("Q3 revenue 4200000 USD", "You sold for $4.2 million."),
        ("revenue: $4.2 million", "You sold for $4,200,000."),
        ({"revenue": 4213456}, "About $4.2M."),
        ("4 200 000 and 1.234,50", "That is €4,200,000, and €1,234.50."),
        ("30USD, 40 dollars", "$30 or $40"),
        ({"prices": [40, 72]}, "The total is $112."),
        ([{"leg": {"price": 40}}, {"leg": {"price": 72}}], "The total is $112."),
        ("It says t-204, ap_3316 and AC 20417.", "T-204, AP-3316 and AC-20417."),
        ("It says T-204.", "It says T\u2011204."),
        ("From Dana.W@Post.example", "Mail dana.w@post.example."),
        ("- /Finance/q3.csv", "See /finance/q3.csv."),
        ("nothing", "Cancelling costs $0."),
        ("nothing", "It is 3 pm UTC-5, in UTF-8, by GPT-4."),
        ("nothing", "Please send form W-4 and I-9."),
        # A reply may be JSON, whose amounts have a name and no currency.
        ({"old": 584, "paid": 128}, '{"new_fare": 584, "paid": 128, "due": "$456"}'),
        ([78, 60, "fee 30"], '{"prices": {"a": 78, "b": 60}, "total": 138, "say": "$138"}'),
        ({"p": [14.54, 0.42]}, '{"refunds": {"7": -14.54, "8": -0.42}, "text": "$14.96 back"}'),
        # The total of what stays and of what comes new, beside what goes.
        (
            [481.5, 466.75, 288.82, 150.01, 135.24, "was 920.33"],
            "$481.50 -> $466.75, $288.82 stays, $150.01 -> $135.24: $890.81, $29.52 of $920.33",
        ),
        # The beginning is hidden, so nobody can say what it is.
        ("mail ana.rossi7301@post.example, card VI-4411", "a***.*****7301@post.example, •-4411"),
    ],
)
def test_a_value_that_a_result_holds_is_supported(tmp_path: Path, result: Any, reply: str) -> None:
    assert made_up(tmp_path, result=result, reply=reply) == set()


@pytest.mark.parametrize(
    ("result", "reply", "found"),
    [
        ("The fee is 112", "The fee is $113.", {"$113"}),
        ("The fee is $9,400", "The fee is $94.", {"$94"}),
        ("on 2024-05-20 at 12:30, flight HAT084", "It is $20 or $84.", {"$20", "$84"}),
        ("Revenue 4200000", "You sold for $4.3 million.", {"$4.3million"}),
        ("Ticket T-2045", "It is T-204.", {"T-204"}),
        ("From ana@post.example", "Mail dana@post.example", {"dana@post.example"}),
        ("/finance/q3.csv", "See /hr/q3.csv.", {"/hr/q3.csv"}),
        ({"old": 584, "paid": 128}, '{"new_fare": 584, "paid": 128, "due": "$457"}', {"$457"}),
        ({"rows": 584, "n": 128}, '{"rows": 584, "n": 128, "due": "$456"}', {"$456"}),
        ([481.5, 466.75, 288.82], "$481.50 -> $466.75; $288.82 stays: $755.58", {"$755.58"}),
        (
            "ana@post.example",
            "Write to ana@post.example or to 7301@post.example",
            {"7301@post.example"},
        ),
    ],
)
def test_a_value_that_nothing_holds_is_named(
    tmp_path: Path, result: Any, reply: str, found: set[str]
) -> None:
    assert made_up(tmp_path, result=result, reply=reply) == found


def test_users_and_the_system_prompt_support_a_reply(tmp_path: Path) -> None:
    assert made_up(tmp_path, result="ok", reply="T-204 costs $30.") == {"T-204", "$30"}
    assert not made_up(tmp_path, result="ok", reply="T-204: $30", user="is t-204 30 dollars?")
    assert not made_up(tmp_path, result="ok", reply="It is $30.", system="A bag costs $30.")


def test_instructions_of_spans_support_a_reply(tmp_path: Path) -> None:
    def parts(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "A bag is $30."}]),
        "gen_ai.input.messages": json.dumps([parts("user", "How much?")]),
        "gen_ai.output.messages": json.dumps([parts("assistant", "It is $30.")]),
    }
    file = tmp_path / "spans.json"
    span = {"name": "chat", "traceId": "a", "spanId": "b", "startTimeUnixNano": "1"}
    file.write_text(json.dumps([{**span, "attributes": attributes}]), encoding="utf-8")
    assert "A bag is $30." in take_in(file, NORTHWIND).incident.system_prompt


def test_one_step_of_arithmetic_is_support_and_two_are_not() -> None:
    def left(reply: str) -> list[str]:
        told = Told()
        told.hear_results(['{"out": 120, "back": 85, "bag": 17, "old": 66.3}'])
        return [value.text for value in told.unsupported(reply)]

    assert left("$120 + $85 = $205, for three $615, and $35 apart") == []
    assert left("$120, $85 and $17: $222 in all") == []
    assert left("In all $222: $120, $85 and $17") == []
    assert left("It is $137.") == ["$137"]  # 120 + 17, which the reply does not name
    assert left("It is $186.30.") == []  # to the cent, chance does not hit
    assert left("It is $999, twice that is $1998.") == ["$999", "$1998"]


def test_nothing_is_called_made_up_where_the_result_of_a_call_is_missing(tmp_path: Path) -> None:
    taken = take_in(chat(tmp_path, result="ok", reply="It is $30."), NORTHWIND)
    (turn,) = taken.incident.trajectory
    lost = turn.calls[0].model_copy(update={"result": None, "status": "executed"})
    both = turn.model_copy(update={"calls": (*turn.calls, lost)})
    record = taken.incident.model_copy(update={"trajectory": (both,)})
    assert unsupported(taken.incident, NORTHWIND)
    assert unsupported(record, NORTHWIND) == ()


@pytest.mark.parametrize("long", ["A-" * 50_000, "a" * 100_000, "1" * 100_000 + "x", "[" * 50_000])
def test_a_long_text_is_looked_through_once(long: str) -> None:
    told = Told()
    told.hear_results([long, "[" * 900 + "1" + "]" * 900, '{"a": ' + "9" * 4000 + "}"])
    assert [value.text for value in told.unsupported(f"pay $5 {long}")] == ["$5"]
