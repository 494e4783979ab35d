"""Integer codes in groups: GPTQ, AWQ, and the integer formats of compressed-tensors.

A matrix w [out, in] is (code - zero) * scale, with one zero point and one scale per row and group of columns. The
three differ in how they pack codes into 32-bit words:

- GPTQ: `qweight` [in / n, out], n codes of a column's neighbours in a word, lowest bits first; `qzeros` [groups,
  out / n], stored one too small unless `checkpoint_format` is "gptq_v2"; `g_idx` [in], the group of each column.
  Source: AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py.
- AWQ ("gemm"): `qweight` [in, out / 8], `qzeros` [groups, out / 8], outputs in a word in the order 0 2 4 6 1 3 5 7.
  Source: AutoAWQ 0.2.9, utils/packing_utils.py.
- compressed-tensors: `weight_packed` [out, in / n], codes moved up by half their range; `weight_zero_point` packed
  along the rows; or plain int8. Source: compressed-tensors 0.20, compressors/pack_quantized.

Groups of 32 k columns and scales that are binary16 numbers go into ggml's blocks unchanged: the same products by the
same kernels as a GGUF. Symmetric int4 is Q4_0; with zero points code - zero lies in [-16, 15], which is Q5_0; int8 is
Q8_0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from swarm.model.quant.encoding import Blocks, Parts, StoredTensor, check_scales

BLOCK = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word's nibbles the outputs 0 to 7 lie."""

_FITS = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}
"""What ggml's symmetric blocks hold: number = scale * code."""


@dataclass(frozen=True)
class Integers:
    """How codes and scales lie.

    kind: "gptq", "gptq_v2", "awq", "packed" or "int" (plain int8); bits: of a code; group: columns that share a scale,
    0 for all of a row (or of the matrix); symmetric: what the config says of zero points; fine: whether the scales'
    type has few enough bits for binary16 (`blocks` looks at the values); ordered: whether the config says that columns
    were put into groups in another order than they lie in.
    """

    kind: str
    bits: int
    group: int
    symmetric: bool
    fine: bool = True
    ordered: bool = False

    @property
    def name(self) -> str:
        method = {"gptq_v2": "gptq", "packed": "compressed-tensors", "int": "compressed-tensors"}
        return f"{method.get(self.kind, self.kind)}-int{self.bits}" + (f"-g{self.group}" if self.group else "-channel")

    @property
    def kernel_format(self) -> str | None:
        if not self.fine or self.group % BLOCK:
            return None
        if self.bits == 8:
            return "Q8_0" if self.symmetric else None
        return "Q4_0" if self.symmetric else "Q5_0"

    @property
    def needs(self) -> frozenset[str]:
        """Every file of GPTQ has zero points, symmetric ones too."""
        zeros = {"zeros"} if self.kind.startswith("gptq") or not self.symmetric else set()
        return frozenset({"scales"} | zeros | ({"order"} if self.ordered else set()))

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        n = 32 // self.bits
        rows, columns = parts["codes"].shape
        match self.kind:
            case "gptq" | "gptq_v2":
                shape = (columns, rows * n)
            case "awq":
                shape = (columns * n, rows)
            case "packed":
                shape = (rows, columns * n)
            case _:
                shape = (rows, columns)
        out, width = shape
        if self.group and width % self.group:
            raise ValueError(f"{width} columns do not divide into groups of {self.group}")
        groups = width // self.group if self.group else 1
        turned = self.kind in ("gptq", "gptq_v2", "awq")
        scales = (groups, out) if turned else (out, groups)
        found = parts["scales"].shape
        if found != scales and not (self.kind in ("int", "packed") and groups == 1 and found in ((1,), (), (out,))):
            raise ValueError(f"its scales have shape {list(found)}, expected {list(scales)}")
        if (zeros := parts.get("zeros")) is not None:
            match self.kind:
                case "packed":
                    wanted: tuple[int, ...] = (-(-out // n), groups)
                case "int":
                    wanted = found
                case _:
                    wanted = (groups, out // n)
            if zeros.shape != wanted:
                raise ValueError(f"its zero points have shape {list(zeros.shape)}, expected {list(wanted)}")
        if (order := parts.get("order")) is not None and order.shape != (width,):
            raise ValueError(f"its order has shape {list(order.shape)}, expected {[width]}")
        return shape

    def check(self, parts: Parts) -> None:
        check_scales(parts["scales"].float(), 1 << self.bits)
        shape, n = parts["codes"].shape, 32 // self.bits
        if (stated := parts.get("shape")) is not None and stated.tolist() != [shape[0], shape[1] * n]:
            raise ValueError(f"it says it has shape {stated.tolist()}, its codes make {[shape[0], shape[1] * n]}")
        order = self._order(parts)
        if order is not None and len(order):
            groups = parts["scales"].shape[0 if self.kind.startswith("gptq") else -1]
            if not 0 <= int(order.min()) <= int(order.max()) < groups:
                raise ValueError(f"a column belongs to group {int(order.max())} of {groups}")

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        codes = self._codes(parts, first, last)
        zeros, scales = self._zeros(parts, first, last), self._scales(parts, first, last)
        if (order := self._order(parts)) is not None:
            zeros = zeros[:, order] if zeros.shape[1] > 1 else zeros
            scales = scales[:, order]
        elif scales.shape[1] > 1:
            each = codes.shape[1] // scales.shape[1]
            zeros = zeros.repeat_interleave(each, 1) if zeros.shape[1] > 1 else zeros
            scales = scales.repeat_interleave(each, 1)
        return (codes - zeros).float() * scales

    def blocks(self, parts: Parts) -> Blocks | None:
        """Blocks of the smallest format that holds the codes. None where a scale is no binary16 number, or a group no
        run of whole blocks."""
        scales = self._scales(parts, 0, self._out(parts))
        if scales.shape[1] > 1 and self.group % BLOCK:
            return None
        values, columns = self._values(parts)
        if values is None or values.shape[1] % BLOCK:
            return None
        out, width = values.shape
        part = values.reshape(out, width // BLOCK, BLOCK)
        each = scales.repeat_interleave(width // BLOCK // scales.shape[1], 1)
        each = torch.where((part == 0).all(2), 0.0, each)  # then the scale says nothing
        half = each.half()
        least, most = int(values.min()), int(values.max())
        fit = next((name for name, (low, high) in _FITS.items() if low <= least and most <= high), None)
        if fit is None or not bool((half.float() == each).all()):
            return None
        data = half.unsqueeze(2).view(torch.uint8).reshape(out, -1, 2)
        if fit == "Q8_0":
            body = part.to(torch.int8).view(torch.uint8)
        else:
            codes = (part + (8 if fit == "Q4_0" else 16)).to(torch.uint8)
            body = (codes[..., :16] & 15) | ((codes[..., 16:] & 15) << 4)
            if fit == "Q5_0":
                high = (codes >> 4).reshape(out, -1, 4, 8) << torch.arange(8, dtype=torch.uint8)
                body = torch.cat((high.sum(3).to(torch.uint8), body), 2)
        return Blocks(fit, torch.cat((data, body), 2).reshape(out, -1), columns)

    def _values(self, parts: Parts) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(code - zero) as int16 [out, in] with the columns of a group side by side, and the column that each was."""
        values = self._codes(parts, 0, self._out(parts))
        zeros, order = self._zeros(parts, 0, len(values)), self._order(parts)
        columns = None
        if order is not None:
            if bool((order[1:] < order[:-1]).any()):
                columns = torch.argsort(order, stable=True)
                values, order = values[:, columns], order[columns]
            groups = zeros.shape[1]
            if not torch.equal(order, torch.arange(groups).repeat_interleave(values.shape[1] // groups)):
                return None, None  # groups of other sizes than the config says
        zeros = zeros.repeat_interleave(values.shape[1] // zeros.shape[1], 1) if zeros.shape[1] > 1 else zeros
        return values - zeros, columns

    def _out(self, parts: Parts) -> int:
        shape = parts["codes"].shape
        return shape[1] * (32 // self.bits if self.kind == "awq" else 1) if self._turned else shape[0]

    @property
    def _turned(self) -> bool:
        return self.kind in ("gptq", "gptq_v2", "awq")

    def _codes(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        """int16 [last - first, in]."""
        codes = parts["codes"]
        match self.kind:
            case "gptq" | "gptq_v2":
                return unpack(codes[:, first:last], self.bits, 0).T.contiguous()
            case "awq":
                return self._awq(codes, first, last).T.contiguous()
            case "packed":
                return unpack(codes[first:last], self.bits, 1)
            case _:
                return codes[first:last].to(torch.int16)

    def _zeros(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        """int16 [last - first, groups or 1]."""
        zeros = parts.get("zeros")
        half = 1 << (self.bits - 1)
        match self.kind:
            case "gptq" | "gptq_v2":
                if zeros is None:
                    return torch.full((last - first, 1), half, dtype=torch.int16)
                n = 32 // self.bits
                words = unpack(zeros[:, first // n : -(-last // n)], self.bits, 1)
                found = words[:, first % n : first % n + last - first].T
                # One too small, and what was 0 then wrapped round: AutoGPTQ adds one and keeps `bits` bits.
                return (found + 1) & ((1 << self.bits) - 1) if self.kind == "gptq" else found
            case "awq":
                if zeros is None:
                    return torch.full((last - first, 1), half, dtype=torch.int16)
                return self._awq(zeros, first, last).T
            case "packed":
                if zeros is None:
                    return torch.full((last - first, 1), half, dtype=torch.int16)
                n = 32 // self.bits
                found = unpack(zeros[first // n : -(-last // n)], self.bits, 0)
                return found[first % n : first % n + last - first]
            case _:
                if zeros is None:
                    return torch.zeros(last - first, 1, dtype=torch.int16)
                return _per_row(zeros, first, last).to(torch.int16)

    def _scales(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        """float32 [last - first, groups or 1]."""
        scales = parts["scales"]
        return (scales[:, first:last].T if self._turned else _per_row(scales, first, last)).float()

    def _order(self, parts: Parts) -> torch.Tensor | None:
        order = parts.get("order")
        return None if order is None else order.to(torch.int64)

    def _awq(self, words: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """int16 [rows, last - first]."""
        n = 32 // self.bits
        found = unpack(words[:, first // n : -(-last // n)], self.bits, 1)
        found = found.reshape(len(found), -1, n)[:, :, list(_AWQ_ORDER)].reshape(len(found), -1)
        return found[:, first % n : first % n + last - first]


def unpack(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Codes of `bits` (2, 4 or 8) out of int32 words, lowest first, as int16; `dim` (0 or 1) becomes longer."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shape = (1, -1, 1) if dim == 0 else (1, 1, -1)
    codes = ((words.unsqueeze(dim + 1) >> shifts.reshape(shape)) & ((1 << bits) - 1)).to(torch.int16)
    rows, columns = words.shape
    n = 32 // bits
    return codes.reshape(rows * n, columns) if dim == 0 else codes.reshape(rows, columns * n)


def _per_row(scales: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """[rows, groups] of scales [out, groups], [out], [1] or []."""
    if scales.numel() == 1:
        return scales.reshape(1, 1).expand(last - first, 1)
    return scales.reshape(len(scales), -1)[first:last]
