"""Decoder layers over packed weights: all that follow each other in one call, or one in two, what stands before
attention and what stands behind it.

A pass of one row through SmolLM2's layers spent 5 ms multiplying and 10 ms in Python between the products. For classes
that are built like Llama's decoder layer all of it is done by the compiled kernels: norm, products, rotation;
attention; output, sum, norm, gated products, sum. Rounding follows transformers' step by step, so results differ by
what the order of a norm's sum and the last place of an exponential do. Attention that is not the kernels' is asked for
between two calls, for the same bits.

Of few rows the first layer that is asked has its followers computed in the same call (`LayerRun`). Each of them gives
what waits for it when it is asked with the very rows that its forerunner gave, and computes for itself when not.

Which classes these are is listed; whether a layer of one really computes the same is tried when a block is loaded
(`settle`), and where it does not, and wherever a call is of another kind, transformers' own code runs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swarm.model.attend import NAME
from swarm.model.attention import Attending, Early
from swarm.model.inorder import JOB_WORDS, MOST_QUERIES, call_words
from swarm.model.latent import latent_of
from swarm.model.masks import Span
from swarm.model.quant.layer_words import LayerSizes, layer_words
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


MOST_AHEAD = 16
"""Rows up to which layers are computed ahead: what all of them give waits until it is asked for, and with more rows the
time between two layers is nothing beside that within them."""


Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the rows' angles, [1, T, dim] each."""


class FusedLayer:
    """Stands for the `forward` of one decoder layer. Off until it was tried (`on`)."""

    def __init__(self, layer: Any, lib: Library) -> None:
        self.on = False
        self._plain: Callable[..., torch.Tensor] = layer.forward
        self._attention, self.lib = layer.self_attn, lib
        self._norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self._heads = (getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None))
        self._linears = [getattr(layer.self_attn, name) for name in _ATTENTION]
        self._linears += [getattr(layer.mlp, name) for name in _GATED]
        self._dim = int(layer.self_attn.head_dim)
        self._width, self._kv_width = self._linears[0].out_features, self._linears[1].out_features
        self._words: bytes | None = None
        self.call = call_words(float(self._attention.scaling))
        self.attending: Attending | None = None
        self.number = -1
        self._run, self._place = LayerRun([self]), 0
        self.window = getattr(layer.self_attn, "sliding_window", None)
        if type(layer).__name__ == "MistralDecoderLayer":
            self.window = getattr(layer.self_attn.config, "sliding_window", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Angles | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """Rows [1, T, hidden] to rows of the same shape, as the layer's class has it."""
        plain = past_key_values is None and all(item is None or isinstance(item, bool) for item in others.values())
        if plain and (waiting := self._waiting(hidden_states, position_embeddings)) is not None:
            return waiting
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
        words = self.words()
        if plain and (out := self._run.compute(self._place, hidden_states, position_embeddings)) is not None:
            return out
        x, rows = hidden_states.contiguous(), hidden_states.shape[1]
        cos, sin = (table.contiguous() for table in position_embeddings)
        query, key, value = (x.new_empty(1, rows, width) for width in (self._width, self._kv_width, self._kv_width))
        self.lib.layer_before(words, x, rows, cos, sin, query, key, value)
        split = (1, rows, -1, self._dim)
        attend = ALL_ATTENTION_FUNCTIONS[self._attention.config._attn_implementation]
        seen, _ = attend(
            self._attention,
            query.view(split).transpose(1, 2),
            key.view(split).transpose(1, 2),
            value.view(split).transpose(1, 2),
            attention_mask,
            scaling=self._attention.scaling,
            sliding_window=self.window,
            **others,
        )
        out = torch.empty_like(x)
        self.lib.layer_after(words, x, seen.reshape(rows, self._width).contiguous(), rows, out)
        return out

    def words(self) -> bytes:
        """The kernels' struct Layer."""
        if self._words is None:
            self._words, self.attending = self._describe(), self._find_attending()
        return self._words

    def _waiting(self, x: torch.Tensor, angles: Angles | None) -> torch.Tensor | None:
        """What was computed ahead for these very rows."""
        if self.attending is None or (early := self.attending.early.pop(self.number, None)) is None:
            return None
        if early.given is x and early.angles is angles:
            return early.rows
        self._run.on = False  # something stands between the layers: computed ahead in vain
        return None

    def go_with(self, run: LayerRun, place: int) -> None:
        """Be the layer at this place of a run."""
        self._run, self._place = run, place

    def follows(self, other: FusedLayer) -> bool:
        """May one call compute both, this layer with what the kernels are told of the other's rows?"""
        self.words()
        weights = [layer._norms[0].weight for layer in (self, other)]
        same = weights[0].dtype == weights[1].dtype and weights[0].shape == weights[1].shape
        return same and self._dim == other._dim and self.attending is other.attending and self.lib is other.lib

    def _find_attending(self) -> Attending | None:
        """What this layer's attention asks, where that is the kernels' attention with nothing besides."""
        module = self._attention
        state, number = getattr(module, "swarm_attending", None), getattr(module, "swarm_layer", None)
        if not isinstance(state, Attending) or not isinstance(number, int) or hasattr(module, "swarm_warmth"):
            return None
        groups = self._width // self._kv_width
        usual = module.config._attn_implementation == NAME and groups <= MOST_QUERIES and latent_of(module) is None
        self.number = number
        return state if usual else None

    def _fits(self, x: torch.Tensor, angles: Angles | None) -> bool:
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
        query, key, gate = self._linears[0], self._linears[1], self._linears[4]
        heads, kv_heads = query.out_features // self._dim, key.out_features // self._dim
        sizes = LayerSizes(query.in_features, gate.out_features, heads, kv_heads, self._dim)
        matrices = [(linear.matrix, linear.wide_bias()) for linear in self._linears]
        eps = [0.0 if norm is None else float(norm.variance_epsilon) for norm in (*self._norms, *self._heads)]
        return layer_words(norms, sizes, matrices, eps)


@dataclass(frozen=True)
class RunWords:
    """Layers of one call: their structs Layer and AttendCall, one behind the other, and how far back each sees."""

    numbers: range
    words: bytes
    calls: bytes
    spans: list[Span]


class LayerRun:
    """Fused layers that follow each other in a model. One call computes them where nothing stands between them: no
    other layer, and no attention but the kernels'. What each of them gives has the bits of layer by layer.

    on: until a layer was asked with other rows than those that were computed ahead for it.
    """

    def __init__(self, layers: Sequence[FusedLayer]) -> None:
        self.on = True
        self._layers = layers
        self._together: dict[tuple[int, int], RunWords] = {}

    def compute(self, place: int, x: torch.Tensor, angles: Angles) -> torch.Tensor | None:
        """What the layer at `place` gives for rows x [1, T, hidden]; what its followers give waits in
        `Attending.early`. None where its attention is not the kernels' alone."""
        first, rows = self._layers[place], x.shape[1]
        if (state := first.attending) is None:
            return None
        stop = place + 1
        if self.on and rows <= MOST_AHEAD and first.number in state.ahead:
            stop = max(stop, min(len(self._layers), place + state.ahead.stop - first.number))
        one = self._together.get((place, stop)) or self._describe(place, stop, state)
        if (orders := state.alone_in(one.numbers)) is None or sum(len(order.rows) for order, _ in orders) != rows:
            return None  # `attend` says what is wrong
        x = x.contiguous()
        jobs = np.empty((len(one.numbers), len(orders), JOB_WORDS), np.int64)
        for i, (order, start) in enumerate(orders):
            jobs[:, i] = order.of_layers(one.numbers, one.spans, start)
        outs = [torch.empty_like(x) for _ in one.numbers]
        cos, sin = (table.contiguous() for table in angles)
        first.lib.layers_whole(one.words, x, rows, cos, sin, one.calls, jobs, outs)
        for number, given, out in zip(one.numbers[1:], outs, outs[1:], strict=False):
            state.early[number] = Early(given, angles, out)
        return outs[0]

    def _describe(self, place: int, stop: int, state: Attending) -> RunWords:
        """Of as many layers from `place` on as go together."""
        found = list(itertools.takewhile(lambda one: one.follows(self._layers[place]), self._layers[place:stop]))
        numbers = range(found[0].number, found[0].number + len(found))
        words, calls = b"".join(one.words() for one in found), b"".join(one.call for one in found)
        spans = [state.spans.get(one.number, one.window) for one in found]
        self._together[place, stop] = RunWords(numbers, words, calls, spans)
        return self._together[place, stop]


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
    for _, places in itertools.groupby(enumerate(sorted(fused)), lambda pair: pair[1] - pair[0]):
        members = [fused[place] for _, place in places]
        together = LayerRun(members)
        for place, found in enumerate(members):
            found.go_with(together, place)


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
