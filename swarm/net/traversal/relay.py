"""The relay: a public node carries ciphertext between two nodes that have no direct path.

Rooms for two are made over the authenticated channel, so the relay knows whom it serves; the bytes go over one
WebSocket per side on the relay's own port, so that they pass proxies that let HTTP through. What is carried is a whole
channel, handshake included, between the two nodes: the relay sees lengths and times, never contents.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from swarm.base.address import Address
from swarm.base.errors import BusyError, PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.messages import ASK, JOIN, RELAY_CALL, RELAY_ROOM, SOUGHT, RelayCall, RelayRoom
from swarm.net.traversal.rendezvous import require_admitted
from swarm.net.tunnel import MAX_FRAME_BYTES, RELAY_PATH

_SLICE_BYTES = 16 * 1024


@dataclass(frozen=True)
class RelayLimits:
    """What a relay gives. A user is a node; both sides of a room count."""

    rate_bytes: float = 4e6
    """Bytes per second of one user, all its rooms and both directions together."""
    burst_bytes: float = 1e6
    rooms: int = 64
    rooms_per_user: int = 8
    join_seconds: float = 5.0
    """From the room's making to both sides' arrival."""
    idle_seconds: float = 30.0
    """A room in which nothing moves for this long is closed (channels in it send heartbeats)."""


@dataclass
class Bucket:
    """A token bucket. Pure: `take` returns the seconds to wait before the bytes may go; `now` in seconds."""

    rate: float
    burst: float
    level: float = 0.0
    at: float = 0.0

    def take(self, count: int, now: float) -> float:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate) - count
        self.at = now
        return max(0.0, -self.level / self.rate)


@dataclass
class _Room:
    users: tuple[NodeId, NodeId]
    made_at: float
    sides: dict[NodeId, web.WebSocketResponse] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    moved_at: float = 0.0


class Relay:
    """The relay of one node, for those of its peers that are members. `routes` are for its HTTP application.

    `addresses`: where that application is dialled from outside.
    """

    def __init__(self, board: Switchboard, addresses: Sequence[Address], limits: RelayLimits | None = None) -> None:
        self._board = board
        self._addresses = tuple(addresses)
        self.limits = limits or RelayLimits()
        self._tokens: dict[str, tuple[_Room, NodeId]] = {}
        self._rooms: set[int] = set()
        self._users: dict[NodeId, tuple[int, Bucket]] = {}
        self.carried_bytes = 0
        board.handle(ASK, self._on_ask)

    @property
    def rooms(self) -> int:
        """Rooms that exist now."""
        return len(self._rooms)

    def routes(self) -> list[web.RouteDef]:
        """What the node's HTTP application serves for it."""
        return [web.get(RELAY_PATH + "{token}", self._serve)]

    async def _on_ask(self, asker: Peer, message: Message) -> Message:
        """Make a room for the asker and a peer of this node, and call that peer in."""
        require_admitted(self._board, asker)
        node = SOUGHT.read_untrusted(message.header).node
        target = self._board.get(node)
        if target is None or target is asker:
            raise PeerError(f"node {short_id(self._board.id)} is not connected to node {short_id(node)}")
        if len(self._rooms) >= self.limits.rooms:
            raise BusyError(f"the relay has {self.limits.rooms} rooms in use; try another")
        for user in (asker.id, node):
            if user in self._users and self._users[user][0] >= self.limits.rooms_per_user:
                raise BusyError(f"node {short_id(user)} has {self.limits.rooms_per_user} rooms on this relay already")
        room = _Room((asker.id, node), time.monotonic())
        tokens = [secrets.token_urlsafe(24) for _ in room.users]
        for user, token in zip(room.users, tokens, strict=True):
            self._tokens[token] = (room, user)
            count, bucket = self._users.get(user, (0, Bucket(self.limits.rate_bytes, self.limits.burst_bytes)))
            self._users[user] = (count + 1, bucket)
        self._rooms.add(id(room))
        self._board.spawn(self._keep(room, tokens))
        await target.send(Message(JOIN, RELAY_CALL.header(RelayCall(asker.id, tokens[1], self._addresses))))
        return Message(ASK, RELAY_ROOM.header(RelayRoom(tokens[0], self._addresses)))

    async def _keep(self, room: _Room, tokens: Sequence[str]) -> None:
        """Own the room from its making to its end."""
        try:
            async with asyncio.timeout(self.limits.join_seconds):
                await room.complete.wait()
            while not room.closed.is_set():
                left = room.moved_at + self.limits.idle_seconds - time.monotonic()
                if left <= 0:
                    break
                try:
                    async with asyncio.timeout(left):
                        await room.closed.wait()
                except TimeoutError:
                    pass
        except TimeoutError:
            pass
        finally:
            room.closed.set()
            self._rooms.discard(id(room))
            for token, user in zip(tokens, room.users, strict=True):
                self._tokens.pop(token, None)
                count, bucket = self._users[user]
                if count > 1:
                    self._users[user] = (count - 1, bucket)
                else:
                    del self._users[user]
            for side in list(room.sides.values()):
                await side.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """One side's WebSocket: each token opens it once."""
        found = self._tokens.pop(request.match_info["token"], None)
        if found is None:
            raise web.HTTPNotFound(text="no such room, or already taken\n")
        room, user = found
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=2.0)
        await socket.prepare(request)
        room.sides[user] = socket
        room.moved_at = time.monotonic()
        if len(room.sides) == len(room.users):
            room.complete.set()
        try:
            async with asyncio.timeout(self.limits.join_seconds):
                await room.complete.wait()
            other = next(side for node, side in room.sides.items() if node != user)
            await self._carry(room, socket, other)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            room.closed.set()
            await socket.close()
        return socket

    async def _carry(self, room: _Room, source: web.WebSocketResponse, sink: web.WebSocketResponse) -> None:
        """Carry one direction until either side ends, at most as fast as the slower user's bucket fills."""
        buckets = [self._users[user][1] for user in room.users]
        async for message in source:
            if message.type is not WSMsgType.BINARY or room.closed.is_set():
                return
            data: bytes = message.data
            for start in range(0, len(data), _SLICE_BYTES):
                piece = data[start : start + _SLICE_BYTES]
                now = time.monotonic()
                wait = max(bucket.take(len(piece), now) for bucket in buckets)
                if wait:
                    await asyncio.sleep(wait)
                await sink.send_bytes(piece)
                self.carried_bytes += len(piece)
                room.moved_at = time.monotonic()
