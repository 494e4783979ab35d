"""The state folder: one process at a time, private, and a place for each kind of user."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from swarm.errors import UsageError


class StateInUse(UsageError):
    """Another process holds the folder."""


LOCK = "lock"
LAST_INVITE = "last.invite"
MOST_REQUESTERS = 64


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold `folder` for this process. Raises StateInUse when another holds it, UsageError when it cannot be
    written.

    The lock goes with the process, however that ends.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write the state folder {folder}: {error.strerror}; choose another --state") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StateInUse(
                f"the state folder {folder} is in use by process {owner}; give each process its own --state"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its owner stays unnamed
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield folder
    finally:
        os.close(file)


@contextlib.contextmanager
def requester_folder(state: Path) -> Iterator[Path]:
    """A folder for one requester: its key must not be that of a node, nor of another requester at the same time."""
    with contextlib.ExitStack() as held:
        for number in range(1, MOST_REQUESTERS + 1):
            name = "requester" if number == 1 else f"requester-{number}"
            try:
                folder = held.enter_context(locked(state / name))
                break
            except StateInUse:
                continue
        else:
            raise UsageError(f"{MOST_REQUESTERS} requesters use {state} already; give this one its own --state")
        yield folder
