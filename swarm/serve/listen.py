"""The listening socket: bounded connections, deadlines on slow clients, runs cancelled when their client leaves."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from swarm.errors import UsageError
from swarm.serve.config import GatewayConfig

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_FULL_BODY = (
    b'{"error": {"message": "too many connections are open; try again later", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)
_SPARE_DESCRIPTORS = 256


class _Refuse(asyncio.Protocol):
    """Says 503 and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
        transport.close()


@asynccontextmanager
async def runner_of(app: web.Application, config: GatewayConfig) -> AsyncIterator[web.Server]:
    """A server that makes protocols for `app`, without a socket of its own."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        # Also the time that a new connection has for its first request line and headers.
        keepalive_timeout=config.idle_timeout_s,
        lingering_time=1.0,
        shutdown_timeout=config.drain_s,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        yield runner.server
    finally:
        await runner.cleanup()


def protocol_factory(server: web.Server, limit: int) -> asyncio.Protocol:
    """A protocol for a new connection; over `limit` connections it only refuses."""
    if len(server.connections) >= limit:
        return _Refuse()
    return server()


@asynccontextmanager
async def listening(
    app: web.Application, config: GatewayConfig, host: str, port: int
) -> AsyncIterator[tuple[str, int]]:
    """Serve `app` on (host, port); yields the actual address. Raises UsageError when it cannot be had."""
    limit = max(16, min(config.max_connections, _allow_descriptors(config.max_connections) - _SPARE_DESCRIPTORS))
    async with runner_of(app, config) as server:
        loop = asyncio.get_running_loop()
        try:
            sockets = await loop.create_server(lambda: protocol_factory(server, limit), host, port, backlog=1024)
        except OSError as exc:
            raise UsageError(
                f"cannot listen on {host} port {port}: {exc.strerror or exc}; choose another with --host and --port"
            ) from exc
        try:
            name = sockets.sockets[0].getsockname()
            yield name[0], name[1]
        finally:
            sockets.close()


def _allow_descriptors(wanted: int) -> int:
    """Raise the soft limit of open files for `wanted` connections, as far as the hard one lets us; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + 2 * _SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= need:
        return need
    best = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
    return best
