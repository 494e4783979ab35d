"""Kept frames as records in a file: found by their heads alone, read by offset, each checked before it leaves.

A record: seq (8 bytes), lengths of head and body (4 each), the frame's leaf hash (32), CRC-32 of head and body (4),
CRC-32 of all that (4), head, body; big-endian. The first that is cut short or damaged ends the file. With the leaf hash
in the record, a proof reads 56 bytes a frame. Before 1.2, records had no leaf hash and one CRC-32; they are read whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from receipts.format.errors import ReceiptError, Refusal
from receipts.record.edge import Buffer, frame_leaf
from receipts.record.row_opening import Outline

MAX_PART = 1 << 28
_RECORD = struct.Struct(">QII32sI")
_CRC = struct.Struct(">I")
_OLD = struct.Struct(">QIII")
RECORD_BYTES = _RECORD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Kept(Outline):
    """A frame in a file: its bytes begin at offset `at`, and have this CRC-32."""

    at: int
    crc: int

    @property
    def size(self) -> int:
        return self.head + self.body


def record(seq: int, head: Buffer, body: Buffer, leaf: bytes) -> bytes:
    """What stands in the file before a frame's head and body."""
    fixed = _RECORD.pack(seq, len(head), len(body), leaf, zlib.crc32(body, zlib.crc32(head)))
    return fixed + _CRC.pack(zlib.crc32(fixed))


def scan(path: Path, old: bool = False, most: int | None = None) -> list[Kept]:
    """The whole records from the start, at most `most`; bodies are passed over, but for `old` ones. Raises OSError."""
    found: list[Kept] = []
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while most is None or len(found) < most:
            kept = _old_at(file.fileno(), at) if old else _at(file.fileno(), at)
            if kept is None or kept.at + kept.size > end:
                break
            found.append(kept)
            at = kept.at + kept.size
    return found


def _read_at(handle: int, size: int, at: int) -> bytes:
    """Bytes [at, at + size) of a file that this thread alone has open."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, at)
    os.lseek(handle, at, os.SEEK_SET)  # Windows
    return os.read(handle, size)


def read(handle: int, kept: Kept) -> bytes:
    """Head and body of one frame. Raises ReceiptError(OPENING) when they are not what was written."""
    data = _read_at(handle, kept.size, kept.at)
    if len(data) != kept.size or zlib.crc32(data) != kept.crc:
        raise ReceiptError(Refusal.OPENING, f"kept frame {kept.seq} is damaged on this node's disk")
    return data


def _at(handle: int, at: int) -> Kept | None:
    data = _read_at(handle, RECORD_BYTES, at)
    if len(data) < RECORD_BYTES or zlib.crc32(data[: _RECORD.size]) != _CRC.unpack_from(data, _RECORD.size)[0]:
        return None
    seq, head, body, leaf, crc = _RECORD.unpack_from(data)
    return Kept(seq, head, body, leaf, at + RECORD_BYTES, crc) if max(head, body) <= MAX_PART else None


def _old_at(handle: int, at: int) -> Kept | None:
    data = _read_at(handle, _OLD.size, at)
    if len(data) < _OLD.size:
        return None
    seq, head, body, crc = _OLD.unpack(data)
    if max(head, body) > MAX_PART:
        return None
    frame = _read_at(handle, head + body, at + _OLD.size)
    if len(frame) < head + body or zlib.crc32(frame, zlib.crc32(data[:16])) != crc:
        return None
    return Kept(seq, head, body, frame_leaf(seq, frame[:head], frame[head:]), at + _OLD.size, zlib.crc32(frame))
