"""A node's own log of everything it signed: one envelope per line, each naming the one before by its digest.

The log is what keeps the counters of a node from going back: after a restart the author goes on where the log ends.
A line that a crash cut short is dropped on opening; it was never part of a message, since statements are logged first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType

from receipts.format.canonical import parse_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.sign import MAX_PAYLOAD, Sign, SignedEnvelope, envelope_from_json_untrusted
from receipts.format.statement import Author, ChainHead, Statement, statement_untrusted

MAX_LOG_BYTES = 16 << 20
RECENT_LINES = 256
_TAIL_BYTES = 4 * MAX_PAYLOAD


class StatementLog:
    """Append-only file `statements.jsonl` in `folder`, with one older part beside it; at most twice `max_bytes`.

    Raises ReceiptError(CHAIN) when the file's last whole line is not an envelope of `key`: a node must not go on
    signing with a counter it cannot know. OSError passes through: the caller says what to do about a full disk.
    """

    def __init__(self, folder: Path, key: bytes, max_bytes: int = MAX_LOG_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "statements.jsonl"
        self.older = folder / "statements.older.jsonl"
        self._key = key
        self._max_bytes = max_bytes
        _drop_torn_line(self.path)
        self.head = self._read_head()
        self._file = self._opened()
        self._size = self.path.stat().st_size

    def author(self, sign: Sign) -> Author:
        """The identity whose statements this log holds, going on where it ends."""
        return Author(self._key, sign, self.head, self)

    def append(self, envelope: SignedEnvelope) -> None:
        """Write one envelope through to the operating system; it survives the end of this process.

        Raises OSError with the log as it was before: what is not kept must not be sent.
        """
        if self._size > self._max_bytes:
            self._rotate()
        line = envelope.to_bytes() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)

    def _rotate(self) -> None:
        os.replace(self.path, self.older)
        try:
            fresh = self._opened()
        except OSError:
            os.replace(self.older, self.path)
            raise
        self._file.close()
        self._file, self._size = fresh, 0

    def _opened(self) -> FileIO:
        """Unbuffered, so that nothing of a line that failed can follow it later."""
        return FileIO(self.path, "ab")

    def sync(self) -> None:
        """Write through to the disk, so that it survives a power cut. Blocks for milliseconds: call it in a thread."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> StatementLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def statements(self) -> Iterator[Statement]:
        """Every statement still kept, oldest first, signatures and chain checked. Raises ReceiptError(CHAIN)."""
        before: Statement | None = None
        for path in (self.older, self.path):
            if not path.exists():
                continue
            with path.open("rb") as lines:
                for line in lines:
                    statement = self._read(line)
                    broken = before is not None and (
                        statement.chain.previous != before.digest
                        or statement.chain.sequence != before.chain.sequence + 1
                    )
                    if broken:
                        raise ReceiptError(Refusal.CHAIN, f"{path.name}: statement {statement.chain.sequence}")
                    before = statement
                    yield statement

    def _read(self, line: bytes) -> Statement:
        envelope = envelope_from_json_untrusted(parse_untrusted(line, 2 * MAX_PAYLOAD, 4))
        envelope.check()
        if envelope.key != self._key:
            raise ReceiptError(Refusal.SIGNER, f"{self.path}: holds statements of another key")
        return statement_untrusted(envelope)

    def _read_head(self) -> ChainHead:
        lines = _last_lines(self.path) or _last_lines(self.older)
        if not lines:
            return ChainHead()
        try:
            last = self._read(lines[-1])
        except ReceiptError as exc:
            raise ReceiptError(Refusal.CHAIN, f"{self.path}: last line cannot be read ({exc}); move it away") from exc
        return ChainHead(self._newest_run() + 1, last.chain.sequence + 1, last.digest)

    def _newest_run(self) -> int:
        """Runs interleave, so the newest need not have the last line; more than these are never open at once."""
        lines = [*_last_lines(self.older), *_last_lines(self.path)][-RECENT_LINES:]
        envelopes = [envelope_from_json_untrusted(parse_untrusted(line, 2 * MAX_PAYLOAD, 4)) for line in lines]
        return max(statement_untrusted(envelope).chain.run for envelope in envelopes)


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        end = file.read().rfind(b"\n")
        if end < 0 and start:
            raise ReceiptError(Refusal.CHAIN, f"{path}: no line end in its last {_TAIL_BYTES} bytes; move it away")
        if start + end + 1 != size:
            file.truncate(start + end + 1)


def _last_lines(path: Path) -> list[bytes]:
    """Whole lines at the end of a file, at least one when there is any."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        lines = file.read().splitlines()
    return lines[1:] if start else lines
