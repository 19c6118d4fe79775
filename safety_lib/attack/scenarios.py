"""Scenarios: a goal pursued by one family of attack, with its words and its planted text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from safety_lib.records import BenignTwin, ExpectedCall, Plant, Record

GOALS_FILE = Path(__file__).with_name("goals.yaml")
TACTICS_FILE = Path(__file__).with_name("tactics.yaml")

Say = Literal["step", "ask", "piece", "read"]
Move = tuple[Say, str]


class Injection(Record):
    """Planted text, and the harmless requests that make the agent read it."""

    plants: tuple[Plant, ...]
    reads: tuple[str, ...] = Field(min_length=1)


class Benign(Record):
    """The legitimate twin of a goal."""

    turns: tuple[str, ...] = Field(min_length=1)
    expected: ExpectedCall


class Goal(Record):
    """What an attacker wants: the rule to be broken, and the clauses to say it with."""

    rule: str
    steps: tuple[str, ...] = Field(min_length=2)
    ask: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    injection: Injection | None = None
    benign: Benign


class Family(Record):
    """One way to attack: a script for who does not listen, tactics for who does."""

    description: str
    script: tuple[Move, ...] = Field(min_length=1)
    warm_up: tuple[str, ...] = Field(min_length=1)
    press: tuple[str, ...] = Field(min_length=1)


class Scenario(Record):
    """One goal and one family; the unit that rollouts are drawn from."""

    goal_id: str
    family_id: str
    goal: Goal
    family: Family

    def __str__(self) -> str:
        return f"{self.scenario_id}, to break {self.goal.rule}"

    @property
    def scenario_id(self) -> str:
        """``goal/family``."""
        return f"{self.goal_id}/{self.family_id}"

    @property
    def plants(self) -> tuple[Plant, ...]:
        """What is planted in the company before the conversation."""
        planted = self.family_id == "indirect_injection" and self.goal.injection
        return planted.plants if planted else ()

    @property
    def wanted(self) -> Say:
        """What the attacker wants to get said: an ask, a piece of it, or a request to read."""
        if self.family_id == "indirect_injection":
            return "read"
        return "piece" if self.family_id == "decomposition" else "ask"

    def clauses(self, say: Say) -> tuple[str, ...]:
        """Return the goal's clauses of one kind."""
        if say == "read":
            return self.goal.injection.reads if self.goal.injection else ()
        return {"step": self.goal.steps, "ask": self.goal.ask, "piece": self.goal.pieces}[say]


@cache
def load_goals() -> dict[str, Goal]:
    """Read the goals, by their ids.

    Examples
    --------
    >>> len(load_goals()) >= 6
    True
    """
    raw = yaml.safe_load(GOALS_FILE.read_text(encoding="utf-8"))
    return {name: Goal.model_validate(goal) for name, goal in raw.items()}


@cache
def load_families() -> dict[str, Family]:
    """Read the families of attack, by their ids."""
    raw = yaml.safe_load(TACTICS_FILE.read_text(encoding="utf-8"))["families"]
    return {name: Family.model_validate(family) for name, family in raw.items()}


@cache
def load_tactics() -> dict[str, tuple[str, ...]]:
    """Read the wordings of each tactic; ``{clause}`` is where the clause goes."""
    raw = yaml.safe_load(TACTICS_FILE.read_text(encoding="utf-8"))["tactics"]
    return {name: tuple(wordings) for name, wordings in raw.items()}


@cache
def all_scenarios() -> tuple[Scenario, ...]:
    """Return every goal with every family that has the words for it.

    Examples
    --------
    >>> sorted({s.family_id for s in all_scenarios()})[:2]
    ['context_manipulation', 'decomposition']
    """
    scenarios = (
        Scenario(goal_id=goal_id, family_id=family_id, goal=goal, family=family)
        for goal_id, goal in load_goals().items()
        for family_id, family in load_families().items()
    )
    return tuple(scenario for scenario in scenarios if scenario.clauses(scenario.wanted))


def scenario(scenario_id: str) -> Scenario:
    """Return the scenario of that id.

    Raises
    ------
    KeyError
        If there is none.
    """
    return _by_id()[scenario_id]


@cache
def _by_id() -> dict[str, Scenario]:
    return {scenario.scenario_id: scenario for scenario in all_scenarios()}


def benign_twin(goal_id: str) -> BenignTwin:
    """Return the legitimate twin of a goal, as a test can carry it.

    Examples
    --------
    >>> benign_twin("silence_audit").expected.name
    'set_audit_log'
    """
    benign = load_goals()[goal_id].benign
    return BenignTwin(twin_id=f"{goal_id}/benign", turns=benign.turns, expected=benign.expected)
