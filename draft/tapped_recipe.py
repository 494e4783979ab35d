"""Drafters that read the target's rows (EAGLE-3, DFlash, DSpark, Medusa): how each is picked, trained and written.

Written is the form of `speculators` (Medusa: that of vLLM), which `draft.tapped_folder` reads as it reads what others
publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft.borrowed import borrowed_table
from draft.card import Origin, write_published
from draft.corpus import Sample
from draft.dflash_student import MARKOV_RANK, BlockStudent
from draft.eagle3_student import Eagle3Student
from draft.medusa_folder import MOST_BLOCKS, MOST_HEADS
from draft.medusa_student import MedusaStudent
from draft.pick import pick_head
from draft.recipe import Scores, Selection, Source
from draft.tapped_student import pick_mask, spread_taps, stored
from draft.train import Trainer, evaluate
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report
from swarm.model.files.manifest import Manifest

TappedStudent = Eagle3Student | BlockStudent | MedusaStudent


@dataclass(frozen=True)
class Usual:
    """What a kind has where nothing is said: layers, tokens ahead, layers of the target that it reads (0: what its head
    is given), the highest learning rate, and what it is called."""

    layers: int
    ahead: int
    taps: int
    rate: float
    name: str


TAPPED = {
    "eagle3": Usual(1, 4, 3, 1e-3, "An EAGLE-3 head"),
    "dflash": Usual(3, 7, 5, 1e-3, "A DFlash block drafter"),
    "dspark": Usual(3, 7, 5, 1e-3, "A DSpark block drafter"),
    "medusa": Usual(1, 4, 0, 1e-3, "Medusa heads"),
}
MOST_LAYERS, MOST_AHEAD = 32, {"eagle3": 16, "dflash": 63, "dspark": 64, "medusa": MOST_HEADS}


@dataclass(frozen=True)
class TappedRecipe:
    """Implements `draft.recipe.Recipe`.

    layers  of the drafter, or blocks of a Medusa head;  ahead: tokens that it learns to draft
    head    tokens that it scores, 0: all
    """

    kind: str
    layers: int
    ahead: int
    head: int
    rate: float

    def check(self, target: Manifest) -> None:
        """See `Recipe.check`."""
        most = MOST_BLOCKS if self.kind == "medusa" else MOST_LAYERS
        if not 1 <= self.layers <= most:
            raise UsageError(f"--layers must be 1 to {most} for kind {self.kind}, found {self.layers}")
        least = 2 if self.kind == "dspark" else 1
        if not least <= self.ahead <= MOST_AHEAD[self.kind]:
            raise UsageError(
                f"--ahead must be {least} to {MOST_AHEAD[self.kind]} for kind {self.kind}, found {self.ahead}"
            )
        self.taps(target)

    def taps(self, target: Manifest) -> tuple[int, ...]:
        """Layers whose rows are read. Raises UsageError."""
        count = TAPPED[self.kind].taps
        return spread_taps(target.n_layers, count) if count else (target.n_layers,)

    def choose(self, source: Source, special: Sequence[int], report: Report) -> Selection:
        """See `Recipe.choose`."""
        target, mask = source.checkpoint.manifest, -1
        if self.kind in ("dflash", "dspark"):
            table = borrowed_table(source.checkpoint, target.hidden_size, torch.float32, "a block drafter")
            mask = pick_mask(source.samples, table, special)
        taps = self.taps(target)
        report(Notice(f"rows read: those entering layers {', '.join(map(str, taps))}"))
        return Selection(taps, tuple(pick_head(source.samples, target.vocab_size, self.head).tolist()), mask)

    def trainer(self, source: Source, picked: Selection) -> Trainer:
        """See `Recipe.trainer`."""
        student: TappedStudent
        if self.kind == "eagle3":
            student = Eagle3Student(source, picked, self.layers, self.ahead)
        elif self.kind == "medusa":
            student = MedusaStudent(source, picked, self.layers, self.ahead)
        else:
            student = BlockStudent(source, picked, self.layers, self.ahead, self.kind == "dspark")
        return Trainer(student, self.rate)

    def settle(self, trainer: Trainer, held: Sequence[Sample]) -> Scores:
        """See `Recipe.settle`."""
        student = student_of(trainer)
        student.settle()
        return {"bfloat16": evaluate(student, held)}

    def write(self, out: Path, trainer: Trainer, origin: Origin, scores: Scores) -> int:
        """See `Recipe.write`."""
        student = student_of(trainer)
        config = published_config(student, self.kind, origin.target)
        form = f"{TAPPED[self.kind].name}, trained to draft {self.ahead} tokens ahead."
        return write_published(out, config, dict(stored(student.tensors())), origin, scores, form)


def student_of(trainer: Trainer) -> TappedStudent:
    """The student of a trainer that `TappedRecipe` made."""
    assert isinstance(trainer.student, TappedStudent)
    return trainer.student


def published_config(student: TappedStudent, kind: str, target: str) -> dict[str, object]:
    """config.json as it is published: of `speculators`, or for Medusa of vLLM."""
    scored = len(student.borrowed.tokens)
    if isinstance(student, MedusaStudent):
        return {
            "model_type": "medusa",
            "architectures": ["MedusaModel"],
            "hidden_size": int(student.borrowed.table.shape[1]),
            "vocab_size": student.borrowed.vocabulary,
            "truncated_vocab_size": scored,
            "num_heads": student.ahead,
            "num_hidden_layers": student.blocks,
            "medusa_fc_bias": False,
            "original_lm_head": False,
        }
    taps, names = list(student.weights.taps), {"eagle3": "Eagle3", "dflash": "DFlash", "dspark": "DSpark"}
    proposal = {"proposal_type": "greedy", "speculative_tokens": student.ahead, "accept_tolerance": 0.0}
    config: dict[str, object] = {
        "architectures": [f"{names[kind]}DraftModel"],
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{**proposal, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": target, "architectures": []},
        },
        "transformer_layer_config": student.values,
        "draft_vocab_size": scored,
        "target_hidden_size": None,
        "tie_word_embeddings": False,
    }
    if isinstance(student, Eagle3Student):
        before = not student.weights.plain_residual
        return config | {"eagle_aux_hidden_state_layer_ids": taps, "norm_before_residual": before}
    weights = student.weights
    config |= {"aux_hidden_state_layer_ids": taps, "block_size": weights.size, "mask_token_id": weights.mask}
    config |= {"sample_from_anchor": weights.shifted, "sliding_window_non_causal": True}
    if weights.markov is not None:
        config |= {"markov_rank": MARKOV_RANK, "markov_head_type": "vanilla", "enable_confidence_head": False}
    return config
