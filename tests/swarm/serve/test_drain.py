"""A gateway that is told to stop: answers under way may end, new ones are refused, and nobody is cut without a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from tests.swarm.serve.tiny import TinyBackend

ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "stream": True}


class Stopping:
    """A gateway whose block is left when `stop` is set."""

    def __init__(self, backend: TinyBackend) -> None:
        self.backend, self.stop, self.hurry = backend, asyncio.Event(), asyncio.Event()
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self, **options: Any) -> None:
        config = GatewayConfig(default_temperature=0.0, **options)
        async with gateway(self.backend, config, lambda _: {}, "127.0.0.1", 0, hurry=self.hurry) as (host, port):
            self.url.set_result(f"http://{host}:{port}")
            await self.stop.wait()


@asynccontextmanager
async def under_way(tmp_path: Path, runs: int, **options: Any) -> AsyncIterator[tuple[Stopping, Any, Any, Any]]:
    """A gateway with so many streams that have said their first chunk, and wait for `backend.gate`."""
    backend = TinyBackend(tmp_path)
    backend.gate = asyncio.Event()
    house = Stopping(backend)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        serving = group.create_task(house.serve(**options))
        async with aiohttp.ClientSession(await house.url) as http:
            streams = [await http.post("/v1/chat/completions", json=ASK) for _ in range(runs)]
            assert all([await stream.content.readline() for stream in streams])
            yield house, serving, http, streams


async def rest(stream: aiohttp.ClientResponse) -> list[Any]:
    lines = [line[6:].strip() for line in (await stream.content.read()).split(b"\n") if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


async def test_answers_under_way_end_in_full_and_new_ones_are_refused_with_503(tmp_path: Path) -> None:
    async with under_way(tmp_path, 8, grace_s=30.0) as (house, serving, http, streams):
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=ASK))
        await asyncio.sleep(0.1)
        house.stop.set()
        late = await waiting  # it had no turn yet
        again = await http.post("/v1/chat/completions", json=ASK | {"stream": False})
        for refused in (late, again):
            assert refused.status == 503 and refused.headers["Retry-After"] == "30"
            assert (await refused.json())["error"]["code"] == "gateway_stopping"
        assert not serving.done()
        house.backend.gate.set()
        for stream in streams:
            *chunks, last = await rest(stream)
            assert last == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        await serving
    assert house.backend.open_runs == 0


@pytest.mark.parametrize("hurried", [False, True])
async def test_what_is_not_done_in_time_ends_with_an_error_event(tmp_path: Path, hurried: bool) -> None:
    async with under_way(tmp_path, 3, grace_s=30.0 if hurried else 0.3) as (house, serving, http, streams):
        house.stop.set()
        if hurried:
            house.hurry.set()
        for stream in streams:
            *_, error, last = await rest(stream)
            assert last == "[DONE]" and error["error"]["code"] == "gateway_stopping"
        await serving
    assert house.backend.open_runs == 0
