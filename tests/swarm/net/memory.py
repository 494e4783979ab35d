"""Channels joined in memory: no socket, no clock, every byte in the test's hands."""

from __future__ import annotations

import asyncio
from typing import Any

from swarm.net.channel.channel import Channel
from swarm.net.channel.handshake import Established
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, Message
from swarm.net.identity import Identity

LEFT, RIGHT = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)


class MemoryTransport(asyncio.Transport):
    """Keeps what is written; `blocked` makes the next writes fill it up."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel
        self.written: list[bytes] = []
        self.closed = False
        self.reading = True
        self.room = 1 << 60
        channel.connection_made(self)

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        self.room -= len(data)
        if self.room <= 0:
            self.channel.pause_writing()

    def open_window(self, room: int) -> None:
        self.room = room
        self.channel.resume_writing()

    def take(self) -> bytes:
        data = b"".join(self.written)
        self.written.clear()
        return data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


def envelope(number: int, size: int) -> Envelope:
    return Envelope(Message("m", {"n": number}, bytes([number % 256]) * size))


class End:
    """A channel, its transport and what it received."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.transport = MemoryTransport(channel)
        self.got: list[Envelope] = []
        channel.on_message = lambda envelope, size: self.got.append(envelope)
        channel.start()

    def feed(self, data: bytes, step: int = 1 << 20) -> None:
        """Give `data` to the channel in pieces of at most `step` bytes."""
        while data and self.channel.closed_reason is None:
            buffer = self.channel.get_buffer(-1)
            size = min(step, len(buffer), len(data))
            buffer[:size] = data[:size]
            self.channel.buffer_updated(size)
            data = data[size:]


def joined(limits: ChannelLimits | None = None) -> tuple[End, End]:
    """Two ends that share keys."""
    limits = limits or ChannelLimits()
    keys = bytes(range(32)), bytes(range(32, 64))
    sides = []
    for mine, (send, receive) in ((RIGHT, keys), (LEFT, keys[::-1])):
        established = Established(mine.id, bytes(8), limits.message_bytes, send, receive, bytes(32))
        sides.append(End(Channel(established, limits, dialled=not sides, address=("memory", 0))))
    return sides[0], sides[1]
