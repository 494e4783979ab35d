"""Doors of a swarm that loads no model: one that opens for good invites, one of a node that has no place left.

    door_node.py HOST MANIFEST_DIGEST

Prints one JSON line with invites: "open", "revoked", "full".
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from swarm.mesh.gossip import Gossip
from swarm.mesh.invite import make_invite
from swarm.mesh.membership import Membership
from swarm.mesh.messages import HELLO
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved
from swarm.net.channel.limits import ChannelLimits
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard


async def main(host: str, digest: bytes) -> None:
    here, full = Identity.generate(), Identity.generate()
    membership = Membership.found(here)
    async with (
        Switchboard(here, open_kinds=(HELLO,)) as board,
        Switchboard(full, limits=ChannelLimits(peers=0), open_kinds=(HELLO,)) as crowded,
    ):
        address, other = await board.listen(host, 7100), await crowded.listen(host, 7101)
        about = NodeRecord(here.id, b"", 0, 0, 0, state="serving", addresses=(address,), model=digest, n_layers=4)
        async with Gossip(board, Saved(membership, digest, "tiny"), about) as gossip:
            good, bad = (make_invite(membership, digest, "tiny", [(here.id, [address])], time.time()) for _ in "ab")
            assert bad.token is not None
            gossip.revoke(bad.token)
            busy = make_invite(membership, digest, "tiny", [(full.id, [other])], time.time())
            invites = {"open": good.text(), "revoked": bad.text(), "full": busy.text()}
            print(json.dumps({"event": "ready", **invites}), flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], bytes.fromhex(sys.argv[2])))
