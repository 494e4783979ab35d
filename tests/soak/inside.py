"""A look into a process that goes on: SIGUSR2 makes it write down what it holds, to `inside-N.json` beside its log.

    node = await nodes.add((0, 2), lie="tests.soak.inside:install")
    seen = await look(node)

What the kernel counts, what malloc and Python's own allocator have taken and what is free of it, what Python's
collector found dead, objects by type, and how many entries the containers of this product's objects have, by class and
attribute: what grows with the peers ever seen shows there. `malloc_trim` tells what is held from what is only not given
back.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Iterator, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.ring.nest import Node
from tests.soak.footprint import footprint

OURS = ("swarm.", "receipts.", "draft.")
CONTAINERS = (dict, list, set, frozenset, deque, bytearray, tuple)
_OURS = re.compile(r"/(swarm|receipts|draft)/")
LOOK_S = 60.0
FRAMES = 12
_numbers: Iterator[int] = iter(range(1, 1 << 30))


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def install() -> None:
    """In the process that is to be looked into, before it begins."""
    signal.signal(signal.SIGUSR2, lambda *_: _write())


def install_traced() -> None:
    """The same, with the places where Python's memory was taken; the process needs more for that itself."""
    tracemalloc.start(FRAMES)
    install()


def forget_soon() -> None:
    """The same as `install`, where a member's record is forgotten five seconds after its end instead of ten minutes: of
    peers that come by the thousand in minutes, what stays is then what would stay of them in hours."""
    from swarm.mesh.state import Bounds

    known = dict(zip(Bounds.__dataclass_fields__, Bounds.__init__.__defaults__ or (), strict=True)) | {"grave": 5.0}
    Bounds.__init__.__defaults__ = tuple(known.values())  # type: ignore[misc]
    install()


async def look(node: Node) -> dict[str, Any]:
    """What a node holds now."""
    state = node.nest.state / node.name
    before = len(list(state.glob("inside-*.json")))
    node.signal(signal.SIGUSR2)
    async with asyncio.timeout(LOOK_S):
        while len(found := list(state.glob("inside-*.json"))) == before:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.05)
    newest = max(found, key=lambda path: int(path.stem.partition("-")[2]))
    told: dict[str, Any] = json.loads(newest.read_text())
    return told


def _write() -> None:
    folder = Path(os.readlink("/proc/self/fd/2")).parent
    told = held()
    path = folder / f"inside-{next(_numbers)}.json"
    path.with_suffix(".part").write_text(json.dumps(told))
    path.with_suffix(".part").replace(path)


def held() -> dict[str, Any]:
    """What this process holds."""
    blocks, counts, stats = sys.getallocatedblocks(), gc.get_count(), gc.get_stats()
    asleep = {**asdict(footprint(os.getpid())), **_malloc(), "blocks": blocks, "arenas": _arenas()}
    begun = time.perf_counter()
    dead = gc.collect()
    collected = {"dead": dead, "seconds": round(time.perf_counter() - begun, 3), "counts": counts, "stats": stats,
                 "frozen": gc.get_freeze_count()}  # fmt: skip
    first = {**asdict(footprint(os.getpid())), **_malloc()}
    ctypes.CDLL(None).malloc_trim(0)
    trimmed = {**asdict(footprint(os.getpid())), **_malloc()}
    objects = gc.get_objects()
    types = Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in objects)
    told = {
        "uncollected": asleep,
        "collected": collected,
        "memory": first,
        "trimmed": trimmed,
        "blocks": sys.getallocatedblocks(),
        "arenas": _arenas(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "tasks": _tasks(objects),
        "types": dict(types),
        "containers": dict(_containers(objects)),
        "loops": _loops(objects),
        "maps": _maps(),
    }
    if tracemalloc.is_tracing():
        told["traced"] = _traced()
    return told


def _malloc() -> dict[str, int]:
    """Of glibc: taken from the kernel, in use of it, mapped apart. {} elsewhere."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return {}
    libc.mallinfo2.restype = _MallInfo
    info = libc.mallinfo2()
    return {"heap": info.arena, "used": info.uordblks, "free": info.fordblks, "apart": info.hblkhd}


def _arenas() -> int:
    """Of Python's allocator for small objects, as it counts them."""
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        real = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(real, 2)
            os.close(real)
        file.seek(0)
        found = re.search(rb"# arenas allocated current\s*=\s*([\d,]+)", file.read())
    return int(found.group(1).replace(b",", b"")) if found else -1


def _tasks(objects: list[Any]) -> dict[str, int]:
    names = Counter[str]()
    for found in objects:
        if issubclass(type(found), asyncio.Task) and not found.done():
            names[getattr(found.get_coro(), "__qualname__", "?")] += 1
    return dict(names)


def _containers(objects: list[Any]) -> Counter[str]:
    total = Counter[str]()
    for found in objects:
        kind = type(found)
        if not str(kind.__module__).startswith(OURS):
            continue
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(found, Sized) and isinstance(found, CONTAINERS):
            total[name] += len(found)
        for attribute, value in _attributes(found):
            if isinstance(value, CONTAINERS):
                total[f"{name}.{attribute}"] += len(value)
            elif isinstance(value, asyncio.Queue):
                total[f"{name}.{attribute}"] += value.qsize()
    return total


def _attributes(found: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(found, "__dict__", {}).items())
    for kind in type(found).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(found, name):
                yield name, getattr(found, name)


def _loops(objects: list[Any]) -> dict[str, int]:
    loops = [found for found in objects if issubclass(type(found), asyncio.BaseEventLoop)]
    return {
        "timers": sum(len(loop._scheduled) for loop in loops),  # type: ignore[attr-defined]
        "ready": sum(len(loop._ready) for loop in loops),  # type: ignore[attr-defined]
        "sockets": sum(len(loop._selector.get_map() or ()) for loop in loops),  # type: ignore[attr-defined]
    }


def _maps() -> dict[str, int]:
    """Resident bytes by what is mapped."""
    total = Counter[str]()
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = Path((line.split(maxsplit=5)[5:] or ["anonymous"])[0]).name
        elif line.startswith("Rss:"):
            total[name] += int(line.split()[1]) << 10
    return dict(total)


def _traced() -> dict[str, int]:
    """Bytes by where they were taken, the nearest frames of this product first."""
    total = Counter[str]()
    for trace in tracemalloc.take_snapshot().traces:
        frames = list(reversed(trace.traceback))
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if _OURS.search(f.filename)]
        where = f"{Path(frames[0].filename).name}:{frames[0].lineno}" if frames else "?"
        total[" < ".join([where, *ours[:3]])] += trace.size
    return dict(total.most_common(400))
