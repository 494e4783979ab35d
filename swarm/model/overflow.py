"""A block on several devices: the first layers where it is fast, the last ones where there is room.

A GPU that holds most of a range can leave the rest of it to another GPU, or to spare RAM beside it for the price of the
CPU's speed on those layers. `SplitBlock` and `SplitPool` look like a `Block` and a `KVPool` to a stage: keys and values
lie with their layers, hidden rows cross once per device and forward, and what a view covers of one device alone is an
ordinary block. Each is a pair; of three devices the second half is a pair again (`joined`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swarm.model.block import Block, Job
from swarm.model.gpu import Clock, Gpu
from swarm.model.kvcache import KVPool, KVShape, SessionKV
from swarm.model.linear.store import Store
from swarm.model.rows import Commits, Layout
from swarm.model.weights_as import PACKED


class SplitKV(SessionKV):
    """Keys and values of one session on both halves' devices."""

    def __init__(self, front: SessionKV, back: SessionKV) -> None:
        self.front, self.back = front, back
        self.layout, self.position = front.layout, front.position
        self.first, self.last = front.first, back.last
        self.nbytes = front.nbytes + back.nbytes

    def prepare(self) -> None:
        self.front.prepare()
        self.back.prepare()

    @property
    def recurrent(self) -> bool:
        return self.front.recurrent or self.back.recurrent

    @property
    def indexed(self) -> bool:
        return self.front.indexed or self.back.indexed

    def begin_from(self, other: SessionKV, keep: int) -> bool:
        if not isinstance(other, SplitKV) or keep < other.floor:
            return False
        # The front is the one that may have no memory yet; if it takes over, so does the back.
        return self.front.begin_from(other.front, keep) and self.back.begin_from(other.back, keep)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.front if layer < self.front.last else self.back).layer(layer)

    def index(self, layer: int) -> torch.Tensor:
        return (self.front if layer < self.front.last else self.back).index(layer)

    @property
    def floor(self) -> int:
        return max(self.front.floor, self.back.floor)

    def has_index(self, layer: int) -> bool:
        return (self.front if layer < self.front.last else self.back).has_index(layer)

    def states(self, layer: int) -> tuple[Store, ...]:
        return (self.front if layer < self.front.last else self.back).states(layer)

    def commit(self, commits: Commits) -> None:
        self.front.commit(commits)
        self.back.commit(commits)

    def close(self) -> None:
        self.front.close()
        self.back.close()

    @property
    def closed(self) -> bool:
        return self.front.closed


class SplitPool:
    """The key/value memory of a split block: each device has its own budget, and a session needs room in all."""

    first: int
    last: int

    def __init__(self, front: KVPool, back: AnyPool) -> None:
        self.front, self.back = front, back
        self.first, self._cut, self.last = front.block.first, front.block.last, back.last

    @property
    def budget_bytes(self) -> int:
        """Of all devices."""
        return self.front.budget_bytes + self.back.budget_bytes

    @property
    def used_bytes(self) -> int:
        """Of all devices."""
        return self.front.used_bytes + self.back.used_bytes

    @property
    def free_bytes(self) -> int:
        """What sessions over the whole block may still take: the narrower device bounds them."""
        front, back = self._cut - self.first, self.last - self._cut
        whole = front + back
        return min(self.front.free_bytes * whole // front, self.back.free_bytes * whole // back)

    def session_bytes(self, layout: Layout, first: int, last: int) -> int:
        """Bytes that a session over layers [first, last) takes."""
        return sum(pool.session_bytes(layout, a, b) for pool, a, b in self._parts(first, last))

    def open(self, layout: Layout, first: int, last: int) -> SessionKV:
        """A session over layers [first, last). Raises BusyError when a device has no room for its part."""
        opened: list[SessionKV] = []
        try:
            for pool, a, b in self._parts(first, last):
                opened.append(pool.open(layout, a, b))
        except BaseException:
            for kv in opened:
                kv.close()
            raise
        return opened[0] if len(opened) == 1 else SplitKV(opened[0], opened[1])

    def _parts(self, first: int, last: int) -> list[tuple[AnyPool, int, int]]:
        parts: list[tuple[AnyPool, int, int]] = [
            (self.front, first, min(last, self._cut)),
            (self.back, max(first, self._cut), last),
        ]
        return [(pool, a, b) for pool, a, b in parts if a < b]


class SplitBlock:
    """Layers [front.first, back.last): `front` computes, then `back` goes on where it ended. Same dtype, same model."""

    first: int
    last: int
    n_layers: int
    head: bool
    tail: bool
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    gpu: Gpu | None
    gpu_out: Gpu | None
    computes_in: str

    def __init__(self, front: Block, back: AnyBlock) -> None:
        if front.last != back.first or front.dtype != back.dtype:
            raise ValueError(f"{front.last} and {back.first}, {front.dtype} and {back.dtype} do not join")
        self.front, self.back = front, back
        self.first, self.last, self.n_layers = front.first, back.last, front.n_layers
        self.head, self.tail = front.head, back.tail
        self.hidden_size, self.vocab_size = front.hidden_size, back.vocab_size
        self.device, self.dtype = front.device, front.dtype
        self.ties, self.by_token = front.ties, front.by_token
        self.gpu, self.gpu_out = front.gpu, back.gpu_out
        self.computes_in = PACKED if PACKED in (front.computes_in, back.computes_in) else front.computes_in

    @property
    def why_not_exact(self) -> str | None:
        """As `Block.why_not_exact`, of whichever half has a reason."""
        return self.front.why_not_exact or self.back.why_not_exact

    @property
    def kv_shapes(self) -> Sequence[KVShape]:
        """Of all layers, in order."""
        return [*self.front.kv_shapes, *self.back.kv_shapes]

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Of all devices."""
        return (*self.front.gpus, *self.back.gpus)

    def taps(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """None: rows on a GPU are not looked at on the way."""
        return ()

    def view(self, first: int, last: int) -> AnyBlock:
        """Layers [first, last), sharing weights. Raises ValueError if the block does not hold them."""
        cut = self.front.last
        if last <= cut:
            return self.front.view(first, last)
        if first >= cut:
            return self.back.view(first, last)
        return SplitBlock(self.front.view(first, cut), self.back.view(cut, last))

    def clock(self) -> Clock:
        """A clock that is started. Where the last device has none of its own it is the wall's: that device takes what
        the one before gave when that is done."""
        return self.back.clock()

    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """As `Block.forward`, for sessions of a `SplitPool`."""
        halves = [_halves(job) for job in jobs]
        hidden = self.front.forward([front for front, _ in halves])
        return self.back.forward(
            [Job(back.kv, back.commits, back.rows, rows) for (_, back), rows in zip(halves, hidden, strict=True)]
        )


AnyBlock = Block | SplitBlock
AnyPool = KVPool | SplitPool


def joined(parts: Sequence[tuple[Block, KVPool]]) -> tuple[AnyBlock, AnyPool]:
    """One block and its memory from consecutive ones on devices of their own."""
    block: AnyBlock
    pool: AnyPool
    block, pool = parts[-1]
    for front, memory in reversed(parts[:-1]):
        block, pool = SplitBlock(front, block), SplitPool(memory, pool)
    return block, pool


def _halves(job: Job) -> tuple[Job, Job]:
    kv = job.kv
    if not isinstance(kv, SplitKV):
        raise ValueError("a block on several devices needs sessions of its own pool")
    return Job(kv.front, job.commits, job.rows, job.hidden), Job(kv.back, job.commits, job.rows, None)
