"""The formats that kernels multiply by: those of GGUF, and ours of small floats; one record a format.

A format cuts every row into blocks of `block` values, `block_bytes` each; a block is codes of a few bits, one or two
binary16 scales, and in the K formats scales of six or four bits for parts of it. Source:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. `gguf.dequantize` is the reference for all of them; the
kernels' own unpacking gives the same bits (tests/swarm/model/test_quant.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.quant.native import Library

_HALVES = {
    **{name: (0,) for name in ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS")},
    **{name: (0, 2) for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")},
    **{name: (0,) for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")},
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}
"""Where a block's binary16 scales and minima lie, in bytes from its start."""

_MOST_POWER = 252
"""Of MXFP4's scales: 2 ** (252 - 127), which six times fits a float32. 255 is no number."""

_PLAIN = ("F32", "F16", "BF16", "F64")

_SMALL_FLOATS = {"FP8_E4M3": (200, 36), "FP8_E5M2": (201, 36), "NVFP4_ROWS": (202, 22)}
"""Blocks of 32 that encodings of small floats are brought into (`floats.py`), never stored in files: number and bytes
of a block. FP8: a float32 scale, 32 codes. NVFP4: the matrix's own scale (float32, negative where it divides), two
scales of e4m3, 16 bytes of codes, the first sixteen columns in the low halves."""


@dataclass(frozen=True)
class Format:
    """name and number: ggml's, or our own; block: values of a block; block_bytes: its stored size."""

    name: str
    number: int
    block: int
    block_bytes: int

    def check_scales(self, stored: NDArray[np.uint8], tensor: str) -> None:
        """Raises ModelError naming the tensor when a scale is infinite or not a number, or a code says nothing."""
        blocks = stored.reshape(-1, self.block_bytes)
        damaged = self.name == "MXFP4" and bool((blocks[:, 0] > _MOST_POWER).any())
        damaged |= self.name == "IQ1_M" and bool(((_iq1m_scales(blocks) & 0x7C00) == 0x7C00).any())
        for at in _HALVES.get(self.name, ()):
            damaged |= bool(((blocks[:, at + 1] & 0x7C) == 0x7C).any())  # all bits of the exponent
        if damaged:
            raise ModelError(f"{tensor} holds values that are not finite: pull it again")
        if self.name == "TQ2_0":  # two bits for one of three numbers
            codes = blocks[:, :64]
            if (codes & codes >> 1 & 0x55).any():
                raise ModelError(f"{tensor} holds codes that stand for no number: pull it again")

    def settle_scales(self, stored: NDArray[np.uint8]) -> None:
        """Give every block of arbitrary bytes small finite scales, in place."""
        blocks = stored.reshape(-1, self.block_bytes)
        for at in _HALVES.get(self.name, ()):
            blocks[:, at], blocks[:, at + 1] = 0, 0x14  # binary16: 2 ** -10
        if self.name == "MXFP4":
            blocks[:, 0] = 117  # 2 ** -10
        if self.name == "IQ1_M":
            blocks[:, 55] &= 0x0F  # the highest four bits of the scale
        if self.name == "TQ2_0":
            blocks[:, :64] &= ~(blocks[:, :64] >> 1 & 0x55)
        if self.name in _SMALL_FLOATS:
            blocks[:, :4] = np.array([2.0**-9], "<f4").view(np.uint8)
        if self.name == "NVFP4_ROWS":
            blocks[:, 4:6] = 0x38  # 1
        elif self.name in _SMALL_FLOATS:
            blocks[:, 4:] &= 0xBF  # numbers below 2: neither infinite nor none

    @property
    def exact(self) -> bool:
        """Whether products take rows as they are: FP8. Elsewhere rows are rounded to bytes."""
        return self.name in ("FP8_E4M3", "FP8_E5M2")


def _iq1m_scales(blocks: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The binary16 scale of each block, whose four parts are the highest bits of four words."""
    words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
    high = words[:, 2] >> 4 & 0x0F00 | words[:, 3] & 0xF000
    return (words[:, 0] >> 12 | words[:, 1] >> 8 & 0x00F0 | high).astype(np.uint16)


def find_format(name: str) -> Format | None:
    """The format that a manifest calls "gguf:NAME", when it is one of blocks; None for plain numbers and others."""
    kind = name.removeprefix("gguf:")
    if kind == name or kind in _PLAIN or kind not in gguf.GGMLQuantizationType.__members__:
        return None
    member = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[member]
    return Format(kind, int(member), block, size) if block > 1 else None


def blocks_format(name: str | None) -> Format | None:
    """The format of blocks that an encoding gives (`Encoding.kernel_format`): ours or one of GGUF. A file never names
    one of ours."""
    if name in _SMALL_FLOATS:
        number, size = _SMALL_FLOATS[name]
        return Format(name, number, 32, size)
    return find_format(f"gguf:{name}")


def has_kernel(form: Format, shape: tuple[int, ...], lib: Library | None) -> bool:
    """Whether matrices of this format and shape are multiplied as they are stored."""
    return lib is not None and len(shape) == 2 and lib.packed_bytes(form.number, *shape) > 0
