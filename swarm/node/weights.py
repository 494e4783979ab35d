"""Where a node's weights come from: this machine, a hub, or members that hold them."""

from __future__ import annotations

import asyncio
import time

from swarm.base.errors import ModelError
from swarm.base.events import Report
from swarm.mesh.gossip import Gossip
from swarm.mesh.saved import Saved
from swarm.mesh.weights_fetch import fetch_blobs, fetch_manifest, weight_peers
from swarm.model.files.blobs import TensorSink, blobs_of
from swarm.model.files.manifest import Manifest
from swarm.model.files.resume import remove_old
from swarm.model.files.store import ModelStore
from swarm.net.switchboard import Switchboard

MEMBERS_WAIT_S = 10.0
ANY_LAYER = 10_000


async def learn_manifest(gossip: Gossip, board: Switchboard, saved: Saved) -> Manifest:
    """The model's manifest from members that serve it. Raises ModelError when nobody has it."""
    try:
        async with asyncio.timeout(MEMBERS_WAIT_S):
            while not (peers := await weight_peers(gossip, board, 0, ANY_LAYER)):
                await gossip.wait_change()
    except TimeoutError:
        raise ModelError(
            f"{saved.ref} is not on this machine, and no member serves it now; give --model, or try again later"
        ) from None
    return await fetch_manifest(peers, saved.model.hex())


async def fetch_from_members(
    gossip: Gossip, board: Switchboard, manifest: Manifest, layers: tuple[int, int], store: ModelStore, report: Report
) -> str:
    """Fetch what a block needs, verified chunk by chunk; the reference under which the store then has it."""
    peers = await weight_peers(gossip, board, *layers)
    sink = TensorSink(store.peer_folder(manifest))
    remove_old(sink.folder, time.time())
    await fetch_blobs(peers, blobs_of(manifest, *layers), sink, report)
    return f"sha256:{manifest.digest}"
