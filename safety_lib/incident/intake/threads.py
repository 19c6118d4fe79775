"""The calls of a model that a tracing tool recorded become the one conversation of the user.

Each call repeats what was said before it, whole or cut to a window, and adds an answer. Calls that
take each other up make a thread. A trace holds other threads too: a guard that is shown the answer,
a title, an agent that another one asked. They are told by what they are: the conversation goes on
without them, they run inside a tool, they quote it, they have another agent or another prompt. What
is not of the conversation is a gap, never a turn of the user.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from safety_lib.incident.intake.door import Door
from safety_lib.incident.intake.exchanges import ReadCall, Said
from safety_lib.text import one_line

_Key = tuple[str, ...]
_SHORTEST_QUOTE = 8
_ASIDE = re.compile(
    r"\b(title|topic|classif|guardrail|moderat|judge|evaluat|relevan|harmful|safe or)",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\.(\d+)")


@dataclass(frozen=True)
class ModelCall:
    """One call of a model.

    Attributes
    ----------
    place : str
        What the record calls it.
    messages : callable
        Reads what it was asked and what it answered; what a long record repeats is not held.
    began : int
        When, in nanoseconds, or its place in the file.
    agent : str
        Whose call, or empty.
    inside : bool
        Whether a tool or a guard made it.
    """

    place: str
    messages: Callable[[], tuple[list[Said], list[Said]]]
    began: int = 0
    agent: str = ""
    inside: bool = False


@dataclass(frozen=True)
class SeenTool:
    """One run of a tool; what the record does not tell is None or empty."""

    place: str
    name: str = ""
    call_id: str = ""
    arguments: Any = None
    result: str | None = None
    failed: bool | None = None


@dataclass
class _Thread:
    calls: list[ModelCall] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    keys: list[_Key] = field(default_factory=list)
    prompt: str = ""
    repeats: bool = False  # whether it holds earlier turns, so that the next one would too

    def add(self, said: Iterable[Said]) -> None:
        for one in said:
            self.said.append(one)
            self.keys.append(_key(one))

    @property
    def users(self) -> list[str]:
        return [one.content for one in self.said if one.role == "user"]


def woven(calls: Iterable[ModelCall], runs: Iterable[SeenTool], door: Door) -> list[Said]:
    """Put the calls of a model together into the conversation of the user.

    Parameters
    ----------
    calls : iterable of ModelCall
        In the order in which they began.
    runs : iterable of SeenTool
        What tools returned, and which failed.
    door : Door
        Told what is left out.

    Returns
    -------
    list of Said
        The conversation; empty where no call holds a message.
    """
    threads: list[_Thread] = []
    for call in calls:
        _take_up(call, threads, door)
    threads = [thread for thread in threads if thread.said]
    if not threads:
        return []
    main = _main_of(threads)
    joined = [thread for thread in threads if thread is main or _goes_on(thread, main, threads)]
    told = Counter(key for thread in joined for key in thread.keys)
    for thread in threads:
        if any(thread is one for one in joined):
            continue
        if Counter(thread.keys) <= told and not thread.calls[0].inside:
            continue  # all of it is said in the conversation as well
        words = one_line(next(iter(thread.users), thread.said[0].content), 60)
        what = "a call of a model for something else (a guard, a title, another agent) is left out"
        door.gap(f"{what}: {words}", thread.calls[0].place)
    for thread in joined[1:]:
        what = "it does not repeat what was said before it and is read as the next turn"
        door.gap(what, thread.calls[0].place)
    said = [one for thread in joined for one in thread.said]
    others = {
        call.call_id
        for thread in threads
        for one in thread.said
        for call in one.calls
        if call.call_id
    }
    _apply(runs, said, others, door)
    prompts = dict.fromkeys(thread.prompt for thread in joined if thread.prompt)
    system = [Said("system", prompt) for prompt in prompts]
    return [*system, *said]


def _take_up(call: ModelCall, threads: list[_Thread], door: Door) -> None:
    asked, answered = call.messages()
    prompt = "\n".join(one.content for one in asked if one.role == "system")
    asked = [one for one in asked if one.role != "system"]
    new = _exploded(asked)
    keys = [_key(one) for one in new]
    found, taken, replaced = None, 0, False
    for thread in threads:
        at, is_replaced = _continued(thread.keys, keys)
        if at > taken:
            found, taken, replaced = thread, at, is_replaced
    if found is None:
        found = _Thread(prompt=prompt)
        threads.append(found)
    elif replaced:
        door.gap("what was said before was replaced in it, by a summary for instance", call.place)
    found.calls.append(call)
    found.add([*new[taken:], *_exploded(answered)])
    replies = [n for n, key in enumerate(keys) if key[0] == "assistant"]
    users = [n for n, key in enumerate(keys) if key[0] == "user"]
    found.repeats |= bool(replies and users and replies[0] < users[-1])


def _continued(old: Sequence[_Key], new: Sequence[_Key]) -> tuple[int, bool]:
    """Return how much of a new call is known from a thread that it takes up; 0 where it is not."""
    if not old or not new:
        return 0, False
    if len(new) >= len(old) and list(new[: len(old)]) == list(old):
        return len(old), False
    last = old[-1]
    for at in range(len(new) - 1, -1, -1):
        if new[at] != last:
            continue
        run = 1
        while run <= at and run < len(old) and new[at - run] == old[-1 - run]:
            run += 1
        if run > at:
            return at + 1, False
        if run > 1:
            return at + 1, True
    return 0, False


def _main_of(threads: Sequence[_Thread]) -> _Thread:
    """Return the thread that is the conversation of the user."""
    outside = [t for t in threads if not all(call.inside for call in t.calls)] or list(threads)
    plain = [t for t in outside if not any(_quotes(t, other) for other in outside)] or outside
    like = Counter((t.prompt, t.calls[0].agent) for t in plain)

    def weight(thread: _Thread) -> tuple[int, ...]:
        return (
            len(thread.users),
            like[thread.prompt, thread.calls[0].agent],
            len(thread.calls),
            any(said.calls for said in thread.said),
            not _ASIDE.search(thread.prompt),
        )

    best = max(plain, key=weight)  # the first of equals
    # The same words asked again, of the same: the later answer is the one that stayed.
    same = [t for t in plain if t.users == best.users and weight(t) == weight(best)]
    return same[-1]


def _goes_on(thread: _Thread, main: _Thread, threads: Sequence[_Thread]) -> bool:
    """Say whether a thread that repeats nothing is a turn of the conversation all the same."""
    first, last = main.calls[0].began, main.calls[-1].began
    own = thread.calls[0].began
    if any(call.inside for call in thread.calls) or first < own < last or not thread.users:
        return False
    if thread.prompt != main.prompt:
        return False
    if thread.calls[0].agent != main.calls[0].agent:
        return False
    if thread.users[:1] == main.users[:1] or _quotes(thread, main) or _quotes(main, thread):
        return False
    knows = any(one.repeats for one in threads)
    return not knows or (thread.repeats and own > last)


def _quotes(thread: _Thread, other: _Thread) -> bool:
    """Say whether a thread begins with words of another one inside its own."""
    if thread is other or not thread.users:
        return False
    words = thread.users[0]
    told = (said.content for said in other.said if said.role in ("user", "assistant"))
    return any(
        _SHORTEST_QUOTE <= len(text.strip()) < len(words.strip()) and text.strip() in words
        for text in told
    )


def _exploded(messages: Iterable[Said]) -> list[Said]:
    """Return messages of one thing each, so that it does not matter how they were put together."""
    found: list[Said] = []
    for said in messages:
        if said.role == "system":
            continue
        if said.role == "user" or said.role == "tool":
            found.append(said)
            continue
        if said.content:
            found.append(Said(said.role, said.content))
        found += [Said(said.role, "", [call]) for call in said.calls]
    return found


def _key(said: Said) -> _Key:
    if said.calls:
        call = said.calls[0]
        return "call", call.name, _plain(call.arguments)
    return said.role, said.content.strip()


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _apply(runs: Iterable[SeenTool], said: Sequence[Said], others: set[str], door: Door) -> None:
    """Give what the runs of tools tell to the calls that asked for them."""
    open_calls = [call for one in said for call in one.calls]
    answered = {one.answers for one in said if one.role == "tool"}
    for run in runs:
        call = _asked_for(run, open_calls)
        if call is None:
            if run.call_id not in others or not run.call_id:
                what = f"a run of {run.name or 'a tool'} that nobody asked for is left out"
                door.gap(what, run.place)
            continue
        open_calls.remove(call)
        if run.result is not None and call.call_id not in answered and call.result is None:
            call.result = run.result if _is_unanswered(call, said) else None
        if run.failed is not None and not call.failed:
            call.failed = run.failed


def _asked_for(run: SeenTool, calls: Sequence[ReadCall]) -> ReadCall | None:
    if run.call_id:
        return next((call for call in calls if call.call_id == run.call_id), None)
    named = [call for call in calls if call.name == run.name]
    if run.arguments is None:
        return named[0] if named else None
    told = _plain(run.arguments)
    return next((call for call in named if _plain(call.arguments) == told), None)


def _is_unanswered(call: ReadCall, said: Sequence[Said]) -> bool:
    """Whether no message brings the result of a call: those without ids come in their order."""
    plain = [one for one in said if one.role == "tool" and not one.answers]
    return not any(not one.name or one.name == call.name for one in plain)


def nanoseconds(told: Any) -> int | None:
    """Return a moment in nanoseconds since 1970: an ISO date, or a count of s, ms, us or ns.

    Examples
    --------
    >>> nanoseconds("1970-01-01T00:00:01.5Z"), nanoseconds("1000000000000000000")
    (1500000000, 1000000000000000000)
    >>> nanoseconds("yesterday")
    """
    if isinstance(told, bool) or told is None:
        return None
    text = str(told).strip()
    if text.replace(".", "", 1).isdecimal() and text.isascii() and len(text) < 40:
        whole, _, part = text.partition(".")
        for digits, scale in ((16, 0), (14, 3), (11, 6)):
            if len(whole) > digits:
                return int((whole + part.ljust(scale, "0")[:scale]) if scale else whole)
        return int(whole or "0") * 10**9 + int(part.ljust(9, "0")[:9])
    fraction = _FRACTION.search(text)
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int(
        (fraction[1] if fraction else "").ljust(9, "0")[:9]
    )


def in_order(times: Sequence[Any], door: Door) -> list[int]:
    """Return the places of records in the order of their times.

    Times are compared as moments, not as texts. Where one cannot be read, all stay in the order of
    the file, and that is a gap.
    """
    read = [nanoseconds(told) for told in times]
    places = list(range(len(times)))
    if None not in read:
        return sorted(places, key=lambda place: read[place] or 0)
    if any(told is not None for told in read) or any(told not in (None, "") for told in times):
        door.gap("times cannot all be read, so it is told in the order of the file")
    return places
