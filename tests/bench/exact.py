"""What rows whose bits do not depend on their company cost: the same model with the kernels of fixed order and without,
in turns, in one process.

python -m tests.bench.exact [--layers 6] [--dtype bfloat16] [--threads 2] [--prompt 2000] [--rounds 7]

Medians of ratios, exact over not: milliseconds of passes of 1, 8 and 16 rows of one session behind 256 positions, of
eight sessions with one row each, and of a prompt in parts of 512.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from swarm.model.block import Block, load_block
from swarm.model.exact import why_not
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from swarm.ring.certain_rows import certain_rows

BEHIND = 256


def works(block: Block, prompt: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    layout = Layout(0, prompt + 512)
    kvs = [KVPool(block, 1 << 40).open(layout, block.first, block.last) for _ in range(8)]
    source = torch.Generator().manual_seed(1)

    def job(session: int, at: int, n: int) -> Job:
        hidden = torch.randn(n, block.hidden_size, generator=source).to(block.dtype)
        return Job(kvs[session], no_commits(), certain_rows(layout, at, [1] * n), hidden)

    for session in range(8):
        block.forward([job(session, 0, BEHIND)])
    found: dict[str, Callable[[], object]] = {
        f"{n} rows": lambda n=n: block.forward([job(0, BEHIND, n)])  # type: ignore[misc]
        for n in (1, 8, 16)
    }
    found["8 users"] = lambda: block.forward([job(session, BEHIND, 1) for session in range(8)])
    found["prompt"] = lambda: [block.forward([job(0, at, min(512, prompt - at))]) for at in range(0, prompt, 512)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(DEFAULT_MODEL, None)
        ends = (1, 1 + asked.layers, torch.device("cpu"), getattr(torch, asked.dtype))
        exact, other = (load_block(checkpoint, *ends, exact=wanted) for wanted in (True, False))
    print("exact:", why_not(exact) or "yes", "| other:", why_not(other))
    with torch.inference_mode():
        pairs = zip(works(exact, asked.prompt).items(), works(other, asked.prompt).values(), strict=True)
        for (name, mine), theirs in pairs:
            times = 3 if name == "prompt" else asked.rounds * 5
            ratios, spent = [], []
            for _ in range(times):
                start = time.perf_counter()
                mine()
                between = time.perf_counter()
                theirs()
                end = time.perf_counter()
                ratios.append((between - start) / (end - between))
                spent.append((between - start) * 1000)
            told = f"{statistics.median(spent):8.2f} ms   {statistics.median(ratios):.2f} of the other"
            print(f"{name:8} {told}", flush=True)


if __name__ == "__main__":
    main()
