"""A bare node for the reach tests: connects to a public node and reaches others when told to on stdin.

    reach_node.py SEED LISTEN [HOME_ID HOME_ADDRESS]      without a home it is the public node, and relays
    reach_node.py SEED LISTEN alone                       the public node, which does not relay

Commands: `reach ID ADDRESS [SECONDS]`, `drop`. Prints JSON lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

from aiohttp import web

from swarm.base.address import parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.net.channel.message import Message
from swarm.net.identity import Identity, parse_id_untrusted
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.reach import Reach
from swarm.net.traversal.relay import Relay


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def echo(peer: Peer, message: Message) -> Message:
    return message


async def main(seed: str, listen: str, home: list[str]) -> None:
    identity = Identity.from_seed(int(seed).to_bytes(32, "big"))
    relays = not home
    home = home if home != ["alone"] else []
    app = web.Application()
    runner = web.AppRunner(app, handle_signals=False)
    async with Switchboard(identity, {"echo": echo}) as board:
        address = await board.listen(*parse_address_untrusted(listen))
        Reach(board, addresses=[address], offers_relay=relays)
        if not home:
            app.add_routes(Relay(board, [address]).routes())
            await runner.setup()
            board.http = runner.server
        else:
            node = parse_id_untrusted(home[0])
            await (await board.peer(node, [parse_address_untrusted(home[1])])).ping(2)
        say("ready", id=identity.text)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        number = 0
        while line := (await reader.readline()).decode().split():
            number += 1
            if line[0] == "drop":
                for peer in board.peers():
                    if not home or peer.id != node:
                        await peer.close("next")
                say(f"dropped-{number}")
                continue
            await reach(board, number, *line[1:])
    await runner.cleanup()


async def reach(board: Switchboard, number: int, text: str, address: str, seconds: str = "8") -> None:
    start = time.monotonic()
    try:
        peer = await board.peer(parse_id_untrusted(text), [parse_address_untrusted(address)], timeout=float(seconds))
        await peer.call(Message("echo", {}, bytes(1000)), timeout=5)
        took = time.monotonic() - start
        series = await peer.ping(5)
        say(f"reached-{number}", edge=peer.edge, seconds=round(took, 3), rtt_ms=series.min_us / 1000)
    except PeerError as exc:
        say(f"reached-{number}", edge="none", seconds=round(time.monotonic() - start, 3), why=str(exc))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
