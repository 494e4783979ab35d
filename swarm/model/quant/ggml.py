"""GGUF blocks that take more than their own bytes: NVFP4 with the matrix's second scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import torch

from swarm.model.files.manifest import TensorEntry
from swarm.model.quant.encoding import Blocks, Parts

SCALE = ".second_scale"
"""Ending of the manifest's name for it; the file calls it `blk.N.X.scale`."""


@dataclass(frozen=True, eq=False)
class ScaledBlocks:
    """NVFP4 blocks of a GGUF (codes uint8 [rows, bytes of a row]) times one number. order: int64 [rows], the stored
    row of each row; None where they agree."""

    order: torch.Tensor | None
    name: str = "gguf:NVFP4"

    @property
    def kernel_format(self) -> str | None:
        return None

    def shape(self, parts: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        shape = parts["codes"].shape
        if len(shape) != 2 or parts["codes"].nbytes != shape[0] * (shape[1] // 64) * 36 or shape[1] % 64:
            raise ValueError(f"NVFP4 of shape {list(shape)}")
        if parts["scales"].shape != (1,):
            raise ValueError(f"its second scale has shape {list(parts['scales'].shape)}, expected [1]")
        return shape

    def check(self, parts: Parts) -> None:
        if not bool(torch.isfinite(parts["scales"].float()).all()):
            raise ValueError("its second scale is not finite")

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        codes = parts["codes"][first:last] if self.order is None else parts["codes"][self.order[first:last]]
        values = gguf.dequantize(codes.numpy(), gguf.GGMLQuantizationType.NVFP4)
        numbers = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(last - first, -1)
        return numbers * parts["scales"].float()

    def blocks(self, parts: Parts) -> Blocks | None:
        return None
