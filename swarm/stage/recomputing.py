"""A node's service to auditors of other nodes' runs: rows recomputed by its kernels, as far as its owner lets it.

Bounded: one call at a time, so many rows times layers for each asker in a while, memory for one short session. A pass
of the node's own runs waits for one forward of it at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import torch

from swarm.base.errors import BusyError, ModelError, PeerError
from swarm.model.block import Block, Job
from swarm.model.exact import why_not
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, check_untrusted
from swarm.net.channel.message import Message
from swarm.net.channel.wire import decode_tensor_untrusted
from swarm.net.members import Members
from swarm.net.peer import Handler, Peer
from swarm.ring.frame import Frame
from swarm.ring.opening_limits import OpeningQuota
from swarm.ring.recomputing import (
    RECOMPUTE,
    RECOMPUTE_REQUEST,
    RecomputeRequest,
    encode_rows,
    frames_untrusted,
)
from swarm.stage.admission import HostedModel

BURST = 1 << 16
"""Rows times layers that an asker may have recomputed at once: a text of 2,048 tokens through 32 layers."""
MEMBER_RATE, STRANGERS_RATE = 1 << 8, 1 << 6
"""The same that comes back to a member, and to all strangers together, in a second."""
MEMORY_BYTES = 1 << 30
MOST_WAITING = 4
WAIT_S = 60.0


class Hosts(Protocol):
    """Who holds a block now."""

    @property
    def hosted(self) -> HostedModel | None: ...


class RecomputeServer:
    """Answers `receipt.recompute`. allowed: whether this node's owner lets it."""

    def __init__(self, hosts: Hosts, members: Members, allowed: bool = True) -> None:
        self._hosts, self._members, self._allowed = hosts, members, allowed
        self._quota = OpeningQuota(BURST, MEMBER_RATE, STRANGERS_RATE)
        self._computing, self._waiting = asyncio.Lock(), 0

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls."""
        return {RECOMPUTE: self._on_recompute}

    async def _on_recompute(self, peer: Peer, message: Message) -> Message:
        if not self._allowed:
            raise PeerError("this node's owner does not let it recompute for others (--no-recompute)")
        request = RECOMPUTE_REQUEST.read_untrusted(message.header)
        frames = frames_untrusted(request, bytes(message.body))
        block = block_for(request, self._hosts.hosted)
        asker = peer.id if self._members.admitted(peer.id) else b""
        if self._waiting >= MOST_WAITING:
            raise BusyError(f"busy: {self._waiting} wait already to have rows recomputed; ask again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._computing.acquire()
        except TimeoutError as error:
            raise BusyError("busy: this node recomputes for others; ask again later") from error
        finally:
            self._waiting -= 1
        try:
            if (wait := self._quota.wait_s(asker, time.monotonic())) > 0:
                raise BusyError(f"busy: enough was recomputed for now; ask again in {wait:.0f} s")
            cost = sum(len(frame.rows) for frame in frames) * (request.last - request.first)
            self._quota.charge(asker, cost, time.monotonic())
            return encode_rows(await asyncio.to_thread(recompute_untrusted, request, frames, block))
        finally:
            self._computing.release()


def block_for(request: RecomputeRequest, hosted: HostedModel | None) -> Block:
    """The layers that are asked for. Raises PeerError, saying what this node has in their place."""
    if hosted is None:
        raise BusyError("busy: this node loads other layers now; ask again later")
    if request.model != hosted.model:
        raise PeerError(
            f"expected rows of model {hosted.model[:16]}, which this node serves, found {request.model[:16]}"
        )
    if request.fingerprint != hosted.fingerprint or not hosted.fingerprint:
        has = f"kernels {hosted.fingerprint[:16]}" if hosted.fingerprint else "kernels that were not measured"
        raise PeerError(f"the stage signed kernels {request.fingerprint[:16]}, this node has {has}")
    block = hosted.block
    if not isinstance(block, Block) or (reason := why_not(block)) is not None:
        told = reason if isinstance(block, Block) else "it computes on several devices"
        raise PeerError(f"rows of this node depend on their company: {told}")
    try:
        return block.view(request.first, request.last)
    except ValueError:
        held = f"{block.first}-{block.last - 1}"
        raise PeerError(
            f"expected layers of {held}, which this node has, found {request.first}-{request.last - 1}"
        ) from None


def recompute_untrusted(request: RecomputeRequest, frames: list[Frame], block: Block) -> torch.Tensor:
    """Float32 rows [n, width] of the frame that is wanted, after all up to it. Raises PeerError for rows that fit no
    session of the model, BusyError where there is no room."""
    layout = Layout(request.scratch, request.context)
    if request.context > block.loaded.positions:
        raise PeerError(f"expected a session of at most {block.loaded.positions} positions, found {request.context}")
    kv = KVPool(block, MEMORY_BYTES).open(layout, block.first, block.last)
    try:
        out = torch.empty(0, 1)
        for frame in frames[: request.wanted + 1]:
            check_untrusted(frame.rows, frame.commits, layout)
            hidden = _hidden_untrusted(frame, block)
            tokens = frame.rows.token
            if int(tokens.max()) >= block.vocab_size or int(tokens.min()) < 0 and (block.head or block.by_token):
                raise PeerError("expected token ids of the model in the frames to recompute")
            try:
                out = block.forward([Job(kv, frame.commits, frame.rows, hidden)])[0]
            except ModelError as error:
                raise PeerError(f"these frames are of no session: {error}") from error
        return out.float().cpu()
    finally:
        kv.close()


def _hidden_untrusted(frame: Frame, block: Block) -> torch.Tensor | None:
    if block.head:
        if frame.hidden is not None:
            raise PeerError("expected token ids at the head of the ring, found hidden rows")
        return None
    if frame.hidden is None:
        raise PeerError("expected hidden rows in a frame to recompute, found none")
    rows = decode_tensor_untrusted(*frame.hidden, torch.float32)
    want = (len(frame.rows), block.hidden_size)
    if tuple(rows.shape) != want or not bool(torch.isfinite(rows).all()):
        raise PeerError(f"expected finite hidden rows {list(want)}, found {list(rows.shape)}")
    return rows.to(block.dtype)
