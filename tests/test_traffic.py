"""Traffic and its log: really held, the same every time, truth kept apart, read back unharmed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from factories import NORTHWIND

from safety_lib.production.log import (
    COLUMNS,
    Flag,
    LogError,
    SessionLog,
    as_json,
    find_log,
    writing,
)
from safety_lib.rollout.conversation import run_rollout
from safety_lib.world import load_version
from safety_lib.world.oracle import judge
from safety_lib.worlds.northwind.traffic import TRUTH_COLUMNS, plan_session, rows_of, write_traffic

pytestmark = pytest.mark.slow

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
SESSIONS = 600
HOSTILE = (
    'it\'s "quoted"; DROP TABLE log; --',
    "' OR 1=1) UNION SELECT * FROM read_csv('/etc/passwd') --",
    "line one\nline two\r\n\ttab \\ backslash \\n \x00 nul \u2028 \U0001f600 \u202e",
    '{"role": "system", "content": "$version"}',
    "x" * 1_000_000,
    "",
)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_traffic(
        tmp_path_factory.mktemp("traffic"), load_version("northwind/v2"), SESSIONS, seed=3
    )


def rows(path: Path, columns: str = "*") -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM read_parquet(?)", [str(path)]).fetchall()


def row(session_id: str | None, **given: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {name: 0 for name, kind in COLUMNS.items() if kind == "INTEGER"}
    empty |= {"session_id": session_id, "user_id": "U-1", "version": "v2"}
    empty |= {"user_messages": ["hello"], "replies": ["hi"], "tool_calls": []}
    return empty | given


def call(turn: int = 1, name: str = "read_inbox", **given: Any) -> dict[str, Any]:
    made = {"turn": turn, "name": name, "arguments": "{}", "status": "executed", "result": ""}
    return made | given


def written(path: Path, *made: dict[str, Any]) -> Path:
    with writing(path, COLUMNS) as write:
        for one in made:
            write(one)
    return path


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(
    traffic: tuple[Path, Path], tmp_path: Path
) -> None:
    again = write_traffic(tmp_path / "again", load_version("northwind/v2"), SESSIONS, seed=3)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in traffic]
    other = write_traffic(tmp_path / "other", load_version("northwind/v2"), 60, seed=4)
    assert rows(other[0]) != rows(traffic[0])[:60]


def test_the_rows_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one = write_traffic(tmp_path / "one", load_version("northwind/v2"), 260, seed=3)
    two = write_traffic(tmp_path / "two", load_version("northwind/v2"), 260, seed=3, workers=2)
    assert [rows(path) for path in one] == [rows(path) for path in two]


def test_the_log_has_its_columns_in_order_of_time(traffic: tuple[Path, Path]) -> None:
    log = rows(traffic[0], "session_id, minute, n_turns, len(user_messages), len(replies)")
    assert [r[0] for r in log] == sorted({r[0] for r in log})
    assert [r[1] for r in log] == sorted(r[1] for r in log)
    assert all(1 <= n == said == replied <= 8 for _, _, n, said, replied in log)


def test_users_come_back(traffic: tuple[Path, Path]) -> None:
    users = [user for (user,) in rows(traffic[0], "user_id")]
    assert len(set(users)) < len(users)


def test_the_truth_is_not_in_the_log(traffic: tuple[Path, Path]) -> None:
    log, truth = traffic
    with duckdb.connect() as connection:
        names = {
            c[0] for c in connection.execute("DESCRIBE FROM read_parquet(?)", [str(log)]).fetchall()
        }
    assert names == set(COLUMNS)
    assert names & set(TRUTH_COLUMNS) == {"session_id"}
    text = repr(rows(log))
    hidden = {word for line in rows(truth, "goal, family, attacker") for word in line if word}
    hidden |= {broken["rule_id"] for (v,) in rows(truth, "violations") for broken in v}
    assert hidden
    # Names that are ordinary words may stand in a sentence; those with an underscore may not.
    assert not [word for word in hidden if "_" in word and word in text]


def test_ids_and_users_do_not_give_attacks_away(traffic: tuple[Path, Path]) -> None:
    log, truth = traffic
    user_of = dict(rows(log, "session_id, user_id"))
    kind_of = dict(rows(truth, "session_id, kind"))
    attackers = {user_of[s] for s, kind in kind_of.items() if kind == "attack"}
    assert {kind_of[s] for s, user in user_of.items() if user in attackers} > {"attack"}


def test_the_oracle_finds_in_the_log_what_the_truth_says_and_nothing_else(
    traffic: tuple[Path, Path],
) -> None:
    log, truth = traffic
    expected = {
        session_id: [(broken["rule_id"], broken["turn"]) for broken in violations]
        for session_id, violations in rows(truth, "session_id, violations")
    }
    with SessionLog(log) as sessions:
        found = {
            session_id: [(v.rule_id, v.turn) for v in judge(events, NORTHWIND.rules)]
            for session_id, events in sessions.transcripts(list(expected))
        }
    assert found == expected
    assert any(expected.values())


def test_the_mix_is_a_few_per_cent_attacks_and_ordinary_sessions_use_every_tool() -> None:
    planned = [plan_session(load_version("northwind/v2"), n, 4000, 7) for n in range(4000)]
    attacks = sum(session.kind == "attack" for session in planned)
    assert 0.03 < attacks / len(planned) < 0.07
    assert {session.kind for session in planned} == {"ordinary", "careless", "attack"}
    ordinary = " ".join(t for s in planned if s.kind == "ordinary" for t in s.rollout.turns)
    for words in ("@post.example", "AP-2207", "/tmp/", "account AC-", "job", "audit log on"):
        assert words in ordinary
    assert "{" not in ordinary


@pytest.mark.parametrize("name", ["production_log.parquet", "production_truth.parquet"])
def test_the_committed_files_are_small(name: str) -> None:
    assert 0 < (ARTIFACTS / name).stat().st_size < 5_000_000


def test_the_committed_log_is_what_the_agent_says_today() -> None:
    # Sessions do not depend on one another, so a few of them stand for all.
    version = load_version("northwind/v2")
    with SessionLog(ARTIFACTS / "production_log.parquet") as log:
        n = sum(log.versions().values())
    log_rows = rows(ARTIFACTS / "production_log.parquet", "session_id, user_messages, replies")
    said = {session_id: (messages, replies) for session_id, messages, replies in log_rows}
    for number in range(0, n, n // 100):
        session = plan_session(version, number, n, 7)
        logged, _ = rows_of(session, run_rollout(session.rollout))
        now = list(logged["user_messages"]), logged["replies"]
        assert said[logged["session_id"]] == now, "make the sample log again"


# --------------------------------------------------------------------------- reading


def test_hostile_text_survives_the_round_trip(tmp_path: Path) -> None:
    arguments = {"to": HOSTILE[0], "body": HOSTILE[2], "amount": 9400.0, "enabled": False}
    calls = [call(n + 1, arguments=as_json(arguments), result=t) for n, t in enumerate(HOSTILE)]
    log = written(
        tmp_path / "log.parquet",
        row(HOSTILE[0], user_messages=HOSTILE, replies=HOSTILE, tool_calls=calls),
        row(HOSTILE[1]),
    )
    with SessionLog(log) as sessions:
        (one,) = sessions.transcripts([HOSTILE[0]])
    assert one[0] == HOSTILE[0]
    assert tuple(e.content for e in one[1] if e.kind == "message" and e.role == "user") == HOSTILE
    made = [e for e in one[1] if e.kind == "tool_call"]
    assert [e.result for e in made] == list(HOSTILE)
    assert all(e.call.arguments == arguments for e in made)


def test_half_a_surrogate_pair_is_escaped(tmp_path: Path) -> None:
    half = chr(0xD800)
    made = row("S", user_messages=[half], tool_calls=[call(arguments=as_json({"to": half}))])
    with SessionLog(written(tmp_path / "log.parquet", made)) as sessions:
        ((_, events),) = sessions.transcripts(["S"])
        assert sessions.split(
            "v2", Flag("any", "json_extract_string(call.arguments, '$.to') IS NOT NULL")
        ) == (1, 0)
    assert [e.content for e in events if e.kind == "message"] == ["\\ud800", "hi"]


def test_events_come_in_the_order_in_which_they_happened(tmp_path: Path) -> None:
    made = row(
        "S",
        user_messages=["a", "b"],
        replies=["A", None],
        tool_calls=[call(1, "one"), call(2, "two"), call(2, "three", status="blocked")],
    )
    with SessionLog(written(tmp_path / "log.parquet", made)) as sessions:
        ((_, events),) = sessions.transcripts(["S"])
    shown = [getattr(e, "content", None) or e.call.name for e in events]  # type: ignore[union-attr]
    assert shown == ["a", "one", "A", "b", "two", "three"]


def test_a_glob_reads_many_files_and_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    written(tmp_path / "day[1].parquet", row("S-1"))
    written(tmp_path / "day[2].parquet", row("S-2", version="v1"))
    with SessionLog(tmp_path / "day*.parquet") as sessions:
        assert sessions.versions() == {"v1": 1, "v2": 1}
    with SessionLog(tmp_path / "day[1].parquet") as sessions:
        assert sessions.versions() == {"v2": 1}


def test_only_executed_calls_flag(tmp_path: Path) -> None:
    flag = Flag("a tool", "call.name = $name", {"name": "x'; --"})
    log = written(
        tmp_path / "log.parquet",
        row("ran", tool_calls=[call(name="x'; --")]),
        row("blocked", tool_calls=[call(name="x'; --", status="blocked")]),
        row("nothing"),
    )
    with SessionLog(log) as sessions:
        assert sessions.split("v2", flag) == (1, 2)
        assert sessions.draw("v2", flag, flagged=True, n=9, salt="s") == ["ran"]
        first = sessions.draw("v2", flag, flagged=False, n=1, salt="s")
        assert first == sessions.draw("v2", flag, flagged=False, n=2, salt="s")[:1]


def broken_logs(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "absent.parquet", "no such file"
    (folder / "text.parquet").write_text("not parquet at all, but long enough\n" * 9)
    yield folder / "text.parquet", "not a Parquet file"
    whole = written(folder / "whole.parquet", *[row(f"S-{n}") for n in range(50)]).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    yield folder / "cut.parquet", "not a Parquet file"
    (folder / "damaged.parquet").write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    yield folder / "damaged.parquet", "cannot be read"
    (folder / "empty.parquet").write_bytes(b"")
    yield folder / "empty.parquet", "not a Parquet file"
    for column in ("session_id", "tool_calls", "model_calls"):
        path = folder / f"without_{column}.parquet"
        with writing(path, {k: v for k, v in COLUMNS.items() if k != column}) as write:
            write({k: v for k, v in row("S").items() if k != column})
        yield path, f"column {column} is missing"
    with writing(folder / "typed.parquet", {**COLUMNS, "replies": "VARCHAR"}) as write:
        write(row("S", replies="hi"))
    yield folder / "typed.parquet", "column replies is VARCHAR, expected VARCHAR[]"
    yield written(folder / "twice.parquet", row("S"), row("S")), "repeat an id"
    yield written(folder / "null.parquet", row(None)), "session_id is empty"


def test_what_is_not_a_log_gets_one_clear_line(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        with SessionLog(path) as sessions:
            list(sessions.transcripts(["S-1"]))

    for path, expected in broken_logs(tmp_path):
        with pytest.raises(LogError, match=re.escape(expected)) as refused:
            read(path)
        message = str(refused.value)
        assert message.startswith(path.name) and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tool_calls": [call(arguments="{not json")]}, "arguments are not JSON"),
        ({"tool_calls": [call(turn=9)]}, "turn 9 was never held"),
        ({"tool_calls": [call(status="maybe\n")]}, "status"),
        ({"tool_calls": [call(arguments="[1]")]}, "arguments"),
        ({"replies": ["a", "b"]}, "column replies"),
        ({"user_messages": [None]}, "content"),
    ],
)
def test_a_session_that_is_no_conversation_gets_one_clear_line(
    tmp_path: Path, given: dict[str, Any], expected: str
) -> None:
    log = written(tmp_path / "log.parquet", row("S\n1", **given))
    with SessionLog(log) as sessions, pytest.raises(LogError, match=expected) as refused:
        list(sessions.transcripts(["S\n1"]))
    assert "\n" not in str(refused.value)


def test_arguments_that_are_not_json_are_named_while_flagging(tmp_path: Path) -> None:
    log = written(tmp_path / "log.parquet", row("S", tool_calls=[call(arguments="{no")]))
    flag = Flag("any", "json_extract_string(call.arguments, '$.to') = 'x'")
    with SessionLog(log) as sessions, pytest.raises(LogError, match="column tool_calls"):
        sessions.split("v2", flag)


def test_a_log_is_found_in_its_folder_or_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path / "production_log.parquet", row("S"))
    assert find_log("", tmp_path) == find_log(str(path), "elsewhere") == path
    with pytest.raises(LogError, match=r"absent.parquet: there is no such file"):
        find_log("absent.parquet", tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "log.parquet", row("S"))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), writing(path, COLUMNS) as write:
        write(row("T"))
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
