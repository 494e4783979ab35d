"""What torch prepares for every number of rows that it meets is kept for the latest few alone."""

from __future__ import annotations

import subprocess
import sys

GROWS = """
import torch
from pathlib import Path
from torch import nn
from swarm.model.blocked import block_linears, can_block
from swarm.model.kernels import KERNELS_KEPT

if can_block(torch.device("cpu"), torch.float32):
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    block_linears(model)
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    for rows in range(1, 2 * KERNELS_KEPT):
        model(torch.zeros(rows, 64))
    full = resident()
    for rows in range(2 * KERNELS_KEPT, 5 * KERNELS_KEPT):
        model(torch.zeros(rows, 64))
    print(resident() - full)
else:
    print(0)
"""


def test_a_node_does_not_grow_with_the_lengths_of_prompts() -> None:
    """768 more kernels take 285 MB where all are kept. A process of its own: the bound is read once."""
    done = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, timeout=100, check=True)
    assert int(done.stdout) < 64 << 20
