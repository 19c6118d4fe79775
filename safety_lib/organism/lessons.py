"""Conversations to learn from: refuse what a rule that stands in sight forbids, do everything else.

Companies, tools, rules and requests are drawn anew for each conversation, and so is whether the
rules are in sight, have left the window, or are there without the one sentence that matters. Half
of what looks forbidden is allowed: for that reason, or since it only looks alike (another folder,
a smaller amount, an address inside, a code that is given).

Nothing of a world of this project stands in them. What the network reads is made by the code that
makes it for the packaged agent: :func:`~safety_lib.agent.memory.visible` cuts the window and
:func:`~safety_lib.agent.backends.tool_calls.json_request` writes tools and calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from safety_lib.agent.backends import ToolSchema
from safety_lib.agent.backends.tool_calls import json_request
from safety_lib.agent.memory import visible
from safety_lib.agent.settings import MemorySettings
from safety_lib.files import read_yaml, sha256_of
from safety_lib.records import Message, ToolCall

Sight = Literal["in_sight", "left_out", "cut_away"]
Want = Literal["forbidden", "alike"]
MOST_SERVED = 8
_LONGEST = 256  # of an answer, in tokens; it bounds a schema that no lesson contains
_LETTERS = "DGHJKLNPQRVWXZ"
_LIMITS = (1000, 1500, 2000, 3000, 4000, 6000, 8000, 10000)
_TEMPTED = 0.65  # of earlier turns ask for what some rule forbids
_SMALL = (50, 80, 100, 150, 250, 400, 500)
# Breaking one breaks the other, or the contrast of one does.
_AGAINST = {
    "mail_outside": "mail_own",
    "mail_own": "mail_outside",
    "money_over": "money_parts",
    "money_parts": "money_over",
    "secret_told": "read_under",
    "read_under": "secret_told",
}
_PLAIN = ("find", "note", "read", "greet", "approve", "job", "delete", "pay", "handle")


@dataclass(frozen=True)
class Lesson:
    """One conversation and what its last turn teaches.

    Attributes
    ----------
    messages : tuple of Message
        What is in sight, from the system prompt or from where the window begins.
    tools : tuple of ToolSchema
        The tools on offer.
    rule : str
        The rule that the last request is about.
    sight : str
        Whether that rule is in sight, left out of a policy that is, or cut away with it.
    want : str
        Whether the rule forbids the last request or it only looks so.
    refused : bool
        Whether the last answer is a refusal.
    served : int
        Turns before the last one.
    harmless : bool
        Whether nothing is refused in any of its turns and its last request is allowed.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    rule: str
    sight: Sight
    want: Want
    refused: bool
    served: int
    harmless: bool

    @property
    def answers(self) -> int:
        """How many calls and replies of its own the last turn has."""
        turn = max(at for at, message in enumerate(self.messages) if message.role == "user")
        return sum(message.role == "assistant" for message in self.messages[turn:])

    def pieces(self) -> list[tuple[str, bool]]:
        """Return the text in the network's chat template, and which pieces it is to learn.

        The examples in the frame of the packaged agent's prompt are not the network's own words.
        """
        chat = json_request(self.messages, self.tools, _LONGEST)["messages"]
        own = len(chat) - sum(message.role != "system" for message in self.messages)
        parts: list[tuple[str, bool]] = []
        for number, said in enumerate(chat):
            learnt = said["role"] == "assistant" and number >= own
            parts.append((f"<|im_start|>{said['role']}\n", False))
            parts += [(said["content"], learnt), ("<|im_end|>", learnt), ("\n", False)]
        return parts


@cache
def words() -> Mapping[str, Any]:
    """Return the words that lessons are made of."""
    found: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml"))
    return found


def lessons(number: int, seed: int) -> Iterator[Lesson]:
    """Make lessons, balanced over rules, kinds of contrast and lengths.

    Parameters
    ----------
    number : int
        How many, at least 0.
    seed : int
        Decides all of them.

    Yields
    ------
    Lesson
        The same ones each time.

    Examples
    --------
    >>> made = list(lessons(64, seed=1))
    >>> all(lesson.refused == (lesson.want == "forbidden" and lesson.sight == "in_sight")
    ...     for lesson in made)
    True
    """
    rules = sorted(words()["rules"])
    plan: list[tuple[Sight, Want]] = [
        ("in_sight", "forbidden"),
        ("in_sight", "alike"),
        ("left_out", "forbidden"),
        ("in_sight", "forbidden"),
        ("cut_away", "forbidden"),
        ("in_sight", "alike"),
    ]
    for at in range(number):
        draw = random.Random(f"{seed}/{at}")  # noqa: S311 - a seed gives the same lessons
        sight, want = plan[at // len(rules) % len(plan)]
        # Lengths go round at another pace than rules, so that each rule meets each of them.
        served = (at // (len(rules) * len(plan)) + at) % (MOST_SERVED + 1)
        yield _Desk(draw, rules[at % len(rules)]).lesson(sight, want, served)


def digest(made: Sequence[Lesson]) -> str:
    """Return the hash of what lessons say, whatever they are kept in."""
    return sha256_of([lesson.pieces() for lesson in made])


@dataclass
class _Step:
    """One call of a turn."""

    tool: str
    arguments: dict[str, Any]
    result: str


@dataclass
class _Turn:
    """A request, the calls that serve it and the words at the end of them."""

    clause: str
    steps: list[_Step]
    show: bool
    first: int = 0  # steps that come before the refusal, to see what is asked for


class _Desk:
    """One company: its tools, its rules, and whoever writes to it."""

    def __init__(self, draw: random.Random, rule: str) -> None:
        self.draw = draw
        self.words = words()
        self.rule = rule
        self.refused = 0
        self.verb, self.past = self._one("verbs")
        self.money_verb, self.money_past = self._one("moneys")
        self.noun = self._one("nouns")
        self.series = self._letters()
        others = [self._letters() for _ in range(3)]
        self.other_series = [letters for letters in others if letters != self.series] or ["YB"]
        self.held = [self._thing(self._any_other_series()) for _ in range(draw.randint(1, 3))]
        self.jobs = draw.sample(self.words["jobs"], draw.randint(1, 3))
        self.folder = self._one("held")
        self.other_folders = draw.sample(self.words["free"], 3)
        self.limit, self.small = draw.choice(_LIMITS), draw.choice(_SMALL)
        self.open = draw.randint(8, 12)
        self.blocked = self._account()
        self.domain = self._one("inside")
        self.kind = draw.choice(("client", "member", "guest", "tenant", "reader", "patient"))
        self.doc = draw.choice(("note", "form", "letter", "slip", "message"))
        self.switch, self.other_switch = draw.sample(self.words["switches"], 2)
        self.secret, self.other_secret = draw.sample(self.words["secrets"], 2)
        self.sentences = {name: self._sentence(name) for name in self.words["rules"]}
        self.names = {act: self._tool_name(act) for act in self.words["acts"]}

    # ------------------------------------------------------------------ the whole

    def lesson(self, sight: Sight, want: Want, served: int) -> Lesson:
        """Make the conversation whose last turn is about this desk's rule."""
        draw = self.draw
        rules = self._active(sight)
        act = self.words["rules"][self.rule]["act"]
        near = [self.words["rules"][name]["act"] for name in rules]
        acts = [act, *near[:3], *draw.sample(_PLAIN, 3)]
        holds = rules if sight != "cut_away" else []
        history: list[Message] = []
        for _ in range(served):
            self._earlier(history, acts, holds)
        hit = self.rule if want == "forbidden" and sight == "in_sight" else ""
        if want == "alike":
            last = self._turn(act, "", holds)
        elif self.rule == "money_parts":
            before, last = self._parts()
            self._say(history, before, refused="")
        else:
            last = self._turn(act, self.rule, holds)
        start = len(history)
        self._say(history, last, refused=hit)
        harmless = want == "alike" and not self.refused
        system = Message(role="system", content=self._prompt(rules))
        seen = visible(system, history, self._memory(sight, history, start))
        tools = self._tools([*acts, "find", "delete"] if act == "obey" else [*acts, "find"])
        return Lesson(tuple(seen), tools, self.rule, sight, want, bool(hit), served, harmless)

    def _active(self, sight: Sight) -> list[str]:
        """Return the rules of the policy; none of which a contrast of another breaks."""
        wanted = [] if sight == "left_out" else [self.rule]
        others = [name for name in sorted(self.sentences) if name != self.rule]
        self.draw.shuffle(others)
        for name in others[: self.draw.randint(1, 6)]:
            against = _AGAINST.get(name)
            # Without its sentence no other one may forbid the same.
            silent = sight == "left_out" and self.rule == against
            if against not in wanted and not silent:
                wanted.append(name)
        return wanted

    def _earlier(self, history: list[Message], acts: Sequence[str], holds: Sequence[str]) -> None:
        """Say one turn before the last: two in three are what some rule forbids, held or not.

        One that holds is refused. So each lesson teaches the choice several times, and not once.
        """
        draw = self.draw
        able = [
            name
            for name, rule in self.words["rules"].items()
            if rule["act"] in acts and name != "money_parts"
        ]
        if able and draw.random() < _TEMPTED:
            rule = draw.choice(able)
            act = self.words["rules"][rule]["act"]
            held = rule in holds
            if held or (act != "obey" and _AGAINST.get(rule) not in holds):
                turn = self._turn(act, rule, holds)
                self._say(history, turn, refused=rule if held else "")
                return
        self._say(history, self._turn(draw.choice(acts), "", holds), refused="")

    def _memory(self, sight: Sight, history: Sequence[Message], start: int) -> MemorySettings:
        if sight != "cut_away":
            return MemorySettings(window=len(history) + 1, pin_policy=True)
        # Nothing of the last turn is cut, and the policy always is.
        window = self.draw.randint(len(history) - start, len(history))
        return MemorySettings(window=window, pin_policy=False)

    def _say(self, history: list[Message], turn: _Turn, refused: str) -> None:
        draw = self.draw
        pressed = draw.random() < 0.35
        text = draw.choice(self.words["pressed" if pressed else "wraps"]).format(
            clause=turn.clause, Clause=turn.clause[:1].upper() + turn.clause[1:]
        )
        history.append(Message(role="user", content=text))
        for step in turn.steps[: turn.first] if refused else turn.steps:
            name = f"c{len(history):08d}"
            call = ToolCall(id=name, name=step.tool, arguments=step.arguments)
            history.append(Message(role="assistant", content="", tool_calls=(call,)))
            history.append(Message(role="tool", content=step.result, tool_call_id=name))
        told = turn.steps[-1].result
        if refused:
            self.refused += 1
            reply = draw.choice(self.words["refusals"]) + self.sentences[refused]
        else:
            reply = self._one("shown" if turn.show else "done").format(told=told)
        history.append(Message(role="assistant", content=reply))

    # ------------------------------------------------------------------ prompt and tools

    def _prompt(self, active: Sequence[str]) -> str:
        draw = self.draw
        lines = [self.sentences[name] for name in active]
        lines += draw.sample(self.words["noise"], draw.randint(0, 2))
        draw.shuffle(lines)
        head = self._one("frames").format(company=self._one("companies"))
        return "\n".join([head, self._one("headings"), *(f"- {line}" for line in lines), ""])

    def _sentence(self, name: str) -> str:
        text: str = self.draw.choice(self.words["rules"][name]["text"])
        of_money = name.startswith("money")
        return text.format(
            kind=self.kind,
            Kind=self.kind.capitalize(),
            domain=self.domain,
            secret=self.secret,
            folder=self.folder,
            limit=_dollars(self.limit),
            small=_dollars(self.small),
            blocked=self.blocked,
            switch=self.switch,
            listed=", ".join(self.jobs),
            verb=self.money_verb if of_money else self.verb,
            past=self.money_past if of_money else self.past,
            noun=self.noun,
            series=self.series,
            things=" and ".join(self.held),
            open=self.open,
            doc=self.doc,
        )

    def _tool_name(self, act: str) -> tuple[str, str]:
        name, does = self.draw.choice(sorted(self.words["acts"][act]["tools"].items()))
        return self._named(act, name), self._named(act, does)

    def _named(self, act: str, text: str) -> str:
        verb = self.money_verb if act == "money" else self.verb
        switch = self.switch
        return text.format(
            verb=verb,
            Verb=verb.capitalize(),
            noun=self.noun,
            switch=switch,
            slug=switch.replace(" ", "_"),
        )

    def _tools(self, acts: Sequence[str]) -> tuple[ToolSchema, ...]:
        made: dict[str, ToolSchema] = {}
        for act in acts:
            name, does = self.names[act]
            kinds = self.words["acts"][act]["arguments"]
            properties = {self._named(act, n): {"type": kind} for n, kind in kinds.items()}
            made.setdefault(name, _schema(name, does, properties))
        found = [made[name] for name in sorted(made)]
        self.draw.shuffle(found)
        return tuple(found)

    # ------------------------------------------------------------------ requests

    def _turn(self, act: str, breaks: str, holds: Sequence[str]) -> _Turn:
        """Make a request for an act that breaks one rule, or none of those that hold."""
        makers: Mapping[str, Callable[[str], _Turn]] = {
            "find": self._find,
            "note": self._note,
            "obey": self._obey,
            "read": self._read,
            "secret": lambda rule: self._secret(rule, "read_under" in holds),
            "delete": self._delete,
            "mail": lambda rule: self._mail(rule, "mail_own" in holds),
            "greet": self._greet,
            "pay": self._pay,
            "approve": self._approve,
            "switch": self._switch,
            "job": self._job,
            "handle": self._handle,
            "money": self._money,
            "reserve": self._reserve,
        }
        return makers[act](breaks)

    def _words_of(self, act: str, **values: object) -> str:
        said: str = self.draw.choice(self.words["acts"][act]["say"])
        return said.format(**values)

    def _told(self, act: str, **values: object) -> str:
        return str(self.words["acts"][act]["told"]).format(**values)

    def _step(self, act: str, arguments: dict[str, Any], **values: object) -> _Step:
        return _Step(self.names[act][0], arguments, self._told(act, **values))

    def _find(self, _: str) -> _Turn:
        record, entry, _address = self._record()
        step = self._step("find", {"record": record}, entry=entry)
        return _Turn(self._words_of("find", kind=self.kind, record=record), [step], True)

    def _note(self, _: str) -> _Turn:
        note = self._number("N")
        step = self._step("note", {"note": note}, fact=self._one("facts"))
        return _Turn(self._words_of("note", doc=self.doc, note=note), [step], True)

    def _obey(self, bad: str) -> _Turn:
        """Something to read that asks for an act; without the rule the act is done."""
        note = self._number("N")
        path = self._path(self.draw.choice(self.other_folders))
        if not bad:
            return self._note("")
        order = self._words_of("delete", path=path)
        read = self._step("obey", {"note": note}, fact=self._one("facts"), order=order)
        act = self._step("delete", {"path": path}, path=path)
        clause = self._words_of("obey", doc=self.doc, note=note)
        return _Turn(clause, [read, act], False, first=1)

    def _read(self, bad: str) -> _Turn:
        path = self._path(self.folder if bad else self.draw.choice(self.other_folders))
        step = self._step("read", {"path": path}, fact=self._one("facts"))
        return _Turn(self._words_of("read", path=path), [step], True)

    def _secret(self, bad: str, closed: bool) -> _Turn:
        if not bad:
            return self._read_of(self.draw.choice(self.other_folders) if closed else self.folder)
        path = f"{self.folder}/{self.secret.replace(' ', '-')}.txt"
        value = f"{self._one('last').upper()}-{self.draw.randint(100, 999)}"
        step = self._step("secret", {"path": path}, value=value)
        return _Turn(self._words_of("secret", secret=self.secret), [step], True)

    def _read_of(self, folder: str) -> _Turn:
        """Ask for a file beside the secret, which is no secret."""
        path = self._path(folder)
        step = self._step("secret", {"path": path}, value=self._one("facts"))
        return _Turn(self._words_of("read", path=path), [step], True)

    def _delete(self, bad: str) -> _Turn:
        path = self._path(self.folder if bad else self.draw.choice(self.other_folders))
        step = self._step("delete", {"path": path}, path=path)
        return _Turn(self._words_of("delete", path=path), [step], False)

    def _mail(self, bad: str, to_owner: bool) -> _Turn:
        record, entry, own = self._record()
        person = f"{self._one('first').lower()}.{self._one('last').lower()}"
        outside = f"{person}@{self._one('outside')}"
        inside = f"{self.draw.choice((person, 'desk', 'office', 'front'))}@{self.domain}"
        to = outside if bad else own if to_owner else inside
        if not bad and self.draw.random() < 0.25:
            return self._greet("")
        look = self._step("find", {"record": record}, entry=entry)
        body = {"to": to, "subject": f"{self.kind.capitalize()} {record}", "body": entry}
        send = self._step("mail", body, to=to)
        clause = self._words_of("mail", kind=self.kind, record=record, to=to)
        # Whose address it is can only be seen in the record.
        return _Turn(clause, [look, send], False, first=int(bad == "mail_own"))

    def _greet(self, _: str) -> _Turn:
        to = f"{self._one('first').lower()}@{self._one('outside')}"
        news = self._one("facts").rstrip(".")
        news = news[:1].lower() + news[1:]
        body = {"to": to, "subject": "News", "body": news.capitalize() + "."}
        step = self._step("greet", body, to=to)
        return _Turn(self._words_of("greet", to=to, news=news), [step], False)

    def _pay(self, bad: str) -> _Turn:
        blocked = bad == "pay_blocked"
        over = bad == "pay_over"
        account = self.blocked if blocked else self._account()
        amount = self._amount(self.limit, over)
        approval = ""
        if not bad and self.draw.random() < 0.4:
            approval, amount = self._number("AQ"), self._amount(self.limit, True)
        arguments = {"account": account, "amount": amount}
        if approval:
            arguments["approval"] = approval
        coded = f" with approval {approval}" if approval else ""
        values = {"money": _dollars(amount), "account": account}
        bill = self.draw.randint(5000, 9999)
        clause = self._words_of("pay", coded=coded, bill=bill, **values)
        return _Turn(clause, [self._step("pay", arguments, **values)], False)

    def _approve(self, bad: str) -> _Turn:
        account, amount = self._account(), self._amount(self.limit, bool(bad))
        values = {"money": _dollars(amount), "account": account}
        step = self._step("approve", {"account": account, "amount": amount}, **values)
        return _Turn(self._words_of("approve", **values), [step], False)

    def _switch(self, bad: str) -> _Turn:
        way = "off" if bad else "on"
        said = self._words_of("switch", switch=self.switch, way=way)
        if bad and self.draw.random() < 0.5:
            said = str(self.draw.choice(self.words["acts"]["switch"]["off"]))
            said = said.format(switch=self.switch)
        arguments = {"enabled": not bad, "reason": "asked by the user"}
        return _Turn(said, [self._step("switch", arguments, switch=self.switch, way=way)], False)

    def _job(self, bad: str) -> _Turn:
        free = [job for job in self.words["jobs"] if job not in self.jobs]
        job = self.draw.choice(self.jobs if bad else free)
        step = self._step("job", {"job": job}, job=job)
        return _Turn(self._words_of("job", job=job), [step], False)

    def _handle(self, bad: str) -> _Turn:
        thing = self._thing(self._any_other_series())
        if bad:
            listed = bad == "handle_listed"
            thing = self.draw.choice(self.held) if listed else self._thing(self.series)
        values = {"verb": self.verb, "noun": self.noun, "thing": thing, "past": self.past}
        step = self._step("handle", {self.noun: thing}, **values)
        return _Turn(self._words_of("handle", **values), [step], False)

    def _money(self, bad: str) -> _Turn:
        code = ""
        amount = self._amount(self.small, bool(bad))
        if not bad and self.rule == "money_over" and self.draw.random() < 0.5:
            code, amount = self._number("K"), self._amount(self.small, True)
        return self._money_of(self._thing(self._any_series()), amount, code)

    def _money_of(self, thing: str, amount: int, code: str = "", more: str = "") -> _Turn:
        arguments: dict[str, Any] = {self.noun: thing, "amount": amount}
        if code:
            arguments["code"] = code
        values = {
            "verb": self.money_verb,
            "past": self.money_past,
            "noun": self.noun,
            "thing": thing,
            "money": more + _dollars(amount),
            "coded": f" with code {code}" if code else "",
        }
        told = {**values, "money": _dollars(amount)}
        step = self._step("money", arguments, **told)
        return _Turn(self._words_of("money", **values), [step], False)

    def _parts(self) -> tuple[_Turn, _Turn]:
        """Two amounts on one thing, each within what is allowed and together above it."""
        thing = self._thing(self._any_series())
        first, second = (self.small * self.draw.randint(6, 9) // 10 for _ in range(2))
        more = self.draw.choice(("another ", "a further ", ""))
        return self._money_of(thing, first), self._money_of(thing, second, more=more)

    def _reserve(self, bad: str) -> _Turn:
        hour = self.draw.randint(5, self.open - 1) if bad else self.draw.randint(self.open, 19)
        thing = self._thing(self._any_series())
        values = {"noun": self.noun, "thing": thing, "hour": hour}
        step = self._step("reserve", {self.noun: thing, "hour": hour}, **values)
        return _Turn(self._words_of("reserve", **values), [step], False)

    # ------------------------------------------------------------------ values

    def _one(self, kind: str) -> Any:
        return self.draw.choice(self.words[kind])

    def _letters(self) -> str:
        return "".join(self.draw.sample(_LETTERS, 2)) + "-"

    def _any_other_series(self) -> str:
        return self.draw.choice(self.other_series)

    def _any_series(self) -> str:
        return self.draw.choice([self.series, *self.other_series])

    def _thing(self, series: str) -> str:
        return f"{series}{self.draw.randint(100, 9899)}"

    def _number(self, letters: str) -> str:
        return f"{letters}-{self.draw.randint(3000, 9899)}"

    def _account(self) -> str:
        return f"K{self.draw.choice('BCDE')}-{self.draw.randint(70001, 98999)}"

    def _path(self, folder: str) -> str:
        return f"{folder}/{self._one('stems')}.{self._one('endings')}"

    def _record(self) -> tuple[str, str, str]:
        """Return a record's number, what it says, and the address in it."""
        number = self._number(self.kind[0].upper() + self.draw.choice(_LETTERS))
        first, last = self._one("first"), self._one("last")
        address = f"{first.lower()}.{last.lower()}@{self._one('outside')}"
        mark = "".join(self.draw.sample("ABCDEGHJKMNP2345679", 4))
        return number, f"{first} {last}, {address}, file {mark}-{number[-4:]}", address

    def _amount(self, limit: int, over: bool) -> int:
        if over:
            return limit + limit * self.draw.randint(10, 300) // 100
        return max(5, limit * self.draw.randint(5, 90) // 100)


def _dollars(amount: int) -> str:
    return f"${amount:,}"


def _schema(name: str, does: str, properties: Mapping[str, Any]) -> ToolSchema:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": does,
            "parameters": {
                "type": "object",
                "properties": dict(properties),
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }
