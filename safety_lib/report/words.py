"""The words of the series, each once: what stands in bold in a notebook is defined here.

A test looks up every bold term of the notebooks, and that none of them is used before the cell that
explains it. Measured quantities stand in :mod:`safety_lib.report.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping

GLOSSARY: Mapping[str, str] = {
    "active": "Of a test: admitted, so the gate runs it.",
    "adaptive": "Of an attacker: it hears the replies and chooses what it says next.",
    "assumed breach": "A test of safeguards alone: the model is taken to be lost and does whatever "
    "it is asked.",
    "audit": "A random sample that somebody reads, to estimate what nobody counted.",
    "BLOCK": "The verdict that a release lost something that it may not lose.",
    "canary": "A text that was planted so that nobody ever acts on it; its use is an alarm.",
    "censored": "Of a conversation: it ended unbroken, so it lasted at least so long.",
    "channel": "Where an instruction came from: the user, a ticket, a mail, a file.",
    "Chao": "An estimate of how many kinds there are, from those seen once and those seen twice.",
    "claims": "What a report says and nobody has measured.",
    "competing event": "An end of a conversation that has to do with how it went, such as a "
    "safeguard that stopped it.",
    "confidence sequence": "An interval that stays true however often one looks and whenever one "
    "stops.",
    "control stratum": "Conversations that nobody selected for having failed; they show whether "
    "the suite favours a version.",
    "coverage": "How often an interval holds the truth, where the truth is known.",
    "delayed failure": "A failure after the first turn whose request, asked at once, is refused.",
    "delta debugging": "Taking pieces away, big ones first, as long as the failure stays.",
    "enough": "Of changes: put into the good version, they bring the failure.",
    "error budget": "So many failures in so many unselected attacks as are tolerated.",
    "fails closed": "Of a safeguard that is itself broken: it stops what it should have let "
    "through.",
    "fails open": "Of a safeguard that is itself broken: it lets through what it should have "
    "stopped.",
    "family": "Of attacks: one way to go about a goal. Of tests: those of one rule and "
    "one channel.",
    "goal": "What somebody wants the agent to do though a rule forbids it.",
    "Good and Turing": "The chance that the next find is of a new kind: the share of finds whose "
    "kind was seen once.",
    "held out": "Of a test: kept from those who build the candidate, to see whether they tuned it "
    "to the others.",
    "hit": "Of a monitor: a session that speaks against the release.",
    "Holm": "A correction that makes many p-values hold together.",
    "hook": "The place where a safeguard is asked: before an action, after it, over the session.",
    "interact": "Of changes: together they do what none of them does alone.",
    "intervention": "One thing changed in an incident before it is held again.",
    "Kaplan–Meier": "The survival curve that uses conversations which failed and "  # noqa: RUF001
    "those which did not.",
    "known-good reference": "The most careful agent that can be set up; what it fails is no test.",
    "Lang–Reiczigel": "An interval for a rate that was counted by a query which errs.",  # noqa: RUF001
    "learned": "Of a rule: found in the log, and scored on another part of it.",
    "minimal": "Of a shortened failure: no single piece can go without losing the failure.",
    "mode": "A kind of failure: the same rule, tool and family of attack.",
    "mutant": "A version that was broken on purpose, to see whether a test notices.",
    "mutator": "Something that says a request in other words.",
    "needed": "Of changes: taken out of the bad version, the failure goes.",
    "no verdict": "What the gate says where it has nothing to judge by.",
    "OK": "The verdict that a loss of the margins' size is excluded.",
    "oracle": "What decides whether a rule broke: by executed calls and what they left, never by "
    "tone.",
    "power": "How often a loss of some size is seen.",
    "prediction-powered": "Of an estimate: a query's count, put right by a sample that was read.",
    "quarantined": "Of a test: set aside, with the reason.",
    "rate": "The share of replays in which something happens again.",
    "Rogan–Gladen": "A query's count, put right by how often the query errs.",  # noqa: RUF001
    "rule": "What the agent must not do, checked in every conversation.",
    "scenario": "A goal with a family of attacks.",
    "session": "One conversation, in a test or in production.",
    "Shapley": "The mean effect of one thing over all orders of adding things.",
    "signature": "What makes two failures the same: rule, tools, channel and family.",
    "single-shot control": "The request of a failed conversation, said once in a fresh one.",
    "suspected": "Of a family: it looks worse, and is tried again on fresh seeds.",
    "unit test": "A test of one layer at the moment of the failure.",
    "variant": "A test with the same goal in other words, names or pace.",
    "version": "A small file of settings that an agent is made from.",
    "WARN": "The verdict that the evidence cannot tell.",
    "Wilson": "An interval for a share that never closes to zero width.",
    "world": "What an agent works in: tools, rules, and goals that somebody may have.",
}
"""Each word with what it means, in the order of the alphabet."""
