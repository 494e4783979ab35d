"""Small files that are there whole or not at all, whatever happens while they are written.

Everything that this program keeps goes through here, apart from what only ever grows (`receipts.record.log`,
`receipts.record.rows`, fetched tensors), which cuts off what a crash left torn.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

__all__ = ["DISK_ERRNOS", "write_whole"]

DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM})
"""What a file system says when it is full, read-only, broken or somebody else's."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_whole(path: Path, data: bytes, mode: int = 0o600, replace: bool = True) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the whole new one.

    With `replace` false a file that appeared meanwhile wins (two processes starting at once agree on one key).
    Raises OSError; nothing is left behind then. A process that is killed may leave a hidden file beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, _NEW, mode)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if replace:
            os.replace(temporary, path)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
