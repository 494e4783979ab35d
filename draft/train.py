"""Training a student on what the target said, and measuring how often it says the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from draft.corpus import Batch, Sample, batches
from draft.four_bits import BLOCK, Grid
from draft.packed import round_rows
from draft.student import Student, sparse_kl


@dataclass(frozen=True)
class Score:
    """Over `positions` held-out positions: share where the student's first choice is the target's (`first`), where
    the target's choice is among its first 8 (`first8`); `ranks[i]` counts it at rank i + 1, for i < 8."""

    positions: int
    ranks: tuple[int, ...]

    @property
    def first(self) -> float:
        return self.ranks[0] / max(1, self.positions)

    @property
    def first8(self) -> float:
        return sum(self.ranks) / max(1, self.positions)

    def __str__(self) -> str:
        return f"first {self.first:.3f}  first 8 {self.first8:.3f}  of {self.positions} positions"


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
        student: Student,
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
        self._place = short_places(student)
        self.settle()

    def step(self, batch: Batch, progress: float) -> float:
        """One update; `progress` in [0, 1] sets the rate. Returns the batch's KL in nats."""
        device = self.student.device
        ids, target = to_head(batch.ids.to(device), batch.logits.to(device), self._place)
        factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * min(1.0, (self.steps + 1) / self.warmup)
        hidden = self.student(batch.inputs.to(device), batch.rows.to(device))
        loss = sparse_kl(hidden, self.student.head, ids, target)
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


def short_places(student: Student) -> torch.Tensor:
    """int64 [vocab]: place of each token id in the student's head, -1 where it has none."""
    tokens = student.head_tokens
    places = torch.full((student.vocab_size,), -1, dtype=torch.long, device=tokens.device)
    places[tokens] = torch.arange(len(tokens), device=tokens.device)
    return places


def to_head(ids: torch.Tensor, logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's distribution on the student's head: places int64 [r, k] and probabilities [r, k]."""
    at = places[ids]
    known = at >= 0
    target = torch.softmax(logits.masked_fill(~known, -1e9), -1) * known
    return at.clamp(min=0), target


@torch.no_grad()
def evaluate(student: Student, samples: Sequence[Sample], tokens: int = 4096) -> dict[str, Score]:
    """Scores by register ("chat"), how answers were drawn ("greedy", "sampled"), both ("chat, greedy"), and "all"."""
    device = student.device
    tokens_of_head, head = student.head_tokens, student.head
    counts: dict[str, torch.Tensor] = {}
    totals: dict[str, int] = {}
    for batch in batches(samples, tokens, random.Random(0)):
        hidden = student(batch.inputs.to(device), batch.rows.to(device))
        best = tokens_of_head[(hidden.to(head.dtype) @ head.T).topk(8, dim=-1).indices]
        hits = (best == batch.ids[:, :1].to(device)).long().cpu()
        row = 0
        for sample in batch.samples:
            own = hits[row : row + len(sample.ids)]
            row += len(own)
            names = ["all", sample.register, "greedy" if sample.greedy else "sampled"]
            names += [f"{sample.register}, greedy"] if sample.greedy else []
            for name in names:
                counts[name] = counts.get(name, torch.zeros(8, dtype=torch.long)) + own.sum(0)
                totals[name] = totals.get(name, 0) + len(own)
    return {name: Score(totals[name], tuple(counts[name].tolist())) for name in sorted(counts)}


@torch.no_grad()
def round_int8(student: Student) -> None:
    """Replace every trained matrix by what int8 storage makes of it."""
    for _, value in student.trained():
        if value.ndim == 2:
            packed, scale = round_rows(value)
            value.copy_(packed.float() * scale[:, None])


def endless(load: Callable[[], Iterable[list[Sample]]], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Batches for ever; every pass loads the samples anew, so what was added since is used."""
    while True:
        for samples in load():
            yield from batches(samples, tokens, rng)
