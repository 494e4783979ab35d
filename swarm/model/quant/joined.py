"""Tensors of a model that a GGUF file keeps in parts, or in another order than whole rows can be moved to.

Converters take apart what transformers computes as one (gate and up of a shared expert, the latent's projection to keys
and to values), each part a tensor of its own. A manifest calls them `NAME:ROLE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import torch

from swarm.model.quant.encoding import Blocks, Parts, StoredTensor

PART = ":"
"""Between the model's name of a tensor and the role of a part of it."""

ROWS = ("gate", "up")
"""Parts whose rows lie behind each other."""
COLUMNS = ("even", "odd")
"""Parts whose last axes alternate."""
HEADS = ("k_b", "v_b")
"""The latent's projection: [heads, latent, keys] and [heads, values, latent]."""


@dataclass(frozen=True)
class Joined:
    """roles: one of the above; kinds: ggml's types of the parts; shape_: the parts' shapes."""

    roles: tuple[str, ...]
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return f"gguf:{'+'.join(dict.fromkeys(self.kinds))}"

    @property
    def kernel_format(self) -> str | None:
        return self.kinds[0] if self.roles == ROWS and len(set(self.kinds)) == 1 else None

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        one, two = self.shapes
        if self.roles == ROWS and one[1:] == two[1:]:
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
        if self.roles == ROWS:
            edge = self.shapes[0][0]
            one = self._part(parts, 0, first, min(last, edge))
            two = self._part(parts, 1, max(0, first - edge), last - edge)
            return torch.cat([part for part in (one, two) if part is not None])
        if self.roles == COLUMNS:
            even, odd = self._part(parts, 0, first, last), self._part(parts, 1, first, last)
            assert even is not None and odd is not None
            return torch.stack((even, odd), -1).reshape(*even.shape[:-1], -1)
        (_, latent, keys), (_, values, _) = self.shapes
        head, end = first // (keys + values), math.ceil(last / (keys + values))
        k, v = self._part(parts, 0, head, end), self._part(parts, 1, head, end)
        assert k is not None and v is not None
        whole = torch.cat((k.transpose(1, 2), v), 1).reshape(-1, latent)
        return whole[first - head * (keys + values) :][: last - first]

    def blocks(self, parts: Parts) -> Blocks | None:
        if self.kernel_format is None:
            return None
        return Blocks(self.kinds[0], torch.cat([parts[role] for role in self.roles]))

    def _part(self, parts: Parts, number: int, first: int, last: int) -> torch.Tensor | None:
        """Entries [first, last) of a part's first axis; None where there are none."""
        shape, kind = self.shapes[number], self.kinds[number]
        if last <= first:
            return None
        stored = parts[self.roles[number]]
        if stored.dtype != torch.uint8:
            return stored.reshape(shape)[first:last].float()
        rows = stored.reshape(shape[0], -1)[first:last].numpy()
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
        values = gguf.dequantize(rows.reshape(-1, size), gguf.GGMLQuantizationType[kind])
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(last - first, *shape[1:])


def joined(parts: Mapping[str, StoredTensor]) -> Joined:
    """How a tensor lies in these parts. Raises ValueError for parts that do not belong together."""
    roles = next((roles for roles in (ROWS, COLUMNS, HEADS) if set(roles) == set(parts)), None)
    if roles is None:
        raise ValueError(f"it is made of {', '.join(sorted(parts))}")
    kinds = tuple(parts[role].format.removeprefix("gguf:") for role in roles)
    return Joined(roles, kinds, tuple(tuple(parts[role].shape) for role in roles))
