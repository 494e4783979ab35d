"""What a swarm with holes lacks, in words for whoever could bring it."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.planner.fleet import ModelShape

MEMORY_SHARE = 0.8
"""How much of its free memory a node gives."""
PLANNED_CONTEXT = 4096
"""For how many tokens a node keeps KV room when it chooses its layers."""


def need(model: ModelShape, holes: Sequence[tuple[int, int]], context: int = PLANNED_CONTEXT) -> str:
    """The nodes that would fill `holes`, [first, last) each, and their free memory: weights, ends, KV."""
    nodes = "one more node" if len(holes) == 1 else f"{len(holes)} more nodes"
    free = free_bytes(model, holes, context)
    return f"need {nodes} with about {_say_bytes(free)}{'' if len(holes) == 1 else ' in all'}"


def free_bytes(model: ModelShape, holes: Sequence[tuple[int, int]], context: int = PLANNED_CONTEXT) -> float:
    """The free memory, in bytes, of the nodes that would fill `holes`: they give a share of it."""
    return sum(_bytes(model, first, last, context) for first, last in holes) / MEMORY_SHARE


def _bytes(model: ModelShape, first: int, last: int, context: int) -> int:
    layers = sum(model.layer_bytes[first:last]) + model.session_bytes(first, last, context)
    return layers + model.end_bytes(first, last)


def _say_bytes(count: float) -> str:
    if count >= 5e7:
        return f"{count / 1e9:.1f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
    return f"{max(count / 1e6, 1.0):.0f} MB"
