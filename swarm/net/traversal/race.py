"""Several ways to one node at once, of which one may finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.net.staggered import staggered
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
        self.reasons: list[str] = []
        """Why ways came to nothing so far."""

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
        tries = [partial(self._try, name, way) for name, way in ways.items()]
        walked = asyncio.ensure_future(staggered(tries, 0.0, lambda done: None, reasons=self.reasons))
        arrival = asyncio.ensure_future(asyncio.shield(self._board.arrival(self.node)))
        both: set[asyncio.Future[Any]] = {walked, arrival}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not self._reached():
                await walked
        except PeerError as error:
            raise PeerError(f"node {short_id(self.node)} was not reached ({error})") from error
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for way in ways.values():
                way.close()  # one that was never begun
            del walked, arrival, both, task  # their errors have this frame: they would wait for the collector

    async def _try(self, name: str, way: Coroutine[Any, Any, None]) -> None:
        """One way to its end. Raises PeerError unless the node is reached then."""
        try:
            await way
        except PeerError as error:
            if not self._reached():
                self._leave(name)
                raise PeerError(f"{name}: {error}") from error
        if not self._reached():
            self._leave(name)
            raise PeerError(f"{name}: it left again")

    def _leave(self, name: str) -> None:
        """Others may finish instead."""
        self._holder = None if self._holder == name else self._holder

    def _reached(self) -> bool:
        peer = self._board.get(self.node)
        return peer is not None and not (self._over_relay and peer.edge == "relay")
