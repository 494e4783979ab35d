"""What `swarm model show` says of a model on this machine, against what a node then holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm.cli.main import main
from swarm.discovery.held_here import held_here, rows_here
from swarm.model.block import load_block
from swarm.model.dtype import choose_dtype
from swarm.model.exact import why_not
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.quant.native import library
from swarm.model.weights_as import choose_weights
from tests.swarm.model.gguf_files import write_gguf
from tests.swarm.model.test_encoded import tiny
from tests.swarm.model.tiny import CPU


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


def test_it_says_how_a_block_is_held(tmp_path: Path, store: ModelStore) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny(), "qwen3", {}, kind="Q8_0")
    checkpoint = open_model(str(path), store)
    held = held_here(checkpoint.manifest)
    dtype = choose_dtype("auto", CPU)
    block = load_block(checkpoint, 0, 3, CPU, dtype, weights=choose_weights("auto", "auto", CPU))
    packed = sum(m.matrix.nbytes for m in block.loaded.model.modules() if hasattr(m, "matrix"))
    assert sum(held.packed.values()) == packed and (packed > 0) == (library() is not None)
    assert set(held.packed) <= {"Q8_0"} and "Q8_0 as stored" in held.told
    rows = rows_here(store, str(path), checkpoint.manifest)
    assert ("the same bits in any company" in rows) == (why_not(block) is None)


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny(), "qwen3", {}, kind="Q8_0")
    asked = ["model", "show", str(path), "--models", str(tmp_path / "store")]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("held here ", "a layer here ", "rows here ", "Q8_0 as stored"))
    assert main([*asked, "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["here"]
    assert here["layer_bytes"] and here["rows"] and here["packed"]["Q8_0"] > 0


def test_a_part_that_does_not_compute_is_told_by_its_tensor(tmp_path: Path, store: ModelStore) -> None:
    tiny().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    manifest = store.manifest(str(tmp_path / "model"))
    assert rows_here(store, str(tmp_path / "model"), manifest).startswith("none: ")
    assert "up_proj" in rows_here(store, str(tmp_path / "model"), manifest)


def test_weights_that_are_not_here_are_not_fetched_for_it(tmp_path: Path, store: ModelStore) -> None:
    tiny().save_pretrained(tmp_path / "model")
    manifest = store.manifest(str(tmp_path / "model"))
    assert rows_here(store, "org/other", manifest).startswith("not looked at: the weights")
