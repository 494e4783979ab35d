"""What may draft for a class besides small models and earlier text: tried on its tiny checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from swarm.base.errors import SwarmError
from swarm.model.block import Block, load_block
from swarm.model.eagle import load_eagle
from swarm.model.eagle_folder import read_eagle
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.mtp import MTPHead, load_mtp
from swarm.model.rows import Layout, no_commits
from tests.models.configs import LAYERS
from tests.swarm.model.tiny import CPU, certain

OWN, EAGLE, SMALL = "own head", "EAGLE", "small models"

_ATTENDS = ("full_attention", "sliding_attention", "indexed_attention")
_LAYOUT = Layout(scratch=8, context=32)
_HEAD = re.compile(r"layers\W+\d|'\^?mtp")
"""In the names of tensors that a class leaves unread: its makers publish files with heads, in one of the two ways that
are known here (`files/mtp.py`)."""


def drafters(folder: Path, kind: type[Any]) -> str:
    """Of the checkpoint in `folder`/model, of class `kind`: what is loaded beside its tail and proposes tokens."""
    found = []
    if _HEAD.search(str(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or "")) and _own(folder):
        found.append(OWN)
    if _eagle(folder):
        found.append(EAGLE)
    return ", ".join([*found, SMALL])


def _tail(folder: Path) -> tuple[Any, Block]:
    store = ModelStore(folder.parent / f"{folder.name}-drafting")
    manifest = store.open(str(folder)).manifest
    first = max(cut for cut in range(LAYERS) if cut not in manifest.ties.forbidden)
    checkpoint = store.open(str(folder), (first, LAYERS))
    return checkpoint, load_block(checkpoint, first, LAYERS, CPU, torch.float32)


def _own(folder: Path) -> bool:
    """With a head made of its last layer that attends and keeps no state."""
    headed = folder / "with-head"
    shutil.copytree(folder / "model", headed)
    stored = load_file(headed / "model.safetensors")
    config = json.loads((headed / "config.json").read_text())
    hidden = int(config.get("hidden_size") or 0)
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["full_attention"] * LAYERS
    choices = config.get("indexer_types") or [""] * LAYERS
    plain = [i for i, name in enumerate(kinds) if name in _ATTENDS and choices[i] != "shared"]
    if not hidden or not plain:
        return False
    ones = {name: torch.ones(hidden) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    made = {f"mtp.{name}.weight": tensor for name, tensor in ones.items()}
    made["mtp.fc.weight"] = 0.2 * torch.randn(hidden, 2 * hidden)
    own = f".layers.{plain[-1]}."
    made |= {f"mtp.layers.0.{name.partition(own)[2]}": t.clone() for name, t in stored.items() if own in name}
    save_file({**stored, **made}, headed / "model.safetensors", {"format": "pt"})
    try:
        checkpoint, tail = _tail(headed)
        head = load_mtp(checkpoint, tail, "expanded")
    except SwarmError:
        return False
    return head is not None and _proposes(head, hidden)


def _eagle(folder: Path) -> bool:
    try:
        checkpoint, tail = _tail(folder / "model")
        hidden = checkpoint.manifest.hidden_size
        shape = transformers.LlamaConfig(
            hidden_size=hidden, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=checkpoint.manifest.vocab_size, max_position_embeddings=256,
        )  # fmt: skip
        layer = transformers.LlamaForCausalLM(shape).model.layers[0].state_dict()
        tensors = {f"layers.0.{n}": t.contiguous() for n, t in layer.items() if n != "input_layernorm.weight"}
        (folder / "eagle").mkdir()
        save_file({**tensors, "fc.weight": 0.2 * torch.randn(hidden, 2 * hidden)}, folder / "eagle/model.safetensors")
        (folder / "eagle" / "config.json").write_text(json.dumps(shape.to_dict()))
        found = read_eagle(folder / "eagle")
        return found is not None and _proposes(load_eagle(found, checkpoint, tail, "expanded"), hidden)
    except SwarmError:
        return False


def _proposes(head: MTPHead, hidden: int) -> bool:
    """Does a head score tokens for rows of the model's width?"""
    kv = KVPool(head.block, 1 << 30).open(_LAYOUT, head.block.first, head.block.last)
    rows = head.entering([5, 9, 11], torch.randn(3, hidden))
    scores, given = head.forward(Job(kv, no_commits(), certain([5, 9, 11], 0, _LAYOUT), rows))
    return bool(torch.isfinite(scores).all()) and given.shape == (3, hidden)
