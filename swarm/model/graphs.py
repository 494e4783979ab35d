"""A block's forward as CUDA graphs.

At one to a few dozen rows a GPU spends more time being told what to do than doing it; a captured graph tells it once.
A graph needs fixed shapes and addresses, so a frame of one session is padded to a bucket of rows (the extra rows write
to the session's spare slot, see one slot and are thrown away), attention reads a bucket of slots from the first
scratch slot on, and all that describes a frame is one vector of numbers that is filled before each replay: slots,
positions and what each row may see as bits, which the graph makes masks of.

Addresses of keys and values are part of a graph. They are those of a seat (see `kvcache`), which serves one session
after the other, so a graph outlives the session that it was captured for. A shape is captured when it has come a few
times: a capture computes the frame that it is made with, so it costs telling the device everything once more, but most
shapes of a prompt come once.

What does not fit (several sessions in a forward, large frames, recurrent layers) runs eagerly, and so does what cannot
be captured: some architectures decide on the CPU what the GPU does next.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from swarm.base.events import Notice, Report, silent
from swarm.model.block import Block, Job
from swarm.model.capturing import CaptureTrust, can_capture
from swarm.model.gpu import Graph, GraphPool, entered, first_line, out_of_memory
from swarm.model.kvcache import Seat, SessionKV
from swarm.model.masks import Span, note_positions, within
from swarm.model.rows import MAX_SCRATCH, Rows, no_commits
from swarm.model.tiles.sight import DeviceSight, check_paths

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
LEAST_KEYS = 256
"""Slots that attention reads at least; above, steps of a quarter of the power of two below: a text of 4,096 tokens
meets 12 sizes, and a fifth of what is read is for nothing at most."""
CAPTURED_AT = 3
"""Uses of a shape after which it is captured."""
MOST_GRAPHS = 96
MOST_SHAPES = 1024
"""Graphs held at once, and shapes of which uses are counted; the one used longest ago goes."""
MOST_VIEWS = 8
"""Ranges of layers of which graphs are kept; who asks for ranges are peers."""
LEAST_FREE = 256 << 20
"""Bytes of the device below which nothing more is captured."""
_BITS = MAX_SCRATCH // 8


def graphed(block: Block, report: Report = silent) -> Block:
    """The block with captured forwards where its device can; the block itself elsewhere."""
    if block.gpu is None or not can_capture(block.loaded.model, block.gpu, block.dtype):
        return block
    return GraphedBlock(block, Graphs(GraphPool(block.gpu), report))


def key_bucket(slots: int) -> int:
    """Slots that are read for a frame that sees so many."""
    step = max(LEAST_KEYS, (1 << max(0, (slots - 1).bit_length() - 1)) // 4)
    return -(-slots // step) * step


class FramePlan:
    """A plan (see swarm.model.attention) of fixed shapes: `rows` rows that read slots [0, high) of a seat.

    frame int32: slots, positions and prefixes [rows] each, token ids [rows], the number of scratch slots, the position
    in each of them [MAX_SCRATCH], and the scratch slots that each row sees as bits [rows, MAX_SCRATCH / 8] bytes.
    """

    start = low = 0

    def __init__(self, kv: SessionKV, rows: int, high: int, device: torch.device, dtype: torch.dtype) -> None:
        self.kv, self.seat, self.rows, self.high = kv, kv.seat, rows, high
        self.device, self.dtype = device, dtype
        self.frame = torch.zeros(4 * rows + 1 + MAX_SCRATCH + rows * _BITS // 4, dtype=torch.int32, device=device)
        self._made: dict[tuple[Span, int], torch.Tensor] = {}
        self._seen: torch.Tensor | None = None
        self._write: torch.Tensor | None = None

    @property
    def stop(self) -> int:
        return self.rows

    @property
    def write(self) -> torch.Tensor:
        """int64 [rows]; every layer asks for it."""
        if self._write is None:
            self._write = self._part(0).long()
        return self._write

    @property
    def position(self) -> torch.Tensor:
        """int64 [rows]."""
        return self._part(1).long()

    @property
    def token(self) -> torch.Tensor:
        """int64 [rows]."""
        return self._part(3).long()

    def _part(self, index: int) -> torch.Tensor:
        return self.frame[index * self.rows : (index + 1) * self.rows]

    def forget(self) -> None:
        """Let go of what one forward made: in a capture it lies in the graph's memory."""
        self._made, self._seen, self._write = {}, None, None

    def mask(self, span: Span, groups: int) -> torch.Tensor:
        """Additive mask [groups * rows, high], made on the device once a forward for each kind of layer."""
        if (span, groups) not in self._made:
            seen = self._visible() if self._seen is None else self._seen
            self._seen = seen
            if span is not None:
                seen = seen & within(span, self._part(1)[:, None], self._places()[None])
            zero = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            self._made[span, groups] = zero.masked_fill_(~seen, float("-inf")).repeat(groups, 1)
        return self._made[span, groups]

    def sight(self) -> DeviceSight:
        """What the rows see, as it lies in the frame."""
        bits = self.frame[4 * self.rows + 1 + MAX_SCRATCH :].view(torch.uint8).view(self.rows, _BITS)
        place = self.frame[4 * self.rows + 1 :][:MAX_SCRATCH]
        scratch = self.frame[4 * self.rows : 4 * self.rows + 1]
        return DeviceSight(self._part(1), self._part(2), scratch, place, bits, MAX_SCRATCH)

    def _visible(self) -> torch.Tensor:
        """bool [rows, high]: what the rows see, however far back."""
        rows, bits = self.rows, self.frame[4 * self.rows + 1 + MAX_SCRATCH :].view(torch.uint8)
        weights = torch.arange(8, dtype=torch.uint8, device=self.device)
        drafts = (bits.view(rows, _BITS, 1) >> weights & 1).view(rows, MAX_SCRATCH)[:, : self.high]
        drafts = torch.nn.functional.pad(drafts, (0, self.high - drafts.shape[1])).bool()
        place = torch.arange(self.high, dtype=torch.int32, device=self.device) - self._scratch()
        return torch.where(place < 0, drafts, place < self._part(2)[:, None])

    def _places(self) -> torch.Tensor:
        """int32 [high]: the position that lies in each slot."""
        place = torch.arange(self.high, dtype=torch.int32, device=self.device) - self._scratch()
        scratch = self.frame[4 * self.rows + 1 :][: min(MAX_SCRATCH, self.high)]
        scratch = torch.nn.functional.pad(scratch, (0, self.high - scratch.shape[0]))
        return torch.where(place < 0, scratch, place)

    def _scratch(self) -> torch.Tensor:
        return self.frame[4 * self.rows]

    def describe(self, rows: Rows, kv: SessionKV) -> torch.Tensor:
        """The vector of a frame, on the host. Rows beyond it see one slot and write to the spare one."""
        n, scratch = len(rows), kv.layout.scratch
        numbers = np.zeros(len(self.frame), np.int32)
        table = numbers[: 4 * self.rows].reshape(4, self.rows)
        table[0] = self.seat.slots
        table[1] = kv.position[0] if scratch else 0
        table[2] = 0 if scratch else 1
        table[:, :n] = rows.slot, rows.position, rows.prefix, rows.token
        numbers[4 * self.rows] = scratch
        numbers[4 * self.rows + 1 :][:scratch] = kv.position
        bits = numbers[4 * self.rows + 1 + MAX_SCRATCH :].view(np.uint8).reshape(self.rows, _BITS)
        bits[n:, 0] = 1
        bits[:n, : scratch // 8] = rows.ancestors
        return torch.from_numpy(numbers)


@dataclass
class Shape:
    """One shape of frame over one seat: how often it came, and the graph once there is one."""

    uses: int = 0
    plan: FramePlan | None = None
    hidden: torch.Tensor | None = None
    out: torch.Tensor | None = None
    graph: Graph | None = None


@dataclass
class Graphs:
    """What the views of one block share: the graphs' memory, what was captured in it, and whether to go on."""

    pool: GraphPool
    report: Report = silent
    trust: CaptureTrust = field(default_factory=CaptureTrust)
    shapes: OrderedDict[tuple[int, int, Seat, int, int], Shape] = field(default_factory=OrderedDict)

    def shape(self, key: tuple[int, int, Seat, int, int]) -> Shape:
        """The shape of a key, which is now the one used last."""
        if key not in self.shapes:
            for gone in [other for other in self.shapes if other[2].gone]:
                del self.shapes[gone]
            self.shapes[key] = Shape()
            if len(self.shapes) > MOST_SHAPES:
                self.shapes.popitem(last=False)
        self.shapes.move_to_end(key)
        return self.shapes[key]

    def worked(self) -> None:
        """A capture was made."""
        self.trust.worked()
        held = [key for key, shape in self.shapes.items() if shape.graph is not None]
        for key in held[: max(0, len(held) - MOST_GRAPHS)]:
            del self.shapes[key]

    def failed(self, error: Exception) -> None:
        """A capture failed: go on without, for now or for good."""
        first = self.trust.failures == 0
        self.trust.failed(time.monotonic(), error)
        if out_of_memory(error):
            for _ in range(len(self.shapes) // 2):
                self.shapes.popitem(last=False)
        if self.trust.given_up:
            self.shapes.clear()
            self.report(Notice(f"running without CUDA graphs, which this model does not allow: {first_line(error)}"))
        elif first:
            self.report(Notice(f"running without new CUDA graphs for now: {first_line(error)}", "warning"))

    def may(self) -> bool:
        """Whether to capture now."""
        if not self.trust.may(time.monotonic()):
            return False
        gpu = self.pool.gpu
        left = gpu.cuda.free_bytes(gpu.device)
        if left < LEAST_FREE:
            self.failed(torch.OutOfMemoryError(f"{left >> 20} MiB of the device are free, out of memory for graphs"))
            return False
        return True


class GraphedBlock(Block):
    """A block whose small single-session forwards are graphs: the same bits where its rows are exact, else the same
    results up to rounding."""

    def __init__(self, block: Block, graphs: Graphs) -> None:
        super().__init__(block.loaded, block.device, block.dtype, graphs.pool.gpu)
        self.why_not_exact, self._order = block.why_not_exact, block._order
        self._graphs = graphs
        self._views: OrderedDict[tuple[int, int], GraphedBlock] = OrderedDict()

    def view(self, first: int, last: int) -> Block:
        if (first, last) == (self.first, self.last):
            return self
        if (first, last) not in self._views:
            self._views[first, last] = GraphedBlock(super().view(first, last), self._graphs)
            if len(self._views) > MOST_VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end((first, last))
        return self._views[first, last]

    @torch.inference_mode()
    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        job = jobs[0]
        on_the_host = job.kv.recurrent or job.kv.indexed or self.by_token or self._attending.cache is not None
        if len(jobs) != 1 or len(job.rows) > ROW_BUCKETS[-1] or on_the_host or self._graphs.trust.given_up:
            return super().forward(jobs)
        with entered(self.gpu):
            job.kv.prepare()
            shape, rows, high = self._shape(job)
            shape.uses += 1
            if shape.graph is None and (shape.uses < CAPTURED_AT or not self._graphs.may()):
                return super().forward(jobs)
            job.kv.commit(job.commits)
            out = self._replayed(shape, job) if shape.graph is not None else self._captured(shape, job, rows, high)
            if out is None:
                return super().forward([replace(job, commits=no_commits())])
            if not self.tail:
                return [out[: len(job.rows)].clone()]  # the next replay overwrites the buffer
            assert self.gpu is not None
            keep = torch.from_numpy(np.flatnonzero(job.rows.want))
            return [out[self.gpu.to_device(keep, torch.long)].float()]

    def _shape(self, job: Job) -> tuple[Shape, int, int]:
        """The shape of a frame, its rows and the slots that it reads."""
        rows = next(size for size in ROW_BUCKETS if size >= len(job.rows))
        used = job.kv.layout.scratch + max(1, int(job.rows.prefix.max()))
        high = min(key_bucket(used), job.kv.seat.slots)
        return self._graphs.shape((self.first, self.last, job.kv.seat, rows, high)), rows, high

    def _replayed(self, shape: Shape, job: Job) -> torch.Tensor | None:
        self._fill(shape, job)
        assert shape.graph is not None
        shape.graph.replay()
        return shape.out

    def _captured(self, shape: Shape, job: Job, rows: int, high: int) -> torch.Tensor | None:
        """Compute a frame and capture how; None where it was not computed."""
        try:
            shape.plan = FramePlan(job.kv, rows, high, self.device, self.dtype)
            if not self.head:
                shape.hidden = torch.zeros(rows, self.hidden_size, dtype=self.dtype, device=self.device)
            self._fill(shape, job)
        except torch.OutOfMemoryError as error:
            self._graphs.failed(error)
            return None
        attempt = self._graphs.pool.capture(lambda: self._run(shape))
        if attempt.error is not None:
            shape.plan = shape.hidden = None
            self._graphs.failed(attempt.error)
        else:
            shape.graph, shape.out = attempt.graph, attempt.out
            self._graphs.worked()
        return attempt.value

    def _fill(self, shape: Shape, job: Job) -> None:
        plan, n = shape.plan, len(job.rows)
        assert plan is not None and self.gpu is not None
        plan.kv = job.kv
        note_positions(job.rows, job.kv)
        if self._attending.tiles is not None:
            check_paths(job.rows, job.kv.position)
        self._send(plan.describe(job.rows, job.kv), plan.frame)
        if shape.hidden is None:
            return
        if job.hidden is None:
            raise ValueError("a stage behind the head needs hidden rows")
        shape.hidden[:n].copy_(job.hidden)

    def _send(self, numbers: torch.Tensor, to: torch.Tensor) -> None:
        assert self.gpu is not None
        staged = self.gpu.cuda.pinned(tuple(numbers.shape), numbers.dtype)
        to.copy_(staged.copy_(numbers), non_blocking=True)

    def _run(self, shape: Shape) -> torch.Tensor:
        """The forward over the buffers: [rows, hidden_size], or logits [rows, vocab_size] at the tail."""
        plan = shape.plan
        assert plan is not None
        try:
            return self.compute([plan], plan.token if self.head else shape.hidden, plan.position)  # type: ignore[arg-type]
        finally:
            plan.forget()
