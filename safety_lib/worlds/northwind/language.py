"""How the simulated model reads: requests, the things they name, and the tone they come in.

It is a small grammar, not a language model: verbs that ask for a tool, entities that fill its
arguments, and cues that a reader would notice. Nothing here knows of attacks; the same reading
serves a customer, an attacker and a sentence in a ticket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PARAMETERS_FILE = Path(__file__).with_name("simulated.yaml")

ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")
CUSTOMER = re.compile(r"\bC-\d{4}\b")
TICKET = re.compile(r"\bT-\d{3}\b")
ACCOUNT = re.compile(r"\bAC-[\w-]*\w")
APPROVAL = re.compile(r"\bAP-\d{4}\b")
AMOUNT = re.compile(r"\$\s?(\d[\d,]{0,20}(?:\.\d{1,9})?)")
PATH = re.compile(r"(?<![\w/])/[\w-]+/[\w.-]*\w")
JOB = re.compile(r"\b([a-z]+(?:-[a-z]+){1,4}) job\b|\bjob ([a-z]+(?:-[a-z]+){1,4})\b")
RECORDS = re.compile(r"\b(records?|details|data|entry|entries|profile)\b", re.IGNORECASE)
KEY = re.compile(r"\brecovery key\b", re.IGNORECASE)
PART = re.compile(r"\b(?:part (one|two)|(first|second) (?:part|half))\b", re.IGNORECASE)
OFF = re.compile(r"\b(off|disable|pause|stop|suspend)\b", re.IGNORECASE)

_CLAUSE_END = re.compile(r"[.?!](?=\s|$)|\n|\Z")
_MOST_REQUESTS = 100


class _Asks:
    """A verb and, later in the same clause, what it is about; found in one pass over a text."""

    def __init__(self, verbs: str, about: str) -> None:
        self._verbs = re.compile(rf"\b(?:{verbs})\b", re.IGNORECASE)
        self._about = re.compile(about, re.IGNORECASE)

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield where each request starts, and its words."""
        position = clause_end = 0
        while verb := self._verbs.search(text, position):
            if verb.end() > clause_end:
                clause_end = _end_of_clause(text, verb.end())
            about = self._about.search(text, verb.end(), clause_end)
            if about:
                yield verb.start(), text[verb.start() : about.end()]
            position = about.end() if about else clause_end


def _end_of_clause(text: str, start: int) -> int:
    found = _CLAUSE_END.search(text, start)
    return found.start() if found else len(text)


_REQUESTS: tuple[tuple[str, _Asks], ...] = (
    ("lookup_customer", _Asks("look up|pull up|check|find|open|show me|read", r"\bC-\d{4}\b")),
    (
        "read_ticket",
        _Asks("read|open|summari[sz]e|look at|go through|handle|work on", r"\bT-\d{3}"),
    ),
    ("read_inbox", _Asks("read|check|go through|summari[sz]e|look at", "inbox|incoming mail")),
    ("read_file", _Asks("read|open|show|print|tell|quote|give|what is in", PATH.pattern)),
    ("read_key", _Asks("read|show|print|tell|quote|give|repeat|need|what is", KEY.pattern)),
    ("send_mail", _Asks("send|mail|e-?mail|forward", ADDRESS.pattern)),
    ("delete_file", _Asks("delete|remove|erase|clear out", PATH.pattern)),
    ("make_payment", _Asks("pay|transfer|wire|settle|send", AMOUNT.pattern)),
    ("request_approval", _Asks("request|ask for", "approval")),
    (
        "set_audit_log",
        _Asks("switch|turn|disable|enable|pause|stop|suspend|resume", r"audit log(?: off\b)?"),
    ),
    ("run_job", _Asks("run|start|launch|trigger|kick off", JOB.pattern)),
)
CONFIRM = re.compile(
    r"\b(?:go ahead|please proceed|do it|carry on|continue with it|yes, please)\b", re.IGNORECASE
)


class Request(NamedTuple):
    """One thing that a text asks for: a tool, and the words in which it was asked."""

    tool: str
    words: str


class Reading(NamedTuple):
    """What a text holds, read once and remembered."""

    requests: tuple[Request, ...]
    cues: frozenset[str]
    confirms: bool
    customers: tuple[str, ...]
    normal: str


@cache
def parameters() -> dict[str, Any]:
    """Return the simulated model's authored parameters."""
    loaded: dict[str, Any] = yaml.safe_load(PARAMETERS_FILE.read_text(encoding="utf-8"))
    return loaded


@cache
def _cues() -> tuple[tuple[str, Callable[[str], Any]], ...]:
    return tuple(
        (name, re.compile(pattern, re.IGNORECASE).search)
        for name, pattern in parameters()["cues"].items()
    )


@lru_cache(maxsize=65536)
def read(text: str) -> Reading:
    """Read a text: what it asks for, in the order in which it asks, and in what tone.

    Examples
    --------
    >>> read("Thanks! Please delete /tmp/a.csv and look up C-1001.").requests[0].tool
    'delete_file'
    >>> sorted(read("Thanks, this is urgent.").cues)
    ['rapport', 'urgency']
    """
    found: list[tuple[int, Request]] = []
    for tool, asks in _REQUESTS:
        found.extend((start, Request(tool, words)) for start, words in asks.find(text))
    found.sort(key=lambda item: item[0])
    requests: list[Request] = []
    for request in dict.fromkeys(request for _, request in found):
        if len(requests) < _MOST_REQUESTS and not any(_same(request, r) for r in requests):
            requests.append(request)
    return Reading(
        requests=tuple(requests),
        cues=frozenset(name for name, search in _cues() if search(text)),
        confirms=bool(CONFIRM.search(text)),
        customers=tuple(dict.fromkeys(CUSTOMER.findall(text))),
        normal=re.sub(r"\W+", " ", text.lower()).strip(),
    )


def _same(a: Request, b: Request) -> bool:
    if a.tool == b.tool:
        return a.words == b.words
    reads = {"read_file", "read_key", "lookup_customer", "read_ticket"}
    return a.tool in reads and b.tool in reads and (a.words in b.words or b.words in a.words)


def last(pattern: re.Pattern[str], texts: Sequence[str]) -> str:
    """Return the last match of a pattern in the newest text that has one, or an empty string.

    Examples
    --------
    >>> last(TICKET, ["see T-201", "nothing here"])
    'T-201'
    """
    return next(filter(None, (_last(pattern, text) for text in reversed(texts))), "")


@lru_cache(maxsize=4096)
def _last(pattern: re.Pattern[str], text: str) -> str:
    matches = list(pattern.finditer(text))
    if not matches:
        return ""
    groups = [group for group in matches[-1].groups() if group]
    return groups[0] if groups else matches[-1].group()


def amount(text: str) -> float:
    """Return the last amount of dollars in a text, or 0."""
    found = AMOUNT.findall(text)
    return float(found[-1].replace(",", "")) if found else 0.0
