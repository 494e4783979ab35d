"""Where a drafter lies that learned from its user's runs: `learning/DIGEST` in the state folder, one folder a round.

The file `current` names the round that drafts. A round is written whole before it is named, and the one before stays
until the next, so that a run which loads while another is named finds a whole one.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from draft.asset import Made, read_made
from swarm.base.errors import UsageError
from swarm.base.files import write_whole

CURRENT = "current"
WEIGHTS = "model.safetensors"
_ROUND = re.compile(r"drafter-([0-9]{1,9})")
_LOOKED_AT = 1 << 20


def origin_of(folder: Path) -> str:
    """What tells the drafter in a folder from another one: a digest of the file's length and first and last bytes,
    which training changes. Raises UsageError."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            data = file.read(_LOOKED_AT)
            file.seek(max(0, length - _LOOKED_AT))
            data += file.read(_LOOKED_AT)
    except OSError as error:
        raise UsageError(f"cannot read {folder / WEIGHTS}: {error.strerror}; distil the drafter again") from error
    return hashlib.sha256(length.to_bytes(8, "little") + data).hexdigest()


def learned_drafter(folder: Path, digest: str, origin: Path | None) -> Made | None:
    """The drafter that learned for the target with this digest, below `folder` (`RunShelf.of`); None: there is none.

    origin: the drafter that would be used without it. Raises UsageError for a damaged one, and for one that began from
    another: a new one was put there since, and knows more of other text.
    """
    try:
        name = (folder / CURRENT).read_bytes()[:64].decode("ascii", "replace").strip()
    except OSError:
        return None
    if not _ROUND.fullmatch(name):
        raise UsageError(f"{folder / CURRENT} names no drafter; drop what was learned: swarm draft learn --forget")
    made = read_made(folder / name)
    if made is None or made.learned is None or made.target_digest != digest:
        raise UsageError(
            f"expected a drafter that learned for this model in {folder / name}, found another; drop it: swarm draft "
            "learn --forget"
        )
    if origin is not None and origin_of(origin) != made.learned.origin:
        raise UsageError(
            f"what learned from your runs in {made.path} began from another drafter than the one in {origin}; swarm "
            "draft learn goes on from this one, with --forget it drops both runs and what learned"
        )
    return made


def put_in_use(folder: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` make a drafter's files in a folder of a new round, and name it. Returns that folder. Raises OSError;
    what was in use stays then."""
    rounds = sorted(int(found[1]) for path in folder.iterdir() if (found := _ROUND.fullmatch(path.name)))
    number = rounds[-1] + 1 if rounds else 1
    made = folder / f"drafter-{number}"
    made.mkdir(mode=0o700)
    try:
        write(made)
        for path in made.iterdir():
            path.chmod(0o600)
        write_whole(folder / CURRENT, made.name.encode())
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    for old in rounds[:-1]:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder / f"drafter-{old}")
    return made
