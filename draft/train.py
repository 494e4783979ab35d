"""Training a student on what the target said, and measuring how often it says the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional

from draft.corpus import Batch, Sample, batches, load_samples
from draft.four_bits import BLOCK, Grid
from draft.loss import BEST
from draft.packed import round_rows
from draft.trainable import Trainable


@dataclass(frozen=True)
class Score:
    """Over `positions` held-out positions: share where the student's first choice is the target's (`first`), where
    the target's choice is among its first 8 (`first8`); `ranks[i]` counts it at rank i + 1, for i < 8.

    further  the same of the tokens two ahead, three ahead and so on, where the student predicts them: each behind the
             target's own tokens as far as a student of its kind sees them
    """

    positions: int
    ranks: tuple[int, ...]
    further: tuple[Score, ...] = ()

    @property
    def first(self) -> float:
        return self.ranks[0] / max(1, self.positions)

    @property
    def first8(self) -> float:
        return sum(self.ranks) / max(1, self.positions)

    def __str__(self) -> str:
        said = f"first {self.first:.3f}  first 8 {self.first8:.3f}  of {self.positions} positions"
        if self.further:
            said += "; further ahead: " + ", ".join(f"{score.first:.3f}" for score in self.further)
        return said


class Trainer:
    """AdamW on the trained weights; the learning rate follows a cosine over the share of the time that is used.

    four_bits: what is computed with lies on a grid of four bits (`draft.four_bits`), what is updated does not. At first
    that is anywhere within the reach of its place on the grid, so that small updates carry their share of weights over
    to the next place at once, instead of none for a long time and then all.

    values    names and tensors that are updated: the student's own, or what they are rounded from
    grids     by name of a matrix in four bits; others, of odd widths, are not. Given for a student that lies on grids
              already, which its own weights would not show
    """

    def __init__(
        self,
        student: Trainable,
        rate: float = 1e-3,
        warmup: int = 40,
        four_bits: bool = False,
        grids: Mapping[str, Grid] | None = None,
    ) -> None:
        self.student, self.rate, self.warmup = student, rate, warmup
        matrices = [(name, w) for name, w in student.trained() if w.ndim == 2 and w.shape[1] % BLOCK == 0]
        self.grids = dict(grids) if grids is not None else {name: Grid.of(w.data) for name, w in matrices if four_bits}
        four_bits = bool(self.grids)
        self.values: list[tuple[str, torch.Tensor]] = list(student.trained())
        if four_bits:
            draw = torch.Generator().manual_seed(0)
            self.values = [(name, self._within(name, w.data, draw)) for name, w in student.trained()]
        groups = [
            {"params": [w for _, w in self.values if w.ndim > 1], "weight_decay": 0.0 if four_bits else 0.01},
            {"params": [w for _, w in self.values if w.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.97))
        self.steps = self.positions = 0
        self.settle()

    def step(self, batch: Batch, progress: float) -> float:
        """One update; `progress` in [0, 1] sets the rate. Returns the batch's loss in nats."""
        factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * min(1.0, (self.steps + 1) / self.warmup)
        loss = self.student.loss(batch, torch.Generator().manual_seed(self.steps))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([w for _, w in self.student.trained()], 1.0)
        if self.grids:
            for (_, full), (_, weight) in zip(self.values, self.student.trained(), strict=True):
                full.grad, weight.grad = weight.grad, None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.settle()
        self.steps += 1
        self.positions += len(batch.rows)
        return float(loss.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Let the student compute with what is to be stored of `values`."""
        if self.grids:
            for (name, full), (_, weight) in zip(self.values, self.student.trained(), strict=True):
                weight.copy_(self.grids[name].nearest(full) if name in self.grids else full)

    def _within(self, name: str, weight: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Anywhere that is rounded to `weight`."""
        if name not in self.grids:
            return weight.clone()
        grid = self.grids[name]
        off = (torch.rand(weight.shape, generator=draw) - 0.5).to(weight.device).view(len(weight), -1, BLOCK)
        return grid.nearest(weight) + (off * 0.999 * grid.step).view_as(weight)


@torch.no_grad()
def evaluate(student: Trainable, samples: Sequence[Sample], tokens: int = 4096) -> dict[str, Score]:
    """Scores by register ("chat"), how answers were drawn ("greedy", "sampled"), both ("chat, greedy"), and "all"."""
    counts: dict[str, list[torch.Tensor]] = {}
    for batch in batches(samples, tokens, random.Random(0)):
        owners = torch.repeat_interleave(torch.tensor([len(sample.ids) for sample in batch.samples]))
        for ahead, (rows, best) in enumerate(student.choices(batch)):
            rows, best = rows.cpu(), best.cpu()
            hits = functional.pad((best == batch.ids[rows, :1]).long(), (0, BEST - best.shape[1]))
            found = torch.zeros(len(batch.samples), BEST + 1, dtype=torch.long)
            found.index_add_(0, owners[rows], functional.pad(hits, (0, 1), value=1))
            for sample, own in zip(batch.samples, found, strict=True):
                for name in _names(sample):
                    table = counts.setdefault(name, [])
                    table += [torch.zeros_like(own)] * (ahead + 1 - len(table))
                    table[ahead] = table[ahead] + own
    made = {}
    for name, table in sorted(counts.items()):
        first, *further = (Score(int(own[BEST]), tuple(own[:BEST].tolist())) for own in table)
        made[name] = replace(first, further=tuple(further))
    return made


def _names(sample: Sample) -> list[str]:
    names = ["all", sample.register, "greedy" if sample.greedy else "sampled"]
    return [*names, f"{sample.register}, greedy"] if sample.greedy else names


@torch.no_grad()
def round_int8(student: Trainable) -> None:
    """Replace every trained matrix by what int8 storage makes of it."""
    for _, value in student.trained():
        if value.ndim == 2:
            packed, scale = round_rows(value)
            value.copy_(packed.float() * scale[:, None])


class Feed:
    """Batches of the samples in `files` for ever, in an order that follows from `seed` and `place` alone.

    place  (pass over the files, batches of it that were taken): one that starts where another was goes on as that one
           would have
    """

    def __init__(self, files: Sequence[Path], tokens: int, seed: int, place: tuple[int, int] = (0, 0)) -> None:
        self._files, self._tokens, self._seed = sorted(files), tokens, seed
        self.place = place

    def __iter__(self) -> Iterator[Batch]:
        while True:
            number, taken = self.place
            for at, batch in enumerate(self._pass(random.Random(f"{self._seed}/{number}"))):
                if at >= taken:
                    self.place = (number, at + 1)
                    yield batch
            self.place = (number + 1, 0)

    def _pass(self, rng: random.Random) -> Iterator[Batch]:
        files = list(self._files)
        rng.shuffle(files)
        for i in range(0, len(files), 6):  # a few files at a time mix well and fit memory
            yield from batches([s for file in files[i : i + 6] for s in load_samples(file)], self._tokens, rng)


def endless(load: Callable[[], Iterable[list[Sample]]], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Batches for ever; every pass loads the samples anew, so what was added since is used."""
    while True:
        for samples in load():
            yield from batches(samples, tokens, rng)
