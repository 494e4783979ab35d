"""Settings that a config states and its class in transformers does not look at.

Such a class computes one way whatever the config says. At another value the model that was trained computes otherwise:
no word of that is in its output, so it is refused by the setting's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DEEPSEEK = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)}
"""What the classes of V3 and its kin take for granted."""

UNREAD: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "deepseek_v2": {"norm_topk_prob": (False,), "scoring_func": ("softmax",), "moe_layer_freq": (1,)},
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": {"norm_topk_prob": (True,)},
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": {"scoring_func": ("sigmoid",)},
    "glm4_moe_lite": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    "glm_moe_dsa": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
}
"""Model type -> setting -> the values that its class computes (transformers 5.23)."""


def unread(config: object) -> str | None:
    """The first setting at a value that its class would ignore, in words; None when there is none."""
    for key, computed in UNREAD.get(str(getattr(config, "model_type", "")), {}).items():
        value = getattr(config, key, None)
        if value is not None and value not in computed:
            return f"its config says {key} = {value!r}, its class computes {computed[0]!r} whatever that says"
    return None
