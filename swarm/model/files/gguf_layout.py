"""How a GGUF file orders a tensor's values, and what undoes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.base.errors import ModelError

_INTERLEAVED = (
    "llama", "mistral", "mixtral", "granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "smollm3", "arcee",
    "olmo", "ministral3",
)  # fmt: skip
"""Types whose converter is llama's, or made from it (conversion/*.py of llama.cpp)."""


def transposed(name: str, config: Mapping[str, Any]) -> bool:
    """GPT-2 keeps its projections [in, out] in transformers, [out, in] in GGUF."""
    return config.get("model_type") == "gpt2" and bool(re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name))


@dataclass(frozen=True)
class TensorLayout:
    """What undoes the converter's change of a tensor.

    rows: for each row of the model's tensor, the row of the stored one; None where they agree. Whole rows move, so it
    is safe on packed blocks. columns: for each stored column, the model's; None where they agree. values: what undoes
    a change of values (a norm stored plus one, a transposed matrix), for which it takes unpacked ones.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    transposed: bool = False
    values: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def packed_safe(self) -> bool:
        """Whether stored rows can be used without unpacking them."""
        return not self.transposed and self.values is None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """The model's tensor from unpacked values of the model's shape, [rows, ...]."""
        if self.transposed:
            return tensor.reshape(tensor.shape[::-1]).T.contiguous()
        return self.finish(tensor if self.rows is None else tensor[self.rows])

    def finish(self, rows: torch.Tensor) -> torch.Tensor:
        """As `apply`, of rows that are in the model's order already."""
        if self.columns is not None:
            moved = torch.empty_like(rows)
            moved[:, self.columns] = rows
            rows = moved
        return rows if self.values is None else self.values(rows)


def _minus_one(values: torch.Tensor) -> torch.Tensor:
    return values - 1


def _log_of_negative(values: torch.Tensor) -> torch.Tensor:
    return torch.log(-values)


_PLUS_ONE = {
    "gemma": r"norm\.weight$",
    "gemma2": r"norm\.weight$",
    "gemma3_text": r"norm\.weight$",
    "nemotron": r"norm\.weight$",
    "qwen3_next": r"(?<!linear_attn\.)norm\.weight$",
    "qwen3_5_text": r"(?<!linear_attn\.)norm\.weight$",
    "qwen3_5_moe_text": r"(?<!linear_attn\.)norm\.weight$",
}
"""Types whose norms are kept around zero and stored plus one: all but those that the pattern leaves out."""


def layout(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> TensorLayout:
    """How the tensor `name` of `shape` lies in a GGUF file, by its transformers name.

    The Llama family's `q_proj` and `k_proj` (weight and bias; `_INTERLEAVED`) have the halves of each head's rotary
    dimensions interleaved; recurrent layers have what `A_log` stands for. Raises ModelError for rows that make no such
    heads.
    """
    family = config.get("model_type", "")
    if family in _INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        heads = int(config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        if heads < 1 or shape[0] % (2 * heads):
            raise ModelError(f"{name} has {shape[0]} rows, which are no {heads} heads: its config is of another model")
        order = torch.arange(shape[0]).reshape(heads, shape[0] // heads // 2, 2).transpose(1, 2).reshape(-1)
        return TensorLayout(rows=order)
    if family in _PLUS_ONE and re.search(_PLUS_ONE[family], name):
        return TensorLayout(values=_minus_one)
    if family in _TILED and ".linear_attn." in name:
        return _grouped_values(name, shape, config)
    if name.endswith("A_log"):
        return TensorLayout(values=_log_of_negative)
    return TensorLayout(transposed=transposed(name, config))


_TILED = ("qwen3_5_text", "qwen3_5_moe_text")
"""Types whose value heads lie behind each other by their number among those of a key head, and then by key head."""


def _grouped_values(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> TensorLayout:
    """Linear attention of Qwen3.5: value heads by key head, as its class has them."""
    keys, heads, width = (
        int(config[key]) for key in ("linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim")
    )
    if keys < 1 or heads % keys:
        raise ModelError(f"{name} has {heads} value heads for {keys} key heads: its config is of another model")
    before = 2 * keys * int(config["linear_key_head_dim"])  # queries and keys, which stay
    of_head = torch.arange(heads).reshape(heads // keys, keys).T.reshape(-1)  # the stored head of each
    of_row = (of_head[:, None] * width + torch.arange(width)).reshape(-1)
    last = name.rpartition(".linear_attn.")[2]
    if last == "A_log":
        return TensorLayout(rows=_fits(name, of_head, shape), values=_log_of_negative)
    if last in ("dt_bias", "in_proj_a.weight", "in_proj_b.weight"):
        return TensorLayout(rows=_fits(name, of_head, shape))
    if last in ("in_proj_qkv.weight", "conv1d.weight"):
        return TensorLayout(rows=_fits(name, torch.cat((torch.arange(before), before + of_row)), shape))
    if last == "in_proj_z.weight":
        return TensorLayout(rows=_fits(name, of_row, shape))
    if last == "out_proj.weight":
        return TensorLayout(columns=_fits(name, of_row.argsort(), shape[1:]))
    return TensorLayout()


def _fits(name: str, order: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if not shape or len(order) != shape[0]:
        raise ModelError(f"{name} has {list(shape)} where its config says {len(order)}: they are of different models")
    return order
