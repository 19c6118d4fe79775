"""The airline's desk behind MCP: a server over stdio, or over HTTP with a port."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from desk_model import desk_of
from mcp.server import MCPServer

from safety_lib.world import load_world

SETTINGS = json.loads(os.environ["DESK"])
server = MCPServer("desk")
held: dict[str, Any] = {"planted": {}}
held["desk"] = desk_of(SETTINGS, held["planted"])


def add(name: str) -> None:
    arguments = load_world("airline").tools[name].arguments
    given = ", ".join(
        f"{a}: {'float' if s.get('type') == 'number' else 'str'}"
        + (f" = {s['default']!r}" if "default" in s else "")
        for a, s in arguments.items()
    )
    scope: dict[str, Any] = {"held": held}
    names = ", ".join(f"{a!r}: {a}" for a in arguments)
    body = f"said = {{k: v for k, v in {{{names}}}.items() if v != ''}}"
    exec(
        f"def {name}({given}) -> str:\n    {body}\n    return held['desk'].call({name!r}, said)",
        scope,
    )
    server.add_tool(scope[name], name=name, description=f"{name} of the desk")


for name in load_world("airline").tools:
    add(name)


@server.tool()
def reset() -> str:
    """Begin afresh."""
    held["planted"] = {}
    held["desk"] = desk_of(SETTINGS, held["planted"])
    return "afresh"


@server.tool()
def plant(where: str, key: str, text: str) -> str:
    """Leave text."""
    held["planted"][key] = text
    held["desk"] = desk_of(SETTINGS, held["planted"])
    return where


@server.tool()
def hang() -> str:
    """Never come back."""
    import time

    time.sleep(60)
    return ""


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
