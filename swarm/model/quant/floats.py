"""Small floats with scales: FP8 in tiles, rows or as a whole, MXFP4 and NVFP4.

FP8 is float8_e4m3fn (or e5m2), times the scale of its tile: 128 x 128 (DeepSeek-V3, Qwen3-FP8: `weight_scale_inv`,
which multiplies in spite of its name), a row (fbgemm, compressed-tensors) or the whole matrix.
FP4 is e2m1, two to a byte, the even column in the low four bits. MXFP4 has a power of two per 32 (OCP Microscaling
Formats 1.0); NVFP4 an e4m3 per 16 and a float32 for the matrix. GGUF orders the same nibbles otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from swarm.model.quant.encoding import Blocks, Parts, StoredTensor, check_scales

_RUN = 128
"""Columns that share a scale in the kernel's panels."""
_FP8 = {torch.float8_e4m3fn: "FP8_E4M3", torch.float8_e5m2: "FP8_E5M2"}
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class ScaledFloats:
    """method: whose format; tile: (rows, columns) that share a scale, 0 for all of them."""

    method: str
    tile: tuple[int, int]

    @property
    def name(self) -> str:
        rows, columns = self.tile
        what = "tensor" if not rows else "channel" if (rows, columns) == (1, 0) else f"{rows}x{columns}"
        return f"{self.method}-fp8-{what}"

    @property
    def kernel_format(self) -> str | None:
        """Where a scale serves whole runs of 128 columns. Files say in their codes which of both floats it is, and both
        have a kernel."""
        return "FP8_E4M3" if self.tile[1] % _RUN == 0 else None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scales"})

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        shape, found = parts["codes"].shape, parts["scales"].shape
        if len(shape) != 2:
            raise ValueError(f"a matrix of shape {list(shape)}")
        wanted = tuple(1 if not t else -(-n // t) for n, t in zip(shape, self.tile, strict=True))
        plain = found == (1,) or found == () if not self.tile[0] else found == (shape[0],) and wanted[1] == 1
        if found != wanted and not plain:
            raise ValueError(f"its scales have shape {list(found)}, expected {list(wanted)}")
        return shape

    def check(self, parts: Parts) -> None:
        check_scales(numbers(parts["scales"]), torch.finfo(parts["codes"].dtype).max)
        codes, bits = parts["codes"].view(torch.uint8), 0x7F if parts["codes"].dtype == torch.float8_e4m3fn else 0x7C
        if bool((codes & bits == bits).any()):  # e4m3fn has one NaN and no infinity, e5m2 both
            raise ValueError("it holds values that are not finite")
        zeros = parts.get("zeros")  # some files state that there are none
        if zeros is not None and bool(zeros.float().any()):
            raise ValueError("its floats have zero points")

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        codes, scales = parts["codes"][first:last], numbers(parts["scales"])
        columns = codes.shape[1]
        scales = scales.reshape(1, 1) if not self.tile[0] else scales.reshape(scales.shape[0], -1)
        if self.tile[0]:
            scales = scales[torch.arange(first, last) // self.tile[0]]
        if scales.shape[1] > 1:
            scales = scales.repeat_interleave(self.tile[1], 1)[:, :columns]
        return codes.float() * scales

    def blocks(self, parts: Parts) -> Blocks | None:
        codes, scales = parts["codes"], numbers(parts["scales"])
        rows, columns = codes.shape
        if self.kernel_format is None or columns % 32 or codes.dtype not in _FP8:
            return None
        scales = scales.reshape(1, 1) if not self.tile[0] else scales.reshape(scales.shape[0], -1)
        scales = scales[torch.arange(rows) // self.tile[0]] if self.tile[0] else scales.expand(rows, 1)
        each = self.tile[1] // 32 or columns // 32
        scales = scales.repeat_interleave(each, 1)[:, : columns // 32].contiguous()
        body = codes.view(torch.uint8).reshape(rows, -1, 32)
        return Blocks(_FP8[codes.dtype], torch.cat((scales.unsqueeze(2).view(torch.uint8), body), 2).reshape(rows, -1))


@dataclass(frozen=True)
class Float4:
    """group: 32 (MXFP4) or 16 (NVFP4) columns; divided: whether the matrix's own scale divides (compressed-tensors) or
    multiplies (modelopt); stacked: gpt-oss's experts, [experts, out, groups, 16] for a tensor [experts, in, out]."""

    method: str
    group: int
    divided: bool = True
    stacked: bool = False

    @property
    def name(self) -> str:
        return (
            self.method
            if self.method in ("mxfp4", "nvfp4")
            else f"{self.method}-{'mx' if self.group == 32 else 'nv'}fp4"
        )

    @property
    def kernel_format(self) -> str | None:
        return "MXFP4" if self.group == 32 else "NVFP4_ROWS" if not self.stacked else None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scales", "whole"} if self.group == 16 else {"scales"})

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        shape, found = parts["codes"].shape, parts["scales"].shape
        if self.stacked:
            if len(shape) != 4 or shape[3] * 2 != self.group or found != shape[:3]:
                raise ValueError(f"its blocks have shape {list(shape)}, its scales {list(found)}")
            return (shape[0], shape[2] * self.group, shape[1])
        if len(shape) != 2 or shape[1] * 2 % self.group:
            raise ValueError(f"{2 * shape[-1]} columns do not divide into groups of {self.group}")
        if found != (shape[0], shape[1] * 2 // self.group):
            raise ValueError(f"its scales have shape {list(found)}, expected {[shape[0], shape[1] * 2 // self.group]}")
        if (whole := parts.get("whole")) is not None and whole.shape not in ((), (1,)):
            raise ValueError(f"its second scale has shape {list(whole.shape)}, expected one number")
        return (shape[0], shape[1] * 2)

    def check(self, parts: Parts) -> None:
        whole, scales = self._whole(parts), numbers(parts["scales"])
        if not 0 < whole < float("inf"):
            raise ValueError(f"its second scale is {whole}")
        check_scales(scales, FP4[7])
        check_scales(scales / whole if self.divided else scales * whole, FP4[7])

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        codes, scales = parts["codes"][first:last], numbers(parts["scales"][first:last])
        table = torch.tensor(FP4)
        values = torch.stack((table[(codes & 15).int()], table[(codes >> 4).int()]), -1)
        if self.stacked:
            values = values.reshape(*codes.shape[:-1], self.group) * scales.unsqueeze(-1)
            return values.reshape(*codes.shape[:2], -1).transpose(1, 2)
        if parts.get("whole") is not None:  # as compressed-tensors: the scales are made whole first
            whole = parts["whole"].float().reshape(())
            scales = scales / whole if self.divided else scales * whole
        return (values.reshape(*scales.shape, self.group) * scales.unsqueeze(-1)).reshape(len(codes), -1)

    def expert(self, parts: Parts, i: int) -> tuple[Float4, Parts]:
        """One of stacked experts as a matrix [out, in] by itself."""
        codes, scales = parts["codes"][i], parts["scales"][i]
        return replace(self, stacked=False), {"codes": codes.reshape(len(codes), -1), "scales": scales}

    def blocks(self, parts: Parts) -> Blocks | None:
        if self.kernel_format is None or self.stacked:
            return None
        codes, scales = parts["codes"], parts["scales"]
        if 2 * codes.shape[1] % 32:
            return None
        even_odd = torch.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1, 32)
        body = even_odd[..., :16] | (even_odd[..., 16:] << 4)
        if self.group == 16:
            if scales.dtype != torch.float8_e4m3fn:
                return None
            whole = torch.full((*body.shape[:2], 1), self._whole(parts) * (-1 if self.divided else 1))
            pairs = scales.view(torch.uint8).reshape(*body.shape[:2], 2)
            return Blocks("NVFP4_ROWS", torch.cat((whole.view(torch.uint8), pairs, body), 2).reshape(len(codes), -1))
        exponents = scales.view(torch.uint8).unsqueeze(-1)
        return Blocks("MXFP4", torch.cat((exponents, body), 2).reshape(len(codes), -1))

    def _whole(self, parts: Parts) -> float:
        whole = parts.get("whole")
        return 1.0 if whole is None else float(whole.float().reshape(()))


def numbers(scales: torch.Tensor) -> torch.Tensor:
    """Scales as float32; bytes and float8_e8m0 are powers of two, 127 meaning 1 and 255 no number."""
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        exponents = scales.view(torch.uint8).int()
        return torch.where(exponents == 255, torch.nan, torch.ldexp(torch.ones(exponents.shape), exponents - 127))
    return scales.float()
