"""Large files of a hub, resumed across processes: a part lies under a name that the next process finds again.

huggingface_hub gives every part a random name since parts that two processes write at once are corrupt (1.x,
`_download_to_tmp_and_move`), so what a killed process fetched is lost, and stays. Here one process holds a part by a
lock that goes with it; whoever does not get it downloads beside it, the library's way. What is whole is put where the
library looks for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from swarm.base.errors import ModelError
from swarm.base.files import DISK_ERRNOS
from swarm.base.locks import OPEN, lock_now
from swarm.model.files.files import sha256_file

PART = ".wanswarm"
"""Ends the name of a part that can be resumed."""
DAY_S = 86_400.0
KEEP_S = {".incomplete": DAY_S, PART: 14 * DAY_S, ".part": 14 * DAY_S}
"""How long a part that nobody writes to is kept, by the end of its name: the library's cannot be resumed by anybody."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at a commit; `digest` its SHA-256 in hex, `size` in bytes."""

    repo: str
    commit: str
    name: str
    digest: str
    size: int


def bring(file: HubFile, endpoint: str | None, cache: Path | None, bar: type[Any]) -> None:
    """Fetch a file's content into the library's cache, from where the last process was ended.

    Does nothing where the library must do it: content that is here, that the hub does not name by its SHA-256, that is
    too large for plain HTTP, or that another process fetches now. Raises ModelError for a disk that is full, and what
    the library raises for the hub's errors.
    """
    folder = repo_folder_name(repo_id=file.repo, repo_type="model")
    blobs = (cache or Path(constants.HF_HUB_CACHE)) / folder / "blobs"
    if (blobs / file.digest).exists() or file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return
    url = hf_hub_url(file.repo, file.name, revision=file.commit, endpoint=endpoint)
    about = get_hf_file_metadata(url, endpoint=endpoint)
    if about.etag != file.digest:
        return
    headers = dict(build_hf_headers())
    if urlparse(about.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # a content network is told no token
    part = blobs / f"{file.digest}{PART}"
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        remove_old(blobs, time.time())
        handle = os.open(part, OPEN, 0o666)
        with os.fdopen(handle, "r+b", buffering=0) as out:
            if not lock_now(handle):
                return
            resumed = _begin(out, file.size)
            http_get(about.location, out, resume_size=resumed, headers=headers, expected_size=file.size, tqdm_class=bar)
            if resumed and sha256_file(part) != file.digest:  # what lay here may be the bad part: once more, whole
                out.truncate(0)
                out.seek(0)
                http_get(about.location, out, headers=headers, expected_size=file.size, tqdm_class=bar)
            os.fsync(handle)
        os.replace(part, blobs / file.digest)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        raise ModelError(f"cannot write {part}: {error.strerror}; free space or choose another cache") from error


def remove_old(folder: Path, now: float) -> list[Path]:
    """Remove parts that nobody wrote to for `KEEP_S`; `now` in Unix seconds. Returns what was removed."""
    gone = []
    for path, age in _parts(folder, now):
        if age > KEEP_S[path.suffix]:
            path.unlink(missing_ok=True)
            gone.append(path)
    return gone


def _parts(folder: Path, now: float) -> Iterable[tuple[Path, float]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in KEEP_S:
            try:
                yield path, now - path.stat().st_mtime
            except FileNotFoundError:
                continue


def _begin(out: Any, size: int) -> int:
    """Where to go on; a part that is longer than the file is none of it."""
    have = int(out.seek(0, os.SEEK_END))
    if have <= size:
        return have
    out.truncate(0)
    out.seek(0)
    return 0
