"""A client that is gone before its answer begins is no fault of ours: no traceback on a node's terminal."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest
from aiohttp import web

from swarm.serve.config import GatewayConfig
from swarm.serve.web import frame


@pytest.mark.parametrize(("leaves", "status", "faults"), [(True, 499, 0), (False, 500, 1)])
async def test_a_client_that_left_is_not_logged_as_a_fault(
    leaves: bool, status: int, faults: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    arrived = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if not leaves:
            raise ConnectionResetError("a stage's, say")
        async with asyncio.timeout(20):
            arrived.set()
            while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = web.Application(middlewares=[frame(GatewayConfig(), lambda request, code, seconds: seen.append(code))])
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with caplog.at_level(logging.ERROR, "aiohttp.server"):
            _, writer = await asyncio.open_connection(*runner.addresses[0][:2])
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await writer.drain()
            if leaves:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            async with asyncio.timeout(20):
                if leaves:
                    await arrived.wait()
                    writer.transport.abort()
                while not seen or len(caplog.records) < faults:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            writer.close()
        assert seen == [status] and len(caplog.records) == faults
    finally:
        await runner.cleanup()
