"""Attention over the slots that an index picks (DeepSeek V3.2, GLM-5).

A small head of its own scores every position for a row, and the row attends to the best `index_topk` that it sees. The
index's keys lie in the slots beside the layer's entries. The class's own code scores: for each job it is given the
rows, a cache that is the job's slots, and the mask that the rows themselves say. What it picks goes the class's way to
the attention function, over layers too that take an earlier one's choice.

Where several positions score the same at the edge of the choice, which of them is taken is left to `topk`, here as in
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from swarm.model.attention import Attending, Plan
from swarm.model.masks import Seen

INDEXED = "indexed_attention"


class Causal(Seen):
    """In the place of the mask of a class whose indexer looks at it: ours looks at the rows."""

    def __init__(self) -> None:
        super().__init__(lambda i, j: j <= i)

    def __getitem__(self, item: Any) -> Causal:
        return self


@dataclass(frozen=True)
class Chosen:
    """What an index picked: for each job of the forward an additive mask [n, high - low], what its rows must not see
    included."""

    masks: Sequence[torch.Tensor]


@dataclass(frozen=True)
class SlotIndex:
    """Stands for a cache of index keys: those of one job's slots in sight."""

    job: Plan

    def update_indexer(self, keys: torch.Tensor, layer: int) -> torch.Tensor:
        """Write [1, n, width], return [1, high - low, width]."""
        store = self.job.kv.index(layer)
        if isinstance(self.job.write, slice):
            store[self.job.write] = keys[0]
        else:
            store.index_copy_(0, self.job.write, keys[0])
        return store[None, self.job.low : self.job.high]


def take_indices(inner: nn.Module, attending: Attending) -> bool:
    """Let every indexer of an inner model score over slots. Whether there is one, or a layer that takes a choice."""
    found = False
    for module in inner.modules():
        indexer = getattr(module, "indexer", None)
        found |= hasattr(module, "skip_topk") or isinstance(indexer, nn.Module)
        layer = getattr(indexer, "layer_idx", None)
        if isinstance(indexer, nn.Module) and isinstance(layer, int):
            indexer.forward = MethodType(_forward(type(indexer).forward, layer, attending), indexer)
    return found


def masks_for(config: Any) -> dict[str, Any]:
    """What the `forward` of such a model is given beside its rows."""
    return {"attention_mask": {kind: Causal() for kind in set(config.layer_types)}}


def _forward(own: Callable[..., torch.Tensor], layer: int, attending: Attending) -> Callable[..., Chosen]:
    def forward(
        indexer: Any,
        hidden_states: torch.Tensor,
        q_resid: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        *others: Any,
        **named: Any,
    ) -> Chosen:
        if attending.trial is not None:
            attending.index_widths[layer] = int(indexer.head_dim)
            return Chosen(())
        masks = []
        for job in attending.jobs:
            one = slice(job.start, job.stop)
            angles = tuple(table[:, one] for table in position_embeddings)
            seen = job.mask(None, 1)
            if seen is None:
                seen = hidden_states.new_zeros(job.stop - job.start, job.high - job.low)
            rows, residual = hidden_states[:, one], q_resid[:, one]
            picked = own(indexer, rows, residual, angles, seen[None], None, past_key_values=SlotIndex(job))
            chosen = torch.full_like(seen, float("-inf")).scatter_(1, picked[0].long(), 0.0)
            masks.append(chosen + seen)
        return Chosen(masks)

    return forward
