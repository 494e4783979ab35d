"""Medusa heads in the making (Cai et al., 2024, arXiv:2401.10774, "Medusa-1"): the target stays as it is, and each head
learns what it will say one token further ahead than the head before.

A head is residual blocks that begin as none, and a matrix that begins as the target's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from draft.corpus import Batch
from draft.loss import ShortHead, sparse_kl
from draft.recipe import Selection, Source
from draft.tapped_student import Borrowed, Fresh, TargetRows, fold
from draft.trainable import Choices

DECAY = 0.8
"""Of the weight of each head further ahead."""


class MedusaStudent:
    """Implements `draft.trainable.Trainable`: `ahead` heads of so many residual blocks."""

    def __init__(self, source: Source, picked: Selection, blocks: int, ahead: int) -> None:
        manifest, self.device = source.checkpoint.manifest, source.device
        self.ahead, self.blocks, width = ahead, blocks, manifest.hidden_size
        self.rows = TargetRows(source.model, picked.layers)
        self.borrowed, fresh = Borrowed(source, picked.head_tokens), Fresh(source.device)
        none = torch.zeros(width, width)
        self._heads = [
            (
                [fresh.own(f"blocks.{i}.layers.{j}.weight", none) for j in range(blocks)],
                self.borrowed.short(fresh.own(f"lm_heads.{i}.weight", self.borrowed.matrix)),
            )
            for i in range(ahead)
        ]
        self.parameters = fresh.values

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `Trainable.trained`."""
        yield from self.parameters.items()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name."""
        own = {} if self.borrowed.whole else {"token_map": self.borrowed.tokens}
        return {**self.parameters, **own}

    def settle(self) -> None:
        """Compute with what `stored` makes of `tensors` from now on."""
        fold(self.parameters)

    def loss(self, batch: Batch, draw: torch.Generator) -> torch.Tensor:
        """See `Trainable.loss`: the sum over heads, each weighing less than the one before."""
        made, total, weighed = self.rows(batch.inputs.to(self.device)), torch.zeros((), device=self.device), 0.0
        with torch.autocast(self.device.type, torch.bfloat16):
            for number, (hidden, short, rows) in enumerate(self._said(batch, made)):
                ids, target = short.target(batch.ids[rows], batch.logits[rows])
                total = total + DECAY**number * sparse_kl(hidden, short.matrix, ids, target)
                weighed += DECAY**number
        return total / weighed

    @torch.no_grad()
    def choices(self, batch: Batch) -> list[Choices]:
        """See `Trainable.choices`; as exactly as loaded heads draft."""
        made = self.rows(batch.inputs.to(self.device))
        return [Choices(rows, short.best(hidden)) for hidden, short, rows in self._said(batch, made)]

    def _said(self, batch: Batch, made: torch.Tensor) -> Iterator[tuple[torch.Tensor, ShortHead, torch.Tensor]]:
        """Per head its rows [r, d], its scores, and the recorded rows of the batch that they guess at: head i reads the
        row i + 1 before the one that says the token."""
        width = batch.inputs.shape[1]
        for number, (blocks, short) in enumerate(self._heads):
            rows = (batch.rows % width > number).nonzero()[:, 0]
            hidden = made.flatten(0, 1)[(batch.rows[rows] - number - 1).to(self.device)]
            for block in blocks:
                hidden = hidden + functional.silu(functional.linear(hidden, block))
            yield hidden, short, rows
