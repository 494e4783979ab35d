"""What one end of an edge keeps during a run: a Merkle tree over what crossed, and its own round-trip times.

Hashing is off the critical path: a thread does it, in order. Large frames go there at once, beside the compute; small
ones wait for each other, since waking a thread for each of them costs a pass more than the hashing itself does. The
lists never grow with the run: the tree keeps O(log n) hashes, and of round-trip times so many are held at most.
"""

from __future__ import annotations

import statistics
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from receipts.format.closing import MAX_SAMPLES, RttSeries
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import Accumulator, leaf_hash
from receipts.format.salt import Secret

Buffer = bytes | bytearray | memoryview
Keep = Callable[[int, Buffer, Buffer, bytes], None]
"""Store frame `seq` (head, body): called in order, in the hashing thread."""

LARGE_BYTES = 32 << 10
BATCH_FRAMES = 64
"""Small frames that wait before the thread is woken; with fewer bytes each than a large one, so 2 MiB at most."""
HASHING_TIMEOUT_S = 30.0
MOST_RTT = 4096
"""Round-trip times that are held of one end: of a run of hours, at one every two seconds."""


def frame_leaf(seq: int, head: Buffer, body: Buffer) -> bytes:
    """Leaf hash of one frame: data is seq (8 bytes, big-endian), length of head (4 bytes), head, body."""
    return leaf_hash(struct.pack(">QI", seq, len(head)), head, body)


def rtt_series(samples_us: Sequence[int]) -> RttSeries:
    """Summarise round-trip times (microseconds, in the order measured); keeps 64 of them, the least among them."""
    count = len(samples_us)
    if not count:
        return RttSeries(0, 0, 0, ())
    least = min(samples_us)
    kept = list(samples_us)
    if count > MAX_SAMPLES:
        kept = [samples_us[index * count // MAX_SAMPLES] for index in range(MAX_SAMPLES)]
        if least not in kept:
            kept[-1] = least
    return RttSeries(count, least, int(statistics.median(samples_us)), tuple(kept))


class RttSamples:
    """The round-trip times of one end, in bounded memory: `count` and the least are of all.

    The series of up to MOST_RTT times is that of all of them. Of more every second one is kept, then every fourth, and
    so on: the median and the series are of those.
    """

    def __init__(self) -> None:
        self.count = 0
        self._least = 0
        self._step = 1
        self._kept: list[int] = []

    def add(self, rtt_us: int) -> None:
        """One more, in microseconds."""
        self._least = min(self._least, rtt_us) if self.count else rtt_us
        if self.count % self._step == 0:
            self._kept.append(rtt_us)
            if len(self._kept) > MOST_RTT:
                del self._kept[1::2]
                self._step *= 2
        self.count += 1

    def series(self) -> RttSeries:
        """What is signed of them."""
        series = rtt_series(self._kept)
        if series.min_us == self._least or not self.count:
            return replace(series, count=self.count)
        return RttSeries(self.count, self._least, series.median_us, (*series.samples_us[:-1], self._least))


class EdgeLog:
    """One end ("sender" or "receiver") of edge `index`.

    Call `frame` for every frame as it crosses, in order, with the same head and body bytes at both ends; buffers must
    not be changed afterwards. Call `ping` with each measured round trip. Not thread-safe: one event loop calls it.
    `executor` hashes beside the compute; without one everything is hashed at once. `flush` hands it what waits.
    """

    def __init__(
        self,
        index: int,
        end: str,
        sender: str,
        receiver: str,
        salt: bytes,
        executor: Executor | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.index = index
        self.end = end
        self.sender = sender
        self.receiver = receiver
        self.link = "direct"
        self.frames = 0
        self.bytes = 0
        self.observed: Secret | None = None
        self.other_rtt: RttSeries | None = None
        self._own_rtt: RttSeries | None = None
        self._samples = RttSamples()
        self._executor = executor
        self._keep = keep
        self._tree = Accumulator()
        self._tree.add(leaf_hash(salt))
        self._pending: deque[tuple[int, Buffer, Buffer]] = deque()
        self._draining = False
        self._changed = threading.Condition()

    def frame(self, seq: int, head: Buffer, body: Buffer = b"") -> None:
        """Count and hash one frame as it crosses the edge; `body` is the tensor as sent, after wire quantisation."""
        size = len(head) + len(body)
        self.frames += 1
        self.bytes += size
        if self._executor is None:
            self._add(seq, head, body)
            return
        self._pending.append((seq, head, body))
        if size > LARGE_BYTES or len(self._pending) >= BATCH_FRAMES:
            self.flush()

    def flush(self) -> None:
        """Have everything hashed and kept that crossed so far: the thread starts on it now."""
        with self._changed:
            if self._draining or not self._pending or self._executor is None:
                return
            self._draining = True
        try:
            self._executor.submit(self._drain)
        except RuntimeError:  # the executor was shut down: the process is ending, and nothing waits for this loop
            self._drain()

    def ping(self, rtt_us: int) -> None:
        """One round trip that this end measured (its own nonce came back), in microseconds."""
        self._samples.add(rtt_us)

    def see(self, address: str, salt: bytes) -> None:
        """The other end's address as this end sees it, "host:port"; only its salted digest is signed."""
        self.observed = Secret("address", salt, address)

    def root(self) -> str:
        """Hex Merkle root over what crossed so far; waits for the hashing thread.

        Raises ReceiptError(EDGE_ROOT) when that does not finish within 30 s: its executor was shut down too early.
        """
        with self._changed:
            here = not self._draining
        if here:  # a few small frames at most: not worth a thread
            self._drain()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._draining, HASHING_TIMEOUT_S):
                raise ReceiptError(Refusal.EDGE_ROOT, f"edge {self.index}: frames are still not hashed")
        return self._tree.root().hex()

    def own_rtt(self) -> RttSeries:
        """This end's series; fixed by the first call, since the other end signs the same numbers."""
        if self._own_rtt is None:
            self._own_rtt = self._samples.series()
        return self._own_rtt

    def settle(self, half: RttSeries) -> None:
        """Take the other end's half: its own round-trip times."""
        self.other_rtt = half

    def _add(self, seq: int, head: Buffer, body: Buffer) -> None:
        leaf = frame_leaf(seq, head, body)
        self._tree.add(leaf)
        if self._keep is not None:
            self._keep(seq, head, body, leaf)

    def _drain(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    # In one step with finding nothing: a frame that comes now starts the thread again.
                    self._draining = False
                    self._changed.notify_all()
                    return
                entry = self._pending.popleft()
            self._add(*entry)
