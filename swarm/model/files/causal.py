"""Which class computes a config's text: transformers' causal mapping, and what it leaves out."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING


def causal_class(config: type[Any]) -> type[Any] | None:
    """The causal language model class of a config class: that of transformers' causal mapping, else the one for a text
    half that the mapping knows by its whole only (Emu3), else one that transformers has and maps elsewhere (Mistral 4:
    its mapping has it beside models that take pictures). None where there is none."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(config, None) or _of_text(config) or _by_name(config)
    found: type[Any] | None = kind[0] if isinstance(kind, tuple) else kind
    return found


def _of_text(config: type[Any]) -> type[Any] | None:
    whole = [one for one in MODEL_FOR_CAUSAL_LM_MAPPING if config in getattr(one, "sub_configs", {}).values()]
    kinds = [MODEL_FOR_CAUSAL_LM_MAPPING[one] for one in whole]
    return next((kind for kind in kinds if getattr(kind, "config_class", None) is config), None)


def _by_name(config: type[Any]) -> type[Any] | None:
    """`XForCausalLM` of an `XConfig`, where it was made for this very config. Configs that are a part of another are no
    models by themselves: their decoders speak sound codes, or of what an encoder saw (CSM's depth, Kosmos-2)."""
    if getattr(config, "base_config_key", "") or not config.__name__.endswith("Config"):
        return None
    kind = getattr(transformers, f"{config.__name__.removesuffix('Config')}ForCausalLM", None)
    fits = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if fits and getattr(kind, "config_class", None) is config else None
