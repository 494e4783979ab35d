"""bitsandbytes: nf4 and fp4 in blocks with a table of sixteen numbers, and int8 with a scale a row.

A 4-bit weight is a column of bytes, the first of two numbers in the high nibble; `absmax` has one number per block of
64, itself in bytes with a table and a scale where `bnb_4bit_use_double_quant` was set; a JSON beside it has shape and
block sizes. Source: bitsandbytes 0.45, functional.py (QuantState, dequantize_4bit, dequantize_blockwise).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.model.quant.encoding import Blocks, Encoding, Parts, StoredTensor, check_scales

BNB_ROLES = {
    ".weight.absmax": "scales",
    ".weight.quant_map": "table",
    ".weight.nested_absmax": "nested",
    ".weight.nested_quant_map": "nested_table",
    ".weight.quant_state.bitsandbytes__nf4": "state",
    ".weight.quant_state.bitsandbytes__fp4": "state",
    ".SCB": "scales",
    ".weight": "codes",
}


def bitsandbytes(stated: Mapping[str, Any]) -> Callable[[str, Mapping[str, StoredTensor]], Encoding | None]:
    """Raises ValueError for what is not read."""

    def choose(module: str, parts: Mapping[str, StoredTensor]) -> Encoding | None:
        if parts["codes"].format == "I8":
            if "scales" not in parts:
                raise ValueError(f"it lacks {module}.SCB")
            return Rows8()
        if parts["codes"].format != "U8":
            return None
        # Scales in bytes are codes themselves; others came without, whatever the config says of the rest.
        scales = parts.get("scales")
        return Table4(nested=scales is not None and scales.format == "U8" or "nested" in parts)

    return choose


@dataclass(frozen=True)
class Rows8:
    """int8 [out, in] times `SCB` [out] / 127."""

    name: str = "bitsandbytes-int8"

    @property
    def kernel_format(self) -> str | None:
        return None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scales"})

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        shape = parts["codes"].shape
        if len(shape) != 2 or parts["scales"].shape != (shape[0],):
            raise ValueError(f"its SCB has shape {list(parts['scales'].shape)}, expected {list(shape[:1])}")
        return shape

    def check(self, parts: Parts) -> None:
        check_scales(parts["scales"].float(), 2.0)

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        return parts["codes"][first:last].float() * (parts["scales"][first:last].float() / 127).unsqueeze(1)

    def blocks(self, parts: Parts) -> Blocks | None:
        return None


@dataclass(frozen=True)
class Table4:
    """Four-bit codes into the table that is stored with them. Its shape is stated in its data alone, so the tensor is
    a line of numbers to the planner, and takes its shape when it is read (`final_shape`). nested: whether its scales
    are codes into a table of their own."""

    nested: bool = False
    name: str = "bitsandbytes-4bit"

    @property
    def kernel_format(self) -> str | None:
        return None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scales", "table", "state", *(("nested", "nested_table") if self.nested else ())})

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        if parts["table"].shape != (16,):
            raise ValueError(f"its table has shape {list(parts['table'].shape)}, expected [16]")
        return (2 * parts["codes"].nbytes,)

    def check(self, parts: Parts) -> None:
        state, count = _state(parts), 2 * parts["codes"].numel()
        size = int(state["blocksize"])
        if size < 2 or size & (size - 1) or parts["scales"].numel() != -(-count // size):
            raise ValueError(f"{parts['scales'].numel()} scales for {count} numbers in blocks of {size}")
        if math.prod(int(n) for n in state["shape"]) != count:
            raise ValueError(f"it says it has shape {state['shape']}, it holds {count} numbers")
        check_scales(parts["table"].float(), 1.0)
        check_scales(_absmax(parts, state), float(parts["table"].float().abs().max()))

    def final_shape(self, parts: Parts) -> tuple[int, ...]:
        """What `expand` brings the line of numbers to."""
        return tuple(int(n) for n in _state(parts)["shape"])

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        state = _state(parts)
        codes = parts["codes"].reshape(-1)[first // 2 : -(-last // 2)]
        table = parts["table"].float()
        numbers = torch.stack((table[(codes >> 4).int()], table[(codes & 15).int()]), -1).reshape(-1)
        each = torch.arange(first, last) // int(state["blocksize"])
        return numbers[first % 2 : first % 2 + last - first] * _absmax(parts, state)[each]

    def blocks(self, parts: Parts) -> Blocks | None:
        return None


def _state(parts: Parts) -> dict[str, Any]:
    try:
        state = json.loads(bytes(parts["state"].tolist()))
        if not isinstance(state, dict) or not {"shape", "blocksize"} <= set(state):
            raise ValueError("no shape or blocksize")
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"its quant_state is damaged ({exc})") from exc
    return state


def _absmax(parts: Parts, state: Mapping[str, Any]) -> torch.Tensor:
    scales = parts["scales"]
    if "nested" not in parts:
        return scales.float()
    size, nested = int(state["nested_blocksize"]), parts["nested"].float()
    if size < 1 or len(nested) != -(-len(scales) // size):
        raise ValueError(f"{len(nested)} scales of {len(scales)} scales in blocks of {size}")
    return parts["nested_table"].float()[scales.int()] * nested.repeat_interleave(size)[: len(scales)] + float(
        state["nested_offset"]
    )
