"""Whether a block's rows are functions of bits: what may be compared bit for bit, and what may not.

A block is row-invariant when the hidden row after each of its layers at position p depends on nothing but the weights,
the kernels of this machine and the tokens of the row's own path up to p: not on other rows of the forward, on other
sessions, on where a prompt was cut into parts, on slots, on whether a row was drafted or committed, on where the model
was cut, or on the number of threads. Two such blocks with the same kernel fingerprint give the same bits, whatever
company each of them had.

It is looked at when a block is loaded, in two ways. Every product that a forward makes must go through kernels whose
rows do not depend on each other: torch's functions are watched, and one that adds up products is named. And random
rows must come out with the same bits alone and in company (`first_difference`), for what no list foresees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from swarm.model.guard import Cuttable
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.pairs import OVER_SLOTS, PRODUCTS, in_vectors
from swarm.model.quant.native import Library
from swarm.model.rows import Layout, Rows, no_commits
from swarm.model.tiles.watch import InTiles

_ADD_UP = frozenset(
    "linear matmul __matmul__ __rmatmul__ mm bmm mv addmm addbmm baddbmm einsum tensordot dot vdot inner "
    "scaled_dot_product_attention conv1d conv2d _grouped_mm grouped_mm solve_triangular".split()
)
"""Functions of torch whose sums may follow the number of rows."""
_TIMES = frozenset(("matmul", "__matmul__", "mm", "bmm"))
_OF_EACH = frozenset(
    "silu gelu sigmoid tanh softplus exp exp2 expm1 log log1p log2 logsigmoid log_sigmoid mish erf cos sin pow __pow__ "
    "selu elu celu quick_gelu".split()
)
"""Functions of single numbers that torch has in two forms: for whole vectors, and for what is left at the end."""
_OF_ROWS = frozenset("sum mean var std norm softmax log_softmax layer_norm rms_norm group_norm logsumexp".split())
_WATCHED = _ADD_UP | set(_TIMES) | _OF_EACH | _OF_ROWS | set(PRODUCTS) | set(OVER_SLOTS)
_COMPANY = 21
"""Rows of the forward that is compared with rows alone: more than any kernel takes at a time, and no round number."""
_WANTED = 7
"""At the tail logits of each so many'th row are compared: the head is a product like others, but a large one."""
_COMPANY_ON_DEVICE = 85
"""The same on a GPU, where more than 64 rows go another way through packed matrices."""
_LAYOUT = Layout(scratch=32, context=96)


def is_row_invariant(block: object) -> bool:
    """Are this block's rows invariant, as above? False wherever that was not established; never raises."""
    return why_not(block) is None


def why_not(block: object) -> str | None:
    """None for a row-invariant block, else what stands against it, in words for a user ("layers that keep a state",
    "no compiled kernels")."""
    return getattr(block, "why_not_exact", "this block does not say that its rows are invariant")


def writes_products(model: nn.Module) -> bool:
    """Are there matrices of a kind that a module multiplies by in its own code?"""
    owners = (m for m in model.modules() if not isinstance(m, nn.Embedding))
    return any(p.dim() > 1 for m in owners for p in m.parameters(recurse=False))


def weights_of(model: nn.Module) -> frozenset[int]:
    """Where the memory of a model's matrices begins."""
    return frozenset(p.untyped_storage().data_ptr() for p in model.parameters() if p.dim() > 1)


class OverSlots(Protocol):
    """Who says how the code that runs goes through slots: above 0, by itself and in the order of positions; by torch's
    functions and as they lie. taken_over: it is told that functions over slots are watched."""

    over_slots: int
    as_they_lie: int
    taken_over: bool


class InOrder(TorchFunctionMode):
    """While it is entered, products with weights that a model writes out itself (routers, experts) go through the
    kernels, and functions of single numbers take whole vectors of them: torch computes the odd ones at a tensor's end
    by other code, whose last bits differ.

    Products of rows with rows (`pairs.py`) are taken too, but for those of attention over slots as they lie, which is
    in no order; where classes go through slots themselves, softmaxes over them besides.

    weights: where the memory of the model's own weights begins. found: names of functions that added up products
    elsewhere. changed: whether anything was computed otherwise than without it.
    """

    def __init__(self, lib: Library, weights: Set[int] = frozenset(), slots: OverSlots | None = None) -> None:
        super().__init__()
        self._lib, self._weights, self._slots = lib, weights, slots
        self.found: list[str] = []
        self.changed = False
        self._names: dict[Any, str] = {}
        """Of functions that were called: their names, "" for those that are never taken over."""

    def __enter__(self) -> Self:
        if self._slots is not None:
            self._slots.taken_over = True
        super().__enter__()  # type: ignore[no-untyped-call]  # torch has no types there
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._slots is not None:
            self._slots.taken_over = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = self._names.get(func)
        if name is None:
            name = getattr(func, "__name__", "")
            name = self._names[func] = name if name in _WATCHED else ""
        if not name:
            return func(*args, **named)
        out: torch.Tensor | None = None
        slots = self._slots if self._slots is not None and not self._slots.as_they_lie else None
        if slots is not None and slots.over_slots and name in OVER_SLOTS:
            out = OVER_SLOTS[name](self._lib, args, named)
        elif func is functional.linear:
            out = self._linear(*args, **named)
        elif name in _OF_EACH:
            out = in_vectors(func, args, named)
        elif name in _OF_ROWS and args and isinstance(args[0], torch.Tensor) and not args[0].is_contiguous():
            out = func(args[0].contiguous(), *args[1:], **named)  # the order of a sum follows how numbers lie
        elif name in _TIMES and not named:
            out = self._times(*args)
        if out is None and slots is not None and name in PRODUCTS and not _of_one(name, args):
            out = PRODUCTS[name](self._lib, args, named)
        if out is not None:
            self.changed = True
            return out
        if name in _ADD_UP and not _of_one(name, args):
            self.found.append(name)
        return func(*args, **named)

    def _times(self, x: Any, weight: Any) -> torch.Tensor | None:
        """x [..., columns] times a weight [columns, outputs], or the other way round (Mamba's steps); with experts in
        front of both, one by one."""
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return None
        if self._is_weight(x) and x.dim() == 2 and weight.dim() == 3:
            found = self._linear(weight.transpose(1, 2), x)
            return None if found is None else found.transpose(1, 2)
        if not self._is_weight(weight):
            return None
        if weight.dim() == 2:
            return self._linear(x, weight.T)
        if weight.dim() != 3 or x.dim() != 3 or len(x) != len(weight):
            return None
        parts = [self._linear(rows, one.T) for rows, one in zip(x, weight, strict=True)]
        made = [part for part in parts if part is not None]
        return torch.stack(made) if made and len(made) == len(parts) else None

    def _is_weight(self, matrix: torch.Tensor) -> bool:
        return hasattr(matrix, "swarm_weight") or matrix.untyped_storage().data_ptr() in self._weights

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
        if weight.dim() == 2 and not weight.numel():  # sums of nothing: experts that every row goes to, of width 0
            nothing = x.new_zeros(*x.shape[:-1], weight.shape[0])
            return nothing if bias is None else nothing + bias
        kinds = {x.dtype, weight.dtype}
        fit = kinds in ({torch.float32}, {torch.bfloat16}) and weight.dim() == 2 and weight.device.type == "cpu"
        if not fit or weight.dtype == torch.bfloat16 and weight.shape[1] % 2:
            return None
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        wide = None if bias is None else bias.float().contiguous()
        return self._lib.linear(rows, weight, wide).view(*x.shape[:-1], weight.shape[0])


def _of_one(name: str, args: Sequence[Any]) -> bool:
    """A product whose sums have one term (rotary angles: frequencies times positions)."""
    return "matmul" in name and isinstance(args[0], torch.Tensor) and args[0].shape[-1] == 1


def stands_against(block: Cuttable, lib: Library | None, spans: Iterable[tuple[int, int]]) -> str | None:
    """Looks at these ranges of a block on a CPU: None, or what keeps its rows from being invariant."""
    if lib is None:
        return "no compiled kernels, or they were not asked for"
    for first, last in spans:
        part = block.view(first, last)
        with InOrder(lib) as watch:
            differs = first_difference(part)
        if (why := _told(first, last, watch.found, differs)) is not None:
            return why
    return None


def stands_against_on_device(block: Cuttable, watch: InTiles, spans: Iterable[tuple[int, int]]) -> str | None:
    """The same of a block on a GPU, whose forwards enter `watch`."""
    for first, last in spans:
        watch.found.clear()
        differs = first_difference(block.view(first, last), _COMPANY_ON_DEVICE)
        if (why := _told(first, last, watch.found, differs)) is not None:
            return why
    return None


def _told(first: int, last: int, found: Sequence[str], differs: int | None) -> str | None:
    if found:
        return f"layers {first} to {last - 1} add up by torch's {found[0]}"
    return None if differs is None else f"row {differs} of layers {first} to {last - 1} changes with its company"


@torch.inference_mode()
def first_difference(block: Cuttable, company: int = _COMPANY) -> int | None:
    """The first of some random rows whose bits change with their company; None if none does: a prompt at once, of
    `company` rows, against a row alone, some rows beside those of another session, and more as drafts among others that
    leave the text."""
    source = torch.Generator().manual_seed(block.first)
    given = torch.randn(company, block.hidden_size, generator=source).to(block.device, block.dtype)
    other = torch.randn(_COMPANY, block.hidden_size, generator=source).to(block.device, block.dtype)
    pool = KVPool(block, 1 << 62)
    kvs = [pool.open(_LAYOUT, block.first, block.last) for _ in range(3)]
    try:
        once = block.forward([_job(block, kvs[0], 0, company, given)])[0]
        parts = [block.forward([_job(block, kvs[1], 0, 1, given)])[0]]
        parts.append(block.forward([_job(block, kvs[2], 0, 8, other), _job(block, kvs[1], 1, 8, given)])[1])
        drafts = block.forward([_tree(block, kvs[1], 8, given[:_COMPANY], other)])[0]
        parts.append(drafts if block.tail else drafts[::2])
        apart = (once[: sum(map(len, parts))] != torch.cat(parts)).flatten(1).any(1)
        return int(apart.nonzero()[0]) * (_WANTED if block.tail else 1) if bool(apart.any()) else None
    finally:
        for kv in kvs:
            kv.close()


def _job(block: Cuttable, kv: Any, first: int, last: int, given: torch.Tensor) -> Job:
    position = np.arange(first, last)
    rows = Rows(
        slot=(position + _LAYOUT.scratch).astype(np.uint32),
        position=position.astype(np.uint32),
        prefix=(position + 1).astype(np.uint32),
        ancestors=np.zeros((len(position), _LAYOUT.scratch // 8), np.uint8),
        token=_tokens(block, given[first:last]),
        want=position % _WANTED == 0,
    )
    return Job(kv, no_commits(), rows, None if block.head else given[first:last])


def _tree(block: Cuttable, kv: Any, first: int, given: torch.Tensor, other: torch.Tensor) -> Job:
    """The rows from `first` on as drafts, each before one that stands at its position and leaves the text there. Slots
    go down along the text and up beside it."""
    hidden = torch.stack([given[first:], other[first:]], 1).flatten(0, 1)
    deep = np.arange(_COMPANY - first)
    slot = np.stack([_LAYOUT.scratch - 1 - deep, deep], 1)
    seen = np.zeros((2 * len(deep), _LAYOUT.scratch), np.uint8)
    for row, own in enumerate(slot.reshape(-1)):
        seen[row, [*slot[: row // 2, 0], own]] = 1
    position = np.repeat(first + deep, 2)
    rows = Rows(
        slot=slot.reshape(-1).astype(np.uint32),
        position=position.astype(np.uint32),
        prefix=np.full(len(position), first, np.uint32),
        ancestors=np.packbits(seen, axis=1, bitorder="little"),
        token=_tokens(block, hidden),
        want=(position % _WANTED == 0) & (np.arange(len(position)) % 2 == 0),
    )
    return Job(kv, no_commits(), rows, None if block.head else hidden)


def _tokens(block: Cuttable, given: torch.Tensor) -> NDArray[np.int32]:
    return ((given[:, 0].abs() * 1000).long().numpy() % block.vocab_size).astype(np.int32)
