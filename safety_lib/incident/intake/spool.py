"""Where an import keeps what it has read, beside the log that it writes, until all is known.

The spans of a conversation lie far apart, minutes count from a session that may come last, and no
id may stand twice. So what was read waits in one temporary SQLite file, and memory stays bounded.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_TABLES = """
CREATE TABLE parts (
    seq INTEGER PRIMARY KEY, place TEXT, kind TEXT, trace TEXT, conversation TEXT, span TEXT,
    counts INTEGER, content TEXT, UNIQUE (trace, span)
);
CREATE TABLE named (trace TEXT PRIMARY KEY, conversation TEXT);
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, session TEXT UNIQUE, place TEXT, told REAL, content TEXT
);
"""
_KEY = "coalesce(p.conversation, n.conversation, p.trace)"


class Gathered(NamedTuple):
    """The parts of one conversation.

    Attributes
    ----------
    place : str
        Of the first part.
    kind : str
        What reads it.
    name : str
        The id that it was told, or an empty text.
    counts : bool
        Whether any part makes a conversation.
    parts : list
        In the order in which they came.
    """

    place: str
    kind: str
    name: str
    counts: bool
    parts: list[Any]


class Spool:
    """Parts of conversations, and rows of a log; use it in a ``with`` statement.

    Parameters
    ----------
    folder : Path
        Where the temporary file stands; whoever made the folder takes it away.

    Attributes
    ----------
    parts : int
        How many parts were handed over so far.
    """

    def __init__(self, folder: Path) -> None:
        self._base = sqlite3.connect(folder / "spool.sqlite", isolation_level=None)
        # It is gone after a crash anyway: nothing need be safe on the disk.
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("PRAGMA synchronous = OFF")
        self._base.executescript(_TABLES)
        self._base.execute("BEGIN")
        self.parts = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def add_part(
        self,
        place: str,
        kind: str,
        content: Any,
        *,
        trace: str,
        conversation: str = "",
        span: str = "",
        counts: bool = True,
    ) -> bool:
        """Keep a part of a conversation.

        Parameters
        ----------
        place : str
            Where it stands.
        kind : str
            What reads it.
        content : Any
            A tree of JSON.
        trace : str
            What holds parts together that name no conversation.
        conversation : str
            The id of the conversation, if it names one: that of the whole trace.
        span : str
            Its own id, if it has one.
        counts : bool
            Whether it makes a conversation by itself.

        Returns
        -------
        bool
            False if the same span was there already.
        """
        self.parts += 1
        if conversation:
            self._base.execute("INSERT OR REPLACE INTO named VALUES (?, ?)", (trace, conversation))
        row = (place, kind, trace, conversation or None, span or None, counts, json.dumps(content))
        done = self._base.execute(
            "INSERT OR IGNORE INTO parts (place, kind, trace, conversation, span, counts, content) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        return done.rowcount > 0

    def conversations(self) -> Iterator[Gathered]:
        """Yield what the parts make up, in the order in which each began."""
        self._base.execute(
            f"CREATE TABLE whole AS SELECT p.seq, {_KEY} AS key "  # noqa: S608 - SQL of the code
            "FROM parts p LEFT JOIN named n ON n.trace = p.trace"
        )
        self._base.execute("CREATE INDEX of_whole ON whole (key, seq)")
        firsts = self._base.execute("SELECT min(seq), key FROM whole GROUP BY key ORDER BY 1")
        for first, key in firsts.fetchall():
            place, kind, name = self._base.execute(
                "SELECT p.place, p.kind, coalesce(p.conversation, n.conversation, '') "
                "FROM parts p LEFT JOIN named n ON n.trace = p.trace WHERE p.seq = ?",
                (first,),
            ).fetchone()
            found = self._base.execute(
                "SELECT p.counts, p.content FROM whole w JOIN parts p ON p.seq = w.seq "
                "WHERE w.key = ? ORDER BY w.seq",
                (key,),
            ).fetchall()
            counts = any(counted for counted, _ in found)
            parts = [json.loads(content) for _, content in found]
            yield Gathered(place, kind, name, counts, parts)

    def add_row(self, session: str, place: str, told: float | None, row: Mapping[str, Any]) -> str:
        """Keep a row, or return the place of the row that has its id already.

        Parameters
        ----------
        session : str
            Its id.
        place : str
            Where the conversation stands.
        told : float or None
            When it began, in seconds.
        row : Mapping
            The row.

        Returns
        -------
        str
            Empty if it was kept.
        """
        try:
            self._base.execute(
                "INSERT INTO rows (session, place, told, content) VALUES (?, ?, ?, ?)",
                (session.encode("utf-8", "surrogatepass"), place, told, json.dumps(row)),
            )
        except sqlite3.IntegrityError:
            found = self._base.execute(
                "SELECT place FROM rows WHERE session = ?",
                (session.encode("utf-8", "surrogatepass"),),
            ).fetchone()
            return str(found[0])
        return ""

    def rows(self) -> Iterator[tuple[float | None, dict[str, Any]]]:
        """Yield each row with the seconds between the earliest session and its own."""
        ((earliest,),) = self._base.execute("SELECT min(told) FROM rows").fetchall()
        for told, content in self._base.execute("SELECT told, content FROM rows ORDER BY seq"):
            yield None if told is None else told - earliest, json.loads(content)
