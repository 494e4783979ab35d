"""What the parts of one stage share: its sessions, its tasks, its counts, and its word to the requester."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from swarm.base.errors import PeerError
from swarm.base.tasks import OwnedTasks
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.opening import RingSignal, encode_word
from swarm.stage.admission import HostedModel
from swarm.stage.session import StageSession
from swarm.stage.sessions import Register
from swarm.stage.stats import StageCounts

log = logging.getLogger(__name__)


class StageContext:
    """One stage as its parts see it; they hold nothing of each other.

    hosted   the block that is served now; None while another one is loaded
    tasks    sending, opening, closing: entered while the stage runs; what fails for one run does not end the others
    """

    def __init__(self, switchboard: Switchboard, hosted: HostedModel) -> None:
        self.switchboard = switchboard
        self.hosted: HostedModel | None = hosted
        self.sessions = Register()
        self.counts = StageCounts()
        self.tasks = OwnedTasks(apart="a stage")

    @property
    def device(self) -> str:
        """What the stage computes on, in words; "" while it serves nothing."""
        return self.hosted.device if self.hosted is not None else ""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` for as long as the stage runs."""
        return self.tasks.spawn(work)

    def lose(self, session: StageSession, stage: int, reason: str, busy: bool = False) -> None:
        """Tell the requester, through the stages before this one, that stage number `stage` is gone or failing."""
        log.warning("run %s: stage %d is lost: %s", session.run.hex()[:8], stage, reason)
        self.tell(session, "lost", stage, reason, busy)

    def tell(self, session: StageSession, do: str, stage: int, reason: str, busy: bool = False) -> None:
        """A word about stage number `stage` up the ring."""
        word = RingSignal(do, session.run, session.opening.epoch, busy=busy, stage=stage, reason=reason)
        self.spawn(post(session.upstream, encode_word(word)))


async def post(peer: Peer, message: Message, flow: bytes | None = None) -> None:
    """Send to a peer that may be gone: then there is nobody to tell."""
    try:
        await peer.send(message, flow=flow)
    except PeerError:
        return
