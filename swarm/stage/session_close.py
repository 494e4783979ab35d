"""How a stage takes leave of a run: memory first, then its account, signed after the last frame has crossed.

A closing walks the ring, and each stage answers the one before with its half of their edge. Then a collecting round
brings home what the stages sign. From the tail both go on to the requester, which dialled it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from receipts import ReceiptError
from swarm.base.errors import PeerError, SwarmError
from swarm.net.channel.message import Message
from swarm.ring.frame import DOWN, parse_commits_untrusted
from swarm.ring.opening import TAIL, RingSignal, encode_word
from swarm.stage.context import StageContext, post
from swarm.stage.session import StageSession

MAX_HOLD_MS = 3_600_000


class SessionClose:
    """The end of a stage's sessions."""

    def __init__(self, stage: StageContext) -> None:
        self._stage = stage

    async def close(self, session: StageSession, header: Mapping[str, Any]) -> None:
        """Free the memory, pass the end on, and keep the account until it is collected."""
        await session.idle.wait()
        hold_ms = header.get("hold_ms")
        if type(hold_ms) is int and 0 < hold_ms <= MAX_HOLD_MS:
            session.kept_until = time.monotonic() + hold_ms / 1000.0
        else:
            session.release()
        record = header.get("record")
        if session.account is None or not isinstance(record, dict):
            _done(session)
            self._leave(session)
        else:
            try:
                session.account.commit(parse_commits_untrusted(header.get("commits"), session.opening.layout))
                half = session.account.closing(record)
            except (SwarmError, ReceiptError) as error:
                self._stage.lose(session, session.opening.index, str(error))
                return
            await post(
                session.upstream, encode_word(RingSignal("half", session.run, session.opening.epoch, record=half))
            )
            record = session.account.record.close_header()
        await self._pass(session, {**header, "record": record}, "closed")

    async def collect(self, session: StageSession, header: Mapping[str, Any]) -> None:
        """Add this stage's statements to what walks the ring."""
        assert session.account is not None
        try:
            record = await session.account.collect(header.get("record") or {})
        except (SwarmError, ReceiptError, TimeoutError) as error:
            self._stage.lose(session, session.opening.index, f"the account of this stage cannot be closed: {error}")
        else:
            await self._pass(session, {**header, "record": record}, "collected")
        _done(session)
        self._leave(session)

    def _leave(self, session: StageSession) -> None:
        """Forget the session, unless it is kept for a run with the same beginning."""
        if not session.kept_until:
            self._stage.sessions.free(session)

    async def _pass(self, session: StageSession, header: Mapping[str, Any], at_tail: str) -> None:
        """What walks the ring at its end goes on downstream, or from the tail to the requester."""
        if not session.is_last:
            if session.downstream is not None and session.downstream.closed_reason is None:
                await post(session.downstream, Message(DOWN, header), session.run)
            else:
                self._stage.lose(
                    session, session.opening.index + 1, "the ring ends here; there is nobody to take leave of"
                )
            return
        requester = self._stage.switchboard.get(session.opening.requester)
        if requester is not None:
            word = {"do": at_tail, "run": session.run, "epoch": session.opening.epoch, "record": header.get("record")}
            await post(requester, Message(TAIL, word), session.run)


def _done(session: StageSession) -> None:
    """Nothing more is signed of this run; what was kept of it can be opened."""
    if session.account is not None:
        session.account.finish()
        session.past = session.account.past
    session.account = None


def nobody_untrusted(header: Mapping[str, Any]) -> Message:
    """The answer to the closing of a run that is not open here, so that nobody waits for its end.

    Raises PeerError when the closing is malformed.
    """
    run, epoch = header.get("run"), header.get("epoch")
    if not isinstance(run, bytes) or len(run) != 16 or type(epoch) is not int:
        raise PeerError("expected the closing of a run, found something malformed")
    return encode_word(RingSignal("lost", run, epoch, stage=0, reason="that run is not open here"))


def settle_untrusted(session: StageSession, record: Any) -> None:
    """The other end's half of the outbound edge came. Raises PeerError when it is malformed."""
    if session.account is None or not isinstance(record, dict):
        return
    try:
        session.account.settle(record)
    except ReceiptError as error:
        raise PeerError(f"expected an edge's other half, found {error}") from error
