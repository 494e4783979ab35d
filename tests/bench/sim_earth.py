"""A synthetic internet: round-trip times between numbered nodes, and coordinates that settle on them.

Cities on a sphere weighted like the internet's users, light in fibre times a detour of 1.3 to 2.2 per pair of nodes (so
that triangles are violated), plus a last mile of 1 to 20 ms per node. Deterministic for a seed.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import numpy as np

from swarm.mesh.latency import Coordinate, updated
from swarm.planner.fleet import Matrix

CITIES = (
    *((50, 9, 16), (51, 0, 12), (48, 2, 10), (52, 21, 6), (41, -4, 5), (59, 18, 3), (41, 29, 5)),
    *((40, -74, 14), (39, -77, 12), (41, -88, 8), (33, -97, 7), (37, -122, 12), (47, -122, 6), (34, -118, 8)),
    *((-23, -46, 9), (-34, -58, 3), (19, -99, 4), (35, 139, 10), (37, 127, 6), (22, 114, 6), (1, 104, 8)),
    *((19, 73, 9), (28, 77, 6), (-34, 151, 4), (-26, 28, 3), (6, 3, 3), (25, 55, 3)),
)
"""Latitude, longitude, weight."""


class Earth:
    """Round-trip milliseconds between numbered nodes, without keeping a matrix."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._xyz: list[tuple[float, float, float]] = []
        self._mile: list[float] = []
        self._salt = seed
        self._cache: dict[tuple[int, int], float] = {}

    def add(self) -> int:
        """One more node; its number."""
        north, east, _ = self._draw.choices(CITIES, [weight for _, _, weight in CITIES])[0]
        lat, lon = (math.radians(value + self._draw.gauss(0, 1.5)) for value in (north, east))
        self._xyz.append((math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)))
        self._mile.append(min(20.0, max(1.0, self._draw.lognormvariate(1.3, 0.7))))
        return len(self._mile) - 1

    def rtt_ms(self, a: int, b: int) -> float:
        """There and back between `a` and `b`."""
        if a == b:
            return 0.0
        found = self._cache.get((a, b))
        if found is None:
            if len(self._cache) > 2_000_000:
                self._cache.clear()
            found = self._cache[a, b] = self._cache[b, a] = self._compute(a, b)
        return found

    def _compute(self, a: int, b: int) -> float:
        cosine = sum(p * q for p, q in zip(self._xyz[a], self._xyz[b], strict=True))
        km = 6371 * math.acos(max(-1.0, min(1.0, cosine)))
        low, high = min(a, b), max(a, b)
        mixed = (low * 0x9E3779B1 ^ high * 0x85EBCA77 ^ self._salt * 0xC2B2AE3D) & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
        detour = 1.3 + 0.9 * ((mixed ^ mixed >> 13) & 0xFFFF) / 0xFFFF
        return km / 100 * detour + self._mile[a] + self._mile[b]

    def matrix(self, numbers: Sequence[int]) -> Matrix:
        """All pairs."""
        return np.array([[self.rtt_ms(a, b) for b in numbers] for a in numbers])


def node_id(number: int) -> bytes:
    """A 32-byte name for a number."""
    return hashlib.blake2b(b"node %d" % number, digest_size=32).digest()


def settle_coordinates(
    earth: Earth, numbers: Sequence[int], rounds: int, links: int, seed: int
) -> dict[int, Coordinate]:
    """Coordinates after every node measured `links` random others `rounds` times each."""
    draw = random.Random(seed)
    places = {n: Coordinate() for n in numbers}
    peers = {n: draw.sample(numbers, min(links, len(numbers) - 1)) for n in numbers}
    for _ in range(rounds):
        for n in numbers:
            for peer in peers[n]:
                if peer != n:
                    places[n] = updated(places[n], places[peer], earth.rtt_ms(n, peer), node_id(n))
    return places
