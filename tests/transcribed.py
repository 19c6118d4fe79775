"""One conversation, written down in each shape that is read: what a real tool would have written.

A conversation is a list of turns: what the user said, the calls with their results, the reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Call(NamedTuple):
    id: str
    name: str
    arguments: dict[str, Any]
    result: str


class Turn(NamedTuple):
    user: str
    calls: tuple[Call, ...]
    reply: str


Conversation = list[Turn]
Messages = list[dict[str, Any]]
PROMPT = "You are a desk."


def openai(talk: Conversation) -> Messages:
    told: Messages = [{"role": "system", "content": PROMPT}]
    for turn in talk:
        told.append({"role": "user", "content": turn.user})
        for call in turn.calls:
            function = {"name": call.name, "arguments": json.dumps(call.arguments)}
            asked = {"id": call.id, "type": "function", "function": function}
            told.append({"role": "assistant", "content": None, "tool_calls": [asked]})
            told.append({"role": "tool", "tool_call_id": call.id, "content": call.result})
        if turn.reply:
            told.append({"role": "assistant", "content": turn.reply})
    return told


def _blocks(
    talk: Conversation,
    text: Callable[[str], Any],
    call: Callable[[Call], Any],
    result: Callable[[Call], Any],
    names: tuple[str, str, str, str] = ("user", "assistant", "user", "content"),
) -> Messages:
    user, assistant, tool, content = names
    told: Messages = []
    for turn in talk:
        told.append({"role": user, content: [text(turn.user)]})
        for one in turn.calls:
            told.append({"role": assistant, content: [call(one)]})
            told.append({"role": tool, content: [result(one)]})
        if turn.reply:
            told.append({"role": assistant, content: [text(turn.reply)]})
    return told


def anthropic(talk: Conversation) -> Any:
    return {
        "system": PROMPT,
        "messages": _blocks(
            talk,
            lambda text: {"type": "text", "text": text},
            lambda c: {"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments},
            lambda c: {
                "type": "tool_result",
                "tool_use_id": c.id,
                "content": [{"type": "text", "text": c.result}],
            },
        ),
    }


def bedrock(talk: Conversation) -> Any:
    return {
        "messages": _blocks(
            talk,
            lambda text: {"text": text},
            lambda c: {"toolUse": {"toolUseId": c.id, "name": c.name, "input": c.arguments}},
            lambda c: {
                "toolResult": {
                    "toolUseId": c.id,
                    "content": [{"text": c.result}],
                    "status": "success",
                }
            },
        )
    }


def gemini(talk: Conversation) -> Any:
    return {
        "contents": _blocks(
            talk,
            lambda text: {"text": text},
            lambda c: {"functionCall": {"id": c.id, "name": c.name, "args": c.arguments}},
            lambda c: {
                "functionResponse": {"id": c.id, "name": c.name, "response": {"result": c.result}}
            },
            ("user", "model", "user", "parts"),
        )
    }


def responses(talk: Conversation) -> Any:
    items: Messages = []
    for turn in talk:
        content = [{"type": "input_text", "text": turn.user}]
        items.append({"type": "message", "role": "user", "content": content})
        for call in turn.calls:
            items.append(
                {
                    "type": "function_call",
                    "id": f"fc_{call.id}",
                    "call_id": call.id,
                    "name": call.name,
                    "arguments": json.dumps(call.arguments),
                    "status": "completed",
                }
            )
            items.append(
                {"type": "function_call_output", "call_id": call.id, "output": call.result}
            )
        if turn.reply:
            text = {"type": "output_text", "text": turn.reply, "annotations": []}
            items.append({"type": "message", "role": "assistant", "content": [text]})
    return items


def langchain(talk: Conversation) -> Any:
    told: Messages = []
    for turn in talk:
        told.append({"type": "human", "content": turn.user})
        for call in turn.calls:
            asked = {"id": call.id, "name": call.name, "args": call.arguments, "type": "tool_call"}
            told.append({"type": "ai", "content": "", "tool_calls": [asked]})
            told.append({"type": "tool", "tool_call_id": call.id, "content": call.result})
        if turn.reply:
            told.append({"type": "ai", "content": turn.reply, "tool_calls": []})
    return {"messages": told}


def langchain_constructors(talk: Conversation) -> Any:
    names = {"human": "HumanMessage", "ai": "AIMessage", "tool": "ToolMessage"}
    return [
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", names[told["type"]]],
            "kwargs": told,
        }
        for told in langchain(talk)["messages"]
    ]


def agentdojo(talk: Conversation) -> Any:
    told = []
    for message in openai(talk):
        content = message["content"]
        blocks = None if content is None else [{"type": "text", "content": content}]
        asked = [
            {
                "function": call["function"]["name"],
                "args": json.loads(call["function"]["arguments"]),
                "id": call["id"],
                "placeholder_args": None,
            }
            for call in message.get("tool_calls", [])
        ]
        more = {"tool_call_id": message["tool_call_id"]} if message["role"] == "tool" else {}
        told.append({"role": message["role"], "content": blocks, **more})
        if asked:
            told[-1]["tool_calls"] = asked
    return {"suite_name": "desk", "user_task_id": "user_task_0", "messages": told}


def tau(talk: Conversation) -> Any:
    return [{"task_id": 3, "reward": 0.0, "info": {}, "traj": openai(talk), "trial": 0}]


def tau2(talk: Conversation) -> Any:
    told: Messages = []
    for turn in talk:
        told.append({"role": "user", "content": turn.user})
        for call in turn.calls:
            asked = {"id": call.id, "name": call.name, "arguments": call.arguments}
            told.append({"role": "assistant", "content": None, "tool_calls": [asked]})
            told.append({"role": "tool", "id": call.id, "content": call.result, "error": False})
        if turn.reply:
            told.append({"role": "assistant", "content": turn.reply})
    return {
        "info": {},
        "tasks": [],
        "simulations": [{"task_id": "3", "trial": 0, "messages": told}],
    }


def inspect_log(talk: Conversation) -> Any:
    sample = {"id": 3, "epoch": 1, "messages": openai(talk)}
    return {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": [sample]}


def claude_code(talk: Conversation) -> Any:
    lines: Messages = [{"type": "summary", "summary": "A talk", "leafUuid": "x"}]
    for number, message in enumerate(anthropic(talk)["messages"]):
        lines.append(
            {
                "type": message["role"],
                "sessionId": "s",
                "uuid": f"u{number}",
                "isSidechain": False,
                "message": message,
                "timestamp": f"2026-01-01T00:00:{number % 60:02d}Z",
            }
        )
    return lines


def atif(talk: Conversation) -> Any:
    steps: Messages = []
    for turn in talk:
        steps.append({"step_id": len(steps) + 1, "source": "user", "message": turn.user})
        for call in turn.calls:
            asked = {
                "tool_call_id": call.id,
                "function_name": call.name,
                "arguments": call.arguments,
            }
            shown = {"results": [{"source_call_id": call.id, "content": call.result}]}
            step = {"step_id": len(steps) + 1, "source": "agent", "message": ""}
            steps.append({**step, "tool_calls": [asked], "observation": shown})
        if turn.reply:
            steps.append({"step_id": len(steps) + 1, "source": "agent", "message": turn.reply})
    return {
        "schema_version": "ATIF-v1.5",
        "session_id": "s",
        "agent": {"name": "a"},
        "steps": steps,
    }


# --------------------------------------------------------------------------- calls of a model


def model_calls(told: Messages) -> Iterator[tuple[Messages, dict[str, Any]]]:
    """Yield what a model was asked and what it answered, the whole history each time."""
    for number, message in enumerate(told):
        if message["role"] in ("assistant", "model"):
            yield told[:number], message


def parts(talk: Conversation) -> Messages:
    return _blocks(
        talk,
        lambda text: {"type": "text", "content": text},
        lambda c: {"type": "tool_call", "id": c.id, "name": c.name, "arguments": c.arguments},
        lambda c: {"type": "tool_call_response", "id": c.id, "response": c.result},
        ("user", "assistant", "tool", "parts"),
    )


def span(number: int, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "chat m",
        "context": {"trace_id": "0x1", "span_id": f"0x{number:x}"},
        "start_time": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}.{number % 10}Z",
        "attributes": {"gen_ai.operation.name": "chat", **attributes},
        **more,
    }


def otel(talk: Conversation) -> Any:
    return [
        span(
            number,
            {
                "gen_ai.input.messages": json.dumps(asked),
                "gen_ai.output.messages": json.dumps([answer]),
            },
        )
        for number, (asked, answer) in enumerate(model_calls(parts(talk)))
    ]


def otel_events(talk: Conversation) -> Any:
    spans = []
    for number, (asked, answer) in enumerate(model_calls(openai(talk))):
        events: Messages = [
            {
                "name": f"gen_ai.{message['role']}.message",
                "attributes": {
                    **{k: v for k, v in message.items() if k in ("content", "tool_calls")},
                    **({"id": message["tool_call_id"]} if "tool_call_id" in message else {}),
                },
            }
            for message in asked
        ]
        events.append({"name": "gen_ai.choice", "attributes": {"index": 0, "message": answer}})
        spans.append(span(number, {}, events=events))
    return spans


def otel_numbered(talk: Conversation) -> Any:
    def flat(message: dict[str, Any], start: str) -> dict[str, Any]:
        found = {f"{start}.role": message["role"]}
        if message.get("content") is not None:
            found[f"{start}.content"] = message["content"]
        if "tool_call_id" in message:
            found[f"{start}.tool_call_id"] = message["tool_call_id"]
        for n, call in enumerate(message.get("tool_calls", [])):
            found[f"{start}.tool_calls.{n}.id"] = call["id"]
            found[f"{start}.tool_calls.{n}.name"] = call["function"]["name"]
            found[f"{start}.tool_calls.{n}.arguments"] = call["function"]["arguments"]
        return found

    spans = []
    for number, (asked, answer) in enumerate(model_calls(openai(talk))):
        attributes = flat(answer, "gen_ai.completion.0")
        for n, message in enumerate(asked):
            attributes |= flat(message, f"gen_ai.prompt.{n}")
        spans.append(span(number, attributes))
    return spans


def openinference(talk: Conversation) -> Any:
    def flat(message: dict[str, Any], start: str) -> dict[str, Any]:
        start += ".message"
        found = {f"{start}.role": message["role"]}
        if message.get("content") is not None:
            found[f"{start}.content"] = message["content"]
        if "tool_call_id" in message:
            found[f"{start}.tool_call_id"] = message["tool_call_id"]
        for n, call in enumerate(message.get("tool_calls", [])):
            inner = f"{start}.tool_calls.{n}.tool_call"
            found[f"{inner}.id"] = call["id"]
            found[f"{inner}.function.name"] = call["function"]["name"]
            found[f"{inner}.function.arguments"] = call["function"]["arguments"]
        return found

    spans = []
    for number, (asked, answer) in enumerate(model_calls(openai(talk))):
        attributes = flat(answer, "llm.output_messages.0")
        for n, message in enumerate(asked):
            attributes |= flat(message, f"llm.input_messages.{n}")
        made = span(number, {"openinference.span.kind": "LLM", **attributes})
        del made["attributes"]["gen_ai.operation.name"]
        spans.append(made)
    return spans


def phoenix(talk: Conversation) -> Any:
    """As Phoenix exports them: attributes as a tree."""
    spans = []
    for number, (asked, answer) in enumerate(model_calls(openai(talk))):
        llm = {
            "input_messages": [{"message": message} for message in asked],
            "output_messages": [{"message": answer}],
        }
        made = span(number, {"llm": llm, "openinference": {"span": {"kind": "LLM"}}})
        del made["attributes"]["gen_ai.operation.name"]
        spans.append(made)
    return spans


def langfuse(talk: Conversation) -> Any:
    return {
        "trace": {"id": "t1", "name": "desk", "input": talk[-1].user, "output": talk[-1].reply},
        "observations": [
            {
                "id": f"o{number}",
                "type": "GENERATION",
                "startTime": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z",
                "input": asked,
                "output": answer,
            }
            for number, (asked, answer) in enumerate(model_calls(openai(talk)))
        ],
    }


def langsmith(talk: Conversation) -> Any:
    return [
        {
            "id": f"r{number}",
            "trace_id": "t1",
            "run_type": "llm",
            "name": "ChatModel",
            "start_time": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}",
            "inputs": {"messages": [asked]},
            "outputs": {"generations": [[{"text": "", "message": answer}]]},
        }
        for number, (asked, answer) in enumerate(_constructed_calls(talk))
    ]


def _constructed_calls(talk: Conversation) -> Iterator[tuple[Messages, dict[str, Any]]]:
    told = langchain_constructors(talk)
    for number, message in enumerate(told):
        if message["kwargs"]["type"] == "ai":
            yield told[:number], message


def agents_sdk(talk: Conversation) -> Any:
    return [
        {"object": "trace", "id": "trace_1", "workflow_name": "desk", "group_id": None},
        *(
            {
                "object": "trace.span",
                "id": f"span_{number}",
                "trace_id": "trace_1",
                "parent_id": None,
                "started_at": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}+00:00",
                "span_data": {"type": "generation", "input": asked, "output": [answer]},
                "error": None,
            }
            for number, (asked, answer) in enumerate(model_calls(openai(talk)))
        ),
    ]


def langfuse_spans(talk: Conversation) -> Any:
    """As Langfuse's SDK writes them since its version 3."""
    spans = []
    for number, (asked, answer) in enumerate(model_calls(openai(talk))):
        attributes = {
            "langfuse.observation.type": "generation",
            "langfuse.observation.input": json.dumps({"messages": asked}),
            "langfuse.observation.output": json.dumps(answer),
            "gen_ai.request.model": "m",
        }
        made = span(number, attributes)
        del made["attributes"]["gen_ai.operation.name"]
        spans.append(made)
    return spans


def vercel(talk: Conversation) -> Any:
    """As Vercel's AI SDK writes them."""
    told = _blocks(
        talk,
        lambda text: {"type": "text", "text": text},
        lambda c: {
            "type": "tool-call",
            "toolCallId": c.id,
            "toolName": c.name,
            "input": c.arguments,
        },
        lambda c: {
            "type": "tool-result",
            "toolCallId": c.id,
            "toolName": c.name,
            "output": {"type": "text", "value": c.result},
        },
        ("user", "assistant", "tool", "content"),
    )
    spans = []
    for number, (asked, answer) in enumerate(model_calls(told)):
        (block,) = answer["content"]
        attributes = {
            "ai.operationId": "ai.generateText.doGenerate",
            "ai.prompt.messages": json.dumps(asked),
            "gen_ai.request.model": "m",
        }
        if block["type"] == "text":
            attributes["ai.response.text"] = block["text"]
        else:
            call = {"toolCallId": block["toolCallId"], "toolName": block["toolName"]}
            given = json.dumps(block["input"])
            attributes["ai.response.toolCalls"] = json.dumps([{**call, "input": given}])
        made = span(number, attributes)
        del made["attributes"]["gen_ai.operation.name"]
        spans.append(made)
    return spans


def role_per_turn(talk: Conversation) -> Any:
    turns: Messages = []
    for turn in talk:
        turns.append({"turn": len(turns) + 1, "role": "user", "content": turn.user})
        actions = [{"tool": c.name, "params": c.arguments, "result": c.result} for c in turn.calls]
        said = {"turn": len(turns) + 1, "role": "assistant", "content": turn.reply}
        turns.append({**said, **({"action": actions} if actions else {})})
    return {"incident_id": "INC-9", "trajectory": turns}


def incident(talk: Conversation) -> Any:
    """The file of this project."""
    return {
        "incident_id": "INC-9",
        "timestamp": "2026-01-01T00:00:00Z",
        "severity": "high",
        "category": "made up",
        "description": "It is made up.",
        "affected_users": 1,
        "detected_by": "a test",
        "detection_latency_hours": 1.0,
        "remediation_actions": ["none"],
        "root_cause_preliminary": "unknown",
        "agent_version": "v2",
        "plants": [
            {"where": "tickets", "key": c.arguments["ticket"], "text": c.result}
            for turn in talk
            for c in turn.calls
            if "ticket" in c.arguments
        ],
        "trajectory": [
            {
                "turn": number,
                "user": turn.user,
                "assistant": turn.reply,
                "compliant": None,
                "calls": [
                    {"name": c.name, "arguments": c.arguments, "result": c.result}
                    for c in turn.calls
                ],
            }
            for number, turn in enumerate(talk, start=1)
        ],
    }


SHAPES: dict[str, Callable[[Conversation], Any]] = {
    "OpenAI chat messages": openai,
    "Anthropic messages": anthropic,
    "Bedrock Converse": bedrock,
    "Gemini contents": gemini,
    "OpenAI Responses": responses,
    "LangChain messages": langchain,
    "LangChain constructors": langchain_constructors,
    "AgentDojo run": agentdojo,
    "tau-bench results": tau,
    "tau2 results": tau2,
    "Inspect log": inspect_log,
    "Claude Code session": claude_code,
    "ATIF trajectory": atif,
    "spans": otel,
    "spans with events": otel_events,
    "spans with numbers": otel_numbered,
    "OpenInference spans": openinference,
    "Phoenix spans": phoenix,
    "Langfuse trace": langfuse,
    "LangSmith runs": langsmith,
    "OpenAI Agents SDK trace": agents_sdk,
    "Langfuse spans": langfuse_spans,
    "Vercel spans": vercel,
    "role-per-turn incident": role_per_turn,
    "incident file": incident,
}
