"""A checkpoint's multi-token prediction (MTP) head, computed at the tail: it guesses what comes after what was drawn.

From h, the row that the model's head was given at position p, and t, the token drawn after it, the head makes
joins([of_token(embedding(t)), of_row(h)]), sends it through one layer that attends to what it made at earlier
positions, and gives the result to its last norm and the model's own head: scores for the token after t (DeepSeek-V3
report, section 2.2). The layer is built as if the model had one layer more, so whatever blocks know of attention,
experts and stored formats holds for it too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.base.events import silent
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest, is_embedding
from swarm.model.files.mtp import MTPTensors, longer_config
from swarm.model.files.weights import make_config
from swarm.model.job import Job
from swarm.model.prune import inner_model
from swarm.model.quant.matrix import Matrix


class LongerCheckpoint:
    """A checkpoint whose model has its head's layer as one layer more. Implements `Checkpoint`.

    Raises ModelError where the config does not say what that layer is.
    """

    def __init__(self, checkpoint: Checkpoint, head: MTPTensors) -> None:
        manifest = checkpoint.manifest
        try:
            values = longer_config(manifest.text_config, checkpoint.config, head.sparse)
        except (KeyError, IndexError, StopIteration, AttributeError) as error:
            raise ModelError(f"the config of {manifest.model} does not say what its MTP layer is: {error}") from error
        plain = {key: value for key, value in values.items() if key != "quantization_config"}
        self.config = make_config(plain, manifest.model)
        self.bytes_read = 0
        self._checkpoint = checkpoint
        self._names = {new: stored for stored, new in head.layer.items()}
        apart = {entry.name for entry in manifest.mtp_tensors}
        entries = []
        for entry in manifest.tensors:
            if entry.name in head.layer:
                entries.append(replace(entry, name=head.layer[entry.name]))
            elif entry.name not in apart and entry.name not in self._names:
                entries.append(entry)
        self.manifest = Manifest(manifest.model, values, tuple(entries))

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self._checkpoint.read(self._names.get(name, name), dtype)

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def hold(self, name: str, without_kernel: bool) -> Matrix | None:
        return self._checkpoint.hold(self._names.get(name, name), without_kernel)

    def hold_stack(self, name: str, without_kernel: bool) -> tuple[Matrix, ...] | None:
        return self._checkpoint.hold_stack(self._names.get(name, name), without_kernel)

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        return self._checkpoint.export_tensor_bytes(self._names.get(name, name), offset, length)


@dataclass(frozen=True)
class MTPHead:
    """The head of one model, on the tail's device.

    block     its layer, last norm and the model's head: takes rows [n, hidden_size], gives scores
    joins     Linear [2 x hidden_size -> hidden_size]; of_token, of_row: norms of its two halves
    table     the embedding of token ids
    """

    block: Block
    joins: nn.Linear
    of_token: nn.Module
    of_row: nn.Module
    table: torch.Tensor | Matrix

    @torch.inference_mode()
    def entering(self, tokens: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """What enters the layer for tokens that followed rows [n, hidden_size]: [n, hidden_size]."""
        dtype = self.block.dtype
        ids = torch.tensor(list(tokens), dtype=torch.long)
        embedded = self.table[ids] if isinstance(self.table, torch.Tensor) else self.table.rows(ids)
        both = torch.cat([self.of_token(embedded.to(dtype)), self.of_row(rows.to(dtype))], dim=-1)
        return functional.linear(both, self.joins.weight, self.joins.bias)

    def forward(self, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores float32 [rows with want, vocab_size] and, of all rows, what the model's head is given."""
        (scores,), (rows,) = self.block.forward_to_head([job])
        return scores, rows


def load_mtp(checkpoint: Checkpoint, tail: Block, weights: str) -> MTPHead | None:
    """The head of a checkpoint beside a block that ends the model; None where the checkpoint has none.

    It shares the block's head. weights: of `load_block`. Raises ModelError for a head that cannot be computed here.
    """
    manifest = checkpoint.manifest
    head = manifest.mtp
    if head is None:
        return None
    if tail.gpu is not None:
        raise ModelError("MTP heads are computed on CPUs only")
    dtype, n = tail.dtype, manifest.n_layers
    longer = LongerCheckpoint(checkpoint, head)
    block = load_block(longer, n, n + 1, tail.device, dtype, silent, weights=weights)
    model: Any = block.loaded.model
    whole: Any = tail.loaded.model
    model.set_output_embeddings(whole.get_output_embeddings())
    norm = _last_norm(inner_model(model), manifest.model)
    joins = checkpoint.read(head.inputs["joins"], dtype)
    hidden = manifest.hidden_size
    if tuple(joins.shape) != (hidden, 2 * hidden):
        raise ModelError(
            f"the MTP head of {manifest.model} joins by {list(joins.shape)}, expected {hidden} x 2 {hidden}"
        )
    linear = nn.Linear(2 * hidden, hidden, bias=False, device="meta")
    linear.weight = nn.Parameter(joins, requires_grad=False)
    norms = [_like(norm, checkpoint.read(head.inputs[which], dtype), which) for which in ("of_token", "of_row")]
    return MTPHead(block, linear, norms[0], norms[1], embedding_table(checkpoint, dtype, weights))


def _last_norm(inner: nn.Module, model: str) -> nn.Module:
    """The norm behind the layers; norms of a head are of its class."""
    found = [child for name, child in inner.named_children() if "norm" in name and hasattr(child, "weight")]
    if len(found) != 1:
        raise ModelError(f"{model} has no one last norm that its MTP head's could be like")
    return found[0]


def _like(norm: nn.Module, weight: torch.Tensor, which: str) -> nn.Module:
    made: Any = copy.deepcopy(norm)
    if made.weight.shape != weight.shape:
        raise ModelError(
            f"the norm {which} of an MTP head has shape {list(weight.shape)}, expected {list(made.weight.shape)}"
        )
    made.weight = nn.Parameter(weight.to(made.weight.dtype), requires_grad=False)
    return made  # type: ignore[no-any-return]


def embedding_table(checkpoint: Checkpoint, dtype: torch.dtype, weights: str) -> torch.Tensor | Matrix:
    """The embedding of token ids, as stored where layers are."""
    sized = (checkpoint.manifest.vocab_size, checkpoint.manifest.hidden_size)
    names = [t.name for t in checkpoint.manifest.embedding_tensors if is_embedding(t.name) and t.shape == sized]
    if len(names) != 1:
        raise ModelError(f"{checkpoint.manifest.model} has no one embedding that its MTP head could look tokens up in")
    matrix = None if weights == "expanded" else checkpoint.hold(names[0], weights == "stored")
    return checkpoint.read(names[0], dtype) if matrix is None else matrix
