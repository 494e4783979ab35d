"""Text halves of models that take more than text, against the whole model of transformers given text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from swarm.base.errors import ModelError
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.wrappers import text_name
from tests.models.configs import GROWING
from tests.models.sweep import CUTS, Reference, _apart

KINDS = ["gemma3", "mistral3", "mistral4", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "llava", "mllama"]

_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_SEEN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}


def _rope(*section: int) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e4}


def _whole(kind: str) -> Any:
    t = transformers
    if kind == "gemma3":
        text = {**_TEXT, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 16}
        vision = {**_SEEN, "image_size": 28, "patch_size": 14}
        config: Any = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        return t.Gemma3ForConditionalGeneration(config)
    if kind == "mistral3":
        text = {**_TEXT, "head_dim": 8, "model_type": "mistral"}
        vision = {**_SEEN, "image_size": 28, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
        config = t.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
        return t.Mistral3ForConditionalGeneration(config)
    if kind == "mistral4":  # what Mistral Small 4 is published as
        text = {**_TEXT, "num_key_value_heads": 4, "model_type": "mistral4", "moe_intermediate_size": 16}
        text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {**GROWING}}
        text |= {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
        vision = {**_SEEN, "image_size": 28, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
        config = t.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
        return t.Mistral3ForConditionalGeneration(config)
    if kind == "llava":
        text = {**_TEXT, "head_dim": 8, "model_type": "llama"}
        vision = {**_SEEN, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}
        config = t.LlavaConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        return t.LlavaForConditionalGeneration(config)
    if kind == "mllama":
        vision = {**_SEEN, "num_global_layers": 1, "attention_heads": 4, "image_size": 28, "patch_size": 14}
        vision |= {"vision_output_dim": 64, "intermediate_layers_indices": [0]}
        config = t.MllamaConfig(text_config={**_TEXT, "cross_attention_layers": [1, 4]}, vision_config=vision)
        return t.MllamaForConditionalGeneration(config)
    if kind == "qwen2_vl":
        text = {**_TEXT, "rope_parameters": _rope(1, 1, 2)}
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 1}
        config = t.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        return t.Qwen2VLForConditionalGeneration(config)
    if kind.startswith("qwen3_vl"):
        moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if kind.endswith("moe") else {}
        text = {**_TEXT, **moe, "head_dim": 8, "rope_parameters": {**_rope(1, 1, 2), "mrope_interleaved": True}}
        vision = {**_QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        if moe:
            config = t.Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
            return t.Qwen3VLMoeForConditionalGeneration(config)
        config = t.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        return t.Qwen3VLForConditionalGeneration(config)
    text = {**_TEXT, "rope_parameters": _rope(1, 1, 2)}
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=_QWEN, tie_word_embeddings=False)
    return t.Qwen2_5_VLForConditionalGeneration(config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_half_says_what_the_whole_model_says(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = _whole(kind).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.1 * noise if weight.dim() == 1 or "norm" in name else noise * 0.2
    model.save_pretrained(tmp_path / "model")
    assert _apart(tmp_path, CUTS[2], Reference(model, torch.float32), torch.float32) < 2e-4


def test_names_of_old_and_new_files() -> None:
    assert text_name("language_model.model.layers.3.mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"
    assert text_name("model.language_model.norm.weight") == "model.norm.weight"
    assert text_name("language_model.lm_head.weight") == "lm_head.weight"
    assert text_name("lm_head.weight") == "lm_head.weight"
    assert text_name("model.vision_tower.encoder.layers.0.norm.weight") is None


def test_vision_tensors_belong_to_no_stage() -> None:
    names = ["model.vision_tower.layers.0.w", "language_model.model.layers.0.w", "multi_modal_projector.w"]
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 1}}
    manifest = Manifest("see", config, tuple(TensorEntry(n, (1,), "F32", 4, "0" * 64) for n in names))
    assert [t.name for t in manifest.layer_tensors(0, 1)] == [names[1]]


def test_another_head_is_refused_by_its_architecture() -> None:
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForSequenceClassification"], "text_config": {}}
    with pytest.raises(ModelError, match="see is a Gemma3ForSequenceClassification"):
        _ = Manifest("see", config, ()).n_layers
