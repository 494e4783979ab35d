"""Runs kept for learning on this machine, `learning/DIGEST/runs` in the state folder: private, bounded, the oldest go.

Any number of processes may keep runs at once: each writes files of its own, and whoever finds too many bytes removes
the oldest of all. Nothing here ever fails a run: what cannot be written is logged and not kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from draft.recorded_run import DamagedRun, RecordedRun, from_bytes, to_bytes
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report
from swarm.base.files import write_whole
from swarm.base.locks import OPEN, lock_now, read_note, write_note

log = logging.getLogger(__name__)

FOLDER = "learning"
"""In the state folder."""
RUNS, LOCK = "runs", "lock"
MOST_BYTES = 64 << 20
LARGEST_SHARE = 4
"""A run may take this part of the room: more would push all others out."""
TORN_S = 3600.0
"""After so long what a killed process left half written is removed."""
_NAME = re.compile(r"[0-9]{15}-[0-9a-f]{8}\.run")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RunShelf:
    """`folder`: for all targets; `most_bytes`: of all runs together."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def of(self, target: str) -> Path:
        """Where what belongs to a target lies, by its manifest's digest."""
        return self.folder / target

    def keep(self, run: RecordedRun, wall_s: float) -> bool:
        """Write a run, and remove the oldest where they are too many. Whether it was kept; a full disk is logged."""
        data = to_bytes(run)
        if len(data) * LARGEST_SHARE > self.most_bytes:
            log.warning("a run of %d bytes is not kept for learning: it is too large", len(data))
            return False
        name = f"{int(wall_s * 1000):015d}-{secrets.token_hex(4)}.run"
        try:
            for folder in (self.folder, self.of(run.target), runs := self.of(run.target) / RUNS):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(runs / name, data)
        except OSError as error:
            log.warning("a run could not be kept for learning in %s: %s", self.folder, error.strerror or error)
            return False
        self.prune(wall_s)
        return True

    def prune(self, wall_s: float) -> None:
        """Remove the oldest runs of all targets until the rest has room, and what was left half written."""
        found = list[tuple[str, int, Path]]()
        for entry in self._entries():
            with contextlib.suppress(OSError):  # another process removed it
                if _NAME.fullmatch(entry.name):
                    found.append((entry.name, entry.stat().st_size, Path(entry.path)))
                elif entry.name.startswith(".") and entry.stat().st_mtime < wall_s - TORN_S:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                break
            total -= size
            with contextlib.suppress(OSError):
                path.unlink()

    def load(self, target: str, report: Report) -> list[RecordedRun]:
        """The runs of a target, oldest first, each once. A damaged file is named and left out."""
        found = dict[tuple[str, bytes], RecordedRun]()
        for path in self.files(target):
            try:
                run = from_bytes(path.read_bytes())
                if run.target != target:
                    raise DamagedRun("expected a run of this target, found another's")
            except FileNotFoundError:
                continue
            except (OSError, DamagedRun) as error:
                report(Notice(f"not learning from {path}: {error}", "warning"))
                continue
            found[run.prompt_key, run.tokens.tobytes()] = run
        return list(found.values())

    def files(self, target: str) -> list[Path]:
        """Files of its runs, oldest first."""
        with contextlib.suppress(OSError):
            return sorted(path for path in (self.of(target) / RUNS).iterdir() if _NAME.fullmatch(path.name))
        return []

    def targets(self) -> list[str]:
        """Digests of the targets of which something lies here."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.folder.iterdir() if _DIGEST.fullmatch(path.name))
        return []

    def forget(self, target: str) -> int:
        """Remove its runs, and what was learned from them. Returns how many runs these were. Raises UsageError where
        somebody learns from them now, or where they cannot be removed."""
        if not self.of(target).is_dir():
            return 0
        count = len(self.files(target))
        with self.held(target):
            for path in list(self.of(target).iterdir()):
                try:
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name != LOCK:
                        path.unlink()
                except OSError as error:
                    raise UsageError(f"cannot remove {path}: {error.strerror or error}; remove it by hand") from error
        with contextlib.suppress(OSError):
            (self.of(target) / LOCK).unlink(missing_ok=True)
            self.of(target).rmdir()
        return count

    @contextlib.contextmanager
    def held(self, target: str) -> Iterator[None]:
        """One process at a time learns for a target, or forgets. Raises UsageError."""
        try:
            self.of(target).mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.of(target) / LOCK, OPEN, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write {self.of(target)}: {error.strerror}; choose another --state") from error
        try:
            if not lock_now(handle):
                raise UsageError(
                    f"expected nobody to learn in {self.of(target)}, found process {read_note(handle) or 'unknown'}; "
                    "wait for it, or stop it with Ctrl-C"
                )
            with contextlib.suppress(OSError):
                write_note(handle, str(os.getpid()))
            yield
        finally:
            os.close(handle)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for target in self.targets():
            with contextlib.suppress(OSError), os.scandir(self.of(target) / RUNS) as entries:
                yield from entries
