"""A peer: one other node as handlers and callers see it, whatever connection carries it at the moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.base.tasks import TaskOwner
from swarm.net.channel.channel import RIVAL_SECONDS, STRANGER_READ_BYTES, Bye, Channel
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, Message
from swarm.net.channel.ping import PingSeries
from swarm.net.exchange import Exchange, Handler

__all__ = ["Handler", "Peer"]

WARM_BYTES = 1200


class Peer:
    """One authenticated other node.

    `id` its node id; `address` where the connection goes; `dialled` whether this side made it; `edge` "direct",
    "reverse", "punched", "http" or "relay"; `instance` 8 bytes that change when the other process restarts;
    `closed_reason` None while it lives. A closed peer stays closed: ask the switchboard for a new one.
    `stranger`: whether it has still to be admitted (`admit`); until then it is held to `limits.for_strangers`, and only
    its messages of the kinds in `open_kinds` are handled.
    """

    def __init__(
        self,
        channel: Channel,
        edge: str,
        handlers: Mapping[str, Handler],
        limits: ChannelLimits,
        tasks: TaskOwner,
        open_kinds: Collection[str] | None = None,
    ):
        self.id: NodeId = channel.remote
        self.instance = channel.instance
        self.edge = edge
        self.closed_reason: str | None = None
        self.on_closed: Callable[[Peer], None] = lambda peer: None
        self.stranger = open_kinds is not None
        self.on_admitted: Callable[[Peer], None] = lambda peer: None
        self._full_limits = limits
        self._limits = limits.for_strangers if self.stranger else limits
        self._channel = channel
        self._rival: Channel | None = None
        self._moved = False
        self._rival_timer: asyncio.TimerHandle | None = None
        self._exchange = Exchange(self, handlers, self._limits, tasks, open_kinds)
        self._warm: dict[object, tuple[int, Callable[[], None]]] = {}
        self._closed = asyncio.Event()
        self._last_series: PingSeries | None = None
        self._use(channel)
        channel.start()

    def __repr__(self) -> str:
        return f"<Peer {short_id(self.id)} {self.edge} {self.closed_reason or 'open'}>"

    @property
    def channel(self) -> Channel:
        """The connection that carries it now; another one after both sides dialled at once."""
        return self._channel

    @property
    def may_read(self) -> bool:
        """Whether that connection may be read: not before a losing one has finished."""
        return self._rival is None

    @property
    def address(self) -> Address:
        return self._channel.address

    @property
    def local_address(self) -> Address:
        """This side's end of the connection: the port that a NAT in between keeps open."""
        return self._channel.local_address

    @property
    def dialled(self) -> bool:
        return self._channel.dialled

    @property
    def tunnelled(self) -> bool:
        """Whether it goes through a WebSocket: this side's port and the other's say nothing of a way for TCP then."""
        return self.edge in ("relay", "http")

    @property
    def leaving(self) -> bool:
        """Whether it is about to close: nothing more can be sent."""
        return self._channel.leaving

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be sent to this peer."""
        return self._channel.queued_bytes

    @property
    def sent_bytes(self) -> int:
        return self._channel.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._channel.received_bytes

    def admit(self) -> None:
        """It is no stranger any more: all of `limits` is its, and all kinds of messages. Idempotent."""
        if self.stranger:
            self.stranger = False
            self._limits = self._full_limits
            self._exchange.bound(self._limits, None)
            for channel in (self._channel, self._rival):
                if channel is not None:
                    channel.bound(self._limits)
            self.on_admitted(self)

    @property
    def served(self) -> bool:
        """Whether something that it asked for is being answered or still on its way to it."""
        return self._exchange.serving or self.queued_bytes > 0

    # -- talking

    async def send(self, message: Message, priority: int = 0, flow: Hashable = None) -> None:
        """Queue `message`; waits only while more than `limits.queue_bytes` are queued. Raises PeerError when closed.

        `priority` 0 (urgent) to 3 (bulk). Messages of one `flow` arrive in the order sent; across flows small ones
        pass large ones. Without a flow, messages of one kind are one flow. The body must not change until it has
        left (`flush`).
        """
        channel = self._channel
        channel.post(Envelope(message), priority, message.kind if flow is None else flow)
        if channel.queued_bytes > self._limits.queue_bytes:
            await channel.room()

    def post(self, message: Message, priority: int = 0, flow: Hashable = None) -> None:
        """`send` without waiting, for callbacks; the caller watches `queued_bytes`. Raises PeerError when closed."""
        self._channel.post(Envelope(message), priority, message.kind if flow is None else flow)

    async def flush(self) -> None:
        """Wait until all that was sent has been given to the kernel. Raises PeerError when closed."""
        await self._channel.flush()

    async def call(self, message: Message, timeout: float, priority: int = 1, flow: Hashable = None) -> Message:
        """Send `message` and wait for its answer, at most `timeout` seconds.

        Raises what the other side's handler raised (BusyError, ModelError, CoverageError, RunError), else
        PeerError: no answer in time, closed, or refused.
        """
        return await self._exchange.call(message, timeout, priority, flow)

    async def ping(self, count: int = 5, timeout: float = 10.0) -> PingSeries:
        """Measure the round trip `count` times in one ping-pong-ping series; both ends learn both figures.

        Raises PeerError when closed or not finished within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                self._last_series = await self._ping(count)
        except TimeoutError as exc:
            raise PeerError(f"node {short_id(self.id)} did not answer {count} pings within {timeout:g} s") from exc
        return self._last_series

    async def _ping(self, count: int) -> PingSeries:
        while True:
            channel = self._channel
            try:
                return await channel.ping(count)
            except PeerError:
                if channel is self._channel:
                    raise  # else it lost a simultaneous dial: ask on the one that is kept

    async def measure_rate(self, burst_bytes: int = 1 << 20) -> float | None:
        """How many bytes per second go to this peer, at least: a burst of padding (at most 4 MiB), timed by the kernel.

        None where the system does not tell. Raises PeerError when closed.
        """
        return await self._channel.measure_rate(min(burst_bytes, 4 << 20))

    @property
    def last_ping(self) -> PingSeries | None:
        """The latest series that this side began and finished."""
        return self._last_series

    @property
    def seen_ping(self) -> PingSeries | None:
        """The latest series that the other side began."""
        return self._channel.seen_ping

    @property
    def rtt_ms(self) -> float | None:
        """Median round trip of the latest series in milliseconds; None before the first."""
        series = self._last_series or self._channel.seen_ping
        return None if series is None else series.median_us / 1000

    @contextlib.contextmanager
    def warm(self, burst_bytes: int = WARM_BYTES) -> Iterator[None]:
        """While held (a run is active), padding of `burst_bytes` goes out every 100 ms in which nothing else does."""
        token = object()
        self._warm[token] = (burst_bytes, self._channel.warm(burst_bytes))
        try:
            yield
        finally:
            self._warm.pop(token)[1]()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def close(self, reason: str = "the other side closed", timeout: float = 2.0) -> None:
        """Send what is queued, tell the other side `reason`, and close; at most `timeout` seconds."""
        self._channel.leave(reason)
        try:
            async with asyncio.timeout(timeout):
                await self._closed.wait()
        except TimeoutError:
            self.drop(reason)

    @property
    def replaced(self) -> bool:
        """Whether it said that another process with this node's identity took this one's place."""
        return self._channel.replaced

    def dismiss(self, reason: str) -> None:
        """Close at once in favour of another process with the same identity, and say so."""
        if self._rival is not None:
            self._rival.close(reason)
        self._channel.dismiss(reason, Bye.REPLACED)

    def drop(self, reason: str) -> None:
        """Close at once, without a goodbye."""
        if self._rival is not None:
            self._rival.close(reason)
        self._channel.close(reason)

    # -- connections

    @property
    def busy(self) -> bool:
        """Whether a run keeps it warm, or something waits to be sent or answered here."""
        return bool(self._warm or self._exchange.calling or self.queued_bytes)

    def is_surpassed(self, channel: Channel, edge: str) -> bool:
        """Whether `channel` leads to the same process without the relay that the current connection goes through."""
        direct = self.edge == "relay" and edge != "relay"
        return direct and channel.instance == self.instance and not self.leaving and self._rival is None

    def is_rival(self, channel: Channel) -> bool:
        """Whether `channel` and the current connection come from both nodes dialling each other at once."""
        current = self._channel
        recent = channel.opened_at - current.opened_at < self._limits.handshake_seconds
        both_ways = channel.dialled != current.dialled and not current.leaving
        return both_ways and recent and channel.instance == self.instance and self._rival is None

    def settle(self, channel: Channel, edge: str, own: NodeId) -> None:
        """Keep one of two connections: the one without a relay, else the one that the node with the lower id dialled.

        Each side finishes the loser with a goodbye and reads the winner only after that, so nothing that was sent
        on either is lost or overtaken.
        """
        newer = channel.dialled == (own < self.id) if (edge == "relay") == (self.edge == "relay") else edge != "relay"
        if newer:
            winner, loser = channel, self._channel
            self.edge, self._last_series = edge, None
        else:
            winner, loser = self._channel, channel
        self._rival, self._moved = loser, newer
        self._use(winner)
        self._use(loser)
        self._channel = winner
        if winner is channel:
            self._warm = {token: (burst, winner.warm(burst)) for token, (burst, _) in self._warm.items()}
        winner.pause_reading()
        if loser is channel:
            loser.start()
        loser.leave("both sides dialled at once", Bye.RIVAL)
        loop = asyncio.get_running_loop()
        self._rival_timer = loop.call_later(RIVAL_SECONDS, loser.close, "the losing connection did not finish")
        if loser.closed_reason is not None:
            self._on_channel_closed(loser)

    def _use(self, channel: Channel) -> None:
        if channel.closed_reason is not None:
            return  # it tells nothing more
        if self.stranger:
            channel.bound(self._limits, STRANGER_READ_BYTES)
        channel.on_message = self._exchange.take
        channel.on_closed = lambda: self._on_channel_closed(channel)

    def _on_channel_closed(self, channel: Channel) -> None:
        if channel is self._rival:
            self._rival = None
            if self._rival_timer is not None:
                self._rival_timer.cancel()
            if self._moved and not channel.finished:
                self.drop("the connection that was given up broke before it had finished")
            elif self._channel.closed_reason is None:
                self._channel.start()
            return
        if channel is not self._channel or self.closed_reason is not None:
            return
        self.closed_reason = channel.closed_reason or "closed"
        self._exchange.end(self.closed_reason)
        self._closed.set()
        self.on_closed(self)
