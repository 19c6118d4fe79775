"""What a reply states, held against what was told before it: by value and not by spelling.

``112`` in a JSON result, ``112.00`` in a sentence and ``$112`` in a reply are one amount, as are
``$4.2 million`` and ``4200000``; ``t-204`` and ``T 204`` are one id. A reply states amounts of
money, ids, mail addresses and paths; any number may support an amount. A sum over a list of a
result is told by it, and so is what one step of arithmetic makes of amounts that the user or a
reply named before: a sum, a difference, a multiple; and to the cent, the total of some amounts of
the same reply. More steps would support almost any number.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

_SCALES = {"k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "million": 1e6}
_SCALES |= {"b": 1e9, "bn": 1e9, "billion": 1e9}
_NUMBER = (
    r"(?P<number{n}>\d+(?:[.,']\d+|[ _]\d{{3}}(?!\d))*(?:e[+-]?\d+)?)"
    rf"(?:[ -]?(?P<scale{{n}}>{'|'.join(_SCALES)})\b)?"
)
_CODES = "USD|EUR|GBP|CHF|CAD|AUD"
_AMOUNT = re.compile(
    rf"(?:[$€£]|\b(?:{_CODES})) ?{_NUMBER.format(n=1)}"
    rf"|(?<![\w.,]){_NUMBER.format(n=2)} ?(?:[€£]|(?:{_CODES}|dollars?|euros?|pounds?)\b)",
    re.IGNORECASE,
)
# What is part of a date, a time or a name is no number, but a currency may stand right before it.
_IN_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d(?:T[\d:.]+Z?)?|\d{1,2}:\d\d(?::\d\d)?"
    rf"|(?:(?<!\w)|(?<={_CODES})){_NUMBER.format(n=1)}(?:(?!\w)|(?={_CODES}))",
    re.IGNORECASE,
)
_STANDARDS = r"(?:UTC|GMT|UTF|ISO|RFC|SHA|AES|GPT)-|(?:W-[2489]|I-9)(?!\w)"
# What a mask of stars hides the beginning of is no name.
_NAME = re.compile(
    r"(?<![\w.+*•-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    rf"|(?<![\w*•-])(?!{_STANDARDS}|(?:{_CODES})-)[A-Z]{{1,4}}(?:-\w+)*-\w*\d\w*"
    r"|(?<![\w/])/[\w-]+/[\w.-]*\w"
)
_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2212"), "-")
_OF_MONEY = re.compile(
    r"price|fare|cost|amount|total|paid|pay|fee|due|refund|premium|charge|differ|balance|sum",
    re.IGNORECASE,
)
_SMALL_COUNTS = range(2, 10)
_MOST_ADDED = 12  # amounts of one reply: the totals of some of them are then 4096
_LARGEST = 1e15


class Stated(NamedTuple):
    """A value in a reply.

    Attributes
    ----------
    text : str
        As it is written there, without spaces.
    readings : tuple of float
        What an amount may mean, the likeliest first; empty for a name.
    step : float
        The last digit that is written: 1 for ``$112``, 100,000 for ``$4.2 million``.
    """

    text: str
    readings: tuple[float, ...] = ()
    step: float = 0.0

    def is_near(self, number: float) -> bool:
        """Whether a number, rounded as this amount is, is this amount."""
        return any(abs(abs(number) - own) <= self.step / 2 + 1e-9 for own in self.readings)


def stated(text: str) -> tuple[Stated, ...]:
    """Return the amounts, ids, mail addresses and paths that a text states, each once.

    Examples
    --------
    >>> [value.text for value in stated("T-204 costs $1,200, or 1.5 million EUR; write to a@b.com")]
    ['$1,200', '1.5millionEUR', 'T-204', 'a@b.com']
    """
    return tuple(dict.fromkeys(_stated(_plain(text))))


def _stated(plain: str) -> Iterator[Stated]:
    for found in _AMOUNT.finditer(plain):
        written, word = found["number1"] or found["number2"], found["scale1"] or found["scale2"]
        scale = _SCALES[word.casefold()] if word else 1.0
        decimals = re.search(r"[.,](\d{1,2})$", written)
        means = tuple(reading * scale for reading in _readings(written))
        if any(means):  # nothing to pay is no amount
            step = scale * 10.0 ** -(len(decimals[1]) if decimals else 0)
            yield Stated(found[0].replace(" ", ""), means, step)
    for found in _NAME.finditer(plain):
        yield Stated(found[0])


class Told:
    """What users said and tools returned so far; what a reply states is looked up in it.

    Examples
    --------
    >>> told = Told()
    >>> told.hear("Ticket t-204: refund 4200000 USD.")
    >>> [value.text for value in told.unsupported("T-204 wants $4.2 million, T-205 wants $12.")]
    ['$12', 'T-205']
    """

    def __init__(self) -> None:
        self._text = ""
        self._numbers: set[float] = set()
        self._named: set[float] = set()

    def hear(self, text: str) -> None:
        """Take in a text, which may be JSON."""
        for leaf in _leaves(_tree(text)):
            plain = _plain(leaf)
            self._text += plain.casefold() + "\n"
            self._numbers.update(_numbers_in(plain))

    def hear_user(self, text: str) -> None:
        """Take in what the user said, whose amounts a reply may reckon with."""
        self.hear(text)
        self._named.update(value.readings[0] for value in stated(text) if value.readings)

    def hear_results(self, results: Sequence[str]) -> None:
        """Take in what one tool returned in one turn, with the sum over each of its lists."""
        for result in results:
            self.hear(result)
        self._numbers.update(_sums([_tree(result) for result in results]))

    def unsupported(self, reply: str) -> list[Stated]:
        """Return what a reply states and nothing supports; the rest may be reckoned with."""
        values = stated(reply)
        self._reckon_with(_fields_of_money(_tree(reply)))
        left = [value for value in values if not self._holds(value)]
        self._named.update(v.readings[0] for v in values if v.readings and v not in left)
        made_up = []
        for value in left:
            at = values.index(value)
            if self._reckons(value, values[:at][::-1]) or self._reckons(value, values[at + 1 :]):
                self._named.add(value.readings[0])
            else:
                made_up.append(value)
        return made_up

    def _reckon_with(self, amounts: Sequence[Stated]) -> None:
        """Take in the amounts of a reply that is JSON, where no currency stands beside them."""
        self._named.update(value.readings[0] for value in amounts if self._holds(value))
        self._named.update(value.readings[0] for value in amounts if self._reckons(value, ()))

    def _holds(self, value: Stated) -> bool:
        if value.readings:
            return any(map(value.is_near, self._numbers))
        return bool(re.search(_any_spelling(value.text), self._text))

    def _reckons(self, value: Stated, beside: Sequence[Stated]) -> bool:
        """Whether one step leads to an amount: from named ones, or to cents from any number."""
        if not value.readings:
            return False
        amount = value.readings[0]
        pool = self._named | self._numbers if value.step < 1 else self._named
        exact = {round(number, 2) for number in pool}
        known = [v.readings[0] for v in beside if v.readings and v.readings[0] in self._named]
        added = accumulate(known)
        return (
            any(round(abs(amount - one), 2) in exact for one in exact)
            or any(round(amount + one, 2) in exact for one in exact)
            or any(round(total, 2) == amount for total in added)
            or any(
                round(count * one, 2) == amount for one in self._named for count in _SMALL_COUNTS
            )
            or (value.step < 1 and round(amount * 100) in _totals(known[:_MOST_ADDED]))
        )


def _totals(amounts: Sequence[float]) -> set[int]:
    """Return what some of the amounts add up to, in cents."""
    totals = {0}
    for amount in dict.fromkeys(amounts):
        totals |= {total + round(amount * 100) for total in totals}
    return totals


def _fields_of_money(tree: Any) -> list[Stated]:
    """Return the numbers of a tree that stand under a name of money."""
    return [
        Stated(str(node), (abs(float(node)),), 1.0 if isinstance(node, int) else 0.01)
        for path, node in _nodes(tree)
        if isinstance(node, int | float) and not isinstance(node, bool) and abs(node) < _LARGEST
        if any(map(_OF_MONEY.search, path))
    ]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_HYPHENS)


def _tree(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"\\[nrt]", " ", text)  # as in what a language prints of its own values


def _nodes(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what a tree holds, JSON within its texts too, with the names of the fields above."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        if isinstance(node, dict):
            waiting += [((*path, name), value) for name, value in node.items()]
        elif isinstance(node, list):
            waiting += [(path, value) for value in node]
        elif isinstance(node, str) and node.lstrip().startswith(("{", "[")):
            inner = _tree(node)
            waiting += [] if isinstance(inner, str) else [(path, inner)]


def _leaves(tree: Any) -> Iterator[str]:
    for _, node in _nodes(tree):
        if isinstance(node, dict):
            yield " ".join(node)
        elif node is not None and not isinstance(node, list):
            yield str(node)


def _sums(tree: Any) -> Iterator[float]:
    """Yield the sum over each list of each field that its entries have."""
    for _, node in _nodes(tree):
        if isinstance(node, list):
            columns: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for path, number in (found for entry in node for found in _nodes(entry)):
                if isinstance(number, int | float) and abs(number) < _LARGEST:
                    columns[path] += number
            yield from columns.values()


def _numbers_in(plain: str) -> Iterator[float]:
    for found in _IN_TEXT.finditer(plain):
        written, word = found["number1"], found["scale1"]
        apart = written.split(" ") if written else ()
        for number in {*apart, *([written] if written else [])}:
            for reading in _readings(number):
                yield from (reading, reading * _SCALES[word.casefold()] if word else reading)


def _readings(number: str) -> Iterator[float]:
    """Yield what a number may mean, the likeliest first: commas and points group or part it."""
    number = re.sub(r"[ _']", "", number)
    for group, point in ((",", "."), (".", ",")):
        whole, _, decimals = number.partition(point)
        first, *groups = whole.split(group)
        grouped = all(len(digits) in (2, 3) for digits in groups) and len([*groups, "000"][-1]) == 3
        if grouped and group not in decimals and point not in decimals:
            yield float(f"{first}{''.join(groups)}.{decimals or 0}")


def _any_spelling(name: str) -> str:
    between = "-" if "@" in name or "/" in name else r"[-_ #\u2013]*"
    parts = (re.escape(part) for part in name.casefold().split("-"))
    return rf"(?<![^\W_]){between.join(parts)}(?![^\W_])"
