"""What a target said, kept on disk: token sequences with the target's best logits at every recorded position.

One safetensors file per batch, so that collecting can be stopped at any time and training reads what is there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from swarm.model.files.safetensors_file import save_tensors

TOP = 64
"""Logits kept per position; the rest of the vocabulary is taken as impossible."""


@dataclass(frozen=True)
class Sample:
    """One sequence.

    tokens    int32 [n], the last one is not an input
    start     the recorded positions are start to n - 2: what the target gave after the token there
    ids       int32 [n - 1 - start, TOP], best first; logits float16, same shape
    register  "chat", "prose", "code" or "edit"; greedy: how answers were drawn
    """

    tokens: torch.Tensor
    start: int
    ids: torch.Tensor
    logits: torch.Tensor
    register: str
    kind: str
    greedy: bool


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write a batch; whole or not at all."""
    notes = [[s.start, len(s.tokens), s.register, s.kind, int(s.greedy)] for s in samples]
    tensors = {
        "tokens": torch.cat([s.tokens for s in samples]).int(),
        "ids": torch.cat([s.ids for s in samples]).int(),
        "logits": torch.cat([s.logits for s in samples]).half(),
    }
    part = path.with_suffix(".part")
    save_tensors(tensors, part, metadata={"samples": json.dumps(notes)})
    part.replace(path)


def load_samples(path: Path) -> list[Sample]:
    """Read a batch that `save_samples` wrote."""
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["samples"])
        tokens, ids, logits = (file.get_tensor(name) for name in ("tokens", "ids", "logits"))
    out, at, row = list[Sample](), 0, 0
    for start, length, register, kind, greedy in notes:
        rows = length - 1 - start
        own = tokens[at : at + length]
        out.append(Sample(own, start, ids[row : row + rows], logits[row : row + rows], register, kind, bool(greedy)))
        at, row = at + length, row + rows
    return out


def recorded(samples: Sequence[Sample]) -> int:
    """Positions with logits."""
    return sum(len(s.ids) for s in samples)


@dataclass(frozen=True)
class Batch:
    """Padded sequences for one forward.

    inputs int64 [b, t] (padding 0 at the end); rows int64 [r]: recorded positions in inputs.flatten();
    ids int64 [r, TOP], logits float32 [r, TOP]; samples: whose rows these are, in order
    """

    inputs: torch.Tensor
    rows: torch.Tensor
    ids: torch.Tensor
    logits: torch.Tensor
    samples: tuple[Sample, ...]


def batches(samples: Sequence[Sample], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """All samples once in random order, sequences of like length together, at most `tokens` inputs per batch."""
    groups: list[list[Sample]] = [[]]
    for sample in sorted(samples, key=lambda s: len(s.tokens)):
        if groups[-1] and (len(groups[-1]) + 1) * len(sample.tokens) > tokens:
            groups.append([])
        groups[-1].append(sample)
    groups = [group for group in groups if group]
    rng.shuffle(groups)
    for group in groups:
        yield collate(group)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad and join."""
    width = max(len(s.tokens) for s in samples) - 1
    inputs = torch.zeros(len(samples), width, dtype=torch.long)
    rows = []
    for i, sample in enumerate(samples):
        inputs[i, : len(sample.tokens) - 1] = sample.tokens[:-1]
        rows.append(i * width + sample.start + torch.arange(len(sample.ids)))
    ids = torch.cat([s.ids for s in samples]).long()
    return Batch(inputs, torch.cat(rows), ids, torch.cat([s.logits for s in samples]).float(), tuple(samples))
