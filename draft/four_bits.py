"""Matrices of a drafter in four bits: training on the grid of what will be stored, and the bytes that are stored.

GGUF's Q4_1: 32 weights of a row share a step and a lowest value in binary16, each weight is the lowest plus 0 to 15
steps. Twice as many layers fit into the same bytes as in int8, and a drafter's time is that of reading them. Rounding a
trained drafter to so few bits would cost more than that gains, so it is trained as it will be: each update moves
weights that are kept in full, and what is computed with are those on the grid (the gradient passes through the
rounding: Bengio, Léonard and Courville 2013, arXiv:1308.3432). The grid is that of the layers that it started from, so
a target whose own file is in Q4_1 begins without any loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from swarm.base.errors import ModelError

BLOCK = 32
STEPS = 15
"""Steps from the lowest weight of a block to the highest."""
BLOCK_BYTES = 20


@dataclass(frozen=True)
class Grid:
    """Where the weights of a matrix [rows, columns] may lie: float32 [rows, columns / 32, 1] each, as binary16 has
    them."""

    step: torch.Tensor
    low: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Grid:
        """The grid from each block's lowest weight to its highest. ValueError where columns are no multiple of 32."""
        blocks = _blocks(weight)
        low = blocks.amin(-1, keepdim=True).half().float()
        step = ((blocks.amax(-1, keepdim=True) - low) / STEPS).half().float().clamp(min=2.0**-24)
        return cls(step, low)

    @classmethod
    def of_stored(cls, stored: torch.Tensor) -> Grid:
        """The grid that `stored` put into its blocks, uint8 [rows, columns / 32 * 20]: what is read goes on where it
        lay, also in blocks that leave the ends of their grid empty. Raises ModelError for steps that are none."""
        blocks = np.ascontiguousarray(stored.cpu().numpy()).reshape(len(stored), -1, BLOCK_BYTES)
        step, low = (
            torch.from_numpy(np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2").astype(np.float32))
            for at in (0, 2)
        )
        if not bool((step.isfinite() & low.isfinite() & (step >= 0)).all()):
            raise ModelError("expected finite steps in a matrix of four bits, found others; distil the drafter again")
        return cls(step.clamp(min=2.0**-24), low)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest place on the grid, 0 to 15, as float32 [rows, columns / 32, 32]."""
        return ((_blocks(weight) - self.low) / self.step).round_().clamp_(0, STEPS)

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights that stand for these, float32 of the same shape."""
        return torch.addcmul(self.low, self.codes(weight), self.step).view_as(weight)

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, columns / 32 * 20]: Q4_1 as a GGUF file has it."""
        codes = self.codes(weight.detach().cpu()).to(torch.uint8).numpy()
        rows, many, _ = codes.shape
        out = np.empty((rows, many, BLOCK_BYTES), np.uint8)
        for at, half in ((0, self.step), (2, self.low)):
            out[..., at : at + 2] = half.cpu().numpy().astype("<f2").view(np.uint8).reshape(rows, many, 2)
        out[..., 4:] = codes[..., :16] | codes[..., 16:] << 4
        return torch.from_numpy(out.reshape(rows, -1))


def unpacked(stored: torch.Tensor) -> torch.Tensor:
    """float32 [rows, columns] of what `Grid.stored` gives; what is not finite in a torn file stays so."""
    blocks = np.ascontiguousarray(stored.cpu().numpy()).reshape(len(stored), -1, BLOCK_BYTES)
    step, low = (np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2").astype(np.float32) for at in (0, 2))
    codes = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy((codes * step + low).reshape(len(stored), -1))


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"four bits are stored in blocks of {BLOCK}, found {weight.shape[-1]} columns")
    return weight.float().view(len(weight), -1, BLOCK)
