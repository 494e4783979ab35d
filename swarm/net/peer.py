"""A peer: one other node as handlers and callers see it, whatever connection carries it at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Mapping
from typing import Any, TypeAlias

from swarm.errors import BusyError, CoverageError, ModelError, PeerError, RunError, SwarmError
from swarm.net.address import Address
from swarm.net.channel import RIVAL_SECONDS, Bye, Channel
from swarm.net.limits import Limits
from swarm.net.message import MAX_CALL, Envelope, Message, Mode
from swarm.net.nodeid import NodeId, short_id
from swarm.net.ping import PingSeries

log = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[Peer, Message], Awaitable[Message | None]]"
"""Gets every message of one kind, in the order in which its peer's flow sent them; an answer returned goes to a call.

Messages of one peer and kind wait for each other, so a handler hands long work on. SwarmErrors go back to a caller.
"""
Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

ERRORS: Mapping[str, type[SwarmError]] = {
    "busy": BusyError,
    "coverage": CoverageError,
    "model": ModelError,
    "run": RunError,
    "peer": PeerError,
}
"""What an error answer may say, so that "busy, try later" stays distinguishable; anything else becomes PeerError."""
MAX_ERROR_CHARS = 500
MESSAGE_OVERHEAD_BYTES = 512
"""Counted for each message that waits to be handled, on top of its own bytes."""
WARM_BYTES = 1200


class Peer:
    """One authenticated other node.

    `id` its node id; `address` where the connection goes; `dialled` whether this side made it; `edge` "direct",
    "reverse", "punched" or "relay"; `instance` 8 bytes that change when the other process restarts;
    `closed_reason` None while it lives. A closed peer stays closed: ask the switchboard for a new one.
    """

    def __init__(self, channel: Channel, edge: str, handlers: Mapping[str, Handler], limits: Limits, spawn: Spawn):
        self.id: NodeId = channel.remote
        self.instance = channel.instance
        self.edge = edge
        self.closed_reason: str | None = None
        self.on_closed: Callable[[Peer], None] = lambda peer: None
        self._handlers = handlers
        self._limits = limits
        self._spawn = spawn
        self._channel = channel
        self._rival: Channel | None = None
        self._moved = False
        self._rival_timer: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._serving = 0
        self._queues: dict[str, asyncio.Queue[tuple[Envelope, int] | None]] = {}
        self._warm: dict[object, tuple[int, Callable[[], None]]] = {}
        self._inbox_bytes = 0
        self._closed = asyncio.Event()
        self._last_series: PingSeries | None = None
        self._use(channel)
        channel.start()

    def __repr__(self) -> str:
        return f"<Peer {short_id(self.id)} {self.edge} {self.closed_reason or 'open'}>"

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
        if len(self._calls) >= self._limits.calls:
            raise BusyError(f"{len(self._calls)} calls to node {short_id(self.id)} wait already; try later")
        number = next(self._numbers) % MAX_CALL + 1
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            async with asyncio.timeout(timeout):
                envelope = Envelope(message, Mode.CALL, number)
                self._channel.post(envelope, priority, message.kind if flow is None else flow)
                return await answer
        except TimeoutError as exc:
            raise PeerError(f"node {short_id(self.id)} did not answer {message.kind!r} within {timeout:g} s") from exc
        finally:
            del self._calls[number]

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

    def drop(self, reason: str) -> None:
        """Close at once, without a goodbye."""
        if self._rival is not None:
            self._rival.close(reason)
        self._channel.close(reason)

    # -- connections

    @property
    def busy(self) -> bool:
        """Whether a run keeps it warm, or something waits to be sent or answered here."""
        return bool(self._warm or self._calls or self.queued_bytes)

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
        channel.on_message = self._take
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
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(PeerError(f"node {short_id(self.id)} is gone: {self.closed_reason}"))
        for queue in self._queues.values():
            queue.put_nowait(None)  # what arrived before is handled first
        self._closed.set()
        self.on_closed(self)

    # -- what arrives

    def _take(self, envelope: Envelope, size: int) -> None:
        if envelope.mode in (Mode.ANSWER, Mode.ERROR):
            self._take_answer(envelope)
            return
        kind = envelope.message.kind
        if kind not in self._handlers:
            log.info("node %s sent a message of unknown kind %r", short_id(self.id), kind[:40])
            self._answer_error(envelope, PeerError(f"this node does not know messages of kind {kind!r}"))
            return
        if envelope.mode is Mode.CALL:
            if self._serving >= self._limits.calls:
                raise PeerError(f"expected at most {self._limits.calls} calls at once, found more")
            self._serving += 1
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = asyncio.Queue()
            self._spawn(self._serve(kind, queue))
        size += MESSAGE_OVERHEAD_BYTES
        self._inbox_bytes += size
        if self._inbox_bytes > self._limits.inbox_bytes:
            self._channel.pause_reading()
        queue.put_nowait((envelope, size))

    def _take_answer(self, envelope: Envelope) -> None:
        answer = self._calls.get(envelope.call)
        if answer is None or answer.done():
            return  # late: its caller has stopped waiting
        if envelope.mode is Mode.ANSWER:
            answer.set_result(envelope.message)
            return
        header = envelope.message.header
        text = str(header.get("text", ""))[:MAX_ERROR_CHARS]
        text = "".join(c for c in text if c.isprintable())
        error = ERRORS.get(str(header.get("error")), PeerError)
        answer.set_exception(error(text or f"node {short_id(self.id)} refused the call"))

    async def _serve(self, kind: str, queue: asyncio.Queue[tuple[Envelope, int] | None]) -> None:
        while (item := await queue.get()) is not None:
            envelope, size = item
            if envelope.mode is Mode.CALL and self._channel.queued_bytes > self._limits.queue_bytes:
                with contextlib.suppress(PeerError):  # a caller that does not read its answers waits with them
                    await self._channel.room()
            try:
                answer = await self._handlers[kind](self, envelope.message)
                if envelope.mode is Mode.CALL:
                    self._answer(envelope, answer or Message(kind))
            except SwarmError as exc:
                if envelope.mode is not Mode.CALL:
                    log.info("message %r of node %s was refused: %s", kind, short_id(self.id), exc)
                self._answer_error(envelope, exc)
            except Exception:
                log.exception("the handler of %r failed", kind)
                self._answer_error(envelope, PeerError("that node failed inside while it answered"))
            finally:
                self._done(envelope, size)

    def _done(self, envelope: Envelope, size: int) -> None:
        if envelope.mode is Mode.CALL:
            self._serving -= 1
        before, self._inbox_bytes = self._inbox_bytes, self._inbox_bytes - size
        if before > self._limits.inbox_bytes >= self._inbox_bytes and self._rival is None:
            self._channel.resume_reading()

    def _answer(self, envelope: Envelope, answer: Message) -> None:
        level = 1 if memoryview(answer.body).nbytes < 65536 else 2
        with contextlib.suppress(PeerError):  # gone meanwhile: nobody waits
            self._channel.post(Envelope(answer, Mode.ANSWER, envelope.call), level, ("answer", envelope.call))

    def _answer_error(self, envelope: Envelope, error: SwarmError) -> None:
        if envelope.mode is not Mode.CALL:
            return
        code = next((code for code, kind in ERRORS.items() if isinstance(error, kind)), "peer")
        header = {"error": code, "text": str(error)[:MAX_ERROR_CHARS]}
        with contextlib.suppress(PeerError):
            message = Message("error", header)
            self._channel.post(Envelope(message, Mode.ERROR, envelope.call), 1, ("answer", envelope.call))
