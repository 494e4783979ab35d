"""Drafts by an EAGLE head in a folder, against its computation over the whole text with transformers' modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from swarm.base.errors import ModelError
from swarm.model.block import load_block
from swarm.model.eagle import load_eagle
from swarm.model.eagle_folder import read_eagle
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.sampler import Sampling
from swarm.stage.mtp_session import MTPHost, MTPSession
from tests.swarm.model.tiny import CPU, certain, random_model, tiny_config
from tests.swarm.stage.test_mtp_session import LAYOUT, PROMPT, Tail, check, unwanted

HIDDEN = 48


def save_eagle(folder: Path, change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None) -> None:
    """A random head for the tiny Llama, as EAGLE's makers lay it out: no first norm, a biased fc."""
    config = tiny_config("llama")
    config.num_hidden_layers = 1
    layer = random_model(config, seed=3).model.layers[0]
    torch.manual_seed(4)
    tensors = {f"layers.0.{n}": w.contiguous() for n, w in layer.state_dict().items() if n != "input_layernorm.weight"}
    tensors |= {"fc.weight": 0.2 * torch.randn(HIDDEN, 2 * HIDDEN), "fc.bias": 0.1 * torch.randn(HIDDEN)}
    change(tensors)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


@pytest.fixture
def target(tmp_path: Path) -> tuple[LlamaForCausalLM, Path]:
    model = random_model(tiny_config("llama"))
    model.save_pretrained(tmp_path / "m")
    return model, tmp_path / "m"


@torch.inference_mode()
def expected(model: Any, folder: Path, text: Sequence[int], levels: int) -> list[torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    config = LlamaConfig(**json.loads((folder / "config.json").read_text()))
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    layer.input_layernorm = torch.nn.Identity()
    layer.load_state_dict({n.removeprefix("layers.0."): t for n, t in tensors.items() if n.startswith("layers.0.")})
    rotary, ids, found = LlamaRotaryEmbedding(config), list(text), []
    rows = model(torch.tensor([ids[:-1]]), output_hidden_states=True).hidden_states[-1]
    for _ in range(levels):
        n = len(ids) - 1
        x = torch.cat([model.model.embed_tokens(torch.tensor([ids[1:]])), rows], dim=-1)
        x = torch.nn.functional.linear(x, tensors["fc.weight"], tensors["fc.bias"])
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        place = torch.arange(n)[None]
        made = layer(x, attention_mask=mask, position_ids=place, position_embeddings=rotary(x, place))
        made = made[0] if isinstance(made, tuple) else made
        found.append(model.lm_head(made)[0, -1])
        rows = torch.cat([rows, made[:, -1:]], dim=1)
        ids.append(int(found[-1].argmax()))
    return found


class EagleTail(Tail):
    def __init__(self, folder: Path, head: Path) -> None:
        checkpoint = open_model(str(folder), ModelStore(folder.parent / "s"))
        n = checkpoint.manifest.n_layers
        self.block = load_block(checkpoint, 0, n, CPU, torch.float32)
        self.kv = KVPool(self.block, 1 << 30).open(LAYOUT, 0, n)
        found = read_eagle(head)
        assert found is not None
        loaded = load_eagle(found, checkpoint, self.block, "expanded")
        self.host = MTPHost(loaded, KVPool(loaded.block, 1 << 30))
        self.mtp = MTPSession(self.host, LAYOUT, Sampling())


def test_drafts_are_those_of_the_head(target: tuple[LlamaForCausalLM, Path]) -> None:
    model, folder = target
    head = folder / "drafter"
    save_eagle(head)
    tail = EagleTail(folder, head)
    tail.frame(unwanted(certain(PROMPT[:4], 0, LAYOUT)))
    drawn, drafts = tail.frame(unwanted(certain(PROMPT[4:], 4, LAYOUT), 1))
    text = [*PROMPT, drawn[2]]
    check(drafts, 2, expected(model, head, text, 3))
    drawn, drafts = tail.frame(certain(text[-1:], len(PROMPT), LAYOUT))
    check(drafts, 0, expected(model, head, [*text, drawn[0]], 3))


def test_other_heads_are_refused_by_name(target: tuple[LlamaForCausalLM, Path], tmp_path: Path) -> None:
    _, folder = target

    def of_three_layers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["fc.weight"] = torch.zeros(HIDDEN, 3 * HIDDEN)
        tensors["midlayer.hidden_norm.weight"] = torch.zeros(HIDDEN)

    def wider(tensors: dict[str, torch.Tensor]) -> None:
        tensors["fc.weight"] = torch.zeros(HIDDEN, 3 * HIDDEN)

    def deeper(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)

    save_eagle(tmp_path / "three", of_three_layers)
    assert read_eagle(tmp_path / "three") is None  # an EAGLE-3 head: the requester's
    for name, change, why in (("wide", wider, "was made for another model"), ("deep", deeper, "of one layer")):
        save_eagle(tmp_path / name, change)
        with pytest.raises(ModelError, match=why):
            EagleTail(folder, tmp_path / name)
    assert read_eagle(tmp_path / "nowhere") is None and read_eagle(folder) is None
    (tmp_path / "deep" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot read the drafter"):
        read_eagle(tmp_path / "deep")
