"""Tiny mixtures, saved as files of quantised experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from tests.swarm.model.encoded_files import Stored, Writer, low_first, nibbles
from tests.swarm.model.gguf_files import add_key, gguf_keys, gguf_tensors, plain_numbers
from tests.swarm.model.test_quant import blocks, form_of
from tests.swarm.model.tiny import random_model

_BASE = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip


def mixture(family: str, **changes: Any) -> Any:
    """A model of eight experts, two or three for each row."""
    t = transformers
    match family:
        case "qwen3_moe":
            own = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 16}
            config: Any = t.Qwen3MoeConfig(**{**_BASE, "norm_topk_prob": True, **own, **changes})
        case "mixtral":
            config = t.MixtralConfig(**_BASE, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)
        case "gpt_oss":
            config = t.GptOssConfig(
                **_BASE, intermediate_size=32, num_local_experts=8, num_experts_per_tok=2, head_dim=16,
                sliding_window=7, pad_token_id=0, experts_per_token=2,
            )  # fmt: skip
        case "glm4_moe":
            config = t.Glm4MoeConfig(
                **_BASE, intermediate_size=96, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
                n_shared_experts=1, head_dim=16, first_k_dense_replace=1, n_group=1, topk_group=1,
            )  # fmt: skip
        case "deepseek_v3":
            config = t.DeepseekV3Config(
                **{**_BASE, "num_key_value_heads": 4}, intermediate_size=96, moe_intermediate_size=32,
                n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=2,
                topk_group=1, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
            )  # fmt: skip
        case "lfm2_moe":
            config = t.Lfm2MoeConfig(
                **_BASE, intermediate_size=96, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2,
                num_dense_layers=1, layer_types=["conv", "full_attention", "conv"],
            )  # fmt: skip
        case _:
            raise ValueError(family)
    return random_model(config)


def save_one_by_one(folder: Path, model: Any, write: Writer, stated: Mapping[str, Any]) -> Path:
    """The model with every matrix of its experts (and of attention) packed by `write`, as checkpoints have them."""
    rng = np.random.default_rng(1)
    tensors: Stored = {}
    for name, weight in revert_weight_conversion(model, dict(model.state_dict())).items():
        if weight.dim() != 2 or not (".experts." in name or "_proj." in name) or weight.shape[1] % 32:
            tensors[name] = weight.contiguous().clone()
            continue
        stored, _ = write(weight.double().numpy(), rng)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{key}": value.contiguous() for key, value in stored.items()}
    return _save(folder, model, tensors, stated)


def save_gpt_oss(folder: Path, model: Any, bad: str = "") -> Path:
    """Its experts as the Hub has them: `_blocks` and `_scales` of MXFP4. bad: a tensor to give a scale of 255."""
    tensors: Stored = {}
    for name, weight in model.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")) or ".experts." not in name:
            tensors[name] = weight.contiguous().clone()
            continue
        part = weight.double().transpose(1, 2).numpy()  # [experts, out, in]
        part = part.reshape(*part.shape[:2], -1, 32)
        exponent = np.floor(np.log2(np.abs(part).max(3))).astype(int) - 2
        tensors[f"{name}_blocks"] = low_first(nibbles(part / 2.0 ** exponent[..., None])).contiguous()
        tensors[f"{name}_scales"] = torch.from_numpy((exponent + 127).astype(np.uint8)).contiguous()
        if name == bad:
            tensors[f"{name}_scales"][3, 5, 0] = 255
    return _save(folder, model, tensors, {"quant_method": "mxfp4"})


def _save(folder: Path, model: Any, tensors: Stored, stated: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**model.config.to_dict(), "quantization_config": dict(stated)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_gguf(path: Path, model: Any, arch: str, kind: str, keys: Mapping[str, Any], down: str = "") -> Path:
    """Random blocks of ggml's type `kind` for every matrix (of type `down` for the experts' second projection): not
    every type can be written, all can be read."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**gguf_keys(model), **keys}.items():
        add_key(writer, f"{arch}.{key}", value)
    for at, (name, data) in enumerate(gguf_tensors(model, arch).items()):
        if plain_numbers(name, data):
            writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
            continue
        chosen = down if down and "ffn_down_exps" in name else kind
        form = form_of(chosen)
        if data.shape[-1] % form.block:  # then converters fall back to this
            writer.add_tensor(name, np.ascontiguousarray(data, np.float16))
            continue
        stored = blocks(form, int(np.prod(data.shape[:-1])), data.shape[-1], at)
        if chosen == "MXFP4":
            stored.reshape(-1, 17)[:, 0] -= 4
        number = gguf.GGMLQuantizationType[chosen]
        writer.add_tensor(name, stored.reshape(*data.shape[:-1], -1), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
