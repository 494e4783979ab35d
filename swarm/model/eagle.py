"""EAGLE heads in folders: one decoder layer over the model's last rows, computed at the tail as an MTP head is.

An EAGLE head (Li et al., 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty"; EAGLE-2 has the
same weights) goes on from the row that the model's head was given and the token drawn after it: `fc` of [embedding,
row], one layer of Llama's kind without its first norm, and the model's own head, without a norm between. Its folder has
config.json and safetensors with `fc.weight`, maybe `fc.bias`, and `layers.0.`. EAGLE-3's heads (`midlayer.`) and
block drafters look at rows of several layers: a tail has only its own, so the requester computes them
(`draft.tapped_folder`).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from swarm.base.errors import ModelError
from swarm.base.events import silent
from swarm.model.block import Block, load_block
from swarm.model.eagle_folder import WEIGHTS, EagleFolder, drafter_of
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.weights import make_config
from swarm.model.mtp import MTPHead, embedding_table
from swarm.model.prune import inner_model, layer_list

_LAYER, _BEFORE = "layers.0.", "model.layers.0.none"


class EagleCheckpoint:
    """The layer of a head as the second of two. Implements `Checkpoint`.

    Raises ModelError for tensors of other shapes than the target wants, and for more than one layer.
    """

    def __init__(self, folder: EagleFolder, target: Checkpoint) -> None:
        hidden, vocabulary = target.manifest.hidden_size, target.manifest.vocab_size
        layers = {name.split(".")[1] for name in folder.shapes if name.startswith("layers.")}
        if layers != {"0"}:
            raise ModelError(f"expected an EAGLE head of one layer in {folder.path}, found {len(layers)}")
        if folder.shapes["fc.weight"] != (hidden, 2 * hidden):
            raise ModelError(
                f"the EAGLE head in {folder.path} joins by {list(folder.shapes['fc.weight'])}, expected {hidden} x "
                f"{2 * hidden}: it was made for another model"
            )
        drop = ("quantization_config", "layer_types", "tie_word_embeddings", "architectures", "auto_map")
        values = {key: value for key, value in folder.config.items() if key not in drop}
        values |= {"num_hidden_layers": 2, "hidden_size": hidden, "vocab_size": vocabulary}
        self.config = make_config(values, folder.path.name)
        self.bytes_read = 0
        self._file = folder.path / WEIGHTS
        shapes = {
            name.replace(_LAYER, "model.layers.1.", 1): shape
            for name, shape in folder.shapes.items()
            if name.startswith(_LAYER)
        }
        self._stored = {name.replace(_LAYER, "model.layers.1.", 1): name for name in folder.shapes}
        self._filled = {
            "model.layers.1.input_layernorm.weight": (hidden,),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (vocabulary, hidden),
        }
        shapes = {**self._filled, **shapes, _BEFORE: (1,)}
        entries = tuple(TensorEntry(name, shape, "F32", 0, "0" * 64) for name, shape in sorted(shapes.items()))
        self.manifest = Manifest(folder.path.name, values, entries)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        stored = self._stored.get(name, name)
        with safe_open(self._file, framework="pt") as file:
            if stored in file.keys():
                tensor: torch.Tensor = file.get_tensor(stored)
                self.bytes_read += tensor.nbytes
                return tensor.to(dtype)
        return torch.ones(self._filled[name], dtype=dtype)

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def hold(self, name: str, without_kernel: bool) -> None:
        return None

    def hold_stack(self, name: str, without_kernel: bool) -> None:
        return None

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        raise ModelError("a drafter is not served to other nodes")


def load_eagle(folder: EagleFolder, target: Checkpoint, tail: Block, weights: str) -> MTPHead:
    """The head in a folder beside a block that ends the model, whose head it shares. Raises ModelError."""
    if tail.gpu is not None:
        raise ModelError("EAGLE heads are computed on CPUs only")
    with drafter_of(folder.path):
        return _loaded(folder, target, tail, weights)


def _loaded(folder: EagleFolder, target: Checkpoint, tail: Block, weights: str) -> MTPHead:
    checkpoint = EagleCheckpoint(folder, target)
    block = load_block(checkpoint, 1, 2, tail.device, tail.dtype, silent, exact=False)
    model: Any = block.loaded.model
    whole: Any = tail.loaded.model
    model.set_output_embeddings(whole.get_output_embeddings())
    (layer,) = layer_list(model, type(model).__name__)[1]
    inner: Any = inner_model(model)
    if _LAYER + "input_layernorm.weight" not in folder.shapes:
        layer.input_layernorm = nn.Identity()
    inner.norm = nn.Identity()
    hidden = target.manifest.hidden_size
    joins = nn.Linear(2 * hidden, hidden, bias="fc.bias" in folder.shapes, device="meta")
    for name in ("weight", "bias"):
        if f"fc.{name}" in folder.shapes:
            setattr(joins, name, nn.Parameter(checkpoint.read(f"fc.{name}", tail.dtype), requires_grad=False))
    return MTPHead(block, joins, nn.Identity(), nn.Identity(), embedding_table(target, tail.dtype, weights))
