"""DeepSeek V4's attention: a short window of positions, and beside it entries that stand for many positions each.

Heavily compressed layers look at all entries that lie behind a row, compressed sparse ones at those that an index
picks, whose keys are pooled in the same way (DeepSeek-V4, sections 2.3.1 and 2.3.2). The class's compressors project,
pool and score; what is pooled, and what a row sees of it, comes from the session's slots (`linear/pooled.py`). What
they find is handed to the attention function beside the rows of the window.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from swarm.base.errors import ModelError
from swarm.model.attention import Attending, JobPlan
from swarm.model.earliest import earliest
from swarm.model.linear.mixers import StateCall
from swarm.model.linear.pooled import Pool, Pooled, run_pool
from swarm.model.linear.shapes import PoolShape
from swarm.model.masks import Beside

_NAMES = {"DeepseekV4HCACompressor": False, "DeepseekV4CSACompressor": True}
"""Classes, and whether their windows overlap and an index picks."""


def take_compressors(inner: nn.Module, attending: Attending) -> None:
    """Let every compressor of an inner model pool over slots."""
    for module in inner.modules():
        kind = type(module).__name__
        if kind in _NAMES:
            module.forward = MethodType(_forward(_NAMES[kind], attending), module)


def _forward(sparse: bool, attending: Attending) -> Callable[..., tuple[torch.Tensor, None]]:
    def forward(
        module: Any,
        hidden_states: torch.Tensor,
        q_residual: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Any,
        layer_idx: int,
    ) -> tuple[torch.Tensor, None]:
        shape = _shape(module, sparse)
        nothing = hidden_states.new_zeros(1, 1, 0, module.head_dim)
        if attending.trial is not None:
            attending.kept.append(StateCall(layer_idx, shape))
            return nothing, None
        parts = [module, module.indexer] if sparse else [module]
        given = torch.cat(
            [x for part in parts for x in (part.kv_proj(hidden_states), part.gate_proj(hidden_states))], -1
        )
        pool = _pool(parts, shape.rate, sparse)
        found = []
        for job in attending.jobs:
            if not isinstance(job, JobPlan) or job.paths is None:
                raise ModelError("a model with compressed attention runs without recorded graphs")
            one = slice(job.start, job.stop)
            with attending.by_position():
                pooled = run_pool(job.kv.pool(layer_idx), job.paths, given[0, one], pool)
                seen = pooled.seen
                if sparse:
                    seen = _picked(module, pooled, hidden_states[:, one], q_residual[:, one], position_ids[:, one])
            order = pooled.windows.argsort(stable=True)
            found.append(Beside(pooled.entries[order, : module.head_dim], seen[:, order]))
        attending.beside[layer_idx] = found
        return nothing, None

    return forward


def _shape(module: Any, sparse: bool) -> PoolShape:
    entry = int(module.head_dim) + (int(module.indexer.head_dim) if sparse else 0)
    return PoolShape(int(module.compress_rate), entry, sparse)


def _pool(parts: list[Any], rate: int, sparse: bool) -> Pool:
    def pool(given: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        found, start = [], 0
        for part in parts:
            width = int(part.head_dim) * (2 if sparse else 1)
            kv, gate = given[..., start : start + width], given[..., start + width : start + 2 * width]
            start += 2 * width
            if sparse:
                kv, gate = _overlapped(kv, gate, part, rate, windows)
            else:
                gate = gate + part.position_bias
            share = gate.softmax(dim=1, dtype=torch.float32).to(kv.dtype)
            entries = part.kv_norm((kv * share).sum(dim=1))
            places = (windows * rate)[None]
            cos, sin = part.rotary_emb(entries, position_ids=places, layer_type=part.rope_layer_type)
            rotate = inspect.unwrap(type(part).forward).__globals__["apply_rotary_pos_emb"]
            found.append(rotate(entries[None, None], cos, sin)[0, 0])
        return torch.cat(found, -1)

    return pool


def _overlapped(
    kv: torch.Tensor, gate: torch.Tensor, part: Any, rate: int, windows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of [m, 2 * rate, 2 * dim], the former window's first half and the own window's second: [m, 2 * rate, dim]."""
    dim, bias = int(part.head_dim), part.position_bias
    first = gate[:, :rate, :dim] + bias[:, :dim]
    first = first.masked_fill((windows == 0)[:, None, None], float("-inf"))
    gates = torch.cat([first, gate[:, rate:, dim:] + bias[:, dim:]], 1)
    return torch.cat([kv[:, :rate, :dim], kv[:, rate:, dim:]], 1), gates


def _picked(
    module: Any, pooled: Pooled, hidden: torch.Tensor, residual: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """bool [n, m]: of the entries that rows see, those that the index picks."""
    indexer = module.indexer
    if not len(pooled.windows):
        return pooled.seen
    cos, sin = indexer.rotary_emb(hidden, position_ids=places, layer_type=indexer.rope_layer_type)
    rotate = inspect.unwrap(type(indexer).forward).__globals__["apply_rotary_pos_emb"]
    query = indexer.q_b_proj(residual).view(1, hidden.shape[1], -1, indexer.head_dim).transpose(1, 2)
    query = rotate(query, cos, sin).transpose(1, 2)
    scores = indexer.scorer(query, pooled.entries[None, :, module.head_dim :], hidden)[0]
    # In the order of the text: of several that score the same the earliest are taken.
    windows, count = pooled.windows.expand_as(scores), int(pooled.windows.max()) + 1
    scores = scores.masked_fill(~pooled.seen, float("-inf"))
    line = torch.full((len(scores), count), float("-inf"), device=scores.device)
    line.scatter_reduce_(1, windows, scores.float(), "amax")
    best = earliest(line, min(int(indexer.index_topk), count))[1]
    kept = torch.zeros_like(line, dtype=torch.bool).scatter_(1, best, True)
    return kept.gather(1, windows) & pooled.seen
