"""A transformers config out of GGUF metadata, with every key accounted for.

Names of plain numbers are transformers' own table (`GGUF_CONFIG_MAPPING`). A key of the architecture that is neither
used here, nor at a value that changes nothing, nor known to describe only the file, is refused by name: a key that
nobody read is a model that computes something else.
"""

from __future__ import annotations

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

    def real(self, key: str) -> float:
        """A float32 of the file; its shortest text is the value that was meant."""
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


_Extra = Callable[[Keys, GGUFHeader, dict[str, Any]], None]


@dataclass(frozen=True)
class Family:
    """How a GGUF architecture is called in transformers. extra: what its keys say beyond transformers' table; norm: the
    key of the norms' epsilon and its name in transformers, where that table has none."""

    model_type: str
    kind: str
    extra: _Extra
    partial_rotary: bool = False
    norm: tuple[str, str] | None = None


def transformers_config(header: GGUFHeader, where: str) -> dict[str, Any]:
    """A config.json for a GGUF file, from its metadata.

    Raises ModelError for an architecture that is not known here, and for a key that would be ignored.
    """
    family = header.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{where} is a GGUF of architecture {family!r}, expected one of {known}; use safetensors")
    keys = Keys(header.metadata, family)
    try:
        config = _config(keys, header, FAMILIES[family])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as exc:
        raise ModelError(f"{where} lacks metadata or has it in another form: {exc}; use safetensors") from exc
    ignored = keys.left_over()
    if ignored is not None:
        value = str(header.metadata[ignored])[:60]
        raise ModelError(f"{where} states {ignored} = {value}, which is not read from GGUF; use safetensors")
    return config


def _config(keys: Keys, header: GGUFHeader, family: Family) -> dict[str, Any]:
    heads = keys.number("attention.head_count")
    hidden = keys.number("embedding_length")
    head_dim = keys.number("attention.key_length", hidden // heads)
    value_length = keys.number("attention.value_length", head_dim)
    if value_length != head_dim:
        raise ValueError(f"attention.value_length {value_length} where keys have {head_dim}, which is not read")
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.kind],
        "hidden_size": hidden,
        "num_hidden_layers": keys.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.number("context_length"),
        "rope_theta": keys.real("rope.freq_base") if keys.get("rope.freq_base") is not None else 10000.0,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if keys.get("feed_forward_length") is not None:
        config["intermediate_size"] = keys.number("feed_forward_length")
    _norm(keys, family, config)
    for name in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int):
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token
    if keys.family not in ("llama", "qwen2", "qwen3"):  # whose classes assume no padding either
        for name in ("bos", "eos", "pad"):
            config.setdefault(f"{name}_token_id", None)
    _rope(keys, header, family, config)
    family.extra(keys, header, config)
    return config


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
    if rotary != config["head_dim"]:
        if not family.partial_rotary or not 0 < rotary < config["head_dim"]:
            raise ValueError(f"rope.dimension_count is {rotary} where heads have {config['head_dim']}")
        config["partial_rotary_factor"] = rotary / config["head_dim"]
    factor = next((keys.real(k) for k in ("rope.scaling.factor", "rope.scale_linear") if keys.get(k) is not None), 0.0)
    keys.asked.add("rope.scale_linear")
    kind = keys.get("rope.scaling.type") or "linear"  # as llama.cpp: a factor without a type divides positions
    if "rope_freqs.weight" in header.tensors:
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
        for name in ("beta_fast", "beta_slow"):
            if keys.get(f"rope.scaling.yarn_{name}") is not None:
                config["rope_scaling"][name] = keys.real(f"rope.scaling.yarn_{name}")
    else:
        raise ValueError(f"rope.scaling.type is {kind!r}")


def _llama3_rope(header: GGUFHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters of Llama 3.1 and later. GGUF holds only what they do to each frequency
    (`rope_freqs.weight`), so the parameters that models were released with are tried. Raises ValueError."""
    tensor = header.tensors["rope_freqs.weight"]
    if tensor.kind != "F32" or tensor.shape != (config["head_dim"] // 2,):
        raise ValueError(f"rope_freqs.weight is {tensor.kind} of shape {list(tensor.shape)}")
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        stored = torch.frombuffer(bytearray(file.read(tensor.nbytes)), dtype=torch.float32)
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


def _llama(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = _any(header, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
    if keys.family != "llama":
        _whole_window(keys, config)
        return
    if _any(header, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"):
        config["mlp_bias"] = True
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:  # then it is a Mistral, which has no biases
        if config["attention_bias"] or "mlp_bias" in config or "rope_scaling" in config:
            raise ValueError(f"attention.sliding_window is {window} beside biases or rope scaling")
        config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=window)


def _whole_window(keys: Keys, config: Mapping[str, Any]) -> None:
    """Accept a window only where it hides nothing: which layers have it is not in the metadata."""
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:
        raise ValueError(f"attention.sliding_window is {window}, and which layers have it is not said")


def _any(header: GGUFHeader, *names: str) -> bool:
    return any(f"blk.0.{name}" in header.tensors for name in names)


def _gemma(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Gemma 2 and 3. The width that scales attention is that of a head, but for the 27B models (46 and 62 layers)."""
    whole = config["num_hidden_layers"] == (46 if keys.family == "gemma2" else 62)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    config["query_pre_attn_scalar"] = hidden // heads if whole else config["head_dim"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    config["attention_bias"] = False
    config["sliding_window"] = keys.number("attention.sliding_window")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        default = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if keys.family == "gemma2" else {}
        config[key] = (keys.real(key) if keys.get(key) is not None else default.get(key)) or None
    every = 2 if keys.family == "gemma2" else 6
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        local = [bool(item) for item in pattern]
    else:
        every = every if pattern is None else keys.number("attention.sliding_window_pattern")
        local = [bool((i + 1) % every) for i in range(config["num_hidden_layers"])]
    config["layer_types"] = ["sliding_attention" if item else "full_attention" for item in local]
    if keys.family == "gemma3":  # windows have a rope of their own, never scaled
        swa = keys.real("rope.freq_base_swa") if keys.get("rope.freq_base_swa") is not None else 10000.0
        theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling", {"rope_type": "default"})
        config["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": swa},
        }


def _experts(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Qwen2-MoE and Qwen3-MoE. llama.cpp divides the chosen experts' shares by their sum in the latter."""
    config["hidden_act"] = "silu"
    config["num_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["norm_topk_prob"] = keys.family == "qwen3moe"
    norm = keys.get("expert_weights_norm")
    if isinstance(norm, bool):
        config["norm_topk_prob"] = norm
    config["mlp_only_layers"], config["decoder_sparse_step"] = [], 1  # the architecture has no dense layers
    width = header.tensors["blk.0.ffn_gate_exps.weight"].shape[1]
    config["moe_intermediate_size"] = keys.number("expert_feed_forward_length", width)
    if keys.family == "qwen2moe":
        shared = header.tensors["blk.0.ffn_gate_shexp.weight"]
        config["shared_expert_intermediate_size"] = keys.number("expert_shared_feed_forward_length", shared.shape[0])
        config["qkv_bias"] = _any(header, "attn_q.bias")
    else:
        config["attention_bias"] = _any(header, "attn_q.bias", "attn_output.bias")
    config.setdefault("intermediate_size", config["moe_intermediate_size"])
    _whole_window(keys, config)


def _phi3(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:
        config["sliding_window"] = window
    keys.asked.add("rope.scaling.original_context_length")
    config["original_max_position_embeddings"] = keys.number(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )


def _granite(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Llama with four factors, which the converter always writes."""
    config["hidden_act"] = "silu"
    config["attention_bias"] = _any(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = _any(header, "ffn_gate.bias", "ffn_down.bias")
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),  # divides, in both
    ):
        config[name] = keys.real(key)


def _smollm3(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Every fourth layer goes without rotation: no key says so, llama.cpp counts itself."""
    config["hidden_act"] = "silu"
    config["no_rope_layer_interval"] = 4
    config["attention_bias"] = _any(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = _any(header, "ffn_gate.bias", "ffn_down.bias")
    _whole_window(keys, config)


def _arcee(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "relu2"
    config["attention_bias"] = _any(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = _any(header, "ffn_up.bias", "ffn_down.bias")


def _olmo2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Files with windows are OLMo 3, whose windows and full layers rotate by different rules: not read."""
    config["hidden_act"] = "silu"
    config["attention_bias"] = _any(header, "attn_q.bias", "attn_output.bias")
    _whole_window(keys, config)


def _cohere(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["logit_scale"] = keys.real("logit_scale")


def _seed_oss(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = _any(header, "attn_q.bias")
    config["attention_out_bias"] = _any(header, "attn_output.bias")
    config["mlp_bias"] = _any(header, "ffn_gate.bias")


def _gemma1(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = config["hidden_activation"] = "gelu_pytorch_tanh"
    config["attention_bias"] = False


def _starcoder2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "gelu_pytorch_tanh"
    config["use_bias"] = _any(header, "attn_q.bias")
    _whole_window(keys, config)


def _gpt2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    for key, name in (
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("intermediate_size", "n_inner"),
    ):
        if key in config:
            config[name] = config.pop(key)
    for key in ("rope_theta", "num_key_value_heads", "head_dim"):
        config.pop(key)
    config["activation_function"] = "gelu_new"


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _llama),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _llama),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _experts),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _experts),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3, partial_rotary=True),
    "starcoder2": Family("starcoder2", "Starcoder2ForCausalLM", _starcoder2),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma1),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "arcee": Family("arcee", "ArceeForCausalLM", _arcee),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _olmo2),
    "seed_oss": Family("seed_oss", "SeedOssForCausalLM", _seed_oss),
    "command-r": Family(
        "cohere", "CohereForCausalLM", _cohere, norm=("attention.layer_norm_epsilon", "layer_norm_eps")
    ),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt2),
}
"""GGUF architectures that are read. Files of Mistral models call themselves "llama", rightly."""
