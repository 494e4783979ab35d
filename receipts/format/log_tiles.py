"""A log's Merkle tree as tiles of 256 hashes, and proofs out of them: c2sp.org/tlog-tiles and c2sp.org/tlog-proof."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import EMPTY_ROOT, check_inclusion, leaf_hash, node_hash
from receipts.format.merkle_tree import split
from receipts.format.signed_note import MAX_NOTE, LogCheckpoint, _base64, _refused, checkpoint_untrusted

WIDTH = 256
HEIGHT = 8
PROOF_MAGIC = "c2sp.org/tlog-proof@v1"
MAX_SIZE = 1 << 40
_LENGTH = struct.Struct(">H")

ReadTile = Callable[[str], bytes | None]
"""The file at this path of a log; None when there is none."""


def tile_path(level: int | None, index: int, width: int = WIDTH) -> str:
    """Path of a hash tile, or with level None of a bundle of entries; `width` below 256 is a partial one."""
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    name = "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])
    return f"tile/{'entries' if level is None else level}/{name}" + ("" if width == WIDTH else f".p/{width}")


def bundle(entries: Sequence[bytes]) -> bytes:
    """Entries as a bundle holds them, each under 64 KiB."""
    return b"".join(_LENGTH.pack(len(entry)) + entry for entry in entries)


def bundle_untrusted(data: bytes, count: int) -> list[bytes]:
    """The entries of a bundle. Raises ReceiptError(LOG) unless there are exactly `count`."""
    found, at = list[bytes](), 0
    while at + 2 <= len(data) and len(found) < count:
        (size,) = _LENGTH.unpack_from(data, at)
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    if at != len(data) or len(found) != count:
        raise _refused(f"a bundle of the log does not hold {count} entries")
    return found


class Tiles:
    """The tree of a log of `size` entries, read from its tiles as they are needed. Raises ReceiptError(LOG)."""

    def __init__(self, read: ReadTile, size: int) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise _refused(f"a log of {size} entries")
        self._read, self.size = read, size
        self._known: dict[tuple[int, int], bytes] = {}

    def root(self) -> bytes:
        return self.over(0, self.size) if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> list[bytes]:
        """Audit path of entry `index`, leaf's sibling first."""
        path: list[bytes] = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + split(high - low)
            path.append(self.over(middle, high) if index < middle else self.over(low, middle))
            low, high = (low, middle) if index < middle else (middle, high)
        return path[::-1]

    def over(self, low: int, high: int) -> bytes:
        """Root over entries [low, high), a range of the tree's own."""
        size = high - low
        if size & (size - 1):
            middle = low + split(size)
            return node_hash(self.over(low, middle), self.over(middle, high))
        height = size.bit_length() - 1
        level, count = height // HEIGHT, 1 << height % HEIGHT
        first = low >> HEIGHT * level
        hashes = self.hashes(level, first // WIDTH)[first % WIDTH : first % WIDTH + count]
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]

    def hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes of one tile, as many as a log of this size has there."""
        width = min(WIDTH, (self.size >> HEIGHT * level) - index * WIDTH)
        if (level, index) not in self._known:
            self._known[level, index] = self._tile(level, index, width, 32 * width)
        data = self._known[level, index]
        return [data[at : at + 32] for at in range(0, 32 * width, 32)]

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """All entries with their numbers; whether they are under the root is for the proof to say."""
        for index in range(-(-self.size // WIDTH)):
            width = min(WIDTH, self.size - index * WIDTH)
            data = self._read(tile_path(None, index, width))
            if data is not None:
                found = bundle_untrusted(data, width)
            elif (data := self._read(tile_path(None, index))) is not None:
                found = bundle_untrusted(data, WIDTH)[:width]
            else:
                raise _refused(f"the log has no entries {index * WIDTH} and on")
            yield from enumerate(found, index * WIDTH)

    def _tile(self, level: int, index: int, width: int, size: int) -> bytes:
        data = self._read(tile_path(level, index, width))
        if data is None and width < WIDTH:  # a log may drop partial tiles once the full one is there
            data = self._read(tile_path(level, index))
            data = data[:size] if data is not None and len(data) == 32 * WIDTH else None
        if data is None or len(data) != size:
            raise _refused(f"the log has no whole tile {tile_path(level, index, width)}")
        return data


@dataclass(frozen=True)
class LogProof:
    """That an entry is number `index` of a log: audit path and signed checkpoint."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    missing: str = ""
    """Why there is no such proof, where one was looked for: it is refused with that."""

    def to_bytes(self) -> bytes:
        """As a file, `*.tlog-proof`."""
        lines = [PROOF_MAGIC, f"index {self.index}", *(base64.b64encode(step).decode() for step in self.path), ""]
        return "\n".join(lines).encode() + b"\n" + self.checkpoint

    def check(self, entry: bytes) -> LogCheckpoint:
        """The checkpoint that the entry is under. Raises ReceiptError(LOG)."""
        if self.missing:
            raise _refused(self.missing)
        found = checkpoint_untrusted(self.checkpoint)
        try:
            check_inclusion(leaf_hash(entry), self.index, found.size, self.path, found.root)
        except ReceiptError as exc:
            raise _refused(f"the proof does not lead to the log's checkpoint: {exc.claim}") from exc
        return found


def proof_untrusted(data: bytes) -> LogProof:
    """Read a proof file. Raises ReceiptError(LOG)."""
    head, blank, checkpoint = data.partition(b"\n\n")
    if len(data) > MAX_NOTE or not blank or not head.isascii():
        raise _refused("not a proof of inclusion in a log")
    lines = head.decode("ascii").split("\n")
    if len(lines) > 1 and lines[1].startswith("extra "):
        del lines[1]
    if lines[0] != PROOF_MAGIC or len(lines) < 2 or len(lines) > 66:
        raise _refused(f"expected a proof that begins with {PROOF_MAGIC}")
    word, _, number = lines[1].partition(" ")
    if word != "index" or not number.isdigit() or str(int(number[:20])) != number:
        raise _refused("the proof names no index")
    return LogProof(int(number), tuple(_base64(line, 32) for line in lines[2:]), checkpoint)


def find_proof(read: ReadTile, entries: Sequence[bytes]) -> LogProof:
    """Proof of the first of these entries that a log has, from its files. Raises ReceiptError(LOG)."""
    signed = read("checkpoint")
    if signed is None:
        raise ReceiptError(Refusal.LOG, "the log has no checkpoint")
    tiles = Tiles(read, checkpoint_untrusted(signed).size)
    wanted = {entry: rank for rank, entry in enumerate(entries)}
    found = [(wanted[entry], index) for index, entry in tiles.entries() if entry in wanted]
    if not found:
        raise _refused(f"none of the {tiles.size} entries of the log is of this receipt")
    index = min(found)[1]
    return LogProof(index, tuple(tiles.inclusion(index)), signed)
