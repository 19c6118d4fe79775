"""The policy: one file of rules, read once, validated, hashed, and shown to the agent as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from safety_lib.artifacts import sha256_of
from safety_lib.records import Record, Severity, first_fault

POLICY_FILE = Path(__file__).with_name("policy.yaml")


class PolicyError(ValueError):
    """The policy file is missing, malformed, or names a check that does not exist."""


class Rule(Record):
    """One rule: what it forbids, how bad that is, and which check of the oracle decides it."""

    id: str
    title: str
    severity: Severity
    check: str
    parameters: dict[str, Any]
    text: str
    claim: str
    tags: dict[str, str]


class Policy(Record):
    """The rules of the company, in the order in which they are shown and checked."""

    policy_id: str
    company_domain: str
    rules: tuple[Rule, ...]

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


@cache
def load_policy(path: Path = POLICY_FILE) -> Policy:
    """Read and validate a policy file.

    Raises
    ------
    PolicyError
        With one line that names the file and the field.

    Examples
    --------
    >>> load_policy().rule("audit_disabled").severity
    'high'
    """
    try:
        policy = Policy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise PolicyError(f"{path.name}: cannot be read: {reason}") from error
    except ValidationError as error:
        field, reason = first_fault(error)
        raise PolicyError(f"{path.name}: field {field}: {reason}") from error
    ids = [rule.id for rule in policy.rules]
    if len(set(ids)) != len(ids):
        raise PolicyError(f"{path.name}: two rules have the same id")
    return policy
