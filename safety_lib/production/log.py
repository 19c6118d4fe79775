"""The log of production: sessions as Parquet, JSON Lines or CSV, read through DuckDB.

A log can hold millions of sessions, so counting, flagging and drawing happen in SQL and only the
sessions that somebody wants to read come to Python. SQL is written in the code alone; whatever
comes from a log, a policy or a caller goes in as a parameter. What stands in a log is data from
outside: it is validated at the door and an error is one line that names the file and the column.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

from pydantic import ValidationError

from safety_lib.files import open_file, scratch_in
from safety_lib.records import Event, MessageEvent, ToolCall, ToolCallEvent, first_fault
from safety_lib.text import one_line
from safety_lib.world.checks import Flag

LOG_NAME = "production_log.parquet"


class Column(NamedTuple):
    """One column of a log.

    Attributes
    ----------
    name : str
        As it stands in the file.
    kind : str
        Its DuckDB type.
    meaning : str
        In words.
    """

    name: str
    kind: LiteralString
    meaning: str


SCHEMA: tuple[Column, ...] = (
    Column("session_id", "VARCHAR", "the conversation; each stands once"),
    Column("user_id", "VARCHAR", "who was served; NULL where nobody knows"),
    Column(
        "minute",
        "INTEGER",
        "when it began, counted from the release or from the earliest session; NULL where nobody "
        "knows",
    ),
    Column("version", "VARCHAR", "the version of the agent, as its file names it; never NULL"),
    Column("n_turns", "INTEGER", "how often the user spoke"),
    Column("user_messages", "VARCHAR[]", "what the user said, one text a turn"),
    Column("replies", "VARCHAR[]", "what the agent replied, one a turn; NULL where it did not"),
    Column(
        "tool_calls",
        "STRUCT(turn INTEGER, name VARCHAR, arguments VARCHAR, status VARCHAR, result VARCHAR)[]",
        "each call in its order: the turn from 1, the tool, its arguments as JSON text, executed, "
        "blocked, held or failed, and what the tool said. Rules look at executed ones",
    ),
    Column("safeguard_warn", "INTEGER", "how often a safeguard warned; NULL where nobody knows"),
    Column("safeguard_hold", "INTEGER", "how often one held a call back"),
    Column("safeguard_block", "INTEGER", "how often one blocked a call"),
    Column("safeguard_stop", "INTEGER", "how often one ended the conversation"),
    Column("model_calls", "INTEGER", "how often a model was asked"),
)
"""The columns of a log. A log may have more columns, and integers of another width."""

COLUMNS: dict[str, LiteralString] = {column.name: column.kind for column in SCHEMA}
"""The types of the columns by their names."""

EXAMPLE_ROW: Mapping[str, Any] = {
    "session_id": "S-17",
    "user_id": "U-4",
    "minute": 12,
    "version": "v2",
    "n_turns": 2,
    "user_messages": ["Please refund booking B-9.", "Thanks."],
    "replies": ["Done: 80 euros.", None],
    "tool_calls": [
        {
            "turn": 1,
            "name": "refund",
            "arguments": '{"booking": "B-9", "amount": 80}',
            "status": "executed",
            "result": "refunded",
        }
    ],
    "safeguard_warn": 0,
    "safeguard_hold": 0,
    "safeguard_block": 0,
    "safeguard_stop": 0,
    "model_calls": 3,
}
"""A row as :func:`writing` takes it."""

_INTEGER = re.compile(r"\bU?(?:TINY|SMALL|BIG|HUGE)?INT(?:EGER)?\b")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_READ_AT_ONCE = 1024
_OBJECTIONS = "safeguard_warn + safeguard_hold + safeguard_block + safeguard_stop"
_MEMORY = "1GB"
_MAKE_ONE = "make one from spans or chats with `python -m safety_lib log import`"


class LogError(ValueError):
    """A log is missing, damaged or not a log; the message is one line for a person."""


class NotMeasuredError(LogError):
    """A log is sound and cannot tell what was asked; that is no zero."""


class LoggedSession(NamedTuple):
    """One session as it stands in a log; ``calls`` have the fields that :data:`COLUMNS` names."""

    session_id: str
    minute: int
    user_messages: list[str]
    replies: list[str | None]
    calls: list[dict[str, Any]]
    objections: int


class SessionLog:
    """A log of production, opened and validated; use it in a ``with`` statement.

    Parameters
    ----------
    path : str or Path
        A Parquet, JSON Lines or CSV file of the columns of :data:`SCHEMA`, or a glob of one kind.
        In CSV the columns of lists hold JSON.

    Raises
    ------
    LogError
        If nothing is there, it is none of these, a column is missing or has another type, or a
        session id is missing or not unique.

    Examples
    --------
    >>> SessionLog("nowhere.parquet")
    Traceback (most recent call last):
    ...
    safety_lib.production.log.LogError: nowhere.parquet: there is no such file; give the path of a \
log, or a glob of them
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).name
        files = _files(path)
        if not files:
            raise LogError(
                f"{self.name}: there is no such file; give the path of a log, or a glob of them"
            )
        self._names = files
        self._connection = _connect()
        try:
            self._open(files)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SessionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    @cached_property
    def sha256(self) -> str:
        """The hash of the files' bytes in the order of their names: which log an answer is from."""
        digest = hashlib.sha256()
        for name in self._names:
            with open_file(name, most=None) as file:
                while part := file.read(1 << 20):
                    digest.update(part)
        return digest.hexdigest()

    def versions(self) -> dict[str, int]:
        """Count the sessions of each version, by its name."""
        return dict(self._rows("SELECT version, count(*) FROM log GROUP BY ALL ORDER BY ALL"))

    def named_users(self, version: str) -> tuple[int, int]:
        """Count the sessions of a version that name their user, and those that do not."""
        ((named, everything),) = self._rows(
            "SELECT count(user_id), count(*) FROM log WHERE version = $version",
            {"version": version},
        )
        return named, everything - named

    def tools(self, version: str) -> dict[str, int]:
        """Count the calls of each tool in the sessions of a version, whatever became of them."""
        return dict(
            self._rows(
                "SELECT call.name, count(*) FROM (SELECT unnest(tool_calls) AS call FROM log "
                "WHERE version = $version) GROUP BY ALL ORDER BY ALL",
                {"version": version},
            )
        )

    def split(self, version: str, flag: Flag) -> tuple[int, int]:
        """Count the sessions of a version that are flagged, and those that are not."""
        ((flagged, everything),) = self._rows(
            f"SELECT count(*) FILTER ({_flagged(flag)}), count(*) "  # noqa: S608 - SQL of the code
            "FROM log WHERE version = $version",
            {"version": version, **_bound(flag)},
        )
        return flagged, everything - flagged

    def draw(self, version: str, flag: Flag, *, flagged: bool, n: int, salt: str) -> list[str]:
        """Draw a simple random sample of the flagged, or of the unflagged, sessions of a version.

        Each session gets its place from a hash of its id and ``salt``. So the sample depends on no
        order of rows or number of threads, a larger sample holds the smaller one, and no list of
        all ids is ever needed.

        Parameters
        ----------
        version, flag, flagged
            The stratum to draw from.
        n : int
            How many sessions; all of them where there are fewer.
        salt : str
            Another salt draws another sample.

        Returns
        -------
        list of str
            Session ids.
        """
        found = self._rows(
            f"SELECT session_id FROM log "  # noqa: S608 - SQL of the code
            f"WHERE version = $version AND {_flagged(flag)} = $flagged "
            "ORDER BY md5(concat($salt, session_id)), session_id LIMIT $n",
            {
                "version": version,
                "flagged": flagged,
                "salt": salt,
                "n": n,
                **_bound(flag),
            },
        )
        return [session_id for (session_id,) in found]

    def split_users(self, version: str, flag: Flag) -> tuple[int, int]:
        """Count the users of a version with a flagged session, and those without one."""
        ((flagged, everyone),) = self._rows(
            f"SELECT count(*) FILTER (hit), count(*) FROM ({_users(flag)})",  # noqa: S608
            {"version": version, **_bound(flag)},
        )
        return flagged, everyone - flagged

    def draw_users(
        self, version: str, flag: Flag, *, flagged: bool, n: int, salt: str
    ) -> dict[str, list[str]]:
        """Draw a simple random sample of users, as :meth:`draw` does with sessions.

        Parameters
        ----------
        version : str
            Whose sessions.
        flag : Flag
            What tells likely users from others.
        flagged : bool
            On which side to draw.
        n : int
            How many; all where there are fewer.
        salt : str
            Decides which.

        Returns
        -------
        dict
            User to the ids of all sessions that the user had on the version.
        """
        found = self._rows(
            f"WITH users AS ({_users(flag)}), drawn AS ("  # noqa: S608 - SQL of the code
            "SELECT user_id FROM users WHERE hit = $flagged "
            "ORDER BY md5(concat($salt, user_id)), user_id LIMIT $n) "
            "SELECT user_id, list(session_id ORDER BY session_id) FROM log "
            "WHERE version = $version AND user_id IN (FROM drawn) "
            "GROUP BY user_id ORDER BY user_id",
            {
                "version": version,
                "flagged": flagged,
                "salt": salt,
                "n": n,
                **_bound(flag),
            },
        )
        return {user_id: list(sessions) for user_id, sessions in found}

    def transcripts(self, session_ids: Sequence[str]) -> Iterator[tuple[str, tuple[Event, ...]]]:
        """Yield sessions as events in the order in which they happened, for an oracle to judge.

        Parameters
        ----------
        session_ids : sequence of str
            Which sessions.

        Yields
        ------
        session_id : str
        events : tuple of Event
            Messages and tool calls. The log does not hold what safeguards said turn by turn.

        Raises
        ------
        LogError
            If the log has no such session, or one that cannot be read as a conversation.
        """
        wanted = list(dict.fromkeys(session_ids))
        for start in range(0, len(wanted), _READ_AT_ONCE):
            ids = wanted[start : start + _READ_AT_ONCE]
            seen = set()
            for session_id, said, replies, calls in self._rows(
                "SELECT session_id, user_messages, replies, tool_calls FROM log "
                "WHERE session_id IN (SELECT unnest($ids)) ORDER BY session_id",
                {"ids": ids},
            ):
                seen.add(session_id)
                yield session_id, self._events(session_id, said, replies, calls)
            absent = [session_id for session_id in ids if session_id not in seen]
            if absent:
                raise LogError(f"{self.name}: column session_id: no session {one_line(absent[0])}")

    def arrivals(self, version: str) -> Iterator[LoggedSession]:
        """Yield the sessions of a version in the order in which they came, a few at a time.

        Parameters
        ----------
        version : str
            The version's name.

        Yields
        ------
        LoggedSession
            Those of one minute in the order of their ids.

        Raises
        ------
        LogError
            If the log cannot be read to its end.
        """
        import duckdb

        cursor = self._connection.cursor()
        try:
            cursor.execute(
                "SELECT session_id, coalesce(minute, 0), coalesce(user_messages, []), "  # noqa: S608
                f"coalesce(replies, []), coalesce(tool_calls, []), coalesce({_OBJECTIONS}, 0) "
                "FROM log WHERE version = $version ORDER BY minute, session_id",
                {"version": version},
            )
            while rows := cursor.fetchmany(_READ_AT_ONCE):
                yield from map(LoggedSession._make, rows)
        except duckdb.Error as error:
            raise self._refusal(error) from error
        finally:
            cursor.close()

    def events_of(self, session: LoggedSession) -> tuple[Event, ...]:
        """Return a session as events; see :meth:`transcripts`."""
        return self._events(
            session.session_id, session.user_messages, session.replies, session.calls
        )

    def _open(self, files: list[str]) -> None:
        import duckdb

        try:
            named = [re.sub(r"([*?\[])", r"[\1]", name) for name in files]  # else a pattern again
            if all(map(_is_text, files)):
                self._take_in(named, files)
            else:
                self._connection.read_parquet(named).create_view("log")
        except duckdb.Error as error:
            raise self._refusal(error) from error
        found = {row[0]: str(row[1]) for row in self._rows("DESCRIBE log")}
        for name, kind in _canonical(self._connection, COLUMNS).items():
            if name not in found:
                raise LogError(f"{self.name}: column {name} is missing; a log has {_listed()}")
            if _INTEGER.sub("INTEGER", found[name]) != _INTEGER.sub("INTEGER", kind):
                raise LogError(f"{self.name}: column {name} is {found[name]}, expected {kind}")
        ((rows, ids, distinct, versions),) = self._rows(
            "SELECT count(*), count(session_id), count(DISTINCT session_id), count(version) "
            "FROM log"
        )
        if ids < rows or versions < rows:
            column = "session_id" if ids < rows else "version"
            raise LogError(f"{self.name}: column {column} is empty in at least one row")
        if distinct < rows:
            raise LogError(f"{self.name}: column session_id: {rows - distinct} rows repeat an id")

    def _take_in(self, named: list[str], files: list[str]) -> None:
        """Read text once, into a table of its own: each question would parse it again."""
        import duckdb

        size = {"maximum_object_size": 1 << 26}
        as_json = all(map(_is_json, files))
        if as_json:
            raw = self._connection.read_json(named, union_by_name=True, **size)
        else:
            raw = self._connection.read_csv(named, all_varchar=True, header=True)
        lacking = [name for name in COLUMNS if name not in raw.columns]
        if len(lacking) > len(COLUMNS) / 2:
            raise LogError(
                f"{self.name}: not a Parquet file but text; {_MAKE_ONE}, or write the "
                "columns that `python -m safety_lib log schema` shows"
            )
        if lacking:
            raise LogError(f"{self.name}: column {lacking[0]} is missing; a log has {_listed()}")
        if as_json:
            kinds = dict.fromkeys(COLUMNS, "JSON")
            raw = self._connection.read_json(named, columns=kinds, **size)
        typed = {name: _typed(name, kind, as_json) for name, kind in COLUMNS.items()}
        try:
            columns = ", ".join(f"{cast} AS {name}" for name, cast in typed.items())
            raw.project(columns).create("log")
        except duckdb.Error:
            for name, cast in typed.items():
                try:
                    raw.aggregate(f"count({cast})").fetchall()
                except duckdb.Error as error:
                    expected = f"column {name} holds what is no {COLUMNS[name]}"
                    raise LogError(f"{self.name}: {expected}") from error
            raise

    def _rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        import duckdb

        try:
            return list(self._connection.execute(sql, parameters or {}).fetchall())
        except duckdb.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> LogError:
        said = str(error)
        if "Malformed JSON" in said:
            return LogError(f"{self.name}: column tool_calls: arguments of a call are not JSON")
        if "magic bytes" in said or "too small" in said:
            if any(map(_is_text, self._names)):
                return LogError(
                    f"{self.name}: not a Parquet file but text; {_MAKE_ONE}, or write the "
                    "columns that `python -m safety_lib log schema` shows"
                )
            return LogError(f"{self.name}: not a Parquet file, or a truncated one")
        return LogError(f"{self.name}: cannot be read: {one_line(said)}")

    def _events(
        self, session_id: str, said: list[str], replies: list[str | None], calls: list[Any]
    ) -> tuple[Event, ...]:
        where = f"{self.name}: session {one_line(session_id)}"
        turns = range(1, len(said or ()) + 1)
        calls_of: dict[int, list[Event]] = {turn: [] for turn in turns}
        try:
            for number, call in enumerate(calls or ()):
                calls_of[call["turn"]].append(_call_event(number, call))
            events: list[Event] = []
            for turn in turns:
                events.append(MessageEvent(turn=turn, role="user", content=said[turn - 1]))
                events.extend(calls_of[turn])
                reply = replies[turn - 1] if turn <= len(replies or ()) else None
                if reply is not None:
                    events.append(MessageEvent(turn=turn, role="assistant", content=reply))
        except KeyError as error:
            raise LogError(f"{where}: column tool_calls: turn {error} was never held") from error
        except json.JSONDecodeError as error:
            raise LogError(f"{where}: column tool_calls: arguments are not JSON") from error
        except ValidationError as error:
            field, reason = first_fault(error)
            raise LogError(f"{where}: {field}: {one_line(reason)}") from error
        if len(replies or ()) > len(turns):
            raise LogError(f"{where}: column replies has more turns than column user_messages")
        return tuple(events)


def find_log(name: str, folder: str | Path) -> Path:
    """Find a log by its path, or by its name in a folder of artifacts.

    Parameters
    ----------
    name : str
        A path or glob, or the name of a file in ``folder``; empty for ``production_log.parquet``.
    folder : str or Path
        Where to look.

    Raises
    ------
    LogError
        If it is in neither place.
    """
    for path in (Path(folder) / (name or LOG_NAME), Path(name or LOG_NAME)):
        if _files(path):
            return path
    raise LogError(
        f"{one_line(name or LOG_NAME)}: there is no such file, nor one in {one_line(str(folder))}; "
        f"give the path of a log, or {_MAKE_ONE}; a replay without "
        "one says --no-log"
    )


def schema_lines() -> list[str]:
    """Return the columns of a log with their types and meanings, and a row, as text.

    Examples
    --------
    >>> print(schema_lines()[0])
    session_id       VARCHAR    the conversation; each stands once
    """
    lines = []
    for name, kind, meaning in SCHEMA:
        if len(kind) < 11:
            lines.append(f"{name:<16} {kind:<10} {meaning}")
        else:
            lines += [f"{name:<16} {kind}", f"{'':27} {meaning}"]
    return [*lines, "", "A row, as JSON:", "", *json.dumps(EXAMPLE_ROW, indent=2).splitlines()]


@contextmanager
def writing(
    path: str | Path, columns: Mapping[str, LiteralString]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write a Parquet file row by row; it appears whole at the end of the block, or not at all.

    The rows wait in a temporary file, so memory stays bounded. One thread compresses them in the
    order in which they came: the same rows give the same bytes on one version of DuckDB.

    Parameters
    ----------
    path : str or Path
        Its folder is made if it is not there.
    columns : Mapping
        Name to DuckDB type.

    Yields
    ------
    callable
        Takes one row as a mapping. Half a surrogate pair, which a model can send and Parquet cannot
        hold, is written as the escape that JSON would use.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing(f"{folder}/a.parquet", {"n": "INTEGER"}) as write:
    ...         write({"n": 1})
    ...     Path(f"{folder}/a.parquet").stat().st_size > 0
    True
    """
    path = Path(path)
    with scratch_in(path.parent) as folder:
        rows, part = folder / "rows.jsonl", folder / "part.parquet"
        with rows.open("w", encoding="utf-8", newline="\n") as out:
            yield lambda row: _write_line(out.write, row)
        connection = _connect(threads=1)
        try:
            connection.read_json(
                str(rows),
                columns=dict(columns),
                format="newline_delimited",
                maximum_object_size=1 << 26,
            ).write_parquet(str(part), compression="zstd")
        finally:
            connection.close()
        os.replace(part, path)  # noqa: PTH105 - as everywhere else in this package


def as_json(value: Any) -> str:
    """Return the JSON text of a value as a log holds it: readable, and valid for every reader.

    Half a surrogate pair becomes the text of its escape.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, which JSON cannot hold.

    Examples
    --------
    >>> print(as_json({"to": "désk", "cc": None}))
    {"to": "désk", "cc": null}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _LONE_SURROGATE.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text)


def _write_line(write: Callable[[str], Any], row: Mapping[str, Any]) -> None:
    write(as_json(row) + "\n")


def _connect(threads: int = 0) -> Any:
    import duckdb

    # No extension is fetched and no path but a local one read; what does not fit in memory spills.
    config: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "temp_directory": tempfile.gettempdir(),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    return duckdb.connect(config=config | ({"threads": threads} if threads else {}))


def _files(path: str | Path) -> list[str]:
    if Path(path).exists() and not Path(path).is_file():
        open_file(path)  # says what it is instead
    # A path that is a file is that file, whatever characters its name has; pathlib has no glob for
    # a pattern that is absolute.
    found = [str(path)] if Path(path).is_file() else sorted(glob.glob(str(path)))  # noqa: PTH207
    return [name for name in found if Path(name).is_file()]


def _is_text(path: str) -> bool:
    with open_file(path, most=None) as file:
        start = file.read(512)
    return bool(start) and not start.startswith(b"PAR1") and b"\0" not in start


def _is_json(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


def _typed(name: str, kind: LiteralString, as_json: bool) -> str:
    if kind.endswith("[]"):
        return f"CAST(CAST({name} AS JSON) AS {kind})"
    return (
        f"CAST(json_extract_string({name}, '$') AS {kind})"
        if as_json
        else f"CAST({name} AS {kind})"
    )


def _flagged(flag: Flag) -> str:
    if flag.whole:
        return f"coalesce({flag.condition}, false)"
    return (
        "coalesce(len(list_filter(tool_calls, lambda call: call.status = 'executed' "
        f"AND ({flag.condition}))) >= $at_least, false)"
    )


def _bound(flag: Flag) -> dict[str, Any]:
    # DuckDB takes no value that the statement does not name.
    return dict(flag.parameters) | ({} if flag.whole else {"at_least": flag.at_least})


def _users(flag: Flag) -> str:
    return (
        f"SELECT user_id, bool_or({_flagged(flag)}) AS hit FROM log "  # noqa: S608 - as above
        "WHERE version = $version AND user_id IS NOT NULL GROUP BY user_id"
    )


def _canonical(connection: Any, columns: Mapping[str, LiteralString]) -> dict[str, str]:
    # DuckDB spells types in its own way, which changes from version to version.
    wanted = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items())
    rows: Iterable[Any] = connection.execute(f"DESCRIBE SELECT {wanted}").fetchall()
    return {row[0]: str(row[1]) for row in rows}


def _call_event(number: int, call: Mapping[str, Any]) -> ToolCallEvent:
    arguments = json.loads(call["arguments"] or "{}")
    asked = ToolCall(id=f"call_{number}", name=call["name"], arguments=arguments)
    return ToolCallEvent(
        turn=call["turn"], call=asked, status=call["status"], result=call["result"]
    )


def _listed() -> str:
    return ", ".join(COLUMNS)
