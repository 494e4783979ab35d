"""Tensors on the wire: a format name, a shape, and raw little-endian bytes.

float32, bfloat16 and float16 are the tensor's own bytes. int8 and fp8 (e4m3) carry one float32 scale per row (a row
is the last dimension) in front of the values: x ~ scale * value with scale = max|row| / 127 or / 448.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch

from swarm.base.errors import PeerError, UsageError
from swarm.net.channel.message import Body

MAX_DIMENSIONS = 4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
if hasattr(torch, "float8_e4m3fn"):
    _DTYPES["fp8"] = torch.float8_e4m3fn
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""What the scaled formats hold: their steps are larger than the rounding of what is computed."""

WIRE_FORMATS = tuple(_DTYPES)
"""Formats that this build of torch can read and write; "fp8" may be missing."""


def wire_nbytes(wire: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` in format `wire`. Raises UsageError for an unknown format."""
    dtype = _dtype(wire)
    values = math.prod(shape) * dtype.itemsize
    return values + (4 * math.prod(shape[:-1]) if wire in LARGEST else 0)


def encode_tensor(tensor: torch.Tensor, wire: str) -> tuple[dict[str, Any], Body]:
    """Header fields {"wire", "shape"} and body of `tensor` (floating, 1 to 4 dimensions, any device).

    A contiguous CPU tensor that has the wire's dtype already is not copied: the body is a view of its storage, so it
    must not be written to until the message has left. Raises UsageError for a format this build does not have.
    """
    dtype = _dtype(wire)
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise UsageError(f"expected a tensor of 1 to {MAX_DIMENSIONS} dimensions, found {len(shape)}")
    header = {"wire": wire, "shape": list(shape)}
    tensor = tensor.detach()
    if math.prod(shape) == 0:
        return header, b""
    if wire not in LARGEST:
        return header, _bytes_of(tensor.to(device="cpu", dtype=dtype))
    rows = tensor.to(torch.float32).reshape(-1, shape[-1])
    largest = rows.abs().amax(dim=1, keepdim=True)
    scales = torch.where(largest == 0, torch.ones_like(largest), largest / LARGEST[wire])
    values = (rows / scales).nan_to_num(0.0)
    values = values.round_().to(dtype) if wire == "int8" else values.to(dtype)
    return header, b"".join((_bytes_of(scales.cpu()), _bytes_of(values.cpu())))


def fits(tensor: torch.Tensor, wire: str) -> bool:
    """Whether `tensor` (finite, floating) is finite still in format `wire`: float16 ends at 65504; the scaled formats
    hold any size."""
    return wire in LARGEST or tensor.dtype == _dtype(wire) or bool(torch.isfinite(tensor.to(_dtype(wire))).all())


def decode_tensor_untrusted(
    header: Mapping[str, Any], body: Body, dtype: torch.dtype | None = None, max_bytes: int = 2**26
) -> torch.Tensor:
    """The tensor that `encode_tensor` described, on the CPU, as `dtype` (default: the wire's, float32 for scaled).

    Without a conversion the tensor shares the memory of a writable `body`. Raises PeerError unless format, shape and
    number of bytes agree and the body is at most `max_bytes`.
    """
    wire, shape = header.get("wire"), header.get("shape")
    if not isinstance(wire, str) or wire not in _DTYPES:
        raise PeerError(f"expected a wire format of {', '.join(WIRE_FORMATS)}, found {str(wire)[:40]!r}")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n <= 2**31 for n in shape)
    ):
        raise PeerError(f"expected a shape of 1 to {MAX_DIMENSIONS} sizes, found {str(shape)[:60]}")
    size = memoryview(body).nbytes
    expected = wire_nbytes(wire, tuple(shape)) if math.prod(shape) else 0
    if size != expected or size > max_bytes:
        raise PeerError(f"expected {expected} bytes (at most {max_bytes}) for a {wire} tensor {shape}, found {size}")
    if size == 0:
        return torch.empty(shape, dtype=dtype or (torch.float32 if wire in LARGEST else _DTYPES[wire]))
    if memoryview(body).readonly:
        body = bytearray(body)
    if wire not in LARGEST:
        plain = torch.frombuffer(body, dtype=_DTYPES[wire]).reshape(shape)
        return plain if dtype is None else plain.to(dtype)
    rows = math.prod(shape[:-1])
    scales = torch.frombuffer(body, dtype=torch.float32, count=rows).reshape(rows, 1)
    values = torch.frombuffer(body, dtype=_DTYPES[wire], offset=4 * rows).reshape(rows, shape[-1])
    return (values.to(torch.float32) * scales).reshape(shape).to(dtype or torch.float32)


def _dtype(wire: str) -> torch.dtype:
    if sys.byteorder != "little":
        raise UsageError("expected a little-endian machine; this one would send its numbers the wrong way round")
    if wire not in _DTYPES:
        raise UsageError(f"expected a wire format of {', '.join(WIRE_FORMATS)}, found {wire!r}")
    return _DTYPES[wire]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
