"""The requester's own ends of a private run: it computes the first and the last layers, so no node sees token ids.

What nodes see are hidden rows from inside the model. The frames are the same, and so are slots and commits: the two
ends are stages like any other, only that nobody has to dial them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

import numpy as np
import torch

from receipts import OwnLog
from swarm.base.errors import ModelError, PeerError
from swarm.model.held import Matcher
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor, fits
from swarm.ring.drawing import Drawing
from swarm.ring.frame import Answer, Frame, answer_of
from swarm.ring.kept_rows import SentRows, SlotTokens
from swarm.ring.receipt_log import note_answer

if TYPE_CHECKING:
    from swarm.model.block import Block

POOL_BYTES = 1 << 40
Given = TypeVarTuple("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class PrivateBlocks:
    """Layers [0, K) and [n - K, n) on this machine."""

    head: Block
    tail: Block


MOST_SHELVED = 2
"""Numbers of private layers whose weights stay loaded: each holds that part of the model."""


class PrivateLayers(Protocol):
    """Where a requester has its own ends of the model from."""

    async def get(self, count: int) -> PrivateBlocks:
        """The blocks of `count` layers at either end. Raises UsageError, ModelError."""


class PrivateShelf:
    """Private layers by their number, from `source`: each loaded once, those not asked for longest go.

    Runs hold what they use; an entry that goes is freed with the last of them.
    """

    def __init__(self, source: PrivateLayers) -> None:
        self._source = source
        self._kept: dict[int, PrivateBlocks] = {}
        self._loading = asyncio.Lock()

    async def get(self, count: int) -> PrivateBlocks:
        """The blocks of that many layers at either end. Raises what `source` raises, and keeps nothing then."""
        async with self._loading:
            found = self._kept.pop(count, None) or await self._source.get(count)
            self._kept[count] = found
            while len(self._kept) > MOST_SHELVED:
                del self._kept[next(iter(self._kept))]
            return found


class PrivateEnds:
    """The two ends of one run. `outward` before a frame leaves, `homeward` when its hidden rows come back.

    One thread computes both, so frames and answers stay in order.
    """

    def __init__(
        self, blocks: PrivateBlocks, layout: Layout, sampling: Sampling, wire: str, held_to: Matcher | None = None
    ) -> None:
        self._held_to = held_to
        self._blocks, self._layout, self._sampling, self._wire = blocks, layout, sampling, wire
        head, tail = blocks.head, blocks.tail
        self._head_kv = KVPool(head, POOL_BYTES).open(layout, head.first, head.last)
        self._tail_kv = KVPool(tail, POOL_BYTES).open(layout, tail.first, tail.last)
        self.sent = SentRows(layout, head.hidden_size, head.dtype)
        self._tokens = SlotTokens(layout)
        self._thread = ThreadPoolExecutor(1, "private")
        self._flying: deque[Frame] = deque()
        self.log: OwnLog | None = None
        """Where this epoch's work is counted for the receipt."""

    async def outward(self, frame: Frame) -> Frame:
        """The frame as nodes see it: hidden rows, and no token ids."""
        self._flying.append(frame)
        log, rows = self.log, frame.rows
        hidden, us = await asyncio.get_running_loop().run_in_executor(self._thread, _timed, self._outward, frame)
        if log is not None:
            log.computed(len(rows), int(rows.position.min()), int(rows.position.max()) + 1, us)
        return hidden

    def homeward(self, answer: Answer, done: Callable[[Answer], None], failed: Callable[[str], None]) -> None:
        """Compute the last layers and draw; `done` gets the answer in the event loop, `failed` what is wrong with it.

        Raises PeerError when it is to no frame in flight.
        """
        while self._flying and self._flying[0].seq < answer.seq:
            self._flying.popleft()
        if not self._flying or self._flying[0].seq != answer.seq or answer.hidden is None:
            raise PeerError("expected the hidden rows of a frame in flight, found another answer")
        if len(answer.row) or answer.drafts is not None:
            raise PeerError("expected hidden rows alone from the stage before the layers kept here, found tokens too")
        if (wire := answer.hidden[0].get("wire")) != self._wire:
            raise PeerError(f"expected hidden rows as {self._wire}, found {str(wire)[:40]!r}")
        frame, log = self._flying.popleft(), self.log
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, _timed, self._homeward, frame, answer)

        def take(found: asyncio.Future[tuple[Answer, int]]) -> None:
            if found.cancelled():
                return
            if isinstance(found.exception(), PeerError):
                failed(str(found.exception()))
                return
            drawn, us = found.result()
            if log is not None:
                log.drew(us)
                note_answer(log.tail, frame, drawn, self._layout.scratch)
            done(drawn)

        future.add_done_callback(take)

    def restart(self) -> None:
        """All in flight is lost."""
        self._flying.clear()

    def close(self) -> None:
        """Free the memory once what is being computed is done."""
        self._thread.submit(self._head_kv.close)
        self._thread.submit(self._tail_kv.close)
        self._thread.shutdown(wait=False)

    def _outward(self, frame: Frame) -> Frame:
        self.sent.commit(frame.commits)
        output = self._blocks.head.forward([Job(self._head_kv, frame.commits, frame.rows, None)])[0]
        if not torch.isfinite(output).all() or not fits(output, self._wire):
            raise ModelError(
                f"expected finite hidden rows from the layers kept here, found others as {self._wire}: "
                "take --wire float32, or fewer private layers"
            )
        self.sent.write(frame.rows, output)
        hidden = encode_tensor(output, self._wire)
        rows = replace(frame.rows, token=np.full(len(frame.rows), -1, np.int32))
        return replace(frame, rows=rows, hidden=hidden)

    def _homeward(self, frame: Frame, answer: Answer) -> Answer:
        tail = self._blocks.tail
        assert answer.hidden is not None
        hidden = decode_tensor_untrusted(*answer.hidden, tail.dtype)
        if hidden.shape != (len(frame.rows), tail.hidden_size) or not torch.isfinite(hidden).all():
            raise PeerError("expected one finite hidden row for every row of a frame, found others")
        self._tokens.commit(frame.commits)
        self._tokens.write(frame.rows)
        logits = tail.forward([Job(self._tail_kv, frame.commits, frame.rows, hidden)])[0]
        wanted = np.flatnonzero(frame.rows.want)
        positions = [int(p) + 1 for p in frame.rows.position[wanted]]
        drawing = Drawing(self._sampling, self._tokens, self._held_to)
        picked = drawing.pick(logits, positions, frame.rows) if len(wanted) else []
        return replace(answer_of(frame, wanted, picked, answer.timings), epoch=answer.epoch)


def _timed(work: Callable[[*Given], Found], *given: *Given) -> tuple[Found, int]:
    """What a piece of work gives, and how long it took in microseconds."""
    start = time.perf_counter_ns()
    found = work(*given)
    return found, (time.perf_counter_ns() - start) // 1000
