"""GGUF architectures against transformers, each file laid out by the conventions of llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as t

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from tests.swarm.model.files.test_gguf import check
from tests.swarm.model.gguf_cases import CASES
from tests.swarm.model.gguf_files import settled, write_gguf
from tests.swarm.model.tiny import random_model

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
