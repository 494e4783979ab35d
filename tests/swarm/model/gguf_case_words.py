"""What cases of GGUF architectures share: sizes of tiny models, and the keys that say the same of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Case = tuple[str, Callable[[], Any], dict[str, Any]]
"""The architecture, the model's config, keys beside `gguf_keys` (None removes one)."""

_BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None,
}  # fmt: skip


def b(**changes: Any) -> dict[str, Any]:
    return {**_BASE, **changes}


E8 = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}
GF = dict(attention_multiplier=0.2, embedding_multiplier=6.0, residual_multiplier=0.3, logits_scaling=4.0)
GK = {"attention.scale": 0.2, "embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0}


def yarn(original: int) -> dict[str, object]:
    """Rotation by YaRN, eight times a context of `original` positions."""
    return {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": original,
        "rope_theta": 10000.0,
    }
