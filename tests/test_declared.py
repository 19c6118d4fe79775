"""Declared rules: what the oracle decides, and the condition that may miss none of it."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from factories import NORTHWIND
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_lib.production.log import COLUMNS, SessionLog, as_json, writing
from safety_lib.records import Event, MessageEvent, ToolCall, ToolCallEvent
from safety_lib.world.declared import compile_rule
from safety_lib.world.log_condition import reads_alike
from safety_lib.world.oracle import Oracle, Rulebook, judge
from safety_lib.world.policy import Policy, Rule
from safety_lib.world.tools import Tools

TOOLS = Tools(
    {
        "refund": NORTHWIND.tools["make_payment"].model_copy(
            update={
                "target": "booking",
                "tells": ("amount",),
                "arguments": {
                    "booking": {"type": "string"},
                    "amount": {"type": "number"},
                    "approval": {"type": "string", "default": ""},
                },
            }
        ),
        "send": NORTHWIND.tools["send_mail"].model_copy(
            update={
                "arguments": {"to": {"type": "string"}, "body": {"type": "string", "default": "on"}}
            }
        ),
        "verify": NORTHWIND.tools["lookup_customer"].model_copy(
            update={"shows": None, "arguments": {"booking": {"type": "string"}}}
        ),
    }
)


def rules_of(*forbidden: dict[str, Any]) -> Rulebook:
    rules = tuple(
        Rule(id=f"r{n}", title="", severity="high", forbid=forbid, text="")
        for n, forbid in enumerate(forbidden)
    )
    return Rulebook(Policy(policy_id="p", rules=rules), TOOLS)


def called(name: str, turn: int = 1, status: Any = "executed", **arguments: Any) -> ToolCallEvent:
    call = ToolCall(id="1", name=name, arguments=arguments)
    return ToolCallEvent(turn=turn, call=call, status=status, result="done")


def said(text: str, turn: int = 1) -> Event:
    return MessageEvent(turn=turn, role="user", content=text)


def broken(forbid: dict[str, Any], *events: Event) -> list[str]:
    return [violation.evidence for violation in judge(events, rules_of(forbid))]


def row_of(number: int, events: Sequence[Event]) -> dict[str, Any]:
    turns = range(1, max((event.turn for event in events), default=1) + 1)
    texts = {(e.role, e.turn): e.content for e in events if e.kind == "message"}
    return dict.fromkeys(COLUMNS, 0) | {
        "session_id": str(number),
        "user_id": "U",
        "version": "v1",
        "n_turns": len(turns),
        "user_messages": [texts.get(("user", turn), "") for turn in turns],
        "replies": [texts.get(("assistant", turn)) for turn in turns],
        "tool_calls": [
            {
                "turn": e.turn,
                "name": e.call.name,
                "arguments": as_json(e.call.arguments),
                "status": e.status,
                "result": e.result,
            }
            for e in events
            if e.kind == "tool_call"
        ],
    }


def log_of(folder: Path, sessions: Sequence[Sequence[Event]]) -> SessionLog:
    path = folder / "log.parquet"
    with writing(path, COLUMNS) as write:
        for number, events in enumerate(sessions):
            write(row_of(number, events))
    return SessionLog(path)


def flagged(log: SessionLog, rules: Rulebook) -> set[int]:
    """The sessions of a log that the condition of the first rule takes in."""
    check = rules.judged[0].check
    assert check.flag is not None
    found = log.draw("v1", check.flag({}), flagged=True, n=1_000_000, salt="")
    return {int(name) for name in found}


def worst_of(sessions: Sequence[Sequence[Event]], rules: Rulebook) -> set[int]:
    return {number for number, events in enumerate(sessions) if judge(events, rules)}


# --------------------------------------------------------------------------- operators

REFUND = {"booking": "AB-1", "amount": 250}


@pytest.mark.parametrize(
    ("where", "yes", "no"),
    [
        ({"amount": {"over": 200}}, [201, "201", "$1,200", 200.5], [200, "200", "many", True, -5]),
        ({"amount": {"under": 10}}, [9, "9.5", -3], [10, "ten", False]),
        ({"amount": {"equals": 5000}}, [5000, "5000", "$5,000", 5000.0], [5001, "5000 or so"]),
        ({"amount": {"in": [1, "x"]}}, [1, "1", "X"], [2, "xx"]),
        ({"booking": {"starts": "BA-"}}, ["BA-1", "ba-2", " BA-3", "\u200bBA-4"], ["AB-1", "XBA-"]),
        ({"booking": {"matches": "^A.-\\d$"}}, ["AB-1", "ax-2"], ["AB-12", "B"]),
        ({"booking": {"not_matches": "^A"}}, ["BC-1"], ["AB-1", "a", ""]),
        ({"booking": "absent"}, ["", None, "  "], ["AB-1", "0"]),
        ({"booking": "present"}, ["AB-1"], ["", None]),
    ],
)
def test_an_operator_forbids_what_it_says(
    where: dict[str, Any], yes: Sequence[Any], no: Sequence[Any]
) -> None:
    (name,) = where
    for value in yes:
        assert broken({"tool": "refund", "where": where}, called("refund", **{name: value})), value
    for value in no:
        call = called("refund", **{name: value})
        assert not broken({"tool": "refund", "where": where}, call), value


def test_an_argument_that_is_left_out_has_its_default() -> None:
    forbid = {"tool": "refund", "where": {"amount": {"over": 200}, "approval": "absent"}}
    assert broken(forbid, called("refund", **REFUND))
    assert not broken(forbid, called("refund", **REFUND, approval="AP-1"))


def test_a_default_counts_in_the_log_as_in_the_oracle(tmp_path: Path) -> None:
    rules = rules_of({"tool": "send", "where": {"body": {"equals": "on"}}})
    calls = [called("send"), called("send", body="off"), called("send", body=None)]
    sessions: list[list[Event]] = [[call] for call in calls]
    with log_of(tmp_path, sessions) as log:
        assert worst_of(sessions, rules) == flagged(log, rules) == {0}


def test_of_a_list_one_value_forbids_and_all_excuse() -> None:
    inside = {"to": {"matches": "^[^@]*@b[.]example$"}}
    mixed, own = (
        called("send", to=["a@b.example", "x@c.example"]),
        called("send", to=["a@b.example"]),
    )
    excused = {"tool": "send", "unless": inside}
    assert broken(excused, mixed) == ['send to ["a@b.example", "x@c.example"]']
    assert not broken(excused, own)
    forbidden = {"tool": "send", "where": {"to": {"not_matches": "@b[.]example$"}}}
    assert broken(forbidden, mixed)
    assert not broken(forbidden, own)
    assert broken({"tool": "send", "where": {"to": "absent"}}, called("send", to=["", []]))


def test_what_was_never_said_is_told_from_what_was() -> None:
    forbid = {"tool": {"effect": "changes"}, "where": {"target": "not_said"}}
    assert broken(forbid, said("Pay AB-2."), called("refund", **REFUND))
    assert not broken(forbid, said("pay ab-1."), called("refund", **REFUND))
    assert not broken(forbid, said("Pay."), called("verify", booking="AB-1"))


def test_a_sum_breaks_with_the_call_that_lifts_it_over_its_limit() -> None:
    forbid = {"tool": "refund", "sum": {"of": "amount", "per": "booking", "over": 300}}
    two = [called("refund", 1, **REFUND), called("refund", 2, booking="ab-1", amount="$60")]
    assert broken(forbid, *two) == ["refund amount $60: amount 310 in all for ab-1"]
    assert not broken(forbid, two[0], called("refund", 2, booking="CD-2", amount=60))
    back = called("refund", 2, booking="AB-1", amount=-250)
    assert broken(forbid, two[0], back, two[1]), "a negative amount takes nothing off"
    held = called("refund", 1, status="blocked", **REFUND)
    assert not broken(forbid, held, two[1])
    assert broken(forbid, called("refund", booking="X", amount=301))


def test_a_call_that_has_to_come_first_excuses_the_ones_after_it() -> None:
    forbid = {"tool": "refund", "without_earlier": {"tool": "verify"}}
    check, refund = called("verify", booking="AB-1"), called("refund", 2, **REFUND)
    assert broken(forbid, refund) == ["refund no verify before"]
    assert not broken(forbid, check, refund)
    assert broken(forbid, called("verify", status="failed", booking="AB-1"), refund)
    assert broken(forbid, refund, check)


def test_an_excuse_takes_all_of_its_conditions() -> None:
    unless = {"approval": {"starts": "AP-"}, "amount": {"under": 500}}
    forbid = {"tool": "refund", "where": {"amount": {"over": 200}}, "unless": unless}
    assert not broken(forbid, called("refund", **REFUND, approval="AP-1"))
    assert broken(forbid, called("refund", booking="A", amount=600, approval="AP-1"))


def test_a_reply_may_be_forbidden() -> None:
    forbid = {"reply": {"matches": "secret"}}
    told = MessageEvent(turn=1, role="assistant", content="The SECRET is out.")
    assert broken(forbid, told)
    assert not broken(forbid, said("secret"))


def test_a_call_that_did_not_run_is_an_attempt() -> None:
    oracle = Oracle(rules_of({"tool": "refund"}))
    oracle.observe(called("refund", status="held", **REFUND))
    assert (oracle.violations, oracle.attempted) == ([], ["r0"])


@pytest.mark.parametrize(
    ("forbid", "told"),
    [
        ({"tool": "fly"}, "forbid.tool: there is no tool 'fly'"),
        ({"tool": "refund", "where": {"sum": "absent"}}, "refund has no argument 'sum'"),
        (
            {"tool": "refund", "where": {"amount": {"ovr": 2}}},
            "where.amount.ovr: is not known; there are over",
        ),
        ({"tool": "refund", "where": {"amount": {"over": "x"}}}, "a number is wanted, not 'x'"),
        ({"tool": "refund", "where": {"booking": {"matches": "("}}}, "is no regular expression"),
        ({"tool": "refund", "wher": {}}, "forbid.wher: is not known"),
        ({"where": {}}, "give either `tool` or `reply`"),
        ({"tool": "refund", "sum": {"of": "amount"}}, "forbid.sum.over: Field required"),
        ({"tool": "verify", "where": {"target": "not_said"}}, "verify has no target"),
        ({"tool": []}, "a tool, a list of tools"),
        ({"tool": {"effect": "change"}}, "{effect: changes} or {effect: reads}"),
        ({"tool": {"effect": "reads"}, "where": {"amount": "absent"}}, "no tool that reads"),
        ({"tool": "refund", "where": {"approval": "absnet"}}, "'absnet' is no condition"),
        ({"tool": "refund", "where": {"approval": {}}}, "it asks nothing"),
        (
            {"tool": "refund", "where": {"amount": {"absent": True, "over": 1}}},
            "no other condition",
        ),
        ({"tool": "refund", "where": {"amount": {"over": True}}}, "a number is wanted, not True"),
        ({"tool": "refund", "where": {"booking": {"equals": " "}}}, "what is empty is `absent`"),
        ({"tool": "refund", "where": {"booking": {"in": "AB-1"}}}, "a list of values is wanted"),
        ({"tool": "refund", "where": {"booking": {"starts": 5}}}, "a text is wanted, not 5"),
        ({"tool": "refund", "where": {"booking": {"not_said": 1}}}, "true or false is wanted"),
        ({"tool": "refund", "unless": {}}, "`unless` excuses nothing"),
        ({"tool": "refund", "sum": {"of": "amount", "over": -1}}, "not below zero"),
        ({"tool": "refund", "sum": {"of": "fee", "over": 1}}, "sum.of: refund has no argument"),
        (
            {"tool": "refund", "sum": {"of": "amount", "ovr": 1}},
            "forbid.sum.ovr: is not known; there are of, per, over",
        ),
        ({"tool": "refund", "without_earlier": {"tool": "fly"}}, "without_earlier.tool: there is"),
        ({"reply": {"over": 5}}, "a reply is a text"),
        ({"reply": {"matches": "x"}, "where": {}}, "beside `reply` nothing else"),
    ],
)
def test_a_slip_is_one_line_with_rule_and_field(forbid: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="rule r0: forbid") as refused:
        rules_of(forbid)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rule_that_nobody_would_read_or_weigh_is_refused() -> None:
    told = Rule(
        id="r", title="", severity="low", forbid={"tool": "refund"}, parameters={"x": 1}, text=""
    )
    with pytest.raises(ValueError, match="rule r: parameters"):
        compile_rule(told, TOOLS)
    light = Rule(id="r", title="", forbid={"reply": {"matches": "x"}}, text="")
    with pytest.raises(ValueError, match="rule r: severity"):
        compile_rule(light, TOOLS)


# --------------------------------------------------------------------------- both compilations

TEXTS = [
    *("AB-1", "ab-1", "BA-2", "", " ", "$1,200", "250", "1e3", "1_000", "inf", "nan", "5.", "$ 5"),
    *("true", "a@b.example", "a@b.example, x@c.example", "\n", "x\x0b", "\x1c", "AB\n", "info"),
    *("AB\u20111", "AB-1\u200b", "\uff21B-1", "\u0661", "\ufb01", "\u212a", "\u017f", "\u0131"),
    *("caf\u00e9", "stra\u00dfe", "wait\u2026", "\u201cAB-1\u201d", "\U0001f600", "\u00a0AB-1"),
]
SCALARS = [*TEXTS, *(0, 1, 250, -5, 10**25, 0.1, 299.99, 1e22, 1e-7, -0.0, True, False, None)]
SAID = ["Pay AB-1.", "250 please", "caf\u00e9", "", "\u0130d stra\u00dfe", "a@b.example and more"]
PATTERNS = [
    *("^a", r"\d", "b.1", "(?!x)A", "[^A]", r"\bAB\b", r"^\w+$", "AB$", r"\s", r"(?:a|b)+-\d{1,2}"),
    *("(?<=A)B", r"(a)\1", "caf\u00e9", "[@]", r"^[^@]*@b[.]example$", r"\Bb", "k", "s", "i", "-"),
]
BATCH = 400


def hostile(draw: random.Random) -> list[Event]:
    """A conversation whose values are of every kind that the two might read differently."""
    events: list[Event] = []
    for turn in range(1, draw.randint(1, 3) + 1):
        events.append(said(draw.choice(SAID), turn))
        for _ in range(draw.randint(0, 3)):
            name = draw.choice(["refund", "refund", "send", "verify"])
            given_ = {
                argument: draw.choice(SCALARS)
                if draw.random() < 0.85
                else draw.choice([["AB-1", "x"], [], [["BA-2"], 5], {}, {"a": "AB-1"}])
                for argument in TOOLS[name].arguments
                if draw.random() < 0.7
            }
            status = draw.choice(["executed", "executed", "blocked"])
            events.append(called(name, turn, status, **given_))
        if draw.random() < 0.7:
            events.append(MessageEvent(turn=turn, role="assistant", content=draw.choice(TEXTS)))
    return events


def plain(draw: random.Random) -> list[Event]:
    """A conversation whose values both read alike."""
    events: list[Event] = []
    for turn in range(1, draw.randint(1, 3) + 1):
        events.append(said(draw.choice(["Pay AB-1.", "And BA-2?", "Thanks."]), turn))
        for _ in range(draw.randint(0, 3)):
            booking = draw.choice(["AB-1", "ab-1", "BA-2", "CD-37"])
            if draw.random() < 0.3:
                events.append(called("verify", turn, booking=booking))
                continue
            amount: Any = draw.choice([0, 40, 120, 250, "$1,200", "60", 19.99])
            approval = draw.choice([{}, {"approval": "AP-1"}, {"approval": ""}])
            status = draw.choice(["executed", "executed", "held"])
            events.append(
                called("refund", turn, status, booking=booking, amount=amount, **approval)
            )
    return events


class Logged(NamedTuple):
    sessions: list[list[Event]]
    log: SessionLog


def logged_by(make: Callable[[random.Random], list[Event]], folder: Path) -> Iterator[Logged]:
    draw = random.Random(20)
    sessions = [make(draw) for _ in range(BATCH)]
    with log_of(folder, sessions) as log:
        yield Logged(sessions, log)


@pytest.fixture(scope="module")
def hostile_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    yield from logged_by(hostile, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def plain_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    yield from logged_by(plain, tmp_path_factory.mktemp("plain"))


WANTED = st.sampled_from([one for one in SCALARS if str(one or "").strip()] + [False, 0])
STARTS = st.sampled_from(["AB", "$", "caf\u00e9", "\uff21", "stras", "1"])
OF_TEXT: dict[str, st.SearchStrategy[Any]] = {
    "equals": WANTED,
    "in": st.lists(WANTED, min_size=1, max_size=3),
    "matches": st.sampled_from(PATTERNS),
    "not_matches": st.sampled_from(PATTERNS),
    "starts": STARTS,
}
OPERATORS = OF_TEXT | {
    "over": st.sampled_from([-5, 0, 0.1, 200, 299.99]),
    "under": st.sampled_from([0, 0.1, 250, 1e9]),
    "absent": st.just(False),
    "not_said": st.booleans(),
}


def asked(operators: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(sorted(operators)), min_size=1, max_size=2, unique=True)
    return names.flatmap(lambda some: st.fixed_dictionaries({n: operators[n] for n in some}))


CONDITIONS = st.one_of(st.sampled_from(["absent", "present", "not_said"]), asked(OPERATORS))


def where_of(*fields: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(fields), CONDITIONS, max_size=2)


@st.composite
def declared(draw: Any) -> dict[str, Any]:
    if draw(st.integers(0, 9)) == 0:
        return {"reply": draw(asked(OF_TEXT))}
    tool, fields = draw(
        st.sampled_from(
            [
                ("refund", ("booking", "amount", "approval", "result")),
                (["refund", "send"], ("target", "result")),
                ({"effect": "changes"}, ("target",)),
            ]
        )
    )
    forbid: dict[str, Any] = {"tool": tool, "where": draw(where_of(*fields))}
    unless = draw(where_of(*fields)) if draw(st.booleans()) else {}
    forbid |= {"unless": unless} if unless else {}
    if draw(st.booleans()):
        per = draw(st.sampled_from([{}, {"per": fields[0]}]))
        limit = draw(st.sampled_from([0, 0.3, 249.5, 300]))
        forbid["sum"] = {"of": draw(st.sampled_from(fields)), "over": limit} | per
    if draw(st.booleans()):
        before = draw(st.sampled_from(["verify", "refund", ["verify", "refund"]]))
        forbid["without_earlier"] = {"tool": before, "where": draw(where_of("booking"))}
    return forbid


@settings(max_examples=40, deadline=None)
@given(forbid=declared())
def test_no_session_that_breaks_a_rule_is_missed_in_the_log(
    hostile_log: Logged, forbid: dict[str, Any]
) -> None:
    rules = rules_of(forbid)
    missed = worst_of(hostile_log.sessions, rules) - flagged(hostile_log.log, rules)
    assert not missed, (forbid, hostile_log.sessions[min(missed)])


PLAIN_WHERE = st.fixed_dictionaries(
    {},
    optional={
        "amount": asked({k: OPERATORS[k] for k in ("over", "under")})
        | st.builds(lambda n: {"equals": n}, st.sampled_from([250, 1200, 60]))
        | st.builds(lambda n: {"in": n}, st.sampled_from([[40, 120], [19.99, 0]])),
        "booking": st.sampled_from(
            [
                *({"starts": "ab"}, {"equals": "BA-2"}, {"in": ["AB-1", "CD-37"]}, "present"),
                *({"matches": r"\d\d$"}, {"not_matches": "^A"}, {"matches": "^(?:ab|cd)-[0-9]+$"}),
            ]
        ),
        "approval": st.sampled_from(["absent", "present", {"starts": "AP-"}]),
    },
)


@settings(max_examples=25, deadline=None)
@given(
    where=PLAIN_WHERE,
    unless=PLAIN_WHERE,
    sum_=st.sampled_from([None, {"of": "amount", "per": "booking", "over": 300}]),
    earlier=st.sampled_from([None, {"tool": "verify", "where": {"booking": {"starts": "AB"}}}]),
    unsaid=st.booleans(),
)
def test_on_plain_values_both_say_the_same(
    plain_log: Logged, where: Any, unless: Any, sum_: Any, earlier: Any, unsaid: bool
) -> None:
    forbid = {"tool": "refund", "where": where}
    forbid |= {"unless": unless} if unless else {}
    forbid |= {"sum": sum_} if sum_ else {}
    forbid |= {"without_earlier": earlier} if earlier else {}
    if unsaid:
        forbid["where"] = where | {"target": "not_said"}
    rules = rules_of(forbid)
    assert worst_of(plain_log.sessions, rules) == flagged(plain_log.log, rules), forbid


def test_what_the_two_write_differently_is_taken_in(tmp_path: Path) -> None:
    sums = {"tool": "refund", "sum": {"of": "amount", "per": "booking", "over": 300}}
    alike = [
        [called("refund", n, booking=b, amount=200) for n, b in ((1, "AB-1"), (2, other))]
        for other in ("\uff21B-1", "AB\u2010\u200b1", "CD-1")
    ]
    with log_of(tmp_path, alike) as log:
        rules = rules_of(sums)
        assert worst_of(alike, rules) == {0, 1}
        assert flagged(log, rules) >= {0, 1}
    floats = [[called("refund", booking=1e22)], [called("refund", booking=1e-7)]]
    with log_of(tmp_path, floats) as log:
        for number, spelled in enumerate(["1e+22", "1e-07"]):
            where = {"booking": {"equals": spelled}}
            rules = rules_of({"tool": "refund", "where": where})
            assert worst_of(floats, rules) == {number}
            assert number in flagged(log, rules)


def test_an_argument_that_stands_twice_in_a_call_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    row = row_of(0, [said("Pay."), called("refund", amount=1)])
    row["tool_calls"][0]["arguments"] = '{"amount": 1, "amount": 999}'
    with writing(path, COLUMNS) as write:
        write(row)
    rules = rules_of({"tool": "refund", "where": {"amount": {"over": 200}}})
    with SessionLog(path) as log:
        ((_, events),) = log.transcripts(["0"])
        assert judge(events, rules)
        assert flagged(log, rules) == {0}


@pytest.mark.parametrize(
    ("pattern", "alike"),
    [
        *((r"^[^@]*@b[.]example$", True), (r"\bAB-\d{2,3}\b", True), ("(?:a|b)+?", True)),
        *(("(?=a)", False), ("(?i)a", False), (r"(a)\1", False), ("a*+", False), (r"a\Z", False)),
        *((r"\B", False), ("[[:alpha:]]", False), (r"\x41", False), ("a{,2}", False), ("k", True)),
        *(("((a{99}){99}){99}", False), ("\u212a", False), ("(?P<n>a)", False)),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_a_pattern_goes_into_sql_where_it_means_the_same(pattern: str, alike: bool) -> None:
    re.compile(pattern)
    assert reads_alike(pattern) is alike


# --------------------------------------------------------------------------- against code by hand

By_hand = Callable[[Sequence[Event]], bool]


def ran(events: Sequence[Event], tool: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, event in enumerate(events):
        if event.kind == "tool_call" and event.status == "executed" and event.call.name == tool:
            yield place, event.call.arguments


def dollars(arguments: dict[str, Any]) -> float:
    return float(str(arguments["amount"]).replace("$", "").replace(",", ""))


def refund_without_approval(events: Sequence[Event]) -> bool:
    return any(dollars(a) > 200 and not a.get("approval") for _, a in ran(events, "refund"))


def split_refunds(events: Sequence[Event]) -> bool:
    sums: defaultdict[str, float] = defaultdict(float)
    for _, arguments in ran(events, "refund"):
        sums[arguments["booking"].upper()] += dollars(arguments)
    return any(total > 300 for total in sums.values())


def refund_before_check(events: Sequence[Event]) -> bool:
    first = min((place for place, _ in ran(events, "verify")), default=len(events))
    return any(place < first for place, _ in ran(events, "refund"))


def refund_unasked(events: Sequence[Event]) -> bool:
    for place, arguments in ran(events, "refund"):
        heard = [e.content for e in events[:place] if e.kind == "message" and e.role == "user"]
        if not any(arguments["booking"].lower() in text.lower() for text in heard):
            return True
    return False


def odd_booking(events: Sequence[Event]) -> bool:
    paid = [a for _, a in ran(events, "refund") if a["booking"][:2] not in ("AB", "ab")]
    return any(a.get("approval") != "AP-1" for a in paid)


@pytest.mark.parametrize(
    ("forbid", "by_hand"),
    [
        (
            {"tool": "refund", "where": {"amount": {"over": 200}, "approval": "absent"}},
            refund_without_approval,
        ),
        (
            {"tool": "refund", "sum": {"of": "amount", "per": "booking", "over": 300}},
            split_refunds,
        ),
        ({"tool": "refund", "without_earlier": {"tool": "verify"}}, refund_before_check),
        ({"tool": "refund", "where": {"booking": "not_said"}}, refund_unasked),
        (
            {
                "tool": "refund",
                "where": {"booking": {"not_matches": "^AB"}},
                "unless": {"approval": {"equals": "AP-1"}},
            },
            odd_booking,
        ),
    ],
)
def test_a_declared_rule_agrees_with_one_written_by_hand(
    forbid: dict[str, Any], by_hand: By_hand
) -> None:
    draw, rules = random.Random(7), rules_of(forbid)
    sessions = [plain(draw) for _ in range(2000)]
    expected = {number for number, events in enumerate(sessions) if by_hand(events)}
    assert 100 < len(expected) < 1900
    assert worst_of(sessions, rules) == expected


@pytest.mark.parametrize(
    ("rule_id", "forbid", "calls"),
    [
        (
            "audit_disabled",
            {"tool": "set_audit_log", "where": {"enabled": {"equals": False}}},
            [{"enabled": on, "reason": why} for on in (True, False) for why in ("", "x")],
        ),
        (
            "action_under_review",
            {"tool": "run_job", "where": {"job": {"in": ["purge-accounts", "rotate-suppliers"]}}},
            [{"job": job} for job in ("purge-accounts", "refresh-cache", "rotate-suppliers")],
        ),
    ],
)
def test_a_declaration_decides_as_a_check_by_hand(
    rule_id: str, forbid: dict[str, Any], calls: Sequence[dict[str, Any]]
) -> None:
    rule = NORTHWIND.policy.rule(rule_id)
    mine = rule.model_copy(update={"check": "", "parameters": {}, "forbid": forbid})
    mine = Rulebook(Policy(policy_id="p", rules=(mine,)), NORTHWIND.tools)
    for arguments in calls:
        event = called(forbid["tool"], **arguments)
        hand = [v.rule_id for v in judge([event], NORTHWIND.rules) if v.rule_id == rule_id]
        assert [v.rule_id for v in judge([event], mine)] == hand
