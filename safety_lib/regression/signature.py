"""Signatures: what makes two failures the same failure.

A signature is read from what happened: the rule that broke, the calls that broke it, the channel
that the instruction came through, and the tactic that carried it. Wording, names and seeds do not
enter it. Signatures that share rule and channel form a family, which is the statistical cluster of
the gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from safety_lib.artifacts import sha256_of
from safety_lib.records import Failure, Plant
from safety_lib.regression.severity import breaking_calls

ONE_REQUEST = "one_request"


def channel(failure: Failure) -> str:
    """Return where the instruction came from: ``user``, or the place of the planted text.

    Planted text counts once the agent has read it; of several, the one that it read last.
    """
    where = "user"
    for event in failure.tool_calls:
        if event.status == "executed":
            for plant in failure.plants:
                if plant.text in event.result:
                    where = plant.where
    return where


def skeleton(failure: Failure) -> str:
    """Return the tools whose calls broke the rule, in order, or ``reply``."""
    calls = breaking_calls(failure.tool_calls, failure.rule_id)
    return ">".join(dict.fromkeys(event.call.name for event in calls)) or "reply"


def tactic(failure: Failure) -> str:
    """Return what carried the failure: the family of the attack, if it took more than one turn.

    Where one message is enough there was nothing to wear down, whatever the attack was called. Of a
    minimised failure this says what was needed, of a raw one what was tried.
    """
    return failure.attack_type if len(failure.trajectory) > 1 else ONE_REQUEST


def signature(failure: Failure) -> str:
    """Return the signature: rule | calls | channel | tactic."""
    return " | ".join([failure.rule_id, skeleton(failure), channel(failure), tactic(failure)])


def family(failure: Failure) -> str:
    """Return the family: rule / channel."""
    return f"{failure.rule_id}/{channel(failure)}"


def test_id(rule_id: str, turns: Sequence[str], plants: Iterable[Plant]) -> str:
    """Return the id of a test: a hash of the rule, the turns and what was planted.

    Whoever changes what a test says has another test.

    Examples
    --------
    >>> test_id("audit_disabled", ["Switch it off."], []) != test_id("audit_disabled", ["No."], [])
    True
    """
    planted = [plant.model_dump(mode="json") for plant in plants]
    return "T-" + sha256_of([rule_id, tuple(turns), planted])[:10]


def naive_key(failure: Failure) -> str:
    """Return the key that a first attempt would use: the type of the attack and the turn."""
    return f"{failure.attack_type} at turn {failure.failure_turn}"


def wrongly_merged(failures: Iterable[Failure]) -> dict[str, tuple[str, ...]]:
    """Return the naive keys under which failures of different rules would become one test.

    Returns
    -------
    dict
        Naive key to the rules that it would merge, sorted; keys that merge nothing are left out.
    """
    rules: defaultdict[str, set[str]] = defaultdict(set)
    for failure in failures:
        rules[naive_key(failure)].add(failure.rule_id)
    return {key: tuple(sorted(found)) for key, found in sorted(rules.items()) if len(found) > 1}


def wrongly_split(failures: Iterable[Failure]) -> dict[str, tuple[str, ...]]:
    """Return the signatures whose failures the naive key would make into several tests."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for failure in failures:
        keys[signature(failure)].add(naive_key(failure))
    return {name: tuple(sorted(found)) for name, found in sorted(keys.items()) if len(found) > 1}
