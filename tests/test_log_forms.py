"""A log comes as Parquet, JSON Lines or CSV; what it cannot tell is named and never a zero."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.__main__ import main
from safety_lib.artifacts import read_artifact
from safety_lib.production.blast_radius import (
    estimate_affected,
    estimate_blast_radius,
    what_log_lacks,
)
from safety_lib.production.log import (
    COLUMNS,
    LogError,
    NotMeasuredError,
    SessionLog,
    writing,
)
from safety_lib.records import IncidentReport

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
ABOUT = {"world": NORTHWIND, "rule_id": "audit_disabled", "version": "v2"}


def call(name: str = "set_audit_log", **arguments: Any) -> dict[str, Any]:
    told = json.dumps(arguments or {"enabled": False})
    return {"turn": 1, "name": name, "arguments": told, "status": "executed", "result": "ok"}


def row(number: int, **changes: Any) -> dict[str, Any]:
    off = number % 5 == 0
    plain = {
        "session_id": f"S-{number}",
        "user_id": f"U-{number % 7}",
        "minute": number,
        "version": "v2",
        "n_turns": 1,
        "user_messages": ['Grüße, "please", do it'],
        "replies": [None if off else "I cannot, sorry."],
        "tool_calls": [call()] if off else [call("read_ticket", ticket="T-202")],
        **dict.fromkeys(("safeguard_warn", "safeguard_hold", "safeguard_block"), 0),
        **{"safeguard_stop": None, "model_calls": 2},
    }
    return {**plain, **changes}


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    with writing(path.with_suffix(".parquet"), COLUMNS) as write:
        for one in rows:
            write(one)
    return path.with_suffix(".parquet")


def as_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def as_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        for one in rows:
            lists = {k: json.dumps(v) if isinstance(v, list) else v for k, v in one.items()}
            out.writerow(lists)
    return path


FORMS = (as_parquet, as_lines, as_array, as_csv)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_sessions_give_the_same_answer_in_each_form(tmp_path: Path, form: Any) -> None:
    log = form(tmp_path / "log", [row(n) for n in range(50)])
    found = estimate_blast_radius(log, **ABOUT, audit=50, seed=7)
    assert (found.estimate, found.population_n) == (10, 50)
    with SessionLog(log) as sessions:
        ((_, events),) = sessions.transcripts(["S-0"])
        assert [event.kind for event in events] == ["message", "tool_call"]
        assert sessions.tools("v2") == {"read_ticket": 40, "set_audit_log": 10}
    assert what_log_lacks(log, **ABOUT) == ()


def without(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != column} for one in rows]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("column", ["user_id", "tool_calls", "model_calls"])
def test_a_column_that_is_missing_is_named(tmp_path: Path, form: Any, column: str) -> None:
    log = form(tmp_path / "log", without([row(n) for n in range(5)], column))
    with pytest.raises(LogError, match=f"column {column} is missing"):
        SessionLog(log)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize(
    ("column", "value"), [("minute", "soon"), ("tool_calls", "none"), ("n_turns", "1.x")]
)
def test_a_column_of_another_type_is_named(
    tmp_path: Path, form: Any, column: str, value: str
) -> None:
    log = form(tmp_path / "log", [row(0), row(1, **{column: value})])
    with pytest.raises(LogError, match=f"column {column} holds what is no") as refused:
        SessionLog(log)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", FORMS)
def test_users_that_nobody_knows_are_named_and_conversations_counted(
    tmp_path: Path, form: Any
) -> None:
    log = form(tmp_path / "log", [row(n, user_id=None) for n in range(20)])
    with pytest.raises(NotMeasuredError, match="column user_id is empty"):
        estimate_affected(log, **ABOUT, audit=20, seed=7)
    assert estimate_blast_radius(log, **ABOUT, audit=20, seed=7).estimate == 4
    (line,) = what_log_lacks(log, **ABOUT)
    assert "column user_id is empty in every one" in line
    some = form(tmp_path / "some", [row(n, user_id=None if n < 3 else "U") for n in range(20)])
    (line,) = what_log_lacks(some, **ABOUT)
    assert "empty in 3 of 20 of the sessions" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool_calls": [call("audit_off")]}, "does not know (audit_off)"),
        ({"tool_calls": [{**call("AuditLog"), "status": "blocked"}]}, "does not know (AuditLog)"),
        ({"tool_calls": []}, "holds a call"),
        ({"tool_calls": None}, "holds a call"),
    ],
)
def test_a_rule_that_could_not_be_seen_is_not_measured(
    tmp_path: Path, changes: Mapping[str, Any], said: str
) -> None:
    log = as_parquet(tmp_path / "log", [row(n, **changes) for n in range(9)])
    for estimate in (estimate_blast_radius, estimate_affected):
        with pytest.raises(NotMeasuredError, match="not measured") as refused:
            estimate(log, **ABOUT, audit=9, seed=7)
        assert said in str(refused.value)
    assert said in what_log_lacks(log, **ABOUT)[0]


def test_unknown_tools_beside_known_ones_are_named_and_the_rest_is_measured(
    tmp_path: Path,
) -> None:
    rows = [row(n) for n in range(10)]
    rows.append(row(10, tool_calls=[call("audit_off"), call("audit_off"), call()]))
    log = as_parquet(tmp_path / "log", rows)
    (line,) = what_log_lacks(log, **ABOUT)
    assert "2 calls of tools that northwind does not know (audit_off) are not judged" in line
    assert estimate_blast_radius(log, **ABOUT, audit=11, seed=7).estimate == 3


@pytest.mark.parametrize("version", ["v9", "V2", ""])
def test_a_version_that_the_log_lacks_is_named_with_those_it_has(
    tmp_path: Path, version: str
) -> None:
    log = as_csv(tmp_path / "log", [row(n) for n in range(4)])
    with pytest.raises(LogError, match=r"holds 4 sessions of 'v2', none of version"):
        estimate_blast_radius(log, **{**ABOUT, "version": version}, audit=4, seed=7)


@pytest.mark.parametrize("name", ["prod.parquet", "prod.csv", "logs/*.jsonl"])
def test_a_mistyped_path_is_told_as_one(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(ARTIFACTS)
    told = ["replay", "--log", name, "--replays", "1", "--artifacts", folder]
    assert main(told) == 3
    said = capsys.readouterr().err
    assert f"{name}: there is no such file" in said and "traffic" not in said


@pytest.mark.slow
def test_a_replay_on_a_log_without_users_counts_conversations_and_says_so(
    loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    null = tmp_path / "null_users.parquet"
    given = duckdb.read_parquet(str(ARTIFACTS / "production_log.parquet"))
    told = ", ".join("NULL::VARCHAR AS user_id" if c == "user_id" else c for c in given.columns)
    given.project(told).write_parquet(str(null))
    suite = tmp_path / "regression_tests.json"
    suite.write_bytes((loop / "regression_tests.json").read_bytes())
    incident = str(ARTIFACTS / "incident_example.json")
    spent = ["--replays", "6", "--audit", "100", "--fixed", ""]
    where = ["--artifacts", str(tmp_path), "--log", str(null), "--incident", incident]
    assert main(["replay", *where, *spent]) == 0
    said = capsys.readouterr().out
    assert "column user_id is empty in every one of the sessions" in said
    report = read_artifact(tmp_path, IncidentReport)
    assert report.blast_radius is not None and report.affected_users is None
    postmortem = (tmp_path / "docs" / "postmortem.md").read_text(encoding="utf-8")
    assert "column user_id is empty" in postmortem
    assert "How many users that were is not known" in postmortem
