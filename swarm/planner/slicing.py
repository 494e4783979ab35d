"""Layers that no device of a node has room for: each cut over all of them.

Devices usually take whole layers (`block_choice.lay`): a row then crosses once between two of them. Only where not even
the smallest part of a model fits any device are its matrices cut by their outputs, each device with the share of them
that its memory is of all: a row then crosses with every product.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.planner.fleet import ModelShape

SPARE = 0.98
"""What of the room is planned with: matrices are cut at whole panels of sixteen outputs, so shares are nearly met."""


@dataclass(frozen=True)
class Slicing:
    """`layers` of a model, each matrix cut over devices. shares: of its outputs, by device; they add up to 1. The first
    device also holds what is not cut (norms, keys and values, embedding and head)."""

    layers: int
    shares: tuple[float, ...]


def needs_slicing(model: ModelShape, rooms: tuple[int, ...], context: int) -> bool:
    """Whether no device has room for even the smallest part of the model. rooms: bytes by device."""
    parts = model.parts(0, model.n_layers)
    least = min(_weights(model, *part) + model.session_bytes(*part, context) for part in parts)
    return least + model.every_bytes > max(rooms)


def slice_layers(
    model: ModelShape, rooms: tuple[int, ...], context: int, first: int, most: int | None = None
) -> Slicing | None:
    """As many layers from `first` on as the devices hold together; None where that is not one part, or devices hold
    layers whole, or there is one device only. rooms: bytes by device, the first has what is not cut. most: layers."""
    if len(rooms) < 2 or first in model.forbidden or not needs_slicing(model, rooms, context):
        return None
    found: Slicing | None = None
    limit = model.n_layers - first if most is None else most
    for _, end in model.parts(first, model.n_layers):
        if end - first > limit:
            break
        here = sum(model.whole_bytes[first:end]) if model.whole_bytes else 0
        kept = kept_bytes(model, first, end, context)
        free = [int(rooms[0] * SPARE) - kept, *(int(room * SPARE) for room in rooms[1:])]
        if min(free) < 0 or _weights(model, first, end) - here > sum(free):
            break
        found = Slicing(end - first, tuple(room / sum(free) for room in free))
    return found


def kept_bytes(model: ModelShape, first: int, last: int, context: int) -> int:
    """What of layers [first, last) stays on the first device where their matrices are cut over several."""
    here = sum(model.whole_bytes[first:last]) if model.whole_bytes else 0
    return here + model.end_bytes(first, last) + model.session_bytes(first, last, context)


def _weights(model: ModelShape, first: int, last: int) -> int:
    return sum(model.layer_bytes[first:last])
