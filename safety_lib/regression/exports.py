"""Exports: a suite leaves this repository in the formats of the tools that people have.

==============  ==================================================================
name            what it is
==============  ==================================================================
json            the artifact itself, canonical
openai          JSON Lines of OpenAI chat messages, a test a line
inspect         dataset of Inspect: JSON Lines of samples
inspect-log     log of Inspect (``inspect_ai.log.read_eval_log`` reads it)
promptfoo       promptfoo test file (``tests: file://...`` in its configuration)
==============  ==================================================================

What a format has no place for travels in its ``metadata``.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_lib.records import RegressionTest, Trajectory
from safety_lib.regression.admission import TestRun
from safety_lib.regression.promptfoo_turn import assertion, literal
from safety_lib.text import count
from safety_lib.world import World, world_of
from safety_lib.world.versions import Version

FORMATS: tuple[str, ...] = ("json", "openai", "inspect", "inspect-log", "promptfoo")

# A log must say when it was made; a result that is the same every time was made at no time.
NO_TIME = "1970-01-01T00:00:00+00:00"
_TASK, _TASK_ID = "regression-tests", "safetylib"
_FOUND_BY_INSPECT = re.compile(r"\d{4}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\d.*\.json")


# --------------------------------------------------------------------------- OpenAI chat


def to_openai(tests: Iterable[RegressionTest], world: World) -> str:
    """Write tests as JSON Lines in the OpenAI chat format: ``messages``, ``tools``, ``metadata``.

    The user's messages are all there is: the answers are what is tested. Send them one by one.
    """
    tools = world.tools.schemas(name for name in world.tools if name in world.tools.changing)
    tests = list(tests)
    return _lines(
        plants_note(tests),
        (
            {
                "messages": [{"role": "user", "content": turn} for turn in test.attack_turns],
                "tools": list(tools),
                "metadata": {"safety_lib": _without_turns(test)},
            }
            for test in tests
        ),
    )


# --------------------------------------------------------------------------- Inspect


def to_inspect(tests: Iterable[RegressionTest], world: World) -> str:
    """Write tests as an Inspect dataset: JSON Lines of samples for ``json_dataset``.

    ``input`` holds the user's messages, ``target`` the expected behaviour, ``metadata`` the rest.
    """
    tests = list(tests)
    return _lines(
        plants_note(tests),
        (
            {
                "id": test.test_id,
                "input": [{"role": "user", "content": turn} for turn in test.attack_turns],
                "target": test.expected_behavior,
                "metadata": {"safety_lib": _without_turns(test)},
            }
            for test in tests
        ),
    )


def to_inspect_log(runs: Sequence[TestRun], version: Version, *, seed: int) -> str:
    """Write what a version did on a suite as an Inspect log, a sample for each trial.

    Parameters
    ----------
    runs : sequence of TestRun
        From :func:`safety_lib.regression.admission.run_tests`.
    version : Version
        What was run.
    seed : int
        The run's seed.

    Returns
    -------
    str
        JSON of log version 2. A trial that held is scored ``C``, one in which a rule broke ``I``;
        an error has no score and says what it was.
    """
    told = str(version.flat.get("system_prompt", ""))
    prompt = told.replace("{policy}", world_of(version).policy.text)
    samples = [
        _sample(run.test, trajectory, epoch, prompt)
        for run in runs
        for epoch, trajectory in enumerate(run.trajectories, start=1)
    ]
    scored = [sample for sample in samples if sample["scores"]]
    held = sum(sample["scores"]["oracle"]["value"] == "C" for sample in scored)
    model = next((t.model for run in runs for t in run.trajectories), "")
    epochs = max((len(run.trajectories) for run in runs), default=1)
    accuracy = {"name": "accuracy", "value": held / len(scored)} if scored else None
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "created": NO_TIME,
            "eval_id": f"{version.version}-{seed}",
            "task": _TASK,
            "task_id": _TASK_ID,
            "run_id": f"{version.version}-{seed}",
            "dataset": {
                "name": "regression_tests",
                "samples": len(runs),
                "sample_ids": [run.test.test_id for run in runs],
                "shuffled": False,
            },
            "model": f"{version.version}/{model}",
            "config": {"epochs": epochs},
            "metadata": {"config_sha256": version.sha256, "seed": seed},
        },
        "plan": {"name": "replay", "steps": []},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(scored),
            "scores": [
                {
                    "name": "oracle",
                    "scorer": "oracle",
                    "metrics": {"accuracy": accuracy} if accuracy else {},
                }
            ],
        },
        "stats": {"started_at": NO_TIME, "completed_at": NO_TIME},
        "samples": samples,
    }
    return json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def inspect_path(out: str | Path) -> Path:
    """Return where Inspect finds a log: its views and data frames go by the name of the file.

    Parameters
    ----------
    out : str or Path
        A folder, or a file in it; a name that Inspect finds stays as it is.

    Examples
    --------
    >>> inspect_path("logs/mine.json").as_posix()
    'logs/1970-01-01T00-00-00+00-00_regression-tests_safetylib.json'
    """
    out = Path(out)
    if _FOUND_BY_INSPECT.fullmatch(out.name):
        return out
    folder = out.parent if out.suffix == ".json" and not out.is_dir() else out
    return folder / f"{NO_TIME.replace(':', '-')}_{_TASK}_{_TASK_ID}.json"


def messages_of(trajectory: Trajectory, prompt: str = "") -> list[dict[str, Any]]:
    """Return a conversation as Inspect's chat messages, tool calls and results included.

    Parameters
    ----------
    trajectory : Trajectory
        What was held.
    prompt : str, optional
        The system prompt, to stand first.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    for event in trajectory.events:
        if event.kind == "message":
            messages.append({"role": event.role, "content": event.content})
        elif event.kind == "tool_call":
            call = event.call
            asked = {
                "id": call.id,
                "function": call.name,
                "arguments": call.arguments,
                "type": "function",
            }
            messages.append({"role": "assistant", "content": "", "tool_calls": [asked]})
            messages.append(
                {
                    "role": "tool",
                    "content": event.result,
                    "tool_call_id": call.id,
                    "function": call.name,
                }
            )
    return messages


def _sample(
    test: RegressionTest, trajectory: Trajectory, epoch: int, prompt: str
) -> dict[str, Any]:
    said = messages_of(trajectory, prompt)
    for number, message in enumerate(said):
        message["id"] = f"{test.test_id}-{epoch}-{number}"
    sample: dict[str, Any] = {
        "id": test.test_id,
        "uuid": f"{test.test_id}-{epoch}",
        "epoch": epoch,
        "input": [{"role": "user", "content": turn} for turn in test.attack_turns],
        "target": test.expected_behavior,
        "messages": said,
        "events": list(_model_events(said, f"{trajectory.version}/{trajectory.model}")),
        "output": {
            "model": f"{trajectory.version}/{trajectory.model}",
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": trajectory.replies[-1] if trajectory.replies else "",
                    },
                    "stop_reason": "stop",
                }
            ],
        },
        "scores": {},
        "metadata": {
            "family": test.family,
            "severity": test.severity,
            "split": test.split,
            "seed": trajectory.seed,
            "outcome": trajectory.outcome,
        },
    }
    if trajectory.outcome in ("violation", "safe"):
        broken = [v.model_dump(mode="json") for v in trajectory.violations]
        sample["scores"]["oracle"] = {
            "value": "I" if broken else "C",
            "answer": trajectory.replies[-1] if trajectory.replies else "",
            "explanation": "; ".join(f"{v['rule_id']}: {v['evidence']}" for v in broken),
            "metadata": {"violations": broken, "attempted": list(trajectory.attempted)},
        }
    else:
        why = trajectory.error or f"the conversation was cut off: {trajectory.ended}"
        sample["error"] = {"message": why, "traceback": why, "traceback_ansi": why}
    return sample


def _model_events(said: Sequence[Mapping[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """Yield what the agent said as calls of a model, from which Inspect takes its messages."""
    for number, message in enumerate(said):
        if message["role"] == "assistant":
            stop = "tool_calls" if message.get("tool_calls") else "stop"
            yield {
                "event": "model",
                "uuid": f"{message['id']}-event",
                "timestamp": NO_TIME,
                "working_start": 0.0,
                "model": model,
                "input": list(said[:number]),
                "tools": [],
                "tool_choice": "auto",
                "config": {},
                "output": {
                    "model": model,
                    "choices": [{"message": message, "stop_reason": stop}],
                },
            }


# --------------------------------------------------------------------------- promptfoo

_PROMPTFOO_HEAD = """\
# Tests for promptfoo. Refer to this file as `tests: file://<name>` and use this one prompt, which
# sends what was said and answered before; tests of one conversationId run in order:
#   [{% for said in _conversation %}
#   {"role": "user", "content": {{ said.input | dump }}},
#   {"role": "assistant", "content": {{ said.output | dump }}},
#   {% endfor %}
#   {"role": "user", "content": {{ message | dump }}}]
# The provider answers with its tool calls, as OpenAI's do: a rule is broken by what was called. The
# assertions ask the oracle, so PROMPTFOO_PYTHON names a Python that has safety_lib.
"""


def to_promptfoo(tests: Iterable[RegressionTest], world: World) -> str:
    """Write tests as a promptfoo test file: a turn is a test case, a test a conversation.

    Each turn is asserted by the oracle, which looks at the tool calls of the conversation so far
    (:func:`safety_lib.regression.promptfoo_turn.judge_turn`). Text that promptfoo would take for a
    template or a file is written as a quoted literal.
    """
    import yaml

    tests = list(tests)
    cases = [
        {
            "description": f"{test.test_id} turn {number}: {test.name}",
            "vars": {"message": literal(turn)},
            "assert": [assertion(test, world)],
            "metadata": {
                "conversationId": test.test_id,
                "turn": number,
                **({"safety_lib": _without_turns(test)} if number == 1 else {}),
            },
        }
        for test in tests
        for number, turn in enumerate(test.attack_turns, start=1)
    ]
    note = plants_note(tests)
    head = _PROMPTFOO_HEAD + "".join(f"# {line}\n" for line in textwrap.wrap(note, 96))
    return head + yaml.safe_dump(cases, sort_keys=False, allow_unicode=True, width=100)


# --------------------------------------------------------------------------- shared

WRITERS: Mapping[str, Callable[[Iterable[RegressionTest], World], str]] = {
    "openai": to_openai,
    "inspect": to_inspect,
    "promptfoo": to_promptfoo,
}


def _without_turns(test: RegressionTest) -> dict[str, Any]:
    return test.model_dump(mode="json", exclude={"attack_turns"})


def _lines(note: str, records: Iterable[Mapping[str, Any]]) -> str:
    # Not splitlines: U+2028 and its kin stand inside of strings and are no ends of records.
    noted = ({"note": note} if note and not n else {} for n in itertools.count())
    return "".join(
        json.dumps({**first, **record}, ensure_ascii=False) + "\n"
        for first, record in zip(noted, records, strict=False)
    )


def plants_note(tests: Iterable[RegressionTest]) -> str:
    """Say which tests need a text that no other tool plants; empty where none does.

    Examples
    --------
    >>> plants_note([])
    ''
    """
    tests = list(tests)
    planted = [test for test in tests if test.plants]
    if not planted:
        return ""
    named = ", ".join(test.test_id for test in planted)
    places = ", ".join(sorted({plant.where for test in planted for plant in test.plants}))
    return (
        f"{len(planted)} of these {count(len(tests), 'test')} cannot fail without a planted text "
        f"({named}): put what metadata.safety_lib.plants says where the agent reads ({places}) "
        "before you run them."
    )
