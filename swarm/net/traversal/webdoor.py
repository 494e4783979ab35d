"""The door of a node for those who can speak HTTP alone: a WebSocket on its own port that leads to the same handshake.

Whoever comes in through it is a stranger as at the door beside it: the same deadline, the same bounds, the same proof.
"""

from __future__ import annotations

from aiohttp import web

from swarm.net.dialer import DOOR
from swarm.net.switchboard import Switchboard
from swarm.net.tunnel import MAX_FRAME_BYTES, carry, socket_pair


def door_routes(board: Switchboard) -> list[web.RouteDef]:
    """What the node's HTTP application serves for it."""

    async def serve(request: web.Request) -> web.StreamResponse:
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="this is no place for web pages\n")
        ws = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=2.0)
        await ws.prepare(request)
        peername = request.transport.get_extra_info("peername") if request.transport is not None else None
        near, far = socket_pair()
        board.welcome(near, tuple(peername[:2]) if peername else ("unknown", 0))
        await carry(ws, far)
        return ws

    return [web.get(DOOR, serve)]
