"""A block's forward as CUDA graphs.

At one to a few dozen rows a GPU spends more time being told what to do than doing it; a captured graph tells it once.
A graph needs fixed shapes and addresses, so a frame of one session is padded to a bucket of rows (the extra rows write
to the session's spare slot, see one slot and are thrown away), attention reads a bucket of slots from the first
scratch slot on, and ids, positions, slots and masks live in buffers that are filled before each replay. Addresses of a
session's keys and values are part of a graph, so graphs belong to a session and go with it.

What does not fit (several sessions in a forward, large frames) runs eagerly, and so does everything once a capture
has failed: some architectures decide on the CPU what the GPU does next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from swarm.base.events import Notice, Report, silent
from swarm.model.attention import note_positions, visible_slots
from swarm.model.block import Block, Job
from swarm.model.kvcache import SessionKV
from swarm.model.load import Loaded
from swarm.model.masks import Span
from swarm.model.rows import Rows

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
KEY_BUCKET = 256
"""Committed slots that attention reads are rounded up to this; a longer text means a new graph this seldom."""


def graphed(block: Block, report: Report = silent) -> Block:
    """The block with captured forwards where its device can; the block itself elsewhere."""
    if block.device.type != "cuda":
        return block
    return GraphedBlock(block.loaded, block.device, block.dtype, report)


@dataclass
class StaticPlan:
    """A plan of fixed shapes: `rows` rows that read slots [0, high). Buffers are filled in place."""

    kv: SessionKV
    rows: int
    high: int
    write: torch.Tensor
    dtype: torch.dtype
    start: int = 0
    low: int = 0
    masks: dict[tuple[Span, int], torch.Tensor] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.rows

    def mask(self, span: Span, groups: int) -> torch.Tensor:
        """Additive mask [groups * rows, high]; made when a layer first asks, then filled by `show`."""
        key = (span, groups)
        if key not in self.masks:
            self.masks[key] = torch.zeros(groups * self.rows, self.high, dtype=self.dtype, device=self.write.device)
        return self.masks[key]

    def show(self, rows: Rows) -> None:
        """Fill slots and masks for a frame. Rows beyond it see slot 0 alone and write to the spare slot."""
        n, layout = len(rows), self.kv.layout
        slots = np.full(self.rows, layout.slots, np.int64)
        slots[:n] = rows.slot
        self.write.copy_(torch.from_numpy(slots))
        for (span, groups), mask in self.masks.items():
            hidden = np.ones((self.rows, self.high), np.bool_)
            hidden[:n] = ~visible_slots(rows, self.kv, span, 0, self.high)
            hidden[n:, 0] = False
            fill = torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(torch.from_numpy(hidden), float("-inf"))
            mask.copy_(fill.repeat(groups, 1))


@dataclass
class _Fixed:
    """One bucket of one session: buffers, and the graph that reads them (None: run eagerly, as tests on a CPU do)."""

    plan: StaticPlan
    position: torch.Tensor
    inputs: torch.Tensor
    out: torch.Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None


class GraphedBlock(Block):
    """A block whose small single-session forwards are graphs; same results up to rounding."""

    def __init__(
        self, loaded: Loaded, device: torch.device, dtype: torch.dtype, report: Report = silent, capture: bool = True
    ) -> None:
        super().__init__(loaded, device, dtype)
        self._report, self._capture = report, capture
        self._failed = False
        self._sessions: dict[SessionKV, dict[tuple[int, int], _Fixed]] = {}
        self._memory: Any = None

    def view(self, first: int, last: int) -> Block:
        part = super().view(first, last)
        if part is self:
            return self
        return GraphedBlock(part.loaded, self.device, self.dtype, self._report, self._capture)

    @torch.inference_mode()
    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        if self._failed or len(jobs) != 1 or len(jobs[0].rows) > ROW_BUCKETS[-1]:
            return super().forward(jobs)
        kv, cached = jobs[0].kv, self._attending.cache is not None
        if kv.recurrent or kv.indexed or self.by_token or cached:  # all look at rows on the host
            return super().forward(jobs)
        job = jobs[0]
        fixed = self._fixed(job)
        if fixed is None:
            return super().forward(jobs)
        job.kv.commit(job.commits)
        self._fill(fixed, job)
        if fixed.graph is not None:
            fixed.graph.replay()
        else:
            fixed.out = self._run(fixed)
        out = fixed.out
        assert out is not None
        if not self.tail:
            return [out[: len(job.rows)].clone()]  # the next replay overwrites the buffer
        keep = torch.from_numpy(np.flatnonzero(job.rows.want)).to(self.device)
        return [out[keep].float()]

    def _fixed(self, job: Job) -> _Fixed | None:
        """The bucket for a frame, captured if it is new; None when capturing failed."""
        layout = job.kv.layout
        rows = next(size for size in ROW_BUCKETS if size >= len(job.rows))
        used = -(-max(1, int(job.rows.prefix.max())) // KEY_BUCKET) * KEY_BUCKET
        high = min(layout.scratch + used, layout.slots)
        for kv in [kv for kv in self._sessions if kv.closed]:
            del self._sessions[kv]
        known = self._sessions.setdefault(job.kv, {})
        if (rows, high) not in known:
            try:
                known[rows, high] = self._make(job, rows, high)
            except RuntimeError as exc:  # whatever CUDA cannot capture
                self._failed = True
                self._sessions.clear()
                reason = (str(exc).splitlines() or ["unknown"])[0]
                self._report(
                    Notice(f"running without CUDA graphs, which this model does not allow: {reason}", "warning")
                )
                return None
        return known[rows, high]

    def _make(self, job: Job, rows: int, high: int) -> _Fixed:
        write = torch.full((rows,), job.kv.layout.slots, dtype=torch.long, device=self.device)
        plan = StaticPlan(job.kv, rows, high, write, self.dtype)
        if self.head:
            inputs = torch.zeros(rows, dtype=torch.long, device=self.device)
        else:
            inputs = torch.zeros(rows, self.hidden_size, dtype=self.dtype, device=self.device)
        fixed = _Fixed(plan, torch.zeros(rows, dtype=torch.long, device=self.device), inputs)
        if not self._capture:
            self._run(fixed)  # makes the masks
            return fixed
        # Every row writes to the spare slot while warming up: the session's keys and values are not touched.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run(fixed)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # One memory pool for all graphs: they run one after another and their outputs are copied at once.
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory):
            fixed.out = self._run(fixed)
        fixed.graph = graph
        return fixed

    def _fill(self, fixed: _Fixed, job: Job) -> None:
        n, rows = len(job.rows), job.rows
        note_positions(rows, job.kv)
        fixed.plan.show(rows)
        fixed.position[:n].copy_(torch.from_numpy(rows.position.astype(np.int64)))
        if self.head:
            fixed.inputs[:n].copy_(torch.from_numpy(rows.token.astype(np.int64)))
        elif job.hidden is None:
            raise ValueError("a stage behind the head needs hidden rows")
        else:
            fixed.inputs[:n].copy_(job.hidden)

    def _run(self, fixed: _Fixed) -> torch.Tensor:
        """The forward over the buffers: [rows, hidden_size], or logits [rows, vocab_size] at the tail."""
        return self.compute([fixed.plan], fixed.inputs, fixed.position)
