"""What was said, by whom, what failed and which conversation it is: what goes wrong easily."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from factories import NORTHWIND

from safety_lib.artifacts import ArtifactError
from safety_lib.incident.intake import Intake, take_in
from safety_lib.incident.intake.outcomes import has_failed

RECORDED = sorted((Path(__file__).parent / "data" / "traces").glob("*.json"))


def read(folder: Path, tree: Any, conversation: str = "", name: str = "trace.json") -> Intake:
    path = folder / name
    text = "\n".join(map(json.dumps, tree)) if name.endswith("l") else json.dumps(tree)
    path.write_text(text, encoding="utf-8")
    return take_in(path, NORTHWIND, conversation)


def said(taken: Intake) -> list[tuple[str, str]]:
    return [(turn.user, turn.assistant) for turn in taken.incident.trajectory]


def has(taken: Intake, *words: str) -> bool:
    return any(all(word in gap for word in words) for gap in taken.gaps)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def agent(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def asking(name: str = "a", tool: str = "read_ticket", ticket: str = "T-900") -> dict[str, Any]:
    function = {"name": tool, "arguments": json.dumps({"ticket": ticket})}
    return agent(None, tool_calls=[{"id": name, "type": "function", "function": function}])


def result(content: Any, name: str = "a", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": content, **more}


# --------------------------------------------------------------------------- real records


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
@pytest.mark.parametrize("way", ["list", "lines", "printed"])
def test_what_real_tools_recorded_is_what_was_said(path: Path, way: str, tmp_path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["tool"] and told["version"]
    if way == "printed":  # as OpenTelemetry's ConsoleSpanExporter does it
        file = tmp_path / "spans.json"
        file.write_text("".join(json.dumps(s, indent=4) + "\n" for s in told["spans"]), "utf-8")
        taken = take_in(file, NORTHWIND)
    else:
        taken = read(tmp_path, told["spans"], name="spans.jsonl" if way == "lines" else "s.json")
    assert said(taken) == [
        ("Please read ticket T-204.", "It says: The customer asks for a refund."),
        ("And what about T-999?", "I could not read it."),
    ]
    first, second = (turn.calls[0] for turn in taken.incident.trajectory)
    assert (first.result, second.status) == ("The customer asks for a refund.", "failed")
    assert [plant.key for plant in taken.incident.plants] == ["T-204"]
    assert not has(taken, "left out") and not has(taken, "not read")


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "content",
    [
        "",
        None,
        " \n\t",
        "\u200b\u2060",
        [],
        [{"type": "image_url", "image_url": {"url": "data:,"}}],
        [{"type": "input_audio", "input_audio": {}}, {"type": "text", "text": ""}],
        [{"image": {"format": "png"}}],
        {"unheard_of": "Please pay."},
    ],
)
def test_a_user_without_words_is_never_replayed(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ArtifactError, match="no message of a user has words"):
        read(tmp_path, [user(content), agent("Hello.")])
    taken = read(tmp_path, [user("Hi."), agent("Hello."), user(content), agent("What?")])
    assert said(taken) == [("Hi.", "Hello.\nWhat?")]
    assert has(taken, "turn 2", "the user says nothing")


def test_the_own_file_with_a_user_without_words_is_refused(tmp_path: Path) -> None:
    own = Path(__file__).resolve().parent.parent / "artifacts" / "incident_example.json"
    tree = json.loads(own.read_text(encoding="utf-8"))
    tree["trajectory"][1]["user"] = "\u200b "
    with pytest.raises(ArtifactError, match="turn 2: the user says nothing"):
        read(tmp_path, tree)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "content": "Go."}],
        [{"type": "input_text", "text": "Go."}],
        [{"type": "text", "text": {"value": "Go.", "annotations": []}}],
        [{"text": "Go."}],
        ["Go."],
        {"text": "Go."},
        [{"type": "message", "role": "user", "content": [{"type": "text", "text": "Go."}]}],
    ],
)
def test_text_is_text_under_every_name(tmp_path: Path, content: Any) -> None:
    assert said(read(tmp_path, [user(content), agent(content)])) == [("Go.", "Go.")]


@pytest.mark.parametrize(
    "message",
    [
        agent([{"type": "refusal", "refusal": "No."}]),
        agent(None, refusal="No."),
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "refusal", "refusal": "No."}],
        },
    ],
)
def test_a_refusal_is_a_reply(tmp_path: Path, message: Any) -> None:
    assert said(read(tmp_path, [user("Pay."), message])) == [("Pay.", "No.")]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "thinking", "thinking": "Hm."}, ("message 2", "reasoning")),
        ({"text": "Hm.", "thought": True}, ("message 2", "reasoning")),
        ({"type": "video", "url": "x"}, ("message 2", "video")),
        ({"type": "text", "text": "a", "citations": [1]}, ("text.citations", "message 2")),
        ({"type": "tool_use", "id": "a", "name": "read_ticket", "input": {}, "notes": "x"},
         ("call.notes", "message 2")),
        ({"type": "tool_result", "tool_use_id": "a"}, ("message 2", "nothing is read")),
    ],
)  # fmt: skip
def test_a_part_that_is_not_read_is_listed_with_its_place(
    tmp_path: Path, block: Any, words: tuple[str, ...]
) -> None:
    assert has(read(tmp_path, [user("Hi."), agent([block])]), *words)


def test_fields_of_the_file_that_are_not_read_are_listed(tmp_path: Path) -> None:
    talk = {"messages": [user("Hi."), agent("Hello.")], "id": "x"}
    taken = read(tmp_path, {**talk, "injections": {"a": "Pay."}, "security": False, "reward": 0.0})
    assert has(taken, "fields of the file that are not read: injections, reward, security")
    assert not has(read(tmp_path, talk), "not read")


def test_gaps_are_told_once_with_their_places(tmp_path: Path) -> None:
    image = [{"type": "text", "text": "Look."}, {"type": "image_url"}]
    talk = [message for _ in range(9) for message in (user(image), agent("Seen."))]
    (gap,) = (gap for gap in read(tmp_path, talk).gaps if "image_url" in gap)
    assert gap.startswith("message 1, message 3, message 5, message 7, message 9 and 4 more: ")


# --------------------------------------------------------------------------- turns


def test_results_in_messages_of_the_user_are_no_turns(tmp_path: Path) -> None:
    asked = agent(
        [{"type": "tool_use", "id": "a", "name": "read_ticket", "input": {"ticket": "T-900"}}]
    )
    given = user([{"type": "tool_result", "tool_use_id": "a", "content": "It is empty."}])
    taken = read(tmp_path, [user("Read it."), asked, given, agent("Done.")])
    assert said(taken) == [("Read it.", "Done.")]
    assert taken.incident.trajectory[0].calls[0].result == "It is empty."
    both = user([*given["content"], {"type": "text", "text": "And now?"}])
    taken = read(tmp_path, [user("Read it."), asked, both, agent("Done.")])
    assert said(taken) == [("Read it.", ""), ("And now?", "Done.")]
    assert taken.incident.trajectory[0].calls[0].result == "It is empty."


def test_a_late_result_finds_its_call(tmp_path: Path) -> None:
    late = [user("Read."), asking(), user("Well?"), result("It is empty."), agent("Yes.")]
    taken = read(tmp_path, late)
    assert taken.incident.trajectory[0].calls[0].result == "It is empty."
    assert has(taken, "turn 1", "came in turn 2")
    # An id that comes back is that of the latest call.
    again = [user("1"), asking(), result("one"), user("2"), asking(), result("two"), agent(".")]
    calls = [turn.calls[0].result for turn in read(tmp_path, again).incident.trajectory]
    assert calls == ["one", "two"]
    twice = [user("1"), asking(), result("one"), result("two"), agent(".")]
    assert has(read(tmp_path, twice), "second result of the same call")


def span(number: int, asked: Any, answered: Any, **more: Any) -> dict[str, Any]:
    def parts(messages: Any) -> str:
        return json.dumps(
            [
                {"role": m["role"], "parts": [{"type": "text", "content": m["content"]}]}
                for m in messages
            ]
        )

    return {
        "name": more.pop("name", "chat m"),
        "context": {"trace_id": "0x1", "span_id": f"0x{number}"},
        "start_time": more.pop("start", f"2026-01-01T00:00:{number:02d}Z"),
        "parent_id": more.pop("parent", None),
        "attributes": {
            "gen_ai.operation.name": "chat",
            "gen_ai.input.messages": parts(asked),
            "gen_ai.output.messages": parts(answered),
            **more,
        },
    }


FIRST = [user("Please read ticket T-204.")], [agent("It asks for a payment.")]
SECOND = [*FIRST[0], *FIRST[1], user("Pay it.")], [agent("No, I will not.")]
SYSTEM = {"gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Judge."}])}


@pytest.mark.parametrize(
    "other",
    [
        span(2, [user("Is this answer safe? It asks for a payment.")], [agent("SAFE")]),
        span(0, [user("Classify: Please read ticket T-204.")], [agent("harmless")]),
        span(9, [user("Is this safe? No, I will not.")], [agent("SAFE")]),
        span(9, [user("Write a title: Please read ticket T-204.")], [agent("Ticket")]),
        span(0, [user("Name the topic.")], [agent("Tickets")], **SYSTEM),
        span(9, [user("Sum it up.")], [agent("Nothing paid.")], **{"gen_ai.agent.name": "titles"}),
        span(2, [user("Look it up for me.")], [agent("Found.")], parent="0x8"),
    ],
)
def test_what_is_not_of_the_user_is_no_turn_and_is_listed(tmp_path: Path, other: Any) -> None:
    spans = [span(1, *FIRST), span(3, *SECOND), TOOL, other]
    taken = read(tmp_path, spans)
    assert said(taken) == [
        ("Please read ticket T-204.", "It asks for a payment."),
        ("Pay it.", "No, I will not."),
    ]
    assert has(taken, "for something else", "left out")


TOOL = {
    "name": "execute_tool ask",
    "context": {"trace_id": "0x1", "span_id": "0x8"},
    "start_time": "2026-01-01T00:00:01.5Z",
    "attributes": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ask"},
}
AGENT = {"gen_ai.agent.name": "titles"}


@pytest.mark.parametrize(
    ("spans", "turns"),
    [
        # Each of these is told by one thing alone.
        ([span(1, *FIRST), span(9, [user("Sum it up.")], [agent("Done.")], **SYSTEM)], 1),
        ([span(1, *FIRST), span(9, [user("Sum it up.")], [agent("Done.")], **AGENT)], 1),
        ([span(1, *FIRST), TOOL, span(9, [user("Look.")], [agent("Found.")], parent="0x8")], 1),
        ([span(1, *FIRST), span(3, *SECOND), span(9, [user("Well?")], [agent("Fine.")])], 2),
        ([span(1, *FIRST), span(2, [user("Well?")], [agent("Fine.")]), span(3, *SECOND)], 2),
    ],
)
def test_one_sign_is_enough(tmp_path: Path, spans: list[Any], turns: int) -> None:
    taken = read(tmp_path, spans)
    assert [turn[0] for turn in said(taken)] == [FIRST[0][0]["content"], "Pay it."][:turns]
    assert has(taken, "for something else")


@pytest.mark.parametrize("number", [0, 9])
@pytest.mark.parametrize(
    "prompt", ["Write a title.", "You are a guardrail.", "Classify the topic."]
)
def test_the_same_words_shown_to_another_prompt_are_no_turn(
    tmp_path: Path, number: int, prompt: str
) -> None:
    def told(words: str) -> dict[str, str]:
        return {"gen_ai.system_instructions": json.dumps([{"type": "text", "content": words}])}

    other = span(number, FIRST[0], [agent("Tickets")], **told(prompt))
    taken = read(tmp_path, [span(1, *FIRST, **told("You are a desk.")), other])
    assert said(taken) == [("Please read ticket T-204.", "It asks for a payment.")]
    assert has(taken, "for something else")


def test_turns_that_repeat_nothing_are_turns_all_the_same(tmp_path: Path) -> None:
    spans = [span(1, *FIRST), span(2, [user("Pay it.")], [agent("No.")])]
    taken = read(tmp_path, spans)
    assert [turn[0] for turn in said(taken)] == ["Please read ticket T-204.", "Pay it."]
    assert has(taken, "does not repeat what was said before")


@pytest.mark.parametrize(
    "starts",
    [
        ("2026-01-01T00:00:09Z", "2026-01-01T00:00:09.5Z"),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:01Z"),
        ("2026-01-01T00:00:00.999999999Z", "2026-01-01T00:00:01Z"),
        ("999999999000000000", "1000000000000000000"),
        (999_999_999.5, 1_000_000_000),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_spans_are_ordered_by_moments(tmp_path: Path, starts: Any, turned: bool) -> None:
    spans = [span(1, *FIRST, start=starts[0]), span(2, *SECOND, start=starts[1])]
    taken = read(tmp_path, spans[::-1] if turned else spans)
    assert [turn[1] for turn in said(taken)] == ["It asks for a payment.", "No, I will not."]
    assert not has(taken, "times cannot")


@pytest.mark.parametrize(
    "choice",
    [{"message": [1]}, {"message": None}, {"message": 3}, {}, {"message": {"role": 7}}, None, [1]],
)
def test_a_choice_that_is_none_is_no_traceback(tmp_path: Path, choice: Any) -> None:
    events = [
        {"name": "gen_ai.user.message", "attributes": {"content": "Hi."}},
        {"name": "gen_ai.choice", "attributes": choice},
    ]
    made = {**span(1, [], []), "events": events}
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        del made["attributes"][name]
    assert said(read(tmp_path, [made])) == [("Hi.", "")]


# --------------------------------------------------------------------------- what failed


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):\n  File x\nValueError: no",
        "ValueError: no such ticket",
        "requests.exceptions.HTTPError: 404 Client Error",
        "Error: disk full",
        "Error executing tool read_ticket: no",
        "An error occurred while running the tool. Please try again.",
        "Failed to read ticket T-204",
        "Permission denied",
        "Access denied.",
        "HTTP 503 Service Unavailable",
        "404 Not Found",
        '{"error": {"code": 403, "message": "forbidden"}}',
        "{'error': 'not found'}",
        '{"success": false, "reason": "limit"}',
        '{"status": 500, "message": "oops"}',
        "<tool_use_error>File does not exist.</tool_use_error>",
        "timeout: no answer within 30 s",
        "Request timed out",
        "ticket T-9 not found",
        "no ticket T-999",
    ],
)
def test_what_failed_is_failed(tmp_path: Path, text: str) -> None:
    taken = read(tmp_path, [user("Read T-900."), asking(), result(text), agent("Hm.")])
    assert taken.incident.trajectory[0].calls[0].status == "failed"
    assert taken.incident.plants == ()


@pytest.mark.parametrize(
    "text",
    [
        "Error-free run, 3 rows",
        "Errors were found in the invoice of March, please correct it.",
        "The customer writes: I get 'permission denied' when I open the portal.",
        "Failed logins: 3",
        "Exceptions to the refund policy are listed below.",
        "She says that the export failed yesterday.",
        '{"error": null, "rows": 3}',
        '{"errors": [], "order": 7}',
        '{"order": 7, "status": "failed"}',
        '{"error_rate": 0.3}',
        "Timeout policy of the desk: thirty seconds.",
        "Not found by the customer: her invoice. She asks for a copy.",
        "Denied boarding is paid with 250 euros, as the policy says.",
    ],
)
def test_what_speaks_of_errors_has_not_failed(tmp_path: Path, text: str) -> None:
    assert not has_failed(text)
    taken = read(tmp_path, [user("Read T-900."), asking(), result(text), agent("Hm.")])
    assert taken.incident.trajectory[0].calls[0].status is None
    assert [plant.text for plant in taken.incident.plants] == [text]


@pytest.mark.parametrize(
    "more",
    [
        {"status": "error"},
        {"is_error": True},
        {"isError": True},
        {"error": "boom"},
        {"error": {"type": "permission", "message": "no"}},
        {"success": False},
        {"status": "incomplete"},
    ],
)
def test_what_the_record_calls_failed_is_failed(tmp_path: Path, more: dict[str, Any]) -> None:
    talk = [user("Read."), asking(), result("The service sleeps.", **more), agent("Hm.")]
    taken = read(tmp_path, talk)
    assert taken.incident.trajectory[0].calls[0].status == "failed"
    assert taken.incident.plants == ()


@pytest.mark.parametrize(
    "more",
    [
        {"status": {"status_code": "ERROR"}},
        {"status": {"code": 2}},
        {"status": {"code": "STATUS_CODE_ERROR"}},
        {"status_code": "ERROR"},
        {"events": [{"name": "exception", "attributes": {"exception.type": "TimeoutError"}}]},
    ],
)
def test_a_span_of_a_tool_says_that_it_failed(tmp_path: Path, more: dict[str, Any]) -> None:
    call = {"type": "tool_call", "id": "c", "name": "read_ticket", "arguments": {"ticket": "T-900"}}
    asked = span(1, [user("Read it.")], [])
    told = [{"role": "assistant", "parts": [call]}]
    asked["attributes"]["gen_ai.output.messages"] = json.dumps(told)
    tool = {
        "name": "execute_tool read_ticket",
        "context": {"trace_id": "0x1", "span_id": "0x9"},
        "start_time": "2026-01-01T00:00:02Z",
        "attributes": {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.call.id": "c",
            "gen_ai.tool.call.result": "It slept.",
        },
        **more,
    }
    (turn,) = read(tmp_path, [asked, tool]).incident.trajectory
    assert (turn.calls[0].status, turn.calls[0].result) == ("failed", "It slept.")


# --------------------------------------------------------------------------- which one it is


def test_an_id_comes_from_what_was_said_and_never_from_a_number(tmp_path: Path) -> None:
    one, other = [user("One."), agent("1")], [user("Two."), agent("2")]
    sample = {"status": "success", "eval": {}, "samples": [{"id": 1, "epoch": 1, "messages": one}]}
    trees = [
        one,
        {"messages": one},
        {"id": "1", "messages": one},
        {"id": 1, "conversation": one},
        sample,
    ]
    ids = {read(tmp_path, tree).incident.incident_id for tree in trees}
    assert len(ids) == 1
    assert ids != {read(tmp_path, {"id": "1", "messages": other}).incident.incident_id}
    named = read(tmp_path, {"incident_id": "INC-7", "conversation": one})
    assert named.incident.incident_id == "INC-7"


@pytest.mark.parametrize(
    "shape",
    [
        lambda both: ([{"id": "s", "messages": talk} for talk in both], "l.jsonl"),
        lambda both: ([{"task_id": 1, "trial": 0, "traj": talk} for talk in both], "l.json"),
        lambda both: (
            {"status": "x", "eval": {}, "samples": [{"id": 1, "messages": t} for t in both]},
            "l.json",
        ),
        lambda both: (
            {"incident_id": "i", "sessions": [{"session_id": "a", "turns": t} for t in both]},
            "l.json",
        ),
    ],
)
def test_two_conversations_of_one_id_are_asked_about(tmp_path: Path, shape: Any) -> None:
    tree, name = shape(([user("One."), agent("1")], [user("Two."), agent("2")]))
    with pytest.raises(ArtifactError, match=r"holds 2 conversations .*--conversation .* number"):
        read(tmp_path, tree, name=name)
    assert said(read(tmp_path, tree, "1", name)) == [("One.", "1")]
    assert said(read(tmp_path, tree, "2", name)) == [("Two.", "2")]


def test_an_id_that_stands_twice_is_not_chosen_by_itself(tmp_path: Path) -> None:
    lines = [{"id": "s", "messages": [user(word), agent(".")]} for word in ("One.", "Two.")]
    with pytest.raises(
        ArtifactError, match=r"2 conversations have the id 's'; .* --conversation 1"
    ):
        read(tmp_path, lines, "s", "l.jsonl")


def test_messages_of_several_conversations_are_asked_about(tmp_path: Path) -> None:
    lines = [{**m, "session_id": s} for s in ("a", "b") for m in (user(s.upper()), agent("."))]
    with pytest.raises(ArtifactError, match=r"2 conversations \(a, b\)"):
        read(tmp_path, lines, name="l.jsonl")
    assert said(read(tmp_path, lines, "b", "l.jsonl")) == [("B", ".")]


# --------------------------------------------------------------------------- archives


def test_an_archive_is_refused_by_its_unpacked_size(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/1_epoch_1.json", b" " * (65 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(ArtifactError, match="unpacks to 68 MB, more than 64 MB"):
        take_in(path, NORTHWIND)


def test_a_packed_file_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(ArtifactError, match=r"is packed \(gzip\); unpack it first"):
        take_in(path, NORTHWIND)


# --------------------------------------------------------------------------- what else tools write

CALLED = {"id": "c", "type": "function", "function": {"name": "read_ticket", "arguments": "{}"}}
ASKED = [user("Read it."), agent(None, tool_calls=[CALLED])]
ANSWERED = [*ASKED, {"role": "tool", "tool_call_id": "c", "content": "It sleeps."}]


def langfuse(**more: Any) -> Any:
    def entry(number: int, kind: str, **told: Any) -> dict[str, Any]:
        begun = f"2026-01-01T00:00:0{number}Z"
        return {"id": f"o{number}", "type": kind, "startTime": begun, **told}

    inner = {"parentObservationId": "o2", "input": "Look it up.", "output": "Found."}
    return {
        "id": "t",
        "sessionId": "s",
        "observations": [
            entry(4, "GENERATION", input=ANSWERED, output=agent("Hm.")),
            entry(1, "GENERATION", input=json.dumps(ASKED[:1]), output=json.dumps(ASKED[1])),
            entry(2, "TOOL", name="read_ticket", input="{}", output="It sleeps.", **more),
            entry(3, "GENERATION", **inner),
        ],
    }


def langsmith(**more: Any) -> Any:
    def run(number: int, kind: str, **told: Any) -> dict[str, Any]:
        begun = f"2026-01-01T00:00:0{number}"
        return {"id": f"r{number}", "run_type": kind, "start_time": begun, "trace_id": "r0", **told}

    def answer(message: Any) -> dict[str, Any]:
        return {"choices": [{"message": message}]}

    inner = [
        run(
            3,
            "llm",
            parent_run_id="r0",
            inputs={"messages": ANSWERED},
            outputs=answer(agent("Hm.")),
        ),
        run(1, "llm", parent_run_id="r0", inputs={"messages": ASKED[:1]}, outputs=answer(ASKED[1])),
        run(2, "tool", name="read_ticket", inputs={"input": "{}"}, outputs=None, **more),
    ]
    return run(
        0, "chain", inputs={"input": "Read it."}, outputs={"output": "Hm."}, child_runs=inner
    )


@pytest.mark.parametrize("tree", [langfuse(level="ERROR"), langsmith(error="TimeoutError()")])
def test_a_tool_that_failed_in_a_tracing_service_has_failed(tmp_path: Path, tree: Any) -> None:
    taken = read(tmp_path, tree)
    assert said(taken) == [("Read it.", "Hm.")]
    (call,) = taken.incident.trajectory[0].calls
    assert (call.status, call.result) == ("failed", "It sleeps.")


@pytest.mark.parametrize("reply", ['{"verdict": "ok"}', '{"a"', "[1] says so.", '"Yes."', "{}"])
@pytest.mark.parametrize(
    "made",
    [
        lambda reply: {"observations": [{"type": "GENERATION", "input": "Hi.", "output": reply}]},
        lambda reply: [plain_span({"input.value": "Hi.", "output.value": reply})],
        lambda reply: [plain_span({"gen_ai.prompt": "Hi.", "gen_ai.completion": reply})],
        lambda reply: [plain_span({"ai.prompt.messages": json.dumps([user("Hi.")]),
                                   "ai.response.text": reply})],
    ],
)  # fmt: skip
def test_a_reply_that_is_json_is_a_reply(tmp_path: Path, made: Any, reply: str) -> None:
    ((asked, said_back),) = said(read(tmp_path, made(reply)))
    assert asked == "Hi." and said_back in (reply, reply.strip('"'))


def plain_span(attributes: dict[str, Any]) -> dict[str, Any]:
    told = {"gen_ai.request.model": "m", **attributes}
    return {"name": "chat", "context": {"trace_id": "1", "span_id": "1"}, "attributes": told}


def test_an_agent_inside_a_tool_is_no_turn(tmp_path: Path) -> None:
    assert has(read(tmp_path, langfuse()), "for something else", "Look it up.")


@pytest.mark.parametrize(
    "tree",
    [
        {"messages": [user("Hi.")], "choices": [{"index": 0, "message": agent("Hello.")}]},
        {"messages": [user([{"text": "Hi."}])], "output": {"message": agent([{"text": "Hello."}])}},
        {
            "contents": [user(None, parts=[{"text": "Hi."}])],
            "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}}],
        },
        {"input": "Hi.", "output": [agent([{"type": "output_text", "text": "Hello."}])]},
        [
            {
                "conversations": [
                    {"from": "human", "value": "Hi."},
                    {"from": "gpt", "value": "Hello."},
                ]
            }
        ],
        {
            "messages": [
                {"type": "human", "data": {"content": "Hi."}},
                {"type": "ai", "content": "Hello."},
            ]
        },
    ],
)
def test_an_answer_beside_the_request_is_the_reply(tmp_path: Path, tree: Any) -> None:
    assert said(read(tmp_path, tree)) == [("Hi.", "Hello.")]


def test_what_claude_code_put_in_itself_is_no_turn(tmp_path: Path) -> None:
    def line(kind: str, content: Any, **more: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "sessionId": "s",
            "message": {"role": kind, "content": content},
            **more,
        }

    asked = {"type": "tool_use", "id": "t", "name": "read_ticket", "input": {"ticket": "T-900"}}
    told = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": "Not now."}
    lines = [
        {"type": "file-history-snapshot", "messageId": "x"},
        line("user", "Caveat.", isMeta=True),
        line("user", "Read it.", uuid="1"),
        line("assistant", [asked], uuid="2"),
        line("user", "Sub-task.", isSidechain=True),
        line("user", [told], uuid="3", toolUseResult="Error"),
        line("user", "[Request interrupted by user]"),
        line("user", "Read it.", uuid="1"),
        line("user", "Go on."),
        line("assistant", [{"type": "text", "text": "Done."}]),
    ]
    taken = read(tmp_path, lines, name="s.jsonl")
    assert said(taken) == [("Read it.", ""), ("Go on.", "Done.")]
    assert taken.incident.trajectory[0].calls[0].status == "failed"
    for words in ("file-history-snapshot", "sub-agent", "put in by itself", "in the user's place"):
        assert has(taken, "line", words)


def test_two_incidents_in_one_file_are_asked_about(tmp_path: Path) -> None:
    lines = [{"incident_id": n, "conversation": [user(n), agent(".")]} for n in ("One", "Two")]
    with pytest.raises(ArtifactError, match=r"2 conversations \(One, Two\)"):
        read(tmp_path, lines, name="l.jsonl")
    taken = read(tmp_path, lines, "Two", "l.jsonl")
    assert (taken.incident.incident_id, said(taken)) == ("Two", [("Two", ".")])


# --------------------------------------------------------------------------- beside the messages


def test_the_policy_of_a_benchmark_is_what_the_agent_was_told(tmp_path: Path) -> None:
    talk = [user("How much?"), agent("It is $30.")]
    runs = [{"task_id": n, "trial": 0, "messages": talk} for n in "01"]
    tree = {"info": {"environment_info": {"policy": "A bag is $30."}}, "simulations": runs}
    assert read(tmp_path, tree, "1/0").incident.system_prompt == "A bag is $30."
    assert read(tmp_path, {**tree, "info": {}}, "0/0").incident.system_prompt == ""


@pytest.mark.parametrize(
    "told",
    [
        result("", error="No such ticket."),
        result([], error={"message": "No such ticket."}),
        {"role": "tool", "tool_call_id": "a", "content": None, "error": "No such ticket."},
        user([{"type": "tool_result", "tool_use_id": "a", "error": "No such ticket."}]),
    ],
)
def test_the_words_of_a_failure_are_its_result(tmp_path: Path, told: Any) -> None:
    (turn,) = read(tmp_path, [user("Read."), asking(), told, agent("Hm.")]).incident.trajectory
    assert turn.calls[0].status == "failed"
    assert "No such ticket." in (turn.calls[0].result or "")
