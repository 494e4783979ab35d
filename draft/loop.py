"""Several tokens of drafting without the host: the chain loop on static buffers, held in CUDA graphs.

One step of the loop is the whole model for a few rows; its first choice is fed back on the device. Slots, positions
and what each row may see are tensors, so a rollback is a matter of what is written into them before the replay, and
one graph serves every state of the tree. The same code runs without capture (and so on a CPU, where tests use it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from draft.base import Child
from draft.ranker import WIDTH, Ranker
from swarm.base.events import Notice, Report, silent
from swarm.model.block import Block
from swarm.model.kvcache import SessionKV
from swarm.model.masks import Span
from swarm.model.rows import Rows

ROW_BUCKETS = (1, 2, 4, 8)
"""Rows for which graphs are made; fewer rows are padded with rows that nobody sees."""

FIRST_BUCKET = 256
"""Committed positions that the smallest graph attends to; the next ones double."""

MAX_PROGRAMS = 48
"""Shapes and samplings held at once; the oldest goes, its graph and buffers with it."""


class DeviceTreePlan:
    """A plan (see swarm.model.attention) of device tensors: `write` int64 [n] slots, `seen` bool [n, slots read]."""

    def __init__(self, kv: SessionKV, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.kv, self.start, self.low, self.high = kv, 0, 0, slots
        self.count, self.device, self.dtype = rows, device, dtype
        self.write = torch.zeros(rows, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, slots, dtype=torch.bool, device=device)

    @property
    def stop(self) -> int:
        return self.count

    def mask(self, span: Span, groups: int) -> torch.Tensor:
        """Additive [groups * n, slots]. Raises RuntimeError for sliding windows, which have no static form here."""
        if span is not None:
            raise RuntimeError("layers with a sliding window are drafted step by step")
        zero = torch.zeros(self.seen.shape, dtype=self.dtype, device=self.device)
        return zero.masked_fill_(~self.seen, float("-inf")).repeat(groups, 1)


@dataclass
class Program:
    """Static buffers of one shape of loop: n rows, `steps` tokens each, and the graph that fills the outputs.

    tokens, positions int64 [n]; slots int64 [steps, n]; noise float32 [steps, n, v] or None when greedy;
    ids int64 [steps, n, w], confidence float32 [steps, n, w]: the outputs.
    """

    plan: DeviceTreePlan
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    seen: torch.Tensor
    noise: torch.Tensor | None
    ids: torch.Tensor
    confidence: torch.Tensor
    graph: torch.cuda.CUDAGraph | None = None


class ChainLoop:
    """Runs loops for one drafter; `attach` is called by it. capture: hold them in CUDA graphs (on CUDA only).

    A capture that fails gives one warning, and the drafter goes on step by step.
    """

    reserved = ROW_BUCKETS[-1]
    """Scratch slots at the top that padding rows write to."""

    def __init__(self, *, capture: bool = True, report: Report = silent) -> None:
        self.capture, self.report = capture, report
        self.broken = False
        self._programs: dict[tuple[object, ...], Program] = {}

    def attach(self, block: Block, kv: SessionKV, ranker: Ranker) -> None:
        """Work for this drafter from now on; programs of another are dropped."""
        self._block, self._kv, self._ranker = block, kv, ranker
        self._programs = {}

    def fits(self, rows: int, steps: int) -> bool:
        """Whether `run` takes so many rows and steps with the sampling of the run."""
        return not self.broken and 0 < rows <= ROW_BUCKETS[-1] and steps <= 64 and not self._ranker.needs_paths

    @torch.inference_mode()
    def run(self, rows: Rows, later: Sequence[Sequence[int]]) -> list[list[tuple[Child, ...]]]:
        """Compute `rows`, then feed first choices back `len(later)` times, step j writing to slots later[j].

        Returns per step, per row its ranked children. Falls back to the same steps without a graph.
        """
        count, steps = len(rows), 1 + len(later)
        size = next(b for b in ROW_BUCKETS if b >= count)
        program = self._program(size, steps, int(rows.prefix.max()))
        self._load(program, rows, later)
        if program.graph is not None:
            program.graph.replay()
        else:
            self._loop(program)
        ids, confidence = program.ids[:, :count].tolist(), program.confidence[:, :count].tolist()
        return [
            [tuple(Child(t, c) for t, c in zip(*row, strict=True) if c > 0) for row in zip(*step, strict=True)]
            for step in zip(ids, confidence, strict=True)
        ]

    def _program(self, size: int, steps: int, prefix: int) -> Program:
        layout, bucket = self._kv.layout, FIRST_BUCKET
        while bucket < prefix:
            bucket *= 2
        key = (size, steps, min(bucket, layout.context), self._ranker.sampling_key)
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) >= MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            program = self._programs[key] = self._make(size, steps, layout.scratch + min(bucket, layout.context))
            if self._wants_graph() and not self.broken:
                self._capture(program)
        return program

    def _wants_graph(self) -> bool:
        return self.capture and self._block.device.type == "cuda"

    def _make(self, size: int, steps: int, slots: int) -> Program:
        device, vocab = self._block.device, self._ranker.vocab
        plan = DeviceTreePlan(self._kv, size, slots, device, self._block.dtype)
        width = min(WIDTH, vocab)

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        noise = None if self._ranker.sampling.greedy else zeros(steps, size, vocab, dtype=torch.float32)
        return Program(
            plan=plan,
            tokens=zeros(size),
            positions=zeros(size),
            slots=zeros(steps, size) + self._spare(size).to(device),
            seen=zeros(size, slots, dtype=torch.bool),
            noise=noise,
            ids=zeros(steps, size, width),
            confidence=zeros(steps, size, width, dtype=torch.float32),
        )

    def _spare(self, size: int) -> torch.Tensor:
        """Slots that nobody sees, for rows of padding and for the runs before a capture. int64 [size]."""
        return torch.arange(size) + self._kv.layout.scratch - self.reserved

    def _load(self, program: Program, rows: Rows, later: Sequence[Sequence[int]]) -> None:
        """Write a frame into the static buffers; padding rows get reserved slots and see themselves alone."""
        count, size, scratch = len(rows), len(program.tokens), self._kv.layout.scratch
        seen = np.zeros(tuple(program.seen.shape), np.bool_)
        seen[:count, :scratch] = np.unpackbits(rows.ancestors, axis=1, bitorder="little")
        seen[:count, scratch:] = np.arange(seen.shape[1] - scratch) < rows.prefix[:, None]
        slots = np.tile(self._spare(size).numpy(), (1 + len(later), 1))
        slots[0, :count] = rows.slot
        for step, chosen in enumerate(later, 1):
            slots[step, :count] = chosen
        padded = np.zeros((2, size), np.int64)
        padded[:, :count] = rows.token, rows.position
        program.seen.copy_(torch.from_numpy(seen))
        program.slots.copy_(torch.from_numpy(slots))
        program.tokens.copy_(torch.from_numpy(padded[0]))
        program.positions.copy_(torch.from_numpy(padded[1]))
        if program.noise is not None:
            for step in range(1 + len(later)):
                for row in range(count):
                    program.noise[step, row].copy_(self._ranker.noise(int(rows.position[row]) + 1 + step))

    def _loop(self, program: Program) -> None:
        """The captured part: reads and writes the program's buffers only."""
        plan, tokens, positions = program.plan, program.tokens, program.positions
        plan.seen.copy_(program.seen)
        for step in range(len(program.slots)):
            plan.write.copy_(program.slots[step])
            plan.seen.scatter_(1, plan.write[:, None], True)
            logits = self._block.forward_static(plan, tokens, positions + step)
            noise = None if program.noise is None else program.noise[step]
            confidence, ids = self._ranker.best(self._ranker.perturb(logits, noise))
            program.ids[step].copy_(ids)
            program.confidence[step].copy_(confidence)
            tokens = program.ids[step, :, 0]

    def _capture(self, program: Program) -> None:
        device = self._block.device
        try:
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.device(device):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # lets libraries allocate what must not be allocated during capture
                    for _ in range(2):
                        self._loop(program)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._loop(program)
            program.graph = graph
        except (RuntimeError, NotImplementedError, AssertionError) as exc:  # torch without CUDA asserts
            self.broken = True
            reason = (str(exc).splitlines() or [type(exc).__name__])[0]
            self.report(Notice(f"drafting without CUDA graphs (slower): {reason}", "warning"))
