"""Dense models in GGUF files whose keys say something of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.model.files.gguf_config import Family, Keys, biased, whole_window
from swarm.model.files.gguf_file import GGUFHeader

_LAYER_NORM = "attention.layer_norm_epsilon"


def windows(keys: Keys, config: dict[str, Any], every: int) -> None:
    """Which layers see a window: by a list, one truth a layer, or all but each `every`-th. None without a window."""
    window, layers = keys.number("attention.sliding_window", 0), config["num_hidden_layers"]
    pattern = keys.get("attention.sliding_window_pattern")
    local = [bool((i + 1) % every) for i in range(layers)]
    if isinstance(pattern, list):
        local = [bool(item) for item in pattern][:layers]
    elif pattern is not None:
        step = keys.number("attention.sliding_window_pattern")
        local = [bool((i + 1) % step) for i in range(layers)]
    local = local if window else [False] * layers
    if len(local) != layers:
        raise ValueError(f"{keys.family}.attention.sliding_window_pattern has {len(local)} entries for {layers} layers")
    config["sliding_window"] = window or None
    config["layer_types"] = ["sliding_attention" if item else "full_attention" for item in local]


def _glm4(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")


def _exaone4(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Layers with a window rotate, those without do not, unless none has one."""
    config["hidden_act"] = "silu"
    windows(keys, config, 4)


def _cohere2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["logit_scale"] = keys.real("logit_scale")
    windows(keys, config, 4)


def _olmo2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """OLMo 2, and with windows OLMo 3. Scaled rotation, which the latter has in full layers only, is not read."""
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias", "attn_output.bias")
    if not keys.number("attention.sliding_window", 0):
        return
    if keys.get("attention.sliding_window_pattern") is None:
        return whole_window(keys, config)
    if "rope_scaling" in config:
        raise ValueError("olmo2.rope.scaling beside windows")
    windows(keys, config, 4)
    config.update(model_type="olmo3", architectures=["Olmo3ForCausalLM"])


def _olmo(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Norms without weights, whose epsilon is in its class."""
    config["hidden_act"] = "silu"
    config["clip_qkv"] = keys.real("attention.clamp_kqv", 0.0) or None


def _stablelm(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["use_qkv_bias"] = biased(header, "attn_q.bias")
    parallel = not biased(header, "ffn_norm.weight")
    config["use_parallel_residual"] = keys.flag("use_parallel_residual", parallel)
    if config["use_parallel_residual"] != parallel:
        raise ValueError(f"stablelm.use_parallel_residual is {not parallel}, and its tensors say otherwise")


def _phi2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "gelu_new"


def _nemotron(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "relu2"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["mlp_bias"] = biased(header, "ffn_up.bias")


def _ernie(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["use_bias"] = biased(header, "attn_q.bias", "ffn_up.bias")


def _mistral3(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Text halves of Mistral Small 3.x, and Ministral 3, whose queries grow with the position."""
    config["hidden_act"] = "silu"
    beta = keys.real("attention.temperature_scale", 0.0)
    if not beta:
        config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
        return
    rope = config.get("rope_scaling") or {}
    if rope.get("rope_type") != "yarn":
        raise ValueError("mistral3.attention.temperature_scale without yarn")
    scale = keys.real("rope.scaling.yarn_log_multiplier", 1.0)
    rope |= {"mscale": scale, "mscale_all_dim": scale, "llama_4_scaling_beta": beta}
    config["sliding_window"] = None


def _hunyuan(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config.setdefault("rope_scaling", {"rope_type": "default"})  # the base is stated as scaled


DENSE: Mapping[str, Family] = {
    "glm4": Family("glm4", "Glm4ForCausalLM", _glm4, partial_rotary=True),
    "exaone4": Family("exaone4", "Exaone4ForCausalLM", _exaone4),
    "cohere2": Family("cohere2", "Cohere2ForCausalLM", _cohere2, norm=(_LAYER_NORM, "layer_norm_eps")),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _olmo2),
    "olmo": Family("olmo", "OlmoForCausalLM", _olmo, norm=(_LAYER_NORM, "layer_norm_eps")),
    "stablelm": Family(
        "stablelm", "StableLmForCausalLM", _stablelm, partial_rotary=True, norm=(_LAYER_NORM, "layer_norm_eps")
    ),
    "phi2": Family("phi", "PhiForCausalLM", _phi2, partial_rotary=True, norm=(_LAYER_NORM, "layer_norm_eps")),
    "nemotron": Family(
        "nemotron", "NemotronForCausalLM", _nemotron, partial_rotary=True, norm=(_LAYER_NORM, "norm_eps")
    ),
    "ernie4_5": Family("ernie4_5", "Ernie4_5ForCausalLM", _ernie),
    "mistral3": Family("ministral3", "Ministral3ForCausalLM", _mistral3),
    "hunyuan-dense": Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _hunyuan),
}
