"""The short convolution of a row: its own input and those of the rows before it on its path."""

from __future__ import annotations

import numpy as np
import torch

from swarm.base.errors import ModelError
from swarm.model.linear.paths import Paths
from swarm.model.linear.store import ConvStore


def run_conv(store: ConvStore, paths: Paths, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of one job: writes their slots, gives float32 [n, channels]. inputs [n, channels], weight [channels, width].

    All rows at once: what a row needs of the same job is taken from `inputs`, the rest from slots.
    """
    n, width = len(paths.slot), store.shape.width
    before = paths.before(width - 1)
    mine = {int(slot): row for row, slot in enumerate(paths.slot)}
    taken = np.array([mine.get(int(slot), -1) for slot in before.ravel()], np.int64).reshape(before.shape)
    kept = np.unique(before[taken < 0])
    _check(store, kept)
    where = np.where(taken >= 0, taken, n + np.searchsorted(kept, before))
    old = store.inputs[0, torch.from_numpy(store.local(kept)).to(store.device)]
    source = torch.cat([inputs, old.to(inputs.dtype)]).float()
    taps = weight.float()
    out = source[:n] * taps[:, -1]
    index = torch.from_numpy(where).to(store.device)
    for back in range(width - 1):
        out += source[index[:, back]] * taps[:, width - 2 - back]
    for segment in paths.segments:
        rows = torch.from_numpy(segment.rows).to(store.device)
        if segment.newest:
            store.make_room(segment.oldest, segment.newest)
        store.put(segment.slots, [inputs[rows][None]])
    return out


def _check(store: ConvStore, slots: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Raises ModelError when an input is needed that was let go."""
    committed = slots[slots >= store.layout.scratch] - store.layout.scratch
    if len(committed) and int(committed.min()) < store.base:
        raise ModelError(
            f"a row wants a convolution's input at position {int(committed.min())}, they are kept from {store.base} "
            "on: begin the session anew"
        )
