"""Attention over slots, for any transformers model that lets its attention function be replaced.

The rows of several sessions pass through a block as one sequence [1, T, hidden]. Everything in a layer works row by
row except attention; `attend` takes its place, writes the rows' keys and values into their sessions' slots and lets
each row see what its frame says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from swarm.base.errors import ModelError
from swarm.model.attention import Attending, Call, JobPlan, Plan
from swarm.model.inorder import AttentionCall, attend_in_order, attend_latent_in_order, fits
from swarm.model.latent import Latent, latent_of
from swarm.model.masks import AttentionChunk, Beside, Seen, Span, register_trial
from swarm.model.warmth import Warmth

NAME = "swarm_slots"
"""What configs call this attention."""

_IGNORED = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position"}
_FEW = 64
"""Rows of a job up to which query heads are folded into rows (measured: as fast or faster up to there, and ten times
so for one row in bfloat16)."""


def register_attention() -> None:
    """Tell transformers of the function; needed before a block is built, harmless when repeated."""
    from transformers import AttentionInterface  # drafters attend without it

    AttentionInterface.register(NAME, attend)
    register_trial(attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Seen | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    indices: Any = None,
    block_indices: Any = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query and key [1, heads or kv heads, T, dim], value [1, kv heads, T, value dim] -> [1, T, heads, value dim].
    `attention_mask` is not used: masks come from the rows. s_aux [heads]: attention sinks, one more logit per head that
    takes a share of the softmax and adds nothing (gpt-oss). indices, block_indices: what an index picked
    (`indexed.Chosen`). Raises ModelError for an argument that would change the result unseen."""
    state, layer = getattr(module, "swarm_attending", None), getattr(module, "swarm_layer", None)
    # Flags (router logits and the like) are let pass; a number or tensor of unknown meaning is not.
    odd = [name for name, item in others.items() if name not in _IGNORED and not isinstance(item, bool | None)]
    if not isinstance(state, Attending) or not isinstance(layer, int) or odd:
        raise _uncut(module, f"arguments {', '.join(odd)}" if odd else "an attention module of unknown kind")
    latent = latent_of(module)
    if state.trial is not None:
        state.trial.append(_call(module, layer, key, value, attention_mask, sliding_window, latent))
        width = latent.value if latent else value.shape[-1]
        return query.new_zeros(1, query.shape[2], query.shape[1], width), None
    if isinstance(warmth := getattr(module, "swarm_warmth", None), Warmth) and state.position is not None:
        query = (query * warmth.scales(state.position)[:, None]).to(query.dtype)
    turn = state.turn(layer)
    mine = slice(turn * key.shape[1], (turn + 1) * key.shape[1])
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    span = state.spans.get(layer, sliding_window)
    asked = AttentionCall(query, key, value, layer, mine, scale, span, softcap, s_aux)
    if latent is not None:
        if softcap is not None:
            raise _uncut(module, "a latent with capped scores")
        return _over_latents(state, replace(asked, key=torch.cat((key, value), -1), value=None), latent, indices), None
    if indices is not None or (block_indices is not None and key.shape[1] != block_indices.masks[0].shape[0]):
        raise _uncut(module, "an index of another kind")
    if (beside := state.beside.pop(layer, None)) is not None:
        if softcap is not None:
            raise _uncut(module, "pooled entries with capped scores")
        with state.by_position():
            pairs = zip(state.jobs, beside, strict=True)
            return _in_one([_attend_beside(job, asked, one) for job, one in pairs]), None
    return _over_heads(state, asked, block_indices), None


def _uncut(module: torch.nn.Module, found: str) -> ModelError:
    return ModelError(f"{type(module).__name__} cannot be cut into blocks: {found}; use another architecture")


def _in_one(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of all jobs [1, T, heads, dim], in one piece, as transformers' own functions give them: some layers (AFMoE)
    make a view of them."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), 1)


def _call(
    module: torch.nn.Module,
    layer: int,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | Seen | None,
    window: int | None,
    latent: Latent | None,
) -> Call:
    """What the trial learns of a call of `attend`."""
    spans = _spans(module, mask, window)
    causal = not isinstance(mask, Seen) or mask.causal
    shapes = tuple(key.shape), tuple(value.shape)
    return Call(layer, *shapes, next(iter(spans), None), bool(spans), latent.rank if latent else 0, causal)


def _spans(module: torch.nn.Module, mask: torch.Tensor | Seen | None, window: int | None) -> list[Span]:
    """Spans that are all that a mask says, among those that a layer passes or its config has: some models tell their
    window to nobody but the function that makes masks (Phi-MoE), others have windows and chunks by layer."""
    if mask is None:
        return [window]
    config = getattr(module, "config", None)
    known: list[Span] = [window, None]
    if isinstance(size := getattr(config, "sliding_window", None), int):
        known.append(size)
    if isinstance(size := getattr(config, "attention_chunk_size", None), int) and size > 0:
        known.append(AttentionChunk(size))
    return [span for span in known if isinstance(mask, Seen) and mask.fits(span)]


def _over_latents(state: Attending, asked: AttentionCall, latent: Latent, indices: Any) -> torch.Tensor:
    """`attend` over latents. asked.key: the rows' entries [1, 1, T, rank + rope]."""
    assert asked.key is not None
    if (orders := state.orders()) and latent.in_order is not None and fits(asked.query, asked.key):
        lib, ordered = orders
        ordered = ordered if indices is None else indices.looking(ordered)
        return attend_latent_in_order(lib, ordered, asked, latent.in_order)
    if (seeing := state.seeing()) and indices is None and seeing[0].fits(asked.query, asked.key):
        up = latent.up.weight.view(latent.heads, -1, latent.rank)
        return seeing[0].attend_latent(seeing[1], asked, up, latent.nope)
    masks = [job.mask(asked.span, 1) for job in state.jobs] if indices is None else indices.masks
    with state.by_slot():
        return _in_one([_attend_latent(job, asked, mask, latent) for job, mask in zip(state.jobs, masks, strict=True)])


def _over_heads(state: Attending, asked: AttentionCall, block_indices: Any) -> torch.Tensor:
    """`attend` over keys and values, of this layer or of the one whose entries it reads."""
    query, key, value = asked.query, asked.key, asked.value
    assert key is not None and value is not None
    source = state.reads.get(asked.layer, asked.layer)
    if source != asked.layer:
        asked = replace(asked, layer=source, key=None, value=None)
    if (orders := state.orders()) and fits(query, key):
        lib, ordered = orders
        if block_indices is None:
            return attend_in_order(lib, ordered, asked)
        heads = key.shape[1]
        each = [
            attend_in_order(lib, block_indices.looking(ordered, head), asked.of_head(head, heads))
            for head in range(heads)
        ]
        return torch.cat(each, 2)
    if (seeing := state.seeing()) and block_indices is None and seeing[0].fits(query, key):
        return seeing[0].attend(seeing[1], asked)
    if asked.key is not None:
        for job in state.jobs:
            _write(job, asked, key, value)
    chosen = [None] * len(state.jobs) if block_indices is None else block_indices.masks
    with state.by_slot():
        return _in_one([_attend_job(job, asked, mask) for job, mask in zip(state.jobs, chosen, strict=True)])


def attend_rows(
    jobs: Sequence[Plan], layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """`attend` for a layer of the plainest kind, without a module: all that a row's frame shows it is seen."""
    asked = AttentionCall(query, key, value, layer, slice(0, key.shape[1]), scale)
    for job in jobs:
        _write(job, asked, key, value)
    parts = [_attend_job(job, asked) for job in jobs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _write(job: Plan, asked: AttentionCall, *given: torch.Tensor) -> None:
    """Put keys and values of the job's rows into their slots; the key alone where a value is a part of it."""
    one = slice(job.start, job.stop)
    for kept, rows in zip(job.kv.layer(asked.layer), given, strict=False):
        store = kept[asked.mine]
        if isinstance(job.write, slice):
            store[:, job.write] = rows[0, :, one]
        else:
            store.index_copy_(1, job.write, rows[0, :, one])


def _attend_latent(job: Plan, asked: AttentionCall, mask: torch.Tensor | None, latent: Latent) -> torch.Tensor:
    """As `_attend_job`, over slots that hold latents; asked.key [1, 1, T, rank + rope] of all rows."""
    assert asked.key is not None
    _write(job, asked, asked.key)
    entries = job.kv.layer(asked.layer)[0][asked.mine.start, job.low : job.high]
    return latent.attend(asked.query[0, :, job.start : job.stop], entries, mask, asked.scale, asked.sinks)


def _attend_beside(job: Plan, asked: AttentionCall, found: Beside) -> torch.Tensor:
    """As `_attend_job`, over the slots in sight and over entries beside them; one key head, whose keys are the values
    too."""
    assert asked.key is not None
    _write(job, replace(asked, mine=slice(0, 1)), asked.key)
    kept = job.kv.layer(asked.layer)[0][0, job.low : job.high]
    query = asked.query[0, :, job.start : job.stop]
    near, hidden = job.mask(asked.span, 1), ~found.seen
    near = query.new_zeros(query.shape[1], len(kept)) if near is None else near
    if isinstance(job, JobPlan) and job.in_order and (order := job.by_place) is not None:
        kept, near = kept[order], near[:, order]
    far = torch.zeros(hidden.shape, dtype=near.dtype, device=near.device).masked_fill_(hidden, float("-inf"))
    entries = torch.cat([kept, found.entries])
    scores = query @ entries.T * asked.scale + torch.cat([near, far], 1)
    if asked.sinks is not None:
        each = asked.sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, each], -1)
    share = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return ((share if asked.sinks is None else share[..., :-1]) @ entries).transpose(0, 1)[None]


def _attend_job(job: Plan, asked: AttentionCall, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """The job's rows of `attend` over the entries of a layer, theirs included. chosen: a mask [kv heads, n, slots] for
    each key head in the place of the rows' own. Returns [1, n, heads, dim]."""
    keys, values = (kept[asked.mine] for kept in job.kv.layer(asked.layer))
    query, span, scale = asked.query[0, :, job.start : job.stop], asked.span, asked.scale
    heads, rows, dim = query.shape
    shared = keys.shape[0]
    groups = heads // shared
    if rows <= _FEW:
        # Query heads that share a key head become rows of it: keys are read once, and one row is a matrix product.
        mask = job.mask(span, groups) if chosen is None else chosen.repeat(1, groups, 1)[None]
        query = query.reshape(1, shared, groups * rows, dim)
        seen_k, seen_v = keys[None, :, job.low : job.high], values[None, :, job.low : job.high]
    else:
        # With many rows the mask, which folding repeats, is the large thing; key heads become a batch, seen by groups.
        mask = job.mask(span, 1) if chosen is None else chosen[:, None]
        query = query.reshape(shared, groups, rows, dim)
        seen_k = keys[:, None, job.low : job.high].expand(-1, groups, -1, -1)
        seen_v = values[:, None, job.low : job.high].expand(-1, groups, -1, -1)
    if asked.softcap is None and asked.sinks is None:
        out = torch.nn.functional.scaled_dot_product_attention(query, seen_k, seen_v, attn_mask=mask, scale=scale)
    else:
        scores = torch.matmul(query, seen_k.transpose(2, 3)) * scale
        scores = scores if asked.softcap is None else torch.tanh(scores / asked.softcap) * asked.softcap
        scores = scores if mask is None else scores + mask
        if asked.sinks is not None:  # heads are in order in both layouts, the rows of a head together
            each = asked.sinks.to(scores.dtype).repeat_interleave(rows).view(*scores.shape[:-1], 1)
            scores = torch.cat([scores, each], -1)
        share = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(share if asked.sinks is None else share[..., :-1], seen_v)
    return out.reshape(1, heads, rows, -1).transpose(1, 2)
