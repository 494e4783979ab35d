"""Panels of packed matrices (native/layout.h) taken apart by torch, on any device: what GPUs multiply by.

A matrix that stays packed on a GPU lies there in the panels that the compiled kernels make on the CPU. `Lie` says for
each format how; `unpack` is the way without a kernel of its own, some panels at a time, and the reference for those of
`triton_panels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PANEL = 16
"""Rows of a panel."""
TABLES = (
    (0,) * 16,
    (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241),
    (128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116),
)
"""What codes of four bits stand for, 128 more than it: nothing, IQ4's numbers, twice those of e2m1."""
HALF, HALF_MIN, SUPER_MIN, SUPER16, SUPER2, SUPER, POWER, SMALL, WIDE = range(9)
"""How scales lie: the `Scale` of native/layout.h, in its order."""
LEAD = 128
"""Bytes before the scales of SMALL: two float32 a row."""


@dataclass(frozen=True)
class Lie:
    """bits: of a code; zero: taken off it; scale: one of the above; table: of TABLES; wide: WIDE's codes are e5m2."""

    bits: int
    zero: int
    scale: int
    table: int = 0
    wide: bool = False

    @property
    def super(self) -> bool:
        """Whether 256 columns share a scale of their scales."""
        return self.scale in (SUPER_MIN, SUPER16, SUPER2, SUPER)

    @property
    def has_min(self) -> bool:
        """Whether a minimum is added."""
        return self.scale in (HALF_MIN, SUPER_MIN, SUPER2)

    @property
    def parts(self) -> int:
        """Scales of 32 columns."""
        return 2 if self.scale in (SUPER16, SUPER2, SMALL) else 1

    @property
    def code_bytes(self) -> int:
        """Of a panel's 32 columns."""
        return 64 * self.bits

    @property
    def head_bytes(self) -> int:
        """Of 256 columns of a panel."""
        return 64 if self.scale in (SUPER_MIN, SUPER2) else 32 if self.super else 0

    @property
    def scale_bytes(self) -> int:
        """Of a panel's 32 columns."""
        return 64 if self.scale == HALF_MIN else 16 if self.scale in (SUPER, POWER) else 32


LIES = {
    2: Lie(4, 8, HALF),
    3: Lie(4, 0, HALF_MIN),
    6: Lie(5, 16, HALF),
    7: Lie(5, 0, HALF_MIN),
    8: Lie(8, 128, HALF),
    10: Lie(2, 0, SUPER2),
    11: Lie(3, 4, SUPER16),
    12: Lie(4, 0, SUPER_MIN),
    13: Lie(5, 0, SUPER_MIN),
    14: Lie(6, 32, SUPER16),
    20: Lie(4, 128, HALF, 1),
    23: Lie(4, 128, SUPER, 1),
    39: Lie(4, 128, POWER, 2),
    200: Lie(8, 0, WIDE),
    201: Lie(8, 0, WIDE, wide=True),
    202: Lie(4, 128, SMALL, 2),
}
"""By the number of the format."""


def unpack(lie: Lie, panels: torch.Tensor, columns: int) -> torch.Tensor:
    """uint8 [p, bytes of a panel] to float32 [16 p, columns]: the bits that the compiled kernels give."""
    count, blocks = len(panels), columns // 32
    codes = panels[:, : blocks * lie.code_bytes].reshape(count, blocks, lie.code_bytes)
    tail = panels[:, blocks * lie.code_bytes :]
    if lie.scale == WIDE:
        kind = torch.float8_e5m2 if lie.wide else torch.float8_e4m3fn
        each = tail[:, : -(-blocks // 4) * 64].contiguous().view(torch.float32).view(count, -1, PANEL)
        scale = each.repeat_interleave(4, 1)[:, :blocks, None]
        numbers = codes.contiguous().view(kind).float().view(count, blocks, 32, PANEL) * scale
        return numbers.permute(0, 3, 1, 2).reshape(PANEL * count, columns)
    scale, least = _scales(lie, tail, count, blocks)
    numbers = (_codes(lie, codes) - lie.zero).float() * scale.repeat_interleave(8 // lie.parts, 2).unsqueeze(4)
    if least is not None:
        numbers = numbers + least.repeat_interleave(8 // lie.parts, 2).unsqueeze(4)
    return numbers.permute(0, 3, 1, 2, 4).reshape(PANEL * count, columns)


def _codes(lie: Lie, codes: torch.Tensor) -> torch.Tensor:
    """int16 [p, blocks, 8, 16, 4]: eight words of four columns, of each row one."""
    count, blocks, _ = codes.shape

    def vectors(first: int, last: int) -> torch.Tensor:
        return codes[..., 64 * first : 64 * last].reshape(count, blocks, last - first, PANEL, 4).to(torch.int16)

    word = torch.arange(8, dtype=torch.int16, device=codes.device).view(8, 1, 1)
    if lie.bits == 8:
        return vectors(0, 8)
    if lie.bits < 4:
        q = vectors(0, 2).repeat_interleave(4, 2) >> (word % 4 * 2) & 3
        return q if lie.bits == 2 else q | (vectors(2, 3) >> word & 1) << 2
    low = vectors(0, 4)
    q = torch.cat((low & 15, low >> 4), 2)
    if lie.bits == 5:
        q = q | (vectors(4, 5) >> word & 1) << 4
    if lie.bits == 6:
        q = q | (vectors(4, 6).repeat_interleave(4, 2) >> (word % 4 * 2) & 3) << 4
    return torch.tensor(TABLES[lie.table], dtype=torch.int16, device=codes.device)[q.long()] if lie.table else q


def _scales(lie: Lie, tail: torch.Tensor, count: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and minima, float32 [p, blocks, parts, 16]."""
    if lie.super:
        heads = tail[:, : blocks // 8 * (8 * lie.scale_bytes + lie.head_bytes)].reshape(count, blocks // 8, -1)
        top = heads[..., : lie.head_bytes].contiguous().view(torch.float16).float()
        top = top.view(count, blocks // 8, -1, PANEL).repeat_interleave(8, 1)
        each = heads[..., lie.head_bytes :].reshape(count, blocks, -1, PANEL)
        if lie.scale == SUPER2:
            return top[:, :, :1] * (each & 15).float(), -(top[:, :, 1:] * (each >> 4).float())
        if lie.scale == SUPER_MIN:
            return top[:, :, :1] * each[:, :, :1].float(), -(top[:, :, 1:] * each[:, :, 1:].float())
        return top * each.contiguous().view(torch.int8).float(), None
    if lie.scale == SMALL:
        lead = tail[:, :LEAD].contiguous().view(torch.float32).view(count, 1, 2, PANEL)[:, :, 1:]
        each = tail[:, LEAD : LEAD + blocks * 32].contiguous().view(torch.float8_e4m3fn).float()
        each = each.view(count, blocks, 2, PANEL)
        return torch.where(lead < 0, each / -lead, each * lead) * 0.5, None
    each = tail[:, : blocks * lie.scale_bytes].reshape(count, blocks, -1)
    if lie.scale == POWER:  # twice the numbers, so half of the powers; below 2 ** -126 as they are
        exponent = each.view(count, blocks, 1, PANEL).int()
        bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
        return bits.view(torch.float32), None
    halves = each.contiguous().view(torch.float16).float().view(count, blocks, -1, PANEL)
    return halves[:, :, :1], halves[:, :, 1:] if lie.has_min else None
