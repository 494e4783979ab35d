"""What leaves a stage: frames to the next one, answers to the requester, in the order in which they were computed."""

from __future__ import annotations

import asyncio
import contextlib

from swarm.base.errors import PeerError
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.ring.frame import Answer, Frame, encode_answer, encode_frame
from swarm.ring.receipt_log import measure
from swarm.ring.taps import TAPS
from swarm.stage.context import StageContext
from swarm.stage.session import StageSession

ATTACH_TIMEOUT_S = 10.0


class Sender:
    """Sends for every session of one stage."""

    def __init__(self, stage: StageContext) -> None:
        self._stage = stage
        self._arrival = asyncio.Event()

    def peer_opened(self) -> None:
        """A peer connected: an answer may be waiting for it."""
        self._arrival.set()

    async def run(self, session: StageSession) -> None:
        """Send what the pump leaves in the outbox, in order: frames downstream, answers to the requester."""
        outbox, ready = session.outbox, session.ready
        try:
            while True:
                out = await outbox.get()
                if isinstance(out, Frame):
                    await ready.wait()
                    assert session.downstream is not None
                    await self.give(session, session.downstream, out.seq, encode_frame(out))
                else:
                    await self._answer(session, out)
        except PeerError as error:
            self._stage.lose(session, session.opening.index + 1, str(error))

    async def run_taps(self, session: StageSession) -> None:
        """Send taps to the requester, where a connection with it is: it makes one if it wants them."""
        while True:
            message = await session.taps_out.get()
            requester = self._stage.switchboard.get(session.opening.requester)
            if requester is not None:
                with contextlib.suppress(PeerError):
                    await requester.send(message, priority=1, flow=(TAPS, session.run))

    async def _answer(self, session: StageSession, answer: Answer) -> None:
        """To the requester, over the connection that it made; it may come a moment after the first answer."""
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            while (requester := self._stage.switchboard.get(session.opening.requester)) is None:
                self._arrival.clear()
                await self._arrival.wait()
        if not session.measured_back:
            session.measured_back = True
            session.warmth.enter_context(requester.warm())
            if session.account is not None:
                session.tasks.append(self._stage.spawn(measure(requester, session.account.record.outbound)))
        await self.give(session, requester, answer.seq, encode_answer(answer))

    async def give(self, session: StageSession, peer: Peer, seq: int, message: Message) -> None:
        """One message of a session to one peer, into the account as well."""
        if session.account is not None:
            session.account.gave(seq, message)
        self._stage.counts.sent(peer.rtt_ms)
        await peer.send(message, flow=session.run)
