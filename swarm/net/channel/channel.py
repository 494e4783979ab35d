"""A channel: authenticated, encrypted, ordered messages between two identities over one connected socket.

The event loop does all the work in small pieces: reading takes a few records per turn, writing at most a few and
only while the kernel takes them, so neither a large frame nor a fast peer holds the loop. Nothing here starts a task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from enum import IntEnum

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.nodeid import short_id
from swarm.net.channel.handshake import Established
from swarm.net.channel.keepalive import Keepalive
from swarm.net.channel.lanes import Chunk, Inbox, Outbox
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, pack_header, unpack_untrusted
from swarm.net.channel.pacing import Road, read_road
from swarm.net.channel.ping import Pings, PingSeries
from swarm.net.channel.record import RecordReader
from swarm.net.channel.writer import Writer

READ_BYTES = 128 * 1024
STRANGER_READ_BYTES = 8 * 1024
"""Holds every record that a stranger has a reason to send: a hello is under 3 KiB."""
MAX_REASON_CHARS = 200
RIVAL_SECONDS = 2.0
"""How long the losing connection of a simultaneous dial may take to finish."""
DISMISS_SECONDS = 1.0
"""How long the kernel may take to accept the goodbye of a connection that was dismissed."""


class Bye(IntEnum):
    """Second byte of a goodbye. After RIVAL the other side sends on until it has the connection that is kept.

    REPLACED: another process proved the same identity, and its connection took this one's place.
    """

    LEAVING = 0
    RIVAL = 1
    REPLACED = 2


class Channel(asyncio.BufferedProtocol):
    """One end. Set `on_message` and `on_closed`, then call `start`; until then nothing is read.

    `closed_reason` is None while the channel lives; `replaced` whether the other side said that another process with
    this side's identity took its place.
    """

    def __init__(self, established: Established, limits: ChannelLimits, dialled: bool, address: Address) -> None:
        self.remote = established.remote
        self.instance = established.instance
        self.hash = established.hash
        self.dialled = dialled
        self.address = address
        self.opened_at = time.monotonic()
        self.closed_reason: str | None = None
        self.replaced = False
        self.on_message: Callable[[Envelope, int], None] = _unread
        self.on_closed: Callable[[], None] = _nothing
        self.received_bytes = 0
        self._limits = limits
        self._remote_message_bytes = established.message_bytes
        self._reader = RecordReader(established.receive_key, READ_BYTES)
        self._writer = Writer(established.send_key, Outbox(2 * established.message_bytes), self._on_wrote)
        self._pulse = Keepalive(self._writer, limits, self.close)
        self._inbox = Inbox(limits)
        self._pings = Pings(Chunk.PROBE)
        self._transport: asyncio.Transport | None = None
        self._leaving: str | None = None
        self._bye_seen = False
        self._room = asyncio.Event()
        self._closed = asyncio.Event()

    # -- for the owner

    def bound(self, limits: ChannelLimits, read_bytes: int = READ_BYTES) -> None:
        """Hold the other side to `limits` from now on; `read_bytes` can only grow."""
        self._limits = limits
        self._inbox.bound(limits)
        self._reader.buffer_bytes = read_bytes

    def start(self) -> None:
        """Begin to read; `on_message` is called from now on."""
        self.resume_reading()
        self._pulse.beat()

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that have not been sealed yet."""
        return self._writer.outbox.queued_bytes

    @property
    def leaving(self) -> bool:
        """Whether a side has said goodbye, or is about to."""
        return self._leaving is not None

    @property
    def finished(self) -> bool:
        """Whether both sides said goodbye: all that was queued has crossed."""
        return self._writer.bye_sent and self._bye_seen

    @property
    def sent_bytes(self) -> int:
        return self._writer.sent_bytes

    def post(self, envelope: Envelope, level: int, flow: Hashable) -> None:
        """Queue one message: level 0 (urgent) to 3 (bulk), in order within `flow`. Raises PeerError."""
        if self.closed_reason is not None or self._leaving is not None:
            raise PeerError(self.closed_reason or self._leaving or "closed")
        header = pack_header(envelope)
        body = envelope.message.body
        size = len(header) + memoryview(body).nbytes
        if size > self._remote_message_bytes or len(header) > self._limits.header_bytes:
            raise PeerError(
                f"message {envelope.message.kind!r} of {size} bytes (header {len(header)}) is over the "
                f"{self._remote_message_bytes} that node {short_id(self.remote)} takes"
            )
        self._writer.outbox.put(flow, level, header, body)
        self._writer.pump()

    async def room(self) -> None:
        """Wait until no more than `limits.queue_bytes` are queued. Raises PeerError when the channel is closed."""
        while self.queued_bytes > self._limits.queue_bytes and self.closed_reason is None:
            self._room.clear()
            await self._room.wait()
        self._check_open()

    async def flush(self) -> None:
        """Wait until every queued message was sealed and given to the kernel. Raises PeerError when closed."""
        while not self._writer.idle and self.closed_reason is None:
            self._room.clear()
            await self._room.wait()
        self._check_open()

    async def ping(self, count: int) -> PingSeries:
        """Run one ping-pong-ping series; a second caller joins the one under way. Raises PeerError when closed."""
        self._check_open()
        waiting, first = self._pings.begin(count, _now_us())
        if first is not None:
            self._writer.control(first)
            self._writer.pump()
        try:
            return await asyncio.shield(waiting)
        finally:
            del waiting  # it may have an error, which has this frame: together they would wait for the collector

    @property
    def seen_ping(self) -> PingSeries | None:
        """The latest series that the other side began."""
        return self._pings.seen

    def warm(self, burst_bytes: int) -> Callable[[], None]:
        """Keep the congestion window open with padding while nothing else is sent; call the result to end it."""
        return self._pulse.warm(burst_bytes)

    @property
    def road(self) -> Road | None:
        """What the kernel knows of the path; None where it does not tell, as through a relay."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return None if sock is None or self.closed_reason is not None else read_road(sock)

    async def measure_rate(self, burst_bytes: int) -> float | None:
        """Send a burst of padding and return the best delivery rate seen meanwhile, in bytes per second."""
        self._writer.pad(burst_bytes)
        best = 0
        for _ in range(4):
            await self.ping(2)
            best = max(best, self.road.rate if self.road is not None else 0)
        return best or None

    def pause_reading(self) -> None:
        """Stop reading: the peer's messages wait in the kernel, then on its side."""
        self._pulse.deaf = True
        if self._transport is not None and self.closed_reason is None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._pulse.deaf = False
        self._pulse.heard()
        if self._transport is not None and self.closed_reason is None:
            self._transport.resume_reading()

    def leave(self, reason: str, bye: Bye = Bye.LEAVING) -> None:
        """Send what is queued, then a goodbye; the channel closes when the other side has said goodbye as well."""
        if self._leaving is None and self.closed_reason is None:
            self._leaving = reason[:MAX_REASON_CHARS]
            self._writer.bye = bytes((Chunk.BYE, bye)) + self._leaving.encode("utf-8")
            self._writer.pump()

    def close(self, reason: str) -> None:
        """Close now; what the kernel already has may still arrive. A second call changes nothing."""
        self._end(reason, at_once=True)

    def dismiss(self, reason: str, bye: Bye) -> None:
        """Say goodbye and close without waiting for the other side's; what it has sent is not read any more."""
        self.leave(reason, bye)
        transport = self._transport
        self._end(reason, at_once=False)
        if transport is not None:
            asyncio.get_running_loop().call_later(DISMISS_SECONDS, transport.abort)

    def _end(self, reason: str, at_once: bool) -> None:
        if self.closed_reason is not None:
            return
        self.closed_reason = reason
        self._pulse.stop()
        self._writer.stop()
        self._reader.release()
        if self._transport is not None:
            if at_once:
                self._transport.abort()
            else:
                self._transport.close()
        self._pings.end(reason)
        self._room.set()
        self._closed.set()
        closed, self.on_closed = self.on_closed, _nothing
        self.on_message = _unread  # whoever took them holds this channel
        closed()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def _check_open(self) -> None:
        if self.closed_reason is not None:
            raise PeerError(self.closed_reason)

    @property
    def local_address(self) -> Address:
        """This end of the connection; ("local", 0) where there is none."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else ("local", 0)

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._writer.attach(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(self._leaving or (f"the connection broke: {exc}" if exc else "the other side went away"))
        self._transport = None

    def eof_received(self) -> None:
        self.close(self._leaving or "the other side went away")

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.space

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        self._pulse.heard()
        try:
            for record in self._reader.take_untrusted(nbytes):
                self._take_record_untrusted(record)
                if self.closed_reason is not None:
                    return
        except PeerError as exc:
            self.close(str(exc))

    def _take_record_untrusted(self, record: bytes) -> None:
        kind = record[0]
        if kind == Chunk.PAD:
            return
        if kind == Chunk.BYE:
            self._take_bye_untrusted(record)
            return
        if self._bye_seen:
            raise PeerError("expected nothing after a goodbye, found a record")
        if kind == Chunk.PROBE:
            answer = self._pings.take_untrusted(record, _now_us())
            if answer is not None:
                self._writer.control(answer)
                self._writer.pump()
            return
        complete = self._inbox.take_untrusted(record)
        if complete is not None:
            header, body = complete
            self.on_message(unpack_untrusted(header, body, self._limits), len(header) + len(body))

    def _take_bye_untrusted(self, record: bytes) -> None:
        if self._bye_seen or len(record) < 2:
            raise PeerError("expected one goodbye, found another record")
        self._bye_seen = True
        self.replaced = record[1] == Bye.REPLACED
        if record[1] == Bye.RIVAL and self._leaving is None:
            loop = asyncio.get_running_loop()
            loop.call_later(RIVAL_SECONDS, self.close, "the connection to keep did not come")
            return
        text = record[2 : 2 + 4 * MAX_REASON_CHARS].decode("utf-8", "replace")
        self.leave("".join(c for c in text if c.isprintable()) or "the other side left")
        self._end_if_done()

    def _on_wrote(self) -> None:
        self._room.set()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.finished and self._leaving is not None:
            self._end(self._leaving, at_once=False)


def _nothing() -> None:
    """Nobody wants to know."""


def _unread(envelope: Envelope, size: int) -> None:
    """Nobody takes messages."""


def _now_us() -> int:
    return time.perf_counter_ns() // 1000
