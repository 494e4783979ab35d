"""Which block a node takes, and the block loaded and measured."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch

from swarm.atlas import expected_of, rtts_of, speed_us
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
PLANNED_CONTEXT = 4096


@dataclass(frozen=True)
class Hosting:
    """A loaded block with its limits; `speed_us` microseconds per layer for 1, 8 and 64 rows."""

    hosted: HostedModel
    checkpoint: FileCheckpoint
    limits: StageLimits
    speed_us: tuple[int, int, int]

    @property
    def layers(self) -> tuple[int, int]:
        """[first, last)."""
        return self.hosted.block.first, self.hosted.block.last

    @property
    def speed(self) -> Speed:
        """Milliseconds per layer."""
        return Speed(*(value / 1000 for value in self.speed_us))


@dataclass(frozen=True)
class Host:
    """What a node computes with: `node` its id, `threads` of the CPU."""

    config: JoinConfig
    store: ModelStore
    node: bytes
    device: torch.device
    dtype: torch.dtype
    threads: int
    report: Report

    def room(self, manifest: Manifest) -> Room:
        """What this node can give now."""
        return Room(
            id_text(self.node),
            memory_bytes=int(free_bytes(self.device) * MEMORY_SHARE),
            context_tokens=min(PLANNED_CONTEXT, manifest.context),
            max_layers=self.config.capacity,
        )

    def weight(self, manifest: Manifest, layers: tuple[int, int]) -> int:
        """Bytes that the weights of layers [first, last) take here."""
        shape = model_shape(manifest, self.dtype)
        ends = shape.head_bytes * (layers[0] == 0) + shape.tail_bytes * (layers[1] == manifest.n_layers)
        return sum(shape.layer_bytes[layers[0] : layers[1]]) + ends

    def load(self, ref: str, layers: tuple[int, int]) -> Hosting:
        """Load and measure a block. Runs in a thread. Raises ModelError when it does not fit."""
        checkpoint = self.store.open(ref, layers, self.report)
        manifest = checkpoint.manifest
        need, free = self.weight(manifest, layers), free_bytes(self.device)
        if need > free:
            raise ModelError(
                f"layers {layers[0]}-{layers[1] - 1} need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "take fewer with --layers A:B or --capacity LAYERS"
            )
        torch.set_num_threads(self.threads)
        block = graphed(load_block(checkpoint, *layers, self.device, self.dtype, self.report), self.report)
        budget = self.config.kv_bytes or min(MOST_KV, int(free_bytes(self.device) * KV_SHARE))
        pool = KVPool(block, budget)
        measured = probe(block, report=self.report)
        speed = speed_us(Speed(*(measured.ms_per_layer[rows] for rows in (1, 8, 64))))
        hosted = HostedModel(manifest.digest, block, pool, describe(self.device).name, self.node)
        return Hosting(hosted, checkpoint, StageLimits(), speed)


async def settle_block(host: Host, gossip: Gossip, manifest: Manifest, room: Room) -> tuple[int, int]:
    """Choose layers together with whoever else is choosing: claim, listen, choose again until it stays."""
    shape = model_shape(manifest, host.dtype)
    digest = bytes.fromhex(manifest.digest)
    claimed: tuple[int, int] | None = None
    for _ in range(CLAIM_ROUNDS):
        others = [member for member in expected_of(gossip, digest) if member.node != room.node]
        block = choose_block(shape, room, others, rtts_of(gossip, host.node))
        if (block.first, block.last) == claimed:
            break
        claimed = (block.first, block.last)
        gossip.publish(state="joining", claim=claimed)
        if not others and not gossip.saved().peers:
            break
        await asyncio.sleep(CLAIM_WAIT_S)
    assert claimed is not None
    return claimed
