"""Damage to honest bytes: what a broken link, a careless client or a patient attacker would send."""

from __future__ import annotations

import random
from collections.abc import Sequence

EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0" * 8, b"\xff" * 8, b"\xc1", b"\xdd")
"""Ends of ranges, and two bytes that mean something to msgpack: never used, and a list of 2^32-1."""


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One to four blows to a seed, or noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        strike(data, seeds, rng)
    return bytes(data)


def strike(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0 | 1 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 2 if at < len(data):
            data[at] = rng.randrange(256)
        case 3:
            edge = rng.choice(EDGES)
            data[at : at + len(edge)] = edge
        case 4:
            del data[at : at + rng.randint(1, 16)]
        case 5:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        case 6:
            del data[at:]
        case 7:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + 32] = other[start : start + rng.randint(1, 64)]
        case _:
            data += b"\0"
