"""What one process signs with, and what it says of itself in every receipt."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import draft
import receipts
import swarm
from receipts import Author, Hardware, Secret, Software
from receipts.format.sign import SignedEnvelope
from receipts.record.log import StatementLog
from receipts.record.rows import RowStore
from swarm.base.errors import BusyError, UsageError
from swarm.base.events import Report
from swarm.base.nodeid import Signer
from swarm.ring.order_check import OrderBook
from swarm.ring.transparency_log import TransparencyLog


@dataclass
class ReceiptSigner:
    """Identity, log and hashing thread of one process. `close` when the process ends.

    weights    digest of the manifest's entries of layers [first, last)
    hardware   a claim about this device; `private` holds the values behind its salted digests
    rows       where frames are kept for audits; None: they are not
    disclose   values of `private` stand in receipts openly
    context    positions that the model has; 0: unknown
    orders     which orders were taken, each epoch once
    published  the transparency log in which what ends a run is entered; None: there is none
    """

    author: Author
    log: StatementLog
    software: Software
    manifest: str
    weights: Callable[[int, int], str]
    hardware: Hardware | None = None
    private: tuple[Secret, ...] = ()
    rows: RowStore | None = None
    disclose: bool = False
    context: int = 0
    orders: OrderBook = field(default_factory=OrderBook)
    published: TransparencyLog | None = None
    hasher: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "hash"))

    def close(self) -> None:
        """Finish what is being hashed and close the log."""
        self.hasher.shutdown(wait=True)
        self.log.close()
        if self.published is not None:
            self.published.close()


class KeptLog(StatementLog):
    """A log whose owner signs nothing while its disk is full. `publish` is told what was kept, before it is sent."""

    publish: Callable[[SignedEnvelope], None] | None = None

    def append(self, envelope: SignedEnvelope) -> None:
        """As in `StatementLog`. Raises BusyError where that raises OSError: another node or a later try may do."""
        try:
            super().append(envelope)
        except OSError as error:
            raise BusyError(
                f"busy: cannot keep what is signed in {self.path}: {error.strerror}; free space there"
            ) from error
        if self.publish is not None:
            self.publish(envelope)


def open_log(folder: Path, key: bytes) -> KeptLog:
    """The statements of this identity. Raises UsageError when they cannot be kept."""
    try:
        return KeptLog(folder, key)
    except OSError as error:
        raise UsageError(f"cannot keep statements in {folder}: {error.strerror}; choose another --state") from error
    except receipts.ReceiptError as error:
        raise UsageError(f"the statements kept in {folder} are damaged: {error}") from error


def open_published(folder: Path | None, log: KeptLog, signer: Signer, report: Report) -> TransparencyLog | None:
    """The transparency log in `folder`, entered from now on by what `log` keeps. Raises UsageError."""
    if folder is None:
        return None
    found = TransparencyLog(folder, signer, report)
    log.publish = found.publish
    return found


def software() -> Software:
    """Name, version and a digest over the program's own files: what a node says it runs."""
    total = hashlib.sha256()
    for package in (swarm, draft, receipts):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            total.update(str(path.relative_to(root.parent)).encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return Software("wanswarm", swarm.__version__, total.hexdigest())


def unix_us() -> int:
    """Now, Unix time in microseconds, as statements carry it."""
    return time.time_ns() // 1000


def salted(name: str, value: str) -> Secret:
    """A private value under a fresh salt."""
    return Secret(name, secrets.token_bytes(32), value)
