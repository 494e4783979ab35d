"""A block half of whose every matrix lies in a second process, asked by torch.distributed over gloo.

Run as a program: `python -m tests.swarm.model.gloo_slices FILE` says whether what the two give together is what one
gives, and how many products the other process was asked for. FILE: where the two meet; it must not be there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import multiprocessing

from swarm.model.block import Block, load_block
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import Matrix
from swarm.model.quant.sliced import SlicedMatrix
from swarm.model.rows import Layout, no_commits
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, random_model, tiny_config

PLACES = [(CPU, 0.5), (torch.device("cpu", 0), 0.5)]
LAYOUT = Layout(scratch=8, context=32)
END = -1


class Far:
    """A slice in the other process. See matrix.py."""

    def __init__(self, here: Matrix, place: int) -> None:
        self.form: Format = here.form
        self.shape, self.kernel, self.nbytes = here.shape, here.kernel, 0
        self.place, self.asked = place, 0

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert bias is None
        self.asked += 1
        dist.send(torch.tensor([self.place, len(x)]), 1)
        dist.send(x.float().contiguous(), 1)
        out = torch.empty(len(x), self.shape[0])
        dist.recv(out, 1)
        return out.to(x.dtype)


def matrices(block: Block) -> list[SlicedMatrix]:
    """Those of the layers, in order."""
    found = [getattr(module, "matrix", None) for module in block.loaded.model.modules()]
    return [matrix for matrix in found if isinstance(matrix, SlicedMatrix)]


def block_in_slices() -> Block:
    return load_block(MemoryCheckpoint(random_model(tiny_config("llama"))), 0, 6, CPU, torch.float32, places=PLACES)


def logits(block: Block) -> torch.Tensor:
    kv = KVPool(block, 1 << 24).open(LAYOUT, 0, 6)
    return block.forward([Job(kv, no_commits(), certain([5, 17, 9, 3], 0, LAYOUT), None)])[0]


def meet(rank: int, file: str) -> None:
    dist.init_process_group("gloo", f"file://{file}", timedelta(seconds=60), world_size=2, rank=rank)


def serve(file: str) -> None:
    """The other process: multiplies by its slices until it is told to end."""
    held = [matrix.slices[1].matrix for matrix in matrices(block_in_slices())]
    meet(1, file)
    asked = torch.empty(2, dtype=torch.int64)
    while True:
        dist.recv(asked, 0)
        if int(asked[0]) == END:
            return
        matrix = held[int(asked[0])]
        x = torch.empty(int(asked[1]), matrix.shape[1])
        dist.recv(x, 0)
        dist.send(matrix.product(x, None).contiguous(), 0)


def main(file: str) -> None:
    other = multiprocessing.get_context("spawn").Process(target=serve, args=(file,))
    other.start()
    block = block_in_slices()
    expected = logits(block)
    meet(0, file)
    far = []
    for place, matrix in enumerate(matrices(block)):
        here, there = matrix.slices
        far.append(Far(there.matrix, place))
        object.__setattr__(matrix, "slices", (here, replace(there, matrix=far[-1])))
    found = logits(block)
    dist.send(torch.tensor([END, 0]), 1)
    other.join(60)
    print("equal", torch.equal(found, expected), "asked", sum(one.asked for one in far))


if __name__ == "__main__":
    main(sys.argv[1])
