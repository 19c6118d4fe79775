"""The API reference: what every module offers, from its docstrings, as one page.

The source is read and not imported, so that what needs an extra is in the reference as well.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import safety_lib

PACKAGE = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
_LISTED = ("Parameters", "Attributes", "Returns", "Yields", "Raises")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_WIDE = 80

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Described:
    """One entry of a section that lists: a parameter, what comes back, what is raised."""

    name: str
    text: str


@dataclass(frozen=True)
class Doc:
    """A docstring taken apart: its first sentence, what follows it, and its sections in order."""

    summary: str = ""
    body: str = ""
    sections: tuple[tuple[str, str | tuple[Described, ...]], ...] = ()


@dataclass(frozen=True)
class Entry:
    """A module, a class, a function or a method, and what stands in it."""

    anchor: str
    name: str
    signature: str = ""
    doc: Doc = field(default_factory=Doc)
    members: tuple[Entry, ...] = ()


def modules() -> Iterator[Entry]:
    """Yield every public module of the package, in the order of their names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(part.startswith("_") for part in name.split(".")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = tuple(_entries(tree.body, name))
            yield Entry(name, name, doc=read_docstring(ast.get_docstring(tree)), members=found)


def _entries(body: Sequence[ast.stmt], inside: str) -> Iterator[Entry]:
    for node in body:
        if not isinstance(node, _Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        of_class = isinstance(node, ast.ClassDef)
        yield Entry(
            f"{inside}.{node.name}",
            node.name,
            _class_line(node) if isinstance(node, ast.ClassDef) else signature_of(node),
            read_docstring(ast.get_docstring(node)),
            tuple(_entries(node.body, f"{inside}.{node.name}")) if of_class else (),
        )


def _class_line(node: ast.ClassDef) -> str:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    fields = [
        ast.unparse(item)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_")
    ]
    return "\n    ".join([f"class {node.name}{f'({bases})' if bases else ''}", *fields])


def signature_of(node: _Function) -> str:
    """Return a function as it is called: on one line where it fits, else a parameter a line."""
    takes = _parameters(node.args)
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if takes[:1] in (["self"], ["cls"]):
        takes = takes[1:]
    if any(name.endswith("property") for name in decorators):
        return f"{node.name}{returns.replace(' ->', ':')}"
    line = f"{node.name}({', '.join(takes)}){returns}"
    if len(line) <= _WIDE:
        return line
    return "\n".join([f"{node.name}(", *(f"    {one}," for one in takes), f"){returns}"])


def _parameters(given: ast.arguments) -> list[str]:
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + [*given.defaults]
    takes = [_parameter(*pair) for pair in zip(plain, defaults, strict=True)]
    if given.posonlyargs:
        takes.insert(len(given.posonlyargs), "/")
    if given.vararg:
        takes.append(f"*{_parameter(given.vararg, None)}")
    elif given.kwonlyargs:
        takes.append("*")
    takes += [_parameter(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*takes, *([f"**{_parameter(given.kwarg, None)}"] if given.kwarg else [])]


def _parameter(given: ast.arg, default: ast.expr | None) -> str:
    # The default is spaced as PEP 8 has it, with an annotation and without.
    name = f"{given.arg}: {ast.unparse(given.annotation)}" if given.annotation else given.arg
    if default is None:
        return name
    return (
        f"{name} = {ast.unparse(default)}"
        if given.annotation
        else (f"{name}={ast.unparse(default)}")
    )


def read_docstring(text: str | None) -> Doc:
    r"""Take a numpydoc docstring apart.

    Examples
    --------
    >>> doc = read_docstring("Add.\n\nReturns\n-------\nint\n    The sum.")
    >>> doc.summary, doc.sections
    ('Add.', (('Returns', (Described(name='int', text='The sum.'),)),))
    """
    start, *rest = _HEADING.split(inspect.cleandoc(text or ""))
    summary, _, body = start.strip().partition("\n\n")
    sections = tuple(
        (title, tuple(_described(section)) if title in _LISTED else section.strip("\n"))
        for title, section in zip(rest[::2], rest[1::2], strict=True)
    )
    return Doc(" ".join(summary.split()), body.strip("\n"), sections)


def _described(section: str) -> Iterator[Described]:
    for part in re.split(r"\n(?=\S)", section.strip("\n")):
        name, _, text = part.partition("\n")
        yield Described(name, dedent(text).strip("\n"))


# --------------------------------------------------------------------------- the page


def render_api(html_of: Callable[[str], str], style: str) -> str:
    """Return the reference as one self-contained page.

    Parameters
    ----------
    html_of : callable
        Makes HTML of Markdown.
    style : str
        Style sheet of the site's pages.

    Returns
    -------
    str
        The same bytes for the same sources.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    every = list(modules())
    environment = Environment(
        loader=PackageLoader("safety_lib.pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    classes = {
        one.name: one.anchor for m in every for one in m.members if one.signature[:6] == "class "
    }
    environment.filters["prose"] = lambda text: html_of(_markdown(text))
    environment.filters["linked"] = lambda code: _linked(code, classes)
    return environment.get_template("api.html").render(
        style=style, modules=every, front_door=_front_door(every)
    )


def _front_door(every: Sequence[Entry]) -> list[Entry]:
    modules = {module.name: module for module in every}
    found = []
    for name in safety_lib._HOMES:
        at = safety_lib.__getattr__(name)
        module = modules[at.__name__ if isinstance(at, ModuleType) else at.__module__]
        found.append(next((one for one in module.members if one.name == name), module))
    return found


def _markdown(text: str) -> str:
    """Return the little of reStructuredText that docstrings use as Markdown."""
    return re.sub(r"::$", ":", _ROLE.sub(r"`\1`", text), flags=re.MULTILINE)


def _linked(code: str, classes: dict[str, str]) -> str:
    """Return a signature with each class of the library that it names as a link."""
    own = re.match(r"(?:class )?\w+", code)
    start = own.end() if own else 0
    words = re.split(r"(\w+)", code[start:])
    return escape(code[:start]) + "".join(
        f'<a href="#{classes[word]}">{word}</a>' if word in classes else escape(word)
        for word in words
    )
