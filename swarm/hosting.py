"""Which block a node takes, and the block loaded and measured."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch

from swarm.atlas import members_of, rtts_of, speed_us
from swarm.config import JoinConfig
from swarm.errors import ModelError
from swarm.events import Report
from swarm.mesh.gossip import Gossip
from swarm.model.block import load_block
from swarm.model.device import describe, free_bytes
from swarm.model.graphs import graphed
from swarm.model.kvcache import KVPool
from swarm.model.manifest import Manifest
from swarm.model.probe import probe
from swarm.model.store import ModelStore
from swarm.model.weights import FileCheckpoint
from swarm.net.nodeid import id_text
from swarm.ring.admit import HostedModel, StageLimits
from swarm.ring.plan import Room, Speed, choose_block
from swarm.shape import model_shape

MEMORY_SHARE = 0.8
KV_SHARE = 0.4
MOST_KV = 64 << 30
CLAIM_WAIT_S = 1.0
CLAIM_ROUNDS = 5


@dataclass(frozen=True)
class Hosting:
    """A loaded block with its limits; `speed_us` microseconds per layer for 1, 8 and 64 rows."""

    hosted: HostedModel
    checkpoint: FileCheckpoint
    limits: StageLimits
    speed_us: tuple[int, int, int]


async def settle_block(
    config: JoinConfig, gossip: Gossip, manifest: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[int, int]:
    """Choose layers together with whoever else is choosing: claim, listen, choose again until it stays."""
    shape = model_shape(manifest, dtype)
    digest = bytes.fromhex(manifest.digest)
    me = gossip.members()[0].record.node
    room = Room(
        id_text(me),
        memory_bytes=int(free_bytes(device) * MEMORY_SHARE),
        context_tokens=min(4096, manifest.context),
        max_layers=config.capacity,
    )
    claimed: tuple[int, int] | None = None
    for _ in range(CLAIM_ROUNDS):
        others = [member for member in members_of(gossip, digest) if member.node != id_text(me)]
        block = choose_block(shape, room, others, rtts_of(gossip, me))
        if (block.first, block.last) == claimed:
            break
        claimed = (block.first, block.last)
        gossip.publish(state="joining", claim=claimed)
        if not others and not gossip.saved().peers:
            break
        await asyncio.sleep(CLAIM_WAIT_S)
    assert claimed is not None
    return claimed


def load_hosting(
    config: JoinConfig,
    ref: str,
    store: ModelStore,
    layers: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    node: bytes,
    threads: int,
    report: Report,
) -> Hosting:
    """Load and measure a block. Runs in a thread. Raises ModelError when it does not fit."""
    checkpoint = store.open(ref, layers, report)
    manifest = checkpoint.manifest
    shape = model_shape(manifest, dtype)
    need = sum(shape.layer_bytes[layers[0] : layers[1]])
    need += shape.head_bytes * (layers[0] == 0) + shape.tail_bytes * (layers[1] == manifest.n_layers)
    free = free_bytes(device)
    if need > free:
        raise ModelError(
            f"layers {layers[0]}-{layers[1] - 1} need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "take fewer with --layers A:B or --capacity LAYERS"
        )
    torch.set_num_threads(threads)
    block = graphed(load_block(checkpoint, layers[0], layers[1], device, dtype, report), report)
    budget = config.kv_bytes or min(MOST_KV, int(free_bytes(device) * KV_SHARE))
    pool = KVPool(block, budget)
    measured = probe(block, report=report)
    speed = speed_us(Speed(*(measured.ms_per_layer[rows] for rows in (1, 8, 64))))
    hosted = HostedModel(manifest.digest, block, pool, describe(device).name, node)
    return Hosting(hosted, checkpoint, StageLimits(), speed)
