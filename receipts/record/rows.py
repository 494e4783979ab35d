"""Frames kept for a day, so that a stage can open any row that a verifier picks: a bounded folder, oldest out first.

Per run and epoch there is a folder with `in` and `out`, files of records (`receipts.record.kept_frames`), and `salts`.
What lies in the folder is read once, in a thread of its own, when the store is made; from then on an index in memory
answers for it. Writing happens in the thread that hashes, never in the event loop, and opening a run touches no disk at
all: its folder is made when its first frame comes. A full disk loses the run's frames, never the run.
"""

from __future__ import annotations

import heapq
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from receipts.format.closing import MAX_HISTORY, History
from receipts.format.errors import ReceiptError, Refusal
from receipts.record.edge import Buffer, frame_leaf
from receipts.record.kept_frames import Kept, record, scan
from receipts.record.opening_answer import OpeningAnswer, answer_of
from receipts.record.row_opening import history_root, request_untrusted

DAY_S = 24 * 3600
MAX_KEPT_BYTES = 4 << 30
MAX_KEPT_RUNS = 100_000
"""Each is a folder and three files: a disk may run out of those before it runs out of bytes."""
FILE_BYTES = 512
"""Counted per file and folder for what the file system keeps about it (an inode and a name)."""
EXPIRE_AT_ONCE = 64
"""Runs removed for their age when one begins: the thread that hashes must not stand still for a day's worth."""
LOAD_TIMEOUT_S = 60.0
CACHED_ANSWERS = 4
_PARTS = ("in", "out")
DIGEST_BYTES, EPOCH_BYTES = 32, 2
_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})-(\d{1,3})")
_VERSION = b"\x02"

Key = bytes
"""The order's digest, then the epoch: short, for the index has up to `MAX_KEPT_RUNS` of them."""


@dataclass(frozen=True)
class Before:
    """The first `frames` inbound frames of another epoch, which filled positions [0, kept) of this one."""

    order: str
    epoch: int
    frames: int
    kept: int


@dataclass(slots=True)
class _Run:
    """One entry of the index; guarded by the store's lock. Where its folder is follows from it and its key."""

    time_s: int
    spent: int
    open: bool


class RunRows:
    """The frames of one stage in one epoch; `inbound` and `outbound` are what `StageRecord` keeps them with."""

    def __init__(self, store: RowStore, key: Key, salts: bytes, now_s: int) -> None:
        self._store, self._key, self._salts, self._now_s = store, key, salts, now_s
        self._files: dict[str, BinaryIO] = {}
        self._sizes = dict.fromkeys(_PARTS, 0)
        self._began = self._closed = False
        self.lost = ""
        """Why frames are missing; empty while all are kept."""

    def inbound(self, seq: int, head: Buffer, body: Buffer, leaf: bytes | None = None) -> None:
        """Keep a frame that came in; `leaf` is its leaf hash, where that is known already."""
        self._write("in", seq, head, body, leaf)

    def outbound(self, seq: int, head: Buffer, body: Buffer, leaf: bytes | None = None) -> None:
        """Keep a frame that went out."""
        self._write("out", seq, head, body, leaf)

    def close(self) -> None:
        """Flush; the run can be opened from now on. Call it after the last frame was hashed."""
        self._closed = True
        for file in self._files.values():
            try:
                file.close()
            except OSError as exc:
                self._lose(str(exc))
        if self._began:
            self._store.closed(self._key)

    def _started(self) -> bool:
        """Make the folder, once. Raises OSError."""
        if not self._began and not self.lost:
            if self._closed:
                raise OSError("the run was closed before its last frame was hashed")
            folder = self._store.start(self._key, self._salts, self._now_s)
            self._began = True
            self._files = {name: (folder / name).open("ab") for name in _PARTS}
        return not self.lost

    def _write(self, name: str, seq: int, head: Buffer, body: Buffer, leaf: bytes | None) -> None:
        try:
            if not self._started():
                return
            before = self._sizes[name]
            fixed = record(seq, head, body, leaf if leaf is not None else frame_leaf(seq, head, body))
            self._sizes[name] = before + len(fixed) + len(head) + len(body)
            if not self._store.grow(self._key, before, self._sizes[name]):
                raise OSError("frames of this run exceed the space for kept rows")
            for part in (fixed, head, body):
                self._files[name].write(part)
        except (OSError, ValueError) as exc:  # ValueError: the run was closed before its last frame was hashed
            self._lose(str(exc))

    def _lose(self, why: str) -> None:
        self.lost = why
        if self._began:  # else the frames under this name, if there are any, are another session's
            self._store.lose(self._key)


class RowStore:
    """Folder of kept rows: at most `max_bytes` and `max_runs` on disk, `keep_s` seconds old. Unix time is an argument.

    Bytes are counted as the disk spends them: whole blocks of every file, the folders, and `FILE_BYTES` for each.
    """

    def __init__(
        self, folder: Path, max_bytes: int = MAX_KEPT_BYTES, keep_s: int = DAY_S, max_runs: int = MAX_KEPT_RUNS
    ) -> None:
        self._folder, self._max_bytes, self._keep_s, self._max_runs = folder, max_bytes, keep_s, max_runs
        self._lock = threading.RLock()
        self._index: dict[Key, _Run] = {}
        self._oldest: list[tuple[int, Key]] = []
        """A heap of closed runs; entries of runs that are gone or were begun anew are passed over."""
        self._answers: OrderedDict[bytes, OpeningAnswer] = OrderedDict()
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._block = _block_bytes(folder)
        self._listed, self._loaded = threading.Event(), threading.Event()
        threading.Thread(target=self._load, name="kept rows", daemon=True).start()

    @property
    def used_bytes(self) -> int:
        self._loaded.wait(LOAD_TIMEOUT_S)
        return self._bytes

    @property
    def runs(self) -> int:
        """How many are kept, those still open among them."""
        self._loaded.wait(LOAD_TIMEOUT_S)
        return len(self._index)

    def begin(self, order: str, epoch: int, salt_leaves: tuple[bytes, bytes], now_s: int) -> RunRows:
        """Keep the frames of a stage of the run with this order digest; `salt_leaves` as from `Opening.salt_leaves`.

        Touches no disk: where frames cannot be kept, for a full disk say, they are lost from the first on.
        """
        return RunRows(self, _key(order, epoch), salt_leaves[0] + salt_leaves[1], now_s)

    # For RunRows, in the thread that hashes.

    def start(self, key: Key, salts: bytes, now_s: int) -> Path:
        """The new folder of a run. Raises OSError, with nothing left behind."""
        try:
            self.expire(now_s, EXPIRE_AT_ONCE)
        except ReceiptError as exc:
            raise OSError(exc.claim) from exc
        run = _Run(now_s, 2 * self._block + 4 * FILE_BYTES, True)
        folder = self._place(key, run)
        with self._lock:
            if key in self._index:
                raise OSError("frames of this run and epoch are kept already")
            if not self._make_room(run.spent, runs=1):
                raise OSError("no space for kept rows")
            self._index[key] = run
            self._bytes += run.spent
        try:
            folder.mkdir()
            (folder / "salts").write_bytes(salts + _VERSION)
        except OSError:
            self._remove(key)
            raise
        return folder

    def grow(self, key: Key, before: int, after: int) -> bool:
        """Count a file that grows, removing the oldest closed runs for it; False when only open runs are left."""
        blocks = -(-after // self._block) - -(-before // self._block)
        with self._lock:
            run = self._index.get(key)
            if run is None or not self._make_room(blocks * self._block):
                return False
            run.spent += blocks * self._block
            self._bytes += blocks * self._block
        return True

    def _note(self, key: Key, lines: Sequence[str]) -> None:
        """Keep what a run began from. Raises OSError."""
        text = "\n".join(lines)
        if not self.grow(key, 0, len(text)):
            raise OSError("no space for kept rows")
        (self._place(key, self._index[key]) / "before").write_text(text, "ascii")

    def lose(self, key: Key) -> None:
        """Frames of an open run are missing; where not even that can be noted, nothing of it is kept."""
        run = self._index.get(key)
        if run is None:
            return
        try:
            (self._place(key, run) / "lost").touch()
        except OSError:
            self._remove(key)

    def closed(self, key: Key) -> None:
        with self._lock:
            if (run := self._index.get(key)) is not None:
                run.open = False
                heapq.heappush(self._oldest, (run.time_s, key))

    # For everybody.

    def expire(self, now_s: int, most: int | None = None) -> None:
        """Remove what is older than a day, the oldest `most` at once; runs still open stay."""
        self._wait()
        count = 0
        while most is None or count < most:
            with self._lock:
                oldest = self._first_closed()
                if oldest is None or self._index[oldest].time_s >= now_s - self._keep_s:
                    return
            self._remove(oldest)
            count += 1

    def answer(self, request: bytes) -> OpeningAnswer:
        """The opening that a verifier asked for, to be read piece by piece.

        Reads the heads of the run's records: call it in a thread. Raises ReceiptError(OPENING).
        """
        with self._lock:
            if (known := self._answers.get(request)) is not None:
                self._answers.move_to_end(request)
                return known
        made = self._answer(request)
        with self._lock:
            self._answers[request] = made
            while len(self._answers) > CACHED_ANSWERS:
                self._answers.popitem(last=False)
        return made

    def _answer(self, request: bytes) -> OpeningAnswer:
        asked = request_untrusted(request)
        folder = self._kept(asked.order, asked.epoch)
        try:
            if asked.history:
                return self._history(folder, asked.history)
            files = {part: _frames(folder, part) for part in _PARTS}
            return answer_of(folder / "in", files["in"], folder / "out", files["out"], _salts(folder), asked.leaves)
        except OSError as exc:
            raise ReceiptError(Refusal.OPENING, f"kept frames cannot be read: {exc.strerror}") from exc

    def link(self, order: str, epoch: int, before: Sequence[Before]) -> tuple[History, ...]:
        """Note what an epoch began from, oldest first; gives what its END says of it: nothing when that is not kept.

        Nothing either where no frame of the epoch itself is kept: nobody can ask about it then.

        Reads what is named: call it in the thread that hashes.
        """
        if len(before) > MAX_HISTORY:
            return ()
        try:
            found = []
            for part in before:
                there = self._kept(part.order, part.epoch)
                leaves = [frame.leaf for frame in _frames(there, "in", part.frames)]
                if len(leaves) < part.frames:
                    return ()
                found.append(History(part.kept, part.frames, history_root(leaves, _salts(there)[0])))
            self._note(_key(order, epoch), [f"{part.order} {part.epoch} {part.frames}" for part in before])
        except (OSError, ReceiptError):
            return ()
        return tuple(found)

    def _history(self, folder: Path, entry: int) -> OpeningAnswer:
        noted = folder / "before"
        lines = noted.read_text("ascii").splitlines() if noted.is_file() else []
        if entry > len(lines):
            raise ReceiptError(Refusal.OPENING, f"{len(lines)} earlier parts are known, number {entry} is not")
        order, epoch, count = lines[entry - 1].split()
        there = self._kept(order, int(epoch))
        salt = _salts(there)[0]
        return answer_of(there / "in", _frames(there, "in", int(count)), there / "out", (), (salt, salt), ())

    def _place(self, key: Key, run: _Run) -> Path:
        """The folder of a run."""
        return self._folder / f"{run.time_s:012d}-{key[:DIGEST_BYTES].hex()}-{int.from_bytes(key[DIGEST_BYTES:])}"

    def _kept(self, order: str, epoch: int) -> Path:
        """The folder of a closed run whose frames are all there. Raises ReceiptError(OPENING)."""
        self._wait()
        key = _key(order, epoch)
        with self._lock:
            run = self._index.get(key)
        name = f"run {order[:16]} epoch {epoch}"
        if run is None:
            raise ReceiptError(Refusal.OPENING, f"{name} is not kept here")
        if run.open:
            raise ReceiptError(Refusal.OPENING, f"{name} is still open here")
        folder = self._place(key, run)
        if (folder / "lost").exists():
            raise ReceiptError(Refusal.OPENING, f"frames of {name} were lost")
        return folder

    def _make_room(self, size: int, runs: int = 0) -> bool:
        """Whether that much more fits, once the oldest closed runs are gone."""
        while self._bytes + size > self._max_bytes or len(self._index) + runs > self._max_runs:
            oldest = self._first_closed()
            if oldest is None:
                return False
            self._remove(oldest)
        return True

    def _first_closed(self) -> Key | None:
        while self._oldest:
            time_s, key = self._oldest[0]
            run = self._index.get(key)
            if run is not None and not run.open and run.time_s == time_s:
                return key
            heapq.heappop(self._oldest)
        return None

    def _remove(self, key: Key) -> None:
        with self._lock:
            run = self._index.pop(key, None)
            if run is None:
                return
            self._bytes -= run.spent
        shutil.rmtree(self._place(key, run), ignore_errors=True)

    def _wait(self) -> None:
        """Until names were read. Raises ReceiptError(OPENING) when that does not end."""
        if not self._listed.wait(LOAD_TIMEOUT_S):
            raise ReceiptError(Refusal.OPENING, "this node still reads what it kept; ask again later")

    def _load(self) -> None:
        """Read what an earlier process kept: names at once, then what each run spends, the oldest first."""
        try:
            found = self._list()
        except OSError:
            found = []  # what cannot be read is not opened; new runs are tried
        self._listed.set()
        try:
            for key, run in found:
                self._measure(key, run)
            with self._lock:
                self._make_room(0)
        finally:
            self._loaded.set()

    def _list(self) -> list[tuple[Key, _Run]]:
        with os.scandir(self._folder) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if (match := _NAME.fullmatch(name)) is not None:
                time_s, key = int(match[1]), _key(match[2], int(match[3]))
                if self._index.setdefault(key, run := _Run(time_s, 0, False)) is run:
                    self._oldest.append((time_s, key))
                else:
                    shutil.rmtree(self._folder / name, ignore_errors=True)  # the first account of a run stands
        heapq.heapify(self._oldest)
        return list(self._index.items())

    def _measure(self, key: Key, run: _Run) -> None:
        files = _sizes(self._place(key, run))
        with self._lock:
            if self._index.get(key) is not run:
                return
            if "salts" not in files:  # a crash while it began
                self._remove(key)
                return
            run.spent = (1 + sum(-(-size // self._block) for size in files.values())) * self._block + 4 * FILE_BYTES
            self._bytes += run.spent


def _key(order: str, epoch: int) -> Key:
    return bytes.fromhex(order) + epoch.to_bytes(EPOCH_BYTES)


def _block_bytes(folder: Path) -> int:
    """What the file system spends at a time; the usual 4 KiB where it does not say (Windows)."""
    return max(512, os.statvfs(folder).f_frsize) if hasattr(os, "statvfs") else 4096


def _sizes(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as files:
            return {file.name: file.stat().st_size for file in files}
    except OSError:
        return {}


def _frames(folder: Path, part: str, most: int | None = None) -> list[Kept]:
    return scan(folder / part, (folder / "salts").stat().st_size == 64, most)


def _salts(folder: Path) -> tuple[bytes, bytes]:
    salts = (folder / "salts").read_bytes()
    if len(salts) != 64 and salts[64:] != _VERSION:
        raise ReceiptError(Refusal.OPENING, "kept frames are damaged")
    return salts[:32], salts[32:64]
