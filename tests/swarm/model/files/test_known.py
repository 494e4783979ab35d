"""What a start takes from notes is what transformers would say, and no note of another time or model is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.files import config_classes
from swarm.model.files.facts import Facts
from swarm.model.files.known import Notes, facts_of
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore

SMALL = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "global_head_dim": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Types of which transformers' class was asked for, from now on."""
    found: list[object] = []
    real = config_classes.config_class

    def noted(kind: object) -> Any:
        found.append(kind)
        return real(kind)

    for module in ("ties", "wrappers", "keys", "weights"):
        monkeypatch.setattr(f"swarm.model.files.{module}.config_class", noted)
    monkeypatch.setattr("swarm.model.linear.sizes.config_class", noted)
    return found


def saved(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_kept_is_what_is_asked(kind: str, tmp_path: Path, asked: list[object]) -> None:
    folder = str(saved(kind, tmp_path / "model"))
    first = ModelStore(tmp_path / "store").open(folder).manifest
    assert asked, "the first start asks transformers"
    asked.clear()
    again = ModelStore(tmp_path / "store").open(folder).manifest
    assert again.facts == first.facts is not None
    shape = model_shape(again, torch.bfloat16)
    assert asked == []
    plain = replace(again)  # a copy knows nothing
    assert plain.facts is None and facts_of(plain) == again.facts
    assert model_shape(plain, torch.bfloat16) == shape and asked


def test_a_gguf_file_is_opened_from_what_was_kept(tmp_path: Path, asked: list[object]) -> None:
    store = ModelStore(tmp_path)
    first = store.open(DEFAULT_MODEL, (0, 1))
    asked.clear()
    again = ModelStore(tmp_path).open(DEFAULT_MODEL, (0, 1))
    assert asked == []
    assert (again.manifest, again.places) == (first.manifest, first.places)
    assert again.manifest.digest == first.manifest.digest
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first.read(name, torch.float32), again.read(name, torch.float32))
    assert again.config.to_dict() == first.config.to_dict()
    # A torn note is made again, and so is one about a manifest that is not there any more.
    (note,) = (tmp_path / "manifests").glob("places-*.note.json")
    whole = json.loads(note.read_bytes())
    lies = whole["found"]["lies"]
    torn = [
        note.read_bytes()[:-9],
        *(json.dumps({**whole, "found": {**whole["found"], **change}}).encode() for change in (
            {"lies": {**lies, name: [7, 0]}}, {"lies": {name: [0, 0]}}, {"manifest": "0" * 64}, {"lies": None},
        )),
    ]  # fmt: skip
    for data in torn:
        note.write_bytes(data)
        found = ModelStore(tmp_path).open(DEFAULT_MODEL, (0, 1))
        assert (found.manifest, found.places) == (first.manifest, first.places), data[:40]


def test_notes_of_other_code_are_not_read(tmp_path: Path) -> None:
    Notes(tmp_path, "one").write("a", [1])
    assert Notes(tmp_path, "one").read("a") == [1]
    assert Notes(tmp_path, "two").read("a") is None and Notes(tmp_path, "one").read("b") is None
    Notes(tmp_path, "one").write("a", float("nan"))  # no JSON: what was there stays
    assert Notes(tmp_path, "one").read("a") == [1]
    (tmp_path / "file").write_text("")
    Notes(tmp_path / "file", "one").write("a", [1])  # a folder that cannot be made: nothing is kept
    assert Notes(tmp_path / "file", "one").read("a") is None


@pytest.mark.parametrize("change", [{"model_type": "unheard_of"}, {"num_attention_heads": "many"}])
def test_a_refused_config_is_refused_again(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = saved("llama", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    said = []
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            ModelStore(tmp_path / "store").open(str(folder))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("found", [None, {}, [], {"ties": {}, "kinds": [], "keys": []}, {"ties": 1}, "x"])
def test_torn_facts_are_none(found: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Facts.from_json(found)
