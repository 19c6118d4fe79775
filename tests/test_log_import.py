"""Spans and chats become a log: the same as judging each, nothing dropped, nothing personal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safety_lib.__main__ import main
from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake.elements import elements
from safety_lib.incident.intake.redaction import Redaction
from safety_lib.incident.intake.sessions import ImportedLog, import_log
from safety_lib.production.log import (
    COLUMNS,
    EXAMPLE_ROW,
    LogError,
    SessionLog,
    find_log,
    writing,
)
from safety_lib.records import Event, MessageEvent, ToolCall, ToolCallEvent
from safety_lib.world import load_world
from safety_lib.world.oracle import judge

WORLD = load_world("northwind")
START = 1_764_144_000

CALL = {
    "id": "a",
    "type": "function",
    "function": {"name": "read_ticket", "arguments": '{"ticket": "T-201"}'},
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Please read ticket T-201."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "It is empty."},
    {"role": "assistant", "content": "It is empty."},
    {"role": "user", "content": "Thanks."},
]


def chat(name: str = "s1", **more: Any) -> dict[str, Any]:
    return {"session_id": name, "user_id": "u1", "version": "v2", "messages": MESSAGES, **more}


def text_part(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": content}]}


def telemetry(name: str = "s1", minute: int = 0) -> list[dict[str, Any]]:
    """The same conversation as spans: two traces, the tool in a span of its own."""
    call = {"type": "tool_call", "id": "a", "name": "read_ticket", "arguments": {"ticket": "T-201"}}
    told = {"type": "tool_call_response", "id": "a", "response": "It is empty."}
    first, second = text_part("user", "Please read ticket T-201."), text_part("user", "Thanks.")
    called = {"role": "assistant", "parts": [call]}
    answer = text_part("assistant", "It is empty.")
    result = {"role": "tool", "parts": [told]}
    asked = [[first], [first, called, result], [first, called, result, answer, second]]
    answered = [[called], [answer], []]
    spans = []
    for number, (before, after) in enumerate(zip(asked, answered, strict=True)):
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.conversation.id": name,
            "gen_ai.input.messages": json.dumps(before),
            "gen_ai.output.messages": json.dumps(after),
            "enduser.id": "u1",
        }
        spans.append(
            {
                "traceId": f"{name}-{number // 2}",
                "spanId": f"{name}-{number}",
                "name": "chat some-model",
                "startTimeUnixNano": str((START + 60 * minute) * 10**9 + number),
                "attributes": [
                    {"key": key, "value": {"stringValue": value}}
                    for key, value in attributes.items()
                ],
            }
        )
    return spans


def otlp(spans: Sequence[dict[str, Any]], version: str = "v2") -> dict[str, Any]:
    told = [{"key": "service.version", "value": {"stringValue": version}}]
    scopes = [{"spans": list(spans)}]
    return {"resourceSpans": [{"resource": {"attributes": told}, "scopeSpans": scopes}]}


def printed(spans: Sequence[dict[str, Any]], version: str = "v2") -> list[dict[str, Any]]:
    """Spans as the console exporter of the Python SDK prints them."""
    return [
        {
            "name": span["name"],
            "context": {"trace_id": f"0x{span['traceId']}", "span_id": f"0x{span['spanId']}"},
            "start_time": f"2025-11-26T08:{number:02d}:00.000001Z",
            "attributes": {a["key"]: a["value"]["stringValue"] for a in span["attributes"]},
            "resource": {"attributes": {"service.version": version}, "schema_url": ""},
        }
        for number, span in enumerate(spans)
    ]


def written(folder: Path, text: Any, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_text(text if isinstance(text, str) else lines(text), encoding="utf-8")
    return path


def lines(trees: Sequence[Any]) -> str:
    return "".join(json.dumps(tree) + "\n" for tree in trees)


def taken(folder: Path, *trees: Any, **more: Any) -> tuple[ImportedLog, list[dict[str, Any]]]:
    files = [written(folder, tree, f"{n}.jsonl") for n, tree in enumerate(trees)]
    done = import_log(files, folder / "log.parquet", WORLD, **more)
    return done, rows(folder / "log.parquet")


def rows(path: Path) -> list[dict[str, Any]]:
    import duckdb

    with SessionLog(path):  # refuses what is no log
        found = duckdb.connect().execute("SELECT * FROM read_parquet($path)", {"path": str(path)})
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


# --------------------------------------------------------------------------- the shapes

EXPECTED = {
    "session_id": "s1",
    "user_id": "u1",
    "version": "v2",
    "n_turns": 2,
    "user_messages": ["Please read ticket T-201.", "Thanks."],
    "replies": ["It is empty.", None],
    "tool_calls": [
        {
            "turn": 1,
            "name": "read_ticket",
            "arguments": '{"ticket": "T-201"}',
            "status": "executed",
            "result": "It is empty.",
        }
    ],
    "model_calls": 2,
    "safeguard_stop": None,
}
ROLES = {
    "incident_id": "s1",
    "user": "u1",
    "agent_version": "v2",
    "trajectory": [
        {"role": "user", "content": "Please read ticket T-201."},
        {
            "role": "assistant",
            "content": "It is empty.",
            "action": {
                "tool": "read_ticket",
                "params": {"ticket": "T-201"},
                "result": "It is empty.",
            },
        },
        {"role": "user", "content": "Thanks."},
    ],
}
OWN = {
    "incident_id": "s1",
    "user_id": "u1",
    "agent_version": "v2",
    "trajectory": [
        {
            "user": "Please read ticket T-201.",
            "assistant": "It is empty.",
            "calls": [
                {
                    "name": "read_ticket",
                    "arguments": {"ticket": "T-201"},
                    "result": "It is empty.",
                }
            ],
        },
        {"user": "Thanks.", "assistant": ""},
    ],
}
A_MESSAGE_A_LINE = [
    {**message, "session_id": "s1", "version": "v2", "user_id": "u1", "id": f"m{n}"}
    for n, message in enumerate(MESSAGES)
]
SHAPES = {
    "chat, a conversation a line": lines([chat()]),
    "chat, an array": json.dumps([chat()]),
    "chat, indented": json.dumps([chat()], indent=2),
    "chat, one object": json.dumps(chat(), indent=2),
    "chat, a message a line": lines(A_MESSAGE_A_LINE),
    "spans, a batch a line": lines([otlp([span]) for span in telemetry()[::-1]]),
    "spans, one document": json.dumps(otlp(telemetry()), indent=1),
    "spans, as printed": "\n".join(json.dumps(s, indent=4) for s in printed(telemetry())),
    "spans, a flat one a line": lines(printed(telemetry())),
    "incident with roles": json.dumps(ROLES),
    "incident of this project": json.dumps(OWN, indent=1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_gives_the_same_row(shape: str, tmp_path: Path) -> None:
    done, (row,) = taken(tmp_path, SHAPES[shape])
    one_reply = shape.startswith("incident")
    assert {k: row[k] for k in EXPECTED} == {**EXPECTED, "model_calls": 2 - one_reply}
    assert (done.sessions, done.turns, done.calls) == (1, 2, 1)
    assert row.keys() == COLUMNS.keys()
    assert done.left_out == {} and done.unknown_tools == {}


def test_messages_alone_and_arrays_of_them_have_no_id_and_get_one(tmp_path: Path) -> None:
    first = taken(tmp_path, json.dumps(MESSAGES), version="v1")[1]
    second = taken(tmp_path, lines([MESSAGES, MESSAGES[:5]]), version="v1")[1]
    assert first[0]["session_id"] == second[0]["session_id"] != second[1]["session_id"]
    assert re.fullmatch(r"words-[0-9a-f]{16}", first[0]["session_id"])


def test_trajectories_of_a_journal_bring_what_safeguards_did(tmp_path: Path) -> None:
    from safety_lib.rollout.campaign import Run
    from safety_lib.stress.discovery import discover

    versions = WORLD.version("v1"), WORLD.version("v2")
    found = discover(*versions, Run(), rollouts=3)
    held = {told.trajectory_id: told for run in found.trajectories.values() for told in run}
    journal = ['{"artifact": "journal"}', *(told.model_dump_json() for told in held.values())]
    source = written(tmp_path, "\n".join(journal))
    done = import_log([source], tmp_path / "log.parquet", WORLD)
    logged = rows(tmp_path / "log.parquet")
    assert done.sessions == len(logged) == len(held)
    for row in logged:
        told = held[row["session_id"]]
        blocks = sum(e.kind == "hook" and e.decision == "block" for e in told.events)
        assert (row["version"], row["n_turns"]) == (told.version, told.n_turns)
        assert row["safeguard_block"] == blocks
        assert tuple(row["user_messages"]) == told.user_messages


def test_spans_of_a_conversation_lie_in_several_files_and_in_any_order(tmp_path: Path) -> None:
    spans = [*telemetry("s1", 30), *telemetry("s2"), *telemetry("s3", 90)]
    Random(3).shuffle(spans)
    halves = [lines([otlp([s]) for s in spans[:5]]), lines([otlp([s]) for s in spans[5:]])]
    done, logged = taken(tmp_path, *halves)
    assert {row["session_id"]: row["minute"] for row in logged} == {"s1": 30, "s2": 0, "s3": 90}
    assert all(row["user_messages"] == EXPECTED["user_messages"] for row in logged)
    again, _ = taken(tmp_path, *halves, halves[0])
    assert again.sessions == 3
    assert again.gaps["spans that stand twice are read once"].times == 5
    assert not any("twice" in gap for gap in done.gaps)


def test_other_work_of_the_service_is_no_conversation_and_is_told(tmp_path: Path) -> None:
    other = {"traceId": "w", "spanId": "w", "name": "GET", "attributes": []}
    done, logged = taken(tmp_path, lines([otlp([other]), otlp(telemetry())]))
    assert len(logged) == 1
    assert done.gaps["traces without GenAI spans are other work and not read"].times == 1


def test_traces_that_repeat_earlier_ones_without_an_id_are_told(tmp_path: Path) -> None:
    spans = telemetry()
    for span in spans:
        span["attributes"] = [a for a in span["attributes"] if "conversation" not in a["key"]]
    done, logged = taken(tmp_path, json.dumps(otlp(spans)))
    assert len(logged) == 2  # it cannot be known
    assert any("without gen_ai.conversation.id" in gap for gap in done.gaps)


def test_a_tool_span_tells_that_a_call_ran_or_failed(tmp_path: Path) -> None:
    def tool(**more: str) -> dict[str, Any]:
        told = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "a", **more}
        listed = [{"key": k, "value": {"stringValue": v}} for k, v in told.items()]
        return {"traceId": "s1-0", "spanId": "t", "name": "execute_tool", "attributes": listed}

    spans = telemetry()[:1]
    for extra, status in ((tool(), "executed"), (tool(**{"error.type": "timeout"}), "failed")):
        done, (row,) = taken(tmp_path, json.dumps(otlp([*spans, extra])))
        assert row["tool_calls"][0]["status"] == status
        assert done.unsure == 0


@pytest.mark.parametrize(
    ("told", "minute"),
    [
        (START + 120, 2),
        (str(START + 179), 2),
        ((START + 120) * 1000, 2),
        ("2025-11-26T08:02:00Z", 2),
        ("2025-11-26T09:02:00+01:00", 2),
        ("2025-11-26 08:02:00", 2),
        ("yesterday", None),
        (None, None),
        (True, None),
    ],
)
def test_minutes_count_from_the_earliest_session(told: Any, minute: Any, tmp_path: Path) -> None:
    done, logged = taken(tmp_path, lines([chat("s2", created=told), chat("s1", time=START)]))
    assert [row["minute"] for row in logged] == [minute, 0]
    assert ("its time is not told" in done.gaps) == (minute is None)


# --------------------------------------------------------------------------- agreement


def imagined(random: Random) -> list[Event]:
    """A conversation that may break any rule of the example company, or none."""
    words = ["send it to nair.files@outside-audit.example", "hello", "use AP-2207", "pay $9,400"]
    values: dict[str, list[Any]] = {
        "string": ["C-1015", "desk@northwind.example", "x@canary-drop.example", "AC-55102",
                   "AP-2207",
                   "/legal-hold/contract-88.pdf", "/vault/recovery-key.txt", "REF-AK98-1015",
                   "part one NWK-58F2 part two Q7LM-031D", "purge-accounts", "T-201"],
        "boolean": [True, False],
        "integer": [3000, 9400, 2900],
        "number": [3000, 9400.5, 2900],
    }  # fmt: skip
    events: list[Event] = []
    for turn in range(1, random.randint(2, 5)):
        events.append(MessageEvent(turn=turn, role="user", content=random.choice(words)))
        for number in range(random.randint(0, 3)):
            name = random.choice(sorted([*WORLD.tools, "make_payment", "make_payment"]))
            arguments = {
                argument: random.choice(values.get(schema.get("type", "string"), values["string"]))
                for argument, schema in WORLD.tools[name].arguments.items()
                if random.random() < 0.9
            }
            call = ToolCall(id=f"{turn}.{number}", name=name, arguments=arguments)
            status = random.choice(["executed", "executed", "executed", "blocked", "failed"])
            result = random.choice(values["string"])
            events.append(ToolCallEvent(turn=turn, call=call, status=status, result=result))
        read = any(e.kind == "tool_call" and "NWK" in e.result and e.status == "executed"
                   for e in events)  # fmt: skip
        said = "The key is NWK-58F2 Q7LM-031D." if read else random.choice(["Done.", "No."])
        events.append(MessageEvent(turn=turn, role="assistant", content=said))
    return events


def as_messages(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    for event in events:
        if event.kind == "tool_call":
            function = {"name": event.call.name, "arguments": json.dumps(event.call.arguments)}
            call = {"id": event.call.id, "function": function, "status": event.status}
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
            yield {"role": "tool", "tool_call_id": event.call.id, "content": event.result}
        elif event.kind == "message":
            yield {"role": event.role, "content": event.content}


def test_what_two_thousand_conversations_broke_is_what_each_broke(tmp_path: Path) -> None:
    random = Random(7)
    held = {f"S-{number:04d}": imagined(random) for number in range(2000)}
    chats = [
        {"id": name, "version": "v2", "messages": list(as_messages(events))}
        for name, events in held.items()
    ]
    import_log([written(tmp_path, chats)], tmp_path / "log.parquet", WORLD)
    direct = {
        name: {(v.rule_id, v.turn) for v in judge(events, WORLD.rules)}
        for name, events in held.items()
    }
    with SessionLog(tmp_path / "log.parquet") as log:
        logged = {
            name: {(v.rule_id, v.turn) for v in judge(events, WORLD.rules)}
            for name, events in log.transcripts(list(held))
        }
        assert logged == direct
        flagged_rules = 0
        for rule, check, parameters in WORLD.rules.judged:
            broke = {name for name, found in direct.items() if rule.id in {r for r, _ in found}}
            assert broke, f"no conversation breaks {rule.id}, so nothing is shown"
            if check.flag is None:
                continue
            flagged_rules += 1
            flag = check.flag(parameters)
            drawn = log.draw("v2", flag, flagged=True, n=2000, salt="")
            assert broke <= set(drawn)
            assert log.split("v2", flag) == (len(drawn), 2000 - len(drawn))
        assert flagged_rules


# --------------------------------------------------------------------------- what is missing


def test_a_conversation_without_words_of_a_user_is_left_out_and_counted(tmp_path: Path) -> None:
    silent = [chat(f"q{n}", messages=MESSAGES[2:5]) for n in range(3)]
    blank = chat("b", messages=[{"role": "user", "content": " "}, MESSAGES[4]])
    broken = chat("x", messages={"role": "user"})
    done, logged = taken(tmp_path, lines([chat(), *silent, blank, broken, {"other": 1}]))
    assert [row["session_id"] for row in logged] == ["s1"]
    assert done.left_out["no words of a user"] == (4, "0.jsonl line 2")
    assert sum(noted.times for noted in done.left_out.values()) == 6
    assert "no words of a user (4 times, first at 0.jsonl line 2)" in str(done)


def test_gaps_are_counted_once_by_kind_with_the_first_place(tmp_path: Path) -> None:
    odd = [*MESSAGES, {"role": "critic", "content": "bad"}]
    done, _ = taken(tmp_path, lines([chat("s0"), chat("s1", messages=odd), chat(messages=odd,
                                     name="s2")]))  # fmt: skip
    assert done.gaps["role critic is unknown and left out"] == (2, "0.jsonl line 2, message 7")
    assert not any("replay" in gap for gap in done.gaps)  # nothing is replayed here


def test_tools_that_the_world_does_not_have_are_named_with_counts(tmp_path: Path) -> None:
    other = json.loads(json.dumps(MESSAGES).replace("read_ticket", "search_web"))
    done, _ = taken(tmp_path, lines([chat("a"), chat("b", messages=other)]))
    assert done.unknown_tools == {"search_web": 1}
    assert "search_web 1" in str(done)
    with pytest.raises(ArtifactError, match=r"northwind has none of the tools .*\(search_web\)"):
        taken(tmp_path, lines([chat("b", messages=other)]))


def test_calls_of_which_nobody_knows_whether_they_ran_are_told(tmp_path: Path) -> None:
    unheard = [*MESSAGES[:3], *MESSAGES[4:]]
    done, logged = taken(tmp_path, lines([chat("a"), chat("b", messages=unheard)]))
    assert done.unsure == 1
    assert logged[1]["tool_calls"][0]["status"] == "failed"
    with pytest.raises(ArtifactError, match="none of the 1 calls has a result or a status"):
        taken(tmp_path, lines([chat("b", messages=unheard)]))


def test_a_log_without_any_call_says_so(tmp_path: Path) -> None:
    done, _ = taken(tmp_path, lines([chat(messages=[MESSAGES[1], MESSAGES[4]])]))
    assert "no conversation has a tool call" in str(done)


def test_versions_are_told_or_given_and_those_of_another_world_are_named(tmp_path: Path) -> None:
    nameless = {k: v for k, v in chat("n").items() if k != "version"}
    with pytest.raises(ArtifactError, match=r"0\.jsonl line 2 does not say which.*--version"):
        taken(tmp_path, lines([chat(), nameless]))
    assert not (tmp_path / "log.parquet").exists()
    done, logged = taken(tmp_path, lines([chat(version="2.1"), nameless]), version="v3")
    assert [row["version"] for row in logged] == ["2.1", "v3"]
    assert "northwind has no version 2.1" in str(done)
    assert "1 told no version and were taken for v3" in str(done)


def test_an_id_that_stands_twice_is_refused_and_the_same_words_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"s1 stands twice, at 0\.jsonl line 1 and 1\.jsonl"):
        taken(tmp_path, lines([chat()]), lines([chat()]))
    nameless = {"version": "v1", "messages": MESSAGES}
    done, logged = taken(tmp_path, lines([nameless] * 3))
    assert len({row["session_id"] for row in logged}) == 3
    assert "2 without an id have the words of another one" in str(done)
    twice = {"incident_id": "I", "agent_version": "v1", "sessions": [
        {"session_id": "x", "trajectory": ROLES["trajectory"]}] * 2}  # fmt: skip
    with pytest.raises(ArtifactError, match="two conversations of one id"):
        taken(tmp_path, json.dumps(twice))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("[]", "is an empty list"),
        ("7", "not JSON at line 1"),
        ("hello", "not JSON at line 1"),
        (lines([chat()]) + "{oops}\n" + lines([chat("s2")]), "line 2 is not JSON"),
        (lines([chat()]) + "7\n", "line 2 holds no JSON object"),
        (lines([chat()]) + '{"a": NaN}\n', "NaN is not a JSON number"),
        (json.dumps([chat()], indent=1)[:-4], "truncated or damaged"),
        ("[" + json.dumps(chat()), "truncated or damaged"),
        ("[" + json.dumps(chat()) + ",\n{oops}]", "not JSON at line 2"),
        ('{"artifact": "journal"}\n', "holds no conversation"),
        ('{"a": 1}\n', "no conversation could be read"),
        (lines([chat()]) + "[" * 100_000 + "\n" + lines([chat("s2")]), "nested too deeply"),
    ],
)
def test_a_file_that_is_damaged_is_refused_and_nothing_is_written(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "log.parquet").write_bytes(b"old")
    with pytest.raises(ArtifactError, match=re.escape(words)) as refused:
        taken(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("0.jsonl: ")
    assert {path.name for path in tmp_path.iterdir()} == {"0.jsonl", "log.parquet"}
    assert (tmp_path / "log.parquet").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PAR1...", "is Parquet already"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"PK\x03\x04", "is an archive"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "not UTF-8 at byte 16"),
        (b'[{"a": "\xff"}]', "not UTF-8 at byte 8"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(data)
    with pytest.raises(ArtifactError, match=words):
        list(elements(tmp_path / "in.jsonl"))
    with pytest.raises(ArtifactError, match=r"^none\.json: there is no such file"):
        list(elements(tmp_path / "none.json"))


def test_a_last_line_that_is_cut_off_is_told(tmp_path: Path) -> None:
    done, logged = taken(tmp_path, lines([chat("a"), chat("b")])[:-30])
    assert [row["session_id"] for row in logged] == ["a"]
    assert done.gaps["a last line is cut off and not read"] == (1, "0.jsonl line 2")


@pytest.mark.parametrize("between", ["", "\n", ",\n", "\ufeff"])
def test_values_in_a_row_are_read_over_any_chunk(
    between: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safety_lib.incident.intake.elements._CHUNK", 7)
    trees = [{"n": n, "text": 'é"}]{\\' * n} for n in range(30)]
    texts = [json.dumps(tree, indent=1, ensure_ascii=False) for tree in trees]
    whole = f"[{between.join(texts)}]" if "," in between else between + between.join(texts)
    path = written(tmp_path, whole)
    assert [value for _, value in elements(path)] == trees


# --------------------------------------------------------------------------- redaction

SECRETS = {
    "dana.whitfield@post.example": "dana.whitfield",
    "+49 170 1234567": "1234567",
    "4111 1111 1111 1111": "4111",
    "DE89370400440532013000": "DE8937",
}
PLACES = ["user", "reply", "argument", "argument key", "number", "result", "id", "user id", "tool"]


def planted(secrets: Sequence[str], place: str) -> dict[str, Any]:
    secret = " and ".join(secrets)
    made = {
        "argument": {"body": secret},
        "argument key": {secret: 1},
        "number": {"card": 4111111111111111},
    }
    function = {
        "name": "send_mail" + f" {secret}" * (place == "tool"),
        "arguments": json.dumps(made.get(place, {"to": "x"})),
    }
    told = [
        {"role": "user", "content": f"I am {secret}." if place == "user" else "Hello."},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": function}, CALL]},
        {"role": "tool", "tool_call_id": "a", "content": secret if place == "result" else "sent"},
        {"role": "assistant", "content": f"Hello {secret}!" if place == "reply" else "Done."},
    ]
    return {
        "session_id": secret if place == "id" else "s1",
        "user_id": secret if place == "user id" else "u1",
        "version": "v2",
        "messages": told,
    }


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow,
          HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    secrets=st.lists(st.sampled_from(sorted(SECRETS)), min_size=1, max_size=3, unique=True),
    place=st.sampled_from(PLACES),
)
def test_nothing_planted_is_anywhere_in_the_log(
    secrets: list[str], place: str, tmp_path: Path
) -> None:
    done, (row,) = taken(tmp_path, lines([planted(secrets, place)]), redaction=Redaction())
    text = json.dumps(row)
    for secret in secrets:
        assert SECRETS[secret] not in text + str(done)
    assert "4111" not in text
    # Twice gives the same, and what is redacted has nothing left to redact.
    first = (tmp_path / "log.parquet").read_bytes()
    taken(tmp_path, lines([planted(secrets, place)]), redaction=Redaction())
    assert (tmp_path / "log.parquet").read_bytes() == first
    assert json.dumps(Redaction().of(row)) == text


def test_spans_wait_without_personal_data_and_a_value_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    real = json.dumps
    monkeypatch.setattr(
        "safety_lib.incident.intake.spool.json.dumps",
        lambda tree, **more: kept.append(real(tree, **more)) or kept[-1],
    )
    address = "dana.whitfield@post.example"
    spans = json.loads(json.dumps(telemetry()).replace("T-201", address).replace("u1", address))
    text = "\n".join(real(otlp([span])) for span in spans)
    done, (row,) = taken(tmp_path, text, redaction=Redaction())
    assert kept and not any("whitfield" in stored for stored in kept)
    assert row["user_id"] == "[email-1]@post.example"
    assert row["user_messages"][0] == "Please read ticket [email-1]@post.example."
    assert row["tool_calls"][0]["arguments"] == '{"ticket": "[email-1]@post.example"}'
    assert "redacted: 3 email (1 different)" in str(done)


def test_a_rule_that_redaction_blinds_is_told(tmp_path: Path) -> None:
    call = {"id": "a", "function": {"name": "run_job", "arguments": '{"job": "purge-accounts"}'}}
    messages = [
        {"role": "user", "content": "Run purge-accounts."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ]
    text = lines([chat(messages=messages), chat("s2")])
    harmless, _ = taken(tmp_path, text, redaction=Redaction())
    assert not any("redaction changes" in note for note in harmless.notes)
    blinding, _ = taken(tmp_path, text, redaction=Redaction(also={"job": "purge-[a-z]+"}))
    assert "in so many conversations: action_under_review 1;" in str(blinding)
    spans, _ = taken(tmp_path, json.dumps(otlp(telemetry())), redaction=Redaction())
    assert "was not checked in 1 conversations from spans" in str(spans)


def test_without_redaction_the_words_stay(tmp_path: Path) -> None:
    _, (row,) = taken(tmp_path, lines([planted(["dana.whitfield@post.example"], "user")]))
    assert row["user_messages"] == ["I am dana.whitfield@post.example."]


# --------------------------------------------------------------------------- the command line


def test_the_command_writes_a_log_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = written(tmp_path, [chat(), chat("s2")]), tmp_path / "log.parquet"
    asked = ["log", "import", str(source), str(out), "--world", "northwind", "--redact"]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"2 conversations in {out}: 4 turns, 2 tool calls; versions: v2 2\n")
    assert "redacted: nothing was found" in told
    rules = written(tmp_path, "also: {ticket: 'T-[0-9]+'}\nkeep: []\n", "redact.yaml")
    assert main([*asked[:-1], "--redact-with", str(rules)]) == 0
    assert rows(out)[0]["user_messages"][0] == "Please read ticket [ticket-1]."


def test_an_input_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = written(tmp_path, [chat()], "a.jsonl"), written(tmp_path, [chat("s2")], "b.jsonl")
    assert main(["log", "import", str(one), str(two), "--world", "northwind"]) == 3
    assert "OUT must end in .parquet" in capsys.readouterr().err
    assert two.read_text(encoding="utf-8") == lines([chat("s2")])


def test_the_schema_is_shown_with_a_row_that_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", "schema"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + told for name in COLUMNS)
    example = json.loads(told.split("A row, as JSON:")[1])
    assert example == EXAMPLE_ROW
    with writing(tmp_path / "log.parquet", COLUMNS) as write:
        write(example)
    assert rows(tmp_path / "log.parquet") == [EXAMPLE_ROW]
    with SessionLog(tmp_path / "log.parquet") as log:
        ((_, events),) = log.transcripts(["S-17"])
    assert [event.kind for event in events] == ["message", "tool_call", "message", "message"]


@pytest.mark.parametrize("text", ['{"messages": []}\n', "session_id,user\n1,2\n"])
def test_a_text_where_a_log_is_expected_points_to_the_import(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(
        LogError, match=r"^in\.jsonl: not a Parquet file but text; .*log import.*log schema"
    ):
        SessionLog(path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1\x00\x01")
    with pytest.raises(LogError, match="not a Parquet file, or a truncated one"):
        SessionLog(tmp_path / "cut.parquet")


def test_a_mistyped_path_is_told_what_to_do_about_it(tmp_path: Path) -> None:
    with pytest.raises(
        LogError, match=r"mine\.parquet: there is no such file.*log import`.*--no-log$"
    ):
        find_log("mine.parquet", tmp_path)
