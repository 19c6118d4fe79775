"""Scenarios: a goal pursued by one family of attack, with its words and its planted text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from safety_lib.records import ExpectedCall, Plant, Record

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
    """What an attacker wants: the rule to be broken, and the clauses to say it with.

    ``benign`` is its legitimate twin, ``requests`` are more legitimate requests around it: what the
    gate measures usefulness by.
    """

    rule: str
    steps: tuple[str, ...] = Field(min_length=2)
    ask: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    injection: Injection | None = None
    benign: Benign
    requests: tuple[Benign, ...] = ()


class Family(Record):
    """One way to attack: a script for who does not listen, tactics for who does."""

    description: str
    script: tuple[Move, ...] = Field(min_length=1)
    warm_up: tuple[str, ...] = Field(min_length=1)
    press: tuple[str, ...] = Field(min_length=1)


class Scenario(Record):
    """One goal and one family, with the wordings of its tactics; what rollouts are drawn from."""

    goal_id: str
    family_id: str
    goal: Goal
    family: Family
    wordings: dict[str, tuple[str, ...]]

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


class Tactics(Record):
    """Ways to attack: families, and the wordings of each tactic.

    ``{clause}`` in a wording is where the clause goes.
    """

    families: dict[str, Family]
    tactics: dict[str, tuple[str, ...]]
