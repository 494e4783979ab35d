"""Which receipt was written last by requesters of a state folder, wherever each was asked to be put."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from swarm.base.errors import UsageError
from swarm.base.files import write_whole
from swarm.run.trace import TRACE

SECRETS = ".secrets.json"
BESIDE = (SECRETS, TRACE)
"""How the names of files end that lie beside a receipt and are none."""
_LAST = "last"


def note_last(folder: Path, receipt: Path) -> None:
    """Remember in `folder`, the state folder's `receipts`, where a receipt lies that was put elsewhere. A full disk
    costs that and no more."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(folder / _LAST, os.fsencode(receipt.absolute()))


def last_receipt(folder: Path) -> Path:
    """The receipt that was written last. Raises UsageError when there is none."""
    found = [path for path in folder.glob("*.json") if not path.name.endswith(BESIDE)]
    with contextlib.suppress(OSError, ValueError):
        noted = Path(os.fsdecode((folder / _LAST).read_bytes()))
        found += [noted] if noted.is_file() else []
    if not found:
        raise UsageError(f"expected a receipt, found none in {folder}; name one, or make one with swarm generate")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
