"""What ships: sizes, names and numbers of the drafters in the package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from draft.asset import DATA, HEAD_TOKENS, MadeCheckpoint, default_drafter, read_made
from draft.four_bits import unpacked
from draft.made_block import EMBEDDING, SCALE
from swarm.base.errors import UsageError
from swarm.model.files.manifest import Manifest

SHIPPED = sorted(path.parent for path in DATA.glob("*/config.json"))


def manifest(model: str, **other: object) -> Manifest:
    config = {"model_type": "llama", "hidden_size": 576, "vocab_size": 49152, "num_hidden_layers": 30, **other}
    return Manifest(model, config, ())


def test_the_default_model_has_a_drafter_under_every_name_of_its_files() -> None:
    path = default_drafter(manifest("smollm2-135m-instruct"))
    assert path is not None and path.name == "smollm2-135m-instruct"
    assert default_drafter(manifest("HuggingFaceTB/SmolLM2-135M-Instruct")) == path
    assert default_drafter(manifest("smollm2-135m-instruct", hidden_size=960)) is None
    assert default_drafter(manifest("smollm2-360m-instruct")) is None


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda f: f.name)
def test_a_shipped_drafter_is_whole_small_and_finite(folder: Path) -> None:
    made = read_made(folder)
    assert made is not None
    config = LlamaConfig.from_dict(dict(made.config))
    assert config.num_hidden_layers == len(made.layers) == len(set(made.layers))
    with torch.device("meta"):
        expected = LlamaForCausalLM(config).state_dict()
    file = folder / "model.safetensors"
    assert file.stat().st_size <= 45_000_000
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        weights = {n for n in names if not n.endswith(SCALE) and n != HEAD_TOKENS}
        assert weights == set(expected) - {EMBEDDING, "lm_head.weight"}
        for name in weights:
            tensor = stored.get_tensor(name)
            if tensor.dtype == torch.uint8:
                tensor = unpacked(tensor)
            assert tensor.shape == expected[name].shape
            if tensor.dtype == torch.int8:
                scale = stored.get_tensor(name + SCALE)
                assert scale.shape == tensor.shape[:1] and bool((scale.isfinite() & (scale > 0)).all())
            else:
                assert bool(tensor.float().isfinite().all())
        head = stored.get_tensor(HEAD_TOKENS).long()
    assert bool((head.diff() > 0).all()) and 0 <= int(head[0]) and int(head[-1]) < config.vocab_size


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda f: f.name)
def test_its_card_names_numbers_on_unseen_kinds_and_how_it_was_made(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    rows = [line.split("|")[1:-1] for line in card.splitlines() if line.startswith(("| int8 ", "| q4_1 "))]
    assert {row[1].strip() for row in rows} >= {"all", "chat", "code", "prose", "edit", "greedy"}
    for row in rows:
        first, first8 = float(row[3]), float(row[-1])
        assert 0.3 < first < first8 < 1
        assert math.isclose(sum(float(cell) for cell in row[3:-1]), first8, abs_tol=0.004)
    assert "made by:" in card and "swarm draft distill" in card


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    told = {"target": "t", "target_digest": "0", "layers": [0]}
    shape = {"model_type": "llama", "hidden_size": 576, "vocab_size": 49152, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "drafter": told}))
    made = read_made(tmp_path)
    assert made is not None

    class Target:
        manifest = Manifest("t", shape, ())

    with pytest.raises(UsageError, match="cannot read"):
        MadeCheckpoint(made, Target())  # type: ignore[arg-type]
