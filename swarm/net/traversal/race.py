"""Several ways to one node at once, of which one may finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.net.switchboard import Switchboard


class Race:
    """One race for `node`: who may finish, and how it went.

    `over_relay`: a connection through a relay does not count as having reached it.
    """

    def __init__(self, board: Switchboard, node: NodeId, over_relay: bool = False) -> None:
        self._board = board
        self._over_relay = over_relay
        self.node = node
        self._holder: str | None = None

    def claim(self, way: str) -> Callable[[], None]:
        """What `way` calls when it is about to finish. Raises PeerError then if another way was faster."""

        def claim() -> None:
            if self._holder is not None or self._reached():
                raise PeerError("another way was faster")
            self._holder = way

        return claim

    async def run(self, ways: Mapping[str, Coroutine[Any, Any, None]]) -> None:
        """Wait for the first way that works, or for the node to come by itself; end the others.

        Raises PeerError with each way's reason when none works.
        """
        names = {asyncio.create_task(way): name for name, way in ways.items()}
        arrival = asyncio.ensure_future(asyncio.shield(self._board.arrival(self.node)))
        pending: set[asyncio.Future[Any]] = {*names, arrival}
        reasons = []
        try:
            while pending != {arrival}:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if self._reached():
                    return
                for way, name in names.items():
                    if way in done:
                        reasons.append(f"{name}: {self._failure(way)}")
                        self._holder = None if self._holder == name else self._holder
            raise PeerError(f"node {short_id(self.node)} was not reached ({'; '.join(reasons)})")
        finally:
            everything: list[asyncio.Future[Any]] = [*names, arrival]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    def _reached(self) -> bool:
        peer = self._board.get(self.node)
        return peer is not None and not (self._over_relay and peer.edge == "relay")

    @staticmethod
    def _failure(task: asyncio.Future[None]) -> str:
        error = task.exception()
        if error is not None and not isinstance(error, PeerError):
            raise error
        return str(error or "it left again")
