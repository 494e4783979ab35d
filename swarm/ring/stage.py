"""A stage's half of a run: take frames in, compute them in fair batches, pass them on.

Stages know nothing of chains, trees or rollback. They open and close sessions, follow the slots that frames name,
and tell upstream when the next stage is gone. Everything that walks down the ring is of one message kind, so a stage
meets openings, frames and closings of all runs in the order in which they were sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from receipts import ReceiptError
from swarm.errors import BusyError, PeerError, SwarmError
from swarm.model.rows import check_untrusted
from swarm.net.message import Message
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.account import StageAccount, measure
from swarm.ring.admit import HostedModel, StageLimits, admit
from swarm.ring.compute import Computed, compute
from swarm.ring.frame import (
    DOWN,
    Answer,
    Frame,
    encode_answer,
    encode_frame,
    parse_commits_untrusted,
    parse_frame_untrusted,
)
from swarm.ring.notary import Notary
from swarm.ring.opening import (
    TAIL,
    UP,
    OpenRun,
    Word,
    encode_open,
    encode_word,
    parse_open_untrusted,
    parse_word_untrusted,
)
from swarm.ring.reach import Reach, dialler
from swarm.ring.replay import leading_fresh, replay_frames
from swarm.ring.schedule import Waiting, pick
from swarm.ring.session import Arrived, StageSession

ATTACH_TIMEOUT_S = 10.0
EXPIRE_EVERY_S = 2.0


class StageServer:
    """Serves the block of one node to any number of runs.

    `run()` owns the compute thread, the pump and every sender; handlers only take in and never wait for compute.
    """

    def __init__(
        self,
        hosted: HostedModel,
        switchboard: Switchboard,
        limits: StageLimits | None = None,
        *,
        reach: Reach | None = None,
        admitted: Callable[[bytes], bool] = lambda node: True,
        threads: int = 1,
        notary: Notary | None = None,
    ) -> None:
        self.hosted = hosted
        self.limits = limits or StageLimits()
        self.sessions: dict[bytes, StageSession] = {}
        self.draining = False
        self._switchboard = switchboard
        self._reach = reach or dialler(switchboard)
        self._admitted = admitted
        self._notary = notary
        # The number of threads of one operator is a property of the thread that runs it.
        self._thread = ThreadPoolExecutor(1, "compute", torch.set_num_threads, (threads,))
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._arrival = asyncio.Event()
        self._forwards = 0
        self._group: asyncio.TaskGroup | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls for messages of peers."""
        return {DOWN: self._on_down, UP: self._on_up}

    async def run(self) -> None:
        """Compute and send until cancelled; then free every session."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._pump())
                group.create_task(self._expire())
        finally:
            self._group = None
            self._thread.shutdown(wait=True, cancel_futures=True)
            for session in list(self.sessions.values()):
                self._free(session)

    async def drain(self, grace_s: float) -> None:
        """Take no new run and wait until the open ones are closed, `grace_s` seconds at most."""
        self.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return

    def peer_opened(self) -> None:
        """A peer connected: an answer may be waiting for it."""
        self._arrival.set()

    def peer_closed(self, peer: Peer) -> None:
        """A peer is gone: runs that pass frames to it lose a stage."""
        for session in list(self.sessions.values()):
            if session.downstream is peer:
                self._lose(session, session.opening.index + 1, f"the connection was lost: {peer.closed_reason}")

    # What walks down the ring

    async def _on_down(self, peer: Peer, message: Message) -> None:
        match message.header.get("do"):
            case "frame":
                self._take_frame(peer, message)
            case "open":
                self._open(peer, message.header)
            case "close":
                self._close(peer, message)
            case "collect":
                self._collect(peer, message)
            case "half":
                self._half(peer, message)
            case "keep":
                session = self._of_upstream(peer, message.header)
                if session is not None and session.downstream is not None:
                    await _post(session.downstream, message)
            case other:
                raise PeerError(f"expected a word that rings know, found {other!r:.40}")

    def _open(self, peer: Peer, header: Mapping[str, Any]) -> None:
        opening = parse_open_untrusted(header)
        try:
            if not self._admitted(peer.id):
                raise PeerError("expected the opening of a ring from a member of the swarm, found a stranger's")
            session, fresh = admit(self.sessions, self.hosted, self.limits, opening, peer, self.draining)
            opening = self._sign(session, opening)
        except (SwarmError, ReceiptError) as error:
            busy = isinstance(error, BusyError)
            word = Word("opened", opening.run, opening.epoch, (), self.hosted.node, busy, -1, str(error))
            self._spawn(_post(peer, encode_word(word)))
            return
        self.sessions[opening.run] = session
        session.fresh = fresh
        self._idle.clear()
        session.stop_tasks()
        session.tasks.append(self._spawn(self._send(session)))
        if session.account is not None:
            session.tasks.append(self._spawn(measure(peer, session.account.record.inbound)))
        if session.is_last:
            self._spawn(self._tell_opened(session, Word("opened", opening.run, opening.epoch, record=opening.record)))
        else:
            self._spawn(self._open_next(session))

    def _sign(self, session: StageSession, opening: OpenRun) -> OpenRun:
        """Accept this node's part in writing; the opening that goes on says so."""
        if opening.record is None or self._notary is None:
            return opening
        session.account = StageAccount(self._notary, opening, session.account)
        part = session.account.record.part
        if (part.first, part.last) != (opening.me.first, opening.me.last):
            raise PeerError("expected the ring to follow the signed order, found other layers")
        session.opening = replace(opening, record=session.account.accepted)
        return session.opening

    async def _open_next(self, session: StageSession) -> None:
        """Dial the next stage and tell it of the run. Frames follow at once, unless it may have to be replayed."""
        opening = session.opening
        following = opening.following()
        try:
            peer = await self._reach(following.me)
            await peer.send(encode_open(following), flow=session.run)
        except PeerError as error:
            word = Word("opened", opening.run, opening.epoch, (), following.me.node, False, -1, str(error))
            await _post(session.upstream, encode_word(word))
            return
        if session.opening is opening:
            session.downstream = peer
            if session.account is not None:
                session.tasks.append(self._spawn(measure(peer, session.account.record.outbound)))
            if not opening.keep:
                session.ready.set()

    def _take_frame(self, peer: Peer, message: Message) -> None:
        frame = parse_frame_untrusted(message)
        session = self.sessions.get(frame.run)
        if session is None or session.closing:
            return
        if peer.id != session.upstream.id:
            raise PeerError("expected a frame from the node before this one, found another's")
        if not session.accept_untrusted(frame):
            return
        check_untrusted(frame.rows, frame.commits, session.opening.layout)
        if len(session.queue) >= self.limits.queue_frames:
            raise PeerError(f"expected at most {self.limits.queue_frames} frames in flight")
        if session.account is not None:
            session.account.took(frame.seq, message)
        session.heard = time.monotonic()
        session.queue.append(Arrived(frame, session.heard))
        self._work.set()

    def _close(self, peer: Peer, message: Message) -> None:
        session = self._of_upstream(peer, message.header)
        if session is None or session.closing:
            return
        session.closing = True
        session.queue.clear()
        session.stop_tasks()
        self._spawn(self._end(session, message.header))

    async def _end(self, session: StageSession, header: Mapping[str, Any]) -> None:
        """Free the memory, pass the end on, and keep the account until it is collected."""
        await session.idle.wait()
        session.release()
        record = header.get("record")
        if session.account is None or not isinstance(record, dict):
            self._free(session)
        else:
            try:
                session.account.commit(parse_commits_untrusted(header.get("commits"), session.opening.layout))
                half = session.account.closing(record)
            except (PeerError, ReceiptError) as error:
                self._lose(session, session.opening.index, str(error))
                return
            await _post(session.upstream, encode_word(Word("half", session.run, session.opening.epoch, record=half)))
            record = session.account.record.close_header()
        await self._pass(session, {**header, "record": record}, "closed")

    def _collect(self, peer: Peer, message: Message) -> None:
        session = self._of_upstream(peer, message.header)
        if session is not None and session.closing and session.account is not None:
            self._spawn(self._account(session, message.header))

    async def _account(self, session: StageSession, header: Mapping[str, Any]) -> None:
        assert session.account is not None
        try:
            record = await session.account.collect(header.get("record") or {})
        except (ReceiptError, TimeoutError) as error:
            self._lose(session, session.opening.index, f"the account of this stage cannot be closed: {error}")
        else:
            await self._pass(session, {**header, "record": record}, "collected")
        self._free(session)

    async def _pass(self, session: StageSession, header: Mapping[str, Any], at_tail: str) -> None:
        """What walks the ring at its end goes on downstream, or from the tail to the requester."""
        if not session.is_last:
            if session.downstream is not None:
                await _post(session.downstream, Message(DOWN, header), session.run)
            return
        requester = self._switchboard.get(session.opening.requester)
        if requester is not None:
            word = {"do": at_tail, "run": session.run, "epoch": session.opening.epoch, "record": header.get("record")}
            await _post(requester, Message(TAIL, word), session.run)

    def _half(self, peer: Peer, message: Message) -> None:
        """The requester's half of the edge between the tail and it."""
        session = self.sessions.get(message.header.get("run", b""))
        if session is not None and session.is_last and peer.id == session.opening.requester:
            self._settle(session, message.header.get("record"))

    def _settle(self, session: StageSession, record: Any) -> None:
        if session.account is None or not isinstance(record, dict):
            return
        try:
            session.account.settle(record)
        except ReceiptError as error:
            raise PeerError(f"expected an edge's other half, found {error}") from error

    def _of_upstream(self, peer: Peer, header: Mapping[str, Any]) -> StageSession | None:
        session = self.sessions.get(header.get("run", b""))
        if session is not None and session.upstream.id != peer.id:
            raise PeerError("expected word of a run from the node before this one, found another's")
        if session is not None:
            session.heard = time.monotonic()
        return session

    # What walks up the ring

    async def _on_up(self, peer: Peer, message: Message) -> None:
        word = parse_word_untrusted(message.header)
        session = self.sessions.get(word.run)
        if session is None or session.downstream is not peer or word.epoch != session.opening.epoch:
            return
        match word.do:
            case "opened" if not word.refused:
                self._spawn(self._tell_opened(session, word))
            case "half":
                self._settle(session, word.record)
            case _:
                await _post(session.upstream, message)

    async def _tell_opened(self, session: StageSession, word: Word) -> None:
        """All stages below stand: replay to those that are new, then let frames through and say so upstream."""
        opening = session.opening
        newcomers = leading_fresh(word.said)
        try:
            if opening.keep and newcomers and not session.fresh and session.downstream is not None:
                for frame in replay_frames(session, opening.index + newcomers):
                    await self._give(session, session.downstream, frame.seq, encode_frame(frame))
        except SwarmError as error:
            node = opening.stages[opening.index + 1].node
            refusal = Word("opened", opening.run, opening.epoch, (), node, False, -1, str(error))
            await _post(session.upstream, encode_word(refusal))
            return
        session.ready.set()
        me = {"device": self.hosted.device, "layers": [opening.me.first, opening.me.last], "fresh": session.fresh}
        await _post(session.upstream, encode_word(replace(word, said=(me, *word.said))))

    def _lose(self, session: StageSession, stage: int, reason: str) -> None:
        """Tell the requester, through the stages before this one, that stage number `stage` is gone or failing."""
        word = Word("lost", session.run, session.opening.epoch, stage=stage, reason=reason)
        self._spawn(_post(session.upstream, encode_word(word)))

    # Computing and sending

    async def _pump(self) -> None:
        """Forward after forward: choose, compute on the thread, hand to the senders."""
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            batch = self._choose()
            if not batch:
                self._work.clear()
                continue
            for session, _ in batch:
                session.idle.clear()
            try:
                done = await loop.run_in_executor(self._thread, compute, batch)
            finally:
                for session, _ in batch:
                    if session.closed:
                        session.release()
                    session.idle.set()
            for outcome in done:
                self._dispatch(outcome)

    def _choose(self) -> list[tuple[StageSession, Arrived]]:
        waiting = [
            Waiting(s.run, len(s.queue[0].frame.rows), s.last_served, s.queue[0].since)
            for s in self.sessions.values()
            if s.queue
        ]
        self._forwards += 1
        chosen = [self.sessions[key] for key in pick(waiting, self.limits.row_budget)]
        for session in chosen:
            session.last_served = self._forwards
        return [(session, session.queue.popleft()) for session in chosen]

    def _dispatch(self, done: Computed) -> None:
        session, frame = done.session, done.arrived.frame
        if session.closed or session.closing or frame.epoch != session.opening.epoch:
            return
        session.frames += 1
        session.rows += len(frame.rows)
        session.compute_us += done.compute_us
        if session.account is not None and done.error is None:
            session.account.computed(frame, done.out, session.opening.layout.scratch, done.compute_us)
        if done.error is not None:
            self._lose(session, session.opening.index, done.error)
        elif done.out is not None:
            session.outbox.put_nowait(done.out)

    async def _send(self, session: StageSession) -> None:
        """Send what the pump leaves in the outbox, in order: frames downstream, answers to the requester."""
        outbox, ready = session.outbox, session.ready
        try:
            while True:
                out = await outbox.get()
                if isinstance(out, Frame):
                    await ready.wait()
                    assert session.downstream is not None
                    await self._give(session, session.downstream, out.seq, encode_frame(out))
                else:
                    await self._answer(session, out)
        except PeerError as error:
            self._lose(session, session.opening.index + 1, str(error))

    async def _answer(self, session: StageSession, answer: Answer) -> None:
        """To the requester, over the connection that it made; it may come a moment after the first answer."""
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            while (requester := self._switchboard.get(session.opening.requester)) is None:
                self._arrival.clear()
                await self._arrival.wait()
        if session.account is not None and not session.measured_back:
            session.measured_back = True
            session.tasks.append(self._spawn(measure(requester, session.account.record.outbound)))
        await self._give(session, requester, answer.seq, encode_answer(answer))

    async def _give(self, session: StageSession, peer: Peer, seq: int, message: Message) -> None:
        if session.account is not None:
            session.account.gave(seq, message)
        await peer.send(message, flow=session.run)

    # Ending

    async def _expire(self) -> None:
        """Free sessions whose requester has been silent for longer than its lease."""
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            now = time.monotonic()
            for session in list(self.sessions.values()):
                if now - session.heard > session.opening.lease_s:
                    self._free(session)

    def _free(self, session: StageSession) -> None:
        if self.sessions.get(session.run) is session:
            del self.sessions[session.run]
        session.closed = True
        session.queue.clear()
        session.stop_tasks()
        if session.idle.is_set():
            session.release()
        if session.account is not None:
            session.account.finish()
        if not self.sessions:
            self._idle.set()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._group is not None, "the stage is not running"
        task: asyncio.Task[None] = self._group.create_task(work)
        return task


async def _post(peer: Peer, message: Message, flow: bytes | None = None) -> None:
    """Send to a peer that may be gone: then there is nobody to tell."""
    try:
        await peer.send(message, flow=flow)
    except PeerError:
        return
