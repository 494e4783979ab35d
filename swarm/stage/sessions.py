"""The sessions that are open at a stage: found by their run, freed when they are over or were silent for too long."""

from __future__ import annotations

import asyncio
import logging
import time

from swarm.base.errors import PeerError
from swarm.net.peer import Peer
from swarm.ring.frame import RunId
from swarm.stage.session import StageSession

log = logging.getLogger(__name__)


class Register(dict[bytes, StageSession]):
    """Sessions by run. Enter them with `enter` and take them out with `free`."""

    def __init__(self) -> None:
        super().__init__()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, session: StageSession) -> None:
        """A session is open from now on, in place of an older one of its run."""
        self[session.run] = session
        self._empty.clear()

    def free(self, session: StageSession) -> None:
        """Forget a session and end its tasks; its memory is freed as soon as the compute thread lets go."""
        if self.get(session.run) is session:
            del self[session.run]
            log.info("run %s is over: %d positions", session.run.hex()[:8], session.held)
        session.end()
        if session.account is not None:
            session.account.finish()
        if not self:
            self._empty.set()

    def free_all(self) -> None:
        """Forget every session."""
        for session in list(self.values()):
            self.free(session)

    def free_outlived(self, now: float, longest_lease_s: float, draining: bool) -> None:
        """Free sessions whose requester has been silent for longer than its lease, and those no longer kept.

        `draining`: nothing is kept for a later run. `now`: monotonic seconds.
        """
        for session in list(self.values()):
            until = session.kept_until or session.heard + min(session.opening.lease_s, longest_lease_s)
            if now > until or (draining and session.kept_until and session.account is None):
                self.free(session)

    async def empty_within(self, seconds: float) -> bool:
        """Wait until no session is left; whether that came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    @property
    def busy(self) -> bool:
        """Whether a run is open; sessions that are only kept for their beginning do not count."""
        return any(not session.kept_until for session in self.values())

    @property
    def rows_waiting(self) -> int:
        """Rows of all sessions that wait to be computed."""
        return sum(session.queued_rows for session in self.values())

    def of_upstream(self, peer: Peer, run: RunId) -> StageSession | None:
        """The session of `run`, heard of now; None: not open. Raises PeerError unless `peer` feeds it."""
        session = self.get(run)
        if session is not None and session.upstream.id != peer.id:
            raise PeerError("expected word of a run from the node before this one, found another's")
        if session is not None:
            session.heard = time.monotonic()
        return session
