"""A request to a swarm that lacks layers waits for a node that holds them: real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from tests.ring.nest import Command, Nest, nest
from tests.ring.test_processes import expected, folder
from tests.ring.trials import connected

__all__ = ["folder"]  # a fixture, used by name

MISSING = "layers 2-3 are held by nobody; 2 nodes present; need one more node with about 1 MB"


@pytest_asyncio.fixture
async def holed(folder: Path, tmp_path: Path) -> AsyncIterator[Nest]:
    """Two nodes; nobody holds layers 2 and 3."""
    async with nest(folder, tmp_path) as nodes:
        await nodes.add((0, 2))
        await nodes.add((4, 6))
        yield nodes


async def logged(command: Command, text: str) -> None:
    async with asyncio.timeout(60):
        while True:
            if command.log.exists() and text in command.log.read_text():
                return
            await asyncio.sleep(0.05)


async def test_generate_waits_until_a_node_brings_the_missing_layers(holed: Nest, folder: Path) -> None:
    words = ("--raw", "--max-tokens", "8", "--ignore-eos", "--speculation", "plain", "--patience", "90", "--json")
    asking = await holed.ask("generate", "Hello there", *words)
    await logged(asking, f"waiting for coverage: {MISSING}")
    await holed.add((2, 4))
    code, out, err = await asking.ended()
    assert code == 0, err
    result = json.loads(out)
    assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 8)


async def test_patience_ends_in_one_line(holed: Nest) -> None:
    code, out, err = await (await holed.ask("generate", "Hi", "--raw", "--patience", "1")).ended()
    assert code == 1 and not out.strip()
    assert err.strip().splitlines()[-1] == f"swarm: {MISSING}; waited 1 s"


async def test_a_gateway_waits_refuses_and_lets_go(holed: Nest, tmp_path: Path) -> None:
    """503 with what is missing; a client that leaves ends its wait; one that stays is answered."""

    async def runs_are(*states: str) -> None:
        async with asyncio.timeout(60):
            while True:
                state = await (await http.get("/api/state")).json()
                if [run["state"] for run in state["runs"]] == list(states):
                    return
                await asyncio.sleep(0.1)

    def ask(**more: object) -> asyncio.Task[aiohttp.ClientResponse]:
        body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True, **more}
        return asyncio.create_task(http.post("/v1/completions", json=body))

    async with await connected(holed, tmp_path / "asker", draft="none", await_news=False) as requester:
        while len(requester.gossip.members()) < 2:
            await requester.gossip.wait_change()
        async with (
            gateway(requester, GatewayConfig(patience_s=1.0), lambda data: {}, "127.0.0.1", 0) as (host, port),
            aiohttp.ClientSession(f"http://{host}:{port}") as http,
        ):
            refused = await ask(stream=True)
            assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
            error = (await refused.json())["error"]
            assert error["code"] == "swarm_incomplete" and error["message"] == f"{MISSING}; waited 1 s"
        async with (
            gateway(requester, GatewayConfig(patience_s=90.0), lambda data: {}, "127.0.0.1", 0) as (host, port),
            aiohttp.ClientSession(f"http://{host}:{port}") as http,
        ):
            for stream in (True, False):
                leaver = ask(stream=stream)
                await runs_are("waiting", *(() if stream else ("cancelled",)))
                leaver.cancel()
                await runs_are(*("cancelled",) * (1 if stream else 2))
            stayer = ask(stream=True)
            await runs_are("waiting", "cancelled", "cancelled")
            await holed.add((2, 4))
            answer = await stayer
            assert answer.status == 200 and (await answer.text()).rstrip().endswith("[DONE]")
