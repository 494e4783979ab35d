"""How messages share a channel: cut into chunks, small ones past large ones, each flow in order. No I/O.

The sender decides everything. Of the flows that have something to send it serves the most urgent level first and
within a level one chunk per flow in turn, a flow that was idle first (fair queueing after fq_codel, RFC 8290). So a
small frame waits for at most the chunk that is being written, whatever large frame is under way, and messages of
one flow never overtake each other.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum

from swarm.base.errors import PeerError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Body

LANES = 32
LEVELS = 4
_RESERVED = 4
"""Lanes that each less urgent level leaves free for the levels above it."""
_FRESH_IN_A_ROW = 16
"""Idle flows that may go first before a waiting flow gets its turn."""


class Chunk(IntEnum):
    """First byte of a record's plaintext."""

    PAD = 0
    WHOLE = 1
    FIRST = 2
    MORE = 3
    BYE = 4
    PROBE = 5


WHOLE_HEAD = struct.Struct(">BI")
"""kind, header bytes; then header and body, to the end of the record."""
FIRST_HEAD = struct.Struct(">BBII")
"""kind, lane, header bytes, body bytes; then the first bytes of header and body."""
MORE_HEAD = struct.Struct(">BB")
"""kind, lane; then the next bytes."""


@dataclass(slots=True)
class _Outgoing:
    header: bytes
    body: memoryview
    level: int
    lane: int = -1
    sent: int = 0

    @property
    def size(self) -> int:
        return len(self.header) + len(self.body)


class Outbox:
    """Messages waiting to leave. `queued_bytes` counts what has not been cut into chunks yet."""

    def __init__(self, partial_bytes: int) -> None:
        self._flows: dict[Hashable, deque[_Outgoing]] = {}
        self._fresh: list[deque[Hashable]] = [deque() for _ in range(LEVELS)]
        self._waiting: list[deque[Hashable]] = [deque() for _ in range(LEVELS)]
        self._free_lanes = list(range(LANES - 1, -1, -1))
        self._partial_bytes = partial_bytes
        self._partial = 0
        self._fresh_row = 0
        self.queued_bytes = 0

    def put(self, flow: Hashable, level: int, header: bytes, body: Body) -> None:
        """Queue a message behind those of the same flow; level 0 (urgent) to 3 (bulk)."""
        view = memoryview(body)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        message = _Outgoing(header, view, min(max(level, 0), LEVELS - 1))
        self.queued_bytes += message.size
        queue = self._flows.get(flow)
        if queue is None:
            self._flows[flow] = deque((message,))
            self._fresh[message.level].append(flow)
        else:
            queue.append(message)

    def next_chunk(self, room: int, large: bool = True) -> list[Body] | None:
        """The parts of the next record's plaintext, at most `room` bytes together; None when nothing can go.

        Without `large` only messages that fit a record as a whole go.
        """
        for level in range(LEVELS):
            flow = self._pick(level, room, large)
            if flow is not None:
                return self._cut(flow, level, room)
        return None

    def _pick(self, level: int, room: int, large: bool) -> Hashable | None:
        fresh, waiting = self._fresh[level], self._waiting[level]
        order = (waiting, fresh) if self._fresh_row >= _FRESH_IN_A_ROW else (fresh, waiting)
        for queue in order:
            for index, flow in enumerate(queue):
                if self._may_go(self._flows[flow][0], room, large):
                    del queue[index]
                    self._fresh_row = self._fresh_row + 1 if queue is fresh else 0
                    return flow
        return None

    def _may_go(self, message: _Outgoing, room: int, large: bool) -> bool:
        """Whether it fits a record, or has begun, or may begin within the bounds that the receiver enforces."""
        if message.lane < 0 and WHOLE_HEAD.size + message.size <= room:
            return True
        if not large or message.lane >= 0:
            return large
        if len(self._free_lanes) <= message.level * _RESERVED:
            return False
        return self._partial == 0 or self._partial + message.size <= self._partial_bytes

    def _cut(self, flow: Hashable, level: int, room: int) -> list[Body]:
        queue = self._flows[flow]
        message = queue[0]
        parts: list[Body]
        if message.lane < 0 and WHOLE_HEAD.size + message.size <= room:
            parts = [WHOLE_HEAD.pack(Chunk.WHOLE, len(message.header)), message.header, message.body]
            self.queued_bytes -= message.size
            message.sent = message.size
        else:
            parts = self._cut_long(message, room)
        if message.sent == message.size:
            queue.popleft()
            if message.lane >= 0:
                self._free_lanes.append(message.lane)
                self._partial -= message.size
            if not queue:
                del self._flows[flow]
                return parts
            level = queue[0].level
        self._waiting[level].append(flow)
        return parts

    def _cut_long(self, message: _Outgoing, room: int) -> list[Body]:
        parts: list[Body]
        if message.lane < 0:
            message.lane = self._free_lanes.pop()
            self._partial += message.size
            parts = [FIRST_HEAD.pack(Chunk.FIRST, message.lane, len(message.header), len(message.body))]
            room -= FIRST_HEAD.size
        else:
            parts = [MORE_HEAD.pack(Chunk.MORE, message.lane)]
            room -= MORE_HEAD.size
        start, split = message.sent, len(message.header)
        end = min(start + room, message.size)
        if start < split:
            parts.append(message.header[start:end])
        if end > split:
            parts.append(message.body[max(0, start - split) : end - split])
        message.sent = end
        self.queued_bytes -= end - start
        return parts


@dataclass(slots=True)
class _Incoming:
    header_bytes: int
    size: int
    header: bytearray = field(default_factory=bytearray)
    body: bytearray = field(default_factory=bytearray)


class Inbox:
    """Puts a peer's chunks together again, within the bounds of `limits`; memory grows only with what arrived."""

    def __init__(self, limits: ChannelLimits) -> None:
        self._limits = limits
        self._lanes: dict[int, _Incoming] = {}
        self._partial = 0

    def bound(self, limits: ChannelLimits) -> None:
        """Hold what comes from now on to `limits`."""
        self._limits = limits

    def take_untrusted(self, record: bytes) -> tuple[Body, Body] | None:
        """Take the plaintext of a WHOLE, FIRST or MORE record; (header, body) when it completes a message.

        Raises PeerError for a record that breaks a bound or makes no sense.
        """
        kind = record[0]
        if kind == Chunk.WHOLE and len(record) >= WHOLE_HEAD.size:
            _, header_bytes = WHOLE_HEAD.unpack_from(record)
            self._check_sizes(header_bytes, len(record) - WHOLE_HEAD.size)
            view = memoryview(record)
            split = WHOLE_HEAD.size + header_bytes
            if split > len(record):
                raise PeerError(f"expected a header of {header_bytes} bytes, found a record of {len(record)}")
            return view[WHOLE_HEAD.size : split], view[split:]
        if kind == Chunk.FIRST and len(record) > FIRST_HEAD.size:
            return self._first(record)
        if kind == Chunk.MORE and len(record) > MORE_HEAD.size:
            return self._more(record[1], memoryview(record)[MORE_HEAD.size :])
        raise PeerError(f"expected a known record, found kind {kind} with {len(record)} bytes")

    def _check_sizes(self, header_bytes: int, size: int) -> None:
        if header_bytes > self._limits.header_bytes:
            raise PeerError(f"expected a header of at most {self._limits.header_bytes} bytes, found {header_bytes}")
        if size > self._limits.message_bytes:
            raise PeerError(f"expected a message of at most {self._limits.message_bytes} bytes, found {size}")

    def _first(self, record: bytes) -> tuple[Body, Body] | None:
        _, lane, header_bytes, body_bytes = FIRST_HEAD.unpack_from(record)
        size = header_bytes + body_bytes
        self._check_sizes(header_bytes, size)
        if lane >= LANES or lane in self._lanes:
            raise PeerError(f"expected a free lane below {LANES}, found lane {lane}")
        if self._partial and self._partial + size > self._limits.partial_bytes:
            raise PeerError(f"expected at most {self._limits.partial_bytes} bytes of unfinished messages, found more")
        self._lanes[lane] = _Incoming(header_bytes, size)
        self._partial += size
        return self._more(lane, memoryview(record)[FIRST_HEAD.size :])

    def _more(self, lane: int, chunk: memoryview) -> tuple[Body, Body] | None:
        incoming = self._lanes.get(lane)
        if incoming is None:
            raise PeerError(f"expected a lane in use, found lane {lane}")
        missing = incoming.header_bytes - len(incoming.header)
        if missing:
            incoming.header += chunk[:missing]
            chunk = chunk[missing:]
        incoming.body += chunk
        arrived = len(incoming.header) + len(incoming.body)
        if arrived > incoming.size:
            raise PeerError(f"expected a message of {incoming.size} bytes, found more")
        if arrived < incoming.size:
            return None
        del self._lanes[lane]
        self._partial -= incoming.size
        return incoming.header, incoming.body
