"""Kept rows: for a day, within the space, whatever the disk does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from receipts.edge import EdgeLog
from receipts.errors import ReceiptError, Refusal
from receipts.merkle import leaf_hash
from receipts.opened import OpeningRequest, history_untrusted, opened_untrusted
from receipts.rows import DAY_S, Before, RowStore

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
    return store.answer(OpeningRequest(name * 32, 0, (leaf,)).to_bytes())


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
    opened = opened_untrusted(store.answer(OpeningRequest("aa" * 32, 0, (3, 50)).to_bytes()), [3, 50], *ends)
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


def test_the_oldest_go_first_when_space_is_short(tmp_path: Path) -> None:
    store = RowStore(tmp_path, max_bytes=25_000)
    for number, name in enumerate(["aa", "bb", "cc", "dd"]):
        fill(store, name, 5, NOW + number)
        assert store.used_bytes <= 25_000
    for name in ("aa", "bb"):
        with pytest.raises(ReceiptError):
            ask(store, name)
    assert ask(store, "dd")
    assert RowStore(tmp_path, max_bytes=25_000).used_bytes == store.used_bytes
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.name in ("in", "out")) == store.used_bytes


def test_a_run_larger_than_the_space_loses_its_rows_not_itself(tmp_path: Path) -> None:
    store = RowStore(tmp_path, max_bytes=10_000)
    fill(store, "aa", 50, NOW)
    with pytest.raises(ReceiptError, match="lost"):
        ask(store, "aa")
    fill(store, "bb", 2, NOW + 1)
    assert ask(store, "bb")


def test_a_full_disk_loses_the_rows_not_the_run(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    with open("/dev/full", "wb", buffering=0) as full:
        rows._files["in"].close()
        rows._files["in"] = full
        rows.inbound(0, b"head", b"body")
        assert "No space" in rows.lost
        rows.inbound(1, b"head", b"body")
        rows.close()
    with pytest.raises(ReceiptError, match="lost"):
        ask(store, "aa")


def test_a_frame_after_the_close_loses_the_rows_not_the_thread(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.close()
    rows.inbound(0, b"head", b"body")
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
    (entry,) = store.link("bb" * 32, 1, [Before("aa" * 32, 0, 4, 30)])
    assert (entry.kept, entry.frames) == (30, 4)
    request = OpeningRequest("bb" * 32, 1, (), 1)
    with pytest.raises(ReceiptError, match="not kept|open"):
        store.answer(request.to_bytes())
    rows.close()
    frames = history_untrusted(store.answer(request.to_bytes()), (entry.root, 4))
    assert [frame.seq for frame in frames] == [0, 1, 2, 3]
    for root, count in ((entry.root, 3), (entry.root, 5), ("00" * 32, 4)):
        with pytest.raises(ReceiptError):
            history_untrusted(store.answer(request.to_bytes()), (root, count))
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
    with monkeypatch.context() as patched:
        patched.setattr(Path, step, full)
        rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    rows.inbound(0, b"head", b"body")
    rows.close()
    assert "No space" in rows.lost
    with pytest.raises(ReceiptError, match="not kept here"):
        ask(store, "aa")
    assert list(tmp_path.iterdir()) == [] and store.used_bytes == 0


def test_where_not_even_the_loss_can_be_noted_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    store = RowStore(tmp_path, max_bytes=10)
    rows = store.begin("aa" * 32, 0, LEAVES, NOW)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", full)
        rows.inbound(0, b"head", b"body")
    rows.outbound(0, b"head", b"body")
    rows.close()
    with pytest.raises(ReceiptError, match="not kept here"):
        ask(store, "aa")
