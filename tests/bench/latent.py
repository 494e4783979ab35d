"""Latent attention both ways, by rows: what decides when slots are expanded. `python -m tests.bench.latent`.

Shapes of a quarter of DeepSeek V3's heads over 2,000 slots. Ratios within one run; medians.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from swarm.model.latent import Latent, LatentLinear, mark_latents

HEADS, RANK, ROPE, NOPE, VALUE = 32, 512, 64, 128, 128
SLOTS = 2000
ROWS = (1, 8, 32, 64, 128, 192, 256, 512)


class Attention(nn.Module):
    """The part of transformers' class that expands."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.kv_b_proj = nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False, dtype=dtype)

    def expand_kv(self, row: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As DeepSeek V3's."""
        both = self.kv_b_proj(row).view(1, row.shape[2], HEADS, -1).transpose(1, 2)
        key, value = both.split([NOPE, VALUE], -1)
        return torch.cat((key, rotated.expand(-1, HEADS, -1, -1)), -1), value


class Forced(Latent):
    """One way only."""

    always = False

    def expands(self, rows: int, slots: int) -> bool:
        return self.always


class Expanded(Forced):
    always = True


@torch.inference_mode()
def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = Attention(dtype)
        mark_latents(module)
        assert isinstance(module.kv_b_proj, LatentLinear)
        sizes = (HEADS, RANK, ROPE, NOPE, VALUE, module.kv_b_proj, module.expand_kv)
        entries = torch.randn(SLOTS, RANK + ROPE).to(dtype)
        for rows in ROWS:
            query, mask = torch.randn(HEADS, rows, NOPE + ROPE).to(dtype), torch.zeros(rows, SLOTS, dtype=dtype)
            spent: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(5):
                for way in (Forced, Expanded):
                    start = time.perf_counter()
                    way(*sizes).attend(query, entries, mask, 0.1)
                    spent[way.always].append(time.perf_counter() - start)
            absorbed, expanded = (statistics.median(spent[way]) * 1e3 for way in (False, True))
            print(f"{dtype} {rows:4d} rows: absorbed {absorbed:8.1f} ms, expanded {expanded:8.1f} ms, "
                  f"ratio {absorbed / expanded:5.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
