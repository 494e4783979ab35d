"""Frames kept for a day, so that a stage can open any row that a verifier picks: a bounded folder, oldest out first.

Per run and epoch there is a folder with `in` and `out`: records of seq (8 bytes), lengths of head and body (4 each),
CRC-32 of all that (4), head, body; big-endian. A record that a crash cut short ends the file. Writing happens in the
thread that hashes, never in the event loop; a full disk loses the run's frames, never the run.
"""

from __future__ import annotations

import shutil
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from receipts.closing import MAX_HISTORY, History
from receipts.edge import Buffer
from receipts.errors import ReceiptError, Refusal
from receipts.opened import Frame, history_bytes, history_root, opening_bytes, request_untrusted

DAY_S = 24 * 3600
MAX_KEPT_BYTES = 4 << 30
_RECORD = struct.Struct(">QIII")
_MAX_PART = 1 << 28


@dataclass(frozen=True)
class Before:
    """The first `frames` inbound frames of another epoch, which filled positions [0, kept) of this one."""

    order: str
    epoch: int
    frames: int
    kept: int


class RunRows:
    """The frames of one stage in one epoch; `inbound` and `outbound` are what `StageRecord` keeps them with."""

    def __init__(self, store: RowStore, folder: Path, lost: str = "") -> None:
        self._store = store
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        if not lost:
            self._files = {name: (folder / name).open("ab") for name in ("in", "out")}
        self.lost = lost
        """Why frames are missing; empty while all are kept."""

    def inbound(self, seq: int, head: Buffer, body: Buffer) -> None:
        self._write("in", seq, head, body)

    def outbound(self, seq: int, head: Buffer, body: Buffer) -> None:
        self._write("out", seq, head, body)

    def close(self) -> None:
        """Flush; the run can be opened from now on. Call it after the last frame was hashed."""
        for file in self._files.values():
            try:
                file.close()
            except OSError as exc:
                self._lose(str(exc))
        self._store.closed(self._folder)

    def _write(self, name: str, seq: int, head: Buffer, body: Buffer) -> None:
        if self.lost:
            return
        try:
            if not self._store.make_room(_RECORD.size + len(head) + len(body)):
                raise OSError("frames of this run exceed the space for kept rows")
            file = self._files[name]
            file.write(_RECORD.pack(seq, len(head), len(body), _crc(seq, head, body)))
            file.write(head)
            file.write(body)
        except (OSError, ValueError) as exc:  # ValueError: the run was closed before its last frame was hashed
            self._lose(str(exc))

    def _lose(self, why: str) -> None:
        self.lost = why
        try:
            (self._folder / "lost").touch()
        except OSError:  # no room to say so: then nothing of it is kept
            self._store.forget(self._folder)


class RowStore:
    """Folder of kept rows, at most `max_bytes` on disk and `keep_s` seconds old. Unix seconds come as arguments."""

    def __init__(self, folder: Path, max_bytes: int = MAX_KEPT_BYTES, keep_s: int = DAY_S) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._open: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._bytes = sum(_size(run) for run in self._runs())

    @property
    def used_bytes(self) -> int:
        return self._bytes

    def begin(self, order: str, epoch: int, salt_leaves: tuple[bytes, bytes], now_s: int) -> RunRows:
        """Keep the frames of a stage of the run with this order digest; `salt_leaves` as from `Opening.salt_leaves`.

        Where that cannot be begun, for a full disk say, they are lost from the start.
        """
        self.expire(now_s)
        run = self._folder / f"{now_s:012d}-{order}-{epoch}"
        try:
            run.mkdir(exist_ok=True)
            (run / "salts").write_bytes(salt_leaves[0] + salt_leaves[1])
            rows = RunRows(self, run)
        except OSError as exc:
            self.forget(run)
            return RunRows(self, run, str(exc))
        with self._lock:
            self._open.add(run)
        return rows

    def forget(self, run: Path) -> None:
        """Keep nothing of a run."""
        if run.is_dir():
            self._remove(run)

    def closed(self, run: Path) -> None:
        with self._lock:
            self._open.discard(run)

    def expire(self, now_s: int) -> None:
        """Remove what is older than a day; runs still open stay."""
        for run in self._runs():
            if int(run.name[:12]) < now_s - self._keep_s and run not in self._open:
                self._remove(run)

    def make_room(self, size: int) -> bool:
        """Count `size` more bytes, removing the oldest closed runs for them; False when only open runs are left."""
        while self._bytes + size > self._max_bytes:
            oldest = next((run for run in self._runs() if run not in self._open), None)
            if oldest is None:
                return False
            self._remove(oldest)
        with self._lock:
            self._bytes += size
        return True

    def answer(self, request: bytes) -> bytes:
        """The opening that a verifier asked for. Reads the run: call it in a thread. Raises ReceiptError(OPENING)."""
        asked = request_untrusted(request)
        run = self._kept(asked.order, asked.epoch)
        if asked.history:
            return self._history(run, asked.history)
        salts = _salts(run)
        frames = {part: list(_records(run / part)) for part in ("in", "out")}
        return opening_bytes(frames["in"], frames["out"], salts, asked.leaves)

    def link(self, order: str, epoch: int, before: Sequence[Before]) -> tuple[History, ...]:
        """Note what an epoch began from, oldest first; gives what its END says of it: nothing when that is not kept.

        Reads what is named: call it in the thread that hashes.
        """
        if len(before) > MAX_HISTORY:
            return ()
        try:
            here = self._find(order, epoch)
            found = []
            for part in before:
                there = self._kept(part.order, part.epoch)
                leaves = [frame.leaf for frame in islice(_records(there / "in"), part.frames)]
                if len(leaves) < part.frames:
                    return ()
                found.append(History(part.kept, part.frames, history_root(leaves, _salts(there)[0])))
            named = [f"{part.order} {part.epoch} {part.frames}" for part in before]
            (here / "before").write_text("\n".join(named), "ascii")
        except (OSError, ReceiptError):
            return ()
        return tuple(found)

    def _history(self, run: Path, entry: int) -> bytes:
        lines = (run / "before").read_text("ascii").splitlines() if (run / "before").is_file() else []
        if entry > len(lines):
            raise ReceiptError(Refusal.OPENING, f"{len(lines)} earlier parts are known, number {entry} is not")
        order, epoch, count = lines[entry - 1].split()
        there = self._kept(order, int(epoch))
        return history_bytes(list(islice(_records(there / "in"), int(count))), _salts(there)[0])

    def _find(self, order: str, epoch: int) -> Path:
        name = f"-{order}-{epoch}"
        run = next((run for run in self._runs() if run.name.endswith(name)), None)
        if run is None:
            raise ReceiptError(Refusal.OPENING, f"run {order[:16]} epoch {epoch} is not kept here")
        return run

    def _kept(self, order: str, epoch: int) -> Path:
        """The folder of a closed run whose frames are all there. Raises ReceiptError(OPENING)."""
        run = self._find(order, epoch)
        if run in self._open:
            raise ReceiptError(Refusal.OPENING, f"run {order[:16]} epoch {epoch} is still open here")
        if (run / "lost").exists():
            raise ReceiptError(Refusal.OPENING, f"frames of run {order[:16]} were lost")
        return run

    def _runs(self) -> list[Path]:
        """Oldest first: names begin with the time."""
        return sorted(path for path in self._folder.iterdir() if path.name[:12].isdigit())

    def _remove(self, run: Path) -> None:
        size = _size(run)
        shutil.rmtree(run, ignore_errors=True)
        with self._lock:
            self._bytes = max(0, self._bytes - size)


def _salts(run: Path) -> tuple[bytes, bytes]:
    salts = (run / "salts").read_bytes()
    if len(salts) != 64:
        raise ReceiptError(Refusal.OPENING, "kept frames are damaged")
    return salts[:32], salts[32:]


def _size(run: Path) -> int:
    return sum(path.stat().st_size for path in run.iterdir() if path.name in ("in", "out"))


def _crc(seq: int, head: Buffer, body: Buffer) -> int:
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(struct.pack(">QII", seq, len(head), len(body)))))


def _records(path: Path) -> Iterator[Frame]:
    """Whole records from the start; stops at the first that is cut short or damaged."""
    with path.open("rb") as file:
        while len(fixed := file.read(_RECORD.size)) == _RECORD.size:
            seq, head_size, body_size, crc = _RECORD.unpack(fixed)
            if head_size > _MAX_PART or body_size > _MAX_PART:
                return
            head, body = file.read(head_size), file.read(body_size)
            if len(head) != head_size or len(body) != body_size or _crc(seq, head, body) != crc:
                return
            yield Frame(seq, head, body)
