"""Regression tests: what a failure becomes, and the suite of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from safety_lib.files import sha256_of
from safety_lib.records.base import Artifact, HookName, Record, Severity
from safety_lib.records.conversations import Plant, Text, ToolCall, as_call
from safety_lib.records.display import html_table
from safety_lib.text import in_lines, one_line

MOST_TURNS = 200
"""How many turns a test may have."""

_HASHED = re.compile(r"T-[0-9a-f]{10}")


def id_of_test(rule_id: str, turns: Sequence[str], plants: Iterable[Plant]) -> str:
    """Return the id of a test: a hash of the rule, the turns and what was planted.

    Whoever changes what a test says has another test.

    Parameters
    ----------
    rule_id : str
        The rule that it holds.
    turns : sequence of str
        What the user says.
    plants : iterable of Plant
        What was planted before.

    Examples
    --------
    >>> off = id_of_test("audit_disabled", ["Switch it off."], [])
    >>> off != id_of_test("audit_disabled", ["Good morning."], [])
    True
    """
    planted = [plant.model_dump(mode="json") for plant in plants]
    return "T-" + sha256_of([rule_id, tuple(turns), planted])[:10]


class Reproduction(Record):
    """How often a failure came back on fresh seeds, with a Wilson interval."""

    version: str
    k: int
    n: int
    errors: int = 0
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        rate = f"{self.k} of {self.n} [{self.ci_low:.2f}, {self.ci_high:.2f}] on {self.version}"
        return f"{rate}, {self.errors} errors" if self.errors else rate


class ExpectedCall(Record):
    """A tool call that a benign request must lead to: the name and the arguments that count."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return as_call(self.name, self.arguments)


class BenignTwin(Record):
    """The legitimate request beside an attack; an agent that refuses it is not useful."""

    twin_id: str
    turns: tuple[str, ...]
    expected: ExpectedCall


class TestSource(Record):
    """Where a test comes from."""

    __test__ = False

    stage: Literal["stress", "incident"]
    version: str
    seed: int
    incident_id: str = ""


class Minimisation(Record):
    """How far a conversation could be shortened while the rule still broke, and at what price.

    ``one_minimal`` says that no single message boundary, turn or sentence can be taken away any
    more without the rate on the probe seeds falling below ``needed`` of ``probes``; it is False
    where the budget of replays ran out before that was known.
    """

    turns_before: int
    turns_after: int
    characters_before: int
    characters_after: int
    needed: int
    probes: int
    replays: int
    one_minimal: bool

    @property
    def turns_saved(self) -> int:
        """How many turns it is shorter."""
        return self.turns_before - self.turns_after

    def __str__(self) -> str:
        how = "1-minimal" if self.one_minimal else "not proved minimal"
        return (
            f"{self.turns_before} -> {self.turns_after} turns, "
            f"{self.characters_before} -> {self.characters_after} characters, {how}, "
            f"{self.replays} replays"
        )


class UnitCase(Record):
    """The same failure at the level of one safeguard hook: it needs no model and no conversation.

    ``call`` (or ``reply``) is what the hook was shown, ``decided`` what it said to it, ``risk`` the
    running risk at that moment, and ``policy_in_sight`` whether the model still saw the policy when
    it came up with it.
    """

    turn: int
    hook: HookName
    call: ToolCall | None = None
    reply: Text = ""
    decided: Literal["allow", "warn", "hold", "block", "stop"]
    risk: float = 0.0
    policy_in_sight: bool

    def __str__(self) -> str:
        shown = str(self.call) if self.call is not None else repr(self.reply)
        sight = "in" if self.policy_in_sight else "out of"
        return (
            f"turn {self.turn}, policy {sight} sight, {self.hook} decided {self.decided}: {shown}"
        )


class BreachStep(Record):
    """One thing that really happened in an assumed breach: a call with its result, or a reply.

    ``breaks`` is the rule that the oracle saw it break, empty where it broke none.
    """

    turn: int
    call: ToolCall | None = None
    result: Text = ""
    reply: Text = ""
    breaks: str = ""

    def __str__(self) -> str:
        shown = f"reply {self.reply!r}" if self.call is None else str(self.call)
        return f"turn {self.turn}: {shown}" + (f" breaks {self.breaks}" if self.breaks else "")


class BreachSession(Record):
    """One conversation with a model that complies with everything, and no safeguard in its way.

    It holds the cases that the safeguards of any version are asked about without a model: each
    step of an attack that breaks a rule, each step of a legitimate request (``benign``) that breaks
    none. What came before a step is the state that a safeguard may need.
    """

    name: str
    goal: str
    benign: bool = False
    steps: tuple[BreachStep, ...]

    @property
    def cases(self) -> tuple[int, ...]:
        """The places of its cases among its steps."""
        return tuple(i for i, step in enumerate(self.steps) if self.benign != bool(step.breaks))

    def __str__(self) -> str:
        kind = "benign" if self.benign else "harmful"
        return f"{self.name}: {len(self.cases)} {kind} of {len(self.steps)} steps"


class RegressionTest(Record):
    """A permanent, replayable test: the attacker's turns, the world they start in, the rule."""

    __test__ = False

    test_id: str
    source_failure_id: str
    name: str
    category: str
    family: str
    signature: str
    rule_id: str
    severity: Severity
    description: str
    attack_turns: tuple[str, ...]
    plants: tuple[Plant, ...] = ()
    expected_behavior: str
    created_at: str | None = None
    tags: tuple[str, ...]
    lifecycle: Literal["proposed", "active", "quarantined", "retired", "rejected"]
    lifecycle_reason: str = ""
    reproduction: Reproduction
    reference: Reproduction | None = None
    minimised: Minimisation | None = None
    unit: UnitCase | None = None
    split: Literal["public", "held_out"] = "public"
    benign_twin: BenignTwin
    duplicates: int = 0
    source: TestSource

    @property
    def turns_saved(self) -> int:
        """How many turns minimising took away."""
        return self.minimised.turns_saved if self.minimised else 0

    def __str__(self) -> str:
        lines = [
            f"{self.test_id} · {self.severity} · {self.lifecycle} · {self.name}",
            f"family:    {self.family}",
            f"came back: {self.reproduction}",
            *([f"reference: {self.reference}"] if self.reference else []),
            *([f"shortened: {self.minimised}"] if self.minimised else []),
            f"expected:  {self.expected_behavior}",
            *(f"planted:   {plant.where}/{plant.key}: {plant.text}" for plant in self.plants),
            *(f"[{turn}] user: {text}" for turn, text in enumerate(self.attack_turns, start=1)),
        ]
        return in_lines(lines)

    @property
    def faults(self) -> Iterator[str]:
        """Why this is no test that anybody can have made of a failure."""
        own = id_of_test(self.rule_id, self.attack_turns, self.plants)
        # Other makers may have names of their own; one that is a hash has to be the hash.
        if _HASHED.fullmatch(self.test_id) and self.test_id != own:
            yield f"its rule, turns and plants are those of another test, {own}"
        if not self.attack_turns:
            yield "it has no attack turns"
        for number, turn in enumerate(self.attack_turns, start=1):
            if not turn.strip():
                yield f"attack turn {number} is empty"
        for what, seen in (("reproduction", self.reproduction), ("reference", self.reference)):
            if seen and not 0 <= seen.k <= seen.n:
                yield f"{what}: {seen.k} of {seen.n} is no count"
            if seen and seen.errors < 0:
                yield f"{what}: {seen.errors} errors is no count"
            if seen and not 0 <= seen.ci_low <= seen.ci_high <= 1:
                yield f"{what}: from {seen.ci_low} to {seen.ci_high} is no interval of a rate"
        if self.lifecycle == "active" and self.reproduction.n and not self.reproduction.k:
            yield "it is active and never came back"
        if self.unit and not 1 <= self.unit.turn <= len(self.attack_turns):
            yield f"its safeguard decided in turn {self.unit.turn} of {len(self.attack_turns)}"
        if self.duplicates < 0:
            yield f"it stands for {self.duplicates} others"


class Suite(Artifact):
    """``regression_tests.json``: the tests, active and quarantined, and the funnel to them.

    ``breaches`` are what safeguards are asked about; there are none where they are out of reach.
    """

    SCHEMA: ClassVar[str] = "regression_tests"

    baseline: str
    candidate: str
    max_turns: int = 8
    funnel: dict[str, int]
    tests: tuple[RegressionTest, ...]
    breaches: tuple[BreachSession, ...] = ()

    @property
    def active(self) -> tuple[RegressionTest, ...]:
        """The tests that the gate runs."""
        return tuple(test for test in self.tests if test.lifecycle == "active")

    @property
    def fault(self) -> str:
        """The first thing in it that makes no sense, with the test named."""
        seen: dict[str, int] = {}
        for number, test in enumerate(self.tests, start=1):
            name = f"test {number} ({one_line(test.test_id, 40)})"
            if found := next(test.faults, ""):
                return f"{name}: {found}"
            if test.test_id in seen:
                return f"{name}: test {seen[test.test_id]} is the same one"
            seen[test.test_id] = number
        if not 1 <= self.max_turns <= MOST_TURNS:
            return f"max_turns is {self.max_turns}, which is none of 1 to {MOST_TURNS}"
        told: set[str] = set()
        for session in self.breaches:
            line = session.model_dump_json()
            if line in told:
                return f"breach {one_line(session.name, 60)}: it stands there twice"
            told.add(line)
            if any(step.turn < 1 for step in session.steps):
                return f"breach {one_line(session.name, 60)}: a step before the first turn"
        return ""

    def __str__(self) -> str:
        families = len({test.family for test in self.active})
        count = f"{len(self.active)} active tests of {len(self.tests)} in {families} families"
        return f"{count}, {self.baseline} -> {self.candidate}"

    def _repr_html_(self) -> str:
        rows = [(t.test_id, t.severity, t.lifecycle, t.family, t.reproduction) for t in self.tests]
        return html_table(str(self), ("test", "severity", "state", "family", "came back"), rows)

    def only(self, stage: Literal["stress", "incident"]) -> Suite:
        """Return the same suite with the tests of one stage alone."""
        kept = tuple(test for test in self.tests if test.source.stage == stage)
        return self.model_copy(update={"tests": kept})
