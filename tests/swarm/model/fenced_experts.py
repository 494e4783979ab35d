"""A pass of experts whose pages may not be read unless a row goes to them.

Prints how many rows go to, the bytes that may be read, the bytes of all, and how a child ended that went to another.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from swarm.model.quant.experts import PackedExperts, Stack
from swarm.model.quant.matrix import PackedMatrix, hold
from swarm.model.quant.native import library
from tests.swarm.model.test_quant import blocks, form_of


def apart() -> tuple[PackedExperts, list[list[tuple[int, int]]]]:
    """Twelve experts whose panels lie on pages of their own: (address, length) by expert."""

    config = Qwen3MoeConfig(hidden_size=256, moe_intermediate_size=256, num_experts=12, num_experts_per_tok=4)
    with torch.device("meta"):
        old = Qwen3MoeExperts(config)
    pages: list[list[tuple[int, int]]] = [[] for _ in range(12)]
    stacks = {}
    for name, rows in (("gate_up_proj", 512), ("down_proj", 256)):
        matrices = []
        for expert in range(12):
            form = form_of("Q4_K")
            made = hold(blocks(form, rows, 256, expert), form, (rows, 256), None, "m", library())
            assert isinstance(made, PackedMatrix)
            length = -(-made.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            data = torch.frombuffer(mmap.mmap(-1, length), dtype=torch.uint8)[: made.nbytes]
            data.copy_(made.data)
            pages[expert].append((data.data_ptr(), length))
            matrices.append(PackedMatrix(form, made.shape, data, made.lib))
        stacks[name] = Stack((tuple(matrices),))
    return PackedExperts(old, stacks), pages


def routed_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sixteen rows that go to some of the first five experts."""
    source = torch.Generator().manual_seed(4)
    routes = torch.rand(16, 5, generator=source).topk(4).indices
    return torch.randn(16, 256, generator=source), routes, torch.rand(16, 4, generator=source)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None, use_errno=True)
    experts, pages = apart()
    rows, routes, shares = routed_rows()
    want, used = experts(rows, routes, shares), set(routes.flatten().tolist())
    for expert, own in enumerate(pages):
        for place, length in own:
            if expert not in used and libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(length), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
    if not torch.equal(experts(rows, routes, shares), want):
        raise SystemExit("other bits")
    child = os.fork()
    if not child:
        routes[0, 0] = next(e for e in range(12) if e not in used)
        experts(rows, routes, shares)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    stacks = [matrix for stack in experts.stacks.values() for part in stack.parts for matrix in enumerate(part)]
    print(len(used), sum(m.nbytes for e, m in stacks if e in used), sum(m.nbytes for _, m in stacks), end)


if __name__ == "__main__":
    main()
