"""All records that a node knows, as an immutable table that is cheap to change and cheap to compare.

256 buckets by the first byte of the node id: one change copies one small tuple and the lists of buckets. The same
buckets are what anti-entropy compares: two nodes exchange one 8-byte mark per bucket and then talk only about
those that differ.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swarm.mesh.record import NodeRecord, Signed

BUCKETS = 256
MASK = 2**64 - 1
DIGEST_BYTES = 8 * BUCKETS
_DIGEST = struct.Struct(f">{BUCKETS}Q")


@dataclass(frozen=True, slots=True)
class Held:
    """A record as this node keeps it. `born`: this node's monotonic second at which it was issued, as far as known."""

    record: NodeRecord
    wire: bytes
    born: float
    key: int
    mark: int

    @classmethod
    def of(cls, signed: Signed, born: float) -> Held:
        """Keep `signed`, issued at `born` on this node's monotonic clock."""
        record = signed.record
        mark = (record.key * 0x9E3779B97F4A7C15 ^ record.version * 0xC2B2AE3D27D4EB4F) & MASK
        return cls(record, signed.wire, born, record.key, mark)

    def alive(self, now: float) -> bool:
        """Whether the record's life is not over; a node that left has none."""
        return self.record.state != "left" and now - self.born <= self.record.ttl


@dataclass(frozen=True, slots=True)
class Table:
    """Records by key. `marks`: the exclusive or of each bucket's record marks. `size` counts all, graves included.

    `keys` are those of the records in `buckets`, in the same order: looking a number up in a tuple of numbers is what
    makes tables of ten thousand quick. A record that is replaced leaves the keys of its bucket as they are.
    """

    buckets: Sequence[tuple[Held, ...]] = ((),) * BUCKETS
    keys: Sequence[tuple[int, ...]] = ((),) * BUCKETS
    marks: Sequence[int] = (0,) * BUCKETS
    size: int = 0

    def get(self, key: int) -> Held | None:
        """The record whose node id begins with these 8 bytes."""
        keys = self.keys[key >> 56]
        return self.buckets[key >> 56][keys.index(key)] if key in keys else None

    def put(self, held: Held) -> Table:
        """With `held` in place of what had its key."""
        return self.put_all((held,))

    def put_all(self, many: Iterable[Held]) -> Table:
        """With each of `many` in place of what had its key."""
        buckets, keys, marks, size = list(self.buckets), list(self.keys), list(self.marks), self.size
        for held in many:
            at = held.key >> 56
            bucket = buckets[at]
            if held.key in keys[at]:
                i = keys[at].index(held.key)
                marks[at] ^= bucket[i].mark ^ held.mark
                buckets[at] = (*bucket[:i], held, *bucket[i + 1 :])
            else:
                size += 1
                marks[at] ^= held.mark
                buckets[at], keys[at] = (*bucket, held), (*keys[at], held.key)
        return Table(buckets, keys, marks, size)

    def without(self, gone: Iterable[Held]) -> Table:
        """Without the records that have the keys of these."""
        buckets, keys, marks, size = list(self.buckets), list(self.keys), list(self.marks), self.size
        for held in gone:
            at = held.key >> 56
            if held.key in keys[at]:
                i = keys[at].index(held.key)
                size -= 1
                marks[at] ^= buckets[at][i].mark
                buckets[at] = (*buckets[at][:i], *buckets[at][i + 1 :])
                keys[at] = (*keys[at][:i], *keys[at][i + 1 :])
        return Table(buckets, keys, marks, size)

    def __iter__(self) -> Iterator[Held]:
        for bucket in self.buckets:
            yield from bucket

    def __len__(self) -> int:
        return self.size

    def digest(self) -> bytes:
        """One mark per bucket, DIGEST_BYTES in all; equal buckets have equal marks."""
        return _DIGEST.pack(*self.marks)

    def differing(self, digest: bytes) -> list[int]:
        """Buckets whose marks differ from those of `digest`."""
        return [i for i, mark in enumerate(_DIGEST.unpack(digest)) if mark != self.marks[i]]

    def sample(self, draw: random.Random) -> Held | None:
        """One record, about evenly; None from an empty table."""
        if not self.size:
            return None
        for _ in range(8):
            bucket = self.buckets[draw.randrange(BUCKETS)]
            if bucket:
                return bucket[draw.randrange(len(bucket))]
        filled = [bucket for bucket in self.buckets if bucket]
        bucket = filled[draw.randrange(len(filled))]
        return bucket[draw.randrange(len(bucket))]
