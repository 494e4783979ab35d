"""Paths as options give them: what cannot be what it is given for is refused before anything is loaded or asked.

Nothing is left behind: whether a file can be made somewhere is tried with one that has no name afterwards.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from swarm.base.errors import UsageError


def read_path(text: str) -> Path:
    """Any path. Raises UsageError for an empty text, which would be the folder one happens to be in."""
    if not text:
        raise UsageError("expected a path, found an empty text; for the folder you are in write .")
    return Path(text)


def read_folder(text: str) -> Path:
    """A folder, there already or not. Raises UsageError for what is something else."""
    path = read_path(text)
    if path.exists() and not path.is_dir():
        raise UsageError(f"expected a folder, found {_kind(path)} {path}; name another")
    return path


def folder_to_write(text: str) -> Path:
    """A folder in which files can be made, there already or not. Raises UsageError."""
    path = read_folder(text)
    _try_to_write(path, path)
    return path


def file_to_write(text: str) -> Path:
    """A file that can be made or replaced; folders above it may be missing. Raises UsageError."""
    path = read_path(text)
    if path.exists() and not path.is_file():
        raise UsageError(f"expected a file, found {_kind(path)} {path}; name a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"cannot write {path}: it is read-only; name another file")
    _try_to_write(path, path.parent)
    return path


def stream_to_write(text: str) -> Path:
    """As `file_to_write`, but a device such as /dev/stdout will do. Raises UsageError."""
    path = read_path(text)
    return file_to_write(text) if path.is_dir() or not path.exists() or path.is_file() else path


def _kind(path: Path) -> str:
    return "the folder" if path.is_dir() else "the file" if path.is_file() else "a device, no file:"


def _try_to_write(asked: Path, folder: Path) -> None:
    """Make and remove a file in `folder`, or in the nearest folder above that is there. Raises UsageError."""
    try:
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        trial = folder / f".{secrets.token_hex(6)}.trial"
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot write {asked}: {folder}: {reason}; name another place") from error
