"""The last look at a block before it serves: does the range compute what its layers compute one by one?

A model's `forward` may do things between, before or after its layers that a cut loses, repeats or shares between the
sessions of a forward: scale rows, hand values from layer to layer, follow the longest row. None of it raises anything;
it makes wrong text. So random rows go once through neighbouring layers, three sessions in one forward at near, middle
and far positions; then the one in the middle goes alone through every layer as a block of its own. What differs is
refused by name. Classes do the same to all layers of a kind, so one pair of neighbours of each two kinds is looked at,
and the ends of the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
import torch

from swarm.base.errors import SwarmError
from swarm.model.gpu import Gpu
from swarm.model.job import Job
from swarm.model.kinds import pairs
from swarm.model.kvcache import KVPool, KVShape
from swarm.model.prune import unfit
from swarm.model.rows import Layout, Rows, no_commits

_ROWS = 3
_TRIED = 1
"""The session in the middle: whatever a forward shares of its first, last, nearest, or farthest row is another's."""
_LAYOUT = Layout(scratch=8, context=8)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between rows over their size, for the median row: sums of other orders differ by far less, and
one expert that is chosen by a rounding changes its own row only. A lost factor or norm changes every row by more."""


class Cuttable(Protocol):
    """What is looked at: a block."""

    first: int
    last: int
    head: bool
    tail: bool
    hidden_size: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    gpu: Gpu | None

    @property
    def kv_shapes(self) -> Sequence[KVShape]: ...

    def parts(self) -> Sequence[tuple[int, int]]: ...

    def kinds(self) -> Sequence[Hashable]: ...

    def view(self, first: int, last: int) -> Cuttable: ...

    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]: ...


def check_cut(block: Cuttable, name: str, positions: int) -> bool:
    """Whether the range and its single layers agree to the last bit. Raises ModelError, naming the class `name`, when
    they disagree. positions: that the model was made for."""
    ranges = pairs(block.parts(), block.kinds(), block.head, block.tail)
    return all([_check_range(block.view(first, last), name, positions) for first, last in ranges])


def one_layer(block: Cuttable, layer: int) -> torch.Tensor:
    """Random rows, the same for each call, through one layer: rows [n, hidden_size], at the tail logits."""
    part = block.view(layer, layer + 1)
    rows = _rows(3, block.vocab_size)
    source = torch.Generator().manual_seed(layer)
    given = None if part.head else torch.randn(_ROWS, part.hidden_size, generator=source).to(part.device, part.dtype)
    return _forward(part, [rows], [given])[0]


def _check_range(block: Cuttable, name: str, positions: int) -> bool:
    far = max(2 * _ROWS, positions - _ROWS)
    sessions = [_rows(start, block.vocab_size, n) for start, n in ((0, 1), (far // 2, _ROWS), (far, 1))]
    source = torch.Generator().manual_seed(len(name))
    given: list[torch.Tensor | None] = [
        None if block.head else torch.randn(len(s), block.hidden_size, generator=source).to(block.device, block.dtype)
        for s in sessions
    ]
    try:
        together = _forward(block, sessions, given)[_TRIED]
        alone = given[_TRIED]
        for first, last in block.parts():
            alone = _forward(block.view(first, last), [sessions[_TRIED]], [alone])[0]
    except SwarmError:
        raise
    except Exception as exc:  # a model that its own code does not allow to be cut fails in ways of its own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise unfit(name, f"a layer does not run by itself ({reason})") from exc
    _compare(together, alone, name, block.dtype)
    return alone is not None and torch.equal(together, alone)


def _compare(together: torch.Tensor, alone: torch.Tensor | None, name: str, dtype: torch.dtype) -> None:
    if alone is None or together.shape != alone.shape:
        raise unfit(name, "its layers, called one by one, give rows of another shape")
    a, b = together.float(), alone.float()
    apart = ((a - b).norm(dim=1) / (a.norm(dim=1) + b.norm(dim=1) + 1e-12)).median()
    if not apart <= _TOLERANCE.get(dtype, 0.1):  # NaN is refused too
        raise unfit(name, "its layers, called one by one, give other rows than together")


def _forward(block: Cuttable, sessions: Sequence[Rows], hidden: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    pool = KVPool(block, 1 << 62)
    opened = [pool.open(_LAYOUT, block.first, block.last) for _ in sessions]
    try:
        jobs = [Job(kv, no_commits(), rows, given) for kv, rows, given in zip(opened, sessions, hidden, strict=True)]
        return block.forward(jobs)
    finally:
        for kv in opened:
            kv.close()


def _rows(start: int, vocab: int, count: int = _ROWS) -> Rows:
    """A chain of rows at positions start, start + 1, ... in scratch slots, so that any position takes little memory."""
    chain = np.tril(np.ones((count, _LAYOUT.scratch), np.uint8))
    chain[:, count:] = 0
    return Rows(
        slot=np.arange(count, dtype=np.uint32),
        position=(start + np.arange(count)).astype(np.uint32),
        prefix=np.zeros(count, np.uint32),
        ancestors=np.packbits(chain, axis=1, bitorder="little"),
        token=((start + 7 * np.arange(count) + 3) % vocab).astype(np.int32),
        want=np.arange(count) == count - 1,
    )
