"""YAML as plain data: no date, set or object, no name twice, and no bomb of aliases.

What a file was told is looked at before anything is made of it, since 500 bytes of aliases can
stand for a billion entries.
"""

from __future__ import annotations

from typing import Any

import yaml

from safety_lib.text import one_line

MOST_DEPTH = 100
MOST_ENTRIES = 50_000


class PlainYamlError(ValueError):
    """A text that is no YAML, or no plain data; the message is the line and what is wrong there."""


def load_plain(text: str) -> Any:
    """Return the value that a YAML text stands for: mappings by name, lists, texts, numbers.

    Parameters
    ----------
    text : str
        One document.

    Raises
    ------
    PlainYamlError
        If it is anything else.

    Examples
    --------
    >>> load_plain("{1: [a, yes], since: 2024-01-01}")
    {'1': ['a', True], 'since': '2024-01-01'}
    """
    loader = None
    try:
        loader = _Plain(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        none = "" if isinstance(error, _Fault | yaml.constructor.ConstructorError) else "not YAML: "
        raise PlainYamlError(f"{where}{none}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise PlainYamlError(f"not YAML: {one_line(error)}") from error
    except RecursionError:
        raise PlainYamlError(too_deep(MOST_DEPTH)) from None
    finally:
        if loader is not None:
            loader.dispose()


def too_deep(most: int) -> str:
    """Say that something is nested more than so many levels deep.

    Examples
    --------
    >>> too_deep(100)
    'nested too deeply, more than 100 levels'
    """
    return f"nested too deeply, more than {most} levels"


_TAG = "tag:yaml.org,2002:"
_PLAIN = tuple(f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_MERGE = f"{_TAG}merge"


class _Plain(yaml.SafeLoader):
    """Reads plain data. What it was told is looked at before anything is made of it."""

    composed = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Composing is slow and goes as deep as what it reads, so neither is left to its end.
        self.composed += 1
        self.depth += 1
        if self.composed > MOST_ENTRIES:
            raise self._here(f"more than {MOST_ENTRIES:,} entries")
        if self.depth > MOST_DEPTH:
            raise self._here(too_deep(MOST_DEPTH))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _here(self, what: str) -> yaml.MarkedYAMLError:
        return _Fault(None, None, what, self.get_mark())

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _expect_plain(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            shown = one_line(repr(node.value), 40) if isinstance(node.value, str) else "this"
            kind = node.tag.removeprefix(_TAG)
            raise _fault(node, f"{shown} is no {kind}") from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:  # base 60, which nobody means
            return node.value
        number = super().construct_yaml_int(node)
        if abs(number) >= 1 << 63:
            raise OverflowError
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        return super().construct_yaml_float(node)


_Plain.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (*_PLAIN, None)
}
_Plain.add_constructor(f"{_TAG}int", _Plain.construct_yaml_int)
_Plain.add_constructor(f"{_TAG}float", _Plain.construct_yaml_float)
_Plain.yaml_implicit_resolvers = {
    sign: [(tag, looks) for tag, looks in found if tag in (*_PLAIN, _MERGE)]
    for sign, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _expect_plain(root: yaml.Node) -> None:
    """Look at the nodes of a file once each, the innermost first: what they would come to."""
    size: dict[int, int] = {}
    depth: dict[int, int] = {}
    open_: set[int] = set()
    todo: list[tuple[yaml.Node, bool]] = [(root, False)]
    while todo:
        node, seen = todo.pop()
        here = id(node)
        if here in size:
            continue
        inner = _parts(node)
        if not seen:
            if here in open_:
                raise _fault(node, "an alias that stands inside what it is an alias of")
            open_.add(here)
            todo += [(node, True), *((part, False) for part in inner)]
            continue
        open_.discard(here)
        size[here] = 1 + sum(size[id(part)] for part in inner)
        depth[here] = 1 + max((depth[id(part)] for part in inner), default=0)
        if size[here] > MOST_ENTRIES:
            raise _fault(node, f"with its aliases it is more than {MOST_ENTRIES:,} entries")
        if depth[here] > MOST_DEPTH:
            raise _fault(node, too_deep(MOST_DEPTH))


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise _fault(name, "the name of an entry is no text")
        if name.tag == _MERGE:
            continue
        name.tag = f"{_TAG}str"
        if name.value in seen:
            raise _fault(name, f"{one_line(repr(name.value), 60)} stands there twice")
        seen.add(name.value)
    return [value for _, value in node.value]


class _Fault(yaml.MarkedYAMLError):
    """YAML that says what cannot be meant."""


def _fault(node: yaml.Node, what: str) -> _Fault:
    return _Fault(None, None, what, node.start_mark)
