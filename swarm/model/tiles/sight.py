"""What the rows of one job see, as tensors on the device that attends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.rows import Rows


@dataclass(frozen=True, eq=False)
class DeviceSight:
    """position, prefix: int32 [n]; scratch: int32 [1], the number of scratch slots; place: int32, the position in each
    scratch slot; bits: uint8 [n, any], the scratch slots that each row sees, in eights and the lowest bit first.

    looks: how many scratch slots are looked at, 0 where no row sees any.
    """

    position: torch.Tensor
    prefix: torch.Tensor
    scratch: torch.Tensor
    place: torch.Tensor
    bits: torch.Tensor
    looks: int


def sight_of(rows: Rows, places: NDArray[np.int64], device: torch.device) -> DeviceSight:
    """places: the position in each scratch slot, these rows' own included. Raises ModelError for rows that see no path
    (`check_paths`)."""
    check_paths(rows, places)
    n, scratch = len(rows), len(places)
    numbers = np.concatenate([rows.position, rows.prefix, [scratch], places]).astype(np.int32)
    told = torch.from_numpy(numbers).to(device)
    looks = scratch if rows.ancestors.any() else 0
    bits = np.ascontiguousarray(rows.ancestors) if looks else np.zeros((n, 1), np.uint8)
    split = told[:n], told[n : 2 * n], told[2 * n : 2 * n + 1], told[2 * n + (1 if scratch else 0) :]
    return DeviceSight(*split, torch.from_numpy(bits).to(device), looks)


def check_paths(rows: Rows, places: NDArray[np.int64]) -> None:
    """Of the drafts that a row sees each must have a position of its own, behind what is committed and not behind the
    row: by its position a GPU's kernels find a draft. Raises ModelError."""
    row, slot = np.nonzero(np.unpackbits(rows.ancestors, axis=1, bitorder="little"))
    place = places[slot]
    outside = (place < rows.prefix[row]) | (place > rows.position[row])
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise ModelError(
            f"row {row[at]} at position {rows.position[row[at]]} behind {rows.prefix[row[at]]} committed ones sees a "
            f"draft at position {place[at]}; expected one between them: send the drafts of the row's own path alone"
        )
    pairs = row.astype(np.int64) << 32 | place
    if len(np.unique(pairs)) != len(pairs):
        raise ModelError("a row sees two drafts at one position; send the drafts of the row's own path alone")
