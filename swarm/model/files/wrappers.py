"""Models that take more than text, of which the half that reads and writes text is served.

Their config holds another under `text_config`, and their files name the text half's tensors with a prefix. Here are
the values and the names that the text half has as a model of its own. Tensors of other halves belong to no layer: they
are neither fetched nor held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.config_classes import config_class

_TEXT: dict[str, str] = {
    "fuyu": "",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "",
    "internvl": "",
    "llava": "",
    "llava_next": "",
    "mistral3": "",
    "mllama": "",
    "moss_transcribe_diarize": "",
    "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
"""Type of the text half as a model of its own, by the type of the whole; "": what `text_config` says. The text halves
of the Qwen-VL models give a token of text one position three times: the plain rotation of the model that they were made
from."""

_ALWAYS: dict[str, dict[str, Any]] = {"qwen3_vl_moe": {"norm_topk_prob": True}}
"""What a whole model does to its text half's experts and leaves its config silent about."""

_NAMES = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.(?=lm_head\.))")
_PLAIN = re.compile(r"^(?:model\.(?:layers|embed_tokens|norm)\.|lm_head\.)")


def is_wrapper(values: Mapping[str, Any]) -> bool:
    """Does a config.json wrap a text half that can be served?"""
    return values.get("model_type") in _TEXT and isinstance(values.get("text_config"), Mapping)


def text_name(name: str) -> str | None:
    """The name of a wrapper's tensor in its text half; None for a tensor of another half."""
    if _PLAIN.match(name):
        return name
    found = _NAMES.match(name)
    if found is None:
        return None
    return name[found.end() :] if "lm_head" in found.string[found.end() :] else f"model.{name[found.end() :]}"


def text_values(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The config.json of a wrapper's text half, what its class takes as given included. Raises ModelError."""
    kind = str(values["model_type"])
    named = [str(name) for name in values.get("architectures") or ()]
    if any(not name.endswith(("ForConditionalGeneration", "ForCausalLM")) for name in named):
        raise ModelError(f"{model} is a {named[0]}, not a causal language model; use one that is")
    try:
        whole: Any = config_class(kind)
        whole = whole.from_dict(dict(values))
        text = whole.get_text_config().to_dict()
    except Exception as exc:  # config classes validate in ways of their own
        raise ModelError(f"the config of {model} does not fit its type {kind}: {exc}".splitlines()[0]) from exc
    inside = _TEXT[kind] or str(text["model_type"])
    tied = values.get("tie_word_embeddings", getattr(whole, "tie_word_embeddings", False))
    quantised = values.get("quantization_config")
    return {
        **text,
        **_ALWAYS.get(kind, {}),
        "model_type": inside,
        "tie_word_embeddings": bool(tied),
        "architectures": None,
        **({"quantization_config": quantised} if quantised else {}),
    }
