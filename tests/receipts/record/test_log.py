"""The statement log: counters survive restarts and crashes, and a broken log is never signed on."""

from __future__ import annotations

import errno
from io import FileIO
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from receipts.format.closing import Witness
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.statement import Author
from receipts.record import log as log_module
from receipts.record.edge import Buffer
from receipts.record.log import StatementLog

KEY = SigningKey(b"\x07" * 32)
PUBLIC = bytes(KEY.verify_key)
ABOUT = {"order": "ab" * 32}


def sign(data: bytes) -> bytes:
    return KEY.sign(data).signature


def write(author: Author, count: int) -> None:
    run = author.begin_run()
    for seen in range(count):
        author.issue(run, ABOUT, Witness("order", seen, 0, None))


def test_counters_go_on_after_a_restart(tmp_path: Path) -> None:
    with StatementLog(tmp_path, PUBLIC) as log:
        author = log.author(sign)
        write(author, 3)
        write(author, 2)
        log.sync()
        head = author.head
    with StatementLog(tmp_path, PUBLIC) as log:
        assert log.head == head
        write(log.author(sign), 1)
        assert [statement.chain.sequence for statement in log.statements()] == [0, 1, 2, 3, 4, 5]
        assert [statement.chain.run for statement in log.statements()] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("torn", [1, 20, 500])
def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path: Path, torn: int) -> None:
    with StatementLog(tmp_path, PUBLIC) as log:
        write(log.author(sign), 3)
    path = tmp_path / "statements.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    with StatementLog(tmp_path, PUBLIC) as log:
        assert log.head.statements == 2
        write(log.author(sign), 1)
        assert len(list(log.statements())) == 3


def test_only_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "statements.jsonl").write_bytes(b'{"payload":')
    with StatementLog(tmp_path, PUBLIC) as log:
        assert log.head.statements == 0


def test_a_log_that_cannot_be_read_is_not_signed_on(tmp_path: Path) -> None:
    with StatementLog(tmp_path, PUBLIC) as log:
        write(log.author(sign), 2)
    path = tmp_path / "statements.jsonl"
    path.write_bytes(path.read_bytes()[:-30] + b"x" * 29 + b"\n")
    with pytest.raises(ReceiptError) as caught:
        StatementLog(tmp_path, PUBLIC)
    assert caught.value.refusal is Refusal.CHAIN and "statements.jsonl" in str(caught.value)


def test_another_keys_log_is_not_signed_on(tmp_path: Path) -> None:
    with StatementLog(tmp_path, PUBLIC) as log:
        write(log.author(sign), 2)
    with pytest.raises(ReceiptError):
        StatementLog(tmp_path, bytes(SigningKey(b"\x08" * 32).verify_key))


def test_a_removed_line_shows(tmp_path: Path) -> None:
    with StatementLog(tmp_path, PUBLIC) as log:
        write(log.author(sign), 4)
    path = tmp_path / "statements.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    with StatementLog(tmp_path, PUBLIC) as log, pytest.raises(ReceiptError) as caught:
        list(log.statements())
    assert caught.value.refusal is Refusal.CHAIN


def test_the_log_is_bounded_and_its_chain_spans_both_parts(tmp_path: Path) -> None:
    with StatementLog(tmp_path, PUBLIC, max_bytes=4000) as log:
        write(log.author(sign), 40)
        kept = [statement.chain.sequence for statement in log.statements()]
    assert kept == list(range(kept[0], 40)) and kept[0] > 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 4000
    with StatementLog(tmp_path, PUBLIC, max_bytes=4000) as log:
        assert log.head.statements == 40


class Tight(FileIO):
    """A file on a disk that is full when `room` is used up."""

    room = 10**9

    def write(self, data: Buffer) -> int:
        part = bytes(data)[: type(self).room]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        type(self).room -= len(part)
        return super().write(part) or 0


@pytest.mark.parametrize("room", [0, 1, 200])
def test_what_a_full_disk_refused_is_as_if_it_had_never_been_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(log_module, "FileIO", Tight)
    with StatementLog(tmp_path, PUBLIC) as log:
        author = log.author(sign)
        write(author, 2)
        before = author.head.statements
        monkeypatch.setattr(Tight, "room", room)
        with pytest.raises(OSError, match="No space left"):
            write(author, 1)
        monkeypatch.setattr(Tight, "room", 10**9)
        assert author.head.statements == before
        write(author, 2)
        assert [statement.chain.sequence for statement in log.statements()] == [0, 1, 2, 3]
    with StatementLog(tmp_path, PUBLIC) as log:
        assert log.head == author.head


def test_a_log_that_cannot_begin_another_part_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str) -> FileIO:
        raise OSError(errno.ENOSPC, "No space left on device")

    with StatementLog(tmp_path, PUBLIC, max_bytes=1) as log:
        author = log.author(sign)
        write(author, 2)
        with monkeypatch.context() as patched:
            patched.setattr(log_module, "FileIO", full)
            with pytest.raises(OSError, match="No space left"):
                write(author, 1)
        write(author, 1)
        assert [statement.chain.sequence for statement in log.statements()] == [1, 2]
