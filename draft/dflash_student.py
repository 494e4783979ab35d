"""Block drafters in the making: DFlash (arXiv:2602.06036), and DSpark with its sequential head (arXiv:2607.05147).

Blocks begin at tokens drawn at random. Each reads the target's rows of the text before its first token and all of
itself: that token, then masks. All places are guessed at once, those further ahead weighing less. In half of the blocks
more tokens are known than the first, as they are behind drafts that are under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from draft.corpus import Batch
from draft.dflash import BlockWeights, Markov
from draft.loss import sparse_kl
from draft.recipe import Selection, Source
from draft.tapped_layer import Rotary, normed
from draft.tapped_student import Borrowed, Fresh, TargetRows, fold, layer_values, turn_of
from draft.trainable import Choices
from swarm.model.files.weights import make_config

MARKOV_RANK = 64
MORE_KNOWN = 0.5


class _Blocks(NamedTuple):
    """Blocks of a batch, a of each sequence: position of the first token [b, a], how many are known [b, a], tokens
    [b, a, size], masked behind those; behind each place the token before the one that it guesses [b, a, size]."""

    first: torch.Tensor
    known: torch.Tensor
    tokens: torch.Tensor
    before: torch.Tensor


class BlockStudent:
    """Implements `draft.trainable.Trainable`: a drafter of `layers` layers that guesses `ahead` tokens in one pass.

    markov: with DSpark's sequential head of the first kind, which adds what follows from the token before. Embedding
    and head are the target's and stay.
    """

    def __init__(self, source: Source, picked: Selection, layers: int, ahead: int, markov: bool) -> None:
        manifest, self.device = source.checkpoint.manifest, source.device
        self.ahead, width = ahead, manifest.hidden_size
        self.values = layer_values(manifest, source, "qwen3", layers)
        self.rows = TargetRows(source.model, picked.layers)
        self.borrowed, fresh = Borrowed(source, picked.head_tokens), Fresh(source.device)
        self._spread = self.rows.spread(source.samples)  # 1 once it is part of `fc`
        fc = fresh.matrix("fc.weight", width, len(picked.layers) * width)
        made = tuple(fresh.layer(f"layers.{i}.", self.values) for i in range(layers))
        joined, norm = fresh.norm("hidden_norm.weight", width), fresh.norm("norm.weight", width)
        second = torch.zeros(len(picked.head_tokens), MARKOV_RANK)
        self.weights = BlockWeights(
            taps=picked.layers,
            fc=fc,
            layers=made,
            norm=norm,
            head=self.borrowed.matrix,
            table=self.borrowed.table,
            tokens=None,
            rotary=Rotary(make_config(self.values, "a drafter in the making"), torch.float32),
            joined_norm=joined,
            windows=(None,) * layers,
            size=ahead + (not markov),
            mask=picked.mask,
            shifted=markov,
            markov=None
            if not markov
            else Markov(
                "vanilla",
                fresh.matrix("markov_head.markov_w1.weight", manifest.vocab_size, MARKOV_RANK),
                fresh.own("markov_head.markov_w2.weight", second),
            ),
        )
        self.parameters = fresh.values
        self.short = self.borrowed.short()
        self._lead = int(markov)
        """How much earlier a place guesses than that of its own token: DSpark's guess the token after it."""

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `Trainable.trained`. `fc` is trained as it would be if all of the target's values were of one size."""
        yield from self.parameters.items()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name; the head only where it is of some tokens alone."""
        own = {} if self.borrowed.whole else {"lm_head.weight": self.borrowed.matrix, **self.borrowed.map()}
        return {**self.parameters, "fc.weight": self.weights.fc / self._spread, **own}

    def settle(self) -> None:
        """Compute with what `stored` makes of `tensors` from now on."""
        fold(self.parameters, self._spread)

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        """See `Trainable.loss`: the mean over guessed places, each weighing less than the one before it."""
        size = self.weights.size
        lengths = torch.tensor([len(sample.ids) for sample in batch.samples])
        starts = torch.tensor([sample.start for sample in batch.samples])
        many = max(1, batch.inputs.shape[1] // size)
        share = torch.rand(len(lengths), many, generator=draw)
        first = starts[:, None] + (share * lengths[:, None]).long()
        more = torch.randint(1, max(2, self.ahead), first.shape, generator=draw)
        known = torch.where(torch.rand(first.shape, generator=draw) < MORE_KNOWN, more, 1)
        blocks = self._laid(batch, first.clamp(min=1), known)
        places, rows = self._guessed(batch, blocks)
        ids, target = self.short.target(batch.ids[rows], batch.logits[rows])
        ahead = (places % size) - (blocks.known.flatten()[places // size] - self._lead)
        weight = torch.exp(-ahead / (size / 2)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self._computed(batch, blocks)[places.to(self.device)]
            return sparse_kl(hidden, self.short.matrix, ids, target, weight / weight.sum(), self._more(blocks, places))

    @torch.no_grad()
    def choices(self, batch: Batch) -> list[Choices]:
        """See `Trainable.choices`, of blocks that follow each other; as exactly as a loaded drafter guesses."""
        size = self.weights.size
        longest = max(len(sample.ids) for sample in batch.samples)
        steps = torch.arange(0, longest, size)
        lengths = torch.tensor([len(sample.ids) for sample in batch.samples])
        starts = torch.tensor([sample.start for sample in batch.samples])
        first = (starts[:, None] + torch.minimum(steps[None], lengths[:, None] - 1)).clamp(min=1)
        blocks = self._laid(batch, first, torch.ones_like(first))
        places, rows = self._guessed(batch, blocks)
        fresh = (places // size % len(steps))[:, None] * size < lengths[places // size // len(steps)][:, None]
        places, rows = places[fresh[:, 0]], rows[fresh[:, 0]]  # a short sequence's last block stands there again
        best = self.short.best(self._computed(batch, blocks)[places.to(self.device)], self._more(blocks, places))
        at = places % size + self._lead - 1
        return [Choices(rows[at == i], best[(at == i).to(self.device)]) for i in range(self.ahead)]

    def _laid(self, batch: Batch, first: torch.Tensor, known: torch.Tensor) -> _Blocks:
        """Blocks from positions [b, a] with so many tokens known."""
        weights, text = self.weights, batch.inputs
        at = first[..., None] + torch.arange(weights.size)
        whole = functional.pad(text, (1, weights.size + 1))
        for row, sample in enumerate(batch.samples):
            whole[row, 1 : len(sample.tokens) + 1] = sample.tokens
        held = whole.gather(1, at.flatten(1) + 1).view(at.shape)
        before = held if weights.shifted else whole.gather(1, at.flatten(1)).view(at.shape)
        masked = torch.arange(weights.size) >= known[..., None]
        return _Blocks(first, known, held.masked_fill(masked, weights.mask), before)

    def _guessed(self, batch: Batch, blocks: _Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        """Places that guess something recorded, int64 into all of all blocks, and which recorded rows these are."""
        weights, width = self.weights, batch.inputs.shape[1]
        number = torch.full((len(batch.inputs), width), -1)
        number.view(-1)[batch.rows] = torch.arange(len(batch.rows))
        at = blocks.first[..., None] + torch.arange(weights.size) - (1 - self._lead)
        rows = number.gather(1, at.flatten(1).clamp(max=width - 1)).view(at.shape).masked_fill(at >= width, -1)
        open_ = torch.arange(weights.size) >= blocks.known[..., None] - self._lead
        places = ((rows >= 0) & open_).flatten().nonzero()[:, 0]
        return places, rows.flatten()[places]

    def _more(self, blocks: _Blocks, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        markov = self.weights.markov
        if markov is None:
            return None
        return markov.first[blocks.before.flatten()[places].to(self.device)], markov.second

    def _computed(self, batch: Batch, blocks: _Blocks) -> torch.Tensor:
        """The rows of all places of all blocks, [b * a * size, d]."""
        weights, inputs = self.weights, batch.inputs.to(self.device)
        text = torch.arange(inputs.shape[1], device=self.device)
        first = blocks.first.to(self.device)
        many, size = first.shape[1], weights.size
        at = (first[..., None] + torch.arange(size, device=self.device)).flatten(1)
        number = torch.arange(many, device=self.device).repeat_interleave(size)
        before = text[None, None] < first[:, number][..., None]
        beside = (number[:, None] == number[None])[None].expand(len(inputs), -1, -1)
        seen = torch.cat([before, beside], -1)
        joined = normed(weights.joined(self.rows(inputs) / self._spread), weights.joined_norm, weights.eps)
        turn, turn_text = turn_of(weights.rotary, at), turn_of(weights.rotary, text)
        rows = weights.table[blocks.tokens.flatten(1).to(self.device)]
        for layer in weights.layers:
            inner = layer.norm("input_layernorm", rows)
            parts = layer.keys(joined, turn_text), layer.keys(inner, turn)
            keys, values = (torch.cat(pair, -2) for pair in zip(*parts, strict=True))
            rows = rows + layer.attend(layer.queries(inner, turn), keys, values, seen)
            rows = layer.fed(rows)
        return normed(rows, weights.norm, weights.eps).flatten(0, 1)
