"""What a node says of itself: its record, its addresses, its invite, and what it signs with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch

import receipts
from receipts.record.rows import RowStore
from swarm import __version__
from swarm.base.address import Address
from swarm.base.config import JoinConfig
from swarm.base.events import Report, silent
from swarm.mesh.gossip import Gossip
from swarm.mesh.invite import Invite, make_invite
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved
from swarm.model.device import DeviceHardware, describe
from swarm.model.files.manifest import Manifest
from swarm.net.identity import Identity
from swarm.node.host import Hosting
from swarm.ring.order_check import OrderBook
from swarm.ring.signer import ReceiptSigner, open_log, open_published, salted, software

LOOK_S = 5.0
"""Between looks at this machine's own addresses."""


def node_record(
    config: JoinConfig,
    identity: Identity,
    reachable: list[Address],
    model: bytes,
    device: str,
    dtype: str,
) -> NodeRecord:
    """The record of a node that has not loaded anything yet. `model`: manifest digest."""
    return NodeRecord(
        identity.id,
        b"",
        0,
        0,
        0,
        state="joining",
        addresses=tuple(reachable),
        relay=config.offer_relay,
        model=model,
        device=device[:64],
        dtype=dtype,
        owner=config.owner[:64],
        software=f"wanswarm {__version__}",
    )


def own_addresses(config: JoinConfig, listening: Address) -> list[Address]:
    """Addresses that others may dial, best first."""
    if config.advertise is not None:
        return [config.advertise]
    host, port = listening
    if host not in ("0.0.0.0", "::"):
        return [(host, port)]
    families = ("AF_INET", "AF_INET6") if host == "::" else ("AF_INET",)
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name in families and "%" not in entry.address
    ]
    public = sorted((a for a in found if not a.startswith(("127.", "::1"))), key=lambda a: ":" in a)
    return [(address, port) for address in (public or ["127.0.0.1"])[:8]]


def near_hosts(config: JoinConfig, listening: Address) -> list[str]:
    """Where machines of the same network find this node: at its own addresses, whatever --advertise says to others."""
    return [host for host, _ in own_addresses(replace(config, advertise=None), listening)]


async def moved(read: Callable[[], list[Address]], before: list[Address], every_s: float = LOOK_S) -> list[Address]:
    """Wait until this machine has other addresses than `before`: another network, a new lease, IPv6 that came late."""
    while True:
        await asyncio.sleep(every_s)
        now = await asyncio.to_thread(read)
        if now != before:
            return now


def own_invite(saved: Saved, identity: Identity, reachable: list[Address], gossip: Gossip) -> Invite:
    """An invite that names this node first, and a few others in case it is gone."""
    others = [(v.record.node, v.record.addresses) for v in gossip.members()[1:] if v.standing == "up"]
    members = [(identity.id, tuple(reachable)), *((node, addresses) for node, addresses in others[:3] if addresses)]
    return make_invite(gossip.membership, saved.model, saved.ref, members, time.time())


def notary_of(
    config: JoinConfig,
    state: Path,
    identity: Identity,
    manifest: Manifest,
    hosting: Hosting,
    device: DeviceHardware,
    report: Report = silent,
) -> ReceiptSigner:
    """What this node signs with and says of itself."""
    log = open_log(state / "log", identity.id)
    private = (salted("uuid", device.uuid),) if device.uuid else ()
    claims = receipts.Hardware(
        device=device.name[:100],
        type=device.kind,
        memory_bytes=device.memory_bytes,
        driver=device.driver[:100],
        cpu=describe(torch.device("cpu")).name[:100],
        cores=device.cores,
        uuid=private[0].digest if private else None,
        us_per_layer=dict(zip(("1", "8", "64"), hosting.speed_us, strict=True)),
    )
    return ReceiptSigner(
        author=log.author(identity.sign),
        log=log,
        software=software(),
        manifest=manifest.digest,
        weights=manifest.weights_digest,
        hardware=claims,
        private=private,
        rows=RowStore(state / "rows"),
        disclose=config.disclose,
        context=manifest.context,
        orders=OrderBook(state / "orders"),
        published=open_published(config.log, log, identity, report),
    )
