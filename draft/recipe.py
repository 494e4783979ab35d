"""How a drafter of some kind is made: what differs between kinds, while `draft.distill` keeps the order of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from draft.card import Origin
from draft.corpus import Sample
from draft.train import Score, Trainer
from swarm.base.events import Report
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest

Scores = Mapping[str, Mapping[str, Score]]
"""By name of the weights that they were measured with, then by kind of text."""


@dataclass(frozen=True)
class Source:
    """What a student is made from: the target as it computes (frozen), its checkpoint, and a batch of what it said."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    samples: Sequence[Sample]

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found


@dataclass(frozen=True)
class Selection:
    """What was picked before training began, and stays.

    layers       of the target: those that a drafter starts from, or whose rows it reads
    head_tokens  ids that it scores, ascending
    mask         the id that stands for what a block drafter is to guess; -1: it is none
    """

    layers: tuple[int, ...]
    head_tokens: tuple[int, ...]
    mask: int = -1


class Recipe(Protocol):
    """One kind of drafter."""

    @property
    def kind(self) -> str: ...

    def check(self, target: Manifest) -> None:
        """Raises UsageError for what cannot be made of this target, before any work."""
        ...

    def choose(self, source: Source, special: Sequence[int], report: Report) -> Selection:
        """Pick what is picked before training, of all of the text. special: ids that stand for no text."""
        ...

    def trainer(self, source: Source, picked: Selection) -> Trainer:
        """A trainer with a student that has learned nothing yet. Raises ModelError."""
        ...

    def settle(self, trainer: Trainer, held: Sequence[Sample]) -> Scores:
        """Let the student compute with what will be stored, and measure it."""
        ...

    def write(self, out: Path, trainer: Trainer, origin: Origin, scores: Scores) -> int:
        """The drafter's files. Returns the size of its weights in bytes."""
        ...
