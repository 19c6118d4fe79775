"""Declared rules: what no call may be, written as data and compiled twice."""

from __future__ import annotations

from safety_lib.world.checks import Check
from safety_lib.world.policy import Rule
from safety_lib.world.tools import Tools


def compile_rule(rule: Rule, tools: Tools) -> Check:
    """Compile a declared rule into a check of the oracle with its condition for a log."""
    raise ValueError(f"rule {rule.id}: declared rules come")
