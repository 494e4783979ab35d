"""Kept rows: for a day, within the space, whatever the disk does."""

from __future__ import annotations

import gc
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import leaf_hash
from receipts.record.edge import EdgeLog
from receipts.record.kept_frames import RECORD_BYTES
from receipts.record.row_opening import OpeningRequest, history_untrusted, opened_untrusted
from receipts.record.rows import DAY_S, FILE_BYTES, Before, RowStore

NOW = 1_790_000_000
SALT = b"\x01" * 32
LEAVES = (leaf_hash(SALT), leaf_hash(SALT))


def fill(store: RowStore, name: str, frames: int, now_s: int, size: int = 1000) -> None:
    rows = store.begin(name * 32, 0, LEAVES, now_s)
    for seq in range(frames):
        rows.inbound(seq, b"head", bytes(size))
        rows.outbound(seq, b"head", bytes(size))
    rows.close()


def ask(store: RowStore, name: str, leaf: int = 1) -> bytes:
    return store.answer(OpeningRequest(name * 32, 0, (leaf,)).to_bytes()).whole()


def test_what_an_edge_hashed_is_what_is_opened(tmp_path: Path) -> None:
    """The real path: edge logs with a hashing thread that also keeps the frames."""
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    with ThreadPoolExecutor(1) as executor:
        inbound = EdgeLog(0, "receiver", "x", "y", SALT, executor, rows.inbound)
        outbound = EdgeLog(1, "sender", "y", "z", SALT, executor, rows.outbound)
        for seq in range(50):
            inbound.frame(seq, b"in %d" % seq, memoryview(bytes([seq]) * (40_000 if seq % 7 == 0 else 100)))
            outbound.frame(seq, b"out %d" % seq, bytearray([seq]) * 300)
        ends = (inbound.root(), inbound.frames), (outbound.root(), outbound.frames)
    rows.close()
    opened = opened_untrusted(store.answer(OpeningRequest("aa" * 32, 0, (3, 50)).to_bytes()).whole(), [3, 50], *ends)
    assert [frame.seq for frame in opened.inbound] == list(range(50))
    assert [(leaf, frame.head) for leaf, frame in opened.outbound] == [(3, b"out 2"), (50, b"out 49")]
    assert len(opened_untrusted(ask(store, "aa", 8), [8], *ends).inbound) == 8


def test_rows_expire_after_a_day(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 3, NOW)
    fill(store, "bb", 3, NOW + 1000)
    assert ask(store, "aa")
    store.expire(NOW + DAY_S + 1)
    with pytest.raises(ReceiptError) as caught:
        ask(store, "aa")
    assert caught.value.refusal is Refusal.OPENING
    assert ask(store, "bb")


def on_disk(folder: Path) -> int:
    """What the file system says that all below the folder takes up."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def test_the_oldest_go_first_when_space_is_short(tmp_path: Path) -> None:
    store = RowStore(tmp_path, max_bytes=60_000)
    for number, name in enumerate(["aa", "bb", "cc", "dd"]):
        fill(store, name, 5, NOW + number)
        assert store.used_bytes <= 60_000
    for name in ("aa", "bb"):
        with pytest.raises(ReceiptError):
            ask(store, name)
    assert ask(store, "dd")
    assert RowStore(tmp_path, max_bytes=60_000).used_bytes == store.used_bytes


def test_what_is_counted_is_what_the_disk_spends(tmp_path: Path) -> None:
    """Small runs above all: their frames are a fraction of what their files take."""
    store = RowStore(tmp_path)
    for number in range(40):
        fill(store, f"{number:02x}", 1 + number % 3, NOW + number, size=20)
    fill(store, "ff", 30, NOW + 100, size=3000)
    assert on_disk(tmp_path) <= store.used_bytes <= on_disk(tmp_path) + 41 * 4 * (FILE_BYTES + 4096)
    assert RowStore(tmp_path).used_bytes == store.used_bytes


def test_runs_are_counted_too(tmp_path: Path) -> None:
    store = RowStore(tmp_path, max_runs=5)
    for number in range(20):
        fill(store, f"{number:02x}", 1, NOW + number)
    assert store.runs == 5 and len(list(tmp_path.iterdir())) == 5
    assert ask(store, "13") and ask(store, "0f")
    with pytest.raises(ReceiptError, match="not kept"):
        ask(store, "0e")
    assert RowStore(tmp_path, max_runs=3).runs == 3


def held_bytes(root: object) -> int:
    """What an object and all that it leads to take up, in bytes; not types, modules and functions, which all share."""
    found, known, waiting = 0, set(), [root]
    while waiting:
        each = waiting.pop()
        if id(each) not in known and not isinstance(each, (type, ModuleType, FunctionType)):
            known.add(id(each))
            found += sys.getsizeof(each)
            waiting += gc.get_referents(each)
    return found


def test_the_index_of_many_runs_is_small(tmp_path: Path) -> None:
    """It may hold 100,000: with a path and a digest in hex it took 930 bytes a run, 93 MB in all."""
    store, count = RowStore(tmp_path), 500
    fill(store, "aa", 1, NOW)
    before = held_bytes(store)
    for number in range(count):
        rows = store.begin(f"{number:064x}", 0, LEAVES, NOW + number)
        rows.inbound(0, b"head", b"body")
        rows.close()
    del rows
    assert store.runs == count + 1
    assert 100 * count < held_bytes(store) - before < 450 * count


def test_beginning_a_run_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are kept: it happens in the event loop, and a listing of 40,000 runs took 1.27 s there."""
    store = RowStore(tmp_path)
    for number in range(50):
        fill(store, f"{number:02x}", 1, NOW + number)
    assert store.runs == 50
    calls: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: calls.append(name) or real(*args, **kwargs)

    for module, name in [(os, "scandir"), (os, "listdir"), (os, "mkdir"), (os, "stat"), (os, "open"), (io, "open")]:
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    rows = [store.begin(f"{number:02x}" * 32, 1, LEAVES, NOW + 100) for number in range(50)]
    assert calls == []
    rows[0].inbound(0, b"head", b"body")
    assert "mkdir" in calls and not {"scandir", "listdir"} & set(calls)
    rows[0].close()


def test_a_second_session_of_one_order_leaves_the_first_ones_frames_alone(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 3, NOW)
    opened = ask(store, "aa", 3)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW + 5)
    rows.inbound(0, b"other", b"frame")
    rows.close()
    assert "already" in rows.lost and ask(store, "aa", 3) == opened
    assert ask(RowStore(tmp_path), "aa", 3) == opened


def test_an_answer_is_read_in_pieces_of_any_size(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 12, NOW, size=700)
    answer = store.answer(OpeningRequest("aa" * 32, 0, (2, 9)).to_bytes())
    whole = answer.whole()
    assert len(whole) == answer.size
    for size in (1, 7, 699, 700, 704, 705, 5000, len(whole)):
        assert b"".join(answer.read(at, size) for at in range(0, len(whole), size)) == whole
    for at in (-1, len(whole)):
        with pytest.raises(ReceiptError):
            answer.read(at, 10)


def test_asking_for_one_row_reads_no_frame_but_those_that_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 200, NOW, size=50_000)
    wanted, read = 0, os.pread

    def counting(handle: int, size: int, at: int) -> bytes:
        nonlocal wanted
        wanted += size
        return read(handle, size, at)

    monkeypatch.setattr(os, "pread", counting)
    answer = store.answer(OpeningRequest("aa" * 32, 0, (3,)).to_bytes())
    assert wanted == 2 * 201 * RECORD_BYTES  # heads alone, and the end of either file
    answer.read(0, 4096)
    assert wanted <= 2 * 201 * RECORD_BYTES + 50_004


@pytest.mark.parametrize("name", ["in", "out"])
def test_a_frame_that_rotted_on_the_disk_is_not_opened(tmp_path: Path, name: str) -> None:
    """It would convict an honest node."""
    store = RowStore(tmp_path)
    fill(store, "aa", 4, NOW)
    (run,) = tmp_path.iterdir()
    data = bytearray((run / name).read_bytes())
    data[-500 - len(data) // 2] ^= 1  # in frame 1
    (run / name).write_bytes(data)
    assert ask(store, "aa", 1)
    with pytest.raises(ReceiptError, match="damaged"):
        ask(store, "aa", 2)


def test_frames_that_an_older_version_kept_are_opened(tmp_path: Path) -> None:
    """Its records had no leaf hash, and its `salts` no version."""
    store = RowStore(tmp_path / "now")
    fill(store, "aa", 6, NOW)
    run = tmp_path / "then" / f"{NOW:012d}-{'aa' * 32}-0"
    run.mkdir(parents=True)
    (run / "salts").write_bytes(b"".join(LEAVES))
    for name in ("in", "out"):
        with (run / name).open("wb") as file:
            for seq in range(6):
                parts = struct.pack(">QII", seq, 4, 1000)
                crc = zlib.crc32(bytes(1000), zlib.crc32(b"head", zlib.crc32(parts)))
                file.write(parts + struct.pack(">I", crc) + b"head" + bytes(1000))
    older = RowStore(tmp_path / "then")
    assert ask(older, "aa", 4) == ask(store, "aa", 4)
    with (run / "in").open("rb+") as file:
        file.seek(3 * 1024 + 100)
        file.write(b"x")
    with pytest.raises(ReceiptError):
        history_untrusted(older.answer(OpeningRequest("aa" * 32, 0, (6,)).to_bytes()).whole(), ("00" * 32, 6))


def test_a_run_larger_than_the_space_loses_its_rows_not_itself(tmp_path: Path) -> None:
    store = RowStore(tmp_path, max_bytes=40_000)
    fill(store, "aa", 50, NOW)
    with pytest.raises(ReceiptError, match="lost"):
        ask(store, "aa")
    fill(store, "bb", 2, NOW + 1)
    assert ask(store, "bb")


def test_a_full_disk_loses_the_rows_not_the_run(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.inbound(0, b"head", b"body")
    with open("/dev/full", "wb", buffering=0) as full:
        rows._files["in"].close()
        rows._files["in"] = full
        rows.inbound(1, b"head", b"body")
        assert "No space" in rows.lost
        rows.inbound(2, b"head", b"body")
        rows.close()
    with pytest.raises(ReceiptError, match="lost"):
        ask(store, "aa")


def test_a_frame_after_the_close_loses_the_rows_not_the_thread(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.inbound(0, b"head", b"body")
    rows.close()
    rows.inbound(1, b"head", b"body")
    assert rows.lost
    with pytest.raises(ReceiptError, match="lost"):
        ask(store, "aa")


def test_a_record_cut_short_by_a_crash_ends_the_file(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 4, NOW)
    (run,) = tmp_path.iterdir()
    for name in ("in", "out"):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[:-500])
    again = RowStore(tmp_path)
    assert ask(again, "aa", 3)
    with pytest.raises(ReceiptError):
        ask(again, "aa", 4)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"{}",
        b'{"epoch":0,"leaves":[1],"order":"../../../etc/passwd"}',
        b'{"epoch":0,"leaves":[],"order":"' + b"aa" * 32 + b'"}',
        b'{"epoch":0,"leaves":[0],"order":"' + b"aa" * 32 + b'"}',
        b'{"epoch":0,"leaves":[99],"order":"' + b"aa" * 32 + b'"}',
        b'{"epoch":1,"leaves":[1],"order":"' + b"aa" * 32 + b'"}',
        b"[" * 100_000,
    ],
)
def test_requests_of_strangers(tmp_path: Path, request_bytes: bytes) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 3, NOW)
    with pytest.raises(ReceiptError):
        store.answer(request_bytes)


def test_an_open_run_is_neither_opened_nor_expired(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.inbound(0, b"", b"")
    store.expire(NOW + 10 * DAY_S)
    with pytest.raises(ReceiptError):
        ask(store, "aa")
    rows.outbound(0, b"", b"")
    rows.close()
    assert ask(store, "aa")


def test_what_an_epoch_began_from_is_opened_whole_and_no_further(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 9, NOW)
    rows = store.begin("bb" * 32, 1, LEAVES, NOW + 1)
    rows.inbound(0, b"head", b"body")
    (entry,) = store.link("bb" * 32, 1, [Before("aa" * 32, 0, 4, 30)])
    assert (entry.kept, entry.frames) == (30, 4)
    request = OpeningRequest("bb" * 32, 1, (), 1)
    with pytest.raises(ReceiptError, match="not kept|open"):
        store.answer(request.to_bytes())
    rows.close()
    frames = history_untrusted(store.answer(request.to_bytes()).whole(), (entry.root, 4))
    assert [frame.seq for frame in frames] == [0, 1, 2, 3]
    for root, count in ((entry.root, 3), (entry.root, 5), ("00" * 32, 4)):
        with pytest.raises(ReceiptError):
            history_untrusted(store.answer(request.to_bytes()).whole(), (root, count))
    with pytest.raises(ReceiptError, match="number 2"):
        store.answer(OpeningRequest("bb" * 32, 1, (), 2).to_bytes())
    with pytest.raises(ReceiptError):
        history_untrusted(ask(store, "aa"), (entry.root, 1))


def test_what_is_no_longer_kept_is_not_promised(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    fill(store, "aa", 3, NOW)
    rows = store.begin("bb" * 32, 0, LEAVES, NOW + 1)
    assert store.link("bb" * 32, 0, [Before("aa" * 32, 0, 4, 30)]) == ()
    assert store.link("bb" * 32, 0, [Before("cc" * 32, 0, 1, 30)]) == ()
    assert store.link("bb" * 32, 0, [Before("bb" * 32, 0, 0, 30)]) == ()  # still open
    assert store.link("bb" * 32, 0, [Before("aa" * 32, 0, 1, 30)] * 65) == ()
    rows.close()


@pytest.mark.parametrize("step", ["mkdir", "write_bytes"])
def test_a_disk_that_is_full_from_the_start_loses_the_rows_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    with monkeypatch.context() as patched:
        patched.setattr(Path, step, full)
        rows.inbound(0, b"head", b"body")
    rows.close()
    assert "No space" in rows.lost
    with pytest.raises(ReceiptError, match="not kept here"):
        ask(store, "aa")
    assert list(tmp_path.iterdir()) == [] and store.used_bytes == 0


def test_where_not_even_the_loss_can_be_noted_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    store = RowStore(tmp_path, max_bytes=20_000)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.inbound(0, b"head", b"body")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", full)
        rows.inbound(0, b"head", bytes(30_000))
    rows.outbound(0, b"head", b"body")
    rows.close()
    with pytest.raises(ReceiptError, match="not kept here"):
        ask(store, "aa")
