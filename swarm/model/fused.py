"""Decoder layers over packed weights in one call, or in two: what stands before attention, and what stands behind it.

A pass of one row through SmolLM2's layers spent 5 ms multiplying and 10 ms in Python between the products. For classes
that are built like Llama's decoder layer all of it is done by the compiled kernels: norm, products, rotation;
attention; output, sum, norm, gated products, sum. Rounding follows transformers' step by step, so results differ by
what the order of a norm's sum and the last place of an exponential do. Attention that is not the kernels' is asked for
between two calls, for the same bits.

Which classes these are is listed; whether a layer of one really computes the same is tried when a block is loaded
(`settle`), and where it does not, and wherever a call is of another kind, transformers' own code runs.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm.model.attention import NAME, Attending
from swarm.model.inorder import MOST_QUERIES, call_words
from swarm.model.latent import latent_of
from swarm.model.quant.matrix import PackedMatrix
from swarm.model.quant.modules import PackedLinear
from swarm.model.quant.native import Library

log = logging.getLogger(__name__)

CLASSES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")
_LANES = 16
TOLERANCE = 0.02
"""Largest difference of a row over its size between the two ways, in the median. A rounding the other way may change a
byte of the rounded row behind it; measured: the same bits in bfloat16, single rows off by 0.01 in float32."""


class FusedLayer:
    """Stands for the `forward` of one decoder layer. Off until it was tried (`on`)."""

    def __init__(self, layer: Any, lib: Library) -> None:
        self.on = False
        self._plain: Callable[..., torch.Tensor] = layer.forward
        self._attention, self._lib = layer.self_attn, lib
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._heads = (getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None))
        self._linears = [getattr(layer.self_attn, name) for name in _ATTENTION]
        self._linears += [getattr(layer.mlp, name) for name in _GATED]
        self._dim = int(layer.self_attn.head_dim)
        self._width, self._kv_width = self._linears[0].out_features, self._linears[1].out_features
        self._words: bytes | None = None
        self._call = call_words(float(self._attention.scaling))
        self._attending: Attending | None = None
        self._number = -1
        self._window = getattr(layer.self_attn, "sliding_window", None)
        if type(layer).__name__ == "MistralDecoderLayer":
            self._window = getattr(layer.self_attn.config, "sliding_window", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """Rows [1, T, hidden] to rows of the same shape, as the layer's class has it."""
        if not self.on or past_key_values is not None or not self._fits(hidden_states, position_embeddings):
            return self._plain(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **others,
            )
        assert position_embeddings is not None
        if self._words is None:
            self._words, self._attending = self._describe(), self._find_attending()
        x, rows = hidden_states.contiguous(), hidden_states.shape[1]
        cos, sin = (table.contiguous() for table in position_embeddings)
        if (jobs := self._jobs(rows, others)) is not None:
            out = torch.empty_like(x)
            words = b"".join(jobs)
            self._lib.layer_whole(self._words, x, rows, cos, sin, self._call, words, len(jobs), out)
            return out
        query, key, value = (x.new_empty(1, rows, width) for width in (self._width, self._kv_width, self._kv_width))
        self._lib.layer_before(self._words, x, rows, cos, sin, query, key, value)
        split = (1, rows, -1, self._dim)
        attend = ALL_ATTENTION_FUNCTIONS[self._attention.config._attn_implementation]
        seen, _ = attend(
            self._attention,
            query.view(split).transpose(1, 2),
            key.view(split).transpose(1, 2),
            value.view(split).transpose(1, 2),
            attention_mask,
            scaling=self._attention.scaling,
            sliding_window=self._window,
            **others,
        )
        out = torch.empty_like(x)
        self._lib.layer_after(self._words, x, seen.reshape(rows, self._width).contiguous(), rows, out)
        return out

    def _jobs(self, rows: int, others: Mapping[str, Any]) -> list[bytes] | None:
        """What the kernels are told of the jobs at hand, where attention is theirs altogether."""
        state = self._attending
        if state is None or (orders := state.alone_in(self._number)) is None:
            return None
        known = all(item is None or isinstance(item, bool) for item in others.values())
        if not known or sum(len(order.rows) for order, _ in orders) != rows:
            return None  # `attend` says what is wrong
        span = state.spans.get(self._number, self._window)
        return [order.words(self._number, slice(None), span, start) for order, start in orders]

    def _find_attending(self) -> Attending | None:
        """What this layer's attention asks, where that is the kernels' attention with nothing besides."""
        module = self._attention
        state, number = getattr(module, "swarm_attending", None), getattr(module, "swarm_layer", None)
        if not isinstance(state, Attending) or not isinstance(number, int) or hasattr(module, "swarm_warmth"):
            return None
        groups = self._width // self._kv_width
        usual = module.config._attn_implementation == NAME and groups <= MOST_QUERIES and latent_of(module) is None
        self._number = number
        return state if usual else None

    def _fits(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> bool:
        weight = self._norms[0].weight
        return (
            angles is not None
            and x.dim() == 3
            and x.shape[0] == 1
            and x.dtype == weight.dtype == angles[0].dtype
            and x.dtype in (torch.bfloat16, torch.float32)
            and angles[0].shape == (1, x.shape[1], self._dim)
        )

    def _describe(self) -> bytes:
        """The kernels' `struct Layer`; made when all is loaded. What it points to lives as long as the layer."""
        norms = [norm.weight for norm in self._norms]
        norms += [None if norm is None else norm.weight for norm in self._heads]
        words: list[int] = [0 if weight is None else weight.data_ptr() for weight in norms]
        query, key, gate = self._linears[0], self._linears[1], self._linears[4]
        heads, kv_heads = query.out_features // self._dim, key.out_features // self._dim
        words += (query.in_features, gate.out_features, heads, kv_heads, self._dim)
        for linear in self._linears:
            bias = linear.wide_bias()
            matrix: PackedMatrix = linear.matrix
            where = 0 if bias is None else bias.data_ptr()
            words += (matrix.data.data_ptr(), where, 0, linear.out_features, matrix.form.number)
        small = [0.0 if norm is None else float(norm.variance_epsilon) for norm in (*self._norms, *self._heads)]
        return struct.pack(f"={len(words)}q{len(small)}d", *words, *small)


def fuse(layers: nn.ModuleList) -> None:
    """Put `FusedLayer`s into layers that allow it, off."""
    for layer in layers:
        if (lib := _kernels_of(layer)) is not None:
            layer.__dict__["forward"] = FusedLayer(layer, lib).forward


def fused_of(layer: nn.Module) -> FusedLayer | None:
    """What stands for a layer's `forward`."""
    found = getattr(layer.__dict__.get("forward"), "__self__", None)
    return found if isinstance(found, FusedLayer) else None


def settle(layers: nn.ModuleList, run: Callable[[int], torch.Tensor]) -> None:
    """Turn the fused layers on when the first and the last of them give what their classes do. run: random rows
    [n, hidden] of the same numbers each time through one layer of the list."""
    fused = {place: found for place, layer in enumerate(layers) if (found := fused_of(layer)) is not None}
    for place in {min(fused), max(fused)} if fused else ():
        plain = run(place).float()
        fused[place].on = True
        quick = run(place).float()
        fused[place].on = False
        apart = ((plain - quick).norm(dim=1) / (plain.norm(dim=1) + 1e-12)).median()
        if not apart <= TOLERANCE:
            log.warning("layers of this model are computed step by step: the short way is off by %.3f", float(apart))
            return
    for found in fused.values():
        found.on = True


def _kernels_of(layer: Any) -> Library | None:
    """The kernels that a layer's matrices are packed for, when its class is known and built as expected."""
    if type(layer).__name__ not in CLASSES or set(layer._modules) != _CHILDREN:
        return None
    attention, gated = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    if set(attention._modules) - {"q_norm", "k_norm", "rotary_fn"} != set(_ATTENTION):
        return None
    if not all(type(norm).__name__.endswith("RMSNorm") and hasattr(norm, "variance_epsilon") for norm in norms):
        return None
    linears = [getattr(attention, name) for name in _ATTENTION] + [getattr(gated, name, None) for name in _GATED]
    packed = all(isinstance(linear, PackedLinear) and isinstance(linear.matrix, PackedMatrix) for linear in linears)
    if not packed or not isinstance(getattr(gated, "act_fn", None), SiLUActivation | nn.SiLU):
        return None
    dim = int(attention.head_dim)
    widths = [linear.out_features for linear in linears[:3]]
    if dim % (2 * _LANES) or any(width % dim for width in widths) or widths[1] != widths[2]:
        return None
    return linears[0].matrix.lib  # type: ignore[no-any-return]
