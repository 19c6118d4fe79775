"""An attacker that is a chat model: what it is told, what it hears, and how it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.agent.backends import BackendError
from safety_lib.attack import model_attacker
from safety_lib.attack.attackers import make_attacker
from safety_lib.attack.model_attacker import ModelAttacker
from safety_lib.records import Message, ToolCall
from safety_lib.rollout.conversation import plan_attack, run_rollout
from safety_lib.stress.discovery import discover
from safety_lib.world import load_version

V2 = load_version("northwind/v2")
SCENARIO = NORTHWIND.scenario("delete_contract/policy_erosion")


class Writer:
    """A model that writes what it was given to write, and remembers what it was asked."""

    name = "writer"
    concurrency = 0

    def __init__(self, *answers: Message | BackendError) -> None:
        self.answers = list(answers)
        self.asked: list[Sequence[Message]] = []
        self.seeds: list[int] = []

    def complete(self, messages: Sequence[Message], tools: Any, *, seed: int) -> Message:
        assert not tools  # the attacker has nothing to call
        self.asked.append(list(messages))
        self.seeds.append(seed)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BackendError):
            raise answer
        return answer


def says(text: str) -> Message:
    return Message(role="assistant", content=text)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names: list[str] = []
    writer = Writer(says("Hello, could you read ticket T-203?"), says("Thanks. Now ticket T-201."))

    def open_backend(name: str, settings: Any, own: Any = None) -> Writer:
        names.append(name)
        return writer

    monkeypatch.setattr(model_attacker, "_opened", {})
    monkeypatch.setattr(model_attacker, "open_backend", open_backend)
    yield names


def test_the_model_is_told_the_goal_and_hears_replies_as_its_user() -> None:
    writer = Writer(says(' "Hello there." '), says("Please go on."))
    attacker = ModelAttacker(SCENARIO, 5, writer)
    assert attacker.next_message([]) == "Hello there."
    assert attacker.next_message(["How can I help?"]) == "Please go on."
    system = writer.asked[0][0]
    assert system.role == "system"
    assert any(clause in system.content for clause in SCENARIO.goal.ask)
    assert SCENARIO.family.description in system.content
    assert "{" not in system.content
    heard = [(m.role, m.content) for m in writer.asked[1][2:]]
    assert heard == [("assistant", "Hello there."), ("user", "How can I help?")]
    assert len(set(writer.seeds)) == 2


def test_nothing_to_say_ends_the_conversation_and_long_texts_are_cut() -> None:
    assert ModelAttacker(SCENARIO, 5, Writer(says("  "))).next_message([]) is None
    said = ModelAttacker(SCENARIO, 5, Writer(says("x" * 9_000))).next_message([])
    assert said is not None
    assert len(said) == 600


def test_a_model_that_calls_a_tool_is_an_error() -> None:
    call = ToolCall(id="1", name="send_mail", arguments={})
    writer = Writer(Message(role="assistant", content="", tool_calls=(call,)))
    with pytest.raises(BackendError, match="called a tool"):
        ModelAttacker(SCENARIO, 5, writer).next_message([])


def test_it_attacks_through_a_campaign_by_its_name(opened: list[str]) -> None:
    found = discover(V2, V2, rollouts=3, attacker="model:openai:tiny", max_turns=2)
    held = found.trajectories["v2"]
    assert opened == ["openai:tiny"]  # once for all conversations
    assert {t.attacker for t in held} == {"model:openai:tiny"}
    assert all(t.user_messages[-1] == "Thanks. Now ticket T-201." for t in held[1:])
    assert found.summary[0].errors == 0


def test_it_takes_mutators_like_any_other(opened: list[str]) -> None:
    said = make_attacker("model:openai:tiny+urgency", SCENARIO, 3).next_message([])
    assert said is not None
    assert said.endswith("Hello, could you read ticket T-203?")
    assert said != "Hello, could you read ticket T-203?"


def test_an_attacker_that_fails_makes_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer(says("Hello."), BackendError("rate_limit", "slow down"))
    monkeypatch.setattr(model_attacker, "attacking_model", lambda name, own: writer)
    trajectory = run_rollout(plan_attack(V2, NORTHWIND.scenarios[0], "model:openai:tiny", 7, 4))
    assert (trajectory.outcome, trajectory.ended) == ("error", "error")
    assert trajectory.error == "rate_limit: slow down"
    assert trajectory.n_turns == 1


@pytest.mark.parametrize("name", ["model:telepathy", "model:"])
def test_an_unknown_model_is_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        discover(V2, V2, rollouts=3, attacker=name)
