"""The state folder: one process at a time, private, and a place for each kind of user."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.base.errors import SwarmError, UsageError
from swarm.base.files import remove_torn, write_whole
from swarm.base.locks import OPEN, lock_now, read_note, write_note
from swarm.mesh.saved import Saved, save

log = logging.getLogger(__name__)


class StateInUse(UsageError):
    """Another process holds the folder."""


LOCK = "lock"
LAST_INVITE = "last.invite"
REQUESTER = "requester"
MOST_REQUESTERS = 64


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold `folder` for this process. Raises StateInUse when another holds it, UsageError when it cannot be
    written.

    The lock goes with the process, however that ends.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / LOCK, OPEN, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write the state folder {folder}: {error.strerror}; choose another --state") from error
    try:
        if not lock_now(file):
            owner = read_note(file) or "unknown"
            raise StateInUse(
                f"the state folder {folder} is in use by process {owner}; give each process its own --state"
            )
        remove_torn(folder)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its owner stays unnamed
            write_note(file, str(os.getpid()))
        yield folder
    finally:
        os.close(file)


def remember_invite(state: Path, invite: str) -> None:
    """So that the next command on this machine needs no invite. A full disk costs that and no more."""
    try:
        write_whole(state / LAST_INVITE, invite.encode())
    except OSError as error:
        log.warning("the invite could not be kept in %s: %s", state, error.strerror)


@dataclass(frozen=True)
class RememberedSwarm:
    """What this process knows of its swarm, kept in its folder. A full disk must not end one that serves or asks."""

    folder: Path

    def keep(self, saved: Saved) -> None:
        """Write it, or log why not."""
        try:
            save(self.folder, saved)
        except SwarmError as error:
            log.warning("%s", error)


@contextlib.contextmanager
def requester_folder(state: Path) -> Iterator[Path]:
    """A folder for one requester: its key must not be that of a node, nor of another requester at the same time."""
    with contextlib.ExitStack() as held:
        for number in range(1, MOST_REQUESTERS + 1):
            name = REQUESTER if number == 1 else f"{REQUESTER}-{number}"
            try:
                folder = held.enter_context(locked(state / name))
                break
            except StateInUse:
                continue
        else:
            raise UsageError(f"{MOST_REQUESTERS} requesters use {state} already; give this one its own --state")
        yield folder
