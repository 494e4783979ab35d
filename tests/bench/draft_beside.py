"""What a drafter's prefill costs the ring's: a stage and the shipped drafter on one processor, in turns.

python -m tests.bench.draft_beside [--tokens 1500] [--rounds 5]

Seconds by the clock that layers 0 to 9 of the default model, in a process of their own, take for a prompt: alone,
beside the drafter's prefill of the same prompt, and beside one that yields (`swarm.run.background`). Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from draft.asset import load_drafter
from draft.lm import LmDrafter
from swarm.model.block import load_block
from swarm.model.files.checkpoint import load_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling
from swarm.ring.certain_rows import certain_rows
from swarm.run.background import in_background


def stage(tokens: int) -> None:
    """Answer each line with the seconds of one prefill."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(DEFAULT_MODEL, None)
        block = load_block(checkpoint, 0, 10, torch.device("cpu"), torch.bfloat16)
    layout = Layout(8, tokens)
    print("ready", flush=True)
    for _ in sys.stdin:
        kv, start = KVPool(block, 1 << 40).open(layout, 0, 10), time.perf_counter()
        with torch.inference_mode():
            for at in range(0, tokens, 256):
                block.forward([Job(kv, no_commits(), certain_rows(layout, at, [7] * min(256, tokens - at)), None)])
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if asked.stage:
        stage(asked.tokens)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        target, tokenizer = store.open(DEFAULT_MODEL, None), load_tokenizer(DEFAULT_MODEL, store)
        drafter = load_drafter(None, target, tokenizer, store, torch.device("cpu"))
    assert isinstance(drafter, LmDrafter)
    words = [sys.executable, "-m", "tests.bench.draft_beside", "--stage", "--tokens", str(asked.tokens)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()

        def begin() -> None:
            drafter.begin([7] * asked.tokens, Sampling())

        took: dict[str, list[float]] = {"alone": [], "beside": [], "yielding": []}
        for _ in range(asked.rounds):
            for way, seconds in took.items():
                work = {"alone": None, "beside": begin, "yielding": lambda: in_background(begin)}[way]
                thread = threading.Thread(target=work) if work else None
                if thread:
                    thread.start()
                other.stdin.write("go\n")
                other.stdin.flush()
                seconds.append(float(other.stdout.readline()))
                if thread:
                    thread.join()
        other.stdin.close()
    for way, seconds in took.items():
        ratio = statistics.median(mine / alone for mine, alone in zip(seconds, took["alone"], strict=True))
        print(f"{way:9} {statistics.median(seconds):6.2f} s   {ratio:.2f} of alone", flush=True)


if __name__ == "__main__":
    main()
