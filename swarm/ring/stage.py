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
from typing import Any

import torch

from swarm.errors import PeerError, SwarmError
from swarm.model.rows import check_untrusted
from swarm.net.message import Message
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.admit import HostedModel, StageLimits, admit
from swarm.ring.compute import Computed, compute
from swarm.ring.frame import DOWN, Answer, Frame, encode_answer, encode_frame, parse_frame_untrusted
from swarm.ring.opening import UP, Word, encode_open, encode_word, parse_open_untrusted, parse_word_untrusted
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
    ) -> None:
        self.hosted = hosted
        self.limits = limits or StageLimits()
        self.sessions: dict[bytes, StageSession] = {}
        self.draining = False
        self._switchboard = switchboard
        self._reach = reach or dialler(switchboard)
        self._admitted = admitted
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
        except SwarmError as error:
            busy = type(error).__name__ == "BusyError"
            word = Word("opened", opening.run, opening.epoch, (), self.hosted.node, busy, -1, str(error))
            self._spawn(_post(peer, encode_word(word)))
            return
        self.sessions[opening.run] = session
        session.fresh = fresh
        self._idle.clear()
        if session.sender is not None:
            session.sender.cancel()
        session.sender = self._spawn(self._send(session))
        if session.is_last:
            self._spawn(self._tell_opened(session, ()))
        else:
            self._spawn(self._open_next(session))

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
            if not opening.keep:
                session.ready.set()

    def _take_frame(self, peer: Peer, message: Message) -> None:
        frame = parse_frame_untrusted(message)
        session = self.sessions.get(frame.run)
        if session is None:
            return
        if peer.id != session.upstream.id:
            raise PeerError("expected a frame from the node before this one, found another's")
        if not session.accept_untrusted(frame):
            return
        check_untrusted(frame.rows, frame.commits, session.opening.layout)
        if len(session.queue) >= self.limits.queue_frames:
            raise PeerError(f"expected at most {self.limits.queue_frames} frames in flight")
        session.heard = time.monotonic()
        session.queue.append(Arrived(frame, session.heard))
        self._work.set()

    def _close(self, peer: Peer, message: Message) -> None:
        session = self._of_upstream(peer, message.header)
        if session is None:
            return
        session.closing = True
        if session.is_last or session.downstream is None:
            self._spawn(self._tell_closed(session, ()))
        else:
            self._spawn(_post(session.downstream, message, session.run))

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
                self._spawn(self._tell_opened(session, word.said))
            case "closed":
                self._spawn(self._tell_closed(session, word.said))
            case _:
                await _post(session.upstream, message)

    async def _tell_opened(self, session: StageSession, below: tuple[dict[str, Any], ...]) -> None:
        """All stages below stand: replay to those that are new, then let frames through and say so upstream."""
        opening = session.opening
        newcomers = leading_fresh(below)
        try:
            if opening.keep and newcomers and not session.fresh and session.downstream is not None:
                for frame in replay_frames(session, opening.index + newcomers):
                    await session.downstream.send(encode_frame(frame), flow=session.run)
        except SwarmError as error:
            node = opening.stages[opening.index + 1].node
            word = Word("opened", opening.run, opening.epoch, (), node, False, -1, str(error))
            await _post(session.upstream, encode_word(word))
            return
        session.ready.set()
        me = {"device": self.hosted.device, "layers": [opening.me.first, opening.me.last], "fresh": session.fresh}
        await _post(session.upstream, encode_word(Word("opened", opening.run, opening.epoch, (me, *below))))

    async def _tell_closed(self, session: StageSession, below: tuple[dict[str, Any], ...]) -> None:
        me = {"frames": session.frames, "rows": session.rows, "compute_us": session.compute_us}
        word = Word("closed", session.run, session.opening.epoch, (me, *below))
        self._free(session)
        await session.idle.wait()
        await _post(session.upstream, encode_word(word))

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
        if session.closed or frame.epoch != session.opening.epoch:
            return
        session.frames += 1
        session.rows += len(frame.rows)
        session.compute_us += done.compute_us
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
                    await session.downstream.send(encode_frame(out), flow=session.run)
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
        await requester.send(encode_answer(answer), flow=session.run)

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
        if session.sender is not None:
            session.sender.cancel()
        if session.idle.is_set():
            session.release()
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
