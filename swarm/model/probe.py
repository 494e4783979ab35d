"""What this machine can do with a block, measured: the numbers that planning and the controller start from."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from swarm.base.events import Progress, Report, silent
from swarm.model.block import Block, Job
from swarm.model.device import free_bytes
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, Rows, no_commits

ROWS = (1, 8, 64)
_PREFIX = 128
_LAYOUT = Layout(scratch=64, context=_PREFIX + 64)


@dataclass(frozen=True)
class Probe:
    """Measured cost of a block.

    ms_per_layer  rows in a forward -> median milliseconds per layer, on 128 committed positions; up to 8 layers from
                  the middle of the block stand for all
    end_ms        rows -> milliseconds beyond the layers: 0 in the middle of the model, at the head the embedding, at
                  the tail norm and head for every row
    free_bytes    memory of the device that key/value sessions may take now, weights already in place
    cpu_load      share of this host's CPU in use by others and us just before the measurement, 0 to 1
    """

    ms_per_layer: dict[int, float]
    end_ms: dict[int, float]
    free_bytes: int
    cpu_load: float


def probe(block: Block, repeats: int = 5, report: Report = silent) -> Probe:
    """Measure a block. Takes about a second for a small model; runs in the compute thread."""
    load = psutil.cpu_percent(interval=0.1) / 100
    inner = block.view(*_middle(block))
    parts = block.parts()
    ends = [block.view(*parts[0])] if block.head else []
    ends += [block.view(*parts[-1])] if block.tail else []
    per_layer: dict[int, float] = {}
    end_ms: dict[int, float] = {}
    for done, rows in enumerate(ROWS, 1):
        per_layer[rows] = median_ms(inner, rows, repeats) / (inner.last - inner.first)
        end_ms[rows] = sum(
            max(0.0, median_ms(end, rows, repeats) - per_layer[rows] * (end.last - end.first)) for end in ends
        )
        report(Progress("probe", "this machine", done, len(ROWS), "steps", f"passes of {rows} rows"))
    return Probe(per_layer, end_ms, free_bytes(block.device), load)


def _middle(block: Block) -> tuple[int, int]:
    """Up to 8 layers that leave the model's ends out, if there are such: fewer would fit into caches. More where they
    cannot be cut so."""
    parts = block.parts()
    inner = parts[int(block.head) : len(parts) - int(block.tail)]
    if not inner:
        return block.first, block.last
    first = inner[0][0]
    ends = [end for _, end in inner if end - first <= 8]
    return first, ends[-1] if ends else inner[0][1]


def median_ms(block: Block, count: int, repeats: int) -> float:
    """Median milliseconds of a pass of `count` rows behind 128 committed positions; a first one is not counted."""
    pool = KVPool(block, 1 << 62)
    kv = pool.open(_LAYOUT, block.first, block.last)
    try:
        position = np.arange(_PREFIX, _PREFIX + count)
        rows = Rows(
            slot=(position + _LAYOUT.scratch).astype(np.uint32),
            position=position.astype(np.uint32),
            prefix=(position + 1).astype(np.uint32),
            ancestors=np.zeros((count, _LAYOUT.scratch // 8), np.uint8),
            token=np.zeros(count, np.int32),
            want=np.ones(count, bool),
        )
        hidden = None if block.head else torch.zeros(count, block.hidden_size, dtype=block.dtype, device=block.device)
        job = Job(kv, no_commits(), rows, hidden)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            block.forward([job])
            if block.gpu is not None:
                block.gpu.wait()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times[1:])  # the first one warms caches and allocators up
    finally:
        kv.close()
        pool.give_up_free()
