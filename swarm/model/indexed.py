"""Attention over the slots that an index picks (DeepSeek V3.2, GLM-5, MiniMax M3).

A small head of its own scores every position for a row, and the row attends to the best `index_topk` that it sees. The
index's keys lie in the slots beside the layer's entries. The class's own code scores: for each job it is given the
rows, a cache that is the job's slots, and the mask that the rows themselves say. What it picks goes the class's way to
the attention function, over layers too that take an earlier one's choice.

MiniMax M3's index picks blocks of positions, for each key head its own. Slots lie in another order than positions, so
its choice is made here, block by block of the position that a slot's row has.

Where several positions score the same at the edge of the choice, the earliest are taken (`earliest.py`). In
transformers `topk` takes any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from swarm.model.attention import Attending, JobPlan, Plan
from swarm.model.earliest import TakeEarliest, earliest
from swarm.model.inorder import Sight
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
    """What an index picked: for each job of the forward an additive mask [n, high - low], or one for each key head
    [heads, n, high - low]; what its rows must not see included."""

    masks: Sequence[torch.Tensor]
    lows: Sequence[int] = ()

    def looking(self, ordered: Sequence[tuple[Sight, int]], head: int = 0) -> list[tuple[Sight, int]]:
        """What is seen in order, of what is picked (for one key head)."""
        found = []
        for (order, start), mask, low in zip(ordered, self.masks, self.lows, strict=True):
            visible = ((mask if mask.dim() == 2 else mask[head]) > float("-inf")).numpy()
            found.append((order.chosen(visible, low), start))
        return found


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
        seen = store[self.job.low : self.job.high]
        order = self.order
        return seen[None] if order is None else seen[order][None]

    @property
    def order(self) -> torch.Tensor | None:
        """Which slots in sight come in the order of positions; None where they lie so."""
        return self.job.by_place if isinstance(self.job, JobPlan) else None


def take_indices(inner: nn.Module, attending: Attending) -> bool:
    """Let every indexer of an inner model score over slots. Whether there is one, or a layer that takes a choice."""
    found = False
    for module in inner.modules():
        indexer = getattr(module, "indexer", None)
        layer = getattr(indexer, "layer_idx", None)
        own = isinstance(indexer, nn.Module) and isinstance(layer, int)  # DeepSeek V4's picks pooled entries
        found |= hasattr(module, "skip_topk") or own
        if isinstance(indexer, nn.Module) and isinstance(layer, int):
            make = _blocks if type(indexer).__name__ == "MiniMaxM3VLIndexer" else _forward
            indexer.forward = MethodType(make(type(indexer).forward, layer, attending), indexer)
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
            rows, residual, keys = hidden_states[:, one], q_resid[:, one], SlotIndex(job)
            shown = seen if keys.order is None else seen[:, keys.order]
            with attending.by_position(), nullcontext() if attending.taken_over else TakeEarliest():
                picked = own(indexer, rows, residual, angles, shown[None], None, past_key_values=keys)[0].long()
            picked = picked if keys.order is None else keys.order[picked]
            chosen = torch.full_like(seen, float("-inf")).scatter_(1, picked, 0.0)
            masks.append(chosen + seen)
        return Chosen(masks, [job.low for job in attending.jobs])

    return forward


def _blocks(own: Any, layer: int, attending: Attending) -> Callable[..., Chosen]:
    rotate = inspect.unwrap(own).__globals__["apply_rotary_pos_emb"]

    def forward(
        indexer: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Any,
        position_ids: torch.Tensor,
    ) -> Chosen:
        width = int(indexer.head_dim)
        if attending.trial is not None:
            attending.index_widths[layer] = width
            return Chosen(())
        split = (1, hidden_states.shape[1], -1, width)
        query = indexer.q_norm(indexer.q_proj(hidden_states).view(split)).transpose(1, 2)
        key = indexer.k_norm(indexer.k_proj(hidden_states).view(split)).transpose(1, 2)
        query, key = rotate(query, key, *(table[..., :width] for table in position_embeddings))
        masks = []
        for job in attending.jobs:
            one = slice(job.start, job.stop)
            keys = SlotIndex(job)
            seen = job.mask(None, 1)
            if seen is None:
                seen = hidden_states.new_zeros(job.stop - job.start, job.high - job.low)
            entries, places = keys.update_indexer(key[:, 0, one], layer)[0], _positions(job, seen.device)
            shown, places = (x if keys.order is None else x[..., keys.order] for x in (seen, places))
            with attending.by_position():
                scores = query[0, :, one].float() @ entries.float().T + shown.float()
                kept = _kept(indexer, scores, places, position_ids[0, one], seen.dtype)
            masks.append(seen + (kept if keys.order is None else kept[..., keys.order.argsort()]))
        return Chosen(masks, [job.low for job in attending.jobs])

    return forward


def _positions(job: Plan, device: torch.device) -> torch.Tensor:
    """int64 [high - low]: of the row that each slot in sight has."""
    scratch = job.kv.layout.scratch
    places = np.concatenate([job.kv.position[job.low : scratch], np.arange(max(0, job.high - scratch))])
    return torch.from_numpy(places[: job.high - job.low]).to(device)


def _kept(
    indexer: Any, scores: torch.Tensor, places: torch.Tensor, position: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Additive [heads, n, slots]: 0 in the blocks of positions that score best, the nearest ones always among them.
    scores float32 [heads, n, slots], -inf where a row sees nothing."""
    block = places // indexer.block_size
    here = position // indexer.block_size
    count = int(max(block.max(), here.max())) + 1
    best = torch.full((*scores.shape[:2], count), float("-inf"), device=scores.device)
    best.scatter_reduce_(2, block.expand_as(scores), scores, "amax")
    if indexer.local_blocks > 0:
        near = (here[:, None] - torch.arange(indexer.local_blocks, device=here.device)).clamp(min=0)
        best.scatter_(2, near.expand(len(scores), -1, -1), float("inf"))
    value, picked = earliest(best, min(indexer.topk_blocks, count))
    kept = torch.full_like(best, float("-inf")).scatter_(2, picked, torch.where(value > float("-inf"), 0.0, value))
    return kept.gather(2, block.expand_as(scores)).to(dtype)
