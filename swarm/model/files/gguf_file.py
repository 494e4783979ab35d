"""Headers of GGUF files, read with bounds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader builds a view per
array element (a second for a vocabulary) and loops without end on a damaged count, so the header is parsed here;
block sizes and dequantisation are the package's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf

from swarm.base.errors import ModelError

MAX_HEADER = 256 << 20
"""Bytes of metadata and tensor descriptions that are read at most."""

MAX_ARRAY = 4 << 20
"""Elements of one metadata array; vocabularies have a few hundred thousand."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


READABLE = frozenset(
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S "
    "IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4".split()
)
"""Types of weights that can be unpacked; the `gguf` package names others too (integers, Q8_K of activations, Q1_0)."""


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's place: `shape` rows first; `offset` in bytes from the start of the file `path`."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int
    path: Path


@dataclass(frozen=True)
class GGUFHeader:
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class _Cursor:
    """Reads forward in a buffer; every read is checked against its end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError(f"{count} bytes wanted at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("<Q"))).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        item, count = self.number("<I"), self.number("<Q")
        if count > MAX_ARRAY:
            raise ValueError(f"an array of {count} elements")
        if item == _STRING:
            return [self.text() for _ in range(count)]
        form = _SCALARS[item]  # arrays of arrays do not occur in model files
        return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))


def read_header(path: Path) -> GGUFHeader:
    """Metadata and tensor places of a GGUF file. Raises ModelError naming the file if it is damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(min(size, MAX_HEADER))
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}") from exc
    return parse_header(data, size, path)


def parse_header(data: bytes, size: int, path: Path) -> GGUFHeader:
    """The header in the first bytes of a file of `size` bytes. Raises ModelError naming `path` if it is damaged."""
    try:
        return _parse(_Cursor(memoryview(data)), size, path)
    except (ValueError, KeyError, struct.error, MemoryError, OverflowError) as exc:
        raise ModelError(f"{path} is not a whole GGUF file ({exc}); fetch it again") from exc


def _parse(cursor: _Cursor, size: int, path: Path) -> GGUFHeader:
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, tensor_count, key_count = cursor.number("<I"), cursor.number("<Q"), cursor.number("<Q")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    found: dict[str, GGUFTensor] = {}
    for _ in range(tensor_count):
        name, tensor = _tensor(cursor, path)
        if name in found:
            raise ValueError(f"tensor {name} twice")
        found[name] = tensor
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or align <= 0 or align & (align - 1):
        raise ValueError(f"alignment {align}")
    start = -(-cursor.at // align) * align
    placed = {n: replace(t, offset=start + t.offset) for n, t in found.items()}
    for name, tensor in placed.items():
        if tensor.offset + tensor.nbytes > size:
            raise ValueError(f"{name} ends beyond the file's {size} bytes")
    return GGUFHeader(metadata, placed)


def _tensor(cursor: _Cursor, path: Path) -> tuple[str, GGUFTensor]:
    name = cursor.text()
    dims = cursor.number("<I")
    if dims > 8:
        raise ValueError(f"{name} has {dims} dimensions")
    shape = tuple(reversed([int(cursor.number("<Q")) for _ in range(dims)]))
    number = cursor.number("<I")
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"{name} is of type {number}, which this version does not know") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    elements = math.prod(shape)
    if not shape or shape[-1] % block:
        raise ValueError(f"{name} of shape {list(shape)} does not divide into blocks of {block}")
    return name, GGUFTensor(shape, kind.name, int(cursor.number("<Q")), elements // block * block_bytes, path)
