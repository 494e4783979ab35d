"""What tells the layers of a model apart, so that one of each kind can stand for the others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import nn

from swarm.model.prune import BY_LAYER

MOST = 8
"""Layers that are looked at, however many kinds a range has (GPT-2 that scales by layer has as many as layers)."""

_NUMBERS = frozenset({"layer_idx", "layer_number", "layer_id", "swarm_layer"})
_PLAIN = (bool, int, float, str, type(None))


def kind_of(layer: nn.Module) -> Hashable:
    """Equal for layers of equal modules, with parameters of equal shapes and equal numbers, flags and names."""
    return tuple(
        (
            path,
            type(module).__name__,
            tuple((key, tuple(weight.shape)) for key, weight in module._parameters.items() if weight is not None),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, _PLAIN) and key not in _NUMBERS
            ),
        )
        for path, module in layer.named_modules()
    )


def listed_kinds(config: object, place: int) -> Hashable:
    """What a config's lists say of the layer at `place` of its range."""
    lists = (getattr(config, key, None) for key in BY_LAYER)
    return tuple(str(one[place]) if isinstance(one, list | tuple) and place < len(one) else "" for one in lists)


def pairs(parts: Sequence[tuple[int, int]], kinds: Sequence[Hashable], head: bool, tail: bool) -> list[tuple[int, int]]:
    """Ranges of neighbours among `parts`, the smallest ranges of a block, in which every kind of part stands before
    every kind that it stands before anywhere: of equal pairs the first, and always the pair at the head and at the
    tail. kinds: one a layer. Neighbouring pairs are one range. At most about MOST layers."""
    if len(parts) == 1:
        return [parts[0]]
    named = [tuple(kinds[a - parts[0][0] : b - parts[0][0]]) for a, b in parts]
    ends = [0] * head + [len(parts) - 2] * tail
    chosen = _chosen(list(zip(named, named[1:], strict=False)), ends, parts, 2)
    ranges: list[tuple[int, int]] = []
    for place in chosen:
        first, last = parts[place][0], parts[place + 1][1]
        if ranges and first < ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return ranges


def singles(
    parts: Sequence[tuple[int, int]], kinds: Sequence[Hashable], head: bool, tail: bool
) -> list[tuple[int, int]]:
    """One of `parts` of each kind, with those at the head and at the tail; at most about MOST layers."""
    named = [tuple(kinds[a - parts[0][0] : b - parts[0][0]]) for a, b in parts]
    return [parts[place] for place in _chosen(named, [0] * head + [len(parts) - 1] * tail, parts, 1)]


def _chosen(
    named: Sequence[Hashable], always: Sequence[int], parts: Sequence[tuple[int, int]], width: int
) -> list[int]:
    """Places of the first of each name, after those that are always there; by width parts each, up to MOST layers."""
    chosen = sorted(set(always))
    seen = {named[place] for place in chosen}
    size = sum(parts[place + width - 1][1] - parts[place][0] for place in chosen)
    for place, name in enumerate(named):
        size_here = parts[place + width - 1][1] - parts[place][0]
        if name not in seen and (not chosen or size + size_here <= MOST):
            chosen, size = [*chosen, place], size + size_here
            seen.add(name)
    return sorted(chosen)
