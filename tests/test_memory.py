"""Memory: a window that really forgets, and never leaves half an exchange."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety_lib.agent.memory import visible
from safety_lib.agent.settings import MemorySettings
from safety_lib.records import Message, ToolCall
from safety_lib.rollout.conversation import plan_replay, run_rollout
from safety_lib.world import load_version

SYSTEM = Message(role="system", content="policy")


def exchange(number: int, calls: int, *, replied: bool) -> list[Message]:
    """What the user asks, the calls with their results, and the reply if there is one yet."""
    made = tuple(
        ToolCall(id=f"{number}.{i}", name="read_inbox", arguments={}) for i in range(calls)
    )
    messages = [Message(role="user", content=f"ask {number}")]
    if made:
        messages.append(Message(role="assistant", content="", tool_calls=made))
        messages += [
            Message(role="tool", content=f"result {call.id}", tool_call_id=call.id) for call in made
        ]
    if replied:
        messages.append(Message(role="assistant", content=f"reply {number}"))
    return messages


@st.composite
def histories(draw: st.DrawFn) -> list[Message]:
    calls = draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    last = len(calls) - 1
    return [
        message
        for number, n in enumerate(calls)
        for message in exchange(number, n, replied=number < last)
    ]


SETTINGS = st.builds(MemorySettings, window=st.integers(1, 40), pin_policy=st.booleans())


@given(histories(), SETTINGS)
def test_a_result_is_never_seen_without_its_call(
    history: list[Message], settings: MemorySettings
) -> None:
    made: set[str] = set()
    for message in visible(SYSTEM, history, settings):
        made.update(call.id for call in message.tool_calls)
        assert message.role != "tool" or message.tool_call_id in made


@given(histories(), SETTINGS)
def test_the_newest_message_is_always_in_sight(
    history: list[Message], settings: MemorySettings
) -> None:
    assert visible(SYSTEM, history, settings)[-1] == history[-1]


@given(histories(), SETTINGS)
def test_no_more_is_seen_than_the_window_holds(
    history: list[Message], settings: MemorySettings
) -> None:
    newest = next(i for i in range(1, len(history) + 1) if history[-i].role != "tool")
    most = max(settings.window, newest) + settings.pin_policy
    assert len(visible(SYSTEM, history, settings)) <= most


@given(histories(), SETTINGS)
def test_what_is_seen_is_the_end_of_what_was_said(
    history: list[Message], settings: MemorySettings
) -> None:
    seen = visible(SYSTEM, history, settings)
    said = [message for message in seen if message is not SYSTEM]
    assert said == history[len(history) - len(said) :]
    assert settings.pin_policy is False or seen[0] is SYSTEM


@given(histories(), SETTINGS)
def test_everything_is_seen_while_it_fits(history: list[Message], settings: MemorySettings) -> None:
    if len(history) < settings.window:
        assert visible(SYSTEM, history, settings) == [SYSTEM, *history]


@pytest.mark.parametrize(("said", "seen"), [(1, True), (3, True), (4, False), (9, False)])
def test_an_unpinned_policy_leaves_like_any_other_message(said: int, seen: bool) -> None:
    history = [Message(role="user", content=str(n)) for n in range(said)]
    settings = MemorySettings(window=4, pin_policy=False)
    assert (SYSTEM in visible(SYSTEM, history, settings)) is seen


def test_a_pinned_policy_does_not_use_up_the_window() -> None:
    history = [Message(role="user", content=str(n)) for n in range(9)]
    seen = visible(SYSTEM, history, MemorySettings(window=4, pin_policy=True))
    assert seen == [SYSTEM, *history[5:]]


def test_forgetting_changes_nothing_but_what_is_seen() -> None:
    history = exchange(0, 2, replied=True) + exchange(1, 2, replied=False)
    kept = list(history)
    visible(SYSTEM, history, MemorySettings(window=2, pin_policy=False))
    assert history == kept


@pytest.mark.parametrize("window", [1, 2, 3])
def test_an_agent_with_hardly_any_memory_still_does_what_it_is_asked(window: int) -> None:
    version = load_version("northwind/v1").having({"memory.window": window})
    trajectory = run_rollout(
        plan_replay(version, ["Please read ticket T-203."], name="short", seed=1)
    )
    assert "/tmp/export-old.csv" in trajectory.replies[0]
    assert trajectory.model_calls == 2
