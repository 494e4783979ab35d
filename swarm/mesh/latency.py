"""How far nodes are from each other: network coordinates for every pair, measurements where there are some.

Vivaldi (Dabek et al., SIGCOMM 2004) with a height: a spring per measurement pulls a node's coordinate so that
distance in a 3-dimensional space plus both heights comes near the round-trip time. A node
needs measurements to a few peers; any two nodes that have a coordinate then have an estimate. Pure: no clock, no
randomness but a fixed push apart of coordinates that coincide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from swarm.mesh.record import KEY_BYTES, MAX_RTTS, NodeRecord

GAIN = 0.25
TRUST = 0.25
MIN_HEIGHT_MS = 0.05
MAX_MS = 10_000.0
FRESH_S = 600.0
MAX_PAIRS = 4096
DEFAULT_MS = 150.0


@dataclass(frozen=True)
class Coordinate:
    """A place in milliseconds: `at` x, y, z, `height` for the last mile, `error` from 0 (sure) to 1."""

    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    height: float = MIN_HEIGHT_MS
    error: float = 1.0

    def distance_ms(self, other: Coordinate) -> float:
        """Predicted round-trip time."""
        return math.dist(self.at, other.at) + self.height + other.height

    def packed(self) -> tuple[int, ...]:
        """Microseconds and thousandths, as a record carries them."""
        return (*(round(v * 1000) for v in (*self.at, self.height)), round(self.error * 1000))


def unpack_coordinate(numbers: Sequence[int]) -> Coordinate | None:
    """The coordinate of a record's numbers, None when it has none."""
    if len(numbers) != 5:
        return None
    x, y, z, height, error = (n / 1000 for n in numbers)
    return Coordinate((x, y, z), max(MIN_HEIGHT_MS, height), min(1.0, max(0.0, error)))


def updated(own: Coordinate, other: Coordinate, rtt_ms: float, name: bytes = b"") -> Coordinate:
    """`own` after one measurement of `rtt_ms` to a node at `other`.

    `name`: any bytes that differ between nodes; decides the direction in which coinciding coordinates part.
    """
    rtt_ms = min(max(rtt_ms, 0.01), MAX_MS)
    predicted = own.distance_ms(other)
    wrong = min(1.0, abs(predicted - rtt_ms) / rtt_ms)
    total = own.error + other.error
    weight = own.error / total if total > 0 else 0.5
    error = min(1.0, max(0.01, wrong * TRUST * weight + own.error * (1 - TRUST * weight)))
    force = GAIN * weight * (rtt_ms - predicted)
    gap = tuple(a - b for a, b in zip(own.at, other.at, strict=True))
    length = math.hypot(*gap)
    unit = tuple(g / length for g in gap) if length > 1e-6 else _direction(name)
    # The height takes its share of the force, as in the paper: it is one more spring in series.
    share = length + own.height + other.height
    height = own.height + (own.height + other.height) * force / share if share > 0 else own.height
    x, y, z = (min(MAX_MS, max(-MAX_MS, a + force * u)) for a, u in zip(own.at, unit, strict=True))
    return Coordinate((x, y, z), min(MAX_MS, max(MIN_HEIGHT_MS, height)), error)


def _direction(name: bytes) -> tuple[float, float, float]:
    raw = hashlib.blake2b(name, digest_size=6).digest()
    x, y, z = (int.from_bytes(raw[i : i + 2], "big") / 32768 - 1 for i in (0, 2, 4))
    length = math.hypot(x, y, z) or 1.0
    return x / length, y / length, z / length


@dataclass(frozen=True)
class RttTable:
    """This node's measurements: peer id -> (milliseconds, monotonic second). What is stale is forgotten; it is
    bounded, and the oldest goes first."""

    measured: Mapping[bytes, tuple[float, float]] = field(default_factory=dict)

    def add(self, peer: bytes, rtt_ms: float, now: float) -> RttTable:
        """With one more measurement; a smaller one within FRESH_S wins, since queues only ever add."""
        old = self.measured.get(peer)
        best = rtt_ms if old is None or now - old[1] > FRESH_S else min(rtt_ms, 0.8 * old[0] + 0.2 * rtt_ms)
        kept = {other: known for other, known in self.measured.items() if now - known[1] <= FRESH_S}
        kept[peer] = (best, now)
        if len(kept) > MAX_PAIRS:
            del kept[min(kept, key=lambda p: kept[p][1])]
        return replace(self, measured=kept)

    def get(self, peer: bytes, now: float) -> float | None:
        """Milliseconds to `peer` if measured within FRESH_S."""
        found = self.measured.get(peer)
        return found[0] if found is not None and now - found[1] <= FRESH_S else None

    def for_record(self, now: float, first: Collection[bytes] = ()) -> tuple[tuple[bytes, int], ...]:
        """The measurements that a record carries, in the order of the peers: to the peers `first`, then the latest.

        Whole ids and microseconds.
        """
        fresh = [(peer in first, at, peer, ms) for peer, (ms, at) in self.measured.items() if now - at <= FRESH_S]
        told = sorted(fresh, reverse=True)[:MAX_RTTS]
        return tuple(sorted((peer, round(ms * 1000)) for _, _, peer, ms in told))


def rtt_matrix(
    records: Sequence[NodeRecord | None],
    own: int | None,
    coordinate: Coordinate,
    table: RttTable,
    now: float,
    default_ms: float = DEFAULT_MS,
) -> NDArray[np.float64]:
    """Round-trip milliseconds [n, n]: coordinates, overlaid by what records and this node measured.

    `records`: one per place, None where a node has no record (a requester). `own`: the place of this node, which
    uses `coordinate` and `table`. Where a coordinate is missing `default_ms` stands.
    """
    n = len(records)
    places = [
        coordinate if i == own else (None if r is None else unpack_coordinate(r.coordinate))
        for i, r in enumerate(records)
    ]
    at = np.array([(0.0, 0.0, 0.0) if c is None else c.at for c in places]).reshape(n, 3)
    height = np.array([0.0 if c is None else c.height for c in places])
    matrix: NDArray[np.float64] = apart(at) + height[:, None] + height[None, :]
    unknown = np.array([c is None for c in places], bool)
    matrix[unknown] = default_ms
    matrix[:, unknown] = default_ms
    place = {r.node[:KEY_BYTES]: i for i, r in enumerate(records) if r is not None}
    for i, j, ms in _measured(records, place):
        matrix[i, j] = matrix[j, i] = ms
    if own is not None:
        for i, r in enumerate(records):
            ms_here = None if r is None else table.get(r.node, now)
            if ms_here is not None:
                matrix[own, i] = matrix[i, own] = ms_here
    np.fill_diagonal(matrix, 0.0)
    return matrix


def apart(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [n, n] between points [n, 3].

    Axis by axis: for a matrix product BLAS wakes its threads, which cost more than all of the planning.
    """
    squares = np.zeros((len(at), len(at)))
    for axis in at.T:
        squares += (axis[:, None] - axis[None, :]) ** 2
    distances: NDArray[np.float64] = np.sqrt(squares)
    return distances


def _measured(records: Sequence[NodeRecord | None], place: Mapping[bytes, int]) -> Iterable[tuple[int, int, float]]:
    for i, record in enumerate(records):
        if record is not None:
            for peer, us in record.rtts:
                j = place.get(peer)
                if j is not None:
                    yield i, j, us / 1000
