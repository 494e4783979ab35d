"""All records that a node knows, as an immutable table that is cheap to change and cheap to compare.

256 buckets by the first byte of the node id: one change copies one small tuple and the list of buckets. The same
buckets are what anti-entropy compares: two nodes exchange one 8-byte mark per bucket and then talk only about
those that differ.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from swarm.mesh.record import NodeRecord, Signed

BUCKETS = 256
MASK = 2**64 - 1
DIGEST_BYTES = 8 * BUCKETS


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
    """Records by key. `size` counts them all, graves included."""

    buckets: tuple[tuple[Held, ...], ...] = field(default=((),) * BUCKETS)
    size: int = 0

    def get(self, key: int) -> Held | None:
        """The record whose node id begins with these 8 bytes."""
        for held in self.buckets[key >> 56]:
            if held.key == key:
                return held
        return None

    def put(self, held: Held) -> Table:
        """With `held` in place of what had its key."""
        return self.put_all((held,))

    def put_all(self, many: Iterable[Held]) -> Table:
        """With each of `many` in place of what had its key."""
        buckets = list(self.buckets)
        size = self.size
        for held in many:
            at = held.key >> 56
            rest = tuple(other for other in buckets[at] if other.key != held.key)
            size += len(rest) + 1 - len(buckets[at])
            buckets[at] = (*rest, held)
        return Table(tuple(buckets), size)

    def without(self, gone: Iterable[Held]) -> Table:
        """Without these records."""
        buckets = list(self.buckets)
        size = self.size
        for held in gone:
            at = held.key >> 56
            rest = tuple(other for other in buckets[at] if other.key != held.key)
            size += len(rest) - len(buckets[at])
            buckets[at] = rest
        return Table(tuple(buckets), size)

    def __iter__(self) -> Iterator[Held]:
        for bucket in self.buckets:
            yield from bucket

    def __len__(self) -> int:
        return self.size

    def digest(self) -> bytes:
        """One mark per bucket, DIGEST_BYTES in all; equal buckets have equal marks."""
        marks = []
        for bucket in self.buckets:
            mark = 0
            for held in bucket:
                mark ^= held.mark
            marks.append(mark)
        return struct.pack(f">{BUCKETS}Q", *marks)

    def differing(self, digest: bytes) -> list[int]:
        """Buckets whose marks differ from those of `digest`."""
        own = self.digest()
        return [i for i in range(BUCKETS) if own[8 * i : 8 * i + 8] != digest[8 * i : 8 * i + 8]]

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
