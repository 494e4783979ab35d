"""The kernels of this package behind one door, which opens where Triton is: what a block on a GPU is computed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from swarm.model.inorder import AttentionCall
from swarm.model.quant.on_device import has_triton
from swarm.model.tiles.sight import DeviceSight

KINDS = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
"""NVIDIA's compute capability from which Triton multiplies bfloat16."""


@runtime_checkable
class Seeing(Protocol):
    """Rows [start, stop) of a forward over one session, and what they see (`attention.Plan`)."""

    kv: Any
    start: int

    @property
    def stop(self) -> int: ...

    @property
    def write(self) -> slice | torch.Tensor: ...

    def sight(self) -> DeviceSight: ...


class RowTiles:
    """Products, sums and attention whose rows do not depend on each other."""

    def product(self, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """a [..., rows, columns] times b [..., outs, columns], leading sizes broadcast: [..., rows, outs] of their
        dtype. bias float32 [outs], added before the only rounding."""
        from swarm.model.quant.triton_dense import product

        ahead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        flat = [x.expand(*ahead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b)]
        found = product(flat[0], flat[1], None if bias is None else bias.float().contiguous(), a.dtype)
        return found.view(*ahead, a.shape[-2], b.shape[-2])

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As torch's, x [..., columns] and weight [outs, columns] of one of KINDS."""
        rows = x.reshape(-1, x.shape[-1])
        return self.product(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., 1]: sums of x [..., n]."""
        from swarm.model.tiles.sums import total

        return total(x)[..., None]

    def fits(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        """Whether the kernels take heads of these [1, heads, T, dim]."""
        return query.dtype in KINDS and query.dtype == key.dtype and query.shape[1] % key.shape[1] == 0

    def attend(self, jobs: Sequence[Seeing], asked: AttentionCall) -> torch.Tensor:
        """As `inorder.attend_in_order`: [1, T, heads, width]. A job's rows are written and read before the next one's
        are written: parts of one session may share a forward."""
        from swarm.model.tiles.slots import Looking, attend_slots

        looking = Looking(asked.scale, asked.span, asked.softcap, asked.sinks)
        parts = []
        for job in jobs:
            stores = [kept[asked.mine] for kept in job.kv.layer(asked.layer)]
            for store, given in zip(stores, (asked.key, asked.value), strict=True):
                if given is not None:
                    _write(store, job, given[0, :, job.start : job.stop])
            mine = asked.query[0, :, job.start : job.stop]
            parts.append(attend_slots(mine, stores[0], stores[1], job.sight(), looking))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def attend_latent(self, jobs: Sequence[Seeing], asked: AttentionCall, up: torch.Tensor, nope: int) -> torch.Tensor:
        """As `inorder.attend_latent_in_order`. up: [heads, nope + value, rank], what makes heads of a latent."""
        query = asked.query[0]
        taken = self.product(query[..., :nope], up[:, :nope].transpose(1, 2))
        seen = self.attend(jobs, replace(asked, query=torch.cat((taken, query[..., nope:]), -1)[None]))
        return self.product(seen[0].transpose(0, 1), up[:, nope:]).transpose(0, 1)[None]


def _write(store: torch.Tensor, job: Seeing, rows: torch.Tensor) -> None:
    if isinstance(job.write, slice):
        store[:, job.write] = rows
    else:
        store.index_copy_(1, job.write, rows)


def tiles_of(device: torch.device, dtype: torch.dtype) -> RowTiles | str:
    """The kernels for a device, tried there; or what keeps it from having them, in words for a user."""
    if device.type != "cuda":
        return f"no kernels for {device.type} whose rows do not depend on each other"
    if not has_triton():
        return "Triton is not installed, so products on the GPU follow the number of rows"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "products on a GPU of compute capability below 8.0 follow the number of rows"
    tiles = RowTiles()
    try:
        with torch.cuda.device(device):
            rows = torch.ones(2, 48, dtype=dtype, device=device)
            right = bool((tiles.linear(rows, rows, None) == 48).all()) and bool((tiles.total(rows) == 48).all())
    except Exception as exc:  # compilers fail in ways of their own: this machine then computes by torch
        return f"Triton computes nothing on this GPU ({(str(exc).splitlines() or [type(exc).__name__])[0]})"
    return tiles if right else "Triton computes wrongly on this GPU"
