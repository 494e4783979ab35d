"""How far a rounded model is from the one that it was made from: both read one carried text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.base.events import Progress, Report, silent
from swarm.base.files import whole_folder
from swarm.model.block import Block, Job, load_block
from swarm.model.files.checkpoint import Checkpoint, end_tokens, transformers_tokenizer
from swarm.model.files.files import keep
from swarm.model.files.manifest import layer_of
from swarm.model.files.schemes import layer_weights
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.requantize import requantize
from swarm.model.rows import Layout, Rows, no_commits

CPU = torch.device("cpu")
TEXT_TOKENS = 512
PIECE_BYTES = 1 << 30
"""Expanded weights of either model that are in memory at a time; one layer at least."""


@dataclass(frozen=True)
class Quality:
    """perplexity: of the carried text, `tokens` long, by the original and the new model; same: of 1, how often the most
    probable next token is the same; divergence: mean Kullback-Leibler divergence from the original, in nats."""

    tokens: int
    perplexity_before: float
    perplexity_after: float
    same: float
    divergence: float


@dataclass(frozen=True)
class SmallerModel:
    """A model that `quantize` made: its folder and digest, bytes of weights before and after; quality: None where the
    two were not compared."""

    path: Path
    digest: str
    bytes_before: int
    bytes_after: int
    quality: Quality | None


def quantize(store: ModelStore, ref: str, to: str, out: Path, compared: bool, report: Report = silent) -> SmallerModel:
    """Make a smaller model in the new folder `out`, its tokenizer with it. to: a name of `requantize.TARGETS`. What is
    not compared needs no tokenizer. Raises ModelError, UsageError."""
    before = store.open(ref, report=report)
    tokens: list[int] = []
    try:
        tokenizer = transformers_tokenizer(store.tokenizer_source(ref, report), ref, report)
        tokens = list(tokenizer(carried_text())["input_ids"])
    except ModelError as exc:
        if compared:
            raise ModelError(f"{exc}; --no-report makes the model without comparing") from exc
    if compared and len(tokens) < 2:  # for a folder without one transformers makes an empty one
        raise ModelError(f"{ref} has no tokenizer; --no-report makes the model without comparing")
    try:
        with whole_folder(out) as part:
            size = requantize(before, to, part, report)
            if tokens:
                tokenizer.save_pretrained(part)
                ends = {"eos_token_id": sorted(end_tokens(before, store, ref))}
                keep(part / "generation_config.json", json.dumps(ends).encode())
    except OSError as exc:
        raise ModelError(f"cannot write {out}: {exc.strerror}; free space or name another folder") from exc
    after = store.open(str(out), report=report)
    quality = None
    if compared:
        quality = compare(before, after, tokens, report)
    stored = sum(entry.nbytes for entry in before.manifest.tensors)
    return SmallerModel(out, after.manifest.digest, stored, size, quality)


def carried_text() -> str:
    """Prose, numbers and a little code, written for it."""
    return resources.files("swarm").joinpath("data/quality_text.txt").read_text(encoding="utf-8")


def compare(before: Checkpoint, after: Checkpoint, tokens: list[int], report: Report = silent) -> Quality:
    """Run both models over `tokens` (two at least) in float32, some layers at a time. Raises ModelError."""
    tokens = tokens[: min(TEXT_TOKENS, before.manifest.context)]
    first, second = (
        functional.log_softmax(_logits(checkpoint, tokens, report)[:-1].float(), 1) for checkpoint in (before, after)
    )
    target = torch.tensor(tokens[1:])[:, None]
    losses = [float(-scores.gather(1, target).mean()) for scores in (first, second)]
    same = float((first.argmax(1) == second.argmax(1)).float().mean())
    divergence = float((first.exp() * (first - second)).sum(1).mean())
    return Quality(len(tokens), math.exp(losses[0]), math.exp(losses[1]), same, divergence)


def _logits(checkpoint: Checkpoint, tokens: list[int], report: Report) -> torch.Tensor:
    """[tokens, vocabulary] after every token."""
    manifest, layout = checkpoint.manifest, Layout(scratch=8, context=len(tokens))
    n, hidden, first = manifest.n_layers, None, 0
    layers = [w.entry for w in layer_weights(manifest, 0, n) if layer_of(w.entry.name) is not None]
    widest = -(-sum(math.prod(entry.shape) for entry in layers) // n)
    step = max(1, PIECE_BYTES // max(1, 4 * widest))
    while first < n:
        last = min(n, first + step)
        block = load_block(checkpoint, first, last, CPU, torch.float32)
        hidden = _through(block, tokens, layout, hidden)
        report(Progress("measure", manifest.model, last, n, "layers"))
        first = last
    assert hidden is not None
    return hidden


def _rows(tokens: list[int], layout: Layout) -> Rows:
    """A text from its first position on, every row wanted."""
    position = np.arange(len(tokens), dtype=np.uint32)
    return Rows(
        slot=position + np.uint32(layout.scratch),
        position=position,
        prefix=position + np.uint32(1),
        ancestors=np.zeros((len(tokens), layout.scratch // 8), np.uint8),
        token=np.array(tokens, np.int32),
        want=np.ones(len(tokens), bool),
    )


def _through(block: Block, tokens: list[int], layout: Layout, hidden: torch.Tensor | None) -> torch.Tensor:
    kv = KVPool(block, 1 << 62).open(layout, block.first, block.last)
    try:
        (out,) = block.forward([Job(kv, no_commits(), _rows(tokens, layout), hidden)])
    finally:
        kv.close()
    return out
