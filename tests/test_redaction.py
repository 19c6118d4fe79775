"""Redaction: what was planted is gone, the same value has the same name, twice changes nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake.redaction import Redaction, load_redaction

WORDS = ["hello", "please", "pay", "$1,200", "C-1001", "T-203", "2026-01-20", "at 08:30", "/tmp/x"]


def with_luhn(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits + "0")):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return digits + str(-total % 10)


def as_iban(country: str, account: str) -> str:
    number = "".join(str(int(sign, 36)) for sign in account + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def in_fours(text: str) -> str:
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


DIGITS = st.text("0123456789", min_size=14, max_size=14)
CARDS = st.builds(lambda first, rest: with_luhn(first + rest), st.sampled_from("23456"), DIGITS)
IBANS = st.builds(as_iban, st.sampled_from(["DE", "GB", "FR"]), DIGITS)
LOCALS = st.from_regex(r"[a-zA-Zäß0-9]([a-zA-Zäß0-9._%+-]{0,12}[a-zA-Z0-9])?", fullmatch=True)
DOMAINS = st.sampled_from(["post.example", "mail.outside-audit.example", "bücher.example"])
PHONES = st.from_regex(
    r"\+49 1[5-7][0-9] [0-9]{7}|\+1[0-9]{10}|0[1-9][0-9]{2}[ /-][0-9]{6,7}"
    r"|\([2-9][0-9]{2}\) [0-9]{3}-[0-9]{4}|[2-9][0-9]{2}-[0-9]{3}-[0-9]{4}|0[1-9][0-9]{9}",
    fullmatch=True,
).filter(str.isascii)
SECRETS = st.one_of(
    st.builds("{}@{}".format, LOCALS, DOMAINS), CARDS, CARDS.map(in_fours), PHONES, IBANS,
    IBANS.map(in_fours),
)  # fmt: skip
PLACES = st.sampled_from(["{}", "({})", "<{}>", "is {}.", '"{}"', "note:{}", "{}, thanks", "\n{}"])


def local_part(secret: str) -> str:
    return secret.rpartition("@")[0] + "@" if "@" in secret else secret


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(WORDS), PLACES, SECRETS), min_size=1, max_size=4), st.data()
)
def test_nothing_that_was_planted_is_left(
    planted: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    text = " ; ".join(f"{word} {place.format(secret)}" for word, place, secret in planted)
    shape = data.draw(st.sampled_from(["text", "json", "json in json", "tree", "key"]))
    value: Any = {
        "text": text,
        "json": json.dumps({"note": text}),
        "json in json": json.dumps([{"inner": json.dumps({"note": [text, 7]})}]),
        "tree": {"a": [{"b": text}]},
        "key": {text: 1},
    }[shape]
    redaction = Redaction()
    written = json.dumps(redaction.of(value), ensure_ascii=False)
    for word, place, secret in planted:
        assert local_part(secret) not in written
        # What rules need stays; but digits before a card may be digits of it.
        assert word in written or (word[-1].isdigit() and place.startswith("{}"))
        if "@" in secret:
            assert "@" + secret.rpartition("@")[2] in written
    assert redaction.of(redaction.of(value)) == redaction.of(value)
    assert Redaction().of(redaction.of(value)) == redaction.of(value)


@settings(deadline=None)
@given(st.text(alphabet="[]email-1@.ab0+4 \\n\"'{}:", max_size=60))
def test_a_second_time_changes_nothing(text: str) -> None:
    redaction = Redaction(also={"odd": "b0+"})
    once = redaction.of(text)
    assert redaction.of(once) == once
    assert Redaction(also={"odd": "b0+"}).of(once) == once


def test_one_value_has_one_placeholder_however_it_is_spelled() -> None:
    redaction = Redaction()
    said = redaction.of("Mail Dana@post.example, call +49 170 1234567, from 4111 1111 1111 1111")
    assert said == "Mail [email-1]@post.example, call [phone-1], from [card-1]"
    assert redaction.of({"to": "dana@post.example", "tel": "+491701234567"}) == {
        "to": "[email-1]@post.example",
        "tel": "[phone-1]",
    }
    assert redaction.of([4111111111111111, "4111-1111-1111-1111"]) == ["[card-1]", "[card-1]"]
    assert redaction.of("dana@mail.example") == "[email-2]@mail.example"


@pytest.mark.parametrize(
    "text",
    [
        "pay $9,400 to account AC-55102 on 2026-11-26T08:23:43Z",
        "from 01-02-2026 to 2026/03/04, 08:30, 1.200.000,00",
        "customer C-1001, ticket T-203, record REF-9MK6-1001, approval AP-2207",
        "span 4bf92f3577b34da6a3ce929d0e0e4736 at 1764144000000000000, 1764144000000",
        "at10 this week only, 0.0411111111111111111, @mention, a@b, package@1.2.34",
        "part one NWK-58F2 part two Q7LM-031D",
        '{"amount": 1200, "rate": 0.4111111111111111, "on": true}',
    ],
)
def test_amounts_dates_and_ids_stay(text: str) -> None:
    assert Redaction().of(text) == text


def test_an_account_number_ends_where_it_checks() -> None:
    text = "AT61 1904 3002 3457 3201 mine has no money; see no12 DE89 3704 0044 0532 0130 00 too"
    assert Redaction().of(text) == "[iban-1] mine has no money; see no12 [iban-2] too"


def test_a_wrong_check_digit_is_no_way_through_in_groups_of_four() -> None:
    assert Redaction().of("4111 1111 1111 1112 12/27") == "[card-1] 12/27"
    assert Redaction().of("DE11 3704 0044 0532 0130 00!") == "[iban-1]!"


def test_digits_beside_a_card_are_no_part_of_it() -> None:
    text = "C-1001 2000 0000 0000 0006, 2026-01-20 4111 1111 1111 1111 12/27, 371449635398431 900"
    expected = "C-1001 [card-1], 2026-01-20 [card-2] 12/27, [card-3] 900"
    assert Redaction().of(text) == expected


def test_escapes_of_json_hide_nothing() -> None:
    text = r'{"to": "dana\u0040post.example", "n": "\n4111111111111111"}'
    assert Redaction().of(text) == '{"to": "[email-1]@post.example", "n": "\\n[card-1]"}'
    cut = r'{"to": "x\ndana@post.example", "card": "x\n4111111111111111'  # cut off, so no JSON
    assert Redaction().of(cut) == r'{"to": "x\[email-1]@post.example", "card": "x\n[card-1]'


def test_a_text_of_json_without_personal_data_stays_byte_for_byte() -> None:
    text = '{ "a":1,\n "b" : [1.0, 2e3] }'
    assert Redaction().of(text) == text


def test_what_was_replaced_is_counted_as_it_stands_in_what_is_written() -> None:
    redaction = Redaction()
    tree = redaction.of({"a": "dana@post.example eve@post.example", "b": ["dana@post.example"]})
    redaction.count(tree)
    redaction.count("[email-9]@x.example and [ticket-1] were there before")
    assert str(redaction) == "redacted: 3 email (2 different)"


def test_own_patterns_and_what_to_keep_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "redact.yaml"
    path.write_text(
        "also:\n  booking: 'BK-[0-9]+'\nkeep: ['@desk[.]example$', '^BK-1$']\n", encoding="utf-8"
    )
    said = load_redaction(path).of("help@desk.example: BK-1, BK-22, x@post.example, BK-22")
    assert said == "help@desk.example: BK-1, [booking-1], [email-1]@post.example, [booking-1]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("also: {a: '('}", "no regular expression"),
        ("also: {a: 'x*'}", "matches the empty text"),
        ("also: {Big: x}", "no name for a pattern"),
        ("also: {email: x}", "no name for a pattern"),
        ("keep: x", "is something else"),
        ("[1]", "is something else"),
        ("others: {}", "is something else"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "redact.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(words)) as refused:
        load_redaction(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^none\.yaml: cannot be read"):
        load_redaction(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "unit", ["a", "a@", "1 ", "+1", "12-", "DE12 ", '"', "a.", "@a.", "[email-1]", "0 "]
)
def test_a_long_text_takes_no_more_than_its_length(unit: str) -> None:
    redaction = Redaction()
    started = time.process_time()
    redaction.of(unit * (100_000 // len(unit)))
    assert time.process_time() - started < 5
