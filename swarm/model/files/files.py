"""Small file work that the store and the checkpoints share: digests, whole writes, bounded reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from swarm.base.errors import ModelError
from swarm.base.events import Progress, Report, silent
from swarm.base.files import write_whole

_CHUNK = 4 << 20


def sha256_file(path: Path, report: Report = silent) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(Progress("load", f"digest of {path.name}", done, total))
    return digest.hexdigest()


def keep(path: Path, data: bytes) -> None:
    """Write a small file that others of this machine may read, whole or not at all. Raises ModelError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, 0o644)
    except OSError as exc:
        raise ModelError(f"cannot write {path}: {exc.strerror}; free space or choose another --models") from exc


def read_bounded(path: Path, limit: int) -> bytes:
    """A small file's bytes. Raises ModelError when it is missing or over `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}") from exc
    if len(data) > limit:
        raise ModelError(f"{path} is over {limit} bytes, which no model file of its kind is")
    return data


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, where `name` comes from a file that somebody else wrote. Raises ModelError if it leads out."""
    if not name or "\x00" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise ModelError(f"a file name in {folder} leads out of the folder: {name!r}")
    return folder / name
