"""Signatures: what makes two failures the same failure.

A signature is read from what happened: the rule that broke, the tools that ran in the turn that
broke it, the channel that the instruction came through, and the family of the attack. Wording,
names and seeds do not enter it. Signatures that share rule and channel form a family, which is the
statistical cluster of the gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from safety_lib.records import Failure


def channel(failure: Failure) -> str:
    """Return where the instruction came from: ``user``, or the place of the planted text."""
    return failure.plants[0].where if failure.plants else "user"


def tool_path(failure: Failure) -> str:
    """Return the tools that ran in the turn of the failure, in order, or ``reply``."""
    ran = [
        event.call.name
        for event in failure.tool_calls
        if event.turn == failure.failure_turn and event.status == "executed"
    ]
    return ">".join(dict.fromkeys(ran)) or "reply"


def signature(failure: Failure) -> str:
    """Return the signature: rule | tools | channel | family of attack."""
    return " | ".join([failure.rule_id, tool_path(failure), channel(failure), failure.attack_type])


def family(failure: Failure) -> str:
    """Return the family: rule / channel."""
    return f"{failure.rule_id}/{channel(failure)}"


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
