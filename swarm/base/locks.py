"""A file that one process holds at a time, on every system. The lock goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""How a file that will be locked is opened."""

_FAR = 1 << 30
"""Windows locks bytes, and locked ones cannot be read: this one lies behind all that such a file holds."""


def lock_now(handle: int) -> bool:
    """Lock an open file for as long as it is open; False when somebody else holds it. Never waits."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def read_note(handle: int) -> str:
    """What the holder wrote into the file about itself, "" when nothing."""
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 64).decode(errors="replace").strip()


def write_note(handle: int, note: str) -> None:
    """Replace what the file says. Raises OSError."""
    os.lseek(handle, 0, os.SEEK_SET)
    os.ftruncate(handle, 0)
    os.write(handle, note.encode())


@contextlib.contextmanager
def folder_held(folder: Path) -> Iterator[bool | None]:
    """Hold a folder that one process makes: True; False where somebody else does, or it was moved or removed meanwhile;
    None where folders cannot be held (Windows). Raises OSError when it is not there."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        yield None
        return
    try:
        yield lock_now(handle) and os.path.samestat(os.fstat(handle), folder.stat())
    finally:
        os.close(handle)
