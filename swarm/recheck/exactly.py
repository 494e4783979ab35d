"""Rows recomputed by the very kernels that a stage computed them with, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from receipts.check.run import ReceiptRun
from receipts.check.samples import Bits
from receipts.format.opening import Order
from swarm.model.files.manifest import Manifest
from swarm.model.own_kernels import KernelsHere, OwnKernels
from swarm.model.rows import Layout
from swarm.recheck.recompute import Layers, Step
from swarm.ring.frame import Answer
from swarm.ring.order_check import CONTEXT_STEP


def fingerprints_of(run: ReceiptRun) -> dict[str, str]:
    """By node, the one kernel fingerprint that it accepted every epoch of a run under. A node that came back with other
    kernels is left out: which of its rows they computed, nothing says."""
    signed: dict[str, set[str | None]] = {}
    for epoch in run.epochs:
        for node, accept in epoch.accepts.items():
            signed.setdefault(node, set()).add(accept.fingerprint)
    return {node: only for node, found in signed.items() if len(found) == 1 and (only := next(iter(found))) is not None}


def replaying_kernels(run: ReceiptRun, kernels: KernelsHere) -> OwnKernels | None:
    """This machine's kernels of the one fingerprint that all stages of a run signed, where they can replay it to the
    bit: rows keep their bits in any company, and one plan stood from the first token to the last, as where a row is
    rounded for the wire follows from the plan. None otherwise, and where layers were the requester's own."""
    signed = {accept.fingerprint for epoch in run.epochs for accept in epoch.accepts.values()}
    only = next(iter(signed)) if len(signed) == 1 and len(run.epochs) == 1 and not run.order.own_layers else None
    own = kernels.find(only) if only is not None else None
    return own if own is not None and own.row_invariant else None


def as_opened(order: Order, manifest: Manifest, layout: Layout) -> Layout:
    """The slots of the session itself, of which `layout` may show fewer: attention's kernels see where they end."""
    want = -(-(order.prompt_tokens + order.max_tokens) // CONTEXT_STEP) * CONTEXT_STEP
    return Layout(layout.scratch, max(layout.context, min(want, manifest.context)))


def exact_outputs(layers: Layers, own: OwnKernels, layout: Layout, steps: Sequence[Step]) -> list[torch.Tensor]:
    """Output of each step by these kernels, in their own type; at the model's end float32 logits. Raises ModelError.

    Where the bits of a row depend on the rows beside it, each frame goes through alone, as at a stage that served one
    run: rows that had other company there may come out otherwise.
    """
    alike = replace(layers, dtype=own.dtype, weights=own.weights, alone=not own.row_invariant)
    with own.dividing():
        return list(alike.outputs(layout, steps))


def same_rows(sent: torch.Tensor, own: torch.Tensor) -> list[bool]:
    """By row, whether two tensors float32 [n, width] are the same bits."""
    if sent.shape != own.shape:
        return [False] * len(sent)
    return (sent.contiguous().view(torch.int32) == own.contiguous().view(torch.int32)).all(-1).tolist()


def same_answers(sent: Answer, own: Answer) -> list[bool]:
    """By answer, whether token, margin and logprob are the same bits."""
    if sent.token.shape != own.token.shape:
        return [False] * len(sent.token)
    same = (sent.token == own.token) & (_words(sent.margin) == _words(own.margin))
    return (same & (_words(sent.logprob) == _words(own.logprob))).tolist()  # type: ignore[no-any-return]


def bits_of(same: Sequence[bool], own: OwnKernels) -> list[Bits]:
    """What equality or its absence shows by kernels of these properties."""
    other = Bits.WRONG if own.row_invariant else Bits.OTHER
    return [Bits.EQUAL if one else other for one in same]


def _words(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(values, np.float32).view(np.int32)
