"""How a machine would hold a model, and what its rows are there: what `swarm model show` says beside a model's numbers.

Bytes are those that planning counts (`model_shape`), from the manifest. Whether rows are computed with the same bits
in any company shows in a part that is loaded: the smallest one at the head, where its weights are here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from swarm.base.errors import ModelError
from swarm.base.events import Report, silent
from swarm.discovery.model_shape import model_shape, weight_bytes
from swarm.model.block import load_block
from swarm.model.dtype import choose_dtype, dtype_name
from swarm.model.exact import why_not
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest
from swarm.model.files.packable import stored_form
from swarm.model.files.schemes import Weight, weights_of
from swarm.model.kinds import MOST
from swarm.model.weights_as import choose_weights

_CPU = torch.device("cpu")


class OpensModels(Protocol):
    """Who has models; see `ModelStore.open`."""

    def open(
        self, ref: str, layers: tuple[int, int] | None = None, report: Report = silent, offline: bool = False
    ) -> Checkpoint: ...


@dataclass(frozen=True)
class HeldHere:
    """On this machine's CPU, by the defaults of `swarm join`.

    dtype         of rows, and of weights that are expanded
    packed        bytes of weights that stay in blocks, by how they are stored
    expanded      bytes of the others
    layer_bytes   of each layer, as planning counts
    """

    dtype: str
    packed: Mapping[str, int]
    expanded: int
    layer_bytes: tuple[int, ...]

    @property
    def told(self) -> str:
        parts = [f"{size / 1e6:.0f} MB {form} as stored" for form, size in self.packed.items()]
        parts += [f"{self.expanded / 1e6:.0f} MB in {self.dtype}"] if self.expanded else []
        return f"{(sum(self.packed.values()) + self.expanded) / 1e6:.0f} MB: {', '.join(parts)}"

    @property
    def layers_told(self) -> str:
        least, most = (f"{found(self.layer_bytes, default=0) / 1e6:.1f}" for found in (min, max))
        return f"{most} MB" if least == most else f"{least} to {most} MB"


def held_here(manifest: Manifest) -> HeldHere:
    """From the manifest alone. Raises ModelError for what cannot be held."""
    dtype, way = choose_dtype("auto", _CPU), choose_weights("auto", "auto", _CPU)
    packed: dict[str, int] = {}
    expanded = 0
    for weight in weights_of(manifest).values():
        count = weight_bytes(weight, manifest.config, dtype, way)
        if _stays(weight, count, dtype):
            packed[_name(weight)] = packed.get(_name(weight), 0) + count
        else:
            expanded += count
    ordered = dict(sorted(packed.items(), key=lambda item: -item[1]))
    return HeldHere(dtype_name(dtype), ordered, expanded, model_shape(manifest, dtype, way).layer_bytes)


def rows_here(store: OpensModels, ref: str, manifest: Manifest) -> str:
    """Whether rows of the first layers are computed here with the same bits in any company, or what stands against
    it; they are loaded as `swarm join` would. Never fetches."""
    first, last = manifest.ties.parts(0, manifest.n_layers)[0]
    if last > MOST:
        return f"not looked at: no part of it is smaller than {last} layers"
    try:
        checkpoint = store.open(ref, (first, last), offline=True)
    except ModelError:
        return "not looked at: the weights of its first layers are not on this machine"
    try:
        way = choose_weights("auto", "auto", _CPU)
        block = load_block(checkpoint, first, last, _CPU, choose_dtype("auto", _CPU), weights=way)
    except ModelError as exc:
        return f"none: {exc}"
    looked = f"layer {first}" if last - first == 1 else f"layers {first} to {last - 1}"
    reason = why_not(block)
    return f"the same bits in any company ({looked} looked at)" if reason is None else f"not exact: {reason}"


def _stays(weight: Weight, count: int, dtype: torch.dtype) -> bool:
    plain = stored_form(weight) is None and weight.encoding is None
    return not plain and count != math.prod(weight.entry.shape) * dtype.itemsize


def _name(weight: Weight) -> str:
    return weight.entry.format.removeprefix("gguf:")
