"""The living documents: Markdown for people, in which every number names the field it comes from.

A template holds words and no digits. What it shows of a run it asks for by artifact and field; the
fields stand in a line under each section and in the document's ``quotes``, so that a number without
a source cannot get in unnoticed. What a run has not made yet is said, with the step that makes it,
and a sentence stands only where the fields that make it true are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safety_lib.artifacts import ArtifactError, read_artifact, read_experiment
from safety_lib.files import write_text
from safety_lib.gate.rules import load_rules
from safety_lib.records import Artifact, GateReport, IncidentReport, Record, StressFailures, Suite
from safety_lib.report.markdown import code
from safety_lib.report.metrics import METRICS
from safety_lib.report.words import GLOSSARY
from safety_lib.text import p_value, percent, points
from safety_lib.world import WorldError, load_world

ABOUT = {
    "exec_summary": "What the gate decided about the release, and what that does not say.",
    "threat_model": "Who attacks, what must not happen, what was tried and what was not.",
    "failure_budget": "The thresholds of the gate, and how much of them is spent.",
    "launch_checklist": "What has to be there before a release, ticked by the artifacts alone.",
    "oncall_playbook": "What to do when an incident comes in, with the last one as an example.",
    "metrics_glossary": "Every word and every measured quantity: what it says, who computes it.",
    "security_review_checklist": "What a security review looks at, ticked by the artifacts alone.",
    "model_card_safety": "What was measured about the safety of the candidate, and its limits.",
    "interview_onepager": "The four steps on one page, with what came out of each.",
    "postmortem": "What is known of the last incident that was replayed, and what is not.",
}
"""Each document with the question that it answers, in a sentence that is true of any run."""

DOCUMENTS = tuple(ABOUT)

_KINDS: dict[str, type[Artifact]] = {
    "stress_failures": StressFailures,
    "regression_tests": Suite,
    "gate_report": GateReport,
    "incident_replay": IncidentReport,
}
_EXPERIMENTS = ("detection_latency", "early_warning", "mutation_adequacy")
_STEPS = {
    **dict.fromkeys(_EXPERIMENTS, "make experiments"),
    "stress_failures": "python -m safety_lib stress",
    "regression_tests": "python -m safety_lib regress",
    "gate_report": "python -m safety_lib gate",
    "incident_replay": "python -m safety_lib replay",
    "gate_policy": "python -m safety_lib gate",
    "policy": "python -m safety_lib stress",
}
_TEMPLATES = Path(__file__).with_name("templates") / "documents"

_ENTRY = re.compile(r"\[\d+\]|(?<=\bby_category)\.[^.]+|(?<=\bby_attack_type)\.[^.]+")
# Marks a value with the number of its quote while a template is rendered; no value can hold it.
_MARK = re.compile("\x01(\\d+)\x02")

Step = str | int
Evidence = dict[str, dict[str, Any]]


class Quote(Record):
    """A value that a document shows: as it is written there, and the field that holds it."""

    text: str
    artifact: str
    path: tuple[Step, ...]
    form: str

    @property
    def field(self) -> str:
        """The path as people write it, such as ``summary[1].failures``."""
        parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path]
        return "".join(parts).lstrip(".")


class Section(Record):
    """A heading with what stands under it. ``quotes`` explains each digit, in reading order."""

    body: str
    quotes: tuple[Quote, ...]

    @property
    def text(self) -> str:
        """The section and, in a line under it, the fields that its values come from."""
        fields: dict[str, dict[str, None]] = {}
        for quote in self.quotes:
            each = _ENTRY.sub("[]", quote.field)  # the entries of a list are one field
            fields.setdefault(_source(quote.artifact), {})[code(each)] = None
        named = "; ".join(f"{source}, {', '.join(found)}" for source, found in fields.items())
        return f"{self.body}\n\n*Source: {named}*" if named else self.body


class Document(Record):
    """A rendered document, section by section."""

    name: str
    sections: tuple[Section, ...]

    @property
    def body(self) -> str:
        """What is told, without its sources."""
        return "\n\n".join(section.body for section in self.sections) + "\n"

    @property
    def quotes(self) -> tuple[Quote, ...]:
        """Every value that is shown, in the order of reading."""
        return tuple(quote for section in self.sections for quote in section.quotes)

    @property
    def text(self) -> str:
        """What is told and, under each section, where it comes from."""
        return "\n\n".join(section.text for section in self.sections) + "\n"


def read_evidence(artifacts_dir: str | Path) -> Evidence:
    """Read what a run has made so far, by artifact; what is not there is left out.

    The gate's rules are evidence only for a report that they judged.

    Raises
    ------
    ArtifactError
        If a file is there and damaged.
    """
    folder = Path(artifacts_dir)
    found = {
        name: read_artifact(folder, kind).model_dump(mode="json")
        for name, kind in _KINDS.items()
        if (folder / f"{name}.json").exists()
    }
    for name in _EXPERIMENTS if found else ():
        with suppress(ArtifactError):  # one that is not there; each takes minutes
            found[name] = read_experiment(folder, name).model_dump(mode="json")
    rules = load_rules()
    if found.get("gate_report", {}).get("gate_policy_sha256") == rules.sha256:
        found["gate_policy"] = rules.model_dump(mode="json")
    worlds = {
        (tree["world"], tree["world_sha256"]) for name, tree in found.items() if name in _KINDS
    }
    for world, sha256 in worlds:
        with suppress(WorldError):  # one that is not packaged, and was not given
            here = load_world(world)
            if here.sha256 == sha256:
                found["policy"] = here.policy.model_dump(mode="json")
    return found


def value_at(tree: Any, path: tuple[Step, ...]) -> Any:
    """Return the value that a path leads to.

    Raises
    ------
    LookupError
        If there is no such field.

    Examples
    --------
    >>> value_at({"summary": [{"failures": 4}]}, ("summary", 0, "failures"))
    4
    """
    for step in path:
        tree = tree[step]
    return tree


def written(value: Any, form: str = "plain") -> str:
    """Return a value as a document shows it: a function of the value alone.

    Parameters
    ----------
    value : Any
        What the artifact's field holds.
    form : {"plain", "percent", "points", "p", "length"}
        ``length`` is the number of entries.

    Examples
    --------
    >>> written(0.4533, "percent"), written(1247), written(None), written(["a", "b"], "length")
    ('45.3%', '1,247', 'not measured', '2')
    """
    return "not measured" if value is None else _FORMS[form](value)


def render_documents(evidence: Evidence, names: Iterable[str] = DOCUMENTS) -> tuple[Document, ...]:
    """Render the nine documents and the postmortem of the last incident.

    Parameters
    ----------
    evidence : dict
        As :func:`read_evidence` returns it.
    names : iterable of str, optional
        Which; all of ``DOCUMENTS`` by default.

    Returns
    -------
    tuple of Document
        In the order of their names.
    """
    return tuple(_render(name, evidence) for name in names)


def write_documents(artifacts_dir: str | Path, names: Iterable[str] = DOCUMENTS) -> list[Path]:
    """Render documents from the artifacts of a folder into its ``docs/``.

    Parameters
    ----------
    artifacts_dir : str or Path
        Where the artifacts are.
    names : iterable of str, optional
        Which; all of ``DOCUMENTS`` by default.

    Returns
    -------
    list of Path
        The files, in the order of their names.
    """
    folder = Path(artifacts_dir)
    return [
        write_text(folder / "docs" / f"{document.name}.md", document.text)
        for document in render_documents(read_evidence(folder), names)
    ]


def _render(name: str, evidence: Evidence) -> Document:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    quotes: list[Quote] = []

    def get(artifact: str, *path: Step) -> Any:
        return value_at(evidence[artifact], path)

    def show(artifact: str, *path: Step, form: str = "plain") -> str:
        quote = Quote(
            text=written(get(artifact, *path), form), artifact=artifact, path=path, form=form
        )
        quotes.append(quote)
        return f"{quote.text}\x01{len(quotes) - 1}\x02"

    def needs(*artifacts: str, caller: Callable[[], str]) -> str:
        lacking = [artifact for artifact in artifacts if artifact not in evidence]
        return "\n".join(_lacking(name) for name in lacking) + "\n" if lacking else caller()

    def box(
        text: str, artifact: str, *path: Step, equal: Any = None, other_than: Any = None
    ) -> str:
        if artifact not in evidence:
            return f"- [ ] {text}. {_lacking(artifact)}"
        value = get(artifact, *path)
        holds = value == equal if equal is not None else value not in (None, other_than)
        found = show(artifact, *path, form="length" if isinstance(value, list) else "plain")
        return f"- [{'x' if holds else ' '}] {text}: {found}"

    def open_box(text: str, why: str) -> str:
        return f"- [ ] {text}: {why}"

    def sign(text: str, role: str) -> str:
        return f"- [ ] {text} ({role}; a person signs this, no artifact can)"

    environment = Environment(  # Markdown, where what comes from outside stands in code spans
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        get=get, show=show, needs=needs, box=box, open_box=open_box, sign=sign,
        has=evidence.__contains__, code=code, word=_word, metrics=METRICS, words=GLOSSARY,
        source=_source, came_back=_came_back(evidence),
    )  # fmt: skip
    marked = environment.get_template(f"{name}.md").render()
    return Document(
        name=name,
        sections=tuple(
            Section(
                body=_MARK.sub("", part).strip(),
                quotes=tuple(quotes[int(number)] for number in _MARK.findall(part)),
            )
            for part in re.split("^(?=## )", marked, flags=re.MULTILINE)
        ),
    )


def _word(text: str) -> str:
    """Return a name of ours as it is, and what somebody else called so as code."""
    return text if re.fullmatch(r"[\w ]+", text) else code(text, 60)


def _came_back(evidence: Evidence) -> bool:
    """Whether the incident broke a rule when it was held again; without that it has no cause."""
    replayed = evidence.get("incident_replay")
    return bool(replayed and replayed["rule_id"] and replayed["reproduction"]["k"])


def _lacking(artifact: str) -> str:
    if artifact in ("gate_policy", "policy"):
        return f"No evidence yet that {_source(artifact)} was judged by: `{_STEPS[artifact]}`."
    return f"No evidence yet: {_source(artifact)} is made by `{_STEPS[artifact]}`."


def _source(artifact: str) -> str:
    if artifact == "gate_policy":
        return "`safety_lib/gate/policy.yaml` (its hash stands in `gate_report.json`)"
    if artifact == "policy":
        return "`policy.yaml` of the world (its hash stands in each artifact)"
    return f"`experiments/{artifact}.json`" if artifact in _EXPERIMENTS else f"`{artifact}.json`"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return code(value, 400)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


_FORMS: dict[str, Callable[[Any], str]] = {
    "plain": _plain,
    "percent": percent,
    "points": points,
    "p": p_value,
    "length": lambda entries: f"{len(entries):,}",
}
