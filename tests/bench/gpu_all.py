"""All that is to be measured on a GPU, in one go: the drafter's loop, a stage's passes, sessions, the first token.

    python -m tests.bench.gpu_all --json FILE          on a GPU, under ten minutes; without one: the plan
    python -m tests.bench.gpu_all --device cpu --tiny  in seconds, uncaptured: whether the script itself still runs

Each measure stands beside the time in which the device reads the same bytes once, and beside what is wanted of it. A
measure that fails is written down with its error, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from swarm.base.errors import ModelError
from swarm.base.events import Event, Notice
from swarm.model.block import Block, Job, load_block
from swarm.model.graphs import GraphedBlock, graphed
from swarm.model.kvcache import KVPool
from swarm.model.quant.formats import blocks_format
from swarm.model.quant.matrix import PackedMatrix, hold
from swarm.model.quant.native import library
from swarm.model.quant.on_device import has_triton, on_device
from swarm.model.rows import Layout, Rows, no_commits
from tests.bench.gpu_draft import SHAPES, RandomCheckpoint, bandwidth, measure, waiter

EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 10, "heads": 32, "kv": 8}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "heads": 4, "kv": 2}
LAYOUT = Layout(scratch=64, context=1024)
PREFIX = 128


PLAN = (
    ("passes", "pass of 1, 16, 64 rows through 8 layers as of an 8B model, in graphs", "<= 1.3 of the bytes' time"),
    ("first_token_ms", "first token of a new session with graphs against eager", "not later"),
    ("sessions", "1,000 sessions opened and closed", "no graph and no memory lost"),
    ("drafter", "drafter's loop, graph against eager", ">= 4 times as fast, <= 1.3 of the bytes' time"),
    ("packed", "Q4_K, Q6_K, Q8_0, MXFP4, FP8 in blocks: 1, 8, 64 rows", "one row <= 1.5 of the stored bytes' time"),
    (
        "distilling",
        "distilling the default drafter: swarm draft distill --gpu 0",
        "minutes; by hand, not by this script",
    ),
)
"""Name in the JSON, what is measured, and what is wanted of it."""
NEEDED_BYTES = 12 << 30
"""Of the device: ten layers of the 8B shape in bfloat16, their sessions and graphs."""


def missing(device: torch.device) -> list[str]:
    """What this machine lacks for the whole plan."""
    found = []
    if device.type != "cuda":
        found.append(f"a CUDA device: this run is on the {device.type}, where nothing is captured")
    elif not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        found.append(
            f"a CUDA device: torch {torch.__version__} " + (f"sees none ({built})" if built else "has no CUDA")
        )
    elif torch.cuda.mem_get_info(device)[0] < NEEDED_BYTES:
        found.append(f"{NEEDED_BYTES >> 30} GiB of free memory on {device}")
    if importlib.util.find_spec("triton") is None:
        found.append("triton, for packed formats")
    return found


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
        return timed(work, self.wait)

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


def passes(bench: Bench, speed: float) -> object:
    """1, 16 and 64 rows, eager and in graphs."""
    roofline = 1e3 * bench.read / speed
    measures = []
    for count in (1, 16, 64):
        for block, how in ((bench.block, "eager"), (bench.fast, "graph")):
            ms = bench.passes_ms(block, count)
            measures.append(Measure(f"pass of {count} rows, {how}", ms, roofline, ms / roofline, "<= 1.3 with graphs"))
    return [asdict(m) for m in measures]


def first_tokens(bench: Bench, small: bool) -> object:
    """Milliseconds of new sessions, one after the other."""
    first = {}
    for block, how in ((bench.block, "eager"), (bench.fast, "graph")):
        pool = KVPool(block, 1 << 62)
        first[how] = [bench.first_ms(block, pool) for _ in range(4 if small else 12)]
    return first


def drafters(device: torch.device, small: bool, speed: float) -> object:
    """Step by step, a graph a step, a graph for the chain."""
    wanted = argparse.Namespace(tokens=2 if small else 8, repeats=2 if small else 30)
    shapes = {"tiny": TINY} if small else SHAPES
    return [
        asdict(measure(label, RandomCheckpoint(label, shape, 512 if small else 49152), None, device, wanted, speed))
        for label, shape in shapes.items()
    ]


def packed(device: torch.device, small: bool, speed: float, wait: Callable[[], None]) -> object:
    """Products with packed matrices of an 8B model's size, by Triton where it is and by unpacking a layer. On a CPU the
    latter alone. roofline_ms: the packed bytes' time."""
    lib = library()
    if lib is None:
        raise ModelError("packed formats need wanswarm installed with a C++ compiler: panels are made on the CPU")
    shape, found = (256, 512) if small else (14336, 4096), []
    dtype = torch.float32 if small else torch.bfloat16
    for name in ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "FP8_E4M3", "NVFP4_ROWS"):
        form = blocks_format(name)
        assert form is not None
        stored = np.random.default_rng(0).integers(
            0, 256, shape[0] * shape[1] // form.block * form.block_bytes, np.uint8
        )
        form.settle_scales(stored)
        held = hold(stored, form, shape, None, name, lib)
        assert isinstance(held, PackedMatrix)
        for by_triton in (False, True) if device.type == "cuda" and has_triton() else (False,):
            matrix = on_device(held, device, by_triton)
            for count in (1, 8, 64):
                x = torch.randn(count, shape[1], device=device, dtype=dtype)
                times = [timed(lambda m=matrix, x=x: m.product(x, None), wait) for _ in range(3 if small else 40)]  # type: ignore[misc]
                ms, roofline = statistics.median(times), 1e3 * held.nbytes / speed
                how = "Triton" if by_triton else "unpacked"
                wanted = "one row <= 1.5 of the stored bytes' time"
                found.append(asdict(Measure(f"{name}, {count} rows, {how}", ms, roofline, ms / roofline, wanted)))
    return found


def timed(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Milliseconds."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return (time.perf_counter() - start) * 1e3


def run(device: torch.device, small: bool) -> dict[str, object]:
    """All measures, as JSON has them."""
    bench = Bench(device, small)
    speed = bandwidth(device, bench.wait)
    steps: dict[str, Callable[[], object]] = {
        "passes": lambda: passes(bench, speed),
        "first_token_ms": lambda: first_tokens(bench, small),
        "sessions": lambda: bench.sessions(12 if small else 1000),
        "drafter": lambda: drafters(device, small, speed),
        "packed": lambda: packed(device, small, speed, bench.wait),
    }
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "bandwidth": speed,
        "missing": missing(device),
        "failed": (failed := dict[str, str]()),
    }
    for name, step in steps.items():
        started = time.perf_counter()
        try:
            found[name] = step()
        except Exception as error:  # one measure that fails must not cost the others: the GPU is lent for minutes
            failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    found["notices"] = bench.notices
    found["not_measured"] = ["distilling: swarm draft distill --gpu 0"]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: whether the script runs, not how fast")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    found: dict[str, object]
    if device.type == "cuda" and not torch.cuda.is_available():
        print("nothing was measured; the plan:")
        for name, what, wanted in PLAN:
            print(f"  {name:15} {what}: {wanted}")
        print("missing here: " + "; ".join(missing(device)))
        found = {"plan": [dict(zip(("name", "what", "wanted"), line, strict=True)) for line in PLAN]}
        found["missing"] = missing(device)
    else:
        found = run(device, args.tiny)
        print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found.get("failed") else 0


if __name__ == "__main__":
    raise SystemExit(main())
