"""A server of tools over standard input and output, as the Model Context Protocol has it: `python tools_server.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

server = MCPServer("almanac")
Small = Annotated[int, Field(ge=0, le=99)]


@server.tool()
def add(a: Small, b: Small) -> int:
    """The sum of two numbers."""
    return a + b


@server.tool()
def weather(city: Literal["Ghent", "Paris", "Rome"]) -> str:
    """What the weather is like."""
    return {"Ghent": "Rain, 12 degrees.", "Paris": "Clouds, 15 degrees.", "Rome": "Sun, 24 degrees."}[city]


@server.tool()
def fail(reason: Literal["closed", "lost"]) -> str:
    """Always fails: a program goes on after it."""
    raise ToolError(f"the archive is {reason}")


if __name__ == "__main__":
    server.run("stdio")
