"""Tensors of a model that a GGUF file keeps in parts, or in another order than whole rows can be moved to.

Converters take apart what transformers computes as one (gate and up of a shared expert, the latent's projection to keys
and to values), each part a tensor of its own. A manifest calls them `NAME:ROLE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch

from swarm.model.quant.encoding import Blocks, Parts, StoredTensor

PART = ":"
"""Between the model's name of a tensor and the role of a part of it."""

ROWS = ("first", "second")
"""Parts whose rows lie behind each other."""
COLUMNS = ("even", "odd")
"""Parts whose last axes alternate."""
HEADS = ("k_b", "v_b")
"""The latent's projection: [heads, latent, keys] and [heads, values, latent]."""
DELTA = ("qkv", "z")
"""Qwen3-Next's: queries, keys and values of all key heads, and gates, which its class has by key head."""


@dataclass(frozen=True)
class Joined:
    """roles: one of the above; kinds: ggml's types of the parts; shapes: theirs; order: the row, of those of both parts
    behind each other, that each row is; () where they agree."""

    roles: tuple[str, ...]
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    order: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"gguf:{'+'.join(dict.fromkeys(self.kinds))}"

    @property
    def kernel_format(self) -> str | None:
        return self.kinds[0] if self.roles in (ROWS, DELTA) and len(set(self.kinds)) == 1 else None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.roles)

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        one, two = self.shapes
        if self.roles in (ROWS, DELTA) and one[1:] == two[1:] and len(self.order) in (0, one[0] + two[0]):
            return (one[0] + two[0], *one[1:])
        if self.roles == COLUMNS and one == two:
            return (*one[:-1], 2 * one[-1])
        if self.roles == HEADS and len(one) == len(two) == 3 and one[:2] == (two[0], two[2]):
            return (one[0] * (one[2] + two[1]), one[1])
        raise ValueError(f"parts of shapes {list(one)} and {list(two)} do not fit each other")

    def check(self, parts: Parts) -> None:
        return None

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of the model's tensor in float32."""
        if self.roles == COLUMNS:
            even, odd = (self._take(parts, number, torch.arange(first, last)) for number in (0, 1))
            return torch.stack((even, odd), -1).flatten(-2)
        if self.roles == HEADS:
            (_, latent, keys), (_, values, _) = self.shapes
            head, end = first // (keys + values), math.ceil(last / (keys + values))
            k, v = (self._take(parts, number, torch.arange(head, end)) for number in (0, 1))
            whole = torch.cat((k.transpose(1, 2), v), 1).reshape(-1, latent)
            return whole[first - head * (keys + values) :][: last - first]
        wanted = torch.tensor(self.order[first:last]) if self.order else torch.arange(first, last)
        edge = self.shapes[0][0]
        out = torch.empty(len(wanted), *self.shapes[0][1:])
        for number, own in enumerate((wanted < edge, wanted >= edge)):
            out[own] = self._take(parts, number, wanted[own] - number * edge)
        return out

    def blocks(self, parts: Parts) -> Blocks | None:
        if self.kernel_format is None:
            return None
        whole = torch.cat([parts[role] for role in self.roles])
        return Blocks(self.kinds[0], whole[torch.tensor(self.order)] if self.order else whole)

    def _take(self, parts: Parts, number: int, wanted: torch.Tensor) -> torch.Tensor:
        """Entries of a part's first axis, as float32."""
        shape, kind = self.shapes[number], self.kinds[number]
        stored = parts[self.roles[number]]
        if stored.dtype != torch.uint8:
            return stored.reshape(shape)[wanted].float()
        rows = stored.reshape(shape[0], -1)[wanted].numpy()
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
        values = gguf.dequantize(rows.reshape(-1, size), gguf.GGMLQuantizationType[kind])
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(len(wanted), *shape[1:])


def joined(parts: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Joined:
    """How a tensor lies in these parts, in a model of this config. Raises ValueError for parts that do not belong
    together."""
    roles = next((roles for roles in (ROWS, COLUMNS, HEADS, DELTA) if set(roles) == set(parts)), None)
    if roles is None:
        raise ValueError(f"it is made of {', '.join(sorted(parts))}")
    kinds = tuple(parts[role].format.removeprefix("gguf:") for role in roles)
    order = _by_key_head(config) if roles == DELTA else ()
    return Joined(roles, kinds, tuple(tuple(parts[role].shape) for role in roles), order)


def _by_key_head(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Rows of Qwen3-Next's projection: of each key head its query, key, values and gates."""
    heads, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    if heads < 1 or values % heads:
        raise ValueError(f"{values} value heads for {heads} key heads")
    key = int(config["linear_key_head_dim"])
    value = values // heads * int(config["linear_value_head_dim"])
    parts, start = [], 0
    for width in (key, key, value, value):
        parts.append(start + torch.arange(heads * width).reshape(heads, width))
        start += heads * width
    return tuple(torch.cat(parts, 1).flatten().tolist())
