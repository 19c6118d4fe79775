"""What the readers share: what a file begins with, how it is parsed, and names that can be shown.

A file comes from anywhere and holds what models and attackers wrote. It is read for the few fields
that are asked for, and whatever is wrong with it is one line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from safety_lib.results.table import ResultsError, Sample
from safety_lib.text import count, one_line

MOST_SAMPLES = 5_000_000
LONGEST_TITLE = 160
LONGEST_FIELD = 4000
DEEPEST_FIELD = 6
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Held(NamedTuple):
    """What one file of a tool holds.

    Attributes
    ----------
    samples : list of Sample
        Its trials.
    subject : str
        What was tested, such as a model; a folder holds results of one.
    scope : str
        Which tests these are, such as a task; where a folder holds several, a test is named after
        its scope, so that test 1 of one is not taken for test 1 of another.
    run, written : str
        The tool's own name of the run, and when it was written: a run that was taken up again is
        in several files, of which the last one counts.
    model_calls : int or None
        How often a model was asked, where the file says so.
    graded_by_model : bool
        Whether a model said what passes.
    notes : tuple of str
        What was not read, and why.
    beside : tuple of Path
        Other files that were read with it.
    """

    samples: list[Sample]
    subject: str = ""
    scope: str = ""
    run: str = ""
    written: str = ""
    model_calls: int | None = None
    graded_by_model: bool = False
    notes: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()


class OfATool(BaseModel):
    """A part of a file: the fields that are read, as the types that they are; others are passed."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


T = TypeVar("T")


def refused(path: Path, what: str, advice: str = "") -> ResultsError:
    """Return the one line that refuses a file.

    Parameters
    ----------
    path : Path
        Of the file; its name is told.
    what : str
        What is wrong with it.
    advice : str
        What to do about it.

    Returns
    -------
    ResultsError
        To be raised.
    """
    line = f"{one_line(path.name, 60)}: {one_line(what, 240)}"
    return ResultsError(f"{line}; {advice}" if advice else line)


def glimpse(head: bytes) -> Any:
    """Return what the first bytes of a file hold as JSON, as far as they go, or None.

    Examples
    --------
    >>> glimpse(b'{"version": 2, "eval": {"task": "t", "mod')
    {'version': 2, 'eval': {'task': 't'}}
    >>> glimpse(b"test,outcome")
    """
    text = head.decode("utf-8-sig", "ignore").lstrip()
    if not text.startswith(("{", "[")):
        return None
    try:
        return from_json(_SURROGATE.sub("?", text), allow_partial=True)
    except ValueError:
        return None


def keys_of(head: bytes) -> set[str]:
    """Return the keys of the object that a file begins with; of another file none."""
    seen = glimpse(head)
    return set(seen) if isinstance(seen, dict) else set()


def parsed(path: Path, content: bytes, shape: type[T], what: str, at: str = "") -> T:
    """Return the fields of a JSON text that are read.

    Parameters
    ----------
    path : Path
        Where it stands, for messages.
    content : bytes
        JSON in UTF-8.
    shape : type
        What it holds; everything else in it is passed over.
    what : str
        What it should be, such as ``an Inspect log``.
    at : str
        Where in the file it stands, where it is a part of it.

    Raises
    ------
    ResultsError
        If it is not JSON, or a field that is read is missing or of another type.
    """
    adapter: TypeAdapter[T] = _adapter(shape)  # type: ignore[arg-type]
    try:
        try:
            return adapter.validate_json(content.removeprefix(b"\xef\xbb\xbf"))
        except ValidationError as error:
            if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
                raise
            # It is stricter than what tools write: half of a surrogate pair, a large number.
            return adapter.validate_python(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (*([at] if at else []), *first["loc"]))) or "its top"
        raise refused(path, f"not {what} that is read: {place}: {first['msg']}") from None
    except RecursionError:
        raise refused(path, "nested too deeply") from None
    except UnicodeDecodeError as error:
        raise refused(path, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" + (f" of {at}" if at else "")
        raise refused(path, f"not JSON at {where}, so cut off or damaged") from None
    except ValueError as error:  # a number of thousands of digits
        raise refused(path, f"not JSON: {error}") from None


@lru_cache(maxsize=64)
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def content_of(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises
    ------
    ResultsError
        If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None


def title(*words: object) -> str:
    r"""Return the name of a test: on one line, short, and different where what was told differs.

    Examples
    --------
    >>> title("banking", "user_task_0")
    'banking/user_task_0'
    >>> len(title("a" * 100_000)), title("a" * 100_000) == title("a" * 100_001)
    (160, False)
    """
    whole = "/".join(str(word) for word in words)
    shown = one_line(whole, LONGEST_TITLE)
    if shown == whole and shown:
        return shown
    mark = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{one_line(whole, LONGEST_TITLE - 9)} {mark}".lstrip()


def leaves(tree: Any, above: str, depth: int = DEEPEST_FIELD) -> Iterator[tuple[str, Any]]:
    """Yield the single values of a tree with their dotted names; empty ones are left out.

    Parameters
    ----------
    tree : object
        Values, lists and objects.
    above : str
        The name of what it stands in.
    depth : int
        How far down to go; what is deeper is left out.

    Examples
    --------
    >>> dict(leaves({"rule": "R1", "from": {"page": 3, "of": None}}, "metadata"))
    {'metadata.rule': 'R1', 'metadata.from.page': 3}
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if depth:
                yield from leaves(value, f"{above}.{key}", depth - 1)
    elif isinstance(tree, list):
        plain = [value for value in tree if not isinstance(value, list | dict)]
        if plain and len(plain) == len(tree):
            yield above, ", ".join(map(str, plain))
    elif tree not in (None, "") and tree == tree:  # a number that is none is not
        yield above, tree


def showable(sample: Sample) -> Sample:
    r"""Return a sample whose fields may be written: texts cut, and without halves of characters.

    Examples
    --------
    >>> showable(Sample("a", 1, "safe", {"said": chr(0xD83D)})).fields
    {'said': '\\ud83d'}
    """
    fields = {
        _whole(name): _whole(value) if isinstance(value, str) else value
        for name, value in sample.fields.items()
    }
    return sample._replace(fields=fields)


def _whole(text: str) -> str:
    text = text[:LONGEST_FIELD]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def numbered(samples: Iterable[Sample]) -> list[Sample]:
    """Return samples whose trials are numbered by test, in the order in which they stand.

    Examples
    --------
    >>> [s.trial for s in numbered([Sample("a", 1, "safe"), Sample("a", 1, "safe")])]
    [1, 2]
    """
    seen: Counter[str] = Counter()
    numbered = []
    for sample in samples:
        seen[sample.test] += 1
        numbered.append(sample._replace(trial=seen[sample.test]))
    return numbered


def told_apart(names: Sequence[str], what: Sequence[object]) -> list[str]:
    """Return names that differ where what they name differs.

    Parameters
    ----------
    names : sequence of str
        What a tool, or somebody, called each.
    what : sequence
        What each is; the same test stands there as often as it was tried.

    Examples
    --------
    >>> told_apart(["a", "a", "a", "b"], ["asks x", "asks y", "asks x", "asks z"])
    ['a', 'a #2', 'a', 'b']
    """
    known: dict[str, dict[object, int]] = {}
    numbers = []
    for name, one in zip(names, what, strict=True):
        of_name = known.setdefault(name, {})
        numbers.append(of_name.setdefault(one, len(of_name) + 1))
    return [
        name if number == 1 else f"{name} #{number}"
        for name, number in zip(names, numbers, strict=True)
    ]


def several(names: Iterable[str]) -> str:
    """Return some of many names, and how many there are.

    Examples
    --------
    >>> several(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = list(names)
    shown = ", ".join(one_line(name, 40) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def noted(number: int, noun: str, what: str) -> tuple[str, ...]:
    """Return a note on how many there were of something.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        Of what, for one.
    what : str
        What is to be said of them.

    Returns
    -------
    tuple of str
        Empty where there were none.
    """
    return (f"{count(number, noun)} {what}",) if number else ()
