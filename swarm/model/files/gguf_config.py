"""A transformers config out of GGUF metadata, with every key accounted for.

Names of plain numbers are transformers' own table (`GGUF_CONFIG_MAPPING`). A key of the architecture that is neither
used here, nor at a value that changes nothing, nor known to describe only the file, is refused by name: a key that
nobody read is a model that computes something else.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ROPE_INIT_FUNCTIONS, LlamaConfig
from transformers.integrations import GGUF_CONFIG_MAPPING

from swarm.base.errors import ModelError
from swarm.model.files.gguf_file import GGUFHeader

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (1.0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0, 0.1),
}
"""Keys that mean something, and the values at which they change nothing. 0.1 is yarn's usual multiplier."""

_HARMLESS = frozenset(
    ("tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length", "vocab_size")
)
"""Keys that describe the file or repeat what the tensors say."""


class Keys:
    """The metadata of one architecture; remembers what was asked for."""

    def __init__(self, metadata: Mapping[str, Any], family: str) -> None:
        self.metadata, self.family = metadata, family
        self.asked: set[str] = set()

    def get(self, key: str) -> Any:
        self.asked.add(key)
        return self.metadata.get(f"{self.family}.{key}")

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise KeyError(f"{self.family}.{key}")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number; a list (one number a layer) must repeat one. Raises KeyError, ValueError."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise KeyError(f"{self.family}.{key}")
            return default
        if isinstance(value, list):
            if not value or len(set(value)) != 1:
                raise ValueError(f"{self.family}.{key} differs between layers, which is not read from GGUF")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{self.family}.{key} is {value!r}, expected a whole number")
        return value

    def layered(self, key: str) -> list[int]:
        """A whole number for each layer. Raises KeyError, TypeError."""
        value, layers = self.need(key), self.number("block_count")
        each = value if isinstance(value, list) else [value] * layers
        if len(each) != layers or not all(isinstance(n, int) for n in each):
            raise TypeError(f"{self.family}.{key} is not a whole number for each of {layers} layers")
        return [int(n) for n in each]

    def most(self, key: str) -> int:
        """The one whole number that is not zero, of those of all layers. Raises KeyError, TypeError, ValueError."""
        found = set(self.layered(key)) - {0}
        if len(found) > 1:
            raise ValueError(f"{self.family}.{key} differs between layers, which is not read from GGUF")
        return found.pop() if found else 0

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{self.family}.{key} is {value!r}, expected true or false")
        return default if value is None else value

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 of the file; its shortest text is the value that was meant."""
        if default is not None and self.get(key) is None:
            return default
        value = float(str(np.float32(self.need(key))))
        if not math.isfinite(value):
            raise ValueError(f"{self.family}.{key} is {value}")
        return value

    def left_over(self) -> str | None:
        """The first key of the architecture that would be ignored at a value that changes something."""
        for name in sorted(self.metadata):
            key = name.removeprefix(f"{self.family}.")
            if key == name or key in self.asked or key in _HARMLESS:
                continue
            if not any(self.metadata[name] == value for value in _NEUTRAL.get(key, ())):
                return name
        return None


Extra = Callable[[Keys, GGUFHeader, dict[str, Any]], None]


@dataclass(frozen=True)
class Family:
    """How a GGUF architecture is called in transformers.

    extra           what its keys say beyond those that every architecture has
    partial_rotary  heads may be rotated in part
    norm            the key of the norms' epsilon and its name in transformers, where transformers' table has none
    mixed           numbers of heads differ between layers, zero where a layer has no attention
    further         layers behind the last that predict further tokens are counted, and left alone
    widths          keys and values have widths of their own, which `extra` reads
    attention       there is any; without it there are neither heads nor rotation
    """

    model_type: str
    kind: str
    extra: Extra
    partial_rotary: bool = False
    norm: tuple[str, str] | None = None
    mixed: bool = False
    further: bool = False
    widths: bool = False
    attention: bool = True


def read_config(header: GGUFHeader, where: str, families: Mapping[str, Family]) -> dict[str, Any]:
    """A config.json for a GGUF file, from its metadata.

    Raises ModelError for an architecture that is not known here, and for a key that would be ignored.
    """
    family = header.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in families:
        near = difflib.get_close_matches(str(family), sorted(families), 4, 0.4) or sorted(families)
        raise ModelError(
            f"{where} is a GGUF of architecture {family!r}, which is not read; the nearest that are: "
            f"{', '.join(near)}; use safetensors"
        )
    keys = Keys(header.metadata, family)
    try:
        config = _config(keys, header, families[family])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as exc:
        raise ModelError(f"{where} lacks metadata or has it in another form: {exc}; use safetensors") from exc
    ignored = keys.left_over()
    if ignored is not None:
        value = str(header.metadata[ignored])[:60]
        raise ModelError(f"{where} states {ignored} = {value}, which is not read from GGUF; use safetensors")
    return config


def _config(keys: Keys, header: GGUFHeader, family: Family) -> dict[str, Any]:
    if not family.attention:
        return _without_attention(keys, header, family)
    heads = keys.most("attention.head_count") if family.mixed else keys.number("attention.head_count")
    hidden = keys.number("embedding_length")
    head_dim = keys.number("attention.key_length", hidden // heads)
    value_length = keys.number("attention.value_length", head_dim)
    if value_length != head_dim and not family.widths:
        raise ValueError(f"attention.value_length {value_length} where keys have {head_dim}, which is not read")
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.kind],
        "hidden_size": hidden,
        "num_hidden_layers": keys.number("block_count")
        - (keys.number("nextn_predict_layers", 0) if family.further else 0),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.most("attention.head_count_kv")
        if family.mixed
        else keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.number("context_length"),
        "rope_theta": keys.real("rope.freq_base") if keys.get("rope.freq_base") is not None else 10000.0,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if keys.get("feed_forward_length") is not None:
        config["intermediate_size"] = (keys.most if family.mixed else keys.number)("feed_forward_length")
    _norm(keys, family, config)
    _tokens(header, config)
    if keys.family not in ("llama", "qwen2", "qwen3"):  # whose classes assume no padding either
        for name in ("bos", "eos", "pad"):
            config.setdefault(f"{name}_token_id", None)
    _rope(keys, header, family, config)
    family.extra(keys, header, config)
    return config


def _without_attention(keys: Keys, header: GGUFHeader, family: Family) -> dict[str, Any]:
    keys.asked |= {"attention.head_count", "feed_forward_length", "context_length"}  # zeros, and some large number
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.kind],
        "hidden_size": keys.number("embedding_length"),
        "num_hidden_layers": keys.number("block_count"),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    _norm(keys, family, config)
    _tokens(header, config)
    for name in ("bos", "eos", "pad"):
        config.setdefault(f"{name}_token_id", None)
    family.extra(keys, header, config)
    return config


def _tokens(header: GGUFHeader, config: dict[str, Any]) -> None:
    for name in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int):
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token


def _norm(keys: Keys, family: Family, config: dict[str, Any]) -> None:
    """The norms' epsilon under the name that transformers' table has for it."""
    table = GGUF_CONFIG_MAPPING.get(family.model_type.removesuffix("_text"), GGUF_CONFIG_MAPPING["llama"])
    if family.norm is not None:
        config[family.norm[1]] = keys.real(family.norm[0])
        return
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if table.get(key):
            config[table[key]] = keys.real(key)
            return
    raise KeyError("attention.layer_norm_rms_epsilon")


def _rope(keys: Keys, header: GGUFHeader, family: Family, config: dict[str, Any]) -> None:
    rotary = keys.number("rope.dimension_count", config["head_dim"])
    if rotary != config["head_dim"] and not family.widths:
        if not family.partial_rotary or not 0 < rotary < config["head_dim"]:
            raise ValueError(f"rope.dimension_count is {rotary} where heads have {config['head_dim']}")
        config["partial_rotary_factor"] = rotary / config["head_dim"]
    factor = next((keys.real(k) for k in ("rope.scaling.factor", "rope.scale_linear") if keys.get(k) is not None), 0.0)
    keys.asked.add("rope.scale_linear")
    kind = keys.get("rope.scaling.type") or "linear"  # as llama.cpp: a factor without a type divides positions
    if LONG in header.tensors:
        if kind not in ("linear", "longrope") or factor not in (0.0, 1.0):
            raise ValueError(f"rope.scaling.type is {kind!r} beside {LONG}")
        config["rope_scaling"] = _longrope(keys, header, rotary)
    elif "rope_freqs.weight" in header.tensors:
        if kind != "none" and factor not in (0.0, 1.0):
            raise ValueError(f"rope.scaling.factor {factor} beside rope_freqs.weight")
        config["rope_scaling"] = _llama3_rope(header, config)
    elif kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return
    elif kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.number("rope.scaling.original_context_length"),
        }
        if keys.family in ("deepseek2", "mistral4"):  # a tenth of what their softmax is scaled by
            scale = keys.real("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
            config["rope_scaling"] |= {"mscale": round(scale, 6), "mscale_all_dim": round(scale, 6)}
        if keys.family == "gpt-oss":  # trained with borders that are no whole dimensions, which no key says
            config["rope_scaling"]["truncate"] = False
        for name in ("beta_fast", "beta_slow"):
            if keys.get(f"rope.scaling.yarn_{name}") is not None:
                config["rope_scaling"][name] = keys.real(f"rope.scaling.yarn_{name}")
    else:
        raise ValueError(f"rope.scaling.type is {kind!r}")


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""What frequencies are divided by in texts that are longer than the model was first trained with, and in others."""


def _longrope(keys: Keys, header: GGUFHeader, rotary: int) -> dict[str, Any]:
    """Phi-3.5's rotation. Raises KeyError, ValueError."""
    return {
        "rope_type": "longrope",
        "long_factor": _factors(header, LONG, rotary),
        "short_factor": _factors(header, SHORT, rotary),
        "attention_factor": keys.real("rope.scaling.attn_factor", 1.0),
        "original_max_position_embeddings": keys.number("rope.scaling.original_context_length"),
    }


def _factors(header: GGUFHeader, name: str, rotary: int) -> list[float]:
    """A factor for each frequency, at the shortest text of its float32."""
    values = [float(str(np.float32(value))) for value in _stored(header, name, rotary // 2).tolist()]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{name} holds factors that are not positive")
    return values


def _stored(header: GGUFHeader, name: str, count: int) -> torch.Tensor:
    """A small tensor of float32 that is part of the config. Raises KeyError, ValueError."""
    tensor = header.tensors[name]
    if tensor.kind != "F32" or tensor.shape != (count,):
        raise ValueError(f"{name} is {tensor.kind} of shape {list(tensor.shape)}")
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return torch.frombuffer(bytearray(file.read(tensor.nbytes)), dtype=torch.float32)


def _llama3_rope(header: GGUFHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters of Llama 3.1 and later. GGUF holds only what they do to each frequency
    (`rope_freqs.weight`), so the parameters that models were released with are tried. Raises ValueError."""
    stored = _stored(header, "rope_freqs.weight", config["head_dim"] // 2)
    for factor in (8.0, 32.0, 16.0, 4.0):
        rope = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        scaled = LlamaConfig(
            hidden_size=config["hidden_size"],
            num_attention_heads=config["num_attention_heads"],
            head_dim=config["head_dim"],
            rope_parameters={**rope, "rope_theta": config["rope_theta"]},
        )
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
        plain = config["rope_theta"] ** (-torch.arange(0, config["head_dim"], 2).float() / config["head_dim"])
        if torch.allclose(plain / frequencies, stored, rtol=1e-3, atol=0):
            return rope
    raise ValueError("rope_freqs.weight is not of a scaling that Llama models were released with")


def whole_window(keys: Keys, config: Mapping[str, Any]) -> None:
    """Accept a window only where it hides nothing: which layers have it is not in the metadata."""
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:
        raise ValueError(f"attention.sliding_window is {window}, and which layers have it is not said")


def biased(header: GGUFHeader, *names: str) -> bool:
    """Whether the first layer has any of these tensors."""
    return any(f"blk.0.{name}" in header.tensors for name in names)
