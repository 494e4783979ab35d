"""Weights on disk, one tensor at a time.

A checkpoint knows where every tensor lies. `read` maps just that tensor's bytes, turns them into the wanted dtype and
unmaps them, so a process that holds a third of a model has touched a third of its bytes. Tensors whose file is not on
this machine stay in the manifest and are refused when read.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gguf
import numpy as np
import torch

from swarm.base.errors import ModelError
from swarm.model.files.config_classes import config_class
from swarm.model.files.gguf_file import READABLE
from swarm.model.files.gguf_layout import layout
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.packable import packs, packs_encoded, stack_bytes, stack_shape
from swarm.model.files.safetensors_file import DTYPES, SMALL_FLOATS
from swarm.model.files.schemes import Weight, weights_of
from swarm.model.files.wrappers import is_wrapper, text_values
from swarm.model.quant.encoding import EncodedMatrix, Encoding, MovedColumns, Parts, expand, runs
from swarm.model.quant.floats import Float4
from swarm.model.quant.formats import blocks_format, find_format
from swarm.model.quant.matrix import PART_BYTES, Matrix, hold
from swarm.model.quant.native import library

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Place:
    """Stored bytes of one tensor: `offset` in bytes from the start of the file `path`."""

    path: Path
    offset: int


class RowSource(Protocol):
    """What a `RowTable` reads from."""

    manifest: Manifest

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor: ...

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None: ...


class FileCheckpoint:
    """A checkpoint whose tensors lie in files (safetensors, GGUF or blobs; the manifest's formats say how to decode).

    places: where the stored tensors that are on this machine lie, by name. Raises ModelError for a method of
    quantisation that is not read.
    """

    def __init__(self, manifest: Manifest, places: Mapping[str, Place]) -> None:
        self.manifest = manifest
        self.weights = weights_of(manifest)
        self.places = places
        self.bytes_read = 0

    @cached_property
    def config(self) -> PretrainedConfig:
        """For whoever builds the model. Raises ModelError for one that transformers refuses."""
        # Without it transformers would look for kernels and modules of its own: it gets plain tensors.
        plain = {key: value for key, value in self.manifest.config.items() if key != "quantization_config"}
        return make_config(plain, self.manifest.model)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = self.weights.get(name)
        if weight is not None and weight.encoding is not None:
            with self._parts(weight) as parts:
                return expand(name, weight.entry.shape, weight.encoding, parts, dtype)
        entry, place = self._find(name)
        mapped = _Mapped(place, 0, entry.nbytes, name)
        with mapped as data:
            self.bytes_read += entry.nbytes
            if (unpacked := _unpack(entry, data, self.manifest.config, dtype, done=mapped.let_go)) is not None:
                return unpacked
            if (copied := _copied(entry, data, dtype, mapped.let_go)) is not None:
                return copied
            tensor = decode(entry, data, self.manifest.config)
            # A copy in any case: nothing may keep pointing into the mapping.
            return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Rows int64 [n] of what `read` gives, the others untouched; None for a format whose rows are not read alone.
        Raises ModelError."""
        weight = self.weights.get(name)
        if weight is not None and weight.encoding is not None:
            return None
        entry, place = self._find(name)
        if len(entry.shape) != 2 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < entry.shape[0]):
            raise ModelError(f"rows of {name} were asked for that it does not have")
        with _Mapped(place, 0, entry.nbytes, name) as data:
            stored = DTYPES.get(entry.format)
            if stored is not None and stored.is_floating_point:
                return torch.frombuffer(data, dtype=stored).reshape(entry.shape)[rows].to(dtype, copy=True)
            return _unpack(entry, data, self.manifest.config, dtype, rows)

    def hold(self, name: str, without_kernel: bool) -> Matrix | None:
        """A matrix that stays as it is stored; None when it is stored as plain numbers, when its values lie in an
        order that takes unpacking to undo, or (unless `without_kernel`) when nothing here multiplies its format."""
        weight = self.weights.get(name)
        if weight is not None and weight.encoding is not None:
            return self._hold_encoded(weight, without_kernel)
        entry, place = self._find(name)
        if not packs(entry, self.manifest.config, without_kernel):
            return None
        form = find_format(entry.format)
        assert form is not None
        mapped = _Mapped(place, 0, entry.nbytes, name)
        with mapped as data:
            self.bytes_read += entry.nbytes
            lies = layout(name, entry.shape, self.manifest.config)
            held = hold(data, form, entry.shape, lies.rows, name, library(), mapped.let_go)
            return held if lies.columns is None else MovedColumns(held, lies.columns)

    def hold_stack(self, name: str, without_kernel: bool) -> tuple[Matrix, ...] | None:
        """As `hold`, of a tensor that is a stack of matrices, such as the experts of a projection: one of each."""
        weight = self.weights.get(name)
        stack = None if weight is None else stack_shape(weight)
        if weight is None or stack is None or stack_bytes(weight, self.manifest.config, without_kernel) is None:
            return None
        count, shape = stack[0], stack[1:]
        if isinstance(weight.encoding, Float4):
            with self._parts(weight) as parts:
                each = [weight.encoding.expert(parts, i) for i in range(count)]
                kept = [_keep(coding, own, shape, name, library() is not None, without_kernel) for coding, own in each]
            return tuple(matrix for matrix in kept if matrix is not None)
        entry, place = self._find(name)
        form = find_format(entry.format)
        assert form is not None
        mapped = _Mapped(place, 0, entry.nbytes, name)
        with mapped as data:
            self.bytes_read += entry.nbytes
            if shape[1] % form.block or entry.nbytes != math.prod(stack) // form.block * form.block_bytes:
                raise ModelError(f"{name} of shape {list(stack)} does not fit {entry.nbytes} bytes of {form.name}")
            held_before, kept_each = 0, []
            for part in data.reshape(count, -1):
                done = partial(mapped.let_go, before=held_before)
                kept_each.append(hold(part, form, shape, None, name, library(), done))
                held_before += part.nbytes
            return tuple(kept_each)

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        entry, place = self._find(name)
        if offset < 0 or length < 0 or offset + length > entry.nbytes:
            raise ModelError(f"bytes {offset}:{offset + length} of {name} wanted, which has {entry.nbytes}")
        with _Mapped(place, offset, length, name) as data:
            return data.tobytes()

    def _hold_encoded(self, weight: Weight, without_kernel: bool) -> Matrix | None:
        shape, kernel = weight.entry.shape, packs_encoded(weight, self.manifest.config)
        assert weight.encoding is not None
        if not (without_kernel or kernel) or len(shape) != 2:
            return None
        with self._parts(weight) as parts:
            return _keep(weight.encoding, parts, (shape[0], shape[1]), weight.entry.name, kernel, without_kernel)

    @contextlib.contextmanager
    def _parts(self, weight: Weight) -> Iterator[dict[str, torch.Tensor]]:
        """The stored tensors of a weight, by role, while the `with` block runs."""
        with contextlib.ExitStack() as stack:
            parts = {}
            for role, stored in weight.parts.items():
                entry, place = self._find(stored.name)
                data = stack.enter_context(_Mapped(place, 0, entry.nbytes, entry.name))
                self.bytes_read += entry.nbytes
                if entry.format == "gguf:F32":
                    parts[role] = torch.from_numpy(data.view(np.float32)).reshape(entry.shape)
                elif find_format(entry.format) is not None:  # blocks stay blocks
                    parts[role] = torch.from_numpy(data).reshape(entry.shape[0], -1)
                else:
                    parts[role] = decode(entry, data, {})
            yield parts

    def _find(self, name: str) -> tuple[TensorEntry, Place]:
        entry, place = self.manifest.entries.get(name), self.places.get(name)
        if entry is None:
            raise ModelError(f"{self.manifest.model} has no tensor {name}; is the file complete?")
        if place is None:
            raise ModelError(f"{name} of {self.manifest.model} is not on this machine; pull its layers first")
        return entry, place


def _keep(
    encoding: Encoding, parts: Parts, shape: tuple[int, int], name: str, kernel: bool, without_kernel: bool
) -> Matrix | None:
    """A matrix in a kernel's blocks where it fits one (`kernel`: should), else (`without_kernel`) as its parts."""
    try:
        encoding.check(parts)
        blocks = encoding.blocks(parts) if kernel else None
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as exc:
        raise ModelError(f"{name} cannot be unpacked: {exc}: pull it again") from exc
    if blocks is not None and (form := blocks_format(blocks.format)):
        held = hold(blocks.data.numpy().reshape(-1), form, shape, None, name, library())
        return held if blocks.columns is None else MovedColumns(held, blocks.columns)
    if not without_kernel:
        return None
    return EncodedMatrix(encoding, {role: part.clone() for role, part in parts.items()}, shape)


def decode(entry: TensorEntry, data: np.ndarray[Any, np.dtype[np.uint8]], config: Mapping[str, Any]) -> torch.Tensor:
    """Stored bytes to a tensor of the entry's shape; may share memory with `data`. Raises ModelError."""
    if (dtype := DTYPES.get(entry.format, SMALL_FLOATS.get(entry.format))) is not None:
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(entry.shape)
    kind = entry.format.removeprefix("gguf:")
    try:
        values = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError) as exc:
        raise ModelError(f"{entry.name} is stored as {entry.format}, which cannot be read; use another file") from exc
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(entry.shape)
    return layout(entry.name, entry.shape, config).apply(tensor)


def _unpack(
    entry: TensorEntry,
    data: np.ndarray[Any, np.dtype[np.uint8]],
    config: Mapping[str, Any],
    dtype: torch.dtype,
    some: torch.Tensor | None = None,
    done: Callable[[int], None] | None = None,
) -> torch.Tensor | None:
    """A matrix of GGUF blocks as `dtype`, some rows at a time: in float32 the table of a large vocabulary alone takes
    gigabytes. some: these rows of it alone. done: told between two parts how many bytes, from the first on, are not
    read again. None for what is no such matrix. Raises ModelError for scales that are not finite."""
    form = find_format(entry.format)
    if form is None or len(entry.shape) != 2 or form.name not in READABLE:
        return None
    lies = layout(entry.name, entry.shape, config)
    if lies.transposed:
        return None
    rows, columns = entry.shape
    if columns % form.block or entry.nbytes != rows * (columns // form.block) * form.block_bytes:
        raise ModelError(f"{entry.name} of shape {list(entry.shape)} does not fit {entry.nbytes} bytes of {form.name}")
    stored, order = data.reshape(rows, -1), lies.rows
    if some is not None:
        order, rows = some if order is None else order[some], len(some)
    out = torch.empty(rows, columns, dtype=dtype)
    for first, last in runs(rows, columns):
        part = stored[first:last] if order is None else stored[order[first:last].numpy()]
        form.check_scales(part, entry.name)
        if form.name == "Q8_0":
            numbers = _of_bytes(part, form.block)
        else:
            values = gguf.dequantize(part, gguf.GGMLQuantizationType(form.number))
            numbers = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(last - first, columns)
        out[first:last] = lies.finish(numbers)
        if done is not None and order is None:  # in another order any row may be any part's
            done(last * stored.shape[1])
    return out


def _copied(
    entry: TensorEntry, data: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype, done: Callable[[int], None]
) -> torch.Tensor | None:
    """A large tensor of plain numbers as `dtype`, some at a time, so that it is not in memory twice; None for others.
    done: as of `_unpack`."""
    stored = DTYPES.get(entry.format)
    fits = stored is not None and entry.nbytes == math.prod(entry.shape) * stored.itemsize
    if stored is None or not stored.is_floating_point or not fits or entry.nbytes <= PART_BYTES:
        return None
    source, out = torch.frombuffer(data, dtype=stored), torch.empty(entry.shape, dtype=dtype)
    flat, step = out.view(-1), PART_BYTES // stored.itemsize
    for first in range(0, len(source), step):
        flat[first : first + step] = source[first : first + step]
        done(min(first + step, len(source)) * stored.itemsize)
    return out


def _of_bytes(part: np.ndarray[Any, np.dtype[np.uint8]], block: int) -> torch.Tensor:
    """Q8_0 as float32 [rows, columns], to the bit as the gguf library does it, which takes 16 rows at a time in Python:
    four times as long for the embedding that every requester looks into."""
    blocks = torch.from_numpy(np.ascontiguousarray(part)).reshape(len(part), -1, block + 2)
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    return (blocks[..., 2:].view(torch.int8).float() * scales).reshape(len(part), -1)


class RowTable:
    """Rows of a matrix, each read from a checkpoint when it is first asked for: an embedding, of which a text uses a
    thousandth. Thread-safe: rows that two ask for at once are written twice, with the same numbers."""

    def __init__(self, checkpoint: RowSource, name: str, dtype: torch.dtype) -> None:
        self._checkpoint, self._name = checkpoint, name
        rows, columns = checkpoint.manifest.entries[name].shape
        # Pages that nothing is written to take no memory.
        words = np.zeros((rows, columns), {2: np.int16, 4: np.int32}[dtype.itemsize])
        self._rows = torch.from_numpy(words).view(dtype)
        self._known = torch.zeros(rows, dtype=torch.bool)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """[n, columns] of row numbers int64 [n]. Raises ModelError, and IndexError for a row that is not there."""
        lacking = ids[~self._known[ids]]
        if len(lacking):
            found = self._checkpoint.read_rows(self._name, lacking, self._rows.dtype)
            if found is None:  # stored in a way that is unpacked as a whole
                self._rows.copy_(self._checkpoint.read(self._name, self._rows.dtype))
                self._known.fill_(True)
            else:
                self._rows[lacking] = found
                self._known[lacking] = True
        return self._rows[ids]


class _Mapped:
    """Bytes [offset, offset + length) after a place, mapped while the `with` block runs."""

    def __init__(self, place: Place, offset: int, length: int, name: str) -> None:
        self.start, self.length = place.offset + offset, length
        self.path, self.name = place.path, name
        self.map: mmap.mmap | None = None
        self._gone = 0

    def __enter__(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        lead = self.start % mmap.ALLOCATIONGRANULARITY
        if not self.length:
            return np.zeros(0, np.uint8)
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.start + self.length:
                    raise ModelError(f"{self.path} is shorter than when it was pulled: pull the model again")
                # Copy-on-write, because torch wants to write to what it wraps; no page is ever written.
                self.map = mmap.mmap(
                    file.fileno(), lead + self.length, offset=self.start - lead, access=mmap.ACCESS_COPY
                )
        except OSError as exc:
            raise ModelError(f"cannot read {self.name} from {self.path}: {exc.strerror}") from exc
        return np.frombuffer(self.map, np.uint8)[lead : lead + self.length]

    def let_go(self, length: int, before: int = 0) -> None:
        """Give back the memory of the first `before + length` bytes, as far as those are whole pages. They stay where
        they are and are read from the file again if asked for."""
        if self.map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        lead = self.start % mmap.ALLOCATIONGRANULARITY
        stop = (lead + before + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > self._gone:
            self.map.madvise(mmap.MADV_DONTNEED, self._gone, stop - self._gone)
            self._gone = stop

    def __exit__(self, *exc: object) -> None:
        # Dropping the reference unmaps as soon as no array points into it; closing would fail while one does.
        self.map = None


def make_config(values: Mapping[str, Any], model: str) -> PretrainedConfig:
    """The transformers config of an architecture. Code shipped with a model is never run. Raises ModelError."""
    if is_wrapper(values):
        values = text_values(values, model)
    kind = values.get("model_type")
    found = config_class(kind)
    if found is None:
        raise ModelError(f"{model} is of type {kind!r}, which this transformers does not know; try a newer one")
    try:
        config = found.from_dict(_floats(values))
    except Exception as exc:  # config classes validate in ways of their own
        raise ModelError(f"the config of {model} does not fit its type {kind}: {exc}".splitlines()[0]) from exc
    return config


def _floats(value: Any) -> Any:
    """JSON has no infinities: transformers writes `{"__float__": "Infinity"}` for one, and its `from_dict` does not
    read it back."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _floats(item) for key, item in value.items()}
    return [_floats(item) for item in value] if isinstance(value, list | tuple) else value
