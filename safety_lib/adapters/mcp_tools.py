"""Tools behind MCP under the packaged agent: over stdio or streamable HTTP, fresh each time.

``world.py`` names the server, and the packaged loop does the rest::

    from safety_lib.adapters.mcp_tools import McpServer, mcp_workplace
    from safety_lib.agent.loop import Agent

    WORKPLACE = mcp_workplace(
        McpServer(command=("python", "desk_server.py")), effects="sandboxed"
    )

    def connect(version, model):
        return Agent.load(version, model)

Each conversation starts a process of its own, or a session of its own where the server is reached
over HTTP; ``reset_tool`` is called first where a session does not begin afresh by itself, and
``plant_tool`` with ``where``, ``key`` and ``text`` for each planted text. A tool that answers with
an error has failed, a server that dies or hangs costs the conversation. What cannot be undone is
held back where the effects are live.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from operator import methodcaller
from typing import Any

from pydantic import Field, model_validator

from safety_lib.adapters.troubles import missing
from safety_lib.agent.loop import Workplace
from safety_lib.records import Plant, Record, ToolCall
from safety_lib.text import one_line
from safety_lib.world.target import Effects, TargetError
from safety_lib.world.tools import ToolError

_Job = Callable[[Any], Any]


class McpServer(Record):
    """Where the tools are.

    Attributes
    ----------
    command : tuple of str
        What starts a server that speaks over stdio; empty for one that is reached over HTTP.
    url : str
        Of a server that speaks streamable HTTP; empty for one over stdio.
    env : dict
        Environment of the process, beside what is safe to inherit.
    reset_tool, plant_tool : str
        Tools of the server that no agent is offered: one begins afresh, one takes planted text.
    timeout : float
        Seconds for the start and for each call.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    env: dict[str, str] = Field(default_factory=dict)
    reset_tool: str = ""
    plant_tool: str = ""
    timeout: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _is_in_one_place(self) -> McpServer:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either `command` or `url`")
        return self


def mcp_workplace(server: McpServer, *, effects: Effects) -> Workplace:
    """Return what a world gives the packaged agent, with the tools of an MCP server.

    Parameters
    ----------
    server : McpServer
        Where the tools are.
    effects : str
        ``sandboxed`` if nothing that they do outlives the conversation, else ``live``.

    Raises
    ------
    TargetError
        ``not_installed`` if the SDK is not.
    """
    try:
        import mcp  # noqa: F401 - asked before a campaign begins
    except ImportError as error:
        raise missing("mcp", "mcp") from error
    return Workplace(sandbox=lambda plants: McpToolbox(server, plants), effects=effects)


class McpToolbox:
    """The tools of one conversation; the connection ends with it.

    Parameters
    ----------
    server : McpServer
        Where they are.
    plants : sequence of Plant
        What is to stand there beforehand.

    Raises
    ------
    TargetError
        If the server cannot be started, or takes no planted text.
    """

    def __init__(self, server: McpServer, plants: Sequence[Plant] = ()) -> None:
        if plants and not server.plant_tool:
            raise TargetError(
                "not_measured",
                "the server takes no planted text; name its plant_tool, or leave `injection` out "
                "of goals.yaml",
            )
        self._server = server
        self._session = _Session(server)
        if server.reset_tool:
            self._called(server.reset_tool, {})
        for plant in plants:
            self._called(server.plant_tool, plant.model_dump(mode="json"))

    def run(self, call: ToolCall) -> str:
        """Execute a call and return what the tool says.

        Raises
        ------
        ToolError
            If the tool answers with an error.
        TargetError
            If the server does not answer.
        """
        return self._called(call.name, dict(call.arguments))

    def tools(self) -> dict[str, dict[str, Any]]:
        """Return what the server lists: name to description and JSON schema of the arguments."""
        listed: list[Any] = []
        cursor: str | None = None
        while True:  # a large server lists page by page
            page = self._session.ask(methodcaller("list_tools", cursor=cursor))
            listed += page.tools
            cursor = getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None)
            if not cursor:
                break
        return {
            tool.name: {
                "description": tool.description or "",
                "schema": getattr(tool, "input_schema", None) or getattr(tool, "inputSchema", {}),
            }
            for tool in listed
        }

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None:
            session.close()

    def _called(self, name: str, arguments: dict[str, Any]) -> str:
        result = self._session.ask(lambda client: client.call_tool(name, arguments))
        said = "\n".join(getattr(part, "text", "") or f"({part.type})" for part in result.content)
        failed = getattr(result, "is_error", None) or getattr(result, "isError", False)
        if failed:
            raise ToolError(one_line(said, 400))
        return said


def tools_skeleton(server: McpServer) -> str:
    """Return the beginning of a ``tools.yaml`` for a server; what only a person knows is left open.

    Each tool stands there with ``effect: ?``: whether a call of it changes anything, and then
    ``target``, ``reversible`` and ``reach``, is for you to say. A world does not load before.
    """
    import yaml

    toolbox = McpToolbox(server)
    try:
        listed = toolbox.tools()
    finally:
        toolbox.close()
    left_out = {server.reset_tool, server.plant_tool}
    tree = {
        name: {
            "description": told["description"],
            "effect": "?",
            "arguments": {
                key: dict(schema)
                if key in told["schema"].get("required", ())
                else {"default": None, **schema}
                for key, schema in told["schema"].get("properties", {}).items()
            },
        }
        for name, told in listed.items()
        if name not in left_out
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _Session:
    """A connection that lives in a task of its own, on the event loop of this process."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._loop = _running_loop()
        self._jobs: Any = None
        self._ready: Future[None] = Future()
        self._closed = False
        import asyncio

        self._held = asyncio.run_coroutine_threadsafe(self._hold(), self._loop)
        self._wait(self._ready, "start")

    def ask(self, job: _Job) -> Any:
        """Return what a coroutine that is made with the client returns."""
        if self._closed or self._held.done():
            raise TargetError("connection", "the server of the tools has ended")
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._jobs.put_nowait, (job, answer))
        return self._wait(answer, "answer")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._jobs is not None:
                self._loop.call_soon_threadsafe(self._jobs.put_nowait, None)

    def _wait(self, answer: Future[Any], what: str) -> Any:
        limit = self._server.timeout
        try:
            return answer.result(limit)
        except NotInTime:
            self._held.cancel()
            self._closed = True
            raise TargetError(
                "timeout", f"the server of the tools did not {what} in {limit:g} s"
            ) from None
        except (TargetError, ToolError):
            raise
        except Exception as error:
            said = one_line(f"{type(error).__name__}: {error}", 200)
            raise TargetError("connection", f"the server of the tools: {said}") from None

    async def _hold(self) -> None:
        import asyncio

        from mcp import Client

        self._jobs = asyncio.Queue()
        answer: Future[Any] | None = None
        try:
            async with Client(self._where()) as client:
                self._ready.set_result(None)
                while (asked := await self._jobs.get()) is not None:
                    job, answer = asked
                    try:
                        answer.set_result(await job(client))
                    except asyncio.CancelledError:
                        raise
                    except Exception as error:
                        answer.set_exception(error)
        except BaseException as error:
            for waiting in (self._ready, answer):
                if waiting is not None and not waiting.done():
                    waiting.set_exception(error if isinstance(error, Exception) else EOFError())
            raise

    def _where(self) -> Any:
        from mcp import StdioServerParameters

        if self._server.url:
            return self._server.url
        command, *arguments = self._server.command
        return StdioServerParameters(
            command=command, args=list(arguments), env=self._server.env or None
        )


_lock = threading.Lock()
_loops: list[Any] = []


def _running_loop() -> Any:
    import asyncio

    with _lock:
        if not _loops or not _loops[0][1].is_alive():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="mcp", daemon=True)
            thread.start()
            _loops[:] = [(loop, thread)]
        return _loops[0][0]
