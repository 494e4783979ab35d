"""A node's transparency log: a folder in the layout of c2sp.org/tlog-tiles, which any static file server can host."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from receipts.check.logged import entry_of
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.log_tiles import WIDTH, Tiles, bundle, bundle_untrusted, tile_path
from receipts.format.merkle import EMPTY_ROOT, leaf_hash, node_hash
from receipts.format.sign import SignedEnvelope
from receipts.format.signed_note import LogCheckpoint, checkpoint_untrusted
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report, silent
from swarm.base.files import write_whole
from swarm.base.locks import OPEN, lock_now
from swarm.base.nodeid import Signer

PUBLIC = 0o644
"""Everything in the folder is meant to be served."""


class TransparencyLog:
    """Appends entries; the checkpoint is written last and whole: a crash leaves the log as before or after the entry.

    Tiles that no checkpoint covers yet are written over by the next entry. One process at a time has the folder.
    `publish` queues to a thread of its own; `close` waits for it. Raises UsageError where the folder cannot be used.
    """

    def __init__(self, folder: Path, signer: Signer, report: Report = silent) -> None:
        self.folder, self._signer, self._report = folder, signer, report
        self._size = 0
        self._levels: list[list[bytes]] = [[]]
        self._entries: list[bytes] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", OPEN, 0o600)
        except OSError as error:
            raise UsageError(f"cannot keep a log in {folder}: {error.strerror}; choose another --log") from error
        if not lock_now(self._lock):
            os.close(self._lock)
            raise UsageError(f"another process appends to the log in {folder}; choose another --log")
        try:
            self._load()
        except (OSError, ReceiptError) as error:
            os.close(self._lock)
            raise UsageError(f"the log in {folder} cannot go on: {error}; move it away or choose another") from error
        self._thread = ThreadPoolExecutor(1, "log")

    @property
    def size(self) -> int:
        return self._size

    def publish(self, envelope: SignedEnvelope) -> None:
        """Log a statement that closes a run or a node's part in it, soon; others are not logged."""
        if (entry := entry_of(envelope)) is not None:
            self._thread.submit(self._publish, entry)

    def append(self, entry: bytes) -> int:
        """Add an entry; its number. Raises OSError with the log as it was before."""
        entries, levels = [*self._entries, entry], [list(level) for level in self._levels]
        files: dict[str, bytes] = {}
        number = self._size
        self._grow(levels, files, leaf_hash(entry))
        files[tile_path(None, number // WIDTH, len(entries))] = bundle(entries)
        checkpoint = LogCheckpoint(self._signer.id, number + 1, _root(levels))
        for path, data in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / path, data, PUBLIC)
        write_whole(self.folder / "checkpoint", checkpoint.signed(self._signer.sign), PUBLIC)
        self._size, self._levels = number + 1, levels
        self._entries = entries if len(entries) < WIDTH else []
        return number

    def close(self) -> None:
        """Write what is queued and let go of the folder."""
        self._thread.shutdown(wait=True)
        os.close(self._lock)

    def _publish(self, entry: bytes) -> None:
        try:
            self.append(entry)
        except OSError as error:
            why = f"the log in {self.folder} lacks an entry: {error.strerror}; free space there"
            self._report(Notice(why, "warning"))

    def _grow(self, levels: list[list[bytes]], files: dict[str, bytes], node: bytes) -> None:
        """Add a leaf to the rightmost tiles, full ones passing their root upwards; notes the tiles that changed."""
        count = self._size + 1
        for level in range(64):
            if level == len(levels):
                levels.append([])
            levels[level].append(node)
            hashes = levels[level]
            index = (count - 1) // WIDTH ** (level + 1)
            files[tile_path(level, index, len(hashes))] = b"".join(hashes)
            if len(hashes) < WIDTH:
                return
            levels[level] = []
            while len(hashes) > 1:
                hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
            node = hashes[0]

    def _load(self) -> None:
        """Go on where the checkpoint says. Raises ReceiptError(LOG) when tiles and checkpoint differ."""
        signed = self._read("checkpoint")
        if signed is None:
            return
        known = checkpoint_untrusted(signed)
        if known.key != self._signer.id:
            raise ReceiptError(Refusal.LOG, "it is of another key")
        tiles = Tiles(self._read, known.size)
        level, levels = 0, list[list[bytes]]()
        while known.size >> 8 * level:
            width = (known.size >> 8 * level) % WIDTH
            levels.append(tiles.hashes(level, (known.size >> 8 * level) // WIDTH) if width else [])
            level += 1
        self._size, self._levels = known.size, levels or [[]]
        if (width := known.size % WIDTH) > 0:
            data = self._read(tile_path(None, known.size // WIDTH, width)) or b""
            self._entries = bundle_untrusted(data, width)
        leaves = [leaf_hash(entry) for entry in self._entries]
        if _root(self._levels) != known.root or leaves != self._levels[0]:
            raise ReceiptError(Refusal.LOG, "its tiles are not those of its checkpoint")

    def _read(self, path: str) -> bytes | None:
        return read_file(self.folder, path)


def read_file(folder: Path, path: str) -> bytes | None:
    """A file of a log; None when there is none. Raises OSError."""
    try:
        return (folder / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _root(levels: list[list[bytes]]) -> bytes:
    """Root over the rightmost tiles' hashes: those of a level stand left of all below it."""
    peaks: list[bytes] = []
    for hashes in reversed(levels):
        at = 0
        while at < len(hashes):
            size = 1 << ((len(hashes) - at).bit_length() - 1)
            part = hashes[at : at + size]
            while len(part) > 1:
                part = [node_hash(part[i], part[i + 1]) for i in range(0, len(part), 2)]
            peaks.append(part[0])
            at += size
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root
