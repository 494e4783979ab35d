"""What drafters that read the target's rows take from its checkpoint: the embedding, and the head."""

from __future__ import annotations

import torch

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import is_embedding


def borrowed_table(target: Checkpoint, width: int, dtype: torch.dtype, whose: str) -> torch.Tensor:
    """The target's embedding of token ids [vocabulary, width]. Raises ModelError where it has none of that width;
    `whose` it would be stands in it."""
    manifest = target.manifest
    sized = (manifest.vocab_size, width)
    names = [t.name for t in manifest.embedding_tensors if is_embedding(t.name) and t.shape == sized]
    if len(names) != 1:
        raise ModelError(f"{whose} has no embedding of its own, and {manifest.model} none of width {width}")
    found: torch.Tensor = target.read(names[0], dtype)
    return found


def borrowed_head(target: Checkpoint, table: torch.Tensor) -> torch.Tensor:
    """The target's head [vocabulary, width], in the dtype of its embedding `table`, which it may be itself."""
    heads = [t.name for t in target.manifest.tensors if t.name.endswith("lm_head.weight")]
    return target.read(heads[0], table.dtype) if heads else table
