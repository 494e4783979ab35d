"""Whether the kernels' products by a matrix unit (AMX) have the bits of the portable ones, tried when they are loaded.

Such a unit is in few processors, and none was at hand when its kernel was written: the kernel is tested with its
instructions carried out in software. So where there is one, every format is multiplied once in both ways first.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch

from swarm.model.quant.formats import Format, blocks_format
from swarm.model.quant.native import AMX, ISAS, Library, Operand

COLUMNS, OUTPUTS = 512, 40
"""Of the matrices tried: two blocks of 256, and a panel of which half is empty."""

ROWS = 39
"""Of x: twice sixteen that the unit takes together, and seven that it leaves to vectors."""


def formats(lib: Library) -> list[Format]:
    """Those that have kernels and whose rows are rounded to bytes."""
    names = [kind.name for kind in gguf.GGMLQuantizationType] + ["NVFP4_ROWS"]
    found = [form for name in names if (form := blocks_format(name)) is not None]
    return [form for form in found if lib.packed_bytes(form.number, OUTPUTS, COLUMNS) and not form.exact]


def first_difference(lib: Library, isa: int, portable: int = 0) -> str | None:
    """The first format whose products differ in a bit between the two instruction sets; None where all agree."""
    rng = np.random.default_rng(14)
    x = torch.from_numpy(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32))
    for form in formats(lib):
        stored = rng.integers(0, 256, (OUTPUTS, COLUMNS // form.block * form.block_bytes), dtype=np.uint8)
        form.settle_scales(stored)
        packed = torch.empty(lib.packed_bytes(form.number, OUTPUTS, COLUMNS), dtype=torch.uint8)
        lib.pack(form.number, stored.ctypes.data, None, (OUTPUTS, COLUMNS), packed)
        matrix = Operand(form.number, packed, OUTPUTS, None)
        if not torch.equal(*(lib.products([matrix], x, used)[0] for used in (isa, portable))):
            return form.name
    return None


def choose_isa(lib: Library) -> None:
    """Set aside a matrix unit whose bits differ; `lib.set_aside` then says so."""
    if lib.best_isa == AMX and (name := first_difference(lib, AMX)) is not None:
        lib.best_isa = AMX - 1
        lib.set_aside = f"{ISAS[AMX]} is not used: products of {name} have other bits than the portable ones"
