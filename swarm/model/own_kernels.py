"""Which fingerprints this machine's own kernels have: to recompute exactly what a node of one of them computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from swarm.base.errors import ModelError
from swarm.base.events import Report, silent
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.manifest import Manifest
from swarm.model.files.weights import make_config
from swarm.model.fingerprint import fingerprint_of
from swarm.model.quant.native import library

CPU = torch.device("cpu")


@dataclass(frozen=True)
class OwnKernels:
    """One way in which this CPU computes a model, and the fingerprint that it measured for it.

    dtype, weights  as `load_block` takes them; threads: of one operator
    row_invariant   the bits of a row do not depend on its company: what differs from them was computed otherwise
    """

    digest: str
    dtype: torch.dtype
    weights: str
    threads: int
    row_invariant: bool

    def load(self, checkpoint: Checkpoint, first: int, last: int, report: Report = silent) -> Block:
        """Layers [first, last) as these kernels compute them. Raises ModelError."""
        return load_block(checkpoint, first, last, CPU, self.dtype, report, weights=self.weights)

    @contextmanager
    def dividing(self) -> Iterator[None]:
        """Compute with as many threads as were measured."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class KernelsHere:
    """The ways of this CPU for one model, measured when they are first asked for, each once. Nothing of the model but
    its shapes is needed."""

    def __init__(self, manifest: Manifest, config: PretrainedConfig | None = None) -> None:
        self._manifest = manifest
        self._config = make_config(manifest.text_config, manifest.model) if config is None else config
        self._known: list[OwnKernels] = []
        self._left = _ways()

    def find(self, digest: str) -> OwnKernels | None:
        """The way with this fingerprint; None where this CPU has none."""
        found = next((one for one in self._known if one.digest == digest), None)
        while found is None and self._left:
            one = self._next()
            found = one if one is not None and one.digest == digest else None
        return found

    def all(self) -> frozenset[str]:
        """Every fingerprint of this CPU."""
        while self._left:
            self._next()
        return frozenset(one.digest for one in self._known)

    def _next(self) -> OwnKernels | None:
        dtype, weights, threads = self._left.pop(0)
        one = OwnKernels("", dtype, weights, threads, False)
        try:
            with one.dividing():
                measured = fingerprint_of(self._manifest, self._config, CPU, dtype, weights)
        except ModelError:
            return None  # a way that this CPU does not have is nobody's way here
        one = OwnKernels(measured.digest, dtype, weights, threads, measured.row_invariant)
        self._known.append(one)
        return one


def _ways() -> list[tuple[torch.dtype, str, int]]:
    """Types and forms of weights that nodes choose among, and threads, which decide about the order of some sums."""
    forms = [(torch.bfloat16, "expanded"), (torch.float32, "expanded")]
    if library() is not None:
        forms += [(torch.bfloat16, "auto"), (torch.float32, "auto")]
    threads = dict.fromkeys((torch.get_num_threads(), 1, 2))
    return [(dtype, weights, count) for count in threads for dtype, weights in forms]
