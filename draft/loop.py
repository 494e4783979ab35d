"""Several tokens of drafting without the host: the chain loop on static buffers, held in CUDA graphs.

One step of the loop is the whole model for a few rows; its first choice is fed back on the device. Slots, positions
and what each row may see are tensors, so a rollback is a matter of what is written into them before the replay, and
one graph serves every state of the tree; windows follow from the position that lies in each slot, which is one too. The
same code runs without capture (and so on a CPU, where tests use it).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from draft.base import Child, children
from draft.ranker import WIDTH, Ranker
from swarm.base.events import Notice, Report, silent
from swarm.model.block import Block
from swarm.model.capturing import CaptureTrust, can_capture
from swarm.model.gpu import Gpu, Graph, GraphPool, entered, first_line, out_of_memory
from swarm.model.kvcache import SessionKV
from swarm.model.masks import Span, note_positions, within
from swarm.model.rows import Rows

ROW_BUCKETS = (1, 2, 4, 8)
"""Rows for which graphs are made; fewer rows are padded with rows that nobody sees."""

FIRST_BUCKET = 256
"""Committed positions that the smallest graph attends to; the next ones double."""

CAPTURED_AT = 2
"""Uses of a shape after which it is captured: many shapes of a run come once."""

MAX_PROGRAMS = 48
"""Shapes and samplings held at once; the oldest goes, its graph and buffers with it."""


class DeviceTreePlan:
    """A plan (see swarm.model.attention) of device tensors.

    write int64 [n] slots; seen bool [n, slots]; position int64 [n] of the rows; place int64 [slots], the position that
    lies in each slot (for layers with a window).
    """

    def __init__(self, kv: SessionKV, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.kv, self.start, self.low, self.high = kv, 0, 0, slots
        self.count, self.device, self.dtype = rows, device, dtype
        self.write = torch.zeros(rows, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, slots, dtype=torch.bool, device=device)
        self.position = torch.zeros(rows, dtype=torch.long, device=device)
        self.place = torch.arange(slots, device=device) - kv.layout.scratch
        self._made: dict[tuple[Span, int], torch.Tensor] = {}

    def move(self, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """The rows of the next step: they write `slots`, where `positions` lie from now on, and see themselves."""
        self.forget()
        self.write.copy_(slots)
        self.position.copy_(positions)
        self.seen.scatter_(1, self.write[:, None], True)
        self.place.scatter_(0, self.write, self.position)

    def forget(self) -> None:
        """Let go of the step's masks: in a capture they lie in the graph's memory."""
        self._made = {}

    @property
    def stop(self) -> int:
        return self.count

    def mask(self, span: Span, groups: int) -> torch.Tensor:
        """Additive [groups * n, slots]; made once a step for each kind of layer."""
        if (span, groups) not in self._made:
            seen = self.seen if span is None else self.seen & within(span, self.position[:, None], self.place[None])
            zero = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            self._made[span, groups] = zero.masked_fill_(~seen, float("-inf")).repeat(groups, 1)
        return self._made[span, groups]


@dataclass
class Program:
    """Static buffers of one shape of loop: n rows, `steps` tokens each, and the graph that fills the outputs.

    tokens, positions int64 [n]; slots int64 [steps, n]; seen bool [n, slots read]; place int64 [slots read];
    noise float32 [steps, n, v] or None when greedy; ids int64 [steps, n, w], confidence float32 [steps, n, w]: the
    outputs. uses: how often it ran.
    """

    plan: DeviceTreePlan
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    seen: torch.Tensor
    place: torch.Tensor
    noise: torch.Tensor | None
    ids: torch.Tensor
    confidence: torch.Tensor
    graph: Graph | None = None
    uses: int = 0


class ChainLoop:
    """Runs loops for one drafter; `attach` is called by it. capture: hold them in CUDA graphs (on CUDA only).

    gpu: the device as others in the process know it; None: as the drafter's block does. A shape that cannot be captured
    is computed uncaptured; where nothing can, the drafter is told to go level by level.
    """

    reserved = ROW_BUCKETS[-1]
    """Scratch slots at the top that padding rows write to."""

    def __init__(self, *, capture: bool = True, report: Report = silent, gpu: Gpu | None = None) -> None:
        self.capture, self.report, self.gpu = capture, report, gpu
        self.broken = False
        self.trust = CaptureTrust()
        self._programs: dict[tuple[object, ...], Program] = {}

    def another(self) -> ChainLoop:
        """One for a second drafter on the same device."""
        return ChainLoop(capture=self.capture, report=self.report, gpu=self.gpu)

    def attach(self, block: Block, kv: SessionKV, ranker: Ranker) -> None:
        """Work for this drafter from now on; programs of another are dropped."""
        self._block, self._kv, self._ranker = block, kv, ranker
        self.gpu = self.gpu or block.gpu
        self._programs = {}
        able = self.gpu is not None and can_capture(block.loaded.model, self.gpu, block.dtype)
        self._pool = GraphPool(self.gpu) if self.capture and able and self.gpu is not None else None

    def fits(self, rows: int, steps: int) -> bool:
        """Whether `run` takes so many rows and steps with the sampling of the run."""
        able = not self.broken and not self._ranker.needs_paths and not self._kv.recurrent
        return able and 0 < rows <= ROW_BUCKETS[-1] and steps <= 64

    @torch.inference_mode()
    def run(self, rows: Rows, later: Sequence[Sequence[int]], first: int = 0) -> list[list[tuple[Child, ...]]] | None:
        """Compute `rows`, then feed first choices back `len(later)` times, step j writing to slots later[j]. `first`:
        the position in the text of what the cache has at place 0, for the tail's noise.

        Returns per step, per row its ranked children; None where this model cannot be computed so, which `fits` knows
        from then on.
        """
        count, steps = len(rows), 1 + len(later)
        size = next(b for b in ROW_BUCKETS if b >= count)
        with entered(self.gpu):
            program = self._program(size, steps, int(rows.prefix.max()))
            self._load(program, rows, later, first)
            if not self._computed(program):
                return None
            ids, confidence = program.ids[:, :count].tolist(), program.confidence[:, :count].tolist()
        return [[children(*row) for row in zip(*step, strict=True)] for step in zip(ids, confidence, strict=True)]

    def _program(self, size: int, steps: int, prefix: int) -> Program:
        layout, bucket = self._kv.layout, FIRST_BUCKET
        while bucket < prefix:
            bucket *= 2
        key = (size, steps, min(bucket, layout.context), self._ranker.sampling_key)
        program = self._programs.pop(key, None)
        if program is None:
            if len(self._programs) >= MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            program = self._make(size, steps, layout.scratch + min(bucket, layout.context))
        self._programs[key] = program  # the one used last is last
        return program

    def _computed(self, program: Program) -> bool:
        """Fill the outputs, by the graph where there is one by now; whether it could be done."""
        program.uses += 1
        if program.graph is not None:
            program.graph.replay()
            return True
        if self._pool is not None and program.uses >= CAPTURED_AT and self.trust.may(time.monotonic()):
            attempt = self._pool.capture(lambda: self._loop(program))
            if attempt.error is None:
                self.trust.worked()
                program.graph = attempt.graph
                return True
            self._refused(attempt.error)
            if attempt.value is not None:
                return True
        try:
            self._loop(program)
        except (RuntimeError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            self.broken = True
            self.report(Notice(f"drafting level by level, since this model's steps are not alike: {first_line(error)}"))
            return False
        return True

    def _refused(self, error: Exception) -> None:
        """Uncaptured for now; for good where it was not for want of memory, several times."""
        first = self.trust.failures == 0
        self.trust.failed(time.monotonic(), error)
        if self.trust.given_up:
            self._programs, self._pool = {}, None
        if first:
            self.report(Notice(f"drafting without CUDA graphs (slower): {first_line(error)}", "warning"))

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
            slots=zeros(steps, size),
            seen=zeros(size, slots, dtype=torch.bool),
            place=zeros(slots),
            noise=noise,
            ids=zeros(steps, size, width),
            confidence=zeros(steps, size, width, dtype=torch.float32),
        )

    def _load(self, program: Program, rows: Rows, later: Sequence[Sequence[int]], first: int) -> None:
        """Write a frame into the static buffers; padding rows get reserved slots and see themselves alone."""
        count, size, kv = len(rows), len(program.tokens), self._kv
        scratch = kv.layout.scratch
        note_positions(rows, kv)
        seen = np.zeros(tuple(program.seen.shape), np.bool_)
        seen[:count, :scratch] = np.unpackbits(rows.ancestors, axis=1, bitorder="little")
        seen[:count, scratch:] = np.arange(seen.shape[1] - scratch) < rows.prefix[:, None]
        slots = np.tile(np.arange(size) + scratch - self.reserved, (1 + len(later), 1))
        slots[0, :count] = rows.slot
        for step, chosen in enumerate(later, 1):
            slots[step, :count] = chosen
            kv.position[list(chosen)] = rows.position + step
        padded = np.zeros((2, size), np.int64)
        padded[:, :count] = rows.token, rows.position
        place = np.arange(seen.shape[1]) - scratch
        place[:scratch] = kv.position
        program.seen.copy_(torch.from_numpy(seen))
        program.place.copy_(torch.from_numpy(place))
        program.slots.copy_(torch.from_numpy(slots))
        program.tokens.copy_(torch.from_numpy(padded[0]))
        program.positions.copy_(torch.from_numpy(padded[1]))
        if program.noise is not None:
            for step in range(1 + len(later)):
                for row in range(count):
                    program.noise[step, row].copy_(self._ranker.noise(first + int(rows.position[row]) + 1 + step))

    def _loop(self, program: Program) -> torch.Tensor:
        """The captured part: reads and writes the program's buffers only. Returns its ids."""
        plan, tokens, positions = program.plan, program.tokens, program.positions
        plan.seen.copy_(program.seen)
        plan.place.copy_(program.place)
        for step in range(len(program.slots)):
            plan.move(program.slots[step], positions + step)
            logits = self._block.forward_static(plan, tokens, plan.position)
            noise = None if program.noise is None else program.noise[step]
            confidence, ids = self._ranker.best(self._ranker.perturb(logits, noise, static=True))
            program.ids[step].copy_(ids)
            program.confidence[step].copy_(confidence)
            tokens = program.ids[step, :, 0]
        plan.forget()
        return program.ids
