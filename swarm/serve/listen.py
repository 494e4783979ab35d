"""The listening socket: bounded connections, deadlines on slow clients, runs cancelled when their client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from aiohttp import HttpVersion11, web
from aiohttp.http import HttpProcessingError
from aiohttp.log import server_logger

from swarm.base.hosts import host_key
from swarm.serve.config import GatewayConfig
from swarm.serve.sockets import ANY, LOOPBACK, bound_sockets, cannot_listen

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_FULL_BODY = (
    b'{"error": {"message": "too many connections are open; try again later", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)
_SPARE_DESCRIPTORS = 256
_LEAST_SHARE = 16
BEHIND_BYTES = 16 << 10
_READ_BYTES = 64 << 10
_LAST_WORDS_S = 2.0
"""For what is left to write once all runs have ended."""
_STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Says nothing to a client that listens, and is thrown back by the machine of one that is gone."""
_ASKED_AFTER_S = (0.05, 0.2, 0.5, 2.0)


class Entrance:
    """Makes the protocols of new connections: at most `limit` at once, and from one host (`host_key`) half of them at
    most, so that nobody fills the house alone. Whoever is too many hears 503."""

    def __init__(self, server: web.Server, limit: int) -> None:
        self._server, self._limit = server, limit
        self._share = max(_LEAST_SHARE, limit // 2)
        self._inside: Counter[str] = Counter()
        self.buffer = bytearray(_READ_BYTES)
        """What all connections are read through, one at a time."""

    def __call__(self) -> asyncio.Protocol:
        return _Guest(self)  # type: ignore[return-value]

    def enter(self, host: str) -> asyncio.Protocol | None:
        """The protocol for a connection from `host`, which then must `leave`; None when it is too many."""
        if self._inside.total() >= self._limit or self._inside[host] >= self._share:
            return None
        self._inside[host] += 1
        return self._server()

    def leave(self, host: str) -> None:
        """A connection that entered is gone."""
        self._inside[host] -= 1
        if not self._inside[host]:
            del self._inside[host]


class _Guest(asyncio.BufferedProtocol):
    """One connection: whose it is shows only once it is there, so aiohttp's protocol is behind this one.

    What comes behind a request that is being answered waits unread, BEHIND_BYTES of it; then nothing more is read until
    the answer is over. aiohttp would parse it and hold 32 requests or errors of up to 256 KiB.

    A client that closes its half while it is owed an answer of which nothing was told yet (`nc -N`, say) still gets it.
    One that closed all of it looks the same until something is written, so a few times something that means nothing is.
    """

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._host = ""
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._answered: web.BaseRequest | None = None
        self._behind = bytearray()
        self._paused = False
        self._owed = self._telling = False

    def begin(self, request: web.BaseRequest) -> None:
        """`request` is being answered."""
        self._answered = request
        self._telling = False

    def tell(self) -> None:
        """The answer begins to be sent."""
        self._telling = True

    def end(self) -> None:
        """The answer is over: on with what came behind it."""
        self._answered = None
        waiting, self._behind = bytes(self._behind), bytearray()
        self._owed = bool(waiting)
        if self._inner is None or self._transport is None or self._transport.is_closing():
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if waiting:
            self._inner.data_received(waiting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._host = host_key((transport.get_extra_info("peername") or ("",))[0])
        self._inner = self._entrance.enter(self._host)
        if self._inner is None:
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()
        else:
            self._inner.connection_made(transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._entrance.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self._entrance.buffer)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """What came, also from a port that reads for itself."""
        self._owed = True
        if self._answered is None or not self._answered.content.is_eof():
            if self._inner is not None:
                self._inner.data_received(data)
            return
        self._behind += data
        if len(self._behind) >= BEHIND_BYTES and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        if self._inner is None or not self._owed or self._telling:
            return None
        asyncio.get_running_loop().call_later(_ASKED_AFTER_S[0], self._ask_after, 0)
        return True

    def _ask_after(self, times: int) -> None:
        """Is a client that says no more still there? Writing to one that is not ends the connection."""
        transport, request = self._transport, self._answered
        if transport is None or transport.is_closing() or self._telling or not self._owed:
            return
        if request is None or not request.content.is_eof() or request.version < HttpVersion11:
            transport.close()  # what it asked for was never whole, or it cannot be asked
            return
        transport.write(_STILL_THERE)
        if times + 1 < len(_ASKED_AFTER_S):
            asyncio.get_running_loop().call_later(_ASKED_AFTER_S[times + 1], self._ask_after, times + 1)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner is not None:
            self._entrance.leave(self._host)
            self._inner.connection_lost(exc)


@contextmanager
def answering(request: web.BaseRequest) -> Iterator[None]:
    """While `request` is answered, what its connection says behind it waits. Of connections that came in by another
    door nothing is known here."""
    guest = _guest_of(request)
    if guest is None:
        yield
        return
    guest.begin(request)
    try:
        yield
    finally:
        guest.end()


def telling(request: web.BaseRequest) -> None:
    """The answer to `request` begins to be sent: from now on a client that closes its half has left."""
    if (guest := _guest_of(request)) is not None:
        guest.tell()


def _guest_of(request: web.BaseRequest) -> _Guest | None:
    guest = request.transport.get_protocol() if request.transport is not None else None
    return guest if isinstance(guest, _Guest) else None


@asynccontextmanager
async def runner_of(app: web.Application, config: GatewayConfig) -> AsyncIterator[web.Server]:
    """A server that makes protocols for `app`, without a socket of its own.

    What is no HTTP is answered and not logged: the log would hold four times of what was sent, from anybody.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        # Also the time that a new connection has for its first request line and headers.
        keepalive_timeout=config.idle_timeout_s,
        lingering_time=1.0,
        shutdown_timeout=_LAST_WORDS_S,
    )
    await runner.setup()
    server_logger.addFilter(no_rubbish)
    try:
        assert runner.server is not None
        yield runner.server
    finally:
        await runner.cleanup()


def no_rubbish(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp's tells of something else than a request that could not be read."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


@asynccontextmanager
async def listening(
    app: web.Application, config: GatewayConfig, host: str, port: int
) -> AsyncIterator[tuple[str, int]]:
    """Serve `app` on (host, port); yields the actual address. Raises UsageError when it cannot be had."""
    limit = max(16, min(config.max_connections, _allow_descriptors(config.max_connections) - _SPARE_DESCRIPTORS))
    async with runner_of(app, config) as server:
        loop = asyncio.get_running_loop()
        sockets = bound_sockets(host, port)
        bound = sockets[0].getsockname()
        async with AsyncExitStack() as stack:
            for sock in sockets:
                stack.callback(sock.close)
            entrance = Entrance(server, limit)
            for sock in sockets:
                try:
                    listener = await loop.create_server(entrance, sock=sock, backlog=1024)
                except OSError as exc:
                    raise cannot_listen(host, port, exc) from exc
                stack.callback(listener.close)
            yield (host if host in (ANY, LOOPBACK) else bound[0]), bound[1]


def url_of(host: str, port: int) -> str:
    """What can be pasted into a browser on this machine."""
    shown = {"::": "localhost", "0.0.0.0": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _allow_descriptors(wanted: int) -> int:
    """Raise the soft limit of open files for `wanted` connections, as far as the hard one lets us; the limit now."""
    need = wanted + 2 * _SPARE_DESCRIPTORS
    try:
        import resource
    except ImportError:  # Windows has no such limit for sockets
        return need
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return need
    best = need if hard == resource.RLIM_INFINITY else min(need, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
    except (ValueError, OSError):  # macOS says "unlimited" and refuses more than its kernel has
        return max(soft, 2 * _SPARE_DESCRIPTORS)
    return best
