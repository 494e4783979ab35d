"""A stage's account of one run: what crossed its two edges, what it drew, and the statements that say so."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgpack

from receipts import EdgeLog, ReceiptError, StageRecord, opening_untrusted
from receipts.rows import RunRows
from swarm.errors import PeerError
from swarm.model.rows import Commits
from swarm.net.address import format_address
from swarm.net.message import Message
from swarm.net.peer import Peer
from swarm.ring.frame import Answer, Frame
from swarm.ring.notary import Notary, unix_us
from swarm.ring.opening import OpenRun

PINGS_AT_OPEN = 3
PING_EVERY_S = 2.0
SETTLE_TIMEOUT_S = 5.0


def head_bytes(message: Message) -> bytes:
    """The header of a message as both ends of its edge hash it: msgpack, as it crossed."""
    return bytes(msgpack.packb(dict(message.header), use_bin_type=True))


async def measure(peer: Peer, log: EdgeLog) -> None:
    """Ping along an edge until cancelled: a few times at once, then now and then."""
    log.link = peer.edge
    log.see(format_address(peer.address), secrets.token_bytes(32))
    with contextlib.suppress(PeerError):
        for count in range(1 << 30):
            log.ping((await peer.ping(1)).min_us)
            if count >= PINGS_AT_OPEN - 1:
                await asyncio.sleep(PING_EVERY_S)


class StageAccount:
    """One epoch of one run at one stage. Raises ReceiptError where a peer's part does not fit the order."""

    def __init__(self, notary: Notary, opening: OpenRun, earlier: StageAccount | None) -> None:
        assert opening.record is not None and notary.hardware is not None
        opened = opening_untrusted(opening.record)
        self.notary = notary
        self.rows: RunRows | None = None
        if earlier is not None:
            earlier.finish()
        if notary.rows is not None:
            salts = opened.salt_leaves(notary.author.id)
            self.rows = notary.rows.begin(opened.order_digest, opened.epoch, salts, int(time.time()))
        self.record: StageRecord = StageRecord(
            notary.author,
            opened,
            manifest=notary.manifest,
            executor=notary.hasher,
            keep_inbound=self.rows.inbound if self.rows is not None else None,
            keep_outbound=self.rows.outbound if self.rows is not None else None,
            earlier=earlier.record if earlier is not None else None,
            disclose=notary.disclose,
        )
        self.settled = asyncio.Event()
        self.accepted = self.record.accept(
            dict(opening.record),
            nonce=secrets.token_bytes(32),
            time_us=unix_us(),
            weights=notary.weights(self.record.part.first, self.record.part.last),
            software=notary.software,
            hardware=notary.hardware,
            secrets=notary.private,
        )

    def took(self, seq: int, message: Message) -> None:
        """A frame came in."""
        self.record.inbound.frame(seq, head_bytes(message), message.body)

    def gave(self, seq: int, message: Message) -> None:
        """A frame or an answer goes out."""
        self.record.outbound.frame(seq, head_bytes(message), message.body)

    def computed(self, frame: Frame, out: Frame | Answer | None, scratch: int, compute_us: int) -> None:
        """A frame was computed; at the tail `out` says what was drawn after its wanted rows."""
        rows = frame.rows
        self.record.computed(len(rows), int(rows.position.min()), int(rows.position.max()) + 1, compute_us)
        tail = self.record.tail
        if tail is None or not isinstance(out, Answer):
            return
        self.commit(frame.commits)
        now_us = time.monotonic_ns() // 1000
        drawn = {int(row): index for index, row in enumerate(out.row)}
        for row in range(len(rows)):
            slot = int(rows.slot[row])
            index = drawn.get(row)
            if index is not None:
                position = int(rows.position[row]) + 1
                where = slot if slot < scratch else None
                tail.answered(position, int(out.token[index]), float(out.margin[index]), where, now_us)
            elif slot < scratch:
                tail.unanswered(slot)

    def commit(self, commits: Commits) -> None:
        """Commits that no frame carries any more come with the closing."""
        if self.record.tail is not None:
            for slot, position in zip(commits.slot, commits.position, strict=True):
                self.record.tail.committed(int(slot), int(position))

    def closing(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """The run ends: this end's half of the inbound edge, for the stage before."""
        return self.record.closing_untrusted(header)

    def settle(self, reply: Mapping[str, Any]) -> None:
        """The other end's half of the outbound edge came."""
        self.record.closed_untrusted(reply)
        self.settled.set()

    async def collect(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Sign this stage's edges and end, once all that crossed is hashed."""
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await self.settled.wait()
        await asyncio.get_running_loop().run_in_executor(self.notary.hasher, _nothing)
        collected = self.record.collect(dict(header))
        self.finish()
        return collected

    def finish(self) -> None:
        """Nothing more is kept; kept rows can be opened from now on."""
        if self.rows is not None:
            self.notary.hasher.submit(self.rows.close)
            self.rows = None


def _nothing() -> None:
    """Runs after all that was submitted before it."""


__all__ = ["ReceiptError", "StageAccount", "head_bytes", "measure"]
