"""EAGLE-3 heads in the making (Li et al., 2025, arXiv:2503.01840).

They learn by training-time test: a first pass over a text, where each token is read beside the target's rows of the one
before it, and then others where it is read beside what the head itself made of that one, as when it drafts further
ahead. What a pass sees of the text is then the target's, and its own of the tokens that it would have drafted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from draft.corpus import Batch
from draft.eagle3 import Eagle3Weights
from draft.loss import sparse_kl
from draft.recipe import Selection, Source
from draft.tapped_layer import Rotary, normed
from draft.tapped_student import Borrowed, Fresh, TargetRows, fold, layer_values, turn_of
from draft.trainable import Choices
from swarm.model.files.weights import make_config

DECAY = 0.8
"""Of the weight of each token further ahead."""


class Eagle3Student:
    """Implements `draft.trainable.Trainable`: a head of `layers` layers that learns to draft `ahead` tokens.

    Its matrix of scores begins as the target's and is trained; the embedding is the target's.
    """

    def __init__(self, source: Source, picked: Selection, layers: int, ahead: int) -> None:
        manifest, self.device = source.checkpoint.manifest, source.device
        self.ahead, width = ahead, manifest.hidden_size
        self.values = layer_values(manifest, source, "llama", layers)
        self.rows = TargetRows(source.model, picked.layers)
        self.borrowed, fresh = Borrowed(source, picked.head_tokens), Fresh(source.device)
        entering = len(picked.layers) * width
        self._spread = self.rows.spread(source.samples)  # 1 once it is part of `fc`
        self.weights = Eagle3Weights(
            taps=picked.layers,
            fc=fresh.matrix("fc.weight", width, entering),
            layers=tuple(fresh.layer(f"layers.{i}.", self.values, wide=i == 0) for i in range(layers)),
            norm=fresh.norm("norm.weight", width),
            head=fresh.own("lm_head.weight", self.borrowed.matrix),
            table=self.borrowed.table,
            tokens=None,
            rotary=Rotary(make_config(self.values, "a head in the making"), torch.float32),
            before=(),
            plain_residual=False,
        )
        self.parameters = fresh.values
        self.short = self.borrowed.short(self.weights.head)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `Trainable.trained`. `fc` is trained as it would be if all of the target's values were of one size."""
        yield from self.parameters.items()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name."""
        return {**self.parameters, "fc.weight": self.weights.fc / self._spread, **self.borrowed.map()}

    def settle(self) -> None:
        """Compute with what `stored` makes of `tensors` from now on."""
        fold(self.parameters, self._spread)

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        """See `Trainable.loss`: the sum over passes, each weighing less than the one before."""
        ids, target = self.short.target(batch.ids, batch.logits)
        total, weighed = torch.zeros((), device=self.device), 0.0
        with torch.autocast(self.device.type, torch.bfloat16):
            for number, made in enumerate(self._unrolled(batch)):
                rows = self._reached(batch, number)
                hidden = made[batch.rows[rows].to(self.device)]
                rows = rows.to(self.device)
                weight = DECAY**number
                total = total + weight * sparse_kl(hidden, self.short.matrix, ids[rows], target[rows])
                weighed += weight
        return total / weighed

    @torch.no_grad()
    def choices(self, batch: Batch) -> list[Choices]:
        """See `Trainable.choices`; as exactly as a loaded head drafts."""
        found = []
        for number, made in enumerate(self._unrolled(batch)):
            rows = self._reached(batch, number)
            found.append(Choices(rows, self.short.best(made[batch.rows[rows].to(self.device)])))
        return found

    def _reached(self, batch: Batch, number: int) -> torch.Tensor:
        """Recorded rows of a batch that a pass says something of: the token at 0 has no row before it."""
        return (batch.rows % batch.inputs.shape[1] > number).nonzero()[:, 0]

    def _unrolled(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Per pass the rows that scores are made of, [b * t, d]."""
        weights, inputs = self.weights, batch.inputs.to(self.device)
        turn = turn_of(weights.rotary, torch.arange(inputs.shape[1], device=self.device))
        given = shifted(weights.joined(self.rows(inputs) / self._spread))
        kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in weights.layers]
        for number in range(self.ahead):
            seen = sight(inputs.shape[1], number, self.device)
            rows, inner = weights.entering(inputs, given)
            for layer, before in zip(weights.layers, kept, strict=True):
                inner = inner if layer is weights.layers[0] else layer.norm("input_layernorm", rows)
                before.append(layer.keys(inner, turn))
                keys, values = (torch.cat(parts, -2) for parts in zip(*before, strict=True))
                rows = rows + layer.attend(layer.queries(inner, turn), keys, values, seen[None])
                rows = layer.fed(rows)
            yield normed(rows, weights.norm, weights.eps).flatten(0, 1)
            given = shifted(rows)


def shifted(rows: torch.Tensor) -> torch.Tensor:
    """Rows [b, t, d] of the position before each; of the first, nothing."""
    return functional.pad(rows[:, :-1], (0, 0, 1, 0))


def sight(length: int, number: int, device: torch.device) -> torch.Tensor:
    """What a pass sees of itself and those before it, bool [t, (number + 1) t]: of the first one all but the last
    `number` positions before its own (and not position 0, which has no row before it), of the pass n the one that is
    (number - n) before its own. A row sees itself at least."""
    at = torch.arange(length, device=device)
    text = (at[None] <= at[:, None] - number) & (at[None] > 0)
    parts = [text, *(at[None] == at[:, None] - (number - n) for n in range(1, number + 1))]
    parts[-1] = parts[-1] | (at[None] == at[:, None])
    return torch.cat(parts, 1)
