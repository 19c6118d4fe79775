"""JUnit XML of any runner: a file is a run, so that several files are several trials of each test.

The text is parsed without a document type: no entity is ever declared, resolved or fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

from safety_lib.records import Outcome
from safety_lib.results.opening import Held, noted, numbered, refused, title
from safety_lib.results.table import Sample

# The last one that a test case holds and that comes first here is what came of it.
_SAID: dict[str, Outcome] = {
    "failure": "violation",
    "error": "error",
    "skipped": "undetermined",
}
_STARTS = re.compile(rb"<(testsuites?)[\s>/]")


def knows_junit(path: Path, head: bytes) -> bool:
    """Whether a file begins as such XML does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and bool(_STARTS.search(head))


def read_junit(path: Path, max_bytes: int) -> Held:
    """Read one run."""
    cases = _Cases(path)
    try:
        with path.open("rb") as file:
            cases.parser.ParseFile(file)
    except expat.ExpatError as error:
        raise refused(path, f"not XML ({error}), so cut off or damaged") from None
    except (OSError, LookupError, ValueError) as error:  # LookupError: of an encoding
        raise refused(path, f"cannot be read ({error})") from None
    samples = numbered(cases.samples)
    twice = sum(sample.trial > 1 for sample in samples)
    return Held(samples, notes=noted(twice, "test case", "of a name that stood there before"))


class _Cases:
    """The test cases of one file, as they come by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[Sample] = []
        self.suites: list[str] = []
        self.case: dict[str, str] | None = None
        self.said: set[str] = set()
        self.fields: dict[str, Any] = {}
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.EntityDeclHandler = self.refuse

    def refuse(self, *_: object) -> None:
        raise refused(self.path, "XML with a document type, which is not read", "remove it")

    def start(self, tag: str, told: dict[str, str]) -> None:
        if tag == "testsuites" and told.get("name") == "release gate":
            raise refused(
                self.path,
                "a release gate's report, which holds verdicts and no trials",
                "give the results that it was made from",
            )
        if tag == "testsuite":
            self.suites.append(told.get("name", ""))
        elif tag == "testcase":
            self.case, self.said, self.fields = told, set(), {}
        elif self.case is not None and tag in _SAID:
            self.said.add(tag)
            if message := told.get("message"):
                self.fields[tag] = message
        elif self.case is not None and tag == "property" and told.get("value"):
            self.fields[f"metadata.{told.get('name', '')}"] = told["value"]

    def end(self, tag: str) -> None:
        if tag == "testsuite" and self.suites:
            self.suites.pop()
        elif tag == "testcase" and self.case is not None:
            suite = self.suites[-1] if self.suites else ""
            outcome: Outcome = next((_SAID[t] for t in _SAID if t in self.said), "safe")
            named = [self.case.get("classname") or suite, self.case.get("name", "")]
            fields = {"suite": suite, **self.fields} if suite else self.fields
            self.samples.append(Sample(title(*filter(None, named)), 1, outcome, fields))
            self.case = None
