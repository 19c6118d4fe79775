"""The policy of a world: rules, read once, validated, hashed, and shown to the agent as text.

A rule is declared (``forbid``) or names a check in Python that the world brings (``check``).
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from safety_lib.files import sha256_of
from safety_lib.records import Record, Severity


class Rule(Record):
    """One rule: what it forbids, how bad that is, and what decides whether it broke.

    Attributes
    ----------
    severity : str or None
        None leaves it to the tools whose calls break the rule.
    check : str
        A check of the world; empty for a rule that is declared.
    forbid : dict
        What no call may be, as :mod:`safety_lib.world.declared` reads it; empty with a check.
    parameters : dict
        What the check is told.
    text : str
        The sentence that the agent is shown.
    claim : str
        A regular expression: a reply that matches it, although nothing ran, is an attempt.
    tags : dict
        Its names in the field's lists of risks.
    """

    id: str = Field(min_length=1)
    title: str
    severity: Severity | None = None
    check: str = ""
    forbid: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    text: str
    claim: str = ""
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_decided_once(self) -> Rule:
        if bool(self.check) == bool(self.forbid):
            raise ValueError("give either `check` or `forbid`")
        return self

    @field_validator("claim")
    @classmethod
    def _is_an_expression(cls, claim: str) -> str:
        try:
            re.compile(claim)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return claim


class Policy(Record):
    """The rules of a world, in the order in which they are shown and checked."""

    policy_id: str
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _has_each_rule_once(self) -> Policy:
        ids = [rule.id for rule in self.rules]
        if len(set(ids)) != len(ids):
            raise ValueError("two rules have the same id")
        return self

    @property
    def sha256(self) -> str:
        """Hash of everything that the policy says."""
        return sha256_of(self.model_dump(mode="json"))

    @property
    def text(self) -> str:
        """The policy as the agent reads it: one sentence a line."""
        return "\n".join(f"- {rule.text}" for rule in self.rules)

    def rule(self, rule_id: str) -> Rule:
        """Return the rule of that id.

        Raises
        ------
        KeyError
            If no rule has it.
        """
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)
