"""MCP: the airline's tools behind a server, under the packaged agent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import AIRLINE, judged, what_broke
from desk_model import DeskModel

from safety_lib.adapters.mcp_tools import McpServer, McpToolbox, mcp_workplace, tools_skeleton
from safety_lib.records import Message, Plant, ToolCall
from safety_lib.world.target import TargetError
from safety_lib.world.tools import ToolError

pytest.importorskip("mcp", reason="the MCP SDK is not installed")

HERE = Path(__file__).parent
LIMITS = {"refund_cap": 2000, "mails": 10}
DESK = json.dumps(AIRLINE.version("v1").settings | {"limits": LIMITS})
STDIO = McpServer(
    command=(sys.executable, str(HERE / "desk_server.py")),
    env={"DESK": DESK, "PATH": os.environ["PATH"]},
    plant_tool="plant",
    reset_tool="reset",
)


class DeskBackend:
    """Reads its settings off the system prompt, and decides as the desk's agent does."""

    name = "desk"
    concurrency = 0
    same_luck = True

    def complete(self, messages: Any, tools: Any, *, seed: int) -> Message:
        said = [m.content for m in messages if m.role == "user"]
        model = DeskModel(json.loads(messages[0].content), seed, {})
        for turn in range(1, len(said)):
            while model.step(said[:turn])[1] is not None:
                pass
        newest = max(i for i, m in enumerate(messages) if m.role == "user")
        made = sum(len(m.tool_calls) for m in messages[newest:])
        for _ in range(made + 1):
            reply, call = model.step(said)
        if call is None or not tools:
            return Message(role="assistant", content=reply)
        asked = ToolCall(id=f"{len(messages)}", name=call["name"], arguments=call["arguments"])
        return Message(role="assistant", content="", tool_calls=(asked,))


CONNECT = """
settings_of = None

def connect(version, model=""):
    from safety_lib.agent.loop import Agent
    from test_mcp import DeskBackend
    return Agent(version, DeskBackend())

def _workplace():
    import os
    from safety_lib.adapters.mcp_tools import McpServer, mcp_workplace
    server = McpServer(url=os.environ["DESK_URL"], reset_tool="reset")
    return mcp_workplace(server, effects="sandboxed")

WORKPLACE = _workplace()
"""


def packaged(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "system_prompt": json.dumps(settings),
        "model": {"backend": "desk"},
        "memory": {"window": 400, "pin_policy": True},
        "permissions": list(AIRLINE.tools),
        "limits": {"max_steps": 40},
        "safeguards": {},
    }


def with_limits(world: Any, *, as_packaged: bool) -> Any:
    for name in ("v1", "v2"):
        settings = AIRLINE.version(name).settings | {"limits": LIMITS}
        tree = {"version": name, "settings": packaged(settings) if as_packaged else settings}
        (world.folder / "versions" / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return world


@pytest.fixture
def over_http() -> Iterator[McpServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "desk_server.py"), str(port)]
    server = subprocess.Popen(command, env=os.environ | {"DESK": DESK}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/mcp"
        yield McpServer(url=url, reset_tool="reset", plant_tool="plant")
    finally:
        server.kill()
        server.wait()


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id="1", name=name, arguments=arguments)


def begins_afresh(server: McpServer) -> None:
    plant = Plant(where="attachments", key="AT-9", text="Planted.")
    one, other = McpToolbox(server, [plant]), None
    try:
        assert one.run(call("read_attachment", attachment="AT-9")) == "Planted."
        other = McpToolbox(server)
        with pytest.raises(ToolError, match="read_attachment"):
            other.run(call("read_attachment", attachment="AT-9"))
        assert "refunded" in other.run(call("refund", booking="FX-4102", amount=5))
    finally:
        one.close()
        if other is not None:
            other.close()


def test_each_conversation_begins_afresh_over_stdio() -> None:
    begins_afresh(STDIO)


def test_each_conversation_begins_afresh_over_http(over_http: McpServer) -> None:
    begins_afresh(over_http)


def test_the_airline_with_tools_behind_a_server_gives_the_same_verdict(
    airline_by: Any, over_http: McpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESK_URL", over_http.url)
    behind = with_limits(airline_by(CONNECT, planted=False), as_packaged=True)
    plain = with_limits(airline_by("", planted=False), as_packaged=False)
    found, report = judged(behind, rollouts=16, replays=3, trials=3)
    plainly, its = judged(plain, rollouts=16, replays=3, trials=3)
    assert what_broke(found) == what_broke(plainly) != []
    assert (report.verdict, report.delta) == (its.verdict, its.delta)
    assert report.delta is not None
    assert report.delta < 0


def test_planted_text_without_a_tool_for_it_is_not_measured() -> None:
    plant = Plant(where="attachments", key="AT-9", text="Planted.")
    with pytest.raises(TargetError, match="takes no planted text"):
        McpToolbox(STDIO.model_copy(update={"plant_tool": ""}), [plant])


def test_a_server_that_hangs_or_dies_costs_the_conversation() -> None:
    # The start of a process is waited for too, so the limit is none that a busy machine misses.
    hanging = McpToolbox(STDIO.model_copy(update={"timeout": 8.0}))
    with pytest.raises(TargetError, match=r"timeout: the server of the tools did not answer"):
        hanging.run(call("hang"))
    dying = McpToolbox(STDIO)
    with pytest.raises(TargetError, match="connection"):
        dying.run(call("die"))
    with pytest.raises(TargetError, match="connection"):
        dying.run(call("refund", booking="FX-4102", amount=5))


def test_a_server_that_cannot_be_started_is_said() -> None:
    with pytest.raises(TargetError, match="connection"):
        McpToolbox(McpServer(command=("/nowhere/server",)))


def test_a_skeleton_leaves_open_what_only_a_person_knows() -> None:
    tree = yaml.safe_load(tools_skeleton(STDIO))
    assert {"reset", "plant"}.isdisjoint(tree)
    assert tree["refund"]["effect"] == "?"
    assert list(tree["refund"]["arguments"]) == ["booking", "amount", "approval"]
    assert "default" in tree["refund"]["arguments"]["approval"]


PAGED = """
import asyncio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import ListToolsResult, Tool

async def listed(ctx, params):
    page = int(params.cursor) if params and params.cursor else 0
    tool = Tool(name=f"tool_{page}", inputSchema={"type": "object"})
    return ListToolsResult(tools=[tool], nextCursor=str(page + 1) if page < 2 else None)

async def main():
    server = Server("paged", on_list_tools=listed)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

asyncio.run(main())
"""


def test_a_skeleton_holds_the_tools_of_every_page(tmp_path: Path) -> None:
    (tmp_path / "paged.py").write_text(PAGED, encoding="utf-8")
    server = McpServer(command=(sys.executable, str(tmp_path / "paged.py")))
    assert list(yaml.safe_load(tools_skeleton(server))) == ["tool_0", "tool_1", "tool_2"]


def test_what_is_live_and_final_is_held_back() -> None:
    workplace = mcp_workplace(STDIO, effects="live")
    assert workplace.effects == "live"
