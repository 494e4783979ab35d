"""Which format hidden rows travel in when the requester leaves the choice to us: by measured bandwidth.

A coarser format saves bytes and costs agreement, so it has to earn its place: of the formats no finer than the model's
own, the finest is taken whose pass is nearly as fast as the fastest. int8 is never chosen: it is no smaller
than fp8, and its one step per row rounds most channels away where a few are large (docs/performance.md has figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from swarm.planner.fleet import Member

FINEST_FIRST = ("float32", "bfloat16", "fp8")
NEARLY = 1.1
"""A finer format may make the pass this much longer."""
CODING_NS = {"float32": 0.0, "bfloat16": 0.3, "float16": 0.3, "int8": 3.5, "fp8": 8.0}
"""Encoding and decoding one value on one core, over what the finest format costs (tests/bench/hop_overhead.py)."""


def row_bytes(wire: str, hidden: int) -> int:
    """Bytes of one row of `hidden` values on the wire; the scaled formats carry their scale."""
    halves = {"bfloat16": 2 * hidden, "float16": 2 * hidden}
    return (halves | {"float32": 4 * hidden, "int8": hidden + 4, "fp8": hidden + 4})[wire]


def choose_wire(own: str, rates_mbps: Sequence[float | None], hidden: int, rows: float, pass_ms: float) -> str:
    """The format for one run.

    own         "float32", "bfloat16" or "float16": what the stages compute in; nothing finer is of use
    rates_mbps  of each edge that carries hidden rows, the narrower of its two ends; None: unmeasured, so wide enough
    rows        of a usual frame, the prompt's share included
    pass_ms     what a pass takes besides these bytes: distance and compute
    """
    formats = ("float16", "fp8") if own == "float16" else FINEST_FIRST[FINEST_FIRST.index(own) :]
    took = {wire: pass_ms + sum(edge_ms(wire, rate, hidden, rows) for rate in rates_mbps) for wire in formats}
    fastest = min(took.values())
    return next(wire for wire in formats if took[wire] <= NEARLY * fastest)


def edge_rates(ring: Sequence[Member | None]) -> list[float | None]:
    """Mbit/s from each stage to the next: the narrower of what one sends and the other takes; None: unmeasured."""
    found: list[float | None] = []
    for sender, receiver in pairwise(ring):
        up = sender.up_mbps if sender is not None else None
        down = receiver.down_mbps if receiver is not None else None
        found.append(min((rate for rate in (up, down) if rate is not None), default=None))
    return found


def edge_ms(wire: str, rate_mbps: float | None, hidden: int, rows: float) -> float:
    """Milliseconds that a frame's rows cost on one edge: coding, and bytes over bandwidth where it is known."""
    coding = CODING_NS[wire] * hidden * rows / 1e6
    return coding + (rows * row_bytes(wire, hidden) * 8 / 1000 / max(rate_mbps, 1e-3) if rate_mbps else 0.0)
