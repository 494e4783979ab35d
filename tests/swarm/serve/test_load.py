"""One normal user among two hundred connections that misbehave."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from tests.swarm.serve.conftest import Serve, Served

HELLO = [{"role": "user", "content": "hello"}]
EACH = 40


@asynccontextmanager
async def dial(
    served: Served, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection from an address of this machine."""
    where = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=(host, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def post(body: bytes, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


async def idle(served: Served) -> None:
    """Says nothing."""
    async with dial(served) as (reader, _):
        await reader.read()


async def dripping(served: Served) -> None:
    """One byte of a header at a time."""
    async with dial(served) as (reader, writer):
        ended = asyncio.create_task(reader.read())
        for byte in b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 10_000:
            writer.write(bytes([byte]))
            await asyncio.wait({ended}, timeout=0.01)
            if ended.done():
                break
        with suppress(ConnectionError):
            await ended


async def unfinished(served: Served) -> None:
    """Promises a body and keeps it."""
    async with dial(served) as (reader, writer):
        writer.write(post(b"{", length=1000))
        assert b" 408 " in await reader.read()


async def nonsense(served: Served) -> None:
    """Wrong in every way, again and again."""
    for body in (b"\xff\xfe", b"[[[[", b'{"messages": 7}', b'{"messages": [{"role": "user", "content": "x"}], "n": 0}'):
        async with served.http.post("/v1/chat/completions", data=body) as answer:
            assert answer.status == 400 and "error" in await answer.json()
    async with served.http.post("/v1/chat/completions", json={"messages": HELLO, "model": "other"}) as answer:
        assert answer.status == 404
    async with served.http.post("/generate", json={"prompt": "x" * 300}) as answer:
        assert answer.status == 400


async def fickle(served: Served) -> None:
    """Asks for a stream and leaves as soon as it begins."""
    async with dial(served) as (reader, writer):
        body = {"messages": HELLO, "stream": True, "max_tokens": 20}
        writer.write(post(json.dumps(body).encode()))
        await reader.readexactly(1)


@pytest.mark.timeout(120)
async def test_a_normal_user_is_answered_rightly_among_200_bad_connections(serve: Serve) -> None:
    limits = {
        "idle_timeout_s": 4.0,
        "body_timeout_s": 4.0,
        "write_timeout_s": 4.0,
        "max_waiting_per_user": 256,
        "max_waiting": 256,
    }
    async with serve(**limits) as served:
        ask = {"model": served.model, "messages": HELLO, "max_tokens": 12, "temperature": 0.8, "seed": 3}
        # A connection that the server closes while idle is dialled again, as every user's client does.
        user = served.openai.with_options(max_retries=2).chat.completions
        alone = (await served.openai.chat.completions.create(**ask)).choices[0].message.content
        kinds: list[Callable[[Served], Awaitable[None]]] = [idle, dripping, unfinished, nonsense, fickle]
        async with asyncio.TaskGroup() as group:
            crowd = [group.create_task(kind(served)) for kind in kinds for _ in range(EACH)]  # type: ignore[arg-type]
            assert len(crowd) == 200
            for _ in range(5):
                answer = await user.create(**ask)
                assert answer.choices[0].message.content == alone
                chunks = [chunk async for chunk in await user.create(**ask, stream=True)]
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone
        # Everybody was hung up on or answered, and nothing of theirs is left.
        await served.backend.until(runs=0)
        after = await served.state(lambda state: state["waiting"] == 0)
        assert not [run for run in after["runs"] if run["state"] in ("queued", "opening", "answering")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_thousands_of_idle_connections_cost_little(serve: Serve) -> None:
    async with serve(max_connections=2500) as served:
        async with AsyncExitStack() as quiet:
            for host in ("127.0.0.2", "127.0.0.3"):
                for _ in range(1000):
                    await quiet.enter_async_context(dial(served, host))
            answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=4)
            assert answer.usage is not None and answer.usage.completion_tokens == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_one_address_cannot_take_every_place(serve: Serve) -> None:
    async with serve(max_connections=200) as served, AsyncExitStack() as flood:
        held = [await flood.enter_async_context(dial(served, "127.0.0.2")) for _ in range(250)]
        refused = await asyncio.gather(*(reader.read() for reader, _ in held[100:]))
        assert all(b" 503 " in text and b"too_many_connections" in text for text in refused)
        answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=4)
        assert answer.usage is not None
        held[0][1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await held[0][0].read()
        async with dial(served, "127.0.0.2") as (reader, writer):  # the place that has come free
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b" 200 " in await reader.read()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_slow_readers_delay_nobody(serve: Serve) -> None:
    """Clients that ask for streams and take nothing of them, as many as may run; the next user is answered."""
    async with serve(max_running=8, write_timeout_s=1.0, max_waiting_per_user=64) as served:
        served.backend.flood = 200_000
        async with AsyncExitStack() as slow:
            for _ in range(8):
                _, writer = await slow.enter_async_context(dial(served, "127.0.0.2"))
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(post(json.dumps({"messages": HELLO, "stream": True, "max_tokens": 100}).encode()))
            await served.backend.until(runs=8)
            served.backend.flood = 0
            answer = await served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=4)
            assert answer.usage is not None and answer.usage.completion_tokens == 4
        await served.backend.until(runs=0)
