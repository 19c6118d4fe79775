"""How the simulated model reads: requests, the things they name, and the tone they come in.

It is a small grammar, not a language model: verbs that ask for a tool, entities that fill its
arguments, and cues that a reader would notice. Nothing here knows of attacks; the same reading
serves a customer, an attacker and a sentence in a ticket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PARAMETERS_FILE = Path(__file__).with_name("simulated.yaml")

ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
CUSTOMER = re.compile(r"\bC-\d{4}\b")
TICKET = re.compile(r"\bT-\d{3}\b")
ACCOUNT = re.compile(r"\bAC-[\w-]*\w")
APPROVAL = re.compile(r"\bAP-\d{4}\b")
AMOUNT = re.compile(r"\$\s?(\d[\d,]*(?:\.\d+)?)")
PATH = re.compile(r"(?<![\w/])/[\w-]+/[\w.-]*\w")
JOB = re.compile(r"\b([a-z]+(?:-[a-z]+)+) job\b|\bjob ([a-z]+(?:-[a-z]+)+)\b")
RECORDS = re.compile(r"\b(records?|details|data|entry|entries|profile)\b", re.IGNORECASE)
KEY = re.compile(r"\brecovery key\b", re.IGNORECASE)
PART = re.compile(r"\b(?:part (one|two)|(first|second) (?:part|half))\b", re.IGNORECASE)
OFF = re.compile(r"\b(off|disable|pause|stop|suspend)\b", re.IGNORECASE)

_IN_CLAUSE = r"(?:(?![.?!](?:\s|$)).)*?"


def _asks(verbs: str, about: str = "") -> re.Pattern[str]:
    tail = f"{_IN_CLAUSE}(?:{about})" if about else ""
    return re.compile(rf"\b(?:{verbs})\b{tail}", re.IGNORECASE)


_REQUESTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("lookup_customer", _asks("look up|pull up|check|find|open|show me|read", r"\bC-\d{4}\b")),
    (
        "read_ticket",
        _asks("read|open|summari[sz]e|look at|go through|handle|work on", r"\bT-\d{3}"),
    ),
    ("read_inbox", _asks("read|check|go through|summari[sz]e|look at", "inbox|incoming mail")),
    ("read_file", _asks("read|open|show|print|tell|quote|give|what is in", PATH.pattern)),
    ("read_key", _asks("read|show|print|tell|quote|give|repeat|need|what is", KEY.pattern)),
    ("send_mail", _asks("send|mail|e-?mail|forward", ADDRESS.pattern)),
    ("delete_file", _asks("delete|remove|erase|clear out", PATH.pattern)),
    ("make_payment", _asks("pay|transfer|wire|settle|send", AMOUNT.pattern)),
    ("request_approval", _asks("request|ask for", "approval")),
    ("set_audit_log", _asks("switch|turn|disable|enable|pause|stop|suspend|resume", "audit log")),
    ("run_job", _asks("run|start|launch|trigger|kick off", JOB.pattern)),
)
CONFIRM = _asks("go ahead|please proceed|do it|carry on|continue with it|yes, please")


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
    for tool, pattern in _REQUESTS:
        found.extend((m.start(), Request(tool, m.group())) for m in pattern.finditer(text))
    found.sort(key=lambda item: item[0])
    requests: list[Request] = []
    for _, request in found:
        if not any(_same(request, other) for other in requests):
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


def last(pattern: re.Pattern[str], texts: Iterable[str]) -> str:
    """Return the last match of a pattern in the newest text that has one, or an empty string.

    Examples
    --------
    >>> last(TICKET, ["see T-201", "nothing here"])
    'T-201'
    """
    for text in reversed(list(texts)):
        matches = list(pattern.finditer(text))
        if matches:
            groups = [group for group in matches[-1].groups() if group]
            return groups[0] if groups else matches[-1].group()
    return ""


def amount(text: str) -> float:
    """Return the last amount of dollars in a text, or 0."""
    found = AMOUNT.findall(text)
    return float(found[-1].replace(",", "")) if found else 0.0
