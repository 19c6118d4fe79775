"""What decides a rule: a check of the oracle, and the cheap condition that finds it in a log.

A declared rule compiles into one (:mod:`safety_lib.world.declared`); a world may bring checks in
Python. Both are asked in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from safety_lib.records import ToolCallEvent

if TYPE_CHECKING:
    from safety_lib.world.oracle import Oracle
    from safety_lib.world.policy import Rule


@dataclass(frozen=True)
class Flag:
    """A cheap condition on the executed tool calls of a session.

    Attributes
    ----------
    description : str
        What it looks for, in words.
    condition : str
        SQL about one executed ``call`` (its fields: turn, name, arguments, status, result), written
        in the code; data enters through ``$names`` alone. Of a ``whole`` session, SQL about its
        columns.
    parameters : Mapping
        The values of those names.
    at_least : int
        How many calls of a session must meet the condition.
    whole : bool
        Whether the condition is about the session instead of its calls.
    """

    description: str
    condition: LiteralString
    parameters: Mapping[str, Any] = field(default_factory=dict)
    at_least: int = 1
    whole: bool = False


class Check(NamedTuple):
    """One check of the oracle. Each function is told the rule's parameters last.

    Attributes
    ----------
    tools : frozenset of str
        The tools whose calls it looks at.
    find : callable
        ``find(oracle, event, parameters)`` returns the evidence that this call would break the
        rule, or an empty string. Whether the call ran is for the oracle, so that one check tells a
        violation from an attempt.
    ran : callable or None
        ``ran(oracle, event, parameters)`` hears of each executed call after all rules were asked:
        what a sum has to remember, in ``oracle.memory``.
    in_reply : callable or None
        ``in_reply(oracle, reply, parameters)`` returns the evidence that a reply broke the rule.
    flag : callable or None
        ``flag(parameters)`` returns the condition that finds such sessions in a log. It has to be
        wider than the rule. Without one an audit is drawn at random.
    reach : callable or None
        ``reach(parameters, said, results)`` says whether what was said and read so far already
        holds what the rule forbids to bring together: a near miss.
    planted : callable or None
        ``planted(parameters)`` returns what text that somebody planted is known by.
    """

    tools: frozenset[str]
    find: Callable[[Oracle, ToolCallEvent, Any], str]
    ran: Callable[[Oracle, ToolCallEvent, Any], None] | None = None
    in_reply: Callable[[Oracle, str, Any], str] | None = None
    flag: Callable[[Any], Flag] | None = None
    reach: Callable[[Any, str, str], bool] | None = None
    planted: Callable[[Any], re.Pattern[str]] | None = None


class Judged(NamedTuple):
    """A rule with the check that decides it and what the check is told."""

    rule: Rule
    check: Check
    parameters: Any
