"""How a stage takes leave of a run: memory first, then its account, signed after the last frame has crossed.

A closing walks the ring, and each stage answers the one before with its half of their edge. Then a collecting round
brings home what the stages sign. From the tail both go on to the requester, which dialled it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from receipts import ReceiptError
from swarm.base.errors import PeerError, SwarmError
from swarm.net.channel.message import Message
from swarm.ring.frame import parse_commits_untrusted
from swarm.ring.opening import RingSignal, encode_word
from swarm.ring.words import ClosedHome, CloseRun, CollectedHome, CollectRun, encode_down, encode_tail
from swarm.stage.context import StageContext, post
from swarm.stage.session import StageSession


class SessionClose:
    """The end of a stage's sessions."""

    def __init__(self, stage: StageContext) -> None:
        self._stage = stage

    async def close(self, session: StageSession, word: CloseRun) -> None:
        """Free the memory, pass the end on, and keep the account until it is collected."""
        await session.idle.wait()
        if word.hold_ms:
            session.kept_until = time.monotonic() + word.hold_ms / 1000.0
        else:
            session.release()
        record = word.record
        if session.account is None or record is None:
            _done(session)
            self._leave(session)
        else:
            try:
                session.account.commit(parse_commits_untrusted(word.commits, session.opening.layout))
                half = session.account.closing(record)
            except (SwarmError, ReceiptError) as error:
                self._stage.lose(session, session.opening.index, str(error))
                return
            await post(
                session.upstream, encode_word(RingSignal("half", session.run, session.opening.epoch, record=half))
            )
            record = session.account.record.close_header()
        if session.is_last:
            await self._tell_home(session, ClosedHome(session.run, session.opening.epoch, record))
        else:
            await self._pass_on(session, replace(word, record=record))

    async def collect(self, session: StageSession, word: CollectRun) -> None:
        """Add this stage's statements to what walks the ring."""
        assert session.account is not None
        try:
            record = await session.account.collect(word.record)
        except (SwarmError, ReceiptError, TimeoutError) as error:
            self._stage.lose(session, session.opening.index, f"the account of this stage cannot be closed: {error}")
        else:
            if session.is_last:
                await self._tell_home(session, CollectedHome(session.run, session.opening.epoch, record))
            else:
                await self._pass_on(session, replace(word, record=record))
        _done(session)
        self._leave(session)

    def _leave(self, session: StageSession) -> None:
        """Forget the session, unless it is kept for a run with the same beginning."""
        if not session.kept_until:
            self._stage.sessions.free(session)

    async def _pass_on(self, session: StageSession, word: CloseRun | CollectRun) -> None:
        """To the next stage."""
        if session.downstream is not None and session.downstream.closed_reason is None:
            await post(session.downstream, encode_down(word), session.run)
        else:
            self._stage.lose(session, session.opening.index + 1, "the ring ends here; there is nobody to take leave of")

    async def _tell_home(self, session: StageSession, word: ClosedHome | CollectedHome) -> None:
        """From the tail to the requester, which dialled it."""
        requester = self._stage.switchboard.get(session.opening.requester)
        if requester is not None:
            await post(requester, encode_tail(word), session.run)


def _done(session: StageSession) -> None:
    """Nothing more is signed of this run; what was kept of it can be opened."""
    if session.account is not None:
        session.account.finish()
        session.past = session.account.past
    session.account = None


def nobody(word: CloseRun) -> Message:
    """The answer to the closing of a run that is not open here, so that nobody waits for its end."""
    return encode_word(RingSignal("lost", word.run, word.epoch, stage=0, reason="that run is not open here"))


def settle_untrusted(session: StageSession, record: Mapping[str, object] | None) -> None:
    """The other end's half of the outbound edge came. Raises PeerError when it is malformed."""
    if session.account is None or record is None:
        return
    try:
        session.account.settle(record)
    except ReceiptError as error:
        raise PeerError(f"expected an edge's other half, found {error}") from error
