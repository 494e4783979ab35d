"""A decoder layer of Llama's or Qwen3's kind over keys and values that its caller holds, for drafters that read hidden
rows of the target.

What is computed is what transformers computes for such a layer (`tests/draft/test_tapped.py` holds it against it), but
queries and keys may come from different rows, the first layer of an EAGLE-3 head has inputs twice as wide, and a row
sees what its caller says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from swarm.base.errors import ModelError

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LayerShape:
    """Heads, key/value heads, values of a head, and epsilon of the norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @classmethod
    def of(cls, config: Any) -> LayerShape:
        """Of a transformers config."""
        heads = int(config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(heads, int(kv_heads), int(head_dim), float(config.rms_norm_eps))


def normed(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of the last dimension, in float32 as transformers does it."""
    wide = rows.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(rows.dtype)


class TappedLayer:
    """One layer. `tensors`: its own, by their names within it. Raises ModelError for a missing one."""

    def __init__(self, tensors: Tensors, shape: LayerShape, act: str) -> None:
        if act not in ("silu", "swish"):
            raise ModelError(f"expected a drafter's layer with silu, found {act!r}")
        self.shape, self._tensors = shape, tensors
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):
            if f"{name}.weight" not in tensors:
                raise ModelError(f"expected the tensor {name}.weight in each layer of a drafter, found none")

    def linear(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """`rows` through the linear layer of that name, with its bias if it has one."""
        return functional.linear(rows, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def norm(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """`rows` through the norm of that name; as they are where it has none."""
        weight = self._tensors.get(f"{name}.weight")
        return rows if weight is None else normed(rows, weight, self.shape.eps)

    def queries(self, rows: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[heads, n, head_dim] of rows [n, d]. `turn`: cos and sin [n, head_dim] of their positions. Here and below, of
        a batch everything has one dimension more in front (`turn` too, and one for the heads)."""
        return turned(self._heads("q", rows, self.shape.heads), turn)

    def keys(self, rows: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [kv_heads, n, head_dim]."""
        values = self.linear("self_attn.v_proj", rows)
        values = values.reshape(*values.shape[:-1], self.shape.kv_heads, -1).transpose(-3, -2)
        return turned(self._heads("k", rows, self.shape.kv_heads), turn), values

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """What rows read, [n, d]: seen bool [n, keys]; each row sees one key at least."""
        alone = queries.ndim == 3
        if alone:
            queries, keys, values, seen = queries[None], keys[None], values[None], seen[None]
        found = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen.unsqueeze(-3), enable_gqa=self.shape.heads != self.shape.kv_heads
        )
        read = self.linear("self_attn.o_proj", found.transpose(-3, -2).flatten(-2))
        return read[0] if alone else read

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        """The second half: rows after their feed-forward part."""
        inner = self.norm("post_attention_layernorm", rows)
        gate = functional.silu(self.linear("mlp.gate_proj", inner))
        return rows + self.linear("mlp.down_proj", gate * self.linear("mlp.up_proj", inner))

    def _heads(self, which: str, rows: torch.Tensor, heads: int) -> torch.Tensor:
        made = self.linear(f"self_attn.{which}_proj", rows)
        made = made.reshape(*made.shape[:-1], heads, self.shape.head_dim)
        return self.norm(f"self_attn.{which}_norm", made).transpose(-3, -2)


def turned(rows: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on [heads, n, head_dim]."""
    half = rows.shape[-1] // 2
    other = torch.cat((-rows[..., half:], rows[..., :half]), -1)
    return rows * turn[0] + other * turn[1]


class Rotary:
    """cos and sin of positions, by the config's own scaling (transformers computes the frequencies)."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # only such a drafter pays for it

        self._rotary, self._dtype = LlamaRotaryEmbedding(config), dtype

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each [n, head_dim]."""
        cos, sin = self._rotary(torch.empty(0, dtype=self._dtype), positions[None])
        return cos[0], sin[0]
