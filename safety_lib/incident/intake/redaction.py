"""Personal data goes out before anything is written: placeholders that are the same for the same.

What users of a live agent said holds addresses and numbers of people. Each is replaced by a
placeholder that names its kind and counts its values: ``[email-1]@post.example``, ``[phone-2]``.
One value has one placeholder wherever it stands in an import, in messages, replies, arguments and
results, so a rule that asks whether the user said a value still finds out. An address keeps its
domain, and amounts, dates and ids of other forms stay as they are.

This is no promise that nothing personal is left. Names, street addresses, dates of birth and
whatever else is told in words are not found; nor are addresses that are spelled out ("dana at
post dot example"), numbers without a form of their own (a telephone number without ``+``, a leading
zero or separators looks like any other id), cards and IBANs with a wrong check digit unless they
stand in groups of four, and text that is encoded. A domain can be a person's own. Patterns of one's
own go after what the built-in ones cannot know.

A rule that compares a value with what the world holds, such as a customer's own address, sees a
placeholder instead and decides otherwise: an import counts where it does. An incident that is
redacted is replayed with its placeholders: a tool that looks a value up does not find it, and the
incident may not come back for that alone. ``keep`` spares what either needs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safety_lib.artifacts import ArtifactError
from safety_lib.files import FileError, read_yaml
from safety_lib.text import one_line

_PLACEHOLDER = re.compile(r"\[([a-z][a-z0-9_]{0,30})-([1-9][0-9]{0,8})\]")
# A backslash escape of a text inside a text, such as \n, is no letter that a number hangs on; what
# stands behind a decimal point is no number of its own.
_BEFORE = r"(?:(?<![^\W_])|(?<=\\[nrt]))(?<![0-9][.,])"
_AFTER = r"(?![^\W_])"
_AT = re.compile(r"@(?=((?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}))")
_LOCAL = re.compile(r"[^\s@<>()\[\]{}|\"“”,;:\\/=&?`]")
_QUOTED = re.compile(r'"[^"\n]{1,64}"\Z')
_LONGEST_LOCAL = 64
_IBAN_HERE = re.compile(rf"{_BEFORE}(?=[A-Za-z]{{2}}[0-9]{{2}}[ -]?[A-Za-z0-9])")
_IBAN = re.compile(r"[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IN_FOURS = re.compile(r"[A-Z]{2}[0-9]{2}(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,4})?")
_FEWEST_DIGITS_IN_FOURS = 10
_DIGITS = re.compile(rf"{_BEFORE}[0-9](?:[ -]?[0-9]){{12,}}{_AFTER}")
_SHORTEST_OF_AN_IBAN = 15
_GROUP = re.compile(r"[0-9]+")
_PHONE = re.compile(
    rf"{_BEFORE}(?:"
    r"\+[0-9][ ()./-]{0,3}(?:[0-9][ ()./-]{0,3}){6,13}[0-9]"
    r"|\(0?[0-9]{2,4}\)[ ]?[0-9]{3,4}[ .-]?[0-9]{3,5}"
    r"|[0-9]{3}[-. ][0-9]{3}[-. ][0-9]{4}"
    r"|0[1-9][0-9]{8,10}"
    r"|00[1-9][0-9]{8,12}"
    r"|0[0-9]{1,4}[ /-][0-9]{3,9}(?:[ /-]?[0-9]{2,5}){0,3}"
    rf"){_AFTER}"
)
_FEWEST_DIGITS_OF_A_PHONE = 9
_USUAL_GROUPS = ([4, 4, 4, 4], [4, 6, 5], [4, 4, 4, 4, 3])
_LONGEST_OF_A_CARD, _SHORTEST_OF_A_CARD = 19, 13
_WORTH_A_LOOK = re.compile("[0-9@]")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}\Z")
_LONGEST_PLACEHOLDER = 43


class _Hit(NamedTuple):
    """Where a value stands, and what is the same of all its spellings."""

    start: int
    end: int
    value: str


_Finder = Callable[[str], Iterator[_Hit]]


class Redaction:
    """Replaces personal data by placeholders, the same for the same value; one for each import.

    Parameters
    ----------
    also : Mapping, optional
        Name to regular expression: what else to replace, by ``[name-1]``.
    keep : iterable of str, optional
        Regular expressions; a value that one of them finds something in stays.

    Raises
    ------
    ArtifactError
        If a name is no word in lower case, or an expression is none or matches the empty text.

    Examples
    --------
    >>> redaction = Redaction(also={"booking": "BK-[0-9]+"}, keep=["@desk[.]example$"])
    >>> redaction.of("Dana.W@post.example asks help@desk.example about BK-17; her card is "
    ...              "4111 1111 1111 1111")
    '[email-1]@post.example asks help@desk.example about [booking-1]; her card is [card-1]'
    >>> redaction.of({"to": "dana.w@post.example", "amount": 1200})
    {'to': '[email-1]@post.example', 'amount': 1200}
    """

    def __init__(self, also: Mapping[str, str] | None = None, keep: Iterable[str] = ()) -> None:
        self._keep = [_compiled("keep", text) for text in keep]
        self._finders = dict(_BUILT_IN)
        for name, text in (also or {}).items():
            if not _NAME.match(str(name)) or name in self._finders:
                raise ArtifactError(
                    f"redaction: {one_line(str(name))!r} is no name for a pattern; use a word in "
                    f"lower case other than {', '.join(self._finders)}"
                )
            self._finders[name] = _matches_of(_compiled(name, text))
        self._known: dict[str, dict[str, int]] = {name: {} for name in self._finders}
        self.found: Counter[str] = Counter()

    def of(self, value: Any) -> Any:
        """Return a value without personal data: a text, or a tree of JSON with its keys.

        A text that is JSON itself is read and replaced inside, escapes included. A number that is
        one of a card becomes the text of its placeholder.
        """
        if isinstance(value, str):
            return self._of_text(value)
        if isinstance(value, Mapping):
            return {self.of(key): self.of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(inner) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = json.dumps(value)
            replaced = self._of_plain(text)
            return value if replaced == text else replaced
        return value

    def count(self, tree: Any) -> None:
        """Count the placeholders that stand in what will be written, by their kind."""
        if isinstance(tree, str):
            for kind, number in _PLACEHOLDER.findall(tree):
                if int(number) <= len(self._known.get(kind, ())):
                    self.found[kind] += 1
        elif isinstance(tree, Mapping):
            self.count([*tree.keys(), *tree.values()])
        elif isinstance(tree, list | tuple):
            for inner in tree:
                self.count(inner)

    def __str__(self) -> str:
        told = [
            f"{self.found[kind]:,} {kind} ({len(values):,} different)"
            for kind, values in self._known.items()
            if values
        ]
        return f"redacted: {', '.join(told) or 'nothing was found'}"

    def _of_text(self, text: str) -> str:
        if text[:1] in ("{", "[", '"') or text[:1].isspace():
            try:
                tree = json.loads(text)
                replaced = self.of(tree) if isinstance(tree, dict | list | str) else None
            except (ValueError, RecursionError):
                replaced = None
            if replaced is not None:
                return text if replaced == tree else json.dumps(replaced, ensure_ascii=False)
        return self._of_plain(text)

    def _of_plain(self, text: str) -> str:
        # What was replaced can lay bare what was no value beside it: until nothing is found.
        while (replaced := self._once(text)) != text:
            text = replaced
        return text

    def _once(self, text: str) -> str:
        plain = _WORTH_A_LOOK.search(text) is None
        for kind, finder in self._finders.items():
            if plain and kind in _BUILT_IN:
                continue
            done, parts = 0, []
            for start, end, value in finder(text):
                if start < done or self._stays(text, start, end):
                    continue
                known = self._known[kind]
                number = known.setdefault(value, len(known) + 1)
                parts += [text[done:start], f"[{kind}-{number}]"]
                done = end
            if parts:
                text = "".join([*parts, text[done:]])
        return text

    def _stays(self, text: str, start: int, end: int) -> bool:
        """Whether a value is to be kept, or is part of a placeholder."""
        before = max(0, start - _LONGEST_PLACEHOLDER)
        for placeholder in _PLACEHOLDER.finditer(text, before, end + _LONGEST_PLACEHOLDER):
            if start < placeholder.end() and placeholder.start() < end:
                return True
        domain = _AT.match(text, end)
        whole = text[start:end] + (f"@{domain.group(1)}" if domain else "")
        return any(keep.search(whole) for keep in self._keep)


def load_redaction(path: str | Path) -> Redaction:
    """Read what else to redact, and what to keep, from a YAML file.

    Parameters
    ----------
    path : str or Path
        ``also:`` maps names to regular expressions, ``keep:`` lists some.

    Returns
    -------
    Redaction
        With the built-in kinds, these, and nothing replaced so far.

    Raises
    ------
    ArtifactError
        With one line, if there is no such file or it holds something else.
    """
    path = Path(path)
    advice = "give a YAML file with `also:` (name: regex) and `keep:` (a list of regexes)"
    try:
        tree = read_yaml(path)
    except FileError as error:
        raise ArtifactError(
            f"{one_line(path.name)}: cannot be read ({error.what}); {advice}"
        ) from error
    if not isinstance(tree, dict) or not tree.keys() <= {"also", "keep"}:
        raise ArtifactError(f"{one_line(path.name)}: is something else; {advice}")
    also, keep = tree.get("also") or {}, tree.get("keep") or []
    texts = [*also.values(), *keep] if isinstance(also, dict) and isinstance(keep, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ArtifactError(f"{one_line(path.name)}: also or keep is something else; {advice}")
    return Redaction(also, keep)


def _compiled(name: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ArtifactError(
            f"redaction: {name}: {one_line(text)!r} is no regular expression ({error})"
        ) from error
    if name != "keep" and pattern.search(""):
        raise ArtifactError(f"redaction: {name}: {one_line(text)!r} matches the empty text")
    return pattern


def _matches_of(pattern: re.Pattern[str]) -> _Finder:
    def found(text: str) -> Iterator[_Hit]:
        for match in pattern.finditer(text):
            if match.end() > match.start():
                yield _Hit(match.start(), match.end(), match.group())

    return found


def _emails(text: str) -> Iterator[_Hit]:
    """Yield what stands before the domain; looked for from the sign on, which takes linear time."""
    for match in _AT.finditer(text):
        end = start = match.start()
        while start and end - start < _LONGEST_LOCAL and _LOCAL.match(text[start - 1]):
            start -= 1
        while start < end and text[start] in "'*~.!#":
            start += 1
        quoted = _QUOTED.search(text, max(0, end - _LONGEST_LOCAL - 2), end)
        start = quoted.start() if quoted else start
        if start < end:
            whole = text[start:end] + "@" + match.group(1)
            yield _Hit(start, end, whole.casefold())


def _ibans(text: str) -> Iterator[_Hit]:
    for here in _IBAN_HERE.finditer(text):
        start = here.start()
        end = _end_of_iban(text, start)
        if end:
            yield _Hit(start, end, re.sub("[ -]", "", text[start:end]).upper())


def _end_of_iban(text: str, start: int) -> int:
    """Return where the longest account number from here ends that checks, or 0."""
    candidate = _IBAN.match(text, start)
    if candidate is None:
        return 0
    # The words after it may look like more of it.
    for end in range(candidate.end(), start + _SHORTEST_OF_AN_IBAN - 1, -1):
        stops = text[end - 1].isalnum() and not text[end : end + 1].isalnum()
        if stops and _is_iban(text[start:end]):
            return end
    fours = _IN_FOURS.match(text, start)
    if fours and sum(map(str.isdigit, fours.group())) >= _FEWEST_DIGITS_IN_FOURS:
        return fours.end()
    return 0


def _is_iban(text: str) -> bool:
    plain = re.sub("[ -]", "", text).upper()
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _cards(text: str) -> Iterator[_Hit]:
    """Yield card numbers, also between other digits that only a blank or a dash keeps apart."""
    for match in _DIGITS.finditer(text):
        groups = [g.span() for g in _GROUP.finditer(text, match.start(), match.end())]
        for first, last in _card_spans(text, groups):
            start, end = groups[first][0], groups[last][1]
            yield _Hit(start, end, re.sub("[ -]", "", text[start:end]))


def _card_spans(text: str, groups: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return which groups are cards: first what looks and checks like one, last what only looks."""
    found: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for first in range(len(groups)):
        digits, lengths = "", []
        for last in range(first, len(groups)):
            start, end = groups[last]
            digits += text[start:end]
            lengths.append(end - start)
            if len(digits) > _LONGEST_OF_A_CARD:
                break
            usual = len(lengths) == 1 or lengths in _USUAL_GROUPS
            long = len(digits) >= _SHORTEST_OF_A_CARD if usual else len(digits) in (15, 16)
            if long and digits[0] in "23456" and _luhn(digits):
                found[0 if usual else 1].append((first, last))
            elif lengths == _USUAL_GROUPS[0]:
                found[2].append((first, last))
    taken: list[tuple[int, int]] = []
    for spans in found.values():
        settled = len(taken)
        for first, last in spans:
            if any(first <= to and start <= last for start, to in taken[:settled]):
                continue
            if len(taken) > settled and first <= taken[-1][1]:
                # Nobody can tell which of two that overlap is the card.
                taken[-1] = (taken[-1][0], max(last, taken[-1][1]))
            else:
                taken.append((first, last))
    return sorted(taken)


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _phones(text: str) -> Iterator[_Hit]:
    for match in _PHONE.finditer(text):
        digits = re.sub("[^0-9+]", "", match.group())
        if len(digits) >= _FEWEST_DIGITS_OF_A_PHONE:
            end = match.end()
            yield _Hit(match.start(), end, digits)


_BUILT_IN: Mapping[str, _Finder] = {
    "iban": _ibans,
    "card": _cards,
    "email": _emails,
    "phone": _phones,
}
