"""GGUF's blocks outside a GGUF, and those that take more than their own bytes.

- NVFP4 of a GGUF has a second scale for each matrix, a tensor of its own.
- `swarm model quantize` keeps blocks in safetensors, which hold any architecture, tokenizer and config as transformers
  saves them: `X.weight.q4_k` is uint8 [rows, bytes of a row] of ggml's type Q4_K, under the `quant_method` "ggml".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import torch

from swarm.base.errors import ModelError
from swarm.model.quant.encoding import Blocks, Encoding, Parts, StoredTensor
from swarm.model.quant.formats import find_format

SCALE = ".second_scale"
"""Ending of the manifest's name for NVFP4's second scale; the file calls it `blk.N.X.scale`."""

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
_MOST_NVFP4 = 448.0 * 6
"""The largest number of a block: an e4m3 times an e2m1."""
GGML_ROLES = {f".weight.{name.lower()}": "codes" for name in TYPES}


@dataclass(frozen=True, eq=False)
class ScaledBlocks:
    """NVFP4 blocks of a GGUF (codes uint8 [rows, bytes of a row]) times one number. order: int64 [rows], the stored
    row of each row; None where they agree."""

    order: torch.Tensor | None
    name: str = "gguf:NVFP4"

    @property
    def kernel_format(self) -> str | None:
        return None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scales"})

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        shape = parts["codes"].shape
        if len(shape) != 2 or parts["codes"].nbytes != shape[0] * (shape[1] // 64) * 36 or shape[1] % 64:
            raise ValueError(f"NVFP4 of shape {list(shape)}")
        if parts["scales"].shape != (1,):
            raise ValueError(f"its second scale has shape {list(parts['scales'].shape)}, expected [1]")
        return shape

    def check(self, parts: Parts) -> None:
        if not bool(torch.isfinite(parts["scales"].float() * _MOST_NVFP4).all()):
            raise ValueError("its second scale is not finite")

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        codes = parts["codes"][first:last] if self.order is None else parts["codes"][self.order[first:last]]
        return _numbers(codes, "NVFP4") * parts["scales"].float()

    def blocks(self, parts: Parts) -> Blocks | None:
        return None


@dataclass(frozen=True)
class PlainBlocks:
    """Blocks of one of ggml's types, rows as the model has them."""

    kind: str

    @property
    def name(self) -> str:
        return f"ggml:{self.kind}"

    @property
    def kernel_format(self) -> str | None:
        return self.kind

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        codes, (block, size) = parts["codes"], gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        if codes.format != "U8" or len(codes.shape) != 2 or codes.shape[1] % size:
            raise ValueError(f"{codes.format} of shape {list(codes.shape)} does not divide into blocks of {size} bytes")
        return (codes.shape[0], codes.shape[1] // size * block)

    def check(self, parts: Parts) -> None:
        form = find_format(f"gguf:{self.kind}")
        assert form is not None
        try:
            form.check_scales(parts["codes"].numpy().reshape(-1), "its blocks")
        except ModelError as exc:
            raise ValueError("its scales are not finite") from exc

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        return _numbers(parts["codes"][first:last], self.kind)

    def blocks(self, parts: Parts) -> Blocks | None:
        return Blocks(self.kind, parts["codes"])


def ggml_blocks(module: str, parts: Mapping[str, StoredTensor]) -> Encoding | None:
    """How `X.weight.TYPE` is stored."""
    kind = parts["codes"].name.rpartition(".")[2].upper()
    return PlainBlocks(kind) if kind in TYPES else None


def _numbers(codes: torch.Tensor, kind: str) -> torch.Tensor:
    values = gguf.dequantize(codes.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(len(codes), -1)
