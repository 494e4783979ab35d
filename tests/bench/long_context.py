"""What a pass costs behind a long text: layers 10 to 19 of the default model, many rows against one, in turns.

python -m tests.bench.long_context [--context 5500] [--dtype bfloat16] [--threads 1] [--rounds 9] [--other KERNELS.so]

Processor time of this thread (milliseconds) for 1, 4, 16 and 64 rows of one session, as a part of a prompt and (tree)
as drafts in chains of four; medians, and of ratios to the one row of the same round. With --other the same
attention by another build of the kernels, in turns with this one's.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from swarm.model.block import load_block
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.inorder import AttentionCall, Sight, attend_in_order
from swarm.model.job import Job
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.quant.native import Library, library
from swarm.model.rows import Layout, Rows, no_commits
from swarm.ring.certain_rows import certain_rows
from tests.swarm.model.tiny import drafted


def shapes(context: int, layout: Layout) -> dict[str, Rows]:
    """The rows that are timed, by name."""
    found = {f"{n} rows": certain_rows(layout, context, [1] * n) for n in (1, 4, 16, 64)}
    for n in (16, 64):
        parents = [-1 if i % 4 == 0 else i - 1 for i in range(n)]
        found[f"tree of {n}"] = drafted([1] * n, parents, list(range(n)), context, layout)
    return found


def timed(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return (time.thread_time() - start) * 1000


def attend(
    lib: Library,
    kv: SessionKV,
    rows: Rows,
    first: int,
    last: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """The attention of layers [first, last) alone."""
    sight = Sight(rows, kv)
    for layer in range(first, last):
        attend_in_order(lib, [(sight, 0)], AttentionCall(query, key, value, layer, slice(0, key.shape[1]), 0.125))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=5500)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--other", type=Path, help="another build of the kernels, for attention alone")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    dtype = getattr(torch, asked.dtype)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(DEFAULT_MODEL, None)
        block = load_block(checkpoint, 10, 20, torch.device("cpu"), dtype)
    layout = Layout(64, asked.context + 600)
    kv = KVPool(block, 1 << 40).open(layout, block.first, block.last)
    source = torch.Generator().manual_seed(1)

    def job(rows: Rows) -> Job:
        return Job(kv, no_commits(), rows, torch.randn(len(rows), block.hidden_size, generator=source).to(dtype))

    kinds = shapes(asked.context, layout)
    passes: dict[str, list[float]] = {name: [] for name in kinds}
    with torch.inference_mode():
        for at in range(0, asked.context, 512):
            block.forward([job(certain_rows(layout, at, [1] * min(512, asked.context - at)))])
        for _ in range(asked.rounds):
            for name, rows in kinds.items():
                passes[name].append(timed(functools.partial(block.forward, [job(rows)])))
        for name, took in passes.items():
            ratio = statistics.median(mine / one for mine, one in zip(took, passes["1 rows"], strict=True))
            print(f"pass, {name:10} {statistics.median(took):8.2f} ms   {ratio:5.2f} of one row", flush=True)
        if asked.other is not None and (here := library()) is not None:
            other = Library(asked.other)
            for name, rows in kinds.items():
                pairs = []
                for _ in range(asked.rounds):
                    heads = (torch.randn(1, n, len(rows), 64, generator=source).to(dtype) for n in (9, 3, 3))
                    given = kv, rows, block.first, block.last, *heads
                    mine, theirs = (timed(functools.partial(attend, lib, *given)) for lib in (here, other))
                    pairs.append((mine, theirs))
                spent, ratio = statistics.median(a for a, _ in pairs), statistics.median(a / b for a, b in pairs)
                print(f"attention, {name:10} {spent:8.2f} ms   {ratio:5.2f} of the other", flush=True)


if __name__ == "__main__":
    main()
