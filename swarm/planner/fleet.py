"""What the planner knows of a swarm: plain frozen data, no sockets, no clock.

A node is named by a string that the planner never looks into (the hexadecimal node id, or a name in a fleet
file). A range of layers [first, last) is written as two integers; an empty range holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Rtts = Callable[[Sequence[str]], Matrix]
"""Round-trip times: names [n] -> milliseconds [n, n], symmetric, 0 on the diagonal, inf where unreachable."""


def lay_known(matrix: Matrix, names: Sequence[str], known: Mapping[tuple[str, str], float]) -> Matrix:
    """Write round trips that are known over guessed ones, both ways, and 0 on the diagonal. Changes `matrix` [n, n]."""
    here = {name: i for i, name in enumerate(names)}
    for (a, b), ms in known.items():
        if a in here and b in here:
            matrix[here[a], here[b]] = matrix[here[b], here[a]] = ms
    np.fill_diagonal(matrix, 0.0)
    return matrix


@dataclass(frozen=True)
class Speed:
    """Milliseconds that one layer takes for a frame of 1, 8 and 64 rows."""

    ms_1: float
    ms_8: float
    ms_64: float

    def ms(self, rows: int) -> float:
        """Milliseconds of one layer for `rows` rows: linear between the measured sizes and beyond the last."""
        if rows <= 1:
            return self.ms_1
        if rows <= 8:
            return self.ms_1 + (self.ms_8 - self.ms_1) * (rows - 1) / 7
        return max(self.ms_8, self.ms_8 + (self.ms_64 - self.ms_8) * (rows - 8) / 56)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, enough to plan with.

    `layer_bytes` [layers]: weights of each layer as held in memory. `head_bytes`, `tail_bytes`: what a block that
    starts at layer 0 or ends at the last layer holds besides (embedding; final norm and output projection).
    `kv_bytes`: key and value of one token in one layer that keeps them. `wire_bytes`: one row of hidden state on the
    wire. `keyless`: layers that keep no keys and values. `key_bytes` [layers], or empty: `kv_bytes` where
    layers differ. `state_bytes` [layers], or empty: what recurrent layers keep for one session, however long its text.
    `whole_bytes` [layers], or empty: what of a layer stays in one piece where its matrices are cut over devices.
    `every_bytes`: what each block holds besides, wherever it lies. `forbidden`: layers that no stage and no block may
    begin with, since they or later ones read what an earlier one keeps.
    """

    name: str
    layer_bytes: tuple[int, ...]
    hidden_size: int
    kv_bytes: int
    head_bytes: int = 0
    tail_bytes: int = 0
    wire_bytes: int = 0
    digest: str = ""
    keyless: frozenset[int] = frozenset()
    state_bytes: tuple[int, ...] = ()
    key_bytes: tuple[int, ...] = ()
    every_bytes: int = 0
    forbidden: frozenset[int] = frozenset()
    whole_bytes: tuple[int, ...] = ()

    def session_bytes(self, first: int, last: int, context: int) -> int:
        """What one session of `context` tokens takes in layers [first, last)."""
        kept = [layer for layer in range(first, last) if layer not in self.keyless]
        keys = sum(self.key_bytes[layer] for layer in kept) if self.key_bytes else len(kept) * self.kv_bytes
        return keys * context + sum(self.state_bytes[first:last])

    def end_bytes(self, first: int, last: int) -> int:
        """What a block of layers [first, last) holds besides its layers."""
        return self.every_bytes + self.head_bytes * (first == 0) + self.tail_bytes * (last == self.n_layers)

    def parts(self, first: int, last: int) -> list[tuple[int, int]]:
        """The smallest ranges that layers [first, last) can be cut into, in order."""
        cuts = [cut for cut in range(first, last + 1) if cut in (first, last) or cut not in self.forbidden]
        return list(zip(cuts, cuts[1:], strict=False))

    @property
    def n_layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one hidden row between two stages (bfloat16 unless told otherwise)."""
        return self.wire_bytes or 2 * self.hidden_size


@dataclass(frozen=True)
class Member:
    """A node as the planner sees it.

    `state`: "serving" may be routed through; "suspect" only where nothing else holds a layer; "joining" has only
    its claim; "draining" and "left" are not used. `claim`: the range that the node says it is about to take.
    `overflow`: so many of the block's last layers run at `overflow_speed` (a GPU node's spare RAM).
    `kernels`: fingerprint of what it computes with, in hex; members of one compute alike to the last bit. "": unknown.
    `kv_free_bytes` None: unknown, taken as enough. Bandwidths in Mbit/s, None: unknown, taken as unlimited.
    """

    node: str
    first: int = 0
    last: int = 0
    speed: Speed | None = None
    overflow: int = 0
    overflow_speed: Speed | None = None
    kv_free_bytes: int | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None
    queue_ms: float = 0.0
    sessions: int = 0
    owner: str = ""
    state: str = "serving"
    claim: tuple[int, int] | None = None
    kernels: str = ""

    @property
    def layers(self) -> int:
        return self.last - self.first

    def layer_ms(self, rows: int, fallback: Speed) -> NDArray[np.float64]:
        """Milliseconds [layers] of each hosted layer for a frame of `rows` rows."""
        costs = np.full(self.layers, (self.speed or fallback).ms(rows))
        if self.overflow:
            costs[-self.overflow :] = (self.overflow_speed or self.speed or fallback).ms(rows)
        return costs


GUESS = Speed(20.0, 24.0, 60.0)
"""What one layer costs where nobody measured anything: a slow CPU, so that a measured node is preferred."""


def usual_speed(members: Iterable[Member]) -> Speed:
    """The median measured speed of a fleet, for members that have not measured theirs; GUESS for none."""
    known = [member.speed for member in members if member.speed is not None]
    if not known:
        return GUESS
    middle = np.median([(s.ms_1, s.ms_8, s.ms_64) for s in known], axis=0)
    return Speed(*(float(value) for value in middle))


def holders(members: Iterable[Member], n_layers: int) -> NDArray[np.int64]:
    """How many serving members hold each layer: [n_layers]."""
    steps = np.zeros(n_layers + 1, np.int64)
    for member in members:
        if member.state == "serving" and 0 <= member.first < member.last <= n_layers:
            steps[member.first] += 1
            steps[member.last] -= 1
    return np.cumsum(steps[:-1])


def gaps(count: Sequence[int] | NDArray[np.int64] | Matrix) -> tuple[tuple[int, int], ...]:
    """Ranges [first, last) of layers whose count is 0."""
    empty = np.flatnonzero(np.asarray(count) == 0)
    if not len(empty):
        return ()
    runs = np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1)
    return tuple((int(run[0]), int(run[-1]) + 1) for run in runs)


def say_layers(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges for people, both ends named: "layer 4", "layers 20-29", "layers 3-5 and 9"."""
    parts = [str(first) if last - first == 1 else f"{first}-{last - 1}" for first, last in ranges]
    single = len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"layer {text}" if single else f"layers {text}"


@dataclass(frozen=True)
class KnownRtts:
    """Round-trip times from pairs; usable as `Rtts`. A pair that is missing costs `default_ms`."""

    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    default_ms: float = 100.0

    def __call__(self, names: Sequence[str]) -> Matrix:
        place = {name: i for i, name in enumerate(names)}
        matrix = np.full((len(names), len(names)), self.default_ms)
        for (a, b), ms in self.pairs.items():
            if a in place and b in place:
                matrix[place[a], place[b]] = matrix[place[b], place[a]] = ms
        np.fill_diagonal(matrix, 0.0)
        return matrix
