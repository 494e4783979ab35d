"""A decoder layer of Llama's kind as the kernels are told of it: their struct Layer (native/layer.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swarm.model.quant.matrix import PackedMatrix


@dataclass(frozen=True)
class LayerSizes:
    """Numbers of a row; of a row between the halves of the feed-forward part; heads; key heads; numbers of a head."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    dim: int


Biased = tuple[PackedMatrix, torch.Tensor | None]
"""A matrix and its bias, float32."""


def layer_words(
    norms: Sequence[torch.Tensor | None], sizes: LayerSizes, matrices: Sequence[Biased], eps: Sequence[float]
) -> bytes:
    """norms: weights of the norm before attention, of the one behind it, of queries and of keys, in the rows' dtype;
    eps: theirs, 0 for one that is not there. matrices: query, key, value, output, gate, up, down.

    What it points to must live as long as the words are used.
    """
    words: list[int] = [0 if weight is None else weight.data_ptr() for weight in norms]
    words += (sizes.hidden, sizes.inner, sizes.heads, sizes.kv_heads, sizes.dim)
    for matrix, bias in matrices:
        where = 0 if bias is None else bias.data_ptr()
        words += (matrix.data.data_ptr(), where, 0, matrix.shape[0], matrix.form.number)
    return struct.pack(f"={len(words)}q{len(eps)}d", *words, *eps)
