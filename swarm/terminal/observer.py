"""A guest that only looks: enters a swarm without loading any model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from swarm.base.config import MemberConfig
from swarm.base.events import silent
from swarm.base.nodeid import parse_id_untrusted
from swarm.base.swarm_state import SwarmState
from swarm.discovery.bootstrap import enter_as_guest
from swarm.discovery.introducers import MemberIntroducer
from swarm.discovery.state_dir import requester_folder
from swarm.mesh.gossip import Gossip
from swarm.mesh.saved import SavedFile
from swarm.mesh.status import edges_of
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.reach import Reach
from swarm.terminal.status import look_now

NEWS_WAIT_S = 3.0
SETTLE_S = 0.3
ENDS_WAIT_S = 3.0


@asynccontextmanager
async def look_at(config: MemberConfig) -> AsyncIterator[Callable[[], Awaitable[SwarmState]]]:
    """Gives a function that takes a snapshot. Raises SwarmError."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(requester_folder(config.state))
        identity = Identity.load_or_create(folder)
        board = await stack.enter_async_context(Switchboard(identity, proxy=config.http_proxy))
        saved = await enter_as_guest(board, config, folder, identity, silent)
        gossip = await stack.enter_async_context(Gossip(board, saved, store=SavedFile(folder)))
        for member, _ in saved.peers[:1]:
            await gossip.link(member)
        try:
            async with asyncio.timeout(NEWS_WAIT_S):
                while not gossip.members():
                    await gossip.wait_change()
        except TimeoutError:
            pass

        if config.punch:
            Reach(board, relay=config.relay, introducer=MemberIntroducer(board, gossip))

        async def snapshot() -> SwarmState:
            await asyncio.sleep(SETTLE_S)  # the neighbour's records come in a few messages
            seen = look_now(gossip, board.id, saved.model, saved.ref, edge_of=edges_of(board))
            if seen.route is None:
                return seen
            stages = seen.route.stages
            with suppress(TimeoutError):  # of its own two edges this process knows once it has them
                async with asyncio.timeout(ENDS_WAIT_S):
                    await gossip.measure([parse_id_untrusted(stage.node) for stage in (stages[0], stages[-1])])
            return look_now(gossip, board.id, saved.model, saved.ref, edge_of=edges_of(board))

        yield snapshot
