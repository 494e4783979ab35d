"""The sending half of a channel: seals records and writes them while the kernel takes them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from swarm.base.errors import PeerError
from swarm.net.channel.lanes import Chunk, Outbox
from swarm.net.channel.message import Body
from swarm.net.channel.pacing import RETRY_SECONDS, Pacer, read_road
from swarm.net.channel.record import LENGTH_BYTES, Sealer

CHUNK_BYTES = 32 * 1024
"""Plaintext of one record: what a small frame may have to wait for."""
TURN_BYTES = 256 * 1024
"""Sealed in one turn of the event loop before others get theirs."""
SMALL_BYTES = 2048
"""Plaintexts up to this are joined; longer ones are gathered in a buffer that the connection keeps."""
MAX_CONTROL = 256
"""Pads and ping answers that may wait: more means that the peer asks and does not read."""


class Writer:
    """Writes `outbox` and control records (which go first) to a transport; calls `on_wrote` after each go.

    `outbox` holds the messages; `bye` is the goodbye record to send when nothing is left; after it nothing follows.
    """

    def __init__(self, key: bytes, outbox: Outbox, on_wrote: Callable[[], None]) -> None:
        self.outbox = outbox
        self.bye: bytes | None = None
        self.bye_sent = False
        self.sent_bytes = 0
        self.sent_at = time.monotonic()
        self._sealer = Sealer(key)
        self._on_wrote = on_wrote
        self._control: deque[bytes] = deque()
        self._plain = bytearray()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._due = False
        self._retry_due = False
        self._stopped = False
        self._pacer = Pacer(lambda: None)

    @property
    def idle(self) -> bool:
        """Whether all that was queued has been given to the kernel."""
        return not (self.outbox.queued_bytes or self._control or self._paused)

    def attach(self, transport: asyncio.Transport) -> None:
        """Write to `transport` from now on; it reports back through `pause` and `resume`."""
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._pacer = Pacer(lambda: read_road(sock))

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.pump()

    def stop(self) -> None:
        """Write nothing more, and tell nobody: what is over holds nothing that holds it."""
        self._stopped = True
        self._plain = bytearray()
        self._on_wrote = lambda: None

    def control(self, record: bytes) -> None:
        """Queue a record that goes before all messages. Raises PeerError when the peer lets too many pile up."""
        if len(self._control) >= MAX_CONTROL:
            raise PeerError(f"expected a peer that reads, found {MAX_CONTROL} records waiting for it")
        self._control.append(record)

    def pad(self, count: int) -> None:
        """Send `count` bytes of padding at once. Raises PeerError as `control` does."""
        while count > 0:
            size = min(count, CHUNK_BYTES)
            self.control(bytes(size))  # Chunk.PAD is zero
            count -= size
        self.pump()

    def pump(self) -> None:
        """Seal and write while the kernel takes it, at most TURN_BYTES in one turn of the event loop."""
        if self._due or self._transport is None:
            return
        turn = 0
        while not (self._paused or self.bye_sent or self._stopped):
            if turn >= TURN_BYTES:
                self._due = True
                asyncio.get_running_loop().call_soon(self._pump_again)
                break
            batch = self._next_batch()
            if not batch:
                break
            turn += len(batch)
            self.sent_bytes += len(batch)
            self.sent_at = time.monotonic()
            self._transport.write(batch)
        self._on_wrote()

    def _retry(self) -> None:
        """The road is full: look again shortly, since the kernel tells nobody when it has emptied."""
        if not self._retry_due:
            self._retry_due = True
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._retry_due = False
        self.pump()

    def _pump_again(self) -> None:
        self._due = False
        self.pump()

    def _next_batch(self) -> bytes:
        """Sealed records, together about one chunk: one long record or several short ones."""
        parts: list[bytes] = []
        total = 0
        while total < CHUNK_BYTES // 2:
            plaintext = self._next_plaintext()
            if plaintext is None:
                break
            sealed = self._sealer.seal(plaintext)
            parts += (len(sealed).to_bytes(LENGTH_BYTES, "big"), sealed)
            total += LENGTH_BYTES + len(sealed)
        return b"".join(parts)

    def _next_plaintext(self) -> Body | None:
        if self._control:
            return self._control.popleft()
        now = time.monotonic()
        large = self._pacer.may_send_large(now)
        parts = self.outbox.next_chunk(CHUNK_BYTES, large)
        if parts is None:
            if not large and self.outbox.queued_bytes:
                self._retry()
            if self.bye is None or self.bye_sent or self.outbox.queued_bytes:
                return None
            self.bye_sent = True
            return self.bye
        if parts[0][0] == Chunk.WHOLE:
            self._pacer.sent_small(now)
        if sum(map(len, parts)) <= SMALL_BYTES:
            return b"".join(parts)
        if not self._plain:  # a connection that never says much never takes it
            self._plain = bytearray(CHUNK_BYTES)
        end, plain = 0, self._plain
        for part in parts:
            start, end = end, end + len(part)
            plain[start:end] = part
        return memoryview(plain)[:end]
