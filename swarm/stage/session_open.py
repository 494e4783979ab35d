"""How a stage takes its place in a ring: it signs for its part, opens the next stage, and says that it stands."""

from __future__ import annotations

from dataclasses import replace

from swarm.base.errors import BusyError, PeerError, SwarmError
from swarm.ring.certain_rows import leading_fresh
from swarm.ring.connect import StageConnector
from swarm.ring.frame import encode_frame
from swarm.ring.opening import OpenRun, RingSignal, encode_open, encode_word
from swarm.ring.receipt_log import StageAccount, measure
from swarm.ring.signer import ReceiptSigner
from swarm.ring.words import AcceptedHome, encode_tail
from swarm.stage.context import StageContext, post
from swarm.stage.replay import replay_frames
from swarm.stage.sender import Sender
from swarm.stage.session import StageSession

MOST_LEFT = 64
"""Accounts of runs that left this stage out; they hold no rows."""


class SessionOpen:
    """The beginning of a stage's sessions. `connector` leads to the stages after it."""

    def __init__(
        self, stage: StageContext, connector: StageConnector, notary: ReceiptSigner | None, sender: Sender
    ) -> None:
        self._stage, self._connector, self._notary, self._sender = stage, connector, notary, sender
        self._left: dict[bytes, StageAccount] = {}

    def remember(self, session: StageSession) -> None:
        """The run goes on without this stage, and may come back: its account is then gone on with."""
        if session.account is not None:
            self._left[session.run] = session.account
            while len(self._left) > MOST_LEFT:
                del self._left[next(iter(self._left))]

    def sign(self, session: StageSession, opening: OpenRun, old: StageSession | None, fresh: bool) -> OpenRun:
        """Accept this node's part in writing; the opening that goes on says so.

        `old` is this run's session of the epoch before, whether its layers are the same or not.
        """
        if opening.record is None or self._notary is None:
            return opening
        earlier = old.account if old is not None else self._left.pop(opening.run, None)
        past = None
        if opening.keep and not fresh:
            base = self._stage.sessions.get(opening.base)
            past = earlier.past if earlier is not None else base.past if base is not None else None
        session.account = StageAccount(
            self._notary, opening, session.block.computes_in, earlier, past, session.fingerprint or None
        )
        session.opening = replace(opening, record=session.account.accepted)
        return session.opening

    async def go_on(self, session: StageSession, opening: OpenRun) -> None:
        """The session is there: open what comes after it, or say that the whole ring stands."""
        if session.opening is not opening:
            return
        if session.is_last:
            await self._tell_home(opening)
            await self.stands(session, RingSignal("opened", opening.run, opening.epoch, record=opening.record))
        else:
            await self._open_next(session, opening)

    async def _tell_home(self, opening: OpenRun) -> None:
        """Bring the acceptances home the way that answers take, so that no token is there before them."""
        requester = self._stage.switchboard.get(opening.requester)
        if opening.record is not None and requester is not None:
            word = AcceptedHome(opening.run, opening.epoch, opening.record)
            await post(requester, encode_tail(word), opening.run)

    async def _open_next(self, session: StageSession, opening: OpenRun) -> None:
        """Dial the next stage and tell it of the run. Frames follow at once, unless it may have to be replayed."""
        following = opening.following()
        try:
            peer = await self._connector.connect(following.me)
            await peer.send(encode_open(following), flow=session.run)
        except PeerError as error:
            word = RingSignal("opened", opening.run, opening.epoch, (), following.me.node, False, -1, str(error))
            await post(session.upstream, encode_word(word))
            return
        if session.opening is opening and not session.closed:  # else nobody would end what begins here
            session.downstream = peer
            session.warmth.enter_context(peer.warm())
            if session.account is not None:
                session.tasks.append(self._stage.spawn(measure(peer, session.account.record.outbound)))
            if not opening.keep:
                session.ready.set()

    async def stands(self, session: StageSession, word: RingSignal) -> None:
        """All stages below stand: replay to those that are new, then let frames through and say so upstream."""
        opening = session.opening
        newcomers = leading_fresh(word.said)
        try:
            if opening.keep and newcomers and not session.fresh and session.downstream is not None:
                for frame in replay_frames(session, opening.index + newcomers):
                    await self._sender.give(session, session.downstream, frame.seq, encode_frame(frame))
        except SwarmError as error:
            # Rows that were not kept are missing here; only a connection that fails is the next one's.
            unkept = isinstance(error, BusyError)
            node = opening.stages[opening.index + (0 if unkept else 1)].node
            refusal = RingSignal("opened", opening.run, opening.epoch, (), node, unkept, -1, str(error))
            await post(session.upstream, encode_word(refusal))
            return
        session.ready.set()
        me = {"device": self._stage.device, "layers": [opening.me.first, opening.me.last], "fresh": session.fresh}
        await post(session.upstream, encode_word(replace(word, said=(me, *word.said))))
