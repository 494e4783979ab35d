"""The kernel fingerprint: a digest of what a block of a model computes here on fixed rows and fixed weights.

Two nodes with one fingerprint have the same arithmetic for a model: the same products, the same order of sums, the
same rounding, whatever their processors and programs are called. It is measured, never taken from a version or a name.

What is computed: one layer of each kind that the model has (`kinds_of`), the last one with norm and head, at the
model's own shapes, in the type and the stored format that the node uses. Their weights are numbers counted out from a
seed, so that nodes of other layers have the same ones, and nobody needs a weight of the model to measure. The rows are
a prompt of more rows than the other shapes of attention begin at, a tree over cached positions, a far position of a
second session in the same forward, and one row alone. The layers are loaded by `load_block` and computed by
`Block.forward`, as everything else is; so a change of any of the code in between that changes a bit changes the
fingerprint.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PretrainedConfig

from swarm.base.errors import ModelError, SwarmError
from swarm.model.block import Block, load_block
from swarm.model.exact import why_not
from swarm.model.files.manifest import Manifest
from swarm.model.files.packable import packs, packs_encoded, stack_bytes, stack_shape, stored_form
from swarm.model.files.schemes import Weight, weights_of
from swarm.model.job import Job
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.quant.matrix import Matrix, hold
from swarm.model.quant.native import library
from swarm.model.rows import Commits, Layout, Rows, no_commits

FORMAT = b"wanswarm kernel fingerprint 1\0"
MOST_BYTES = 2 << 30
"""Of the weights of a layer, or of layers that stay together. Larger ones are not measured: a node at the brim of its
memory has no room for a layer more."""
MOST_KINDS = 6
_POOL = 65_521
"""Numbers that are counted out once and laid into every tensor again and again: a prime, so that no row of a matrix
equals the next. Drawing each number anew took forty times as long as computing with it."""
_LAYOUT = Layout(scratch=16, context=96)
_PROMPT = 70
"""Rows of the prompt: more than the 64 from which attention groups heads in another way."""

LoadLayers = Callable[["SeededCheckpoint", int, int], Block]


@dataclass(frozen=True)
class Fingerprint:
    """`digest`: 64 hex digits. `why_not`: what stands against rows whose bits do not depend on their company, None for
    nothing (`model.exact`)."""

    digest: str
    why_not: str | None

    @property
    def row_invariant(self) -> bool:
        """Do the bits of a row not depend on its company?"""
        return self.why_not is None


def fingerprint_of(
    manifest: Manifest,
    config: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    weights: str = "expanded",
    load: LoadLayers | None = None,
) -> Fingerprint:
    """Measure how this process computes a model in `dtype` on `device`, its weights held as `load_block` says.

    load: builds the block instead of `load_block`. Loads one layer of each kind, with those that it cannot be cut from,
    one after the other. Raises ModelError for a model that cannot be cut, whose layers are larger than MOST_BYTES, or
    for which memory is missing.
    """
    checkpoint = SeededCheckpoint(manifest, config)

    def usual(seeded: SeededCheckpoint, first: int, last: int) -> Block:
        return load_block(seeded, first, last, device, dtype, weights=weights)

    total = hashlib.sha256(FORMAT)
    against: str | None = None
    for first, last in parts_of(checkpoint):
        size = sum(checkpoint.layer_numbers(layer) for layer in range(first, last)) * dtype.itemsize
        named = f"layer {first}" if last == first + 1 else f"layers {first}-{last - 1}, which stay together,"
        if size > MOST_BYTES:
            raise ModelError(f"{named} of {manifest.model} takes {size >> 20} MiB, too much to be measured beside")
        try:
            block = (load or usual)(checkpoint, first, last)
            against = against or why_not(block)
            total.update(f"{block.computes_in} {last - 1} {against is None}\0".encode())
            for rows in _outputs(block):
                total.update(_bytes(rows))
        except SwarmError:
            raise
        except Exception as exc:  # of a class that serves with its own weights, and not with these, in ways of its own
            reason = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise ModelError(f"{named} of {manifest.model} cannot be measured: {reason}") from exc
    return Fingerprint(total.hexdigest(), against)


def kinds_of(checkpoint: SeededCheckpoint) -> list[int]:
    """One layer of each kind, at most MOST_KINDS: what they are stored in, shapes and the kind that the config says.
    The last layer, which brings norm and head along, and of each other kind the first that is not the model's first."""
    last = checkpoint.manifest.n_layers - 1
    named = getattr(checkpoint.config, "layer_types", None) or ()
    found = {checkpoint.signature(last, named): last}
    for layer in [*range(1, last), 0]:
        found.setdefault(checkpoint.signature(layer, named), layer)
    return sorted(found.values())[-MOST_KINDS:]


def parts_of(checkpoint: SeededCheckpoint) -> list[tuple[int, int]]:
    """The ranges that show these kinds: a layer, or with those that it cannot be cut from."""
    manifest = checkpoint.manifest
    parts = manifest.ties.parts(0, manifest.n_layers)
    wanted = kinds_of(checkpoint)
    return [(first, last) for first, last in parts if any(first <= layer < last for layer in wanted)]


class SeededCheckpoint:
    """`files.checkpoint.Checkpoint` of a model's shapes and formats, with numbers that are counted out."""

    def __init__(self, manifest: Manifest, config: PretrainedConfig) -> None:
        self.manifest, self.config, self.bytes_read = manifest, config, 0
        self._weights = weights_of(manifest)
        self._layers: dict[int, list[Weight]] = {}
        for name, weight in self._weights.items():
            if found := re.search(r"\.(\d+)\.", name):
                self._layers.setdefault(int(found[1]), []).append(weight)
        words = np.random.PCG64(20_261_128).random_raw(_POOL)
        self._bytes = words.view(np.uint8)
        self._numbers = torch.from_numpy(((words >> 48).astype(np.float32) - 32_768) / 32_768)

    def signature(self, layer: int, named: Sequence[object]) -> tuple[object, ...]:
        """What makes a layer one of a kind."""
        parts = sorted((_part(w.entry.name), w.entry.shape, w.entry.format) for w in self._layers.get(layer, ()))
        return (named[layer] if layer < len(named) else "", *parts)

    def layer_numbers(self, layer: int) -> int:
        """How many numbers the weights of a layer are."""
        return sum(int(np.prod(weight.entry.shape)) for weight in self._layers.get(layer, ()))

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Counted numbers of the tensor's shape: of matrices evenly within what keeps rows as large as they were, of
        vectors close to 1."""
        entry = self._find(name).entry
        shape = entry.shape
        count = int(np.prod(shape))
        if entry.format.startswith("I"):  # numbers of experts by token: as many of them as a token has, each once
            places = torch.arange(count)
            return ((places + places // shape[-1]) % shape[-1]).reshape(shape)
        start = self._start(name)
        if len(shape) < 2:
            return (1.0 + 0.125 * _laid(self._numbers, start, count)).reshape(shape).to(dtype)
        pool = (self._numbers * (3.0 / shape[-1]) ** 0.5).to(dtype)
        return _laid(pool, start, count).reshape(shape)

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def hold(self, name: str, without_kernel: bool) -> Matrix | None:
        """Counted bytes in the tensor's own format, where a kernel multiplies by it."""
        weight = self._find(name)
        entry, encoding = weight.entry, weight.encoding
        if encoding is not None:
            keeps = packs_encoded(weight, self.manifest.config)
        else:
            keeps = packs(entry, self.manifest.config, without_kernel)
        form = stored_form(weight) if keeps else None
        if form is None:
            return None
        size = entry.shape[0] * (entry.shape[1] // form.block) * form.block_bytes
        start = self._start(name)
        stored = np.resize(np.roll(self._bytes, -start), size)
        form.settle_scales(stored)
        return hold(stored, form, entry.shape, None, name, library())

    def hold_stack(self, name: str, without_kernel: bool) -> tuple[Matrix, ...] | None:
        """As `hold`, of a stack of matrices: counted bytes for each of them."""
        weight = self._find(name)
        stack = stack_shape(weight)
        if stack is None or stack_bytes(weight, self.manifest.config, without_kernel) is None:
            return None
        form = stored_form(weight)
        if form is None:
            return None
        count, shape = stack[0], stack[1:]
        stored = np.resize(np.roll(self._bytes, -self._start(name)), math.prod(stack) // form.block * form.block_bytes)
        form.settle_scales(stored)
        return tuple(hold(part, form, shape, None, name, library()) for part in stored.reshape(count, -1))

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        """There is nothing to give to others. Raises ModelError."""
        raise ModelError(f"{name} of counted numbers is nobody's weight")

    def _find(self, name: str) -> Weight:
        if (weight := self._weights.get(name)) is None:
            raise ModelError(f"{self.manifest.model} has no tensor {name}")
        return weight

    @staticmethod
    def _start(name: str) -> int:
        """Where in the pool a tensor begins: by its name without the layer's number, so that all layers are alike."""
        return int.from_bytes(hashlib.sha256(_part(name).encode()).digest()[:4], "big") % _POOL


def _part(name: str) -> str:
    """A tensor's name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", name, count=1)


def _laid(pool: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """`count` numbers of the pool from `start` on, beginning again at its end."""
    whole = torch.roll(pool, -start)
    return whole.repeat(-(-count // len(pool)))[:count] if count > len(pool) else whole[:count].clone()


@torch.inference_mode()
def _outputs(block: Block) -> Iterator[torch.Tensor]:
    """What a block makes of the rows, forward by forward."""
    pool = KVPool(block, 1 << 62)
    one, other = (pool.open(_LAYOUT, block.first, block.last) for _ in range(2))
    try:
        for jobs in _forwards(block, one, other):
            yield from block.forward(jobs)
    finally:
        one.close()
        other.close()


def _forwards(block: Block, one: SessionKV, other: SessionKV) -> Iterator[list[Job]]:
    """A prompt; a tree behind it, with a far chain of another session; one row behind a commit; and it alone again."""
    far = max(_PROMPT, block.loaded.positions - 8)
    yield [_job(block, one, _committed(range(_PROMPT)))]
    tree = _drafted([(0, ()), (1, (0,)), (2, (0,)), (3, (0, 1)), (9, (0, 2))], _PROMPT)
    chain = _drafted([(0, ()), (1, (0,)), (2, (0, 1))], far, 0)
    yield [_job(block, one, tree), _job(block, other, chain)]
    kept = Commits(np.asarray([0, 1], np.uint32), np.asarray([_PROMPT, _PROMPT + 1], np.uint32))
    yield [_job(block, one, _committed([_PROMPT + 2]), kept)]


def _job(block: Block, kv: SessionKV, rows: Rows, commits: Commits | None = None) -> Job:
    hidden = None
    if not block.head:
        source = np.random.PCG64(len(rows)).random_raw(len(rows) * block.hidden_size)
        numbers = torch.from_numpy(((source >> 48).astype(np.float32) - 32_768) / 16_384)
        hidden = numbers.reshape(len(rows), -1).to(block.device, block.dtype)
    rows.token[:] %= block.vocab_size
    return Job(kv, no_commits() if commits is None else commits, rows, hidden)


def _committed(positions: Sequence[int]) -> Rows:
    at = np.asarray(positions, np.uint32)
    ancestors = np.zeros((len(at), _LAYOUT.scratch // 8), np.uint8)
    return Rows(_LAYOUT.scratch + at, at, at + 1, ancestors, (7 * at + 3).astype(np.int32), np.ones(len(at), bool))


def _drafted(nodes: Sequence[tuple[int, tuple[int, ...]]], first: int, prefix: int | None = None) -> Rows:
    """Rows in scratch slots: (slot, slots of its ancestors), a level deeper than its ancestors are many."""
    slots = np.asarray([slot for slot, _ in nodes], np.uint32)
    depth = np.asarray([len(above) for _, above in nodes], np.uint32)
    seen = np.zeros((len(nodes), _LAYOUT.scratch), np.uint8)
    for row, (slot, above) in enumerate(nodes):
        seen[row, [slot, *above]] = 1
    before = np.full(len(nodes), first if prefix is None else prefix, np.uint32)
    tokens = (11 * slots + 5).astype(np.int32)
    bits = np.packbits(seen, axis=1, bitorder="little")
    return Rows(slots, first + depth, before, bits, tokens, np.ones(len(nodes), bool))


def _bytes(rows: torch.Tensor) -> memoryview:
    return rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
