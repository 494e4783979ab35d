"""All that is to be measured on a GPU, in one go: the drafter's loop, a stage's passes, sessions, the first token.

    python -m tests.bench.gpu_all --json FILE           on a GPU, under ten minutes
    python -m tests.bench.gpu_all --device cpu --small  in seconds, uncaptured: whether the script itself still runs

Each measure stands beside the time in which the device reads the same bytes once, and beside what is wanted of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from swarm.base.events import Event, Notice
from swarm.model.block import Block, Job, load_block
from swarm.model.graphs import GraphedBlock, graphed
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, Rows, no_commits
from tests.bench.gpu_draft import SHAPES, RandomCheckpoint, bandwidth, measure, waiter

EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 10, "heads": 32, "kv": 8}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "heads": 4, "kv": 2}
LAYOUT = Layout(scratch=64, context=1024)
PREFIX = 128


@dataclass(frozen=True)
class Measure:
    """One line of the table. ms: median; roofline_ms: the bytes' time; wanted: a bound on `ratio`, in words."""

    what: str
    ms: float
    roofline_ms: float
    ratio: float
    wanted: str


def rows_of(count: int, start: int) -> Rows:
    """Certain rows at positions start, start + 1, ..."""
    position = np.arange(start, start + count)
    return Rows(
        slot=(position + LAYOUT.scratch).astype(np.uint32),
        position=position.astype(np.uint32),
        prefix=(position + 1).astype(np.uint32),
        ancestors=np.zeros((count, LAYOUT.scratch // 8), np.uint8),
        token=np.zeros(count, np.int32),
        want=np.ones(count, bool),
    )


class Bench:
    """A block in the middle of a random model, plain and in graphs where the device has such."""

    def __init__(self, device: torch.device, small: bool) -> None:
        shape = TINY if small else EIGHT_B
        checkpoint = RandomCheckpoint("8B-shaped", shape, 512)
        layers = shape["num_hidden_layers"]
        self.device, self.wait = device, waiter(device)
        self.notices: list[str] = []
        dtype = torch.float32 if small else torch.bfloat16
        self.block = load_block(checkpoint, 1, layers - 1, device, dtype, weights="expanded")
        self.fast = graphed(self.block, self._report)
        self.read = sum(p.nbytes for p in self.block.loaded.model.parameters())
        self.repeats = 5 if small else 50

    def _report(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.text)

    def hidden(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.block.hidden_size, device=self.device, dtype=self.block.dtype)

    def passes_ms(self, block: Block, count: int) -> float:
        """Median of a pass of `count` rows, once its shape was captured."""
        pool = KVPool(block, 1 << 62)
        kv = pool.open(LAYOUT, block.first, block.last)
        job = Job(kv, no_commits(), rows_of(count, PREFIX), self.hidden(count))
        times = [self._timed(lambda: block.forward([job])) for _ in range(self.repeats + 5)][5:]
        kv.close()
        pool.give_up_free()
        return statistics.median(times)

    def first_ms(self, block: Block, pool: KVPool) -> float:
        """A new session's prompt and first row."""
        kv = pool.open(LAYOUT, block.first, block.last)
        prompt = Job(kv, no_commits(), rows_of(PREFIX, 0), self.hidden(PREFIX))
        one = Job(kv, no_commits(), rows_of(1, PREFIX), self.hidden(1))
        spent = self._timed(lambda: (block.forward([prompt]), block.forward([one])))
        kv.close()
        return spent

    def _timed(self, work: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return (time.perf_counter() - start) * 1e3

    def sessions(self, count: int) -> dict[str, object]:
        """What is held after ten sessions, and after `count`."""
        pool, held = KVPool(self.fast, 1 << 62), []
        for turn in range(count):
            self.first_ms(self.fast, pool)
            if turn in (min(9, count - 2), count - 1):
                held.append((self._reserved(), self._graphs()))
        return {"opened": count, "bytes_and_graphs": held, "kept": held[0] == held[1]}

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def _graphs(self) -> int:
        if not isinstance(self.fast, GraphedBlock):
            return 0
        return sum(shape.graph is not None for shape in self.fast._graphs.shapes.values())


def run(device: torch.device, small: bool) -> dict[str, object]:
    """All measures, as JSON has them."""
    bench = Bench(device, small)
    speed = bandwidth(device, bench.wait)
    roofline = 1e3 * bench.read / speed
    measures = []
    for count in (1, 16, 64):
        for block, how in ((bench.block, "eager"), (bench.fast, "graph")):
            ms = bench.passes_ms(block, count)
            measures.append(Measure(f"pass of {count} rows, {how}", ms, roofline, ms / roofline, "<= 1.3 with graphs"))
    first = {}
    for block, how in ((bench.block, "eager"), (bench.fast, "graph")):
        pool = KVPool(block, 1 << 62)
        first[how] = [bench.first_ms(block, pool) for _ in range(4 if small else 12)]
    drafts = []
    if not small:
        wanted = argparse.Namespace(tokens=8, repeats=30)
        for label, shape in SHAPES.items():
            drafts.append(asdict(measure(label, RandomCheckpoint(label, shape), None, device, wanted, speed)))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "bandwidth": speed,
        "passes": [asdict(m) for m in measures],
        "first_token_ms": first,
        "sessions": bench.sessions(12 if small else 1000),
        "drafter": drafts,
        "notices": bench.notices,
        "not_measured": ["packed formats: no kernels for GPUs yet", "distilling: swarm draft distill --gpu 0"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="a tiny model: whether the script runs, not how fast")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 0
    text = json.dumps(run(device, args.small), indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
