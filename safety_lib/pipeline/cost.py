"""What a run asks of its model, worked out from the plan before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from safety_lib.agent.backends import Backend
from safety_lib.agent.loop import Agent
from safety_lib.agent.versions import load_version
from safety_lib.attack.scenarios import all_scenarios, benign_twin, load_goals
from safety_lib.incident.bisection import MOST_ATTRIBUTED
from safety_lib.incident.interventions import CONTEXT_SHARE
from safety_lib.regression.admission import TWIN_REPLAYS
from safety_lib.regression.minimise import BUDGET_PER_REPLAY

CALLS_PER_TURN = 2  # what a small model takes: a tool call, and a reply
MOST_REDUCTIONS = 40
REFERENCE_REPLAYS = 10
MOST_SAFEGUARDS = 5  # three hooks, and what could be tightened around one call
CHANGED_CANDIDATES = 2  # that the first notebook attacks beside the two versions
MOST_MITIGATIONS = 12
MOST_UNSEEN = 60  # conversations beside the incident that a mitigation is tried on
LONGEST_INCIDENT = 10  # turns; the file is not read before its stage
CONFIRM_ABOVE = 1_000  # calls, of a model that somebody is paid for
CHARACTERS_PER_TOKEN = 4  # of English, by the rule of thumb
MESSAGE = 160  # characters of a message, as the goals and tactics and short replies have them
ANSWER = 40  # tokens: a tool call or a sentence or two


@dataclass(frozen=True)
class Cost:
    """What a run asks of its model.

    Attributes
    ----------
    about, most : int
        Calls if nothing fails, and at the very most.
    tokens_in, tokens_out : int
        Tokens of ``about`` calls, roughly.
    """

    about: int
    most: int
    tokens_in: int
    tokens_out: int

    def __str__(self) -> str:
        return (
            f"This makes about {self.about:,} calls of the model, and more for every failure that "
            f"is found: at the very most {self.most:,}.\nThe first number is roughly "
            f"{_rough(self.tokens_in)} tokens in and {_rough(self.tokens_out)} out."
        )


def cost_of(plan: Mapping[str, Mapping[str, Any]]) -> Cost:
    """Count the turns of a plan: those of every run, and those that only failures cause.

    The first number takes two calls a turn, as a small model did, and lets nothing fail. The bound
    lets every conversation fail, every search use its budget and every turn its last step. Each
    call sends the system prompt, the tools and half of the messages that the memory keeps of a
    conversation of the longest length; four characters count as a token.

    Parameters
    ----------
    plan : Mapping
        Stage to parameters, as :func:`~safety_lib.pipeline.load_plan` returns them.

    Examples
    --------
    >>> from safety_lib.pipeline import load_plan
    >>> small, large = (cost_of(load_plan("local", {"rollouts": n})) for n in (6, 12))
    >>> small.about < large.about < large.most
    True
    """
    parts = [_stress(plan), _regression(plan), _gate(plan), _incident(plan)]
    sure, if_failing = (sum(part[i] for part in parts) for i in (0, 1))
    steps = max(version.limits.max_steps for version in _versions(plan).values())
    about = CALLS_PER_TURN * sure
    return Cost(
        about=about,
        most=steps * (sure + if_failing),
        tokens_in=about * _prompt(plan),
        tokens_out=about * ANSWER,
    )


def _versions(plan: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    stage = plan["incident_replay"]
    names = (stage["baseline"], stage["candidate"], stage["fixed"], "reference")
    return {name: load_version(name) for name in names if name}


def _prompt(plan: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the tokens of one prompt, roughly."""
    version = load_version(plan["release_gate"]["candidate"])
    agent = Agent(version, cast(Backend, None))
    longest = 2 * _attacks(plan)[1]
    kept = min(version.memory.window or longest, longest) / 2
    fixed = len(agent.system.content) + len(json.dumps(agent.tools))
    return round((fixed + kept * MESSAGE) / CHARACTERS_PER_TOKEN)


def _rough(n: int) -> str:
    return f"{n / 1e6:,.1f} million" if n >= 1e6 else f"{round(n, -3):,}"


def _attacks(plan: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Return the attacked conversations of stage 1, and the turns of the longest."""
    stage = plan["stress_testing"]
    arms = len({stage["baseline"], stage["candidate"]})
    turns = 1 if stage["attacker"] == "direct" else stage["max_turns"]
    return arms * stage["rollouts"], turns


def _stress(plan: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    attacks, turns = _attacks(plan)
    attacks += CHANGED_CANDIDATES * plan["stress_testing"]["rollouts"]
    return attacks * (turns + 1), attacks  # each goal asked once as well; a control for a failure


def _regression(plan: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    attacks, turns = _attacks(plan)
    replays = plan["regression"]["replays"]
    # Reproduce, shorten, then try twice at most on the version and on the reference.
    of_failure = replays * (1 + BUDGET_PER_REPLAY + 2 * 2) * turns
    return 0, attacks * of_failure + _twin_turns() * min(replays, TWIN_REPLAYS)


def _gate(plan: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    stage = plan["release_gate"]
    arms = len({stage["baseline"], stage["candidate"]})
    sure, if_failing = _cases(plan, stage["max_tests"])
    return arms * stage["trials"] * sure, arms * stage["trials"] * if_failing


def _incident(plan: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    stage, versions = plan["incident_replay"], _versions(plan)
    replays, turns = stage["replays"], LONGEST_INCIDENT
    changes = len(versions[stage["baseline"]].changes_to(versions[stage["candidate"]]))
    # An intervention for each change, version and memory; half as many replays for each turn left
    # out or unread, and each safeguard; two searches for a minimal set of changes; new tests.
    context = CONTEXT_SHARE * (2 * turns + MOST_SAFEGUARDS)
    searches = 2 * min(2**changes, changes**2 + 3 * changes) + 2**MOST_ATTRIBUTED
    of_incident = replays * turns * (changes + 2 + round(context) + searches + MOST_REDUCTIONS + 2)
    of_incident += 2 * turns * REFERENCE_REPLAYS + TWIN_REPLAYS * _twin_turns()
    # Each mitigation on the incident, on variants of it and on legitimate requests.
    of_incident += (MOST_MITIGATIONS + 1) * (replays + MOST_UNSEEN) * turns
    # The arms that stage 3 has judged are judged again, and the fix beside them.
    sure, if_failing = _cases(plan, stage["max_tests"])
    arms, new = 3 if stage["fixed"] else 2, 2 * turns
    trials = stage["trials"]
    return (
        replays * turns + arms * trials * sure,
        of_incident + arms * trials * (if_failing + new),
    )


def _cases(plan: Mapping[str, Mapping[str, Any]], most: int) -> tuple[int, int]:
    """Return the turns of the controls and twins of one arm and trial, and of its tests."""
    attacks, turns = _attacks(plan)
    controls, twins = len(all_scenarios()), len(load_goals())
    longest = max(len(benign_twin(goal).turns) for goal in load_goals())
    if most:
        attacks, controls, twins = (min(n, most) for n in (attacks, controls, twins))
    return controls * turns + twins * longest, attacks * turns


def _twin_turns() -> int:
    return sum(len(benign_twin(goal).turns) for goal in load_goals())
