"""GGUF architectures against transformers, each file laid out by the conventions of llama.cpp's converter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from swarm.base.errors import ModelError
from swarm.model.block import load_block
from swarm.model.files import gguf_families
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.quant.experts import PackedExperts
from swarm.model.quant.matrix import dense
from swarm.model.quant.modules import PackedLinear
from tests.swarm.model.files.test_gguf import check
from tests.swarm.model.gguf_cases import CASES
from tests.swarm.model.gguf_files import Tensors, settled, write_gguf
from tests.swarm.model.tiny import CPU, random_model

BASE: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None,
}  # fmt: skip
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "logits_scaling": 4.0}
GRANITE_KEYS = {"attention.scale": 0.2, "embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0}

FAMILIES: list[tuple[str, Any, dict[str, Any]]] = [
    ("gemma", lambda: t.GemmaConfig(**BASE, head_dim=16), {}),
    ("granite", lambda: t.GraniteConfig(**BASE, **GRANITE), GRANITE_KEYS),
    ("granite", lambda: t.GraniteConfig(**BASE, **GRANITE, attention_bias=True, mlp_bias=True), GRANITE_KEYS),
    ("smollm3", lambda: t.SmolLM3Config(**BASE), {}),
    ("smollm3", lambda: t.SmolLM3Config(**BASE, tie_word_embeddings=False), {}),
    ("arcee", lambda: t.ArceeConfig(**BASE), {}),
    ("olmo2", lambda: t.Olmo2Config(**BASE), {"attention.layer_norm_rms_epsilon": 1e-5}),
    ("seed_oss", lambda: t.SeedOssConfig(**BASE, head_dim=16), {}),
    ("command-r", lambda: t.CohereConfig(**BASE, logit_scale=0.25), {"logit_scale": 0.25, "rope.scaling.type": "none"}),
]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


@pytest.mark.parametrize(("arch", "config", "keys"), FAMILIES, ids=[f"{i}-{f[0]}" for i, f in enumerate(FAMILIES)])
def test_an_architecture_computes(
    arch: str, config: Any, keys: dict[str, Any], tmp_path: Path, store: ModelStore
) -> None:
    model = random_model(config())
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, arch, keys), model, store)
    assert checkpoint.config.model_type == model.config.model_type


def test_the_page_on_formats_names_every_architecture() -> None:
    page = (Path(__file__).parents[4] / "docs" / "formats.md").read_text()
    rows = [
        line.split("|")[2] for line in page.splitlines() if line.startswith(("| dense", "| experts", "| recurrent"))
    ]
    names = {re.sub(r"\(.*?\)", "", name).strip() for row in rows for name in re.sub(r"\([^)]*\)", "", row).split(",")}
    assert names == set(gguf_families.FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_a_mixture_or_hybrid_computes(case: str, tmp_path: Path, store: ModelStore) -> None:
    arch, config, keys = CASES[case]
    model = settled(random_model(config()))
    check(write_gguf(tmp_path / "a.gguf", model, arch, keys), model, store, halves=True)


@pytest.mark.parametrize(
    ("arch", "config", "keys", "named"),
    [
        ("granite", t.GraniteConfig, {k: v for k, v in GRANITE_KEYS.items() if k != "logit_scale"}, "logit_scale"),
        ("olmo2", t.Olmo2Config, {"attention.sliding_window": 7}, r"attention\.sliding_window is 7"),
        ("command-r", lambda **b: t.CohereConfig(**b, use_qk_norm=True), {"logit_scale": 0.25}, r"attn_[qk]_norm"),
        ("command-r", t.CohereConfig, {}, "logit_scale"),
        ("smollm3", t.SmolLM3Config, {"attention.sliding_window": 7}, r"attention\.sliding_window is 7"),
    ],
)
def test_what_an_architecture_does_not_take_is_refused(
    arch: str, config: Any, keys: dict[str, Any], named: str, tmp_path: Path, store: ModelStore
) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model(config(**BASE)), arch, keys)
    with pytest.raises(ModelError, match=named):
        open_model(str(path), store)


PACKED = (
    "gpt-oss",
    "llama4",
    "deepseek3",
    "glm4moe",
    "granitemoeshared",
    "lfm2moe",
    "qwen3next",
    "qwen35moe",
    "nemotron_h_moe",
)


@pytest.mark.parametrize("case", PACKED)
def test_packed_matrices_are_those_of_the_unpacked_model(case: str, tmp_path: Path, store: ModelStore) -> None:
    """Rows and columns that a converter moved, and parts that it took apart, in blocks of bytes."""
    arch, config, keys = CASES[case]
    path = write_gguf(tmp_path / "a.gguf", settled(random_model(config())), arch, keys, kind="Q8_0")
    checkpoint = open_model(str(path), store)
    n = checkpoint.manifest.n_layers
    wide = load_block(checkpoint, 0, n, CPU, torch.float32, weights="expanded").loaded.model
    stored = load_block(checkpoint, 0, n, CPU, torch.float32, weights="stored").loaded.model
    kept = {name: m for name, m in stored.named_modules() if isinstance(m, PackedLinear | PackedExperts)}
    assert len(kept) >= 2 * n
    for name, mine in kept.items():
        theirs: Any = wide.get_submodule(name)
        if isinstance(mine, PackedLinear):
            assert torch.equal(dense(mine.matrix, torch.float32), theirs.weight), name
            continue
        for weight, stack in mine.stacks.items():
            for expert, whole in enumerate(getattr(theirs, weight)):
                parts = [dense(part[expert], torch.float32) for part in stack.parts]
                own = torch.stack(parts, 1).flatten(0, 1) if stack.alternate else torch.cat(parts)
                assert torch.equal(own.T if theirs.is_transposed else own, whole), name


def test_layers_that_only_predict_are_left_alone(tmp_path: Path, store: ModelStore) -> None:
    def add(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("blk.3.")]:
            tensors[name.replace("blk.3.", "blk.4.")] = tensors[name]
        tensors["blk.4.nextn.eh_proj.weight"] = np.ones((64, 128), np.float32)

    arch, config, keys = CASES["glm4moe"]
    model = random_model(config())
    further = {**keys, "block_count": 5, "nextn_predict_layers": 1}
    checkpoint = check(write_gguf(tmp_path / "a.gguf", model, arch, further, add), model, store, halves=True)
    assert checkpoint.manifest.n_layers == 4
    path = write_gguf(tmp_path / "b.gguf", model, arch, {**keys, "block_count": 5}, add)
    with pytest.raises(ModelError, match="lacks the tensor|should not have"):
        open_model(str(path), store)


def test_gate_and_up_may_be_one_stack_and_a_latent_may_be_whole(tmp_path: Path, store: ModelStore) -> None:
    def join(tensors: Tensors) -> None:
        for name in [name for name in tensors if "ffn_gate_exps" in name]:
            up = tensors.pop(name.replace("gate", "up"))
            tensors[name.replace("gate", "gate_up")] = np.concatenate([tensors.pop(name), up], 1)
        for name in [name for name in tensors if "attn_k_b" in name]:
            k, v = tensors.pop(name).swapaxes(1, 2), tensors.pop(name.replace("k_b", "v_b"))
            tensors[name.replace("k_b", "kv_b")] = np.concatenate([k, v], 1).reshape(-1, k.shape[2])

    arch, config, keys = CASES["deepseek3"]
    older = {**keys, "attention.key_length": 24, "attention.value_length": 12, "attention.head_count_kv": 4}
    older |= {"attention.key_length_mla": None, "attention.value_length_mla": None}
    model = random_model(config())
    check(write_gguf(tmp_path / "a.gguf", model, arch, older, join), model, store, halves=True)


@pytest.mark.parametrize(("case", "experts", "groups"), [("deepseek2", 160, (8, 3)), ("deepseek2-lite", 64, (1, 1))])
def test_groups_of_files_that_do_not_state_them_are_those_of_the_released_models(
    case: str, experts: int, groups: tuple[int, int], tmp_path: Path, store: ModelStore
) -> None:
    arch, config, keys = CASES["deepseek2-lite"]
    method = {"n_group": groups[0], "topk_group": groups[1], "topk_method": "group_limited_greedy"}
    changed = {**config().to_dict(), "n_routed_experts": experts, "num_hidden_layers": 4, "num_experts_per_tok": 6}
    model = random_model(t.DeepseekV2Config(**{**changed, **(method if groups[0] > 1 else {})}))
    older = {**keys, "expert_group_count": None, "expert_group_used_count": None}
    older |= {"expert_count": experts, "expert_used_count": 6, "block_count": 4}
    check(write_gguf(tmp_path / "a.gguf", model, arch, older), model, store)


def drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        if name:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("case", "keys", "lost", "named"),
    [
        ("deepseek3", {"expert_gating_func": 1}, "", r"expert_gating_func is 1, expected 2"),
        ("deepseek2-lite", {"expert_weights_norm": True}, "", r"expert_weights_norm is True where .* softmax"),
        ("deepseek3", {"attention.kv_lora_rank": None}, "", r"lacks metadata .*attention\.kv_lora_rank"),
        ("deepseek3", {"rope.dimension_count": 24}, "", r"rope\.dimension_count is 24 where keys have 24"),
        (
            "deepseek3",
            {},
            "blk.1.attn_v_b.weight",
            r"lacks the tensor blk\.1\.attn_v_b\.weight beside",
        ),
        ("gpt-oss", {"attention.sliding_window": None}, "", r"gpt-oss\.attention\.sliding_window"),
        ("gpt-oss", {}, "blk.2.attn_sinks.weight", r"lacks the tensor blk\.2\.attn_sinks"),
        ("gpt-oss", {}, "blk.2.ffn_up_exps.bias", r"lacks the tensor blk\.2\.ffn_up_exps\.bias beside"),
        ("glm4moe", {"expert_gating_func": 3}, "", r"expert_gating_func is 3"),
        ("lfm2moe", {"attention.head_count_kv": [0, 0, 2]}, "", r"not a whole number for each of 4 layers"),
        ("lfm2moe", {"attention.head_count_kv": [0, 2, 0, 0]}, "", r"lacks the tensor blk\.1\.attn"),
        ("granitehybrid", {"ssm.inner_size": 100}, "", r"ssm\.inner_size is 100, no multiple of 64"),
        ("granitemoe", {"logit_scale": None}, "", r"granitemoe\.logit_scale"),
        ("qwen35", {"ssm.time_step_rank": 5}, "", r"has shape .* its metadata says|does not make a model"),
        ("mixtral", {}, "blk.1.ffn_down_exps.weight", r"lacks the tensor blk\.1\.ffn_down_exps"),
        ("mamba", {"ssm.dt_b_c_rms": True}, "", r"ssm\.dt_b_c_rms"),
        ("olmo3", {"attention.sliding_window_pattern": None}, "", r"attention\.sliding_window is 7"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(
    case: str, keys: dict[str, Any], lost: str, named: str, tmp_path: Path, store: ModelStore
) -> None:
    arch, config, stated = CASES[case]
    path = write_gguf(tmp_path / "a.gguf", random_model(config()), arch, {**stated, **keys}, drop(lost))
    with pytest.raises(ModelError, match=named):
        open_model(str(path), store)
