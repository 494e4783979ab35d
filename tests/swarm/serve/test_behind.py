"""What a client sends behind a request that is being answered: it waits, and little of it is held."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest

from swarm.serve.listen import BEHIND_BYTES
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.tiny import TinyBackend

CLIENTS = 8
SENT = 4 << 20
"""Bytes that each would send."""
HELD = 256 << 10
"""Bytes that each may cost, its answer under way included."""


def post(body: object, path: str = "/generate") -> bytes:
    data = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(data), data)


ASK = post({"prompt": "Once", "max_tokens": 3, "receipt": False})
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = post({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": True}, "/v1/chat/completions")


@pytest.mark.parametrize("behind", [1, 40, 3 * BEHIND_BYTES // len(HEALTH)])
async def test_requests_behind_one_are_answered_in_their_order(serve: Serve, backend: TinyBackend, behind: int) -> None:
    backend.gate = asyncio.Event()
    async with serve() as served:
        host, port = served.url.removeprefix("http://").rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(ASK)
        await asyncio.sleep(0.05)
        for _ in range(behind):
            writer.write(HEALTH)
        writer.write(ASK + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await asyncio.sleep(0.05)
        backend.gate.set()
        async with asyncio.timeout(30):
            said = await reader.read()
        writer.close()
    order = [b"t" if b'"text"' in part else b"h" for part in said.split(b"HTTP/1.1 200 OK")[1:]]
    assert b"".join(order) == b"t" + b"h" * behind + b"th"


@pytest.mark.parametrize("rubbish", [b"\0\xffrubbish\r\n", HEALTH, ASK, b"GET /" + b"a" * 60_000, b"\r\n"])
async def test_what_is_sent_behind_an_answer_does_not_pile_up(
    serve: Serve, backend: TinyBackend, rubbish: bytes
) -> None:
    backend.gate = asyncio.Event()
    data = memoryview(rubbish * (64 * 1024 // len(rubbish) + 1))
    async with serve() as served:
        host, port = served.url.removeprefix("http://").rsplit(":", 1)
        writers = []

        async def flood() -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(STREAM)
            await reader.readline()
            for _ in range(SENT // len(data)):
                writer.write(data)
                try:
                    async with asyncio.timeout(0.3):
                        await writer.drain()
                except (TimeoutError, ConnectionError):
                    return

        tracemalloc.start()
        try:
            await asyncio.gather(*(flood() for _ in range(CLIENTS)))
            unsent = sum(writer.transport.get_write_buffer_size() for writer in writers)
            grown = tracemalloc.get_traced_memory()[0] - unsent
        finally:
            tracemalloc.stop()
        async with served.http.get("/healthz") as answer:
            assert answer.status == 200
        for writer in writers:
            writer.transport.abort()
        backend.gate.set()
    assert grown < CLIENTS * HELD, grown
