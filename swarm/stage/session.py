"""One run at one stage: its KV, the rows it passed on, its queue and its neighbours."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

from swarm.base.errors import PeerError
from swarm.model.held import Matcher
from swarm.model.kvcache import SessionKV
from swarm.model.overflow import AnyBlock
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.ring.frame import Frame, filled
from swarm.ring.kept_rows import SentRows, SlotTokens
from swarm.ring.opening import OpenRun
from swarm.ring.receipt_log import Past, StageAccount
from swarm.stage.mtp_session import MTPSession
from swarm.stage.session_owner import Owner
from swarm.stage.unsent import Unsent

MOST_TAPS_WAITING = 8
"""Messages of taps. A requester whose line is slower than they come drafts with less."""


@dataclass(frozen=True)
class Arrived:
    """A frame in a stage's queue, and when it came (seconds, monotonic)."""

    frame: Frame
    since: float


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class StageSession:
    """State of one run at one stage. `kv`, `sent` and `tokens` belong to the compute thread while it is not `idle`.

    fingerprint   of the kernels that `block` computes with; "": not measured
    mtp           drafts for the run, at the tail; None where the run does not ask for it, or it cannot be done
    held_to       follows the run's constraint, at the tail; None until it is compiled, or without one
    fresh         its KV was empty when this epoch began
    ready         the next stage is told of the run: frames may follow
    taps          layers of this stage whose rows go to the requester's drafter
    taps_out      taps on their way; what finds it full is dropped
    outbox        frames and answers that are computed and not yet sent
    last_seq      sequence number of the newest frame of this epoch that was taken in; -1 before the first
    last_replay   the same for replayed frames, which are numbered for themselves
    refused       a frame of this epoch was refused: none that follows may be computed over what it left out
    last_served   number of the forward that served it last
    held          committed positions [0, held) whose key and value are here
    kept_until    monotonic time until which a closed session stays, for a run with the same beginning; 0: freed
    owner         whose it is: who pays for its memory, and who alone may go on with it
    heard         monotonic time of the last sign of life from upstream
    account       what goes into the receipt; None when the run leaves none
    past          of a run that is closed and held: where its keys and values came from
    tasks         its sender, and the pings along its edges
    warmth        keeps the outbound edge out of slow start while the run is open
    closing       the requester has ended it; only its account is still wanted
    closed        over; freed as soon as the compute thread lets go
    """

    opening: OpenRun
    block: AnyBlock
    kv: SessionKV
    upstream: Peer
    heard: float
    owner: Owner = field(default_factory=lambda: Owner(b"", False))
    fingerprint: str = ""
    sent: SentRows | None = None
    tokens: SlotTokens | None = None
    held_to: Matcher | None = None
    mtp: MTPSession | None = None
    taps: tuple[int, ...] = ()
    downstream: Peer | None = None
    account: StageAccount | None = None
    past: Past | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    warmth: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=_set_event)
    queue: deque[Arrived] = field(default_factory=deque)
    outbox: Unsent = field(default_factory=Unsent)
    taps_out: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue(MOST_TAPS_WAITING))
    held: int = 0
    last_seq: int = -1
    last_replay: int = -1
    refused: bool = False
    last_served: int = 0
    kept_until: float = 0.0
    closing: bool = False
    closed: bool = False
    fresh: bool = True
    measured_back: bool = False

    @property
    def run(self) -> bytes:
        """The run's 16 bytes."""
        return self.opening.run

    @property
    def waits_for_constraint(self) -> bool:
        """Whether this is a tail that cannot draw yet: the constraint is being compiled."""
        return self.block.tail and self.opening.sampling.constraint is not None and self.held_to is None

    @property
    def queued_rows(self) -> int:
        """Rows that wait to be computed."""
        return sum(len(arrived.frame.rows) for arrived in self.queue)

    @property
    def is_last(self) -> bool:
        """Whether this stage answers the requester."""
        return self.opening.index + 1 == len(self.opening.stages)

    def accept_untrusted(self, frame: Frame) -> bool:
        """Whether a frame is to be computed: of the present epoch, no frame of which was refused before.

        Raises PeerError unless it is the next one: keys and values of a frame that is missing would be missed in
        silence. The first of an epoch may have any number. Replayed frames count for themselves, from 0: they come
        before all others of their epoch.
        """
        if frame.epoch != self.opening.epoch or self.refused:
            return False
        if frame.replay >= 0:
            if frame.seq != self.last_replay + 1 or self.last_seq >= 0:
                raise PeerError(f"expected replayed frame {self.last_replay + 1}, found {frame.seq}")
            self.last_replay = frame.seq
            return True
        if self.last_seq >= 0 and frame.seq != self.last_seq + 1:
            raise PeerError(f"expected frame {self.last_seq + 1}, found {frame.seq}")
        self.last_seq = frame.seq
        return True

    def refuse(self) -> None:
        """Compute no more of this epoch; what was computed stays, for the next one."""
        self.refused = True
        self.queue.clear()

    def computed(self, frame: Frame) -> None:
        """Note which committed positions a frame filled. Requesters fill them in order; a gap counts for nothing."""
        self.held = filled(self.held, frame, self.opening.layout.scratch)

    def begin_from(self, base: StageSession, keep: int) -> bool:
        """Take over the first `keep` positions of another session over the same layers, if it has them."""
        if (
            base.kv.closed
            or base.held < keep
            or (base.block.first, base.block.last)
            != (
                self.block.first,
                self.block.last,
            )
        ):
            return False
        # A constraint looks at the answer alone, which no other run holds; a penalty at all that comes before.
        counts = self.tokens is not None and self.opening.sampling.repetition_penalty != 1.0
        if (self.sent is not None and base.sent is None) or (counts and base.tokens is None):
            return False
        if not self.kv.begin_from(base.kv, keep):
            return False
        if self.sent is not None and base.sent is not None:
            self.sent.copy_prefix(base.sent, keep)
        if self.tokens is not None and base.tokens is not None:
            self.tokens.copy_prefix(base.tokens, keep)
        if self.mtp is not None and not (base.mtp is not None and self.mtp.begin_from(base.mtp, keep)):
            self.mtp.close()
            self.mtp = None
        self.held = keep
        return True

    def stop_tasks(self) -> None:
        """End the sender, the pings and the padding."""
        self.warmth.close()
        for task in self.tasks:
            task.cancel()
        self.tasks.clear()

    def end(self) -> None:
        """It is over: its tasks end now, and its memory is freed as soon as the compute thread lets go."""
        self.closed = True
        self.queue.clear()
        self.stop_tasks()
        if self.idle.is_set():
            self.release()

    def release(self) -> None:
        """Free the memory of the session."""
        self.closed = True
        self.queue.clear()
        self.kv.close()
        if self.mtp is not None:
            self.mtp.close()
            self.mtp = None
        self.held_to = None
        self.sent = None
