"""How a GGUF file orders a tensor's values, and what undoes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.base.errors import ModelError

_INTERLEAVED = ("llama", "mistral", "granite", "smollm3", "arcee")
"""Types whose converter is llama's, or made from it (conversion/*.py of llama.cpp)."""


def transposed(name: str, config: Mapping[str, Any]) -> bool:
    """GPT-2 keeps its projections [in, out] in transformers, [out, in] in GGUF."""
    return config["model_type"] == "gpt2" and bool(re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name))


@dataclass(frozen=True)
class TensorLayout:
    """What undoes the converter's change of a tensor.

    rows: for each row of the model's tensor, the row of the stored one; None where they agree. Whole rows move, so it
    is safe on packed blocks. values: whether values change as well (a norm stored plus one, a transposed matrix), which
    it takes unpacked values to undo.
    """

    rows: torch.Tensor | None = None
    transposed: bool = False
    minus_one: bool = False

    @property
    def packed_safe(self) -> bool:
        """Whether stored rows can be used without unpacking them."""
        return not (self.transposed or self.minus_one)

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """The model's tensor from unpacked values of the model's shape, [rows, ...]."""
        if self.transposed:
            return tensor.reshape(tensor.shape[::-1]).T.contiguous()
        if self.minus_one:
            return tensor - 1
        return tensor if self.rows is None else tensor[self.rows]


def layout(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> TensorLayout:
    """How the tensor `name` of `shape` lies in a GGUF file, by its transformers name.

    The Llama family's `q_proj` and `k_proj` (weight and bias; `_INTERLEAVED`) have the halves of each head's rotary
    dimensions interleaved; Gemma's norms are stored plus one. Raises ModelError for rows that make no such heads.
    """
    family = config["model_type"]
    if family in _INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        heads = int(config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        if heads < 1 or shape[0] % (2 * heads):
            raise ModelError(f"{name} has {shape[0]} rows, which are no {heads} heads: its config is of another model")
        order = torch.arange(shape[0]).reshape(heads, shape[0] // heads // 2, 2).transpose(1, 2).reshape(-1)
        return TensorLayout(rows=order)
    if family in ("gemma", "gemma2", "gemma3_text") and name.endswith("norm.weight"):
        return TensorLayout(minus_one=True)
    return TensorLayout(transposed=transposed(name, config))
