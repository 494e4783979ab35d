"""Calls and handlers of one peer: what it asks here, what was asked of it, and what becomes of errors on the way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from swarm.base.errors import BusyError, CoverageError, ModelError, PeerError, RunError, SwarmError
from swarm.base.nodeid import short_id
from swarm.base.tasks import TaskOwner
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import MAX_CALL, Envelope, Message, Mode

if TYPE_CHECKING:
    from swarm.net.peer import Peer

log = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[Peer, Message], Awaitable[Message | None]]"
"""Gets every message of one kind, in the order in which its peer's flow sent them; an answer returned goes to a call.

Messages of one peer and kind wait for each other, so a handler hands long work on. SwarmErrors go back to a caller.
"""

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


class Exchange:
    """One per peer, whatever channel carries it.

    Messages wait here in one queue per kind until their handler has time, at most `limits.inbox_bytes` of them.
    `only`: the kinds that are handled, where not all are; what else comes is refused unread.
    """

    def __init__(
        self,
        peer: Peer,
        handlers: Mapping[str, Handler],
        limits: ChannelLimits,
        tasks: TaskOwner,
        only: Collection[str] | None,
    ) -> None:
        self._of = weakref.ref(peer)
        """It holds this one: each would wait for the collector with all that it has, were it held in turn."""
        self._handlers, self._limits, self._tasks, self._only = handlers, limits, tasks, only
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._serving = 0
        self._queues: dict[str, asyncio.Queue[tuple[Envelope, int] | None]] = {}
        self.waiting_bytes = 0

    @property
    def _peer(self) -> Peer:
        """Whose it is: alive for as long as anything arrives, is asked or is answered."""
        peer = self._of()
        assert peer is not None, "nobody talks for a peer that nobody holds"
        return peer

    def bound(self, limits: ChannelLimits, only: Collection[str] | None) -> None:
        """Hold what comes from now on to `limits`, and to kinds out of `only`."""
        self._limits, self._only = limits, only

    @property
    def serving(self) -> bool:
        """Whether a call of the other side is being answered."""
        return bool(self._serving)

    @property
    def calling(self) -> bool:
        """Whether a call of this side waits for its answer."""
        return bool(self._calls)

    async def call(self, message: Message, timeout: float, priority: int, flow: Hashable) -> Message:
        """Send `message` and wait for its answer; see `Peer.call`."""
        if len(self._calls) >= self._limits.calls:
            raise BusyError(f"{len(self._calls)} calls to node {short_id(self._peer.id)} wait already; try later")
        number = next(self._numbers) % MAX_CALL + 1
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            async with asyncio.timeout(timeout):
                envelope = Envelope(message, Mode.CALL, number)
                self._peer.channel.post(envelope, priority, message.kind if flow is None else flow)
                return await answer
        except TimeoutError as exc:
            name = short_id(self._peer.id)
            raise PeerError(f"node {name} did not answer {message.kind!r} within {timeout:g} s") from exc
        finally:
            del self._calls[number]
            del answer  # it may have an error, which has this frame: together they would wait for the collector

    def end(self, reason: str) -> None:
        """The peer is gone: its calls fail, and what arrived before is handled first."""
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(PeerError(f"node {short_id(self._peer.id)} is gone: {reason}"))
        for queue in self._queues.values():
            queue.put_nowait(None)

    # -- what arrives

    def take(self, envelope: Envelope, size: int) -> None:
        """A message came, of so many bytes. Raises PeerError for more calls than are allowed."""
        if envelope.mode in (Mode.ANSWER, Mode.ERROR):
            self._take_answer(envelope)
            return
        kind = envelope.message.kind
        if kind not in self._handlers:
            log.debug("node %s sent a message of unknown kind %r", short_id(self._peer.id), kind[:40])
            self._answer_error(envelope, PeerError(f"this node does not know messages of kind {kind!r}"))
            return
        if self._only is not None and kind not in self._only:
            self._answer_error(envelope, PeerError("this node answers members of its swarm: say hello first"))
            return
        if envelope.mode is Mode.CALL:
            if self._serving >= self._limits.calls:
                raise PeerError(f"expected at most {self._limits.calls} calls at once, found more")
            self._serving += 1
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = asyncio.Queue()
            self._tasks.spawn(self._serve(self._peer, kind, queue))
        size += MESSAGE_OVERHEAD_BYTES
        self.waiting_bytes += size
        if self.waiting_bytes > self._limits.inbox_bytes:
            self._peer.channel.pause_reading()
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
        answer.set_exception(error(text or f"node {short_id(self._peer.id)} refused the call"))

    async def _serve(self, peer: Peer, kind: str, queue: asyncio.Queue[tuple[Envelope, int] | None]) -> None:
        while (item := await queue.get()) is not None:
            envelope, size = item
            if envelope.mode is Mode.CALL and peer.channel.queued_bytes > self._limits.queue_bytes:
                with contextlib.suppress(PeerError):  # a caller that does not read its answers waits with them
                    await peer.channel.room()
            try:
                answer = await self._handlers[kind](peer, envelope.message)
                if envelope.mode is Mode.CALL:
                    self._answer(envelope, answer or Message(kind))
            except SwarmError as exc:
                if envelope.mode is not Mode.CALL:
                    log.info("message %r of node %s was refused: %s", kind, short_id(peer.id), exc)
                self._answer_error(envelope, exc)
            except Exception:
                log.exception("the handler of %r failed", kind)
                self._answer_error(envelope, PeerError("that node failed inside while it answered"))
            finally:
                self._done(envelope, size)

    def _done(self, envelope: Envelope, size: int) -> None:
        if envelope.mode is Mode.CALL:
            self._serving -= 1
        before, self.waiting_bytes = self.waiting_bytes, self.waiting_bytes - size
        if before > self._limits.inbox_bytes >= self.waiting_bytes and self._peer.may_read:
            self._peer.channel.resume_reading()

    def _answer(self, envelope: Envelope, answer: Message) -> None:
        level = 1 if memoryview(answer.body).nbytes < 65536 else 2
        with contextlib.suppress(PeerError):  # gone meanwhile: nobody waits
            self._peer.channel.post(Envelope(answer, Mode.ANSWER, envelope.call), level, ("answer", envelope.call))

    def _answer_error(self, envelope: Envelope, error: SwarmError) -> None:
        if envelope.mode is not Mode.CALL:
            return
        code = next((code for code, kind in ERRORS.items() if isinstance(error, kind)), "peer")
        header = {"error": code, "text": str(error)[:MAX_ERROR_CHARS]}
        with contextlib.suppress(PeerError):
            message = Message("error", header)
            self._peer.channel.post(Envelope(message, Mode.ERROR, envelope.call), 1, ("answer", envelope.call))
