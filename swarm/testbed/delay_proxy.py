"""A TCP proxy that makes loopback feel far away: one process in front of one listener, no privileges needed.

Every byte is held for the one-way delay in each direction, so a dial, a request and its answer take what they
would take over a path of twice that round trip. A connection is made as TCP would make it: the far end sees it
after three one-way delays (SYN, SYN-ACK, ACK), and bytes written earlier count as written after two.

What this is not: packets. There is no loss, no slow start and no congestion; the lab under `tests/lab` has those.

Run as `python -m swarm.testbed.delay_proxy --listen 127.0.0.1:0 --to 127.0.0.1:7700 --delay-ms 25`. It prints one JSON
line with its address, then obeys lines on stdin (`delay MS`, `jitter MS`, `rate MBIT`, `to HOST:PORT`, `down`, `up`)
and ends when stdin closes or on SIGTERM, so it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from swarm.base.address import Address, format_address
from swarm.base.config import parse_address
from swarm.base.errors import UsageError
from swarm.base.signals import on_signals
from swarm.testbed.impairment import Link, Wire

SEGMENT = 16 * 1024
"""Bytes that share one due time when a rate is set: a large write trickles out as it would on a slow line."""

QUEUE_MS = 100.0
"""How much of a rate-limited line's time may be queued before the sender is held back."""

MAX_HELD = 64 << 20
"""Bytes that one direction may hold; beyond it the sender is held back."""


class DirectionEnd(Enum):
    """How one direction ends; queued behind its bytes, so it arrives as late as they do."""

    CLOSED = "closed"  # an orderly end of this direction; the other one goes on
    RESET = "reset"  # the whole connection is gone


class Direction(asyncio.Protocol):
    """Reads one socket; writes what is due to the other one. Two of them make a connection."""

    def __init__(self, proxy: Proxy, opened: float) -> None:
        self.proxy = proxy
        self.loop = asyncio.get_running_loop()
        self.wire = Wire(proxy.link, opened)
        self.held: deque[tuple[float, bytes | DirectionEnd]] = deque()
        self.held_bytes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.source: asyncio.Transport | None = None
        self.other: Direction | None = None
        self.blocked = False
        self.finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.source = transport
        self.proxy.directions.add(self)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        step = SEGMENT if self.wire.link.rate_mbit > 0 else len(data)
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self.held.append((self.wire.due(len(piece), now), piece))
        self.held_bytes += len(data)
        self.flow()
        self.arm()

    def eof_received(self) -> bool:
        self.end(DirectionEnd.CLOSED)
        return True  # keep writing: a half-close is one direction's business

    def connection_lost(self, exc: Exception | None) -> None:
        self.proxy.directions.discard(self)
        if exc is not None or not self.finished:
            self.end(DirectionEnd.RESET)

    def end(self, how: DirectionEnd) -> None:
        self.held.append((self.wire.due(0, self.loop.time()), how))
        self.arm()

    def pause_writing(self) -> None:
        """Whoever reads from our source's socket is slow, so the direction that feeds it stops reading."""
        if self.other is not None:
            self.other.blocked = True
            self.other.flow()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.blocked = False
            self.other.flow()

    def flow(self) -> None:
        """Read on only while there is room for more."""
        if self.source is None or self.source.is_closing():
            return
        full = self.held_bytes > MAX_HELD or self.wire.queued_ms(self.loop.time()) > QUEUE_MS
        if full or self.blocked:
            self.source.pause_reading()
        else:
            self.source.resume_reading()

    def arm(self) -> None:
        """Wait for the first held piece, unless that is done already or the path is down."""
        if self.timer is None and self.held and self.other is not None and self.proxy.up.is_set():
            self.timer = self.loop.call_at(self.held[0][0], self.release)

    def release(self) -> None:
        """Write everything that is due, then wait for the next."""
        self.timer = None
        now = self.loop.time()
        while self.held and self.held[0][0] <= now and self.proxy.up.is_set():
            self.deliver(self.held.popleft()[1])
        self.flow()
        self.arm()

    def deliver(self, piece: bytes | DirectionEnd) -> None:
        if self.other is None or self.other.source is None:
            return
        sink = self.other.source
        if isinstance(piece, bytes):
            self.held_bytes -= len(piece)
            if not sink.is_closing():
                sink.write(piece)
        elif piece is DirectionEnd.RESET:
            self.finished = self.other.finished = True
            sink.abort()
        else:
            self.finished = True
            if self.other.finished:
                self.close()
                self.other.close()
            elif not sink.is_closing():
                sink.write_eof()

    def close(self) -> None:
        if self.source is not None:
            self.source.close()


class Proxy:
    """One listener, one target, one link between them."""

    def __init__(self, link: Link, target: Address | None) -> None:
        self.link = link
        self.up = asyncio.Event()
        self.up.set()
        self.directions: set[Direction] = set()
        self._target: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._pairs: set[asyncio.Task[None]] = set()
        if target is not None:
            self._target.set_result(target)

    def set_target(self, target: Address) -> None:
        """Where connections go from now on; those accepted before any target was known go there too."""
        if self._target.done():
            self._target = asyncio.get_running_loop().create_future()
        self._target.set_result(target)

    def set_link(self, link: Link) -> None:
        """Change the path under the connections that are open, and for later ones."""
        self.link = link
        for direction in self.directions:
            direction.wire.link = link

    def set_down(self, down: bool) -> None:
        """A partition: nothing moves, nobody is told; `False` lets what was held go on."""
        if down:
            self.up.clear()
            return
        self.up.set()
        for direction in self.directions:
            direction.arm()

    def accept(self) -> asyncio.Protocol:
        """The protocol of a connection that was just accepted; its far half follows after the handshake's time."""
        loop = asyncio.get_running_loop()
        one_way = self.link.delay_ms * 1e-3
        near = Direction(self, loop.time() + 2 * one_way)
        task = loop.create_task(self._pair(near, loop.time() + 3 * one_way))
        self._pairs.add(task)
        task.add_done_callback(self._pairs.discard)
        return near

    async def _pair(self, near: Direction, when: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(when - loop.time())
        await self.up.wait()
        target = await self._target
        far = Direction(self, loop.time())
        try:
            await loop.create_connection(lambda: far, *target)
        except OSError:
            if near.source is not None:
                near.source.abort()
            return
        near.other, far.other = far, near
        near.arm()
        far.arm()


def obey(proxy: Proxy, line: str) -> None:
    """Carry out one line of stdin; raises `UsageError` for a line that it does not know."""
    match line.split():
        case ["to", address]:
            proxy.set_target(parse_address(address))
        case [("delay" | "jitter") as field, value]:
            proxy.set_link(replace(proxy.link, **{f"{field}_ms": float(value)}))
        case ["rate", value]:
            proxy.set_link(replace(proxy.link, rate_mbit=float(value)))
        case ["down"]:
            proxy.set_down(True)
        case ["up"]:
            proxy.set_down(False)
        case []:
            pass
        case _:
            raise UsageError(f"expected delay MS, jitter MS, rate MBIT, to HOST:PORT, down or up, found {line!r}")


async def serve(listen: Address, target: Address | None, link: Link) -> None:
    """Proxy until stdin closes or SIGTERM arrives; raises `UsageError` when the address cannot be had."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    proxy = Proxy(link, target)
    with on_signals(ended.set):
        try:
            server = await loop.create_server(proxy.accept, *listen)
        except OSError as exc:
            raise UsageError(f"cannot listen on {format_address(listen)}: {exc.strerror}; choose another port") from exc
        address = format_address(server.sockets[0].getsockname()[:2])
        print(json.dumps({"event": "ready", "listen": address}), flush=True)
        commands = loop.create_task(_read_commands(proxy, ended))
        try:
            await ended.wait()
        finally:
            commands.cancel()
            server.close()
            for direction in tuple(proxy.directions):
                direction.close()


async def _read_commands(proxy: Proxy, ended: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            obey(proxy, line.decode())
        except (UsageError, ValueError) as exc:
            print(f"delay: {exc}", file=sys.stderr, flush=True)
    ended.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, serve, return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m swarm.testbed.delay_proxy", description="A TCP proxy that adds delay."
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--to", metavar="HOST:PORT", help="may also be given later, as a line on stdin")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, each direction")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="per direction and connection; 0: no limit")
    args = parser.parse_args(arguments)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # a path does not slow down because its ends compute; root only
    try:
        link = Link(args.delay_ms, args.jitter_ms, args.rate_mbit)
        target = parse_address(args.to) if args.to else None
        # epoll rounds its timeout up to a whole millisecond; select does not, and a proxy has few descriptors.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            runner.run(serve(parse_address(args.listen), target, link))
    except UsageError as exc:
        print(f"delay: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
