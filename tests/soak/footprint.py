"""What a process holds at a moment, as the kernel tells it; and how fast that grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory that are resident, descriptors and threads.

    anonymous  of them no file stands behind: what the process itself has taken
    mapped     pages of files, libraries above all, that it has touched so far; the kernel may drop them at any time
    """

    resident: int
    anonymous: int
    mapped: int
    descriptors: int
    threads: int


def footprint(pid: int) -> Footprint:
    """Of a process that runs. Raises OSError."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "Threads"):
            found[name] = int(value.split()[0])
    mapped = found["RssFile"] + found["RssShmem"]
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Footprint(found["VmRSS"] << 10, found["RssAnon"] << 10, mapped << 10, files, found["Threads"])


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk; those that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder, onerror=None):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line nearest to (seconds, value): its rise a minute; 0.0 for fewer than two points."""
    count = len(points)
    if count < 2:
        return 0.0
    mid_x, mid_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mid_x) ** 2 for x, _ in points)
    return 60.0 * sum((x - mid_x) * (y - mid_y) for x, y in points) / spread if spread else 0.0
