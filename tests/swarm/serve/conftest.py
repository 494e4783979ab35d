from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from tests.swarm.serve.tiny import TinyBackend


def fake_verify(receipt: bytes) -> dict[str, Any]:
    return {"bytes": len(receipt)}


@dataclass
class Served:
    """A gateway on a real socket, and clients for it."""

    url: str
    backend: TinyBackend
    http: aiohttp.ClientSession
    openai: AsyncOpenAI

    @property
    def model(self) -> str:
        return self.backend.manifest.model

    async def state(self, fits: Callable[[dict[str, Any]], bool], model: str | None = None) -> dict[str, Any]:
        """The first live state that fits; of several models of the one that is named."""
        asked = {} if model is None else {"model": model}
        async with asyncio.timeout(20), self.http.get("/api/events", params=asked) as events:
            async for line in events.content:
                if line.startswith(b"data: ") and fits(state := json.loads(line[6:])):
                    return dict(state)
        raise AssertionError("the gateway closed its events")


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    return TinyBackend(tmp_path)


@pytest.fixture
def serve(backend: TinyBackend) -> Serve:
    """`async with serve(option=value) as served`: options of GatewayConfig."""

    @asynccontextmanager
    async def start(key: str = "unused", **options: Any) -> AsyncIterator[Served]:
        config = replace(GatewayConfig(default_temperature=0.0), **options)
        async with gateway(backend, config, lambda receipt: fake_verify(receipt), "127.0.0.1", 0) as (host, port):
            url = f"http://{host}:{port}"
            async with (
                aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http,
                AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client,
            ):
                yield Served(url, backend, http, client)

    return start


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        yield running
