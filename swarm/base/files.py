"""Small files that are there whole or not at all, whatever happens while they are written.

Everything that this program keeps goes through here, apart from what only ever grows (`receipts.record.log`,
`receipts.record.rows`, fetched tensors), which cuts off what a crash left torn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from swarm.base.errors import UsageError
from swarm.base.locks import folder_held

__all__ = ["DISK_ERRNOS", "remove_torn", "whole_folder", "write_whole"]

DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM})
"""What a file system says when it is full, read-only, broken or somebody else's."""

TORN_S = 3600.0
"""How old a hidden file of `write_whole` is when nobody writes it any more."""
_TORN = re.compile(r"\..+\.[0-9a-f]{12}")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_whole(path: Path, data: bytes, mode: int = 0o600, replace: bool = True) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the whole new one.

    With `replace` false a file that appeared meanwhile wins (two processes starting at once agree on one key).
    Raises OSError; nothing is left behind then. A process that is killed may leave a hidden file beside it, which
    `remove_torn` removes.
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


def remove_torn(folder: Path, now: float | None = None) -> None:
    """Remove what killed processes left of `write_whole` in a folder, and in the folders right below it."""
    now = time.time() if now is None else now
    for path in (*folder.glob(".*.*"), *folder.glob("*/.*.*")):
        with contextlib.suppress(OSError):
            if _TORN.fullmatch(path.name) and now - path.lstat().st_mtime > TORN_S and not path.is_dir():
                path.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that is there whole or not at all: what is made in the folder given is at `path` in the end, and
    gone where that fails. What a killed process left is removed by the next one that makes the same.

    Raises UsageError where something is at `path` or another process makes it now, and OSError.
    """
    if path.exists() and any(path.iterdir() if path.is_dir() else (1,)):
        raise UsageError(f"{path} is there already; name a folder that is not")
    part = path.with_name(f".{path.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    with folder_held(part) as alone:
        if alone is False:
            raise UsageError(f"another process makes {path} now; name another folder")
        try:
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield part
            if path.is_dir():
                path.rmdir()  # empty; Windows moves nothing over it
            os.replace(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
