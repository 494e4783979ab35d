"""Headers of safetensors files, read with bounds.

Format: 8 bytes little-endian header length, a JSON object {name: {dtype, shape, data_offsets: [begin, end]}}, then the
tensor data that the offsets count from (https://huggingface.co/docs/safetensors). Only the header is parsed here;
tensors are mapped one by one, because opening the file with the library maps all of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from swarm.base.errors import ModelError

MAX_HEADER = 100 << 20
"""Bytes; the limit of the format's reference implementation."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

SMALL_FLOATS: dict[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Types that mean something only beside scales."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `offset` bytes after the start of the file's tensor data."""

    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int


def read_header(path: Path) -> tuple[int, dict[str, Stored]]:
    """(start of the tensor data in bytes, tensors by name). Raises ModelError naming the file if it is damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(
                    f"{path} is not a whole safetensors file (header of {length} in {size} bytes); fetch it again"
                )
            header = file.read(length)
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}") from exc
    tensors = parse_header(header, str(path))
    start = 8 + length
    for name, stored in tensors.items():
        if start + stored.offset + stored.nbytes > size:
            raise ModelError(f"{path} is cut off: {name} ends beyond its {size} bytes; fetch it again")
    return start, tensors


def parse_header(header: bytes, where: str) -> dict[str, Stored]:
    """Tensors by name from the JSON of a header. Raises ModelError saying `where`."""
    try:
        items = json.loads(header)
        return {str(name): _stored(item) for name, item in items.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(f"{where} has a damaged safetensors header ({exc}); fetch it again") from exc


def _stored(item: dict[str, Any]) -> Stored:
    shape = tuple(int(d) for d in item["shape"])
    begin, end = (int(v) for v in item["data_offsets"])
    dtype = str(item["dtype"])
    if len(shape) > 8 or any(d < 0 for d in shape) or not 0 <= begin <= end:
        raise ValueError("impossible shape or offsets")
    known = DTYPES.get(dtype, SMALL_FLOATS.get(dtype))
    if known is not None and math.prod(shape) * known.itemsize != end - begin:
        raise ValueError(f"shape {list(shape)} of {dtype} does not fill {end - begin} bytes")
    return Stored(shape, dtype, begin, end - begin)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file. Raises OSError, as other writes do: the library has an error of its own for a full disk."""
    try:
        save_file(dict(tensors), path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
