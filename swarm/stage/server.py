"""A stage's half of a run: take frames in, compute them in fair batches, pass them on.

Stages know nothing of chains, trees or rollback. They open and close sessions, follow the slots that frames name,
and tell upstream when the next stage is gone. Everything that walks down the ring is of one message kind, so a stage
meets openings, frames and closings of all runs in the order in which they were sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from receipts import ReceiptError
from swarm.base.errors import BusyError, PeerError, SwarmError
from swarm.base.nodeid import short_id
from swarm.model.compiling import Compiler
from swarm.model.rows import check_untrusted
from swarm.net.channel.message import Message
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.connect import PlainConnector, StageConnector
from swarm.ring.frame import DOWN, parse_frame_untrusted
from swarm.ring.opening import (
    UP,
    OpenRun,
    ReleaseRun,
    RingSignal,
    behind,
    encode_release,
    encode_word,
    parse_word_untrusted,
)
from swarm.ring.receipt_log import measure
from swarm.ring.signer import ReceiptSigner
from swarm.ring.words import (
    CloseRun,
    CollectRun,
    HalfOfEdge,
    HaltRun,
    KeepRun,
    encode_down,
    parse_down_untrusted,
)
from swarm.stage.admission import HostedModel, StageLimits, admit, check_room
from swarm.stage.batcher import Batcher
from swarm.stage.compute import Computed
from swarm.stage.context import StageContext, post
from swarm.stage.sender import Sender
from swarm.stage.session import Arrived, StageSession
from swarm.stage.session_close import SessionClose, nobody, settle_untrusted
from swarm.stage.session_open import SessionOpen
from swarm.stage.sessions import Register
from swarm.stage.stats import StageCounts

log = logging.getLogger(__name__)

EXPIRE_EVERY_S = 1.0
HAND_OVER_S = 3.0
"""What a leaving stage keeps of its time for runs that have to move."""


class DeviceOwner(Protocol):
    """Whoever made a stage, and has to know when it is of no use any more."""

    def lose_device(self, why: str) -> None:
        """The device can compute no more; said once."""


class StageServer:
    """Serves the block of one node to any number of runs of members.

    `run()` owns the pump and every sender; handlers only take in and never wait for compute.
    """

    def __init__(
        self,
        hosted: HostedModel,
        switchboard: Switchboard,
        limits: StageLimits | None = None,
        *,
        connector: StageConnector | None = None,
        threads: int = 1,
        notary: ReceiptSigner | None = None,
        owner: DeviceOwner | None = None,
    ) -> None:
        self.limits = limits or StageLimits()
        self.draining = False
        self._switchboard, self._owner = switchboard, owner
        self._stage = StageContext(switchboard, hosted)
        self._pump = Batcher(self.sessions, self.limits.row_budget, threads, self)
        self._sender = Sender(self._stage)
        self._forming = SessionOpen(self._stage, connector or PlainConnector(switchboard), notary, self._sender)
        self._ending = SessionClose(self._stage)

    @property
    def hosted(self) -> HostedModel | None:
        """The block that is served now; None while another one is loaded."""
        return self._stage.hosted

    @property
    def sessions(self) -> Register:
        """The runs that are open here."""
        return self._stage.sessions

    @property
    def counts(self) -> StageCounts:
        """What was done since the start."""
        return self._stage.counts

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls for messages of peers."""
        return {DOWN: self._on_down, UP: self._on_up}

    async def run(self) -> None:
        """Compute and send until cancelled; then free every session."""
        try:
            async with self._stage.tasks, asyncio.TaskGroup() as group:
                group.create_task(self._pump.run())
                group.create_task(self._expire())
        finally:
            self.sessions.free_all()

    async def drain(self, grace_s: float) -> None:
        """Take no new run and let the open ones end; hand those over that do not. At most `grace_s` seconds.

        Handing over: the requester is told while this stage still works, and goes on over another.
        """
        self.draining = True
        hand_over_s = min(HAND_OVER_S, grace_s)
        if await self.sessions.empty_within(grace_s - hand_over_s):
            return
        for session in self.sessions.values():
            if not session.closing:
                self._stage.tell(session, "leave", session.opening.index, "this node is leaving")
        await self.sessions.empty_within(hand_over_s)

    def exchange(self, hosted: HostedModel | None) -> None:
        """Serve another block from now on; None: nothing, until the next exchange. Raises BusyError during a run."""
        if self.sessions.busy:
            raise BusyError("busy: a run uses the layers that were to be exchanged")
        self.sessions.free_all()
        self._stage.hosted = hosted

    def peer_opened(self, peer: Peer) -> None:
        """A peer connected: an answer may be waiting for it."""
        self._sender.peer_opened()

    def peer_closed(self, peer: Peer) -> None:
        """A peer is gone: runs that pass frames to it lose a stage."""
        for session in list(self.sessions.values()):
            if session.downstream is peer:
                self._stage.lose(session, session.opening.index + 1, f"the connection was lost: {peer.closed_reason}")

    # What walks down the ring

    async def _on_down(self, peer: Peer, message: Message) -> None:
        if message.header.get("do") == "frame":
            self._take_frame(peer, message)
            return
        match parse_down_untrusted(message.header):
            case OpenRun() as opening:
                self._open(peer, opening)
            case CloseRun() as word:
                self._close(peer, word)
            case CollectRun() as word:
                self._collect(peer, word)
            case HalfOfEdge() as word:
                self._half(peer, word)
            case ReleaseRun() as word:
                self._release(peer, word)
            case HaltRun() as word:
                self._halt(peer, word)
            case KeepRun() as word:
                session = self.sessions.of_upstream(peer, word.run)
                if session is not None and session.downstream is not None:
                    await post(session.downstream, encode_down(word))

    def _open(self, peer: Peer, opening: OpenRun) -> None:
        try:
            if not self._switchboard.admitted(peer.id):
                raise PeerError("expected the opening of a ring from a member of the swarm, found a stranger's")
            if self.hosted is None:
                raise BusyError("busy: this node is loading other layers; take another")
            old = self.sessions.get(opening.run)
            below, before = (old.downstream, old.opening) if old is not None else (None, opening)
            session, fresh = admit(self.sessions, self.hosted, self.limits, opening, peer, self.draining)
            try:
                opening = self._forming.sign(session, opening, old, fresh)
            except BaseException:
                self.sessions.free(session)
                raise
        except (SwarmError, ReceiptError) as error:
            self._refuse(peer, opening, str(error), isinstance(error, BusyError))
            return
        except Exception:
            log.exception("a session could not be opened")
            self._refuse(peer, opening, "that node failed inside while it opened a session", False)
            return
        if below is not None and below.id not in {stage.node for stage in opening.stages}:
            self._stage.spawn(post(below, encode_release(before), opening.run))
        self.counts.opened(opening.epoch)
        again = f", epoch {opening.epoch}" if opening.epoch else ""
        plan = opening.stages[opening.index]
        log.info(
            "run %s begins: layers %d-%d for requester %s%s",
            opening.run.hex()[:8], plan.first, plan.last - 1, short_id(opening.requester), again,
        )  # fmt: skip
        self.sessions.enter(session)
        session.fresh = fresh
        session.stop_tasks()
        session.tasks.append(self._stage.spawn(self._sender.run(session)))
        if session.taps:
            session.tasks.append(self._stage.spawn(self._sender.run_taps(session)))
        if session.waits_for_constraint and self.hosted is not None and self.hosted.compiler is not None:
            session.tasks.append(self._stage.spawn(self._hold_to(session, self.hosted.compiler)))
        if session.account is not None:
            session.tasks.append(self._stage.spawn(measure(peer, session.account.record.inbound)))
        self._stage.spawn(self._forming.go_on(session, session.opening))

    async def _hold_to(self, session: StageSession, compiler: Compiler) -> None:
        """Compile the run's constraint beside the others' work; frames of the run wait for it."""
        opening = session.opening
        assert opening.sampling.constraint is not None
        try:
            held_to = await compiler.held_soon(opening.sampling.constraint, opening.requester.hex())
        except SwarmError as error:
            if session.opening is opening:
                session.refuse()
                self._stage.lose(session, opening.index, str(error))
            return
        if not session.closed:
            session.held_to = held_to
            self._pump.wake()

    def _refuse(self, peer: Peer, opening: OpenRun, why: str, busy: bool) -> None:
        log.info("run %s is not taken: %s", opening.run.hex()[:8], why)
        word = RingSignal("opened", opening.run, opening.epoch, (), self._switchboard.id, busy, -1, why)
        self._stage.spawn(post(peer, encode_word(word)))

    def _take_frame(self, peer: Peer, message: Message) -> None:
        run = message.header.get("r")
        session = self.sessions.get(run) if isinstance(run, bytes) else None
        if session is None:
            parse_frame_untrusted(message)  # a malformed one is told of; one of a run that is over is late
            return
        if peer.id != session.upstream.id:
            raise PeerError("expected a frame from the node before this one, found another's")
        if session.closing or session.refused:
            return
        try:
            frame = parse_frame_untrusted(message)
            if not session.accept_untrusted(frame):
                return
            check_untrusted(frame.rows, frame.commits, session.opening.layout)
            check_room(session, self.limits, frame)
        except (PeerError, BusyError) as error:
            # Later frames would be computed over keys that this one was to leave: the epoch ends here.
            session.refuse()
            self._stage.tell(session, "lost", session.opening.index, str(error), busy=isinstance(error, BusyError))
            return
        if session.account is not None:
            session.account.took(frame, message)
        session.heard = time.monotonic()
        session.queue.append(Arrived(frame, session.heard))
        self._pump.wake()

    def _close(self, peer: Peer, word: CloseRun) -> None:
        session = self.sessions.of_upstream(peer, word.run)
        if session is None:
            self._stage.spawn(post(peer, nobody(word)))
            return
        if session.closing:
            return
        session.closing = True
        session.queue.clear()
        session.stop_tasks()
        if session.downstream is not None:
            halt = encode_down(HaltRun(session.run, session.opening.epoch))
            self._stage.spawn(post(session.downstream, halt, session.run))
        self._stage.spawn(self._ending.close(session, word))

    def _halt(self, peer: Peer, word: HaltRun) -> None:
        """The run is being closed: what waits here is not wanted, though the closing itself takes its time."""
        session = self.sessions.of_upstream(peer, word.run)
        if session is None or session.closing or session.opening.epoch != word.epoch:
            return
        session.refuse()
        if session.downstream is not None:
            self._stage.spawn(post(session.downstream, encode_down(word), session.run))

    def _release(self, peer: Peer, word: ReleaseRun) -> None:
        """The run goes on without this stage."""
        session = self.sessions.of_upstream(peer, word.run)
        if session is not None and session.opening.epoch == word.epoch and not session.closing:
            self._forming.remember(session)
            self.sessions.free(session)

    def _collect(self, peer: Peer, word: CollectRun) -> None:
        session = self.sessions.of_upstream(peer, word.run)
        if session is not None and session.closing and session.account is not None:
            self._stage.spawn(self._ending.collect(session, word))

    def _half(self, peer: Peer, word: HalfOfEdge) -> None:
        """The requester's half of the edge between the tail and it."""
        session = self.sessions.get(word.run)
        if session is not None and session.is_last and peer.id == session.opening.requester:
            settle_untrusted(session, word.record)

    # What walks up the ring

    async def _on_up(self, peer: Peer, message: Message) -> None:
        word = parse_word_untrusted(message.header)
        session = self.sessions.get(word.run)
        if session is None or session.downstream is not peer or word.epoch != session.opening.epoch:
            return
        match word.do:
            case "opened" if not word.refused:
                self._stage.spawn(self._forming.stands(session, word))
            case "half":
                settle_untrusted(session, word.record)
            case _:
                await post(session.upstream, encode_word(behind(word, session.opening)))

    # Computing

    def forwarded(self, seconds: float) -> None:
        """For the pump: a forward took so long."""
        self.counts.forward(seconds)

    def computed(self, done: Computed) -> None:
        """For the pump: one frame is computed, or could not be."""
        session, frame = done.session, done.arrived.frame
        self.counts.computed(done)
        if done.lost:
            self._end(done.lost)
        if session.closed or session.closing or session.refused or frame.epoch != session.opening.epoch:
            return
        error = done.error
        if session.account is not None and error is None:
            try:
                session.account.computed(frame, done.out, session.opening.layout.scratch, done.compute_us)
            except PeerError as broken:
                error = str(broken)
        if error is not None:
            session.refuse()
            self._stage.lose(session, session.opening.index - done.given, error, done.busy)
            return
        if done.taps is not None and not session.taps_out.full():
            session.taps_out.put_nowait(done.taps)
        if done.out is not None:
            session.outbox.put_nowait(done.out)

    # Ending

    def _end(self, why: str) -> None:
        """The device is lost: every run has to move, and whoever made this stage learns of it, once."""
        if self.draining:
            return
        self.draining = True
        for session in self.sessions.values():
            if not (session.closing or session.refused):
                session.refuse()
                self._stage.lose(session, session.opening.index, why)
        if self._owner is not None:
            self._owner.lose_device(why)

    async def _expire(self) -> None:
        """Free sessions whose requester has been silent for longer than its lease."""
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            self.sessions.free_outlived(time.monotonic(), self.limits.lease_s, self.draining)
