"""An opening as a node gives it: read from disk piece by piece, so that its size costs no memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from receipts.format.errors import ReceiptError, Refusal
from receipts.record.kept_frames import Kept, read
from receipts.record.row_opening import opening_header

_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class OpeningAnswer:
    """The bytes of one opening (`receipts.record.row_opening`): a header in memory, then frames on disk.

    frames   as they follow, from the file `inbound` the first `prefix`, then from `outbound`
    starts   offset of each frame within the answer, and behind the last the answer's size
    """

    header: bytes
    inbound: Path
    outbound: Path
    prefix: int
    frames: tuple[Kept, ...]
    starts: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.starts[-1]

    def read(self, offset: int, most: int) -> bytes:
        """Bytes [offset, offset + most) or what there is of them; every frame that is touched is checked.

        Raises ReceiptError(OPENING) when they are no longer there, or not what was written.
        """
        if not 0 <= offset < self.size:
            raise ReceiptError(Refusal.OPENING, f"asked for byte {offset} of {self.size}")
        end = min(self.size, offset + most)
        parts = [self.header[offset:end]]
        index = max(0, bisect_right(self.starts, offset) - 1)
        handles: dict[Path, int] = {}
        try:
            while index < len(self.frames) and self.starts[index] < end:
                path = self.inbound if index < self.prefix else self.outbound
                if path not in handles:
                    handles[path] = os.open(path, _READ)
                start = self.starts[index]
                data = read(handles[path], self.frames[index])
                parts.append(data[max(0, offset - start) : max(0, end - start)])
                index += 1
        except OSError as exc:
            raise ReceiptError(Refusal.OPENING, f"kept frames are no longer here: {exc.strerror}") from exc
        finally:
            for handle in handles.values():
                os.close(handle)
        return b"".join(parts)

    def whole(self) -> bytes:
        """All of it, in memory."""
        return self.read(0, self.size)


def answer_of(
    inbound: Path,
    came: Sequence[Kept],
    outbound: Path,
    went: Sequence[Kept],
    salts: tuple[bytes, bytes],
    leaves: Sequence[int],
) -> OpeningAnswer:
    """The answer to a request for `leaves` (1 is the first outbound frame), from all frames that came and went.

    No leaves: all inbound frames, as evidence of what an epoch began from. Raises ReceiptError(OPENING).
    """
    header, prefix = opening_header(came, went, salts, leaves)
    frames = (*came[:prefix], *(went[leaf - 1] for leaf in leaves))
    starts = accumulate((frame.size for frame in frames), initial=len(header))
    return OpeningAnswer(header, inbound, outbound, prefix, frames, tuple(starts))
