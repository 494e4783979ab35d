"""A made drafter taken up again for training: from its own file, and rows of the target's embedding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from draft.asset import MadeCheckpoint, read_made
from draft.four_bits import Grid
from draft.loss import ShortHead
from draft.made_block import EMBEDDING
from draft.student import Student
from swarm.base.errors import ModelError, UsageError
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.weights import RowTable
from swarm.model.load import model_class

INT8, Q4_1, BFLOAT16 = "int8", "q4_1", "bfloat16"


class MadeStudent(Student):
    """A `Student` without its target's weights: the layers are those of a made drafter's file, as float32.

    tokens   ids that will be read, int64, in any order: rows of the target's embedding are held for these and for the
             head's alone
    extra    ids that the head scores besides those in the file
    grids    of the matrices that the file has in four bits, by the names of `trained`
    dtype    what the file's matrices are stored in

    Raises UsageError and ModelError for a drafter that cannot be trained on.
    """

    def __init__(
        self, checkpoint: MadeCheckpoint, target: Checkpoint, tokens: torch.Tensor, extra: torch.Tensor
    ) -> None:
        nn.Module.__init__(self)
        made = checkpoint.made
        config = copy.deepcopy(checkpoint.config)
        if not config.tie_word_embeddings:
            raise ModelError(f"expected a drafter whose head is its embedding in {made.path}, found one with its own")
        vocab = target.manifest.vocab_size
        own = checkpoint.head_tokens()
        self.head_tokens = torch.arange(vocab) if own is None else _sorted(own, extra)
        held = _sorted(self.head_tokens, tokens)
        self._at = torch.zeros(vocab, dtype=torch.int64)
        self._at[held] = torch.arange(len(held))
        config.vocab_size, config.pad_token_id = len(held), None
        kind = model_class(config, made.path.name)
        self.prefix = str(kind.base_model_prefix)
        self.model = getattr(kind(config), self.prefix).float()
        self.layers, self.vocabulary, self.device = made.layers, vocab, torch.device("cpu")
        rows = RowTable(target, EMBEDDING, torch.float32).rows(held)
        with torch.no_grad():
            embedding = self.model.get_input_embeddings().weight
            embedding.copy_(rows)
            for name, value in self.trained():
                value.copy_(checkpoint.read(f"{self.prefix}.{name}", torch.float32))
        embedding.requires_grad_(False)
        native = torch.cpu._is_avx512_bf16_supported()
        self.head = embedding[self._at[self.head_tokens]].to(torch.bfloat16 if native else torch.float32)
        self._short = ShortHead.of(self.head, self.head_tokens, vocab)
        stored = {name.removeprefix(f"{self.prefix}."): tensor for name, tensor in checkpoint.stored().items()}
        self.grids = {name: Grid.of_stored(t) for name, t in stored.items() if t.dtype == torch.uint8}
        kinds = {tensor.dtype for tensor in stored.values()}
        self.dtype = Q4_1 if self.grids else INT8 if torch.int8 in kinds else BFLOAT16

    def forward(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """As `Student.forward`; on processors that have no product of bfloat16 in float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            hidden = self.model(input_ids=self._at[inputs], use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[rows]  # type: ignore[no-any-return]


def take_up(path: Path, target: Checkpoint, tokens: Sequence[int], extra: Sequence[int] = ()) -> MadeStudent:
    """The drafter in a folder. Raises UsageError and ModelError."""
    made = read_made(path)
    if made is None:
        raise UsageError(f"expected a drafter made of layers in {path}, found another kind, which does not learn")
    read, scored = (torch.tensor(sorted(ids), dtype=torch.int64) for ids in ({0, *tokens}, set(extra)))
    return MadeStudent(MadeCheckpoint(made, target), target, read, scored)


def _sorted(*ids: torch.Tensor) -> torch.Tensor:
    return torch.tensor(sorted({token for each in ids for token in each.tolist()}), dtype=torch.int64)
