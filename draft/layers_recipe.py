"""Drafters of kind layers: some of the target's own layers and its embedding, trained further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft.card import Origin, write_drafter
from draft.corpus import Sample
from draft.pick import pick_head, pick_layers
from draft.recipe import Scores, Selection, Source
from draft.student import Student, short_config
from draft.train import Trainer, evaluate, round_int8
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report
from swarm.model.files.manifest import Manifest


@dataclass(frozen=True)
class LayersRecipe:
    """Implements `draft.recipe.Recipe`.

    layers  how many, or which;  head: tokens scored, 0: all;  dtype: of the weights written
    """

    layers: int | tuple[int, ...]
    head: int
    rate: float
    dtype: str
    kind: str = "layers"

    def check(self, target: Manifest) -> None:
        """See `Recipe.check`."""
        check_layers(self.layers, target.n_layers)

    def choose(self, source: Source, special: Sequence[int], report: Report) -> Selection:
        """See `Recipe.choose`."""
        wanted, samples = self.layers, source.samples
        layers = pick_layers(source.model, samples, wanted, report) if isinstance(wanted, int) else wanted
        head = pick_head(samples, source.checkpoint.manifest.vocab_size, self.head)
        report(Notice(f"layers kept: {', '.join(map(str, layers))}"))
        return Selection(tuple(layers), tuple(head.tolist()))

    def trainer(self, source: Source, picked: Selection) -> Trainer:
        """See `Recipe.trainer`."""
        student = Student(source.model, picked.layers, torch.tensor(picked.head_tokens))
        student.refine(lambda name: source.checkpoint.read(name, torch.float32))
        return Trainer(student, self.rate, four_bits=self.dtype == "q4_1")

    def settle(self, trainer: Trainer, held: Sequence[Sample]) -> Scores:
        """See `Recipe.settle`."""
        scores = {"q4_1" if self.dtype == "q4_1" else "float32": evaluate(trainer.student, held)}
        if self.dtype == "int8":
            round_int8(trainer.student)
            scores["int8"] = evaluate(trainer.student, held)
        return scores

    def write(self, out: Path, trainer: Trainer, origin: Origin, scores: Scores) -> int:
        """See `Recipe.write`."""
        student = trainer.student
        assert isinstance(student, Student)
        config, prefix = student.target_config, student.prefix
        weights = {f"{prefix}.{name}": value.detach().cpu() for name, value in student.trained()}
        head = student.head_tokens.cpu() if len(student.head_tokens) < student.vocabulary else None
        grids = {f"{prefix}.{name}": grid for name, grid in trainer.grids.items()}
        short = short_config(config, student.layers).to_dict()
        return write_drafter(out, short, weights, head, origin, scores, self.dtype, grids)


def check_layers(wanted: int | tuple[int, ...], total: int) -> None:
    """Raises UsageError for layers that the target does not have; asked before hours of work."""
    layers = tuple(range(wanted)) if isinstance(wanted, int) else wanted
    if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= total:
        raise UsageError(f"--layers must be 1 to {total}, or layers of 0 to {total - 1} in order; found {wanted}")
