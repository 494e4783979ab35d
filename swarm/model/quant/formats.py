"""How GGUF stores matrices: one record a format.

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

_PLAIN = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Format:
    """name and number: ggml's; block: values of a block; block_bytes: its stored size."""

    name: str
    number: int
    block: int
    block_bytes: int

    def check_scales(self, stored: NDArray[np.uint8], tensor: str) -> None:
        """Raises ModelError naming the tensor when a scale is infinite or not a number."""
        blocks = stored.reshape(-1, self.block_bytes)
        if self.name == "MXFP4" and (blocks[:, 0] == 255).any():  # the exponent that is no number
            raise ModelError(f"{tensor} holds values that are not finite: pull it again")
        for at in _HALVES.get(self.name, ()):
            if ((blocks[:, at + 1] & 0x7C) == 0x7C).any():  # all bits of the exponent
                raise ModelError(f"{tensor} holds values that are not finite: pull it again")

    def settle_scales(self, stored: NDArray[np.uint8]) -> None:
        """Give every block of arbitrary bytes small finite scales, in place."""
        blocks = stored.reshape(-1, self.block_bytes)
        for at in _HALVES.get(self.name, ()):
            blocks[:, at], blocks[:, at + 1] = 0, 0x14  # binary16: 2 ** -10
        if self.name == "MXFP4":
            blocks[:, 0] = 117  # 2 ** -10


def find_format(name: str) -> Format | None:
    """The format that a manifest calls "gguf:NAME", when it is one of blocks; None for plain numbers and others."""
    kind = name.removeprefix("gguf:")
    if kind == name or kind in _PLAIN or kind not in gguf.GGMLQuantizationType.__members__:
        return None
    member = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[member]
    return Format(kind, int(member), block, size) if block > 1 else None


def has_kernel(form: Format, shape: tuple[int, ...], lib: Library | None) -> bool:
    """Whether matrices of this format and shape are multiplied as they are stored."""
    return lib is not None and len(shape) == 2 and lib.packed_bytes(form.number, *shape) > 0
