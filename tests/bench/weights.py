"""A whole model in one process, weights as stored against expanded, and llama.cpp with the same file and threads.

python -m tests.bench.weights FILE.gguf [--threads 1 2] [--peer PYTHON] [--turns 9]

PYTHON: an interpreter that has `xllamacpp` (llama.cpp prebuilt). Medians; every line is measured in a process of its
own, one after the other. Bytes are those of the process beyond what it held before loading, over the stored bytes.

With --turns both are loaded and take turns, the processor's time instead of the clock's, medians of the turns and of
their ratios: for a machine that others use. One thread, since waiting threads spend it too. With --clock the
machine must be alone: stored weights and llama.cpp take turns by the clock, each alone, so threads may be compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from swarm.model.files.checkpoint import Checkpoint

if TYPE_CHECKING:
    from swarm.model.block import Block

ROWS = (1, 4, 8, 16, 64)
TURN_ROWS = (1, 16, 64)
TEXT = "The capital of France is Paris. The capital of Italy is"
PROMPT = 512

PEER = """
import json, sys
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_batch, p.n_parallel = sys.argv[1], 1024, 512, 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[2])
server, found = x.Server(p), []
for turn in range(3):
    prompt = list(range(1000 + 3000 * turn, 1512 + 3000 * turn))
    answer = server.handle_completions(
        {"prompt": prompt, "n_predict": 24, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    )
    said = answer if isinstance(answer, dict) else json.loads(answer)
    found.append((1000 / said["timings"]["predicted_per_second"], said["timings"]["prompt_per_second"]))
print("FOUND", json.dumps([sorted(column)[1] for column in zip(*found)]))
"""


PEER_TURNS = """
import json, sys, time
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_batch, p.n_parallel = sys.argv[1], 1024, 512, 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server, turn = x.Server(p), 0

def took(prompt, tokens):
    before = time.process_time()
    server.handle_completions(
        {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    )
    return (time.process_time() - before) * 1000

print("FOUND {}", flush=True)
for line in sys.stdin:
    turn += 1
    if line.strip() == "prompt":
        found = {"prompt": took(list(range(1000 + 600 * turn, 1512 + 600 * turn)), 1)}
    else:  # 16 tokens more, behind a prompt that both calls read
        prompt = list(range(1000 + 40 * turn, 1016 + 40 * turn))
        few, more = took(prompt, 1), took(prompt, 17)
        found = {"1": (more - few) / 16}
    print("FOUND", json.dumps(found), flush=True)
"""


class Pass(Protocol):
    """Milliseconds of a pass of `count` rows of the prompt from position `at` on."""

    def __call__(self, at: int, count: int, *, want_all: bool) -> float: ...


def passes_of(block: Block, n: int, clock: Callable[[], float]) -> Pass:
    """Passes of one session over all `n` layers, timed by `clock`."""
    import dataclasses

    import numpy as np

    from swarm.model.job import Job
    from swarm.model.kvcache import KVPool
    from swarm.model.rows import Layout, no_commits
    from swarm.ring.certain_rows import certain_rows

    layout = Layout(0, 1024)
    kv = KVPool(block, 1 << 62).open(layout, 0, n)
    tokens = [int(t) for t in np.random.default_rng(0).integers(5, 30_000, PROMPT)]

    def forward(at: int, count: int, *, want_all: bool) -> float:
        rows = certain_rows(layout, at, tokens[at : at + count], True)
        rows = dataclasses.replace(rows, want=np.ones(count, bool)) if want_all else rows
        begun = clock()
        block.forward([Job(kv, no_commits(), rows, None)])
        return (clock() - begun) * 1000.0

    return forward


def ours(path: str, weights: str, threads: int) -> dict[str, object]:
    """Milliseconds of a pass by rows, prompt tokens per second, seconds to load, bytes over stored bytes."""

    import psutil
    import torch

    from swarm.model.block import load_block
    from swarm.model.files.store import ModelStore

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(path, None)
        n, stored = checkpoint.manifest.n_layers, sum(t.nbytes for t in checkpoint.manifest.tensors)
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        block = load_block(checkpoint, 0, n, torch.device("cpu"), torch.bfloat16, weights=weights)
        spent = time.perf_counter() - start
        held = (psutil.Process().memory_info().rss - before) / stored
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / stored
        forward = passes_of(block, n, time.perf_counter)
        forward(0, 32, want_all=False)
        passes = {rows: sorted(forward(32, rows, want_all=True) for _ in range(9))[4] for rows in ROWS}
        prompt = sorted(forward(0, PROMPT, want_all=False) for _ in range(3))[1]
    return {"ms": passes, "prompt": PROMPT / prompt * 1000.0, "load_s": spent, "held": held, "peak": peak}


def our_turns(path: str) -> None:
    """Answer each line of the input, "pass" or "prompt", with milliseconds of the processor: of passes by rows, or of a
    prompt."""

    import torch

    from swarm.model.block import load_block
    from swarm.model.files.store import ModelStore

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(path, None)
        n = checkpoint.manifest.n_layers
        block = load_block(checkpoint, 0, n, torch.device("cpu"), torch.bfloat16, weights="auto")
    forward = passes_of(block, n, time.process_time)
    forward(0, 32, want_all=False)
    print("FOUND {}", flush=True)
    for line in sys.stdin:
        if line.strip() == "prompt":
            found = {"prompt": forward(0, PROMPT, want_all=False)}
        else:
            found = {str(r): statistics.median(forward(32, r, want_all=True) for _ in range(9)) for r in TURN_ROWS[:1]}
            found |= {str(r): forward(32, r, want_all=True) for r in TURN_ROWS[1:]}
        print("FOUND", json.dumps(found), flush=True)


def in_turns(path: str, peer: str | None, turns: int) -> None:
    """Print medians of the processor's time of both, and of what llama.cpp takes over ours."""
    words = {"ours": [sys.executable, "-m", "tests.bench.weights", path, "--one", "turns"]}
    if peer:
        words["llama.cpp"] = [peer, "-c", PEER_TURNS, path]
    pipe = subprocess.PIPE
    running = {
        name: subprocess.Popen(given, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        for name, given in words.items()
    }

    def answer(name: str, asked: str = "") -> dict[str, float]:
        process = running[name]
        assert process.stdin is not None and process.stdout is not None
        if asked:
            print(asked, file=process.stdin, flush=True)
        for line in process.stdout:
            if "FOUND" in line:
                return json.loads(line.partition("FOUND")[2])  # type: ignore[no-any-return]
        raise RuntimeError(f"{name} ended")

    taken: dict[tuple[str, str], list[float]] = {}
    try:
        for name in running:
            answer(name)
        for turn in range(turns):
            for asked in ("pass", "prompt") if turn % 3 == 2 else ("pass",):
                for name in running:
                    for what, ms in answer(name, asked).items():
                        taken.setdefault((name, what), []).append(ms)
            ones = [found[-1] for (_, what), found in taken.items() if what == "1"]
            print(f"turn {turn + 1}: one row {', '.join(f'{ms:.1f}' for ms in ones)} ms", file=sys.stderr, flush=True)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for (name, what), found in taken.items():
        line = f"{name}, {what if what == 'prompt' else what + ' rows'}: {statistics.median(found):.1f} ms"
        if name != "ours" and ("ours", what) in taken:
            ratios = [theirs / own for theirs, own in zip(found, taken["ours", what], strict=True)]
            line += f", {statistics.median(ratios):.2f} times ours ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line, flush=True)
    ones = taken["ours", "1"]
    for rows in map(str, TURN_ROWS[1:]):
        over = statistics.median(many / one for many, one in zip(taken["ours", rows], ones, strict=True))
        print(f"{rows} rows over one: {over:.2f}", flush=True)


def theirs(path: str, peer: str, threads: int) -> tuple[float, float]:
    """Milliseconds of a token and tokens of a prompt in a second, of llama.cpp."""
    words = [peer, "-c", PEER, path, str(threads)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = [line for line in (run.stdout + run.stderr).splitlines() if "FOUND" in line]
    token, prompt = json.loads(lines[-1].partition("FOUND")[2])
    return float(token), float(prompt)


def by_the_clock(path: str, peer: str, threads: int, turns: int) -> None:
    """Print medians of both in turns, and of their ratios."""
    found: list[tuple[float, float, float, float, float, float]] = []
    for _ in range(turns):
        words = [sys.executable, "-m", "tests.bench.weights", path, "--one", "auto", "--threads", str(threads)]
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        token, prompt = theirs(path, peer, threads)
        one, few, many = (said["ms"][str(rows)] for rows in (1, 16, 64))
        found.append((one, token / one, few / one, many / one, said["prompt"], said["prompt"] / prompt))
        print(f"{threads} threads, turn {len(found)}: ours {one:.1f} ms, llama.cpp {token:.1f} ms", file=sys.stderr)
    one, ratio, few, many, prompt, faster = (statistics.median(column) for column in zip(*found, strict=True))
    spread = f"{min(turn[1] for turn in found):.2f} to {max(turn[1] for turn in found):.2f}"
    print(
        f"{threads} threads: one row {one:.1f} ms, llama.cpp {ratio:.2f} times ours ({spread}); 16 rows over one "
        f"{few:.2f}, 64 over one {many:.2f}; prompt {prompt:.0f} tokens/s, {faster:.2f} times llama.cpp's",
        flush=True,
    )


@dataclass(frozen=True)
class Agreement:
    """Greedy tokens of the unpacked model, and what packed weights say at the same places: how many are equal, how many
    of the others are near-ties (the two best closer than four times the mean error of a logit)."""

    tokens: int
    equal: int
    ties: int


def agreement(checkpoint: Checkpoint, prompt: list[int], tokens: int = 32) -> Agreement:
    """Both in float32 between the products, so that the rounding of rows to bytes is all that differs."""
    import dataclasses

    import numpy as np
    import torch

    from swarm.model.block import load_block
    from swarm.model.job import Job
    from swarm.model.kvcache import KVPool
    from swarm.model.rows import Layout, no_commits
    from swarm.ring.certain_rows import certain_rows

    n, layout = checkpoint.manifest.n_layers, Layout(0, len(prompt) + tokens)

    def logits(weights: str, ids: list[int]) -> torch.Tensor:
        """Of every place from the prompt's last on; with only a prompt, greedy tokens are added to `ids`."""
        block = load_block(checkpoint, 0, n, torch.device("cpu"), torch.float32, weights=weights)
        kv = KVPool(block, 1 << 62).open(layout, 0, n)
        found, at, rows = [], 0, list(ids)
        while at < len(prompt) + tokens - 1:
            asked = certain_rows(layout, at, rows, True)
            asked = dataclasses.replace(asked, want=np.arange(at, at + len(rows)) >= len(prompt) - 1)
            found.append(block.forward([Job(kv, no_commits(), asked, None)])[0])
            at, rows = at + len(rows), [int(found[-1][-1].argmax())]
            if at >= len(ids):
                ids += rows
        return torch.cat(found)

    ids = list(prompt)
    exact = logits("expanded", ids)
    packed = logits("auto", ids[: len(prompt) + tokens - 1])
    differ = (exact.argmax(1) != packed.argmax(1)).nonzero().flatten()
    best = exact[differ].topk(2).values
    ties = (best[:, 0] - best[:, 1]) < 4 * (exact - packed)[differ].abs().mean(1)
    return Agreement(tokens, tokens - len(differ), int(ties.sum()))


def agree(path: str) -> Agreement:
    """`agreement` of a file, on a sentence."""
    import torch

    from swarm.model.files.checkpoint import load_tokenizer
    from swarm.model.files.store import ModelStore

    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        ids = load_tokenizer(path, store)(TEXT)["input_ids"]
        return agreement(store.open(path, None), list(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--greedy", action="store_true", help="only compare 32 greedy tokens, stored and unpacked")
    parser.add_argument("--one", choices=("auto", "expanded", "turns"), help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, metavar="N", help="take so many turns instead, by the processor's time")
    parser.add_argument("--clock", type=int, metavar="N", help="take so many turns with the peer, by the clock")
    arguments = parser.parse_args()
    if arguments.clock and not arguments.peer:
        parser.error("--clock takes turns with a --peer")
    if arguments.clock:
        for threads in arguments.threads:
            by_the_clock(arguments.file, arguments.peer, threads, arguments.clock)
        return
    if arguments.one == "turns":
        our_turns(arguments.file)
        return
    if arguments.turns:
        in_turns(arguments.file, arguments.peer, arguments.turns)
        return
    if arguments.one:
        print(json.dumps(ours(arguments.file, arguments.one, arguments.threads[0])))
        return
    if arguments.greedy:
        found = agree(arguments.file)
        print(f"{found.equal} of {found.tokens} greedy tokens equal, {found.ties} of the others near-ties")
        return
    for threads in arguments.threads:
        for weights in ("auto", "expanded"):
            words = [sys.executable, "-m", "tests.bench.weights", arguments.file, "--one", weights]
            run = subprocess.run([*words, "--threads", str(threads)], capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            passes = "  ".join(f"{rows} rows {ms:.1f} ms" for rows, ms in found["ms"].items())
            print(
                f"{threads} threads, {'stored' if weights == 'auto' else weights}: {passes}  prompt "
                f"{found['prompt']:.0f} tokens/s  load {found['load_s']:.1f} s  held {found['held']:.2f}  "
                f"peak {found['peak']:.2f} of the stored bytes",
                flush=True,
            )
        if arguments.peer:
            token, prompt = theirs(arguments.file, arguments.peer, threads)
            print(f"{threads} threads, llama.cpp: token {token:.1f} ms  prompt {prompt:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
