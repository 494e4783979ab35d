"""A stage's account of one run: what crossed its two edges, what it drew, and the statements that say so."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from receipts import EdgeLog, ReceiptError, StageRecord, TailLog, opening_untrusted
from receipts.record.rows import Before, RunRows
from swarm.base.address import format_address
from swarm.base.errors import PeerError
from swarm.model.rows import Commits
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.ring.frame import Answer, Frame, filled
from swarm.ring.opening import OpenRun
from swarm.ring.order_check import check_order
from swarm.ring.signer import ReceiptSigner, unix_us

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


def note_commits(tail: TailLog, commits: Commits) -> None:
    """Scratch rows became committed positions, so what was drawn after them is kept."""
    for slot, position in zip(commits.slot, commits.position, strict=True):
        tail.committed(int(slot), int(position))


def note_answer(tail: TailLog, frame: Frame, answer: Answer, scratch: int) -> None:
    """What was drawn after the wanted rows of a frame."""
    note_commits(tail, frame.commits)
    rows, now_us = frame.rows, time.monotonic_ns() // 1000
    drawn = {int(row): index for index, row in enumerate(answer.row)}
    for row in range(len(rows)):
        slot = int(rows.slot[row])
        index = drawn.get(row)
        if index is not None:
            position = int(rows.position[row]) + 1
            where = slot if slot < scratch else None
            tail.answered(position, int(answer.token[index]), float(answer.margin[index]), where, now_us)
        elif slot < scratch:
            tail.unanswered(slot)


@dataclass(frozen=True)
class Past:
    """Frames that came in during one epoch of one run, and what they filled.

    reach   after each frame: committed positions [0, reach) are filled
    begun   what that epoch itself began from
    """

    order: str
    epoch: int
    reach: Sequence[int]
    begun: tuple[Before, ...]

    def before(self, kept: int) -> tuple[Before, ...]:
        """What filled positions [0, kept), oldest first; nothing when these frames do not reach that far."""
        if self.begun and kept <= self.begun[-1].kept:
            return self.begun
        frames = bisect_left(self.reach, kept) + 1
        here = () if frames > len(self.reach) else (Before(self.order, self.epoch, frames, kept),)
        return (*self.begun, *here) if here else ()


class StageAccount:
    """One epoch of one run at one stage. Raises ReceiptError where a peer's part does not fit the order.

    dtype    what this stage computes in
    earlier  this stage's account of the epoch before
    past     where its keys and values of positions [0, opening.keep) came from; None: it begins with none
    fingerprint  of the kernels that this stage computes with; None: not measured
    """

    def __init__(
        self,
        notary: ReceiptSigner,
        opening: OpenRun,
        dtype: str,
        earlier: StageAccount | None,
        past: Past | None = None,
        fingerprint: str | None = None,
    ) -> None:
        assert opening.record is not None and notary.hardware is not None
        opened = opening_untrusted(opening.record)
        check_order(opened, opening, dtype, notary.context)
        notary.orders.take(opened.order_digest, opened.epoch, opening.run)
        self.notary = notary
        self._earlier = earlier
        self.rows: RunRows | None = None
        self._scratch = opening.layout.scratch
        self._reach: list[int] = []
        self._begun = False
        self._held = opening.keep if past is not None else 0
        begun = past.before(opening.keep) if past is not None else ()
        self.past = Past(opened.order_digest, opened.epoch, self._reach, begun)
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
            frames=self.rows,
            earlier=earlier.record if earlier is not None else None,
            disclose=notary.disclose,
        )
        self.settled = asyncio.Event()
        try:
            self.accepted = self.record.accept(
                dict(opening.record),
                nonce=secrets.token_bytes(32),
                time_us=unix_us(),
                weights=notary.weights(self.record.part.first, self.record.part.last),
                software=notary.software,
                hardware=notary.hardware,
                secrets=notary.private,
                fingerprint=fingerprint,
            )
        except BaseException:
            self.finish()  # what was opened for keeping rows
            raise

    def took(self, frame: Frame, message: Message) -> None:
        """A frame came in."""
        self._held = filled(self._held, frame, self._scratch)
        self._reach.append(self._held)
        self.record.inbound.frame(frame.seq, head_bytes(message), message.body)

    def gave(self, seq: int, message: Message) -> None:
        """A frame or an answer goes out."""
        self.record.outbound.frame(seq, head_bytes(message), message.body)

    def computed(self, frame: Frame, out: Frame | Answer | None, scratch: int, compute_us: int) -> None:
        """A frame was computed; at the tail `out` says what was drawn after its wanted rows.

        Raises PeerError where the first of that is not the token that the order, or this epoch's plan, begins with.
        """
        rows = frame.rows
        self.record.computed(len(rows), int(rows.position.min()), int(rows.position.max()) + 1, compute_us)
        if self.record.tail is not None and isinstance(out, Answer):
            if len(out.row):
                self._check_begins(int(rows.position[out.row].min()) + 1)
            note_answer(self.record.tail, frame, out, scratch)

    def _check_begins(self, position: int) -> None:
        """The prompt is as long as was signed: nothing is drawn within it, and the token behind it first."""
        first = self.record.opening.first_position
        if position < first or (not self._begun and position > first):
            raise PeerError(
                f"the signed order differs from the ring in its prompt's length: tokens begin at position {first}, and "
                f"one was asked for at {position}"
            )
        self._begun = True

    def commit(self, commits: Commits) -> None:
        """Commits that no frame carries any more come with the closing."""
        if self.record.tail is not None:
            note_commits(self.record.tail, commits)

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
        # It runs after all that was handed over before it: by then everything is hashed and kept.
        self._flush()
        await asyncio.get_running_loop().run_in_executor(self.notary.hasher, self._begin)
        collected = self.record.collect(dict(header))
        self.finish()
        return collected

    def _begin(self) -> None:
        """In the hashing thread: say what each epoch began from, as far as it can be opened."""
        if self._earlier is not None:
            self._earlier._begin()
        if self.notary.rows is not None and self.past.begun:
            self.record.history = self.notary.rows.link(self.past.order, self.past.epoch, self.past.begun)

    def _flush(self) -> None:
        self.record.inbound.flush()
        self.record.outbound.flush()

    def finish(self) -> None:
        """Nothing more is kept; kept rows can be opened from now on."""
        self._flush()
        if self.rows is not None:
            self.notary.hasher.submit(self.rows.close)
            self.rows = None


__all__ = ["ReceiptError", "StageAccount", "head_bytes", "measure"]
