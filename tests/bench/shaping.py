"""What penalties, biases and a least length cost a tail: `python -m tests.bench.shaping`, ms a row at 49,152 tokens."""

from __future__ import annotations

import statistics
import time

import torch

from swarm.model.sampler import Sampling, pick
from swarm.model.shaping import Shaping

VOCAB, ROWS, ANSWER, TIMES = 49_152, 8, 1000, 41


def main() -> None:
    """One table, each way measured in turn so that all meet the same machine."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    logits = torch.randn(ROWS, VOCAB)
    answers = torch.randint(0, VOCAB, (ROWS, ANSWER)).tolist()
    positions = list(range(ANSWER, ANSWER + ROWS))
    ways = {
        "nothing": Sampling(),
        "a repetition penalty": Sampling(repetition_penalty=1.1),
        "presence and frequency": Sampling(shaping=Shaping(presence=0.5, frequency=0.5)),
        "a bias of 300 tokens": Sampling(shaping=Shaping(bias=tuple((token, 1.0) for token in range(300)))),
        "a least length": Sampling(shaping=Shaping(least=10**6, ends=(0, 2))),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TIMES):
        for name, sampling in ways.items():
            begun = time.perf_counter()
            pick(logits, positions, sampling, answers, None, answers)
            found[name].append((time.perf_counter() - begun) * 1000 / ROWS)
    for name, times in found.items():
        print(f"{name:24} {statistics.median(times):.3f} ms a row")


if __name__ == "__main__":
    main()
