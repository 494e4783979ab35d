"""Dialling a node: over TCP, and where that leads nowhere, over HTTP to the same port.

Some networks let nothing else out. A try counts once the other side has answered the handshake: what lets TCP through
and nothing but HTTP inside of it is found out no earlier.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.tasks import TaskOwner
from swarm.net.channel.channel import Channel
from swarm.net.dial import connect
from swarm.net.staggered import staggered
from swarm.net.tunnel import open_tunnel

DOOR = "/swarm/door"
"""Path of the WebSocket that leads to a node's handshake."""
HTTP_AFTER = 1.2
"""Seconds that TCP is tried alone; a failure lets HTTP begin at once."""
HTTP_SOON = 0.1
"""The same where HTTP was what worked before."""
_NEXT_ADDRESS = 0.5
TUNNEL_SECONDS = 5.0


class Opens(Protocol):
    """`open_channel` with the keys of this node and the identity that it expects."""

    def __call__(
        self, sock: socket.socket, *, claim: Callable[[], None], address: Address | None = None
    ) -> Awaitable[Channel]: ...


class Dialer:
    """How one process dials. `proxy`: of `open_tunnel`; `tasks` owns what moves the bytes of tunnels."""

    def __init__(self, tasks: TaskOwner, proxy: str | None) -> None:
        self.proxy = proxy
        self._tasks = tasks
        self._by_http = False

    async def dial(
        self, addresses: Sequence[Address], timeout: float, opens: Opens, edge: str, claim: Callable[[], None]
    ) -> tuple[Channel, str]:
        """A channel to whoever is expected at `addresses`, and its edge: `edge`, or "http". Raises PeerError.

        `claim` is called once at most: see `open_channel`.
        """
        once = _once(claim)

        async def plainly() -> tuple[Channel, str]:
            sock, _ = await connect(addresses, timeout)
            return await opens(sock, claim=once), edge

        async def knock(address: Address) -> Channel:
            sock = await open_tunnel(address, DOOR, self._tasks, min(timeout, TUNNEL_SECONDS), self.proxy)
            return await opens(sock, claim=once, address=address)

        async def by_http() -> tuple[Channel, str]:
            tries = [partial(knock, address) for address in dict.fromkeys(addresses)]
            try:
                return await staggered(tries, _NEXT_ADDRESS, _close), "http"
            except PeerError as exc:
                raise PeerError(f"by HTTP: {exc}") from exc

        head_start = HTTP_SOON if self._by_http else HTTP_AFTER
        found = await staggered([plainly, by_http], head_start, lambda late: _close(late[0]))
        self._by_http = found[1] == "http"
        return found


def _once(claim: Callable[[], None]) -> Callable[[], None]:
    claimed = False

    def first() -> None:
        nonlocal claimed
        if claimed:
            raise PeerError("another way was faster")
        claim()
        claimed = True

    return first


def _close(channel: Channel) -> None:
    channel.close("another way was faster")
