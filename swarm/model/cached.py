"""Slots for classes that compute attention themselves.

Older classes of transformers (BLOOM, Falcon, GPT-J, MPT, XGLM and others) have no attention function that could be
replaced. But all of them hand their new keys and values to a cache and attend to what it gives back, under a mask that
transformers makes for them. So the cache is ours: it writes the rows' slots and gives back the slots that the jobs of
the forward see, one job behind the other; and the mask is ours: each row sees of these what its frame says. What
happens between the two stays the class's own code.

What such classes work out from places in the cache follows the slots' positions instead: ALiBi's biases, and masks
that a module keeps as a buffer (GPT-Neo).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from swarm.base.errors import ModelError
from swarm.model.attention import Attending, Call, JobPlan, Plan
from swarm.model.masks import Seen, Span, unlike

NAME = "swarm_slots_cached"
"""What the configs of such models call their attention once they are built; only masks are looked up by it."""

BUILT_AS = "eager"
"""What they are built with: the class's own code, which takes masks as numbers to add."""


def computes_itself(layers: nn.ModuleList) -> bool:
    """Does every layer hand its keys and values to a cache, and none of them ask for an attention function?"""
    return all(
        any(_caches(module) or _has_method(module) for module in layer.modules()) for layer in layers
    ) and not any(asks_interface(module) for module in layers.modules())


def asks_interface(module: nn.Module) -> bool:
    """Does a module's `forward` look its attention function up in transformers' table?"""
    return "ALL_ATTENTION_FUNCTIONS" in _names(module)


def _caches(module: nn.Module) -> bool:
    return "update" in _names(module)


def _has_method(module: nn.Module) -> bool:
    """Has a module no cache, but a method that attends under a mask that it keeps (the first GPT)?"""
    bias = module._buffers.get("bias")
    return hasattr(type(module), "_attn") and bias is not None and bias.dim() == 4 and not _caches(module)


def _names(module: nn.Module) -> set[str]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """What a model takes for its cache. It never holds anything: keys and values lie in sessions' slots."""

    def __init__(self, attending: Attending) -> None:
        super().__init__(layers=[])
        self._attending = attending

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *others: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows' keys and values [1, heads, T, dim] into their slots; gives those of all slots in sight, [1, heads, S,
        dim], in the order of the mask's columns."""
        state = self._attending
        if state.trial is not None:
            causal, known = (all(x) for x in ((m.causal for m in state.masks), (m.fits(None) for m in state.masks)))
            shapes = tuple(key_states.shape), tuple(value_states.shape)
            seen = known and bool(state.masks or state.buffers)
            state.trial.append(Call(layer_idx, *shapes, None, seen, causal=causal))
            return key_states, value_states
        keys, values = [], []
        for job in state.jobs:
            kept_k, kept_v = job.kv.layer(layer_idx)
            one = slice(job.start, job.stop)
            if isinstance(job.write, slice):
                kept_k[:, job.write] = key_states[0, :, one]
                kept_v[:, job.write] = value_states[0, :, one]
            else:
                kept_k.index_copy_(1, job.write, key_states[0, :, one].to(kept_k.dtype))
                kept_v.index_copy_(1, job.write, value_states[0, :, one].to(kept_v.dtype))
            keys.append(_in_columns(job, kept_k[:, job.low : job.high], 1))
            values.append(_in_columns(job, kept_v[:, job.low : job.high], 1))
        k, v = (parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in (keys, values))
        return k[None].to(key_states.dtype), v[None].to(value_states.dtype)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None before the rows of a forward, as far as the class is told: it is given positions and masks."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many positions there are in sight, so that what a class makes for each of them (ALiBi) reaches so far."""
        return _top(self._attending, query_length), 0


def _in_columns(job: Plan, slots: torch.Tensor, dim: int) -> torch.Tensor:
    """What a job has for its slots in sight, in the order of the mask's columns: that of positions, where rows must not
    depend on where their keys lie."""
    order = job.by_place if isinstance(job, JobPlan) and job.in_order else None
    return slots if order is None else slots.index_select(dim, order)


def _top(state: Attending, rows: int) -> int:
    return int(slot_positions(state, rows).max()) + 1


def slot_positions(state: Attending, rows: int) -> torch.Tensor:
    """int64 [S]: the position of each slot in sight, in the order of the mask's columns; slots that hold nothing have
    any. In the trial those of its rows."""
    if state.trial is not None or not state.jobs:
        return torch.arange(rows)
    found = []
    for job in state.jobs:
        if not isinstance(job, JobPlan):
            raise ModelError("a model that computes attention itself runs without recorded graphs")
        found.append(_in_columns(job, torch.from_numpy(job.places()), 0))
    return torch.cat(found)


def additive_mask(state: Attending, span: Span, rows: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[1, 1, rows, S]: zeros where a row sees a slot, the dtype's least number elsewhere, which is what these classes
    add and compare with. In the trial the causal one."""
    least = torch.finfo(dtype).min
    if state.trial is not None or not state.jobs:
        return torch.full((rows, rows), least, dtype=dtype, device=device).triu(1)[None, None]
    parts = []
    for job in state.jobs:
        mask = job.mask(span, 1)
        shape = (job.stop - job.start, job.high - job.low)
        if mask is None:
            parts.append(torch.zeros(shape, dtype=dtype, device=device))
        else:
            parts.append(_in_columns(job, mask.to(dtype).clamp(min=least), 1))
    if len(parts) == 1:
        return parts[0][None, None]
    whole = torch.full((rows, sum(part.shape[1] for part in parts)), least, dtype=dtype, device=device)
    column = 0
    for job, part in zip(state.jobs, parts, strict=True):
        whole[job.start : job.stop, column : column + part.shape[1]] = part
        column += part.shape[1]
    return whole[None, None]


def register_cached() -> None:
    """Tell transformers of the mask's name; harmless when repeated."""
    AttentionInterface.register(NAME, _never)
    AttentionMaskInterface.register(NAME, _mask)


def _never(*args: Any, **named: Any) -> Any:
    raise ModelError("a layer that computes attention itself asked for a function")


def _mask(
    *args: Any,
    mask_function: Callable[..., Any],
    config: Any,
    q_length: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **others: Any,
) -> torch.Tensor:
    """In the place of `eager_mask`; called by transformers' `create_*_mask`."""
    state: Attending = config.swarm_attending
    if state.trial is not None:
        state.masks.append(Seen.by(mask_function))
    return additive_mask(state, None, q_length, dtype, device or torch.device("cpu"))


class SlotMask:
    """In the place of a causal mask that a module keeps as a buffer [1, 1, positions, positions] of ones and zeros."""

    def __init__(self, state: Attending, span: Span, dtype: torch.dtype) -> None:
        self._state, self._span, self._dtype = state, span, dtype

    def __getitem__(self, place: tuple[Any, ...]) -> torch.Tensor:
        """The part for a forward's rows and the slots in sight, whatever part a module asks for: [1, 1, rows, S]."""
        job_rows = sum(job.stop - job.start for job in self._state.jobs)
        rows = int(place[2].stop) if self._state.trial is not None or not job_rows else job_rows
        device = None if self._state.position is None else self._state.position.device
        return (
            additive_mask(self._state, self._span, rows, torch.float32, device or torch.device("cpu"))
            .eq(0)
            .to(self._dtype)
        )


def settle_cached(inner: nn.Module, config: Any, layers: nn.ModuleList, first: int, state: Attending) -> None:
    """Make a model that was built as `BUILT_AS` follow slots. first: the number of its first layer.

    Raises ModelError for a mask that is not causal."""
    config._attn_implementation = NAME
    config.swarm_attending = state
    state.cache = SlotCache(state)
    state.over_slots = 1
    for number, layer in enumerate(layers, first):
        for module in layer.modules():
            if _has_method(module):
                module.__class__ = _with(module, {"_attn": _attn(type(module), state.cache, number)})
                _replace_bias(module, state)
            elif _caches(module):
                _replace_bias(module, state)
                _use_sdpa(module)
    _place_alibi(inner, state)


def _attn(kind: Any, cache: SlotCache, layer: int) -> Callable[..., Any]:
    def attn(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any, **named: Any) -> Any:
        keys, values = cache.update(k.transpose(2, 3), v, layer)  # they come as [1, heads, dim, T]
        return kind._attn(self, q, keys.transpose(2, 3), values, *others, **named)

    return attn


def _use_sdpa(module: nn.Module) -> None:
    """Where a module's own code has a branch for `sdpa`, that is the one transformers takes unasked. It is not the
    same: Falcon's other branch adds ALiBi's biases twice."""
    code = inspect.unwrap(type(module).forward).__code__
    if "sdpa" in code.co_consts and (config := getattr(module, "config", None)) is not None:
        setattr(module, "config", copy.copy(config))  # noqa: B010
        module.config._attn_implementation = "sdpa"  # type: ignore[union-attr]


def _replace_bias(module: nn.Module, state: Attending) -> None:
    bias = module._buffers.get("bias")
    if bias is None or bias.dim() != 4 or bias.shape[2] != bias.shape[3]:
        return
    seen = bias[0, 0].bool()
    reach = int(seen[-1].sum())
    span = None if reach == len(seen) else reach
    causal = torch.ones_like(seen).tril()
    if not torch.equal(seen, causal if span is None else causal & ~causal.tril(-span)):
        raise unlike(type(module).__name__)
    del module._buffers["bias"]
    module.__dict__["bias"] = SlotMask(state, span, bias.dtype)
    state.buffers += 1


def _place_alibi(inner: nn.Module, state: Attending) -> None:
    """Biases that grow with the distance between places in the cache: for the distance between positions."""
    for holder in inner.modules():
        if hasattr(type(holder), "build_mpt_alibi_tensor"):
            holder.__class__ = _with(holder, {"build_mpt_alibi_tensor": _mpt_alibi(type(holder), state)})
        elif hasattr(type(holder), "build_alibi_tensor"):
            for module in holder.modules():
                if "alibi" in inspect.signature(type(module).forward).parameters and _caches(module):
                    module.register_forward_pre_hook(_gather_alibi(state), with_kwargs=True)
        elif getattr(holder, "use_alibi", False) and "build_alibi_tensor" in _names(holder):
            own = inspect.unwrap(type(holder).forward)
            assert isinstance(own, FunctionType)
            known = {**own.__globals__, "build_alibi_tensor": _falcon_alibi(own.__globals__, state)}
            fresh = FunctionType(own.__code__, known, own.__name__, own.__defaults__, own.__closure__)
            fresh.__kwdefaults__ = own.__kwdefaults__
            holder.__class__ = _with(holder, {"forward": fresh})


def _with(module: nn.Module, methods: Mapping[str, Any]) -> type[Any]:
    """The class of a module with other methods: on the class, since copies of a module are made for views."""
    kind = type(module)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


def _columns(biases: torch.Tensor, state: Attending, rows: int) -> torch.Tensor:
    """[..., positions] -> [..., S]."""
    return biases[..., slot_positions(state, rows).to(biases.device)]


def _mpt_alibi(kind: type[Any], state: Attending) -> Callable[..., torch.Tensor]:
    def build(self: Any, num_heads: int, sequence_length: int, *others: Any, **named: Any) -> torch.Tensor:
        rows = 1 if state.position is None else len(state.position)
        top = _top(state, rows)
        whole: torch.Tensor = kind.build_mpt_alibi_tensor(self, num_heads, top, *others, **named)
        if state.lib is None or state.position is None:
            return _columns(whole, state, rows)
        # It counts from the end of what is in sight, and where that is must not be seen in a row's bits: from the row.
        places = slot_positions(state, rows) + (top - 1 - state.position)[:, None]
        return whole[:, 0, places.clamp(max=top - 1)]

    return build


def _falcon_alibi(known: Mapping[str, Any], state: Attending) -> Callable[..., torch.Tensor]:
    def build(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        rows = attention_mask.shape[1]
        ones = attention_mask.new_ones(1, _top(state, rows))
        whole: torch.Tensor = known["build_alibi_tensor"](ones, num_heads, dtype)
        return _columns(whole, state, rows)

    return build


def _gather_alibi(state: Attending) -> Callable[..., Any]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = 1 if state.position is None else len(state.position)
        return args, {**kwargs, "alibi": _columns(kwargs["alibi"], state, rows)}

    return hook
