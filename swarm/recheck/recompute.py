"""Rows through layers, group of layers by group, so that a model larger than memory can be recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from swarm.base.events import Report, silent
from swarm.model.block import Block, Job, load_block
from swarm.model.device import free_bytes
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest
from swarm.model.files.schemes import layer_weights
from swarm.model.kvcache import KVPool
from swarm.model.rows import Commits, Layout, Rows

CPU = torch.device("cpu")
BATCH_ROWS = 128
MEMORY_SHARE = 0.4
_UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Step:
    """One frame as a stage takes it in. hidden float32 [n, hidden_size]; None at the head, where rows.token counts."""

    commits: Commits
    rows: Rows
    hidden: torch.Tensor | None = None


@dataclass(frozen=True)
class Layers:
    """Layers [first, last) of a checkpoint, recomputed with at most `group_bytes` of weights at a time.

    dtype        float32 to check, another to see what an honest stage of that dtype gives
    weights      of `load_block`: "auto" to see what an honest stage gives that computes with weights as stored
    group_bytes  None: a share of the memory that is free; a single layer is always taken, whatever its size
    alone        every step in a forward of its own, as a stage computes the frames of a run that it has to itself
    """

    checkpoint: Checkpoint
    first: int
    last: int
    group_bytes: int | None = None
    dtype: torch.dtype = torch.float32
    report: Report = silent
    weights: str = "expanded"
    alone: bool = False

    def outputs(self, layout: Layout, steps: Sequence[Step]) -> Iterator[torch.Tensor]:
        """Output of each step, in order: hidden rows [n, hidden], at the model's end float32 logits [wanted, vocab].

        Steps are those of one session from its beginning, checked by `rows.check_untrusted`. Raises ModelError.
        """
        ranges = groups(self.checkpoint.manifest, self.first, self.last, self.group_bytes)
        for first, last in ranges[:-1]:
            hidden = list(self._pass(first, last, layout, steps))
            steps = [Step(step.commits, step.rows, out) for step, out in zip(steps, hidden, strict=True)]
        yield from self._pass(*ranges[-1], layout, steps)

    def embeddings(self, tokens: Sequence[int]) -> torch.Tensor:
        """What enters layer 0 for these token ids: float32 [n, hidden]. Raises ModelError."""
        first = self.checkpoint.manifest.ties.parts(0, self.checkpoint.manifest.n_layers)[0]
        block = load_block(self.checkpoint, *first, CPU, torch.float32, self.report)
        return block.embedded(tokens)

    def _pass(self, first: int, last: int, layout: Layout, steps: Sequence[Step]) -> Iterator[torch.Tensor]:
        block = load_block(self.checkpoint, first, last, CPU, self.dtype, self.report, weights=self.weights)
        yield from run_block(block, layout, steps, self.alone)


def run_block(block: Block, layout: Layout, steps: Sequence[Step], alone: bool = False) -> Iterator[torch.Tensor]:
    """Output of each step through one block, from an empty session on. alone: one forward for each."""
    kv = KVPool(block, _UNBOUNDED).open(layout, block.first, block.last)
    try:
        for batch in [[step] for step in steps] if alone else _batches(steps):
            yield from block.forward([Job(kv, step.commits, step.rows, step.hidden) for step in batch])
    finally:
        kv.close()


def groups(manifest: Manifest, first: int, last: int, limit: int | None = None) -> list[tuple[int, int]]:
    """Cut layers [first, last) where float32 weights, embeddings and head included, would exceed `limit` bytes."""
    limit = int(free_bytes(CPU) * MEMORY_SHARE) if limit is None else limit
    found: list[tuple[int, int]] = []
    start, held = first, 0
    for begin, end in manifest.ties.parts(first, last):
        size = sum(4 * int(np.prod(weight.entry.shape)) for weight in layer_weights(manifest, begin, end))
        if held and held + size > limit:
            found.append((start, begin))
            start, held = begin, 0
        held += size
    return [*found, (start, last)]


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that may share a forward: none commits, and no slot is written twice."""
    batch: list[Step] = []
    slots: set[int] = set()
    rows = 0
    for step in steps:
        own = set(map(int, step.rows.slot))
        if batch and (len(step.commits) or own & slots or rows + len(step.rows) > BATCH_ROWS):
            yield batch
            batch, slots, rows = [], set(), 0
        batch.append(step)
        slots |= own
        rows += len(step.rows)
    if batch:
        yield batch
