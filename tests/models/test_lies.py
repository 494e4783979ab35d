"""Configs that lie and weights that are not all there: refused in a line, or what transformers makes of them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.files.store import ModelStore
from swarm.model.load import load_layers
from tests.models.configs import VARIANTS, all_types
from tests.models.lies import Lie, answer, config_lies, fault, honest, set_value, tell, tensor_lies
from tests.swarm.model.tiny import CPU

FAMILIES = [
    "qwen3_5_moe_text",
    "nemotron_h",
    "zamba2",
    "deepseek_v4",
    "glm_moe_dsa",
    "gemma4_text",
    "minimax",
    "lfm2_moe",
]
"""Of the normal run: an expert, a rule, a latent, an index, a tie of each kind."""

_STRUCTURE = re.compile(r"head|layer|expert|rank|state|types|size|group|dim|rate|block|topk|stream|hc_|conv")
"""Keys that say how a model is built."""

KNOWN = {
    "countless-layers": ("mixtral", "num_hidden_layers", 10**12),
    "no-key-heads": ("granitemoehybrid", "num_key_value_heads", None),
    "kinds-short": ("zamba2", "layers_block_type", ["linear_attention"] * 5),
    "kinds-past": ("zamba2", "layers_block_type", ["linear_attention"] * 7),
    "kinds-of-attention-only": ("zamba2", "layers_block_type", ["full_attention"] * 6),
    "blocks": ("zamba2", "num_mem_blocks", 3),
    "state-heads": ("zamba2", "n_mamba_heads", 3),
    "rates": ("deepseek_v4", "compress_rates", {"heavily_compressed_attention": 4, "compressed_sparse_attention": 0}),
    "rates-other": (
        "deepseek_v4",
        "compress_rates",
        {"heavily_compressed_attention": 8, "compressed_sparse_attention": 2},
    ),
    "rates-lost": ("deepseek_v4", "compress_rates", {}),
    "kinds-swapped": ("deepseek_v4", "layer_types", ["sliding_attention"] * 6),
    "index-wider": ("deepseek_v4", "index_head_dim", 16),
    "experts-by-score": ("deepseek_v4", "mlp_layer_types", ["moe"] * 6),
    "streams": ("deepseek_v4", "hc_mult", 2),
    "groups": ("deepseek_v4", "o_groups", 3),
    "more-experts": ("lfm2_moe", "num_experts", 5),
    "experts-chosen": ("qwen3_5_moe_text", "num_experts_per_tok", 9),
    "value-heads": ("qwen3_next", "linear_num_value_heads", 3),
    "groups-of-states": ("nemotron_h", "n_groups", 3),
}


@dataclass
class Honest:
    """A checkpoint before any lie, its config and its answer."""

    folder: Path
    config: dict[str, Any]
    truth: torch.Tensor


_made: dict[str, Honest] = {}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _made.clear()
    return tmp_path_factory.mktemp("honest")


def before(case: str, home: Path) -> Honest:
    if case not in _made:
        folder = home / case
        honest(case, folder)
        assert fault(folder) == ""
        _made[case] = Honest(folder, json.loads((folder / "config.json").read_text()), answer(folder))
    return _made[case]


def check(case: str, lie: Lie, home: Path, folder: Path, source: random.Random) -> None:
    whole = before(case, home)
    tell(folder, whole.folder, lie, source)
    assert fault(folder, whole.truth) == "", f"{case}: {lie.words}"


@pytest.mark.parametrize("case", FAMILIES)
def test_a_lie_is_refused_or_means_what_transformers_takes_it_for(case: str, home: Path, tmp_path: Path) -> None:
    source = random.Random(case)
    lies = [lie for lie in config_lies(before(case, home).config) if _STRUCTURE.search(lie.words)]
    for number, lie in enumerate([source.choice(lies), source.choice(list(tensor_lies()))]):
        check(case, lie, home, tmp_path / str(number), source)


@pytest.mark.parametrize("case", KNOWN)
def test_a_lie_about_how_a_model_is_built_is_refused_by_name(case: str, home: Path, tmp_path: Path) -> None:
    kind, key, value = KNOWN[case]
    whole = before(kind, home) if kind in FAMILIES else None
    if whole is None:
        honest(kind, tmp_path / "whole")
        whole = Honest(tmp_path / "whole", json.loads((tmp_path / "whole" / "config.json").read_text()), torch.zeros(1))
    lie = Lie(case, set_value(whole.config, key.split("."), value))
    tell(tmp_path / "liar", whole.folder, lie, random.Random(case))
    store = ModelStore(tmp_path / "store")
    with pytest.raises(ModelError) as refused:
        checkpoint = store.open(str(tmp_path / "liar"), (0, 3))
        model_shape(checkpoint.manifest, torch.float32)
        load_block(checkpoint, 0, 3, CPU, torch.float32)
        load_block(store.open(str(tmp_path / "liar"), (3, 6)), 3, 6, CPU, torch.float32)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["llama", "gemma3n_text", "bert"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 30])
def test_a_head_that_comes_beside_a_promise_to_share_the_table_is_used(
    kind: str, piece_bytes: int, home: Path, tmp_path: Path
) -> None:
    """As transformers does: what a file has is not tied over."""
    whole = before(kind, home)
    tell(tmp_path / "tied", whole.folder, Lie("tied", {**whole.config, "tie_word_embeddings": True}), random.Random(1))
    assert fault(tmp_path / "tied", whole.truth) == ""
    checkpoint = ModelStore(tmp_path / "store").open(str(tmp_path / "tied"), (0, 6))
    made: Any = load_layers(checkpoint, 0, 6, CPU, torch.float32, lambda event: None, piece_bytes=piece_bytes).model
    assert not torch.equal(made.get_output_embeddings().weight, made.get_input_embeddings().weight)


@pytest.mark.soak
@pytest.mark.parametrize("case", [*all_types(), *VARIANTS])
def test_no_lie_gets_through(case: str, home: Path, tmp_path: Path) -> None:
    try:
        whole = before(case, home)
    except Exception as exc:
        pytest.skip(f"not a model that runs: {exc}")
    source = random.Random(case)
    lies = list(config_lies(whole.config))
    source.shuffle(lies)
    for number, lie in enumerate([*tensor_lies(), *lies[:40]]):
        check(case, lie, home, tmp_path / str(number), source)
