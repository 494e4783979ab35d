"""An agent with tools of an MCP server against a running gateway: `python tests/clients/agent.py [TURNS] URL`.

Needs openai-agents and mcp. In each turn the model must call a tool (the answer is held to a call, so any model does),
the server runs it, and the conversation grows by the call and its result. Every fifth turn is begun as a stream that is
left after the first event, and then asked again. Prints how much of each prompt was reused, and what memory it took;
ends with 1 when a turn has no call, no result, or reuses less than the prompt of the turn before.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import sys
import urllib.request
from pathlib import Path

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    TResponseInputItem,
    set_tracing_disabled,
)
from agents.mcp import MCPServerStdio
from openai import AsyncOpenAI

SERVER = Path(__file__).with_name("tools_server.py")
CONFIG = RunConfig(tracing_disabled=True)


def memory(url: str) -> tuple[float, float]:
    """MiB of the process that started this one, and of keys and values on the nodes."""
    status = Path(f"/proc/{os.getppid()}/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as told:
        used = re.findall(r"^wanswarm_node_kv_used_bytes\S* (\S+)$", told.read().decode(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0, sum(map(float, used)) / 2**20


async def begun_and_left(agent: Agent, said: list[TResponseInputItem]) -> None:
    """A turn whose client leaves as soon as the answer begins."""
    begun = Runner.run_streamed(agent, said, max_turns=1, run_config=CONFIG)
    async for _ in begun.stream_events():
        begun.cancel()
        break


async def turns(url: str, count: int) -> int:
    """How many turns went wrong."""
    client = AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
    model = (await client.models.list()).data[0].id
    wrong, before = 0, 0
    said: list[TResponseInputItem] = [{"role": "user", "content": "Find out what you can."}]
    command = {"command": sys.executable, "args": [str(SERVER)]}
    async with MCPServerStdio(command, client_session_timeout_seconds=60) as server:
        agent = Agent(
            name="finder",
            instructions="Call one tool after the other.",
            model=OpenAIChatCompletionsModel(model=model, openai_client=client),
            model_settings=ModelSettings(tool_choice="required", max_tokens=200),
            mcp_servers=[server],
            tool_use_behavior="stop_on_first_tool",
        )
        for turn in range(1, count + 1):
            left = turn % 5 == 0
            if left:
                await begun_and_left(agent, said)
            done = await Runner.run(agent, said, max_turns=1, run_config=CONFIG)
            usage, new = done.context_wrapper.usage, done.to_input_list()[len(said) :]
            kinds = [item.get("type") for item in new]
            reused = usage.input_tokens_details.cached_tokens
            fine = kinds == ["function_call", "function_call_output"] and reused >= before
            wrong += not fine
            process, nodes = memory(url)
            print(
                f"{'ok   ' if fine else 'WRONG'}   turn {turn}{' (left once)' if left else ''}: {new[0].get('name')}, "
                f"prompt {usage.input_tokens} tokens, reused {reused}; gateway {process:.0f} MiB, keys and values of "
                f"the nodes {nodes:.1f} MiB",
                flush=True,
            )
            said, before = done.to_input_list(), usage.input_tokens
    return wrong


def main() -> None:
    """Play all turns."""
    set_tracing_disabled(True)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("openai-agents", "mcp"))
    count = int(sys.argv[1]) if len(sys.argv) > 2 else 20
    wrong = asyncio.run(turns(sys.argv[-1], count))
    print(f"{versions}: {wrong} turns went wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
